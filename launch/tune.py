"""Sweep on the Ray cluster that runs here: ray submit launch/cluster.yaml launch/tune.py -- config=… key=value."""

import os
import sys

from drwr_dist.cli import run_verb
from drwr_dist.tune import main

# `ray submit` runs a copy of this file in the head's home; relative paths mean the package's folder, as on a laptop.
os.chdir(os.environ.get("DRWR_HOME", "."))
run_verb(main, ["cluster.address=auto", *[argument for argument in sys.argv[1:] if argument != "--"]])

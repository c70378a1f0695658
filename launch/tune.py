"""Sweep on the Ray cluster that this script runs in: ray submit CLUSTER.yaml launch/tune.py -- config=… key=value."""

import sys

from drwr_dist.cli import run_verb
from drwr_dist.tune import main

run_verb(main, ["cluster.address=auto", *[argument for argument in sys.argv[1:] if argument != "--"]])

"""`python -m drwr_dist.tune`: sweep over categories and hyperparameters, and write down the best configurations."""

from __future__ import annotations

from collections.abc import Sequence

from drwr_dist.cli import load_options, run_verb
from drwr_dist.config import TuneConfig
from drwr_dist.validation import validate


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    config = load_options(TuneConfig, arguments, verb="tune")
    validate(config)
    # Seconds of PyTorch and Ray, which a mistyped key and --help need not wait for.
    from drwr_dist.sweep.run import run_tuning

    return run_tuning(config)


if __name__ == "__main__":
    run_verb(main)

"""`python -m drwr_dist.train`: train a network on the shards, evaluate it, and show what came out."""

from __future__ import annotations

from collections.abc import Sequence

from drwr_dist.cli import load_options, run_verb
from drwr_dist.config import TrainConfig
from drwr_dist.validation import validate


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    config = load_options(TrainConfig, arguments, verb="train")
    validate(config)
    # Seconds of PyTorch and Ray, which a mistyped key and --help need not wait for.
    from drwr_dist.training import run_training

    return run_training(config, arguments)


if __name__ == "__main__":
    run_verb(main)

"""What resuming in the middle of an epoch costs: the first batch from step 0 against the first from the middle.

    python benchmarks/resume.py output=/tmp/resume [shards=1000]

Builds a dataset of so many shards out of the demo's objects (once), then takes the two times in turn, in a fresh
stream each, and prints their medians. Includes reading the index, the plan, and reading and decoding the batch.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drwr_dist.cli import load_options, run_verb
from drwr_dist.config import DataConfig, LoaderConfig
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import split_members
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.data.writer import EncodedSample, ShardLimits, write_dataset


@dataclass
class ResumeOptions:
    """Measure what resuming in the middle of an epoch costs."""

    output: str = "???"  # folder for the dataset
    data: str = "shards/demo"  # whose objects are repeated
    shards: int = 1000  # of the dataset
    samples: int = 2  # in each shard
    global_batch: int = 8  # objects per step
    rounds: int = 9  # measurements of each of the two


def build(options: ResumeOptions) -> None:
    source = load_index(options.data)
    rows = source.select("train")

    def samples() -> Iterator[EncodedSample]:
        for number in range(options.shards * options.samples):
            shard, position, key = rows[number % len(rows)]
            members = split_members(read_sample(source, shard, position), key=key)
            yield EncodedSample(f"{key}-{number}", "train", members, "demo", "CC0-1.0")

    write_dataset(
        options.output, samples(), name="resume", image_size=source.image_size, views=source.views,
        focal_length=source.focal_length, limits=dataclasses.replace(ShardLimits(), samples=options.samples),
    )  # fmt: skip


def first_batch(options: ResumeOptions, middle: bool) -> float:
    """Return the seconds until the first batch has come."""
    begin = time.perf_counter()
    table = SampleTable.select(load_index(options.output), "train")
    plan = table.plan(0, options.global_batch)
    start = plan.steps_per_epoch // 2 if middle else 0
    data = DataConfig(path=options.output, supervision_views=4)
    stream = batches(table, plan, data, LoaderConfig(), rank=0, world_size=1, start=start, stop=start + 1)
    assert len(next(iter(stream)).keys) == options.global_batch
    return time.perf_counter() - begin


def main(arguments: Sequence[str]) -> int:
    options = load_options(ResumeOptions, arguments, verb="resume", with_file=False)
    if not Path(options.output, "index.json").exists():
        build(options)
    first_batch(options, middle=False)
    pairs = [(first_batch(options, False), first_batch(options, True)) for _ in range(options.rounds)]
    begins, resumes = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{options.shards} shards, {options.shards * options.samples} objects: first batch of the epoch {begins:.3f} s"
    )
    print(f"first batch from the middle {resumes:.3f} s: {resumes - begins:+.3f} s (median of {options.rounds})")
    return 0


if __name__ == "__main__":
    run_verb(main)

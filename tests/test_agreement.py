"""What ranks decide together, in two real processes with gloo between them."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from drwr_dist.engine.agreement import on_all_ranks, on_first_rank
from drwr_dist.errors import DataError, TrainingError


def fail(error: Exception) -> None:
    raise error


def two_ranks(rank: int, meeting: str, answers: multiprocessing.Queue[tuple[int, list[object]]]) -> None:
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=limit)
    seen: list[object] = [on_first_rank(lambda: "made"), on_all_ranks(lambda: rank)]
    for work in (
        lambda: on_first_rank(lambda: fail(OSError(28, "No space left on device", "metrics.jsonl"))),
        lambda: on_all_ranks(lambda: fail(DataError("no index.json")) if rank == 1 else None),
        lambda: on_all_ranks(lambda: fail(DataError("gone for all"))),
    ):
        try:
            work()
        except TrainingError as error:
            seen.append(str(error))
    answers.put((rank, seen))
    dist.destroy_process_group()


def test_what_fails_on_one_rank_ends_all_with_its_reason(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[tuple[int, list[object]]] = context.Queue()
    ranks = [context.Process(target=two_ranks, args=(rank, str(tmp_path / "meeting"), answers)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(answers.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(30)
    messages = ["[Errno 28] No space left on device: 'metrics.jsonl'", "no index.json", "gone for all"]
    assert found == {0: ["made", 0, *messages], 1: [None, 1, *messages]}

"""The training loop: what every worker runs."""

from __future__ import annotations

from typing import Any

import yaml

from drwr_dist.config import from_plain
from drwr_dist.errors import DrwrError


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train from the last checkpoint to the last step; return how it ended, the same on all ranks.

    Args:
        job: {"config": plain TrainConfig, "board": handle of the driver's board, "until": last step of this session,
            or None for the last step of all}.

    Returns:
        {"outcome": "finished" | "interrupted" | "failed", "step": steps done, "skipped": samples, "skips": those of
        each shard, "message": …}.
        Failures that a restart can't mend are returned rather than raised: Ray would only try them again.
    """
    # Ray's controller and the driver import this module too, and need none of what a worker imports.
    from drwr_dist.engine.worker import Worker

    config = from_plain(job["config"])
    try:
        with Worker(config, job["board"]) as worker:
            worker.describe(yaml.safe_dump(job["config"], sort_keys=False))
            done, last = worker.start, job["until"] or config.steps
            if config.steps == 0:
                worker.save(0)  # the initial weights themselves
            for step, batch in worker.batches() if done < last else ():  # a group that Ray starts again may be done
                tally = worker.forward_backward(step, batch)
                total = worker.agree(step, batch, tally)
                gradient_norm = worker.update(step)
                done = step + 1
                same = worker.average(done)  # False: ranks differ, nothing can be saved or end here
                worker.log(step, total, gradient_norm)
                worker.illustrate(done)
                ends = same and (done >= last or total.stop > 0)
                best = same and worker.validate(done)
                if best or ends or (same and done % config.checkpoint.every == 0):
                    worker.save(done)
                if ends:
                    break
            outcome = "finished" if done >= config.steps else "interrupted"
            return {"outcome": outcome, "step": done, "skipped": worker.skipped, "skips": dict(worker.skips)}
    except DrwrError as error:
        return {"outcome": "failed", "message": str(error)}

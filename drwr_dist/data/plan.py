"""Which sample goes where: pure functions of (shard sizes, seed, epoch, step, global batch).

The samples of a dataset are numbered 0 … n-1 in the order of its index. An epoch permutes the shards and the
samples within each shard, and cuts that sequence into as many contiguous streams as the global batch has
positions; stream lengths differ by at most one. Step t of the epoch takes sample t of every stream. So a global
batch mixes as many places of the dataset as it has samples, while each position reads its shards one after
another, and all of it is known without reading a byte.

The number of workers appears only in `rank_slice`: it cuts a batch that is already decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Separates the random streams, so that no two purposes ever draw the same numbers from one seed.
ORDER, VIEWS, MIRROR, RECOLOUR = 1, 2, 3, 4


@dataclass(frozen=True)
class Plan:
    """The order of samples over all epochs.

    Attributes:
        shard_sizes: number of samples of each shard, in the order of the index.
        seed: of the shuffles.
        global_batch: samples per step over all workers; the last step of an epoch may have fewer.

    Examples:
        >>> plan = Plan(shard_sizes=(4, 3), seed=0, global_batch=3)
        >>> plan.steps_per_epoch
        3
        >>> [batch.tolist() for batch in plan.epoch_batches(0)]
        [[1, 2, 4], [3, 5, 6], [0]]
    """

    shard_sizes: tuple[int, ...]
    seed: int
    global_batch: int

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(f"global_batch must be at least 1, got {self.global_batch}")
        if self.samples < 1:
            raise ValueError("a plan needs at least one sample")

    @property
    def samples(self) -> int:
        """The number of samples: those of one epoch."""
        return sum(self.shard_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in which an epoch visits every sample exactly once."""
        return -(-self.samples // self.global_batch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch that holds global step `step` (both count from 0)."""
        return step // self.steps_per_epoch

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the int64 [n] permutation of all sample numbers that epoch `epoch` visits."""
        random = np.random.default_rng((self.seed, ORDER, epoch))
        firsts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        shards = random.permutation(len(self.shard_sizes))
        return np.concatenate([firsts[s] + random.permutation(self.shard_sizes[s]) for s in shards]).astype(np.int64)

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """Return the sample numbers of each global batch of an epoch: int64 [global_batch], the last may be shorter."""
        order = self.epoch_order(epoch)
        return [order[self._positions(step)] for step in range(self.steps_per_epoch)]

    def batch_size(self, step: int) -> int:
        """Return the number of samples in the global batch of global step `step`."""
        return len(self._positions(step % self.steps_per_epoch))

    def _positions(self, step: int) -> np.ndarray:
        # Stream p starts at p·q + min(p, r) for n = q·G + r: the first r streams are one sample longer.
        quotient, rest = divmod(self.samples, self.global_batch)
        present = self.global_batch if step < quotient else rest
        streams = np.arange(present)
        return streams * quotient + np.minimum(streams, rest) + step

    def view_choice(self, sample: int, epoch: int, views: int, supervision: int) -> tuple[int, list[int]]:
        """Return (input view, supervision views) of a sample in an epoch, drawn at random without replacement.

        Args:
            sample: sample number.
            epoch: epoch number.
            views: how many views the sample has.
            supervision: how many of them judge the points; at most `views`.
        """
        random = np.random.default_rng((self.seed, VIEWS, epoch, sample))
        order = random.permutation(views)
        return int(random.integers(views)), sorted(int(view) for view in order[:supervision])

    def mirrored(self, sample: int, epoch: int) -> bool:
        """Return whether a sample is mirrored in an epoch: one time in two, where `data.mirror` asks for it."""
        return bool(np.random.default_rng((self.seed, MIRROR, epoch, sample)).random() < 0.5)

    def recolouring(self, sample: int, epoch: int) -> np.random.Generator:
        """Return the random numbers by which a sample's colours change in an epoch (`data.recolour`)."""
        return np.random.default_rng((self.seed, RECOLOUR, epoch, sample))


def rank_slice(batch: Sequence[int] | np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Return the contiguous part of a global batch that belongs to `rank`; the parts' sizes differ by at most one.

    Args:
        batch: [b] sample numbers.
        rank: 0 … world_size - 1.
        world_size: number of workers; with more workers than samples the last ones get none.

    Raises:
        ValueError: there is no such rank.

    Examples:
        >>> [rank_slice([7, 3, 5], rank, world_size=2).tolist() for rank in (0, 1)]
        [[7, 3], [5]]
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0 … {world_size - 1}, got {rank}")
    quotient, rest = divmod(len(batch), world_size)
    first = rank * quotient + min(rank, rest)
    return np.asarray(batch)[first : first + quotient + (rank < rest)]

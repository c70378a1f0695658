from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drwr_dist.data.plan import Plan, rank_slice

shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


@given(shard_sizes, st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 20))
def test_every_sample_exactly_once_an_epoch(sizes, seed, epoch, global_batch):
    plan = Plan(tuple(sizes), seed, global_batch)
    batches = plan.epoch_batches(epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(sum(sizes)))
    assert len(batches) == plan.steps_per_epoch
    assert all(len(batch) == global_batch for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= global_batch


@given(shard_sizes, st.integers(1, 20), st.integers(1, 7))
def test_workers_only_slice_the_global_batch(sizes, global_batch, world_size):
    for batch in Plan(tuple(sizes), 3, global_batch).epoch_batches(1):
        slices = [rank_slice(batch, rank, world_size) for rank in range(world_size)]
        assert np.concatenate(slices).tolist() == batch.tolist()
        lengths = [len(part) for part in slices]
        assert max(lengths) - min(lengths) <= 1


def test_epochs_and_seeds_differ_and_the_same_seed_repeats():
    plan = Plan((40, 40, 20), 0, 8)
    assert plan.epoch_order(0).tolist() == Plan((40, 40, 20), 0, 8).epoch_order(0).tolist()
    assert plan.epoch_order(0).tolist() != plan.epoch_order(1).tolist()
    assert plan.epoch_order(0).tolist() != Plan((40, 40, 20), 1, 8).epoch_order(0).tolist()


def test_shards_stay_together_so_that_reads_are_sequential():
    order = Plan((10, 10, 10, 10), 0, 4).epoch_order(0)
    shards = (order // 10).tolist()
    assert sum(a != b for a, b in pairwise(shards)) == 3


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 100), st.integers(1, 20))
def test_view_choice_is_a_function_of_seed_sample_and_epoch(sample, epoch, views):
    plan = Plan((2000,), 5, 8)
    supervision = max(1, views // 2)
    input_view, judges = plan.view_choice(sample, epoch, views, supervision)
    assert (input_view, judges) == plan.view_choice(sample, epoch, views, supervision)
    assert 0 <= input_view < views
    assert len(set(judges)) == supervision and all(0 <= view < views for view in judges)


def test_views_vary_over_epochs_and_samples():
    plan = Plan((100,), 0, 8)
    assert len({plan.view_choice(0, epoch, 8, 4)[0] for epoch in range(50)}) == 8
    assert len({tuple(plan.view_choice(sample, 0, 8, 4)[1]) for sample in range(50)}) > 20


@pytest.mark.parametrize(("sizes", "global_batch"), [((), 4), ((0, 0), 4), ((5,), 0)])
def test_impossible_plans_are_refused(sizes, global_batch):
    with pytest.raises(ValueError):
        Plan(sizes, 0, global_batch)


def test_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank"):
        rank_slice([1, 2], 2, 2)


def test_half_of_the_samples_are_mirrored_and_not_the_same_ones_every_epoch():
    plan = Plan(shard_sizes=(1000,), seed=3, global_batch=8)
    first, second = ([plan.mirrored(sample, epoch) for sample in range(1000)] for epoch in (0, 1))
    assert 430 < sum(first) < 570 and 430 < sum(second) < 570
    assert 400 < sum(a != b for a, b in zip(first, second, strict=True)) < 600
    again = [Plan(shard_sizes=(1000,), seed=3, global_batch=4).mirrored(sample, 0) for sample in range(1000)]
    other = [Plan(shard_sizes=(1000,), seed=4, global_batch=8).mirrored(sample, 0) for sample in range(1000)]
    assert again == first and other != first

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drwr_dist.errors import DataError, DrwrError, UsageError
from drwr_dist.pool import run_ordered
from drwr_dist.sources.manifest import read_manifest
from drwr_dist.sources.splits import assign_splits, merge_groups, read_splits, shuffled

KEYS = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(0, 99)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.integers(0, 30),
    min_size=1,
)


@given(KEYS, st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_groups_stay_together_and_shares_hold(table: dict[str, int], seed: int):
    groups = {key: f"{key[0]}/{group}" for key, group in table.items()}
    splits = assign_splits(groups, seed)
    assert splits.keys() == groups.keys()
    assert len({(groups[key], split) for key, split in splits.items()}) == len(set(groups.values()))
    for category in "abc":
        mine = {groups[key]: split for key, split in splits.items() if key[0] == category}
        counts = Counter(mine.values())
        if len(mine) >= 8:
            assert counts["val"] >= 1 and counts["test"] >= 2
        assert abs(counts["test"] - 0.2 * len(mine)) <= 1
        assert abs(counts["val"] - 0.1 * len(mine)) <= 1
        if mine:
            assert counts["train"] >= 1


def test_splits_do_not_depend_on_the_order_but_on_the_seed():
    groups = {f"a/{number}": f"a/{number}" for number in range(100)}
    assert assign_splits(groups, 0) == assign_splits(dict(reversed(groups.items())), 0)
    assert assign_splits(groups, 0) != assign_splits(groups, 1)
    assert Counter(assign_splits(groups, 0).values()) == {"train": 70, "val": 10, "test": 20}


@given(
    st.dictionaries(
        st.integers(0, 30).map(lambda n: f"a/{n}"), st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1
    )
)
@settings(max_examples=80, deadline=None)
def test_merged_groups_are_connected_components(table: dict[str, tuple[int, int]]):
    groups = {key: f"g{group}" for key, (group, _) in table.items()}
    prints = {key: f"p{mark}" for key, (_, mark) in table.items()}
    merged = merge_groups(groups, prints)
    for one in table:
        for other in table:
            if groups[one] == groups[other] or prints[one] == prints[other]:
                assert merged[one] == merged[other]
    assert set(merged.values()) <= set(groups.values())
    assert merge_groups(groups, {key: key for key in groups}) == groups  # nothing is joined without a reason


def test_shuffled_depends_on_names_and_seed_alone():
    keys = [f"{category}/{number}" for category in "ab" for number in range(20)]
    assert shuffled(keys, 0) == shuffled(keys[::-1], 0) != shuffled(keys, 1)
    assert [key for key in shuffled(keys, 0) if key != "a/7"] == shuffled([key for key in keys if key != "a/7"], 0)
    assert {key[0] for key in shuffled(keys, 0)[:8]} == {"a", "b"}  # categories are mixed


class TestSplitFiles:
    GROUPS = {"a/1": "x", "a/2": "x", "a/3": "y"}  # noqa: RUF012

    def test_json_and_csv(self, tmp_path: Path):
        table = {"a/1": "test", "a/2": "test", "a/3": "val", "a/other": "train"}
        (tmp_path / "s.json").write_text(json.dumps(table))
        (tmp_path / "s.csv").write_text("key,split\n" + "\n".join(f"{key},{split}" for key, split in table.items()))
        for name in ("s.json", "s.csv"):
            assert read_splits(str(tmp_path / name), self.GROUPS) == {"a/1": "test", "a/2": "test", "a/3": "val"}

    @pytest.mark.parametrize(
        ("text", "error", "reason"),
        [
            ('{"a/1": "test"', UsageError, "neither JSON"),
            ("[1, 2]", UsageError, "neither JSON"),
            ('{"a/1": "test", "a/2": "test"}', DataError, "a/3 is missing"),
            ('{"a/1": "test", "a/2": "test", "a/3": "dev"}', DataError, "a/3: split 'dev' is none of"),
            ('{"a/1": "test", "a/2": "train", "a/3": "val"}', DataError, "are near-duplicates"),
        ],
    )
    def test_errors(self, tmp_path: Path, text: str, error: type[Exception], reason: str):
        path = tmp_path / "s.json"
        path.write_text(text)
        with pytest.raises(error, match=reason) as caught:
            read_splits(str(path), self.GROUPS)
        assert str(path) in str(caught.value)

    def test_missing_file(self, tmp_path: Path):
        with pytest.raises(UsageError, match="No such file"):
            read_splits(str(tmp_path / "s.json"), self.GROUPS)


class TestManifest:
    def test_columns(self, tmp_path: Path):
        path = tmp_path / "m.csv"
        path.write_text(
            "category,name,license,near_duplicate_group,source_package,version,author\n"
            "chair,a,CC0-1.0,7,pack,1.0,Ann\nchair,b,,,,,\n"
        )
        rows = read_manifest(str(path))
        first, second = rows["chair", "a"], rows["chair", "b"]
        assert (first.group, first.licence, first.source, first.author) == ("chair/7", "CC0-1.0", "pack 1.0", "Ann")
        assert (second.group, second.licence, second.source) == ("chair/b", "unknown", "unknown")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("category\nchair\n", "line 2: columns category and name"),
            ("category,name\nchair,a\nchair,a\n", "line 3: chair/a is listed twice"),
        ],
    )
    def test_errors(self, tmp_path: Path, text: str, reason: str):
        path = tmp_path / "m.csv"
        path.write_text(text)
        with pytest.raises(UsageError, match=reason):
            read_manifest(str(path))

    def test_not_text(self, tmp_path: Path):
        (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UsageError, match="manifest="):
            read_manifest(str(tmp_path / "m.csv"))
        with pytest.raises(UsageError, match="No such file"):
            read_manifest(str(tmp_path / "none.csv"))


def square(number: int) -> int:
    if number == 13:
        raise DataError("thirteen")
    return number * number


def die(number: int) -> int:
    os._exit(number)


class TestPool:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_results_come_in_order(self, workers: int):
        assert list(run_ordered(square, range(12), workers)) == [number**2 for number in range(12)]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_errors_pass_through(self, workers: int):
        with pytest.raises(DataError, match="thirteen"):
            list(run_ordered(square, range(10, 20), workers))

    def test_a_dead_worker_is_an_error_not_a_hang(self):
        with pytest.raises(DrwrError, match="a worker process died"):
            list(run_ordered(die, [1, 2], 2))

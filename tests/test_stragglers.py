from __future__ import annotations

from drwr_dist.engine.stragglers import Stragglers


def interval(stragglers: Stragglers, busy: list[float], steps: int = 10) -> tuple[float, str | None]:
    for _ in range(steps):
        stragglers.add(busy)
    return stragglers.close_interval()


def test_a_slow_rank_is_named_once_until_it_recovers():
    stragglers = Stragglers(["rank 0", "rank 1", "rank 2"])
    wait, notice = interval(stragglers, [0.1, 1.1, 0.1])
    assert round(wait, 6) == 1.0 and notice and "rank 1" in notice and "1.00 s" in notice
    assert interval(stragglers, [0.1, 1.1, 0.1])[1] is None, "reported already"
    assert interval(stragglers, [0.1, 0.1, 0.1])[1] is None
    assert interval(stragglers, [0.1, 1.1, 0.1])[1] is not None, "slow again after it had recovered"


def test_even_ranks_small_differences_and_single_workers_are_quiet():
    assert interval(Stragglers(["a", "b"]), [0.5, 0.6])[1] is None
    assert interval(Stragglers(["a", "b"]), [0.001, 0.1])[1] is None, "many times as long, but short"
    assert interval(Stragglers(["a"]), [5.0]) == (0.0, None)
    assert Stragglers(["a"]).close_interval() == (0.0, None)

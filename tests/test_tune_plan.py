"""What a sweep decides, as pure functions: candidates, early ends, exchanges, winners, places on the cluster."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drwr_dist.config import PopulationConfig, SweepConfig, TrainConfig, TuneConfig
from drwr_dist.data.plan import Plan
from drwr_dist.sweep import search, trials
from drwr_dist.sweep.capacity import concurrent_trials
from drwr_dist.sweep.early import goes_on, rungs, survivors
from drwr_dist.sweep.importance import importances
from drwr_dist.sweep.measuring import measurements, training_seconds
from drwr_dist.sweep.population import exchanges, perturb
from drwr_dist.sweep.selection import best_of_category, mean_ranks, pareto, scored, shared_order, worth_keeping
from drwr_dist.sweep.space import parse_space
from drwr_dist.sweep.trial_driver import STOP, Job, run_trial
from drwr_dist.sweep.trials import FAILED, FINISHED, PENDING, STOPPED, Trial
from drwr_dist.sweep.tuner import driver_cpus

SPACE = parse_space(
    {
        "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "loss.theta": {"low": 1.0, "high": 9.0},
        "loss.grid": {"values": [16, 32]},
    }
)


def done(candidate: int, category: str, value: float, state: str = FINISHED, step: int = 10, **parameters) -> Trial:
    trial = Trial(candidate, category, parameters or {"loss.theta": float(candidate)}, state)
    trial.history = [{"step": step, "value": value, "seconds": 1.0}]
    return trial


def test_random_candidates_are_a_function_of_seed_and_number():
    sweep = SweepConfig(search="random", candidates=5)
    [numbers] = search.generations(sweep, SPACE)
    assert numbers == range(0, 6)
    some = search.candidates(sweep, SPACE, 3, range(1, 6), [])
    more = search.candidates(SweepConfig(search="random", candidates=9), SPACE, 3, range(1, 10), [])
    assert more[:5] == some
    assert search.candidates(sweep, SPACE, 4, range(1, 6), []) != some


def test_optuna_candidates_are_a_function_of_the_results_and_learn_from_them():
    sweep = SweepConfig(search="optuna", candidates=10, generation=4)
    assert search.generations(sweep, SPACE) == [range(0, 5), range(5, 9), range(9, 11)]
    results = []
    for number in range(1, 25):
        parameters = search.draw(SPACE, 0, number)
        results.append(search.Scored(parameters, (abs(parameters["loss.theta"] - 7.0),)))
    first = search.candidates(sweep, SPACE, 1, range(25, 37), results)
    assert first == search.candidates(sweep, SPACE, 1, range(25, 37), results)
    assert first != search.candidates(sweep, SPACE, 1, range(25, 37), results[:-12])
    assert abs(np.median([row["loss.theta"] for row in first]) - 7.0) < 1.5
    both = [search.Scored(row.parameters, (*(row.objectives or ()), 1.0)) for row in results]
    assert len(search.suggest(SPACE, 1, range(25, 27), both, objectives=2)) == 2


def test_optuna_takes_every_seed_that_training_takes():
    for seed in (42949, 42950, 2**32 - 1):
        assert len(search.suggest(SPACE, seed, range(67297, 67299), [], objectives=1)) == 2


def test_optuna_takes_failures_early_ends_and_a_baseline_outside_the_space():
    results = [
        search.Scored({"optimizer.learning_rate": 5.0, "loss.theta": 2.0, "loss.grid": 64}, (1.0,)),
        search.Scored(search.draw(SPACE, 0, 1), None),
        search.Scored(search.draw(SPACE, 0, 2), (1.0,), stopped_at=5),
        search.Scored(search.draw(SPACE, 0, 3), (float("nan"),)),
    ]
    assert len(search.suggest(SPACE, 0, range(4, 6), results, objectives=1)) == 2


def test_rungs_grow_geometrically_to_the_last_step():
    assert rungs(100, 3, 1000) == [100, 300, 900, 1000]
    assert rungs(10, 2, 40) == [10, 20, 40]


def test_asynchronous_halving_lets_the_best_third_go_on():
    assert goes_on(5.0, [], 3) and goes_on(5.0, [1.0], 3)  # too few to judge
    assert not goes_on(5.0, [1.0, 2.0], 3)
    assert goes_on(0.5, [1.0, 2.0], 3)
    assert goes_on(1.5, [1.0, 2.0, 3.0, 4.0, 5.0], 3) and not goes_on(2.5, [1.0, 2.0, 3.0, 4.0, 5.0], 3)
    assert survivors({"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}, 3) == ["b", "c"]


def test_the_worst_of_a_population_take_over_from_the_best():
    losses = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    assert exchanges(losses, PopulationConfig(quantile=0.25), np.random.default_rng(0)) == {"d": "a"}
    half = exchanges(losses, PopulationConfig(quantile=0.5), np.random.default_rng(0))
    assert set(half) == {"c", "d"} and set(half.values()) <= {"a", "b"}
    assert exchanges({"a": 1.0}, PopulationConfig(), np.random.default_rng(0)) == {}
    start = {"optimizer.learning_rate": 9.9e-3, "loss.theta": 4.0, "loss.grid": 16}
    for seed in range(20):
        moved = perturb(start, SPACE, 1.25, np.random.default_rng(seed))
        assert moved["optimizer.learning_rate"] in (pytest.approx(1e-2), pytest.approx(9.9e-3 / 1.25))
        assert moved["loss.theta"] in (5.0, 3.2) and moved["loss.grid"] in (16, 32)


def test_winners_per_category_and_by_mean_rank():
    rows = [
        done(0, "chair", 9.0), done(1, "chair", 1.0), done(2, "chair", 2.0), done(3, "chair", 3.0),
        done(0, "table", 9.0), done(1, "table", 8.0), done(2, "table", 2.0), done(3, "table", 1.0, FAILED),
    ]  # fmt: skip
    categories = ["chair", "table"]
    assert best_of_category(rows, "chair", "chamfer").candidate == 1
    assert best_of_category(rows, "table", "chamfer").candidate == 2
    assert mean_ranks(rows, categories, "chamfer") == {0: 3.0, 1: 1.5, 2: 1.5}  # 3 was not measured everywhere
    assert shared_order(rows, categories, "chamfer") == [2, 1, 0]  # of equal rank, the lower Chamfer distance
    assert best_of_category(rows, "chair", "f_score_1").candidate == 0  # where more is better


def test_the_front_of_quality_and_time():
    rows = [done(number, "chair", value) for number, value in enumerate((1.0, 2.0, 3.0, 4.0))]
    for row, seconds in zip(rows, (9.0, 5.0, 6.0, 2.0), strict=True):
        row.history[-1]["seconds"] = seconds
    assert [trial.candidate for trial in pareto(rows, "chair", "chamfer")] == [0, 1, 3]


def test_who_was_ended_early_stands_behind_who_was_not():
    rows = [done(1, "chair", 5.0), done(2, "chair", 1.0, STOPPED, step=3), done(3, "chair", 2.0, STOPPED, step=6)]
    assert [t.candidate for t in sorted(rows, key=lambda t: mean_ranks(rows, ["chair"], "chamfer")[t.candidate])] == [
        1, 3, 2,
    ]  # fmt: skip
    assert worth_keeping(rows, ["chair"], "chamfer", 1) == {"001-chair"}
    assert scored(rows, "chamfer", ["quality"])[1].stopped_at == 3


def test_the_parameter_that_decides_is_the_most_important():
    rows = []
    for number in range(1, 40):
        parameters = search.draw(SPACE, 0, number)
        rows.append(done(number, "chair", 1.0 + abs(parameters["loss.theta"] - 4.0), **parameters))
    shares = importances(rows, SPACE, ["chair"], "chamfer")
    assert max(shares["chair"], key=lambda key: shares["chair"][key]) == "loss.theta"
    assert importances(rows[:3], SPACE, ["chair"], "chamfer") == {}


def test_concurrency_counts_what_the_nodes_hold():
    assert concurrent_trials([{"CPU": 2.0}], 2, {"CPU": 0.5}, 0.0) == 2
    assert concurrent_trials([{"CPU": 4.0}], 2, {"CPU": 1.0}, 0.1) == 1  # 0.1 + 2, then 1.9 are left
    assert concurrent_trials([{"CPU": 4.0}, {"CPU": 4.0}], 2, {"CPU": 1.0}, 0.1) == 3
    assert concurrent_trials([{"CPU": 8.0, "GPU": 1.0}], 1, {"CPU": 1.0, "GPU": 0.25}, 0.1) == 4
    assert concurrent_trials([{"CPU": 1.0}], 2, {"CPU": 1.0}, 0.0) == 0


def test_the_journal_survives_a_torn_write(tmp_path: Path):
    trial = trials.plan(tmp_path, Trial(3, "chair", {"loss.theta": 2.5}))
    trial.history = [{"step": 10, "value": 7.5, "seconds": 1.25}]
    trials.save(tmp_path, trial)
    assert trials.load(tmp_path, "003-chair") == trial
    assert trials.plan(tmp_path, Trial(3, "chair", {"loss.theta": 9.0})) == trial  # what was written first stands
    path = tmp_path / "trials" / "003-chair" / "trial.json"
    path.write_text(path.read_text()[:40])
    assert trials.load_all(tmp_path) == []
    assert trials.plan(tmp_path, Trial(3, "chair", {"loss.theta": 2.5})).state == "pending"
    assert json.loads(path.read_text())["parameters"] == {"loss.theta": 2.5}


def test_measurements_come_from_the_files_of_the_run(tmp_path: Path):
    for step in (10, 20, 30):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "samples_per_second": 8.0 * step}) + "\n")
    (tmp_path / "validation.jsonl").write_text('{"step": 20, "chamfer": 7.5}\n{"step": 30, "chamfer": 7.25}\n{"st')
    found = measurements(tmp_path, "chamfer", Plan((800,), 0, global_batch=8))
    assert [(row["step"], row["value"]) for row in found] == [(20, 7.5), (30, 7.25)]
    assert [row["seconds"] for row in found] == pytest.approx([1.0 + 0.5, 1.0 + 0.5 + 1 / 3])


def test_the_seconds_of_training_do_not_depend_on_how_epochs_end(tmp_path: Path):
    """At 2 samples a second, two epochs of 21 samples take 21 s, whatever remains for the last step of each."""
    for global_batch in (1, 4, 8, 16, 20, 21, 64):
        plan = Plan((13, 8), 0, global_batch)
        steps, run = 2 * plan.steps_per_epoch, tmp_path / str(global_batch)
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps({"step": steps, "samples_per_second": 2.0}) + "\n")
        assert training_seconds(run, plan, steps) == pytest.approx(21.0)
        # In between too: the row of each step has the speed of its own samples, here that of a step a second.
        rows = [{"step": step + 1, "samples_per_second": plan.batch_size(step)} for step in range(steps)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert [training_seconds(run, plan, step) for step in range(steps + 1)] == list(range(steps + 1))


def test_a_trial_that_has_not_begun_when_all_are_to_stop_stays_as_it_is(tmp_path: Path):
    trial = Trial(1, "chair", {"loss.theta": 2.0})
    trials.save(tmp_path, trial)
    (tmp_path / STOP).touch()
    config = TuneConfig()
    config.data.path = str(tmp_path / "nothing")  # to begin would be to fail
    run_trial({"trial": trial.id}, Job(tmp_path, config, config.sweep))
    assert trials.load(tmp_path, trial.id).state == PENDING
    assert [path.name for path in trials.folder(tmp_path, trial).iterdir()] == [trials.JOURNAL]


def test_the_drivers_of_local_trials_leave_the_cores_to_their_workers(monkeypatch: pytest.MonkeyPatch):
    """Of 17 CPUs on a machine of 16 cores, 16 trials of a worker each must find their places."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config, settings = TrainConfig(), SweepConfig()
    assert concurrent_trials([{"CPU": 17.0}], 1, {"CPU": 1.0}, driver_cpus(config, settings)) == 16
    config.cluster.address = "auto"
    assert driver_cpus(config, settings) == settings.driver_cpus == 0.1
    settings.driver_cpus = 0.0
    assert 0 < driver_cpus(config, settings) < 0.01, "Ray Tune takes no trial that reserves nothing"
    monkeypatch.setenv("RAY_ADDRESS", "local")
    settings.driver_cpus = 0.5
    assert 0 < driver_cpus(config, settings) < 0.01

"""Sweep over categories and hyperparameters, and write down the best configurations: the work of the verb `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from drwr_dist import terminal
from drwr_dist.config import TuneConfig
from drwr_dist.data.index import load_index
from drwr_dist.engine import driver
from drwr_dist.errors import TrainingError
from drwr_dist.run import remove
from drwr_dist.sweep.checks import check_sweep, check_sweep_data, resolve_space
from drwr_dist.sweep.course import Course, Winners
from drwr_dist.sweep.definition import DEFINITION, refuse_changes, save_definition
from drwr_dist.sweep.display import Display
from drwr_dist.sweep.hparams import write_hparams
from drwr_dist.sweep.interrupts import stop_on_signals
from drwr_dist.sweep.leaderboard import LEADERBOARD, table, write_leaderboard
from drwr_dist.sweep.report import write_report
from drwr_dist.sweep.trial_driver import Job, stops
from drwr_dist.sweep.trials import FAILED, PENDING, Trial
from drwr_dist.sweep.tuner import ray_for_trials, run_wave
from drwr_dist.sweep.winners import RESULT, measure_on_test, print_winners, write_configurations, write_sweep_result
from drwr_dist.training import INTERRUPTED, resolve_paths


def run_tuning(config: TuneConfig) -> int:
    """Run a sweep, or what is left of it, from its definition to its report; return the exit code.

    Raises:
        UsageError: names the key and the fix.
        TrainingError: no trial was trained to its end.
    """
    resolve_paths(config)
    resolve_space(config)
    space = check_sweep(config)
    categories = check_sweep_data(config, space, load_index(config.data.path))
    console = terminal.console()
    sweep = Path(config.storage) / config.name
    with driver.run_lock(sweep):
        prepare(sweep, config, console)
        course = Course(config, space, categories, sweep, run_wave=_nothing_runs)
        winners = course.winners() if course.search() else None
        if winners is None:
            winners = run_sweep(course, console)
        else:
            notice = f"{sweep}: every trial has ended (overwrite=true starts afresh)"
            console.print(notice, highlight=False, soft_wrap=True)
        if winners is None:
            console.print("interrupted; the same command continues from there")
            return INTERRUPTED
        finish(course, *winners, console)
    return 0


def _nothing_runs(job: Job, trials: Sequence[Trial]) -> bool:
    """Stand for Ray while it is found out whether anything is left to do."""
    return False


def prepare(sweep: Path, config: TuneConfig, console: Console) -> None:
    """Make the sweep's folder ready: afresh with overwrite=true, else as it was, if it is the same sweep."""
    if config.overwrite and (sweep / DEFINITION).exists():
        notice = f"overwrite=true: removed from {sweep}: {', '.join(remove(sweep))}"
        console.print(notice, highlight=False, soft_wrap=True)
    config.overwrite = False  # of the sweep, not of its trials
    refuse_changes(sweep, config)
    save_definition(sweep, config)


def run_sweep(course: Course, console: Console) -> Winners | None:
    """Run what is left of a sweep on Ray; return its winners, or None where it was interrupted."""
    config, settings, sweep = course.config, course.config.sweep, course.folder
    total = course.total
    display = Display(console, sweep, course.categories, settings.metric, config.steps, total)

    def watch() -> None:
        course.reload()
        if display.refresh(course.trials):
            write_leaderboard(sweep, course.trials, course.categories, settings.metric)
            course.free_disk()

    with ray_for_trials(config, settings) as at_once:
        describe(course, min(at_once, total), console)
        course.run_wave = lambda job, trials: run_wave(job, trials, min(at_once, len(trials)), watch)
        with stop_on_signals(sweep, display.notice), display:
            watch()
            return course.winners() if course.search() else None


def describe(course: Course, at_once: int, console: Console) -> None:
    """Print what will run, with its arithmetic."""
    config, settings, categories = course.config, course.config.sweep, course.categories
    candidates = course.total // len(categories)
    measured = ", ".join(str(step) for step in stops(settings, config.steps))
    early = "" if settings.scheduler == "none" else f", scheduler {settings.scheduler}"
    lines = [
        f"sweep {config.name}: {candidates} configurations (search {settings.search}"
        f"{', the default among them' if settings.baseline else ''}) × {len(categories)} categories "
        f"({', '.join(categories)}) = {course.total} trials{early}",
        f"each: {config.workers} worker(s) of {config.cluster.cpus_per_worker:g} CPU, {config.steps} steps, "
        f"{settings.metric} on val after {measured}; {at_once} at the same time",
        f"varied: {', '.join(course.space)}",
    ]
    if any(trial.state != PENDING for trial in course.trials):
        ended = sum(trial.ended for trial in course.trials)
        lines.append(f"resuming: {ended} of {course.total} trials have ended")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def finish(course: Course, best: dict[str, Trial], shared: list[Trial], console: Console) -> None:
    """Measure the winners on the test split, and write everything that a sweep leaves behind.

    Raises:
        TrainingError: there is no winner.
    """
    config, sweep, trials, settings = course.config, course.folder, course.trials, course.config.sweep
    write_leaderboard(sweep, trials, course.categories, settings.metric)
    console.print(table(trials, course.categories, settings.metric, {}, str(sweep), every=True))
    if not best:
        reasons = "; ".join(sorted({trial.reason for trial in trials if trial.state == FAILED}))
        raise TrainingError(f"no trial of {sweep} was trained to its end: {reasons or 'all were ended early'}")
    winners = list({trial.id: trial for trial in [*best.values(), *shared]}.values())
    test = measure_on_test(sweep, winners, settings.test_split, console) if settings.test_split else {}
    write_configurations(sweep, config, best, shared, course.categories)
    result = write_sweep_result(sweep, config, trials, best, shared, test)
    board = write_hparams(sweep, trials, settings.metric)
    course.free_disk()
    print_winners(console, sweep, result)
    if failed := sum(trial.state == FAILED for trial in trials):
        console.print(f"{failed} trial(s) failed: {sweep / LEADERBOARD} says why", highlight=False, soft_wrap=True)
    lines = [f"leaderboard: {sweep / LEADERBOARD}", f"winners:     {sweep}/best-….yaml, {sweep / RESULT}"]
    if settings.report:
        lines += [f"report:      {write_report(sweep, config, course.space, trials, winners, result)}"]
    lines += [f"curves:      tensorboard --logdir {board}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)

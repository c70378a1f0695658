"""The course of a sweep: generation by generation, wave by wave, then the winners. The journal says where it stands."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from drwr_dist import checkpoint
from drwr_dist.config import TuneConfig
from drwr_dist.sweep import search, trials
from drwr_dist.sweep.early import survivors
from drwr_dist.sweep.measuring import loss_of
from drwr_dist.sweep.population import exchanges, perturb
from drwr_dist.sweep.selection import best_of_category, scored, shared_order, worth_keeping
from drwr_dist.sweep.space import Parameter, Parameters, values_of
from drwr_dist.sweep.trial_driver import Job, newest_step, stops
from drwr_dist.sweep.trials import FAILED, FINISHED, PENDING, RUNNING, STOPPED, Trial

# job, trials -> whether all of them came as far as the job says (False: interrupted)
RunWave = Callable[[Job, Sequence[Trial]], bool]
# the best trial of each category, the trials of the shared best candidate
Winners = tuple[dict[str, Trial], list[Trial]]


@dataclass
class Course:
    """A sweep under way."""

    config: TuneConfig
    space: dict[str, Parameter]
    categories: list[str]
    folder: Path
    run_wave: RunWave
    trials: list[Trial] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return the number of trials of the whole sweep."""
        return len(self.categories) * sum(len(part) for part in search.generations(self.config.sweep, self.space))

    def search(self) -> bool:
        """Try all candidates; return False if that was interrupted."""
        settings = self.config.sweep
        for numbers in search.generations(settings, self.space):
            self.reload()
            generation = self.plan(numbers)
            if settings.retry_failed:
                self._retry(generation)
            if settings.scheduler in ("none", "asha"):
                done = self._wave([trial for trial in generation if not trial.ended], None)
            else:
                done = self._in_step([trial.id for trial in generation])
            if not done:
                return False
        return True

    def plan(self, numbers: range) -> list[Trial]:
        """Return the trials of the candidates `numbers`, planned where they are not yet."""
        settings = self.config.sweep
        earlier = [trial for trial in self.trials if trial.candidate < numbers.start]
        results = scored(earlier, settings.metric, settings.objectives)
        planned: dict[int, Parameters] = {}
        if 0 in numbers:
            planned[0] = values_of(self.config, self.space)
        others = range(max(1, numbers.start), numbers.stop)
        chosen = search.candidates(settings, self.space, self.config.seed, others, results)
        planned |= dict(zip(others, chosen, strict=True))
        generation = [
            trials.plan(self.folder, Trial(number, category, parameters))
            for number, parameters in planned.items()
            for category in self.categories
        ]
        self.reload()
        return generation

    def reload(self) -> None:
        """Read the journal."""
        self.trials = [trial for trial in trials.load_all(self.folder) if trial.category in self.categories]

    def _retry(self, generation: list[Trial]) -> None:
        for trial in generation:
            if trial.state == FAILED:
                trial.state, trial.reason = PENDING, ""
                trials.save(self.folder, trial)

    def _wave(self, wave: list[Trial], until: int | None, *, early_stopping: bool = True) -> bool:
        job = Job(self.folder, self.config, self.config.sweep, until, early_stopping)
        done = not wave or self.run_wave(job, wave)
        self.reload()
        return done

    # --- schedulers under which all trials train to the same step before any goes on --------------------------

    def _in_step(self, ids: list[str]) -> bool:
        for step in stops(self.config.sweep, self.config.steps):
            active = [trial for trial in self.trials if trial.id in ids and not trial.ended]
            behind = [trial for trial in active if trial.value_at(step) is None]
            if not self._wave(behind, step):
                return False
            if step == self.config.steps:
                break
            for category in self.categories:
                own = [t for t in self.trials if t.id in ids and t.category == category]
                if self.config.sweep.scheduler == "halving":
                    self._halve(own, step)
                else:
                    self._exchange(own, step)
            self.reload()
        return True

    def _losses(self, own: list[Trial], step: int) -> dict[str, float]:
        metric = self.config.sweep.metric
        return {t.id: loss_of(metric, value) for t in own if (value := t.value_at(step)) is not None}

    def _halve(self, own: list[Trial], step: int) -> None:
        """Stop the trials that are not among the best at this step; the baseline goes on in any case."""
        losses = self._losses(own, step)
        kept = survivors(losses, self.config.sweep.asha.reduction)
        order = sorted(losses, key=lambda name: losses[name])
        for trial in own:
            if trial.id in losses and trial.id not in kept and trial.candidate and not trial.ended:
                trial.state = STOPPED
                trial.reason = f"number {order.index(trial.id) + 1} of {len(order)} after {step} steps"
                trials.save(self.folder, trial)

    def _exchange(self, own: list[Trial], step: int) -> None:
        """Let the worst members take over from the best, once per step: first written down, then done.

        Which members do is a function of what all have measured at the step, whatever became of them since. Where one
        has trained past it, the exchange lies behind, all of it: it is applied everywhere before anyone goes on.
        """
        members = {t.id: t for t in own if t.candidate and t.value_at(step) is not None}
        if any(self._reached(trial) > step for trial in members.values()):
            return
        random = np.random.default_rng([self.config.seed, step, self.categories.index(own[0].category)])
        chosen = exchanges(self._losses(list(members.values()), step), self.config.sweep.pbt, random)
        for loser, donor in chosen.items():
            taken = perturb(members[donor].parameters, self.space, self.config.sweep.pbt.factor, random)
            trial = members[loser]
            if trial.ended or any(entry["step"] >= step for entry in trial.lineage):
                continue  # it failed, or this was written down before an interruption
            entry = {"step": step, "donor": donor, "replaced": trial.parameters, "parameters": taken, "applied": False}
            trial.lineage.append(entry)
            trials.save(self.folder, trial)
        for trial in members.values():
            if trial.lineage and trial.lineage[-1]["step"] == step and not trial.lineage[-1]["applied"]:
                self._take_over(trial, members[trial.lineage[-1]["donor"]])

    def _reached(self, trial: Trial) -> float:
        """Return the step that a trial is known to have come to; its weights may have been removed since."""
        return max(trial.last["step"] if trial.last else -1, newest_step(trials.folder(self.folder, trial)))

    def _take_over(self, trial: Trial, donor: Trial) -> None:
        name = checkpoint.name_of(trial.lineage[-1]["step"])
        source = trials.folder(self.folder, donor) / checkpoint.FOLDER / name
        target = trials.folder(self.folder, trial) / checkpoint.FOLDER / name
        if not source.is_dir():  # the donor failed between measuring and saving: the trial goes on as it is
            trial.lineage.pop()
            trials.save(self.folder, trial)
            return
        arriving = target.with_name(f".{target.name}.partial")
        shutil.rmtree(arriving, ignore_errors=True)
        shutil.copytree(source, arriving)
        shutil.rmtree(target, ignore_errors=True)
        arriving.rename(target)
        trial.parameters = trial.lineage[-1]["parameters"]
        trial.lineage[-1]["applied"] = True
        trials.save(self.folder, trial)

    # --- winners ------------------------------------------------------------------------------------------------

    def winners(self) -> Winners | None:
        """Return the best trial per category and the trials of the shared best, with weights; None if interrupted.

        A shared best that was ended early in some category is trained to its end there; so is a winner whose weights
        are no longer on disk.
        """
        while True:
            best = {name: self._best(name) for name in self.categories}
            order = shared_order(self.trials, self.categories, self.config.sweep.metric)
            shared = [trial for trial in self.trials if order and trial.candidate == order[0]]
            wanted = [trial for trial in [*best.values(), *shared] if trial is not None]
            missing = {trial.id: trial for trial in wanted if not self._is_whole(trial)}
            if not missing:
                return {name: trial for name, trial in best.items() if trial is not None}, shared
            for trial in missing.values():
                trial.state = RUNNING
                trials.save(self.folder, trial)
            if not self._wave(list(missing.values()), None, early_stopping=False):
                return None

    def _best(self, category: str) -> Trial | None:
        return best_of_category(self.trials, category, self.config.sweep.metric)

    def _is_whole(self, trial: Trial) -> bool:
        steps = trial.parameters.get("steps", self.config.steps)
        return trial.state == FINISHED and newest_step(trials.folder(self.folder, trial)) >= steps

    def free_disk(self) -> None:
        """Remove the weights of trials that have ended and can hardly win any more."""
        settings = self.config.sweep
        if settings.scheduler == "pbt" and not all(trial.ended for trial in self.trials):
            return  # what a member has become can't be trained again
        kept = worth_keeping(self.trials, self.categories, settings.metric, settings.keep)
        for trial in self.trials:
            if trial.ended and trial.id not in kept:
                shutil.rmtree(trials.folder(self.folder, trial) / checkpoint.FOLDER, ignore_errors=True)

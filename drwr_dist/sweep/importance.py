"""How much each hyperparameter matters: PED-ANOVA (Watanabe et al., IJCAI 2023), by Optuna."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from drwr_dist.sweep.measuring import loss_of
from drwr_dist.sweep.search import Scored, import_optuna, tell
from drwr_dist.sweep.selection import scored
from drwr_dist.sweep.space import Parameter
from drwr_dist.sweep.trials import FINISHED, STOPPED, Trial

FEWEST = 6  # results below which a share says nothing


def importances(
    trials: Sequence[Trial], space: dict[str, Parameter], categories: Sequence[str], metric: str
) -> dict[str, dict[str, float]]:
    """Return, per category and for all together, the share of each key in what tells good results from the rest.

    What has too few results, or results that don't differ, is left out.
    """
    groups = {"all": scored(trials, metric, ["quality"])}
    for category in categories:
        own = [t for t in trials if t.category == category and t.last and t.state in (FINISHED, STOPPED)]
        groups[category] = [Scored(t.parameters, (loss_of(metric, t.last["value"]),)) for t in own if t.last]
    found = {name: _importance(results, space) for name, results in groups.items()}
    return {name: shares for name, shares in found.items() if shares}


def _importance(results: Sequence[Scored], space: dict[str, Parameter]) -> dict[str, float]:
    optuna = import_optuna()
    study: Any = optuna.create_study(direction="minimize")
    usable = [Scored(row.parameters, row.objectives) for row in results if row.objectives is not None]
    tell(study, space, usable)
    values = {trial.value for trial in study.trials}
    if len(study.trials) < FEWEST or len(values) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items() if math.isfinite(share)}

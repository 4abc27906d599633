"""DBL in the comparison of objectives: two branches of the same towers learn online; the target is what is measured."""

from __future__ import annotations

from typing import Any

import torch

from chiasm.learn.objectives.dbl.cohort import branch_optimizer, branch_routes, branched, cohort
from chiasm.learn.objectives.dbl.objective import DeepBoosting
from chiasm.learn.trial import Trial


def run(trial: Trial) -> tuple[Any, DeepBoosting]:
    """Trains with the trial's budget: as many steps as everybody, with two branches a step.

    Returns:
        The target branch, and the objective.
    """
    target = trial.model()
    # The anchor begins with weights of its own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed + 10_000)
        anchor = trial.towers()
    objective = DeepBoosting(**trial.options)
    model = cohort([anchor, target])
    trial.fit(
        model,
        objective,
        pairs=branched(trial.pairs, 2),
        routes=branch_routes(2),
        optimizer=branch_optimizer(model),
        clip=0.0,
    )
    return target, objective

"""TCL in the comparison of objectives: the same towers and steps, with a second view of every pair for the momentum encoder."""

from __future__ import annotations

from typing import Any

from chiasm.learn.objectives.tcl.objective import TripleContrast
from chiasm.learn.objectives.tcl.views import VIEW_ROUTES, two_views
from chiasm.learn.trial import Trial

# A few hundred steps: the average reaches over about a hundred of them, the queues over about eight batches of 64.
SHORT = {"momentum": 0.99, "queue": 512}


def run(trial: Trial) -> tuple[Any, TripleContrast]:
    """Trains with the trial's budget; its pairs are augmented, as the method asks.

    Returns:
        The model and the objective.
    """
    model = trial.model()
    objective = TripleContrast(**{**SHORT, **trial.options})
    trial.fit(model, objective, pairs=two_views(trial.pairs, seed=trial.seed), routes=VIEW_ROUTES)
    return model, objective

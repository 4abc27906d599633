"""LexVLA beside the other objectives: the towers as they are, with a map to the codebook where they are of another width."""

from __future__ import annotations

from typing import Any

from chiasm.learn.objectives.lexvla.objective import LexVLA
from chiasm.learn.trial import Trial


def run(trial: Trial) -> tuple[Any, LexVLA]:
    """Trains; model and objective."""
    model = trial.model()
    a, b = (model[0].sub_modules[side][0].get_embedding_dimension() for side in ("a", "b"))
    objective = LexVLA(**{"dim": b, "width": a, "seed": trial.seed, **trial.options})
    trial.fit(model, objective)
    return model, objective

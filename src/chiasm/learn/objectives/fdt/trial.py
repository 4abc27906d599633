"""FDT beside the other objectives: the towers as they are, and query maps as wide as their tokens."""

from __future__ import annotations

from typing import Any

from chiasm.learn.objectives.fdt.codebook import FDT
from chiasm.learn.trial import Trial


def run(trial: Trial) -> tuple[Any, FDT]:
    """Trains; model and objective."""
    model = trial.model()
    a, b = (model[0].sub_modules[side][0].get_embedding_dimension() for side in ("a", "b"))
    objective = FDT(**{"width": a, "width_b": b, **trial.options})
    trial.fit(model, objective)
    return model, objective

"""IRRA in the comparison of all objectives: distribution matching, masked words, and the pictures as identities."""

from __future__ import annotations

from typing import Any

from torch import nn

from chiasm.learn.objectives.irra.objective import IRRA
from chiasm.learn.trial import Trial


def run(trial: Trial) -> tuple[Any, nn.Module]:
    """Trains SDM + IRR + ID with the trial's budget.

    The identities are the trial's groups. Width and vocabulary are those of the towers.
    """
    model = trial.model()
    text = next((m for m in model.modules() if getattr(m, "vocabulary", None)), None)
    options = {"width": model.get_embedding_dimension(), "identities": trial.pairs.groups, "heads": 4}
    if text is not None:
        options["vocabulary"] = text.vocabulary
    objective = IRRA(**{**options, **trial.options})
    trial.fit(model, objective)
    return model, objective

"""PC2 in the common table: two networks instead of one, that split the pairs for each other; steps as for all others."""

from __future__ import annotations

from typing import Any

import torch

from chiasm.learn.objectives.pc2.objective import PC2
from chiasm.learn.objectives.pc2.protocol import co_teach
from chiasm.learn.pairs import OnePerGroup
from chiasm.learn.trial import Trial


def run(trial: Trial) -> tuple[Any, torch.nn.Module]:
    """Trains with a trial's budget; the variant with InfoNCE, as for all frozen features.

    Returns:
        The mean of both networks, and the objective.
    """
    settings: dict[str, Any] = {"loss": "info_nce", "pseudo_weight": 0.3, "splits": 20, "classes": 64, "hidden": 128}
    # A trial with classes or options of its own overrides these.
    objective = PC2(**{**settings, "networks": 2, "pairs": len(trial.pairs), "seed": trial.seed, **trial.options})
    assert trial.pairs.groups is not None
    found = co_teach(
        trial.towers,
        trial.pairs,
        objective,
        steps=trial.steps,
        rate=trial.rate,
        batch_size=trial.batch_size,
        seed=trial.seed,
        clip=1.0,
        decay_at=None,
        sampler=OnePerGroup(trial.pairs.groups, trial.batch_size, trial.seed),
        networks=objective.networks,
        log_every=50,
    )
    return found.model, objective

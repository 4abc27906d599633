"""1-to-K beside the other objectives: all captions of a picture are its K texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.learn.objectives.one_to_k.objective import OneToK
from chiasm.learn.pairs import Pairs
from chiasm.learn.trial import Trial


def run(trial: Trial) -> tuple[Any, OneToK]:
    """Trains; model and objective."""
    model, objective = trial.model(), OneToK(**{"seed": trial.seed, **trial.options})
    trial.fit(model, objective, pairs=together(trial.pairs))
    return model, objective


def together(pairs: Pairs) -> Pairs:
    """One pair for each group, with the group's items of ``b`` as views ``b/0``, ``b/1``, ...; -1 where it has fewer.

    Args:
        pairs: with one column ``b``; ``a`` and what is known of a pair are those of the group's first pair.
    """
    groups = np.asarray(pairs.groups)
    order = np.argsort(groups, kind="stable")
    _, first, count = np.unique(groups[order], return_index=True, return_counts=True)
    views = np.full((len(first), int(count.max())), -1)
    turn = np.arange(len(order)) - np.repeat(first, count)
    views[np.repeat(np.arange(len(first)), count), turn] = pairs.rows["b"][order]
    one = pairs[order[first]]
    rows = {column: one.rows[column] for column in one.rows if column != "b"}
    rows |= {f"b/{k}": views[:, k] for k in range(views.shape[1])}
    return Pairs(pairs.sources, rows, one.groups, one.per_pair)

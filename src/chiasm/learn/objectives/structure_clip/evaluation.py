"""Does a model tell a caption from a false one of the same words? Pair accuracy as in VG-Relation and VG-Attribution (ARO).

>>> result = pair_accuracy(objective.paired(pictures, captions), objective.paired(pictures, false), labels)
>>> result.macro, result.micro
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.learn.objectives.structure_clip.lexicon import SYMMETRIC
from chiasm.measure.vectors import to_numpy


@dataclass(frozen=True)
class PairAccuracy:
    """N items.

    Args:
        hits: bool ``[N]``: the true caption scores higher; a tie is a miss.
        labels: ``[N]``, what the macro average goes over (relations, pairs of attributes).
    """

    hits: np.ndarray
    labels: np.ndarray

    @property
    def micro(self) -> float:
        """Share of hits; NaN without items. Chance is 0.5."""
        return float(self.hits.mean()) if len(self.hits) else float("nan")

    @property
    def by_label(self) -> dict[str, float]:
        """Share of hits of each label."""
        return {str(label): float(self.hits[self.labels == label].mean()) for label in np.unique(self.labels)}

    @property
    def macro(self) -> float:
        """Mean of the labels' shares (the ARO protocol); NaN without items."""
        return float(np.mean(list(self.by_label.values()))) if len(self.hits) else float("nan")


def pair_accuracy(
    true: Any,
    false: Any,
    labels: Sequence[str] | np.ndarray | None = None,
    *,
    drop: Collection[str] = SYMMETRIC,
    least: int = 1,
) -> PairAccuracy:
    """Judges scores of true and false captions of the same pictures.

    Args:
        true, false: scores ``[N]``; NaN counts as a miss.
        labels: ``[N]``; default all alike.
        drop: labels that are left out because exchanging their ends says nothing false; default the symmetric relations.
            (The ARO benchmark has a list of its own.)
        least: labels with fewer items are left out.

    Raises:
        BadInput: arrays of different lengths.
    """
    true, false = (to_numpy(scores).reshape(-1) for scores in (true, false))
    names = np.full(len(true), "all") if labels is None else np.asarray(labels, dtype=object).astype(str)
    if not len(true) == len(false) == len(names):
        raise BadInput(f"{len(true)} and {len(false)} scores, {len(names)} labels", where="pair_accuracy")
    _, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    keep = ~np.isin(names, list(drop)) & ((counts[place] >= least) if len(names) else np.zeros(0, bool))
    return PairAccuracy((true > false)[keep], names[keep])

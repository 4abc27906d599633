"""Measures whether inversion helps, before it is paid for: native and inverted search on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chiasm.correct.cross_the_gap.inversion import Inversion, Inverted
from chiasm.measure.intervals import Interval
from chiasm.measure.ranking import RankingReport, evaluate

# The figures of the paper: AP over the whole gallery, AP and precision at R (relevant items of a query), and R@1.
METRICS = ("map", "map@R", "r_precision", "hit@1")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Search inside one modality with the query itself and with its inversion.

    Args:
        native: figures of the native search.
        inverted: figures of the search with inverted queries.
        gain: inverted minus native mAP, with its paired interval.
        inversion: the inverted queries with their losses.
    """

    native: RankingReport
    inverted: RankingReport
    gain: Interval
    inversion: Inverted


def compare(
    inversion: Inversion,
    queries: Any,
    gallery: Any,
    positives: Any,
    *,
    exclude_self: bool = False,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> Comparison:
    """Both searches over one gallery of native features.

    Args:
        inversion: `TextualInversion` for image features, `VisualInversion` for text features.
        queries: native features ``[N, D]``.
        gallery: native features ``[M, D]`` of the same modality.
        positives: what answers what, in a form of `chiasm.measure.evaluate`, for example ``same_label(a, b)``.
        exclude_self: query i is item i and is left out (as a positive, too) before anything is counted.
        metrics: names of `chiasm.measure.evaluate`; ``"map"`` is always among them.
        seed: of the interval.
    """
    names = tuple(dict.fromkeys(("map", *metrics)))
    found = inversion.invert(queries)
    native, inverted = (
        evaluate(rows, gallery, positives, exclude_self=exclude_self, metrics=names)
        for rows in (queries, found.features)
    )
    return Comparison(native, inverted, inverted.compare(native, "map", seed=seed), found)

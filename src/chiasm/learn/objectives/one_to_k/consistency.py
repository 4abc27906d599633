"""Recall in each language, and whether an item stands at the same rank in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.learn.held_out import Encoded, cosine, encode
from chiasm.learn.pairs import Pairs
from chiasm.measure import RankVariance, evaluate_scores, mean_rank_variance, same_label
from chiasm.measure.ranking import RankingReport

# The metrics of each language.
_METRICS = ("hit@1", "hit@5", "hit@10", "mean_rank")
# Ranks above this count as this in the clipped figure: raw variance is dominated by a few catastrophic ranks.
CLIP = 100


@dataclass(frozen=True)
class Consistency:
    """Rankings of one direction in K languages.

    Args:
        languages: their names.
        reports: one `RankingReport` a language; its per-query figures follow the pairs that have the language.
        ranks: ``[N, K]``, place of each pair's best positive (from 1, ties counted against the model), NaN where a
            translation is missing.
    """

    languages: tuple[str, ...]
    reports: tuple[RankingReport, ...]
    ranks: np.ndarray

    def variance(self, *, clip: float | None = None) -> RankVariance:
        """Mean Rank Variance over the languages (``mrv``), and the mean standard deviation (``mrsd``) of the released script."""
        return mean_rank_variance(self.ranks, clip=clip)

    def recall(self, name: str = "hit@5") -> np.ndarray:
        """A figure in each language ``[K]``."""
        return np.array([report[name] for report in self.reports])

    def spread(self, name: str = "hit@5") -> float:
        """The best language's figure minus the worst one's."""
        return float(np.ptp(self.recall(name)))


def consistency(
    model: Any, pairs: Pairs, objective: Any = None, *, routes: Mapping[str, str] | None = None, batch_size: int = 256
) -> dict[str, Consistency]:
    """Measures a model on held-out pairs whose side ``b`` has views, one a language.

    Args:
        model: the model.
        pairs: held-out pairs.
        objective: its ``similarity`` scores, if it has one; else the cosine does.
        routes: column -> route of the model.
        batch_size: items a step.

    Returns:
        ``a_to_b`` (items look for texts of one language at a time) and ``b_to_a``.

    Raises:
        BadInput: side ``b`` has no views.
    """
    views = [column for column in pairs.columns if column.startswith("b/")]
    if not views:
        raise BadInput("side 'b' has no views", where="consistency", fix="Give rows for 'b/en', 'b/de', ...")
    routes = dict(routes or {})
    a = encode(model, pairs.source("a"), routes.get("a", "a"), pairs.rows["a"], batch_size=batch_size)
    b, present = {}, {}
    for view in views:
        present[view[2:]] = there = pairs.rows[view] >= 0
        if there.any():
            route = routes.get(view, routes.get("b", "b"))
            b[view[2:]] = encode(model, pairs.source(view), route, pairs.rows[view][there], batch_size=batch_size)
    assert pairs.groups is not None
    return consistency_of(a, b, present, pairs.groups, getattr(objective, "similarity", cosine))


def consistency_of(
    a: Encoded,
    b: Mapping[str, Encoded],
    present: Mapping[str, np.ndarray],
    groups: np.ndarray,
    similarity: Any = cosine,
) -> dict[str, Consistency]:
    """The same from what is encoded already.

    Args:
        a: N encoded items.
        b: language -> its encoded texts, of the pairs that have one.
        present: language -> bool ``[N]``, which pairs have one.
        groups: ``[N]``; an item or text of the same group is right.
        similarity: ``(a, b, direction) -> [N, M]``.

    Returns:
        As `consistency`; languages of which no text is there are left out.
    """
    found: dict[str, tuple[list[RankingReport], np.ndarray]] = {}
    for way, direction in (("a_to_b", "a"), ("b_to_a", "b")):
        ranks = np.full((len(groups), len(b)), np.nan)
        reports = []
        for column, (language, texts) in enumerate(b.items()):
            there = np.asarray(present[language])
            scores = similarity(a, texts, direction).detach().float().cpu().numpy()
            if way == "b_to_a":
                report = evaluate_scores(
                    np.ascontiguousarray(scores.T), same_label(groups[there], groups), metrics=_METRICS
                )
                ranks[there, column] = report.values["mean_rank"]
            else:
                # Only items that have a text in this language can find it.
                report = evaluate_scores(scores[there], same_label(groups[there], groups[there]), metrics=_METRICS)
                ranks[there, column] = report.values["mean_rank"]
            reports.append(report)
        found[way] = reports, ranks
    return {way: Consistency(tuple(b), tuple(reports), ranks) for way, (reports, ranks) in found.items()}

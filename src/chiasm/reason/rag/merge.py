"""Several rankings become one: reciprocal rank, round robin, score. For any items, not only passages.

    reciprocal rank   sum over lists of weight / (60 + rank)        Cormack, Clarke, Buettcher, SIGIR 2009
    round robin       the first of each list, then the second ...   keeps every list's best in front
    score             the largest (or summed) score, on one scale   right only where scores are comparable

An item that is in several lists is the same if its key is: its ``id`` where it has one, else the item itself. Of equal
items the one first met is returned. Ties go to the item met first, list by list in the order given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import numpy as np

from chiasm.errors import BadInput, unknown_name
from chiasm.reason.rag.messages import Passage

T = TypeVar("T")

# The paper's constant, which later work kept.
CONSTANT = 60


def key_of(item: Any) -> Hashable:
    """What makes two items the same: ``item.id`` where there is one, else the item."""
    return getattr(item, "id", item)


def reciprocal_rank(
    lists: Sequence[Sequence[T]],
    *,
    constant: float = CONSTANT,
    weights: Sequence[float] | None = None,
    key: Callable[[T], Hashable] = key_of,
) -> list[tuple[T, float]]:
    """Items with ``sum_l weight_l / (constant + rank_l)``, best first; ranks count from 1.

    An item that a list holds twice counts once there, at its better rank. One list keeps its order; two reversed lists
    of length two tie.

    Args:
        lists: rankings, best first; may be empty.
        constant: 60; larger values flatten the difference between ranks.
        weights: one per list; by default 1 each.
        key: what makes two items the same.

    Raises:
        BadInput: another number of weights than lists, a negative weight, or ``constant <= -1``.
    """
    if constant <= -1:
        raise BadInput(f"constant must be above -1, got {constant}", where="reciprocal_rank")
    total: dict[Hashable, float] = {}
    first: dict[Hashable, T] = {}
    for ranking, weight in zip(lists, _weights(weights, lists, "reciprocal_rank"), strict=True):
        seen: set[Hashable] = set()
        for item in ranking:
            name = key(item)
            if name in seen:
                continue
            seen.add(name)
            first.setdefault(name, item)
            total[name] = total.get(name, 0.0) + weight / (constant + len(seen))
    return _best_first(first, total)


def round_robin(lists: Sequence[Sequence[T]], *, key: Callable[[T], Hashable] = key_of) -> list[T]:
    """The first item of each list, then the second, and so on, each item once: ``[a,b,c], [b,d] -> a,b,d,c``."""
    first: dict[Hashable, T] = {}
    gap = object()
    for row in zip_longest(*lists, fillvalue=gap):
        for item in row:
            if item is not gap:
                first.setdefault(key(item), item)  # type: ignore[arg-type]
    return list(first.values())


def by_score(
    lists: Sequence[Sequence[T]],
    *,
    scale: Literal["none", "minmax", "zscore"] = "none",
    combine: Literal["max", "sum"] = "max",
    weights: Sequence[float] | None = None,
    score: Callable[[T], float] = lambda item: item.score,  # type: ignore[attr-defined]
    key: Callable[[T], Hashable] = key_of,
) -> list[tuple[T, float]]:
    """Items with their best or summed score, best first.

    Args:
        lists: items with scores, in any order.
        scale: what makes the scores of different lists comparable: nothing, ``(s - min) / (max - min)``, or
            ``(s - mean) / std`` within each list (a list of equal scores becomes 1 or 0).
        combine: what an item gets that is in several lists; within one list its best score counts.
        weights: one factor per list; by default 1 each.
        score: how to read an item's score.
        key: what makes two items the same.

    Raises:
        BadInput: another number of weights than lists, or a score that is NaN or infinite.
        UnknownName: an unknown ``scale`` or ``combine``.
    """
    if scale not in ("none", "minmax", "zscore"):
        raise unknown_name("scale", scale, ("none", "minmax", "zscore"))
    if combine not in ("max", "sum"):
        raise unknown_name("combine", combine, ("max", "sum"))
    total: dict[Hashable, float] = {}
    first: dict[Hashable, T] = {}
    for ranking, weight in zip(lists, _weights(weights, lists, "by_score"), strict=True):
        own: dict[Hashable, float] = {}
        values = _scaled(np.array([score(item) for item in ranking], np.float64), scale)
        for item, value in zip(ranking, (weight * values).tolist(), strict=True):
            name = key(item)
            first.setdefault(name, item)
            own[name] = max(own.get(name, -np.inf), value)
        for name, value in own.items():
            if combine == "sum":
                total[name] = total.get(name, 0.0) + value
            else:
                total[name] = max(total.get(name, -np.inf), value)
    return _best_first(first, total)


def merge_passages(lists: Sequence[Sequence[Passage]], how: str = "reciprocal_rank", **options: Any) -> list[Passage]:
    """Passages of several corpora in one ranking; ``score`` becomes the merged one (round robin: 1 / place).

    Ids of different corpora may collide, so that a passage is the same only within its corpus. One list alone is
    returned as it is.

    Raises:
        UnknownName: ``how`` is not ``"reciprocal_rank"``, ``"round_robin"`` or ``"score"``.
    """
    if how not in ("reciprocal_rank", "round_robin", "score"):
        raise unknown_name("way to merge", how, ("reciprocal_rank", "round_robin", "score"))
    filled = [ranking for ranking in lists if ranking]
    if len(filled) <= 1:
        return list(filled[0]) if filled else []

    def same(passage: Passage) -> Hashable:
        return passage.corpus, passage.id

    if how == "round_robin":
        ranked = [(p, 1.0 / place) for place, p in enumerate(round_robin(lists, key=same), start=1)]
    elif how == "score":
        ranked = by_score(lists, key=same, **options)
    else:
        ranked = reciprocal_rank(lists, key=same, **options)
    return [replace(passage, score=value) for passage, value in ranked]


def _weights(weights: Sequence[float] | None, lists: Sequence[Any], where: str) -> list[float]:
    if weights is None:
        return [1.0] * len(lists)
    if len(weights) != len(lists):
        raise BadInput(f"{len(weights)} weights for {len(lists)} lists", where=where)
    if not all(np.isfinite(w) and w >= 0 for w in weights):
        raise BadInput(f"weights must be finite and not negative, got {list(weights)}", where=where)
    return [float(w) for w in weights]


def _scaled(values: np.ndarray, scale: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadInput("a score is NaN or infinite", where="by_score")
    if scale == "none" or not len(values):
        return values
    low, spread = (values.min(), np.ptp(values)) if scale == "minmax" else (values.mean(), values.std())
    if spread == 0:
        return np.full_like(values, 1.0 if scale == "minmax" else 0.0)
    return (values - low) / spread


def _best_first(first: dict[Hashable, T], total: dict[Hashable, float]) -> list[tuple[T, float]]:
    # `sorted` is stable, and `first` is in the order of meeting: that is the promised rule for ties.
    return [(first[name], total[name]) for name in sorted(first, key=lambda name: -total[name])]

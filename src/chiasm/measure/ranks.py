"""`Ranks`: how many items stand before, and how many are tied with, each positive. All ranking figures follow from it.

Ties are kept as counts and resolved later by a declared policy, so a collapsed model (all scores equal) cannot look
perfect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device

from chiasm.errors import BadInput
from chiasm.measure.positives import PerQuery, Positives
from chiasm.measure.vectors import rows_at_once, to_numpy

Ties = Literal["pessimistic", "optimistic", "expected"]
TIES = ("pessimistic", "optimistic", "expected")

# Up to this many positives a query, comparing a row with each of them is cheaper than sorting the row (measured: a
# float32 row sorts in the time of about four comparisons; sorting also needs a binary search).
_COMPARE = 5


@dataclass(frozen=True, slots=True)
class Ranks(PerQuery):
    """Places of the positives of N queries; those of query i are at ``indptr[i]:indptr[i + 1]``, best first.

    Args:
        indptr: int64 ``[N + 1]``.
        before: float64 ``[P]``, items with a strictly higher score; infinite if the positive was not retrieved and the
            size of the gallery is unknown.
        tied: float64 ``[P]``, items with the same score, itself included.
        gains: float64 ``[P]``, grades.
    """

    before: np.ndarray
    tied: np.ndarray
    gains: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """True where a tie group of positives starts ``[P]``."""
        new = np.ones(len(self.before), dtype=bool)
        # Items that were never retrieved are not tied with each other.
        new[1:] = (self.before[1:] != self.before[:-1]) | np.isinf(self.before[1:])
        new[self.indptr[:-1][self.counts > 0]] = True
        return new

    def resolve(self, ties: Ties) -> Ranks:
        """Without ties: each positive has one place.

        ``"pessimistic"``: tied items that are not relevant come first, then the positives by ascending grade.
        ``"optimistic"``: the other way round. ``"expected"``: unchanged, since figures are then expectations over all
        orders.
        """
        if ties not in TIES:
            raise BadInput(f"tie policy {ties!r} does not exist", where="ties", fix=f"Use one of {', '.join(TIES)}")
        if ties == "expected" or not len(self.before):
            return self
        sign = 1.0 if ties == "pessimistic" else -1.0
        gains = self.gains[np.lexsort((sign * self.gains, self.before, self.queries))]
        starts = self.starts
        first = np.flatnonzero(starts)[np.cumsum(starts) - 1]
        place = np.arange(len(first)) - first  # 0, 1, ... inside its tie group
        size = np.diff(np.append(np.flatnonzero(starts), len(first)))[np.cumsum(starts) - 1]
        ahead = self.tied - size if ties == "pessimistic" else 0.0
        return Ranks(self.indptr, self.before + ahead + place, np.ones_like(self.before), gains)

    def apart(self) -> Ranks:
        """Each positive as a query of its own with the other positives removed: the filtered ranks of knowledge graphs.

        Bordes et al. 2013, *Translating Embeddings for Modeling Multi-relational Data*, section 4.
        """
        starts = self.starts
        group = np.cumsum(starts) - 1
        first = np.flatnonzero(starts)
        size = np.diff(np.append(first, len(starts)))
        better = (first - self.indptr[:-1][self.queries[first]])[group] if len(first) else first
        return Ranks(np.arange(len(starts) + 1), self.before - better, self.tied - (size[group] - 1), self.gains)


def join(parts: list[Ranks]) -> Ranks:
    """Ranks of consecutive blocks of queries as one."""
    counts = np.concatenate([np.zeros(1, np.int64), *(part.counts for part in parts)])
    return Ranks(
        np.cumsum(counts),
        np.concatenate([np.zeros(0), *(part.before for part in parts)]),
        np.concatenate([np.zeros(0), *(part.tied for part in parts)]),
        np.concatenate([np.zeros(0), *(part.gains for part in parts)]),
    )


def count(scores: Any, positives: Positives, ignore: Positives | None = None, *, owned: bool = False) -> Ranks:
    """Counts in one block of scores.

    Args:
        scores: ``[n, M]``, larger is better; NaN marks an item that does not compete (it may not be a positive).
        positives: of these n queries.
        ignore: items that do not compete for a query; a positive that is ignored is dropped.
        owned: the block may be written to.
    """
    xp = array_namespace(scores)
    width = scores.shape[1]
    if ignore is not None and len(ignore.items):
        positives = positives.without(ignore)
        if not owned:
            scores = xp.asarray(scores, copy=True)
        where = device(scores)
        scores[xp.asarray(ignore.queries, device=where), xp.asarray(ignore.items, device=where)] = xp.nan
    queries, counts = positives.queries, positives.counts
    if not len(queries):
        return Ranks(positives.indptr, np.zeros(0), np.zeros(0), np.zeros(0))
    flat = xp.reshape(scores, (-1,))
    own = xp.take(flat, xp.asarray(queries * width + positives.items, device=device(scores)))
    if bool(xp.any(xp.isnan(own))):
        p = int(np.flatnonzero(np.isnan(to_numpy(own)))[0])
        raise BadInput(f"the score of query {queries[p]} and its positive {positives.items[p]} is NaN", where="scores")
    if counts.max() <= _COMPARE:
        before, tied = _count_by_comparison(xp, scores, own, positives)
    else:
        before, tied = _count_by_sorting(xp, scores, own, queries)
    order = np.lexsort((before, queries))
    return Ranks(positives.indptr, before[order], tied[order], positives.gains[order])


def _count_by_comparison(xp: Any, scores: Any, own: Any, positives: Positives) -> tuple[np.ndarray, np.ndarray]:
    """One pass over the rows for the first positive of every query, one for the second, ..."""
    before, tied = np.empty(len(positives.items)), np.empty(len(positives.items))
    for slot in range(int(positives.counts.max())):
        rows = np.flatnonzero(positives.counts > slot)
        at = positives.indptr[rows] + slot
        here = (
            scores if len(rows) == len(positives) else xp.take(scores, xp.asarray(rows, device=device(scores)), axis=0)
        )
        bar = xp.reshape(xp.take(own, xp.asarray(at, device=device(scores))), (-1, 1))
        before[at] = to_numpy(xp.count_nonzero(here > bar, axis=1))
        tied[at] = to_numpy(xp.count_nonzero(here == bar, axis=1))
    return before, tied


def _count_by_sorting(xp: Any, scores: Any, own: Any, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts every row once and finds all positives by one vectorized binary search; NaN sorts last."""
    width = scores.shape[1]
    flat = xp.reshape(xp.sort(scores, axis=1), (-1,))
    competing = width - to_numpy(xp.count_nonzero(xp.isnan(scores), axis=1))[queries]
    base = xp.asarray(queries * width, device=device(scores))

    def place(right: bool) -> np.ndarray:
        low = xp.zeros_like(base)
        high = xp.full_like(base, width)
        for _ in range(int(width).bit_length()):
            middle = (low + high) // 2
            value = xp.take(flat, base + xp.where(middle < width, middle, width - 1))
            left_of = ((value <= own) if right else (value < own)) & (low < high)
            low, high = xp.where(left_of, middle + 1, low), xp.where(left_of, high, middle)
        return to_numpy(low)

    left, right = place(right=False), place(right=True)
    return (competing - right).astype(np.float64), (right - left).astype(np.float64)


def count_matrix(scores: Any, positives: Positives, ignore: Positives | None, chunk: int | None) -> Ranks:
    """`count` over a score matrix ``[N, M]`` that already exists, block by block so that no second one is made."""
    n, width = scores.shape
    step = rows_at_once(width, chunk)
    parts = []
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        parts.append(count(scores[rows, :], positives[rows], None if ignore is None else ignore[rows]))
    return join(parts)


def count_lists(ids: np.ndarray, scores: np.ndarray | None, positives: Positives, n_items: int | None) -> Ranks:
    """Counts in ranked lists; positives that are not in the list are tied behind it (before = infinity if M is
    unknown).

    Args:
        ids: int ``[N, K]``, -1 where a list is shorter; an item listed twice counts at its best place.
        scores: ``[N, K]`` or None if the order of the columns is the ranking.
        positives: of the N queries.
        n_items: M.
    """
    n, width = ids.shape
    listed = ids >= 0
    values = np.where(listed, -np.arange(width, dtype=np.float32) if scores is None else scores, np.nan)
    # Where in the lists the positives are: key = (query, item).
    span = int(max(ids.max(initial=0), positives.items.max(initial=0))) + 1
    wanted = positives.queries * span + positives.items
    keys = (np.arange(n)[:, None] * span + ids)[listed]
    slot = np.minimum(np.searchsorted(wanted, keys), max(len(wanted) - 1, 0))
    hit = np.flatnonzero(wanted[slot] == keys) if len(wanted) else np.zeros(0, np.int64)
    hit = hit[np.argsort(-values[listed][hit], kind="stable")]  # an item listed twice counts at its best place
    found, first = np.unique(slot[hit], return_index=True)
    columns = np.nonzero(listed)[1][hit[first]]
    before, tied = np.empty(len(wanted)), np.ones(len(wanted))
    lengths = listed.sum(axis=1)
    rest = lengths[positives.queries]
    before[:] = np.inf if n_items is None else rest
    if n_items is not None:
        tied[:] = np.maximum(n_items - rest, 1)
    if len(found):
        queries = positives.queries[found]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(queries, minlength=n))])
        # `count` returns each query's positives best first, so positives go in with their number as gain to come back
        # to it.
        inside = count(values, Positives(indptr, columns, found.astype(np.float64)))
        at = inside.gains.astype(np.int64)
        before[at], tied[at] = inside.before, inside.tied
    order = np.lexsort((before, positives.queries))
    return Ranks(positives.indptr, before[order], tied[order], positives.gains[order])

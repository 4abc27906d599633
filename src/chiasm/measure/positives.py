"""`Positives`: which gallery items answer which query, as compressed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy


@dataclass(frozen=True, slots=True)
class PerQuery:
    """Rows of N queries side by side; those of query i are at ``indptr[i]:indptr[i + 1]``."""

    indptr: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def counts(self) -> np.ndarray:
        """Positives of each query ``[N]``."""
        return np.diff(self.indptr)

    @property
    def queries(self) -> np.ndarray:
        """The query of each positive ``[P]``."""
        return np.repeat(np.arange(len(self)), self.counts)


@dataclass(frozen=True, slots=True)
class Positives(PerQuery):
    """Relevant items of N queries; those of query i are ``items[indptr[i]:indptr[i + 1]]``, ascending and without
    repetition.

    Args:
        indptr: int64 ``[N + 1]``.
        items: int64 ``[P]``, rows of the gallery.
        gains: float64 ``[P]``, grades above 0; all 1 where relevance is not graded.
    """

    items: np.ndarray
    gains: np.ndarray

    def __getitem__(self, rows: slice) -> Positives:
        """The positives of a range of queries (step 1)."""
        start, stop, _ = rows.indices(len(self))
        low, high = self.indptr[start], self.indptr[stop]
        return Positives(self.indptr[start : stop + 1] - low, self.items[low:high], self.gains[low:high])

    def without(self, other: Positives) -> Positives:
        """These without the (query, item) pairs of ``other``."""
        width = 1 + max(self.items.max(initial=0), other.items.max(initial=0))
        keep = ~np.isin(self.queries * width + self.items, other.queries * width + other.items)
        return _compress(len(self), self.queries[keep], self.items[keep], self.gains[keep])

    @classmethod
    def of(cls, positives: Any, n_queries: int, n_items: int | None = None, *, gains: Any = None) -> Positives:
        """Reads positives in any of these forms.

        Args:
            positives: None: item i answers query i. An int array ``[N]``: one item a query, -1 for none. A sequence of
            N index
                sequences. A scipy sparse matrix or dense array ``[N, M]``: entries above 0 are relevant, their values
                are the gains. Or `Positives`.
            n_queries: N.
            n_items: M; None if unknown (indices are then not checked against it).
            gains: for index sequences: N sequences of grades beside the indices; items of grade <= 0 are not relevant.

        Raises:
            BadInput: a shape that does not fit, an index outside the gallery, NaN gains.
        """
        if isinstance(positives, cls):
            found = positives
        elif positives is None:
            if n_items is not None and n_items != n_queries:
                raise BadInput(
                    f"{n_queries} queries and {n_items} items are not pairs",
                    where="positives",
                    fix="Say which items answer which query",
                )
            found = cls(np.arange(n_queries + 1), np.arange(n_queries), np.ones(n_queries))
        elif hasattr(positives, "tocoo"):
            entries = positives.tocoo()
            _check_matrix(entries.shape, n_queries, n_items)
            found = _compress(n_queries, entries.row, entries.col, entries.data)
        elif hasattr(positives, "ndim") and positives.ndim == 2:
            matrix = to_numpy(positives)
            _check_matrix(matrix.shape, n_queries, n_items)
            rows, columns = np.nonzero(matrix)
            found = _compress(n_queries, rows, columns, matrix[rows, columns])
        elif hasattr(positives, "ndim") and positives.ndim == 1 and positives.dtype != object:
            items = _integers(to_numpy(positives))
            keep = items >= 0
            found = _compress(len(items), np.flatnonzero(keep), items[keep], np.ones(int(keep.sum())))
        else:
            found = _from_sequences(positives, gains)
        if len(found) != n_queries:
            raise BadInput(f"positives of {len(found)} queries for {n_queries} queries", where="positives")
        outside = (found.items < 0) | (found.items >= (n_items if n_items is not None else np.iinfo(np.int64).max))
        if outside.any():
            p = int(np.flatnonzero(outside)[0])
            raise BadInput(
                f"query {found.queries[p]} has item {found.items[p]}, the gallery has {n_items}", where="positives"
            )
        return found


def same_label(query_labels: Any, gallery_labels: Any) -> Positives:
    """Items with the query's label are its positives (class retrieval, several captions of one picture).

    Args:
        query_labels: ``[N]``, any sortable values.
        gallery_labels: ``[M]``.

    Returns:
        `Positives` of N queries; their number is the number of equal pairs, which for few classes is of order N M.
    """
    gallery = np.asarray(to_numpy(gallery_labels))
    queries = np.asarray(to_numpy(query_labels))
    order = np.argsort(gallery, kind="stable")
    first = np.searchsorted(gallery, queries, "left", sorter=order)
    counts = np.searchsorted(gallery, queries, "right", sorter=order) - first
    indptr = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(indptr[-1]) - np.repeat(indptr[:-1], counts)
    # The sort is stable, so the items of one label are ascending.
    return Positives(indptr, order[np.repeat(first, counts) + within], np.ones(indptr[-1]))


def self_matches(n: int) -> Positives:
    """Item i for query i: what is left out where the queries are the gallery."""
    return Positives.of(None, n)


def _from_sequences(positives: Sequence[Any], gains: Any) -> Positives:
    counts = np.fromiter(map(len, positives), dtype=np.int64, count=len(positives))
    queries, items = np.repeat(np.arange(len(counts)), counts), _flat(positives, int(counts.sum()))
    if gains is None:
        grades = np.ones(len(items))
    else:
        if [len(g) for g in gains] != counts.tolist():
            raise BadInput("gains and positives have different lengths", where="gains")
        grades = _flat(gains, len(items))
    return _compress(len(counts), queries, _integers(items), grades)


def _flat(rows: Sequence[Any], total: int) -> np.ndarray:
    if not total:
        return np.zeros(0, dtype=np.int64)
    if all(isinstance(row, np.ndarray) for row in rows):
        return np.concatenate(rows)
    return np.asarray(list(chain.from_iterable(rows)))


def _compress(n: int, queries: np.ndarray, items: np.ndarray, gains: np.ndarray) -> Positives:
    """Sorted rows without repetition (the highest gain stays) and without gains <= 0."""
    gains = np.asarray(gains, dtype=np.float64)
    if np.isnan(gains).any():
        raise BadInput("NaN among the gains", where="positives")
    keep = gains > 0
    queries, items, gains = queries[keep].astype(np.int64), items[keep].astype(np.int64), gains[keep]
    order = np.lexsort((-gains, items, queries))
    queries, items, gains = queries[order], items[order], gains[order]
    first = np.ones(len(items), dtype=bool)
    first[1:] = (queries[1:] != queries[:-1]) | (items[1:] != items[:-1])
    counts = np.bincount(queries[first], minlength=n)
    return Positives(np.concatenate([[0], np.cumsum(counts)]), items[first], gains[first])


def _check_matrix(shape: Sequence[int], n_queries: int, n_items: int | None) -> None:
    if shape[0] != n_queries or (n_items is not None and shape[1] != n_items):
        raise BadInput(f"matrix {tuple(shape)} for {n_queries} queries and {n_items} items", where="positives")


def _integers(items: np.ndarray) -> np.ndarray:
    if items.size and not np.issubdtype(items.dtype, np.integer):
        raise BadInput(
            f"item numbers of type {items.dtype}", where="positives", fix="Give rows of the gallery as integers"
        )
    return items

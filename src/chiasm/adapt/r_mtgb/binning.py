"""Columns as small whole numbers, once for all trees: quantile edges, codes of one byte, the last code for missing values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Rows that decide the edges; more change quantiles by less than a bin (scikit-learn's histogram boosting takes as many).
_SAMPLE = 200_000


@dataclass(frozen=True)
class Bins:
    """Edges of each column.

    Args:
        edges: d ascending float64 arrays; a value x has the code ``number of edges < x``.
        missing: the code of NaN; larger than all others.
    """

    edges: list[np.ndarray]
    missing: int

    @classmethod
    def of(cls, x: np.ndarray, most: int, rng: np.random.Generator) -> Bins:
        """Edges at quantiles of the distinct values, halfway between neighbors.

        Args:
            x: ``[n, d]``, NaN for missing.
            most: codes a column may have, at most 255.
            rng: draws the rows that decide, where there are very many.
        """
        if len(x) > _SAMPLE:
            x = x[rng.choice(len(x), _SAMPLE, replace=False)]
        return cls([_edges(column, most) for column in x.T], most)

    def codes(self, x: np.ndarray) -> np.ndarray:
        """uint8 ``[d, n]``: one row a column of ``x [n, d]``, since histograms read a column at a time."""
        out = np.empty((x.shape[1], len(x)), dtype=np.uint8)
        for f, edges in enumerate(self.edges):
            column = np.ascontiguousarray(x[:, f], dtype=np.float64)
            out[f] = _count_below(edges, column)
            out[f, np.isnan(column)] = self.missing
        return out

    @property
    def used(self) -> np.ndarray:
        """Number of codes of each column without the missing one: uint32 ``[d]``."""
        return np.array([len(edges) + 1 for edges in self.edges], dtype=np.uint32)


def _count_below(edges: np.ndarray, column: np.ndarray) -> np.ndarray:
    """``np.searchsorted(edges, column)`` three times as fast: binary search in steps that all values take together.

    On values in random order numpy's search mispredicts a branch a step; here a step is a gather and a comparison.
    """
    steps = len(edges).bit_length()
    padded = np.full(2**steps, np.inf)
    padded[: len(edges)] = edges
    place = np.zeros(len(column), dtype=np.intp)
    for step in (2**k for k in reversed(range(steps))):
        place += step * (padded[step - 1 :][place] < column)
    return place


def _edges(column: np.ndarray, most: int) -> np.ndarray:
    values = np.sort(column.astype(np.float64))  # missing values come last
    values = values[: len(values) - np.isnan(values).sum()]
    if not len(values):
        return np.zeros(0)
    new = values[1:] != values[:-1]
    if np.count_nonzero(new) < most:
        distinct = values[np.concatenate([[True], new])]
        below, above = distinct[:-1], distinct[1:]
    else:
        # The value at each quantile and the next larger one; a value so frequent that it holds several quantiles counts once.
        below = np.unique(values[np.linspace(0, len(values) - 1, most + 1)[1:-1].astype(np.int64)])
        below = below[below < values[-1]]
        above = values[np.searchsorted(values, below, side="right")]
    middle = below + (above - below) / 2
    # Between neighboring floats there is no middle: then the smaller one is the edge, and x <= edge still divides them.
    return np.where(middle >= above, below, middle)

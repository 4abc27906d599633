"""Scores of a mixed gallery: old vectors and mapped new ones lie in one space, but not equally close to a query.

A mapped picture tends to score higher with a mapped query than an old one does, whether or not it answers. Quantile
matching gives a source's scores the distribution of the reference source's, and keeps the order within a source.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.errors import BadInput


class QuantileMatch:
    """A rising, piecewise linear map of one source's scores onto the reference's.

    Args:
        points: quantiles that are matched; 33.
    """

    def __init__(self, points: int = 33) -> None:
        if points < 2:
            raise BadInput(f"{points} points make no line", where="QuantileMatch")
        self.points = points

    def fit(self, scores: Any, reference: Any) -> QuantileMatch:
        """Learns both distributions.

        Args:
            scores: scores of queries without an answer there (or of any queries) with the source's items, any shape.
            reference: the same queries with the reference's items.

        Raises:
            BadInput: nothing in one of them, or NaN.
        """
        own, other = np.asarray(scores, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
        if not len(own) or not len(other) or not (np.isfinite(own).all() and np.isfinite(other).all()):
            raise BadInput("scores must be finite and not empty", where="QuantileMatch.fit")
        at = np.linspace(0, 1, self.points)
        self.own_, self.reference_ = np.quantile(own, at), np.quantile(other, at)
        return self

    def transform(self, scores: Any) -> np.ndarray:
        """Matched scores in the same shape; beyond the known range they go on with slope 1."""
        if not hasattr(self, "own_"):
            raise BadInput("is not fitted", where="QuantileMatch", fix="Call fit first")
        values = np.asarray(scores, np.float64)
        inside = np.interp(values, self.own_, self.reference_)
        low, high = np.minimum(values - self.own_[0], 0), np.maximum(values - self.own_[-1], 0)
        return inside + low + high

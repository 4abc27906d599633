"""Ranking figures of `Ranks`, one value a query. With unresolved ties each figure is its expectation over all tie
orders.

Expectations follow McSherry & Najork 2008, *Computing Information Retrieval Performance Measures Efficiently in the
Presence of Tied Scores*. Without ties they are the textbook figures. Below, a tie group has ``n`` items before it,
``t`` items in it, of which ``r`` are positives; a cut-off ``k`` reaches ``m = min(t, max(k - n, 0))`` places into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from chiasm.measure.ranks import Ranks

Normalization = Literal["min(R,k)", "R"]
Gain = Literal["linear", "exponential"]

# Places of large tie groups summed at once in `Figures.mrr`.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Figures:
    """Per-query figures ``[N]``, NaN for queries without positives.

    Args:
        ranks: places of the positives.
        ap_normalization: AP at a cut-off k is divided by ``min(R, k)`` (so that a perfect list reaches 1) or by ``R``
            (trec_eval's ``map_cut``); R is the number of positives. Without a cut-off both are R.
        gain: nDCG gain of grade g: ``"linear"`` g (trec_eval, scikit-learn) or ``"exponential"`` 2^g - 1 (Burges et al.
            2005).
    """

    ranks: Ranks
    ap_normalization: Normalization = "min(R,k)"
    gain: Gain = "linear"

    def hit(self, k: float) -> np.ndarray:
        """1 if at least one positive is among the first k (called R@k in image-text papers)."""
        return self._of_first(1 - _none_within(self._first_r, self._first_t, self._reach(k)[self._first]))

    def recall(self, k: float) -> np.ndarray:
        """Share of the positives that are among the first k."""
        return self._sum(self._found(k)) / self._total

    def precision(self, k: float | np.ndarray) -> np.ndarray:
        """Share of positives among the first k; k may differ by query ``[N]``."""
        return self._mask(self._sum(self._found(k))) / k

    def r_precision(self) -> np.ndarray:
        """Precision at R, the number of positives of the query."""
        return self.precision(self._total)

    def map(self, k: float | np.ndarray = np.inf) -> np.ndarray:
        """Average precision; with ``k = R`` this is AP@R (Musgrave et al. 2020)."""
        reach = self._reach(k)
        # Inside a tie group positives are spread evenly: place i holds one with probability r / t, and given that,
        # (i - 1)(r - 1)/(t - 1) of the i - 1 places before it do too. The sum over i <= m has a closed form.
        slope = (self._r - 1) / np.maximum(self._t - 1, 1)
        start = self._earlier + 1 - slope * (np.where(np.isfinite(self._n), self._n, 0) + 1)
        value = self._r / self._t * (slope * reach + start * _harmonic(self._n, reach))
        bound = self._total if self.ap_normalization == "R" else np.minimum(self._total, k)
        return self._sum(value) / bound

    def mrr(self, k: float = np.inf) -> np.ndarray:
        """One over the place of the first positive, 0 if it is beyond k."""
        n, t, r = self._n[self._first], self._first_t, self._first_r
        reach = self._reach(k)[self._first]
        value = _harmonic(n, reach) / t
        for i in np.flatnonzero((r > 1) & (reach > 0)):  # tie groups that hold several positives are rare
            value[i] = _expected_reciprocal(n[i], int(t[i]), int(r[i]), int(reach[i]))
        return self._of_first(value)

    def minp(self) -> np.ndarray:
        """R over the place of the last positive (Ye et al. 2021, arXiv 2001.04193); 0 if that was never retrieved."""
        last = np.append(self._earlier[1:] == 0, True) if len(self._earlier) else np.zeros(0, dtype=bool)
        n, t, r = self._n[last], self._t[last], self._r[last]
        value = np.where(np.isfinite(n), 1 / (np.where(np.isfinite(n), n, 0) + t), 0.0)
        for i in np.flatnonzero((t > r) & np.isfinite(n)):  # with t = r the last place of the group is taken
            value[i] = _expected_reciprocal_of_last(n[i], int(t[i]), int(r[i]))
        out = np.full(len(self.ranks), np.nan)
        out[self._query[last]] = value
        return out * self._total

    def rank(self) -> np.ndarray:
        """Place of the first positive, from 1; infinite if it was not retrieved and the gallery's size is unknown."""
        return self._of_first(self._n[self._first] + (self._first_t + 1) / (self._first_r + 1))

    def ndcg(self, k: float = np.inf) -> np.ndarray:
        """Discounted cumulative gain over that of the ideal list; discount 1/log2(1 + place).

        Järvelin & Kekäläinen 2002, *Cumulated Gain-based Evaluation of IR Techniques*.
        """
        gains = self.ranks.gains if self.gain == "linear" else np.exp2(self.ranks.gains) - 1
        last = (self._n + self._t)[np.isfinite(self._n)].max(initial=1)
        size = int(min(max(last, self._total[np.isfinite(self._total)].max(initial=1)), k))
        table = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, size + 2)))])
        low, high = (np.minimum(x, size).astype(np.int64) for x in (self._n, self._n + self._t))
        sums = np.add.reduceat(gains, np.flatnonzero(self._starts)) if len(gains) else gains
        value = self._sum(sums / self._t * (table[high] - table[low]))
        queries = self.ranks.queries
        best = gains[np.lexsort((-gains, queries))]
        place = np.minimum(np.arange(len(best)) - self.ranks.indptr[:-1][queries], size)
        ideal = np.bincount(queries, best * np.diff(table, append=table[-1])[place], minlength=len(self.ranks))
        return self._mask(value) / np.where(ideal > 0, ideal, np.nan)

    # Tie groups, flat [G].

    @cached_property
    def _starts(self) -> np.ndarray:
        return self.ranks.starts

    @cached_property
    def _query(self) -> np.ndarray:
        return self.ranks.queries[self._starts]

    @cached_property
    def _n(self) -> np.ndarray:
        return self.ranks.before[self._starts]

    @cached_property
    def _t(self) -> np.ndarray:
        return self.ranks.tied[self._starts]

    @cached_property
    def _r(self) -> np.ndarray:
        return np.diff(np.append(np.flatnonzero(self._starts), len(self._starts))).astype(np.float64)

    @cached_property
    def _earlier(self) -> np.ndarray:
        """Positives of the query in earlier tie groups."""
        return np.flatnonzero(self._starts) - self.ranks.indptr[:-1][self._query]

    @cached_property
    def _first(self) -> np.ndarray:
        """The first tie group of each query that has positives."""
        return np.flatnonzero(self._earlier == 0)

    @property
    def _first_t(self) -> np.ndarray:
        return self._t[self._first]

    @property
    def _first_r(self) -> np.ndarray:
        return self._r[self._first]

    @cached_property
    def _total(self) -> np.ndarray:
        counts = self.ranks.counts.astype(np.float64)
        return np.where(counts > 0, counts, np.nan)

    def _reach(self, k: float | np.ndarray) -> np.ndarray:
        """Places of each group that are within the first k, ``m``."""
        bound = k[self._query] if isinstance(k, np.ndarray) else k
        n = np.where(np.isfinite(self._n), self._n, 0)
        return np.where(np.isfinite(self._n), np.clip(bound - n, 0, self._t), 0)

    def _found(self, k: float | np.ndarray) -> np.ndarray:
        """Expected positives of each group among the first k."""
        return self._r * self._reach(k) / self._t

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._query, values, minlength=len(self.ranks))

    def _mask(self, values: np.ndarray) -> np.ndarray:
        return np.where(self.ranks.counts > 0, values, np.nan)

    def _of_first(self, values: np.ndarray) -> np.ndarray:
        out = np.full(len(self.ranks), np.nan)
        out[self._query[self._first]] = values
        return out


def _harmonic(n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """sum of 1/(n + i) for i = 1 ... m."""
    out = np.where(m > 0, 1 / (n + 1), 0.0)
    many = m > 1
    if many.any():
        from scipy.special import digamma

        out[many] = digamma(n[many] + m[many] + 1) - digamma(n[many] + 1)
    return out


def _none_within(r: np.ndarray, t: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Probability that none of r positives is among the first m of t places: C(t - m, r) / C(t, r)."""
    out = np.where(t - m >= r, 1.0, 0.0)
    tied = (t > 1) & (m > 0) & (out > 0)
    if tied.any():
        from scipy.special import gammaln

        r, t, m = r[tied], t[tied], m[tied]
        out[tied] = np.exp(gammaln(t - m + 1) - gammaln(t - m - r + 1) - gammaln(t + 1) + gammaln(t - r + 1))
    return out


def _expected_reciprocal(n: float, t: int, r: int, m: int) -> float:
    """Expectation of 1/(n + X) for X <= m, the first of r positives among t places in random order."""
    total, survive = 0.0, 1.0
    for start in range(0, min(m, t - r + 1), _BLOCK):
        i = np.arange(start + 1, min(m, t - r + 1, start + _BLOCK) + 1, dtype=np.float64)
        # P(X = i) = P(X >= i) r / (t - i + 1); P(X >= i + 1) = P(X >= i) (1 - r / (t - i + 1)).
        hazard = r / (t - i + 1)
        alive = survive * np.concatenate([[1.0], np.cumprod(1 - hazard)])
        total += float((alive[:-1] * hazard / (n + i)).sum())
        survive = float(alive[-1])
    return total


def _expected_reciprocal_of_last(n: float, t: int, r: int) -> float:
    """Expectation of 1/(n + X), X the last of r positives among t places in random order: t + 1 - X is their first."""
    total, survive = 0.0, 1.0
    for start in range(0, t - r + 1, _BLOCK):
        i = np.arange(start + 1, min(t - r + 1, start + _BLOCK) + 1, dtype=np.float64)
        hazard = r / (t - i + 1)
        alive = survive * np.concatenate([[1.0], np.cumprod(1 - hazard)])
        total += float((alive[:-1] * hazard / (n + t + 1 - i)).sum())
        survive = float(alive[-1])
    return total


def compute(name: str, k: float | str | None, figures: Figures) -> np.ndarray:
    """The per-query values of one parsed metric name (see `chiasm.measure.ranking.parse`)."""
    function: Any = getattr(figures, "rank" if name in ("median_rank", "mean_rank") else name)
    if k is None:
        return function()
    return function(figures._total if k == "R" else k)

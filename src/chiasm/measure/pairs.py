"""How many of the given pairs do not belong together?

Model. A pair's similarity, freed of the popularity of both sides, is compared with mismatched pairs of the same rows.
For a noisy pair its p-value is uniform by construction, so the share of noisy pairs is the weight of the known
component in a mixture of two: ``z = Phi^-1(1 - p) ~ rate N(0, 1) + (1 - rate) N(mu, sigma^2)``. Efron 2004,
*Large-Scale Simultaneous Hypothesis Testing* (the two-group model); Storey 2002, *A direct approach to false discovery
rates* (the bound). Cf. the two-component split of PC2 (2024), which fits both components and therefore needs a trained
network's losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.measure.intervals import Interval
from chiasm.measure.vectors import as_rows, like, same_dim, to_numpy

# Mismatched similarities that form the null distribution; its quantiles are then good to three digits.
_NULL = 200_000
_ROWS = 1 << 14
_BINS = 60


@dataclass(frozen=True, slots=True)
class NoisyPairs:
    """Estimate of the share of mismatched pairs.

    Args:
        rate: the estimate with its interval; the upper end is at least ``bound``, which needs no model of the good
            pairs.
        bound: Storey's estimate, biased upward where good pairs look like mismatched ones.
        separation: probability that a good pair is more similar than a mismatched one (AUROC of the fitted components);
            near 0.5 the space cannot tell and the interval is wide.
        probability: for each pair ``[N]``, that it is mismatched.
        p_values: ``[N]``, share of mismatched pairs that are at least as similar.
    """

    rate: Interval
    bound: float
    separation: float
    probability: Any
    p_values: Any

    def to_json(self) -> dict[str, Any]:
        return {"rate": self.rate.to_json(), "bound": self.bound, "separation": self.separation}


def noisy_pairs(
    a: Any, b: Any, *, mismatches: int | None = None, resamples: int = 100, level: float = 0.95, seed: int = 0
) -> NoisyPairs:
    """Estimates the share of noisy pairs in O(N D mismatches) time.

    Args:
        a, b: ``[N, D]``, row by row a pair; N >= 20.
        mismatches: mismatched partners drawn for each row; default so many that there are about 200,000, at least 10.
        resamples: bootstrap samples of the interval (each refits the mixture).
        level: of the interval.
        seed: of the mismatches and the bootstrap.

    Raises:
        BadInput: rows that are not pairs, fewer than 20, or vectors that are all equal.
    """
    first, second = as_rows(a, "a"), as_rows(b, "b")
    same_dim(first, second, "a and b", paired=True)
    left, right, n = to_numpy(first), to_numpy(second), first.shape[0]
    if n < 20:
        raise BadInput(f"{n} pairs are too few for a rate", where="noisy_pairs", fix="Give at least 20")
    rng = np.random.default_rng(seed)
    p, size = _p_values(left, right, min(n - 1, mismatches or max(10, _NULL // n)), rng)
    edges = _edges(n, size)
    z = _z(p)
    cell = np.searchsorted(edges, z)
    counts = np.bincount(cell, minlength=_BINS)
    fit = _fit(counts, edges)
    rates = [
        _fit(np.bincount(cell[rng.integers(n, size=n)], minlength=_BINS), edges, start=fit)[0] for _ in range(resamples)
    ]
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2]) if rates else (fit[0], fit[0])
    bound = float(min(1.0, (p > 0.5).mean() / 0.5))
    rate, mu, sigma = fit
    from scipy.special import ndtr

    return NoisyPairs(
        Interval(rate, min(float(low), rate), max(float(high), bound, rate), level, n, "two-group"),
        bound,
        float(ndtr(mu / np.hypot(1, sigma))),
        like(_posterior(z, edges, fit).astype(np.float32), first),
        like(p.astype(np.float32), first),
    )


def _p_values(a: np.ndarray, b: np.ndarray, mismatches: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """p-value of each pair among mismatched pairs, and how many of these there are.

    The row and column means of the similarity matrix are taken off (in closed form), so that a popular item is no
    evidence.
    """
    n = len(a)
    row, column = a @ b.mean(axis=0), b @ a.mean(axis=0)
    shifts = rng.choice(np.arange(1, n), mismatches, replace=False)
    null = np.concatenate([_similarity(a, b, row, column, shift) for shift in shifts])
    null.sort()
    if null[-1] - null[0] < 1e-6:
        raise BadInput("all vectors of a side are equal", where="noisy_pairs")
    own = _similarity(a, b, row, column, 0)
    # Mid-p, so that a pair inside ties is neither favored nor punished.
    below = (np.searchsorted(null, own, "left") + np.searchsorted(null, own, "right")) / 2
    return 1 - (below + 0.5) / (len(null) + 1), len(null)


def _similarity(a: np.ndarray, b: np.ndarray, row: np.ndarray, column: np.ndarray, shift: int) -> np.ndarray:
    """Centered similarity of each row of ``a`` with the row of ``b`` that is ``shift`` places further."""
    partner = (np.arange(len(a)) + shift) % len(a)
    out = np.empty(len(a), dtype=np.float32)
    for start in range(0, len(a), _ROWS):
        here = slice(start, start + _ROWS)
        out[here] = np.einsum("nd,nd->n", a[here], b[partner[here]])
    return out - row - column[partner]


def _edges(n: int, size: int) -> np.ndarray:
    """Inner bin edges of z; the last bin is open.

    Beyond it lie the 2/N most similar mismatched pairs, because a caption that was swapped away meets its own picture
    again among the mismatched pairs once in N times.
    """
    from scipy.special import ndtri

    top = min(-ndtri(2 / n), -ndtri(10 / size), 4.0)
    return np.linspace(-3, top, _BINS - 1)


def _z(p: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    return -ndtri(p)


def _masses(edges: np.ndarray, mu: float, sigma: float) -> np.ndarray:
    """Probability of each bin under N(mu, sigma^2)."""
    from scipy.special import ndtr

    return np.diff(np.concatenate([[0.0], ndtr((edges - mu) / sigma), [1.0]]))


def _fit(
    counts: np.ndarray, edges: np.ndarray, *, start: tuple[float, float, float] | None = None
) -> tuple[float, float, float]:
    """Maximum likelihood of (rate, mu, sigma) on binned z, so that the open last bin is treated exactly."""
    from scipy.optimize import minimize

    null = _masses(edges, 0, 1)

    def loss(x: np.ndarray) -> float:
        rate = 1 / (1 + np.exp(-x[0]))
        density = rate * null + (1 - rate) * _masses(edges, np.exp(x[1]), np.exp(x[2]))
        return -float(counts @ np.log(density + 1e-12)) / counts.sum()

    # mu >= 0.5: a closer component could not be told from the null. sigma: good pairs are not sharper than the bins.
    bounds = [(-8.0, 8.0), (np.log(0.5), np.log(6)), (np.log(0.3), np.log(3))]
    if start is None:
        starts = [(-2.0, 1.0, 0.0), (0.0, 1.0, 0.0), (-2.0, 0.3, 0.0), (0.0, 0.3, 0.0)]
    else:
        rate = np.clip(start[0], 0.01, 0.99)
        starts = [(float(np.log(rate / (1 - rate))), float(np.log(start[1])), float(np.log(start[2])))]
    best = min((minimize(loss, x, method="L-BFGS-B", bounds=bounds) for x in starts), key=lambda found: found.fun)
    return float(1 / (1 + np.exp(-best.x[0]))), float(np.exp(best.x[1])), float(np.exp(best.x[2]))


def _posterior(z: np.ndarray, edges: np.ndarray, fit: tuple[float, float, float]) -> np.ndarray:
    """Probability of the null component at z, made falling in z: a wide second component would turn it far left."""
    rate, mu, sigma = fit
    null = rate * np.exp(-(edges**2) / 2)
    good = (1 - rate) * np.exp(-(((edges - mu) / sigma) ** 2) / 2) / sigma
    share = null / (null + good)
    return np.interp(z, edges, np.maximum.accumulate(share[::-1])[::-1])

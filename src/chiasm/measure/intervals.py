"""Bootstrap intervals of means, paired differences and arbitrary statistics; seeded and vectorized.

Efron & Tibshirani 1993, *An Introduction to the Bootstrap* (percentile: chapter 13, BCa: chapter 14).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from chiasm.errors import BadInput

Method = Literal["percentile", "bca"]

# Resampled values held at once (8 bytes each): 32 MB.
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bootstrap interval.

    Args:
        mean: the estimate on the data as it is.
        low, high: ends of the interval; infinite if there are fewer than two independent observations.
        level: nominal coverage.
        n: independent observations that were resampled.
        method: ``"percentile"``, ``"bca"`` or ``"two-level"``.
    """

    mean: float
    low: float
    high: float
    level: float = 0.95
    n: int = 0
    method: str = "percentile"

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        return {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(
    values: Any,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    method: Method = "bca",
    groups: Any = None,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean.

    Args:
        values: ``[N]`` figures, one a query; NaN marks a query without a figure and is left out.
        level: nominal coverage; default 0.95.
        resamples: bootstrap samples; default 2000 (Efron & Tibshirani advise at least 1000 for intervals).
        method: ``"bca"`` (bias-corrected, accelerated) or ``"percentile"``.
        groups: optional ``[N]`` labels. Figures of one group are not independent (five captions of one picture), so
            whole groups are resampled.
        seed: of the resampling.

    Raises:
        BadInput: no value is left, infinite values, or arguments out of range.
    """
    _check(level, resamples, method)
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise BadInput(f"values must be [N], got shape {values.shape}", where="mean_interval")
    keep = ~np.isnan(values)
    sums, counts = values[keep], np.ones(int(keep.sum()))
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != values.shape:
            raise BadInput(f"{len(values)} values and groups of shape {groups.shape}", where="mean_interval")
        _, index = np.unique(groups[keep], return_inverse=True)
        sums, counts = np.bincount(index, sums), np.bincount(index).astype(np.float64)
    if not len(sums):
        raise BadInput("no value to average", where="mean_interval")
    if not np.isfinite(sums).all():
        raise BadInput("infinite values have no mean", where="mean_interval")
    n, mean = len(sums), float(sums.sum() / counts.sum())
    if n < 2:
        return Interval(mean, -np.inf, np.inf, level, n, method)
    draws = _resampled_means(sums, counts, resamples, np.random.default_rng(seed))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        # Jackknife in closed form: the mean without one group.
        jackknife = (sums.sum() - sums) / (counts.sum() - counts)
        tails = _bca_tails(tails, draws, mean, jackknife)
    low, high = np.quantile(draws, tails)
    return Interval(mean, float(low), float(high), level, n, method)


def difference_interval(
    a: Any,
    b: Any,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    method: Method = "bca",
    groups: Any = None,
    seed: int = 0,
) -> Interval:
    """Paired bootstrap interval of ``mean(a - b)`` over the same queries in the same order.

    Args:
        a, b: ``[N]`` figures of two arms; queries that have no figure (NaN) in either arm are left out.
        level, resamples, method, groups, seed: as in `mean_interval`.

    Raises:
        BadInput: different lengths, or as `mean_interval`.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise BadInput(f"paired figures of shapes {a.shape} and {b.shape}", where="difference_interval")
    return mean_interval(a - b, level=level, resamples=resamples, method=method, groups=groups, seed=seed)


def grouped_mean_interval(
    groups: Sequence[Any], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of the mean of group means by two-level resampling: groups (seeds), then figures inside each.

    Both sources of variation are in the interval: another seed, and other queries (Davison & Hinkley 1997, section
    3.8). With one group only the figures are resampled; with one figure a group only the groups.

    Args:
        groups: G arrays ``[N_g]``, for example the per-query differences of each seed.
        level, resamples, seed: as in `mean_interval`.

    Raises:
        BadInput: no group, an empty group, or values that are not finite.
    """
    _check(level, resamples, "percentile")
    arrays = [np.atleast_1d(np.asarray(group, dtype=np.float64)) for group in groups]
    if not arrays or any(array.size == 0 for array in arrays):
        raise BadInput("no group, or an empty one", where="grouped_mean_interval")
    if not all(np.isfinite(array).all() for array in arrays):
        raise BadInput("values must be finite", where="grouped_mean_interval")
    mean = float(np.mean([array.mean() for array in arrays]))
    n = len(arrays) if len(arrays) > 1 else len(arrays[0])
    if n < 2:
        return Interval(mean, -np.inf, np.inf, level, n, "two-level")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(arrays), size=(resamples, len(arrays)))
    draws = np.zeros((resamples, len(arrays)))
    for g, array in enumerate(arrays):
        slots = chosen == g
        draws[slots] = _resampled_means(array, np.ones(len(array)), int(slots.sum()), rng)
    low, high = np.quantile(draws.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), level, n, "two-level")


def statistic_interval(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any statistic of N rows, for example the skewness of a hub histogram over resampled
    queries.

    Args:
        statistic: takes row numbers ``[N]`` (with repetitions) and returns the figure.
        n: number of rows.
        level: nominal coverage.
        resamples: calls of ``statistic``; default 200, since it is not vectorized.
        seed: of the resampling.
    """
    _check(level, resamples, "percentile")
    value = float(statistic(np.arange(n)))
    if n < 2:
        return Interval(value, -np.inf, np.inf, level, n, "percentile")
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, n, "percentile")


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means of ``resamples`` draws with replacement, ``[resamples]``; a bounded block of indices at a time."""
    n, out = len(sums), np.empty(resamples)
    plain = bool((counts == 1).all())
    step = max(1, _CHUNK // max(n, 1))
    for start in range(0, resamples, step):
        rows = rng.integers(n, size=(min(step, resamples - start), n))
        total = sums[rows].sum(axis=1)
        out[start : start + len(rows)] = total / (n if plain else counts[rows].sum(axis=1))
    return out


def _bca_tails(tails: np.ndarray, draws: np.ndarray, estimate: float, jackknife: np.ndarray) -> np.ndarray:
    """Quantile levels corrected for median bias z0 and acceleration a: Phi(z0 + (z0 + z) / (1 - a (z0 + z)))."""
    from scipy.special import ndtr, ndtri

    # Draws that equal the estimate count half, else discrete figures (hits) look biased.
    below = (np.mean(draws < estimate) + np.mean(draws <= estimate)) / 2
    deviation = jackknife.mean() - jackknife
    spread = float((deviation**2).sum())
    if spread == 0 or not 0 < below < 1:
        return tails
    z0, a = ndtri(below), float((deviation**3).sum()) / (6 * spread**1.5)
    z = z0 + ndtri(tails)
    return np.clip(ndtr(z0 + z / (1 - a * z)), 0, 1)


def _check(level: float, resamples: int, method: str) -> None:
    if not 0 < level < 1:
        raise BadInput(f"level {level} is not between 0 and 1", where="bootstrap")
    if resamples < 1:
        raise BadInput(f"{resamples} resamples", where="bootstrap", fix="Use at least 1000")
    if method not in ("percentile", "bca"):
        raise BadInput(f"method {method!r} does not exist", where="bootstrap", fix="Use 'bca' or 'percentile'")

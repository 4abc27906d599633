"""Mean Rank Variance: does one item stand at the same place whatever the language (or form) of the query?

1-to-K (KDD 2024, arXiv 2406.18254), section on the consistency metric.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy


@dataclass(frozen=True, slots=True)
class RankVariance:
    """Spread of ranks over K languages, averaged over N instances; lower is more consistent.

    Args:
        mrv: Mean Rank Variance, the mean of the population variance of an instance's ranks.
        mrsd: the mean of their standard deviation (what the released script computes).
        values: variance of each instance ``[N]``, NaN with fewer than one known rank.
        clip: ranks were cut there; None if not.
    """

    mrv: float
    mrsd: float
    values: np.ndarray
    clip: float | None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "values"} | {"instances": len(self.values)}


def mean_rank_variance(ranks: Any, *, clip: float | None = None) -> RankVariance:
    """Variance of ranks over languages.

    Args:
        ranks: ``[N, K]``, the place of instance n's best positive for a query in language k (from 0 or 1: variance does
            not care), as `RankingReport.values["mean_rank"]` gives it; NaN where a translation is missing.
        clip: ranks above this are set to it, so that a few catastrophic ranks do not decide; the card suggests 100.
            Needed where ranks beyond a list are infinite.

    Raises:
        BadInput: not ``[N, K]``, no known rank, or infinite ranks without ``clip``.
    """
    values = to_numpy(ranks).astype(np.float64)
    if values.ndim != 2 or not values.size:
        raise BadInput(f"ranks must be [N, K], got shape {values.shape}", where="mean_rank_variance")
    if clip is not None:
        values = np.minimum(values, clip)
    if np.isinf(values).any():
        raise BadInput("infinite ranks have no variance", where="mean_rank_variance", fix="Give clip=100")
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    if not count.any():
        raise BadInput("no rank is known", where="mean_rank_variance")
    safe = np.where(count > 0, count, np.nan)
    mean = np.where(known, values, 0).sum(axis=1) / safe
    variance = np.where(known, (values - mean[:, None]) ** 2, 0).sum(axis=1) / safe
    return RankVariance(float(np.nanmean(variance)), float(np.nanmean(np.sqrt(variance))), variance, clip)

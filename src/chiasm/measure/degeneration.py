"""Degeneration: vectors that crowd into a narrow cone, or into few dimensions.

DeltaDeg and MeanSim: InvGC (2023, arXiv 2310.13276). Effective rank: Roy & Vetterli 2007, *The Effective Rank*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from chiasm.errors import BadInput
from chiasm.measure.hubness import nearest
from chiasm.measure.vectors import as_rows, same_dim, to_numpy

# Rows whose float64 copies are summed at once.
_ROWS = 1 << 14


def delta_deg(gallery: Any, *, chunk: int | None = None) -> float:
    """Mean over items of the cosine to the nearest other item; lower is less degenerate.

    Args:
        gallery: ``[M, D]``, M >= 2.
        chunk: gallery rows at a time.
    """
    return mean_similarity(gallery, k=1, chunk=chunk)


def mean_similarity(gallery: Any, queries: Any = None, *, k: int | None = 10, chunk: int | None = None) -> float:
    """MeanSim@k: mean over rows of the mean cosine to their k nearest items.

    Args:
        gallery: ``[M, D]``.
        queries: ``[N, D]``; None measures inside the gallery, where an item is not its own neighbor.
        k: neighbors; None takes all items (in closed form, without comparing pairs).
        chunk: gallery rows at a time.

    Raises:
        BadInput: too few rows, other dimensions, NaN.
    """
    if k is not None:
        inside = queries is None
        scores, _ = nearest(gallery if inside else queries, None if inside else gallery, k, chunk=chunk)
        return float(to_numpy(scores).mean(dtype=np.float64))
    rows = as_rows(gallery, "gallery")
    if queries is not None:
        others = as_rows(queries, "queries")
        same_dim(rows, others, "queries and gallery")
        if not rows.shape[0] or not others.shape[0]:
            raise BadInput(f"{others.shape[0]} queries and {rows.shape[0]} items", where="mean_similarity")
        return float(_mean(rows) @ _mean(others))
    n = rows.shape[0]
    if n < 2:
        raise BadInput(f"{n} items have no pairs", where="mean_similarity")
    # sum over i != j of v_i . v_j = |sum v|^2 - sum |v|^2
    xp = array_namespace(rows)
    total = n * _mean(rows)
    return float((total @ total - float(xp.sum(rows * rows))) / (n * (n - 1)))


def spectrum(vectors: Any, *, center: bool = False) -> np.ndarray:
    """Singular values ``[D]`` in falling order, through the D x D Gram matrix (memory O(D^2)).

    Args:
        vectors: ``[N, D]``, taken as they are (not normalized).
        center: subtract the mean row first (then they are those of the covariance, times sqrt(N)).
    """
    rows = as_rows(vectors, "vectors", normalize=False)
    xp = array_namespace(rows)
    if not rows.shape[0]:
        raise BadInput("no rows", where="spectrum")
    mean = _mean(rows) if center else np.zeros(rows.shape[1])
    gram = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, rows.shape[0], _ROWS):
        block = to_numpy(xp.astype(rows[start : start + _ROWS, :], xp.float64)) - mean
        gram += block.T @ block
    values = np.linalg.eigvalsh(gram)[::-1]
    # The Gram matrix squares the condition number: what is below its rounding is zero.
    noise = max(values[0], 0) * len(values) * np.finfo(np.float64).eps
    return np.sqrt(np.where(values > noise, values, 0))


def effective_rank(vectors: Any, *, center: bool = False) -> float:
    """exp of the entropy of the singular values scaled to sum 1 (Roy & Vetterli 2007); between 1 and min(N, D).

    Args:
        vectors: ``[N, D]``.
        center: subtract the mean row first; the paper does not.

    Returns:
        The effective rank; 0 if all values are zero.
    """
    values = spectrum(vectors, center=center)
    if not values.any():
        return 0.0
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(vectors: Any, *, center: bool = True) -> float:
    """(sum l)^2 / sum l^2 over the eigenvalues l of the covariance; between 1 and min(N, D).

    Gao et al. 2017, *A theory of multineuronal dimensionality, dynamics and measurement*.

    Args:
        vectors: ``[N, D]``.
        center: subtract the mean row first, default True as in the paper.

    Returns:
        The ratio; 0 if all rows are equal.
    """
    values = spectrum(vectors, center=center) ** 2
    return float(values.sum() ** 2 / (values**2).sum()) if values.any() else 0.0


def _mean(rows: Any) -> np.ndarray:
    """Mean row in float64 ``[D]``, without a float64 copy of all rows."""
    xp = array_namespace(rows)
    total = np.zeros(rows.shape[1])
    for start in range(0, rows.shape[0], _ROWS):
        total += to_numpy(xp.sum(xp.astype(rows[start : start + _ROWS, :], xp.float64), axis=0))
    return total / rows.shape[0]

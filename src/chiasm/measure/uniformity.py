"""Alignment of pairs and uniformity on the sphere.

Wang & Isola 2020, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from chiasm.errors import BadInput
from chiasm.measure.vectors import as_rows, rows_at_once, same_dim, to_numpy


def alignment(a: Any, b: Any, *, alpha: float = 2.0) -> float:
    """Mean of ``|a_i - b_i|^alpha`` over matched unit rows; lower is better aligned.

    Args:
        a, b: ``[N, D]``, row by row a pair; normalized first.
        alpha: exponent, default 2 (the paper's).

    Raises:
        BadInput: rows that are not pairs, no row, NaN.
    """
    a, b = as_rows(a, "a"), as_rows(b, "b")
    same_dim(a, b, "a and b", paired=True)
    if not a.shape[0]:
        raise BadInput("no pairs", where="alignment")
    xp = array_namespace(a, b)
    distance = to_numpy(xp.sum((a - b) ** 2, axis=1)).astype(np.float64)
    return float((distance ** (alpha / 2)).mean())


def uniformity(
    vectors: Any, *, t: float = 2.0, sample: int | None = None, seed: int = 0, chunk: int | None = None
) -> float:
    """log of the mean of ``exp(-t |x_i - x_j|^2)`` over all pairs i < j of unit rows; lower is more uniform.

    Args:
        vectors: ``[N, D]``, N >= 2; normalized first.
        t: sharpness, default 2 (the paper's).
        sample: use this many rows, drawn without repetition; None uses all (O(N^2 D) time, O(chunk N) memory).
        seed: of the draw.
        chunk: rows at a time.

    Raises:
        BadInput: fewer than two rows, NaN.
    """
    rows = as_rows(vectors, "vectors")
    xp = array_namespace(rows)
    n = rows.shape[0]
    if n < 2:
        raise BadInput(f"{n} rows have no pairs", where="uniformity")
    if sample is not None and sample < n:
        if sample < 2:
            raise BadInput(f"a sample of {sample} rows has no pairs", where="sample")
        picked = np.sort(np.random.default_rng(seed).choice(n, sample, replace=False))
        rows, n = xp.take(rows, _on_device(xp, picked, rows), axis=0), sample
    squares = xp.sum(rows * rows, axis=1)
    total, step = 0.0, rows_at_once(n, chunk)
    for start in range(0, n, step):
        stop = min(n, start + step)
        # Squared distances from rows to all later rows; in a block the pairs i < j lie above the diagonal.
        products = rows[start:stop, :] @ xp.matrix_transpose(rows[start:, :])
        distance = squares[start:stop, None] + squares[None, start:] - 2 * products
        # The exponent is in [-4t, 0] on the unit sphere, so nothing overflows; the sum is kept in float64.
        weights = xp.exp(-t * xp.where(distance > 0, distance, xp.zeros_like(distance)))
        total += float(xp.sum(xp.triu(weights, k=1), dtype=xp.float64))
    return float(np.log(total) - np.log(n * (n - 1) / 2)) if total > 0 else -np.inf


def _on_device(xp: Any, index: np.ndarray, example: Any) -> Any:
    from array_api_compat import device

    return xp.asarray(index, device=device(example))

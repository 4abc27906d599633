"""Vectors at the boundary of an examination: checked in blocks, taken as unit rows, never copied as a whole for nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.embeddings import check_finite, unit
from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy

_BLOCK = 1 << 14


def checked(vectors: Any, where: str, *, least: int) -> np.ndarray:
    """The vectors on the host ``[N, D]``, as they are (float16 stays, memory-mapped stays).

    Raises:
        BadInput: not two-dimensional, no numbers, NaN or infinite values, or fewer than ``least`` rows.
    """
    array = to_numpy(vectors)
    if array.ndim != 2 or array.shape[1] == 0:
        raise BadInput(f"vectors must be [N, D], got shape {array.shape}", where=where)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise BadInput(f"vectors are of type {array.dtype}", where=where, fix="Give numbers")
    if len(array) < least:
        fix = f"Give at least {least}" if least > 1 else "Give at least one"
        raise BadInput(f"{len(array)} vectors cannot be examined", where=where, fix=fix)
    for start in range(0, len(array), _BLOCK):
        try:
            check_finite(array[start : start + _BLOCK], where)
        except BadInput:
            bad = np.flatnonzero(~np.isfinite(array[start : start + _BLOCK]).all(axis=1))
            row = start + (int(bad[0]) if len(bad) else 0)
            raise BadInput(
                f"row {row} holds NaN or infinite values", where=where, fix="Remove or repair that row"
            ) from None
    return array


def rows_of(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The given rows as unit vectors, float32; zero rows stay zero."""
    return unit(array[rows])


def unit_rows(array: np.ndarray) -> np.ndarray:
    """All rows as unit float32 vectors; no copy if they are that already."""
    if array.dtype == np.float32 and all(
        _are_unit(array[start : start + _BLOCK]) for start in range(0, len(array), _BLOCK)
    ):
        return array
    return unit(array)


def _are_unit(rows: np.ndarray) -> bool:
    return bool(np.abs(np.einsum("nd,nd->n", rows, rows) - 1).max(initial=0) < 1e-4)

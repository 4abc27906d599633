"""The boundary of this room: arrays of any kind in, checked float32 rows of the same kind out."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device

from chiasm.errors import BadInput

# Scores held at once by chunked functions (4 bytes each): 128 MB.
SCORES_AT_ONCE = 1 << 25


def as_rows(vectors: Any, where: str, *, normalize: bool = True) -> Any:
    """Float32 ``[N, D]`` of the kind and device of the input; rows of unit length (zero rows stay zero) if asked.

    Raises:
        BadInput: not two-dimensional, or NaN or infinite values.
    """
    if hasattr(vectors, "detach"):
        vectors = vectors.detach()
    if not hasattr(vectors, "shape"):
        vectors = np.asarray(vectors)
    xp = array_namespace(vectors)
    if vectors.ndim != 2:
        raise BadInput(f"vectors must be [N, D], got shape {tuple(vectors.shape)}", where=where)
    rows = xp.astype(vectors, xp.float32, copy=False)
    norms = xp.sqrt(xp.vecdot(rows, rows))[:, None]  # without a second [N, D] array
    # A row's norm is not finite if one of its values is not (or if its square overflows float32, just as useless).
    bad = xp.logical_not(xp.isfinite(norms))
    if bool(xp.any(bad)):
        row = int(np.flatnonzero(to_numpy(bad)[:, 0])[0])
        raise BadInput(f"row {row} holds NaN, infinite or huge values", where=where, fix="Remove or repair that row")
    return rows / xp.where(norms == 0, xp.ones_like(norms), norms) if normalize else rows


def same_dim(a: Any, b: Any, where: str, *, paired: bool = False) -> None:
    """Raises `BadInput` if the widths (or, for pairs, the lengths) of two sets of rows differ."""
    if a.shape[1] != b.shape[1]:
        raise BadInput(f"{a.shape[1]}-d and {b.shape[1]}-d vectors cannot be compared", where=where)
    if paired and a.shape[0] != b.shape[0]:
        raise BadInput(f"{a.shape[0]} and {b.shape[0]} rows are not pairs", where=where)


def to_numpy(array: Any) -> np.ndarray:
    """The array on the host as numpy."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach()
    return np.asarray(to_device(array, "cpu")) if hasattr(array, "device") else np.asarray(array)


def like(values: np.ndarray, example: Any) -> Any:
    """A numpy array as the kind, and on the device, of ``example``."""
    if isinstance(example, np.ndarray):
        return values
    return array_namespace(example).asarray(values, device=device(example))


def rows_at_once(width: int, chunk: int | None) -> int:
    """Rows of a score tile that is ``width`` wide: ``chunk`` if given, else what fits into `SCORES_AT_ONCE`."""
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk {chunk} is not positive", where="chunk")
    return chunk or max(1, SCORES_AT_ONCE // max(1, width))

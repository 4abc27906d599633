"""Exact top-k by inner product, streamed over the gallery: no ``[Q, M]`` score matrix is ever in memory.

The k-th best score so far is a running threshold per query: after the first chunk almost every score fails one
comparison and costs nothing more, so selection adds little to the matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from chiasm.errors import BadInput

# Scores per chunk and query block: 2**22 float32 = 16 MB, large enough for the matrix product to run at full speed.
_CHUNK_SCORES = 1 << 22
_MAX_QUERIES = 1024


def topk_inner(queries: Any, gallery: Any, k: int, *, bias: Any = None, chunk: int | None = None) -> tuple[Any, Any]:
    """The k best rows of a gallery for each query, by ``queries @ gallery.T + bias``.

    Ties go to the lower row. A score of NaN or -inf is never returned, so a bias of -inf hides a row; places that stay
    empty hold row -1 and score -inf.

    Args:
        queries: float32 ``[Q, D]``, numpy or torch (any array of the array API).
        gallery: ``[M, D]`` of the same kind; may be memory-mapped.
        k: results per query; at most M are returned.
        bias: optional ``[M]``, added to the scores of each row.
        chunk: gallery rows per step; by default so many that a block of scores has 2**22 values.

    Returns:
        Scores ``[Q, min(k, M)]`` in falling order and int64 rows of the same shape.

    Raises:
        BadInput: shapes that do not fit together, or ``k < 1``.
    """
    _check(queries, gallery, k, bias, chunk)
    n_queries, n_rows = queries.shape[0], gallery.shape[0]
    k = min(k, n_rows)
    xp = array_namespace(queries, gallery)
    on_host = is_numpy_array(queries)
    scores = np.full((n_queries, k), -np.inf, dtype=np.float32)
    rows = np.full((n_queries, k), -1, dtype=np.int64)
    if k:
        for begin in range(0, n_queries, _MAX_QUERIES):
            part = slice(begin, min(begin + _MAX_QUERIES, n_queries))
            _search_block(xp, queries[part, :], gallery, bias, chunk, scores[part], rows[part])
    if on_host:
        return scores, rows
    to = {"device": device(queries)}
    return xp.asarray(scores, **to), xp.asarray(rows, **to)


def _search_block(xp: Any, queries: Any, gallery: Any, bias: Any, chunk: int | None, scores: Any, rows: Any) -> None:
    """Fills ``scores`` and ``rows`` (numpy ``[q, k]``, in falling order) in place."""
    n_queries, n_rows, k = queries.shape[0], gallery.shape[0], scores.shape[1]
    step = chunk or max(1024, _CHUNK_SCORES // n_queries)
    host = is_numpy_array(queries)
    transposed = queries.T if host else xp.permute_dims(queries, (1, 0))
    begin = 0
    while begin < n_rows:
        # The first chunk is small, because all of it is candidates until there is a threshold.
        end = min(begin + (min(step, max(4 * k, 1024)) if begin == 0 else step), n_rows)
        block = gallery[begin:end, :]
        if n_queries == 1:
            values = (block @ queries[0, :])[None, :]
        elif host:
            # [D, Q] stays in the cache while the gallery streams by; measured faster than queries @ block.T
            values = (block @ transposed).T
        else:
            values = queries @ xp.permute_dims(block, (1, 0))
        if bias is not None:
            values += bias[None, begin:end]
        take_best(xp, values, begin, scores, rows)
        begin = end


def take_best(xp: Any, values: Any, first_row: int, scores: np.ndarray, rows: np.ndarray) -> None:
    """Merges the scores ``[q, n]`` of one chunk into the best so far."""
    k = scores.shape[1]
    # Later rows lose ties, so only a strictly better score enters; NaN never passes the comparison.
    limit = scores[:, -1]
    which, where, found = _above(xp, values, limit)
    if len(which) > 8 * k * len(scores):
        # Rising or unsorted scores: raise the threshold to the chunk's own k-th best before sorting candidates.
        limit = np.maximum(limit, np.nextafter(_kth_best(xp, values, k), np.float32(-np.inf)))
        which, where, found = _above(xp, values, limit)
    if not len(which):
        return
    touched = np.unique(which)
    all_q = np.concatenate([np.repeat(touched, k), which])
    all_s = np.concatenate([scores[touched].ravel(), found])
    all_r = np.concatenate([rows[touched].ravel(), where + first_row])
    order = np.lexsort((np.where(all_r < 0, np.iinfo(np.int64).max, all_r), -all_s, all_q))
    sorted_q = all_q[order]
    starts = np.searchsorted(sorted_q, touched)
    picked = order[starts[:, None] + np.arange(k)[None, :]]
    scores[touched], rows[touched] = all_s[picked], all_r[picked]


def _above(xp: Any, values: Any, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query numbers, columns and scores of all values above their query's limit."""
    if is_numpy_array(values):
        # The scores of a block lie gallery-major; scanning them in memory order is what keeps this cheap.
        flat = values.T if values.T.flags.c_contiguous else values
        if flat is values:
            which, where = np.divmod(np.flatnonzero(values > limit[:, None]), values.shape[1])
        else:
            where, which = np.divmod(np.flatnonzero(flat > limit[None, :]), values.shape[0])
        return which, where, values[which, where]
    passed = xp.nonzero(values > xp.asarray(limit, device=device(values))[:, None])
    which, where = passed
    found = values[which, where]
    return tuple(np.asarray(a.cpu() if hasattr(a, "cpu") else a) for a in (which, where, found))  # type: ignore[return-value]


def _kth_best(xp: Any, values: Any, k: int) -> np.ndarray:
    """Each query's k-th best score ``[q]`` in this chunk, NaN counted as -inf."""
    n = values.shape[1]
    if n <= k:
        return np.full(values.shape[0], -np.inf, dtype=np.float32)
    if is_numpy_array(values):
        clean = np.where(np.isnan(values), np.float32(-np.inf), values)
        return np.partition(clean, n - k, axis=1)[:, n - k].astype(np.float32)
    clean = xp.where(xp.isnan(values), xp.asarray(-float("inf"), dtype=values.dtype, device=device(values)), values)
    kth = xp.sort(clean, axis=1)[:, n - k]
    return np.asarray(kth.cpu() if hasattr(kth, "cpu") else kth, dtype=np.float32)


def _check(queries: Any, gallery: Any, k: int, bias: Any, chunk: int | None) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise BadInput(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} must be [Q, D] and [M, D]",
            where="topk_inner",
        )
    if k < 1:
        raise BadInput(f"k must be at least 1, got {k}", where="topk_inner")
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk must be at least 1, got {chunk}", where="topk_inner")
    if bias is not None and tuple(bias.shape) != (gallery.shape[0],):
        raise BadInput(f"bias {tuple(bias.shape)} must be [{gallery.shape[0]}]", where="topk_inner")

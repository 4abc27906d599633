"""Late interaction over ragged tokens: ``score(q, d) = sum over tokens of q of max over tokens of d of <q_t, d_u>``.

The MaxSim of ColBERT (Khattab & Zaharia 2020, arXiv 2004.12832) and, with ``mean=True``, of FILIP (Yao and others 2022,
arXiv 2111.07783). Documents of about the same length share one matrix product; shorter ones are filled up with their
own last token, which no maximum notices, so nothing is masked and nothing is computed for padding. Scores of tokens
stay in blocks that fit a cache; no ``[Q, N, L]`` array is ever in memory.

    >>> maxsim(queries, tokens, offsets)                  # [Q, L, D], [T, D], [N + 1] -> [Q, N]
    >>> topk_maxsim(queries, tokens, offsets, k=10)       # scores and rows [Q, 10]; memory does not grow with N
    >>> maxsim_of(queries, tokens, offsets, candidates)   # exact scores of some documents a query, [Q, C]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array

from chiasm.errors import BadInput
from chiasm.kernels.topk import take_best

# Scores of tokens a block: 2**20 float32 = 4 MB. Measured on 16 x 32 query tokens: 2**18 to 2**20 alike, 2**22 slower.
_BLOCK = 1 << 20
# Query tokens that go through the documents together; more of them would make the blocks of documents too small.
_QUERY_TOKENS = 2048
# Documents in one product may differ in length by this share.
_SLACK = 0.05
# Scores of documents that `topk_maxsim` holds at once.
_TOPK_SCORES = 1 << 20
# Numbers of gathered candidate tokens that `maxsim_of` holds at once: 2**22 float32 = 16 MB.
_GATHERED = 1 << 22


def maxsim(
    queries: Any,
    documents: Any,
    offsets: Any,
    *,
    mask: Any = None,
    query_offsets: Any = None,
    mean: bool = False,
    block: int = _BLOCK,
) -> Any:
    """Late-interaction scores of every query with every document.

    Args:
        queries: ``[Q, L, D]``, numpy or torch (any array of the array API); or flat ``[S, D]`` with ``query_offsets``.
        documents: ``[T, D]`` of the same kind, the tokens of all documents one after the other; may be memory-mapped.
            Half precision is computed in float32.
        offsets: int ``[N + 1]``, where each document's tokens begin; the last is T.
        mask: bool ``[Q, L]``, True where ``queries`` holds a token. Default: everywhere.
        query_offsets: int ``[Q + 1]`` for flat queries.
        mean: divide by the number of the query's tokens (FILIP) instead of summing (ColBERT).
        block: scores of tokens that are held at once.

    Returns:
        ``[Q, N]`` of the kind and device of ``documents``. A document without tokens scores -inf; a query without tokens
        scores 0 with all others.

    Raises:
        BadInput: shapes or offsets that do not fit together.
    """
    xp = array_namespace(queries, documents)
    host = _offsets(offsets, documents, "offsets")
    asked = _padded(xp, queries, documents, mask, query_offsets)
    if block < 1:
        raise BadInput(f"block {block} is not positive", where="maxsim")
    return _scores(xp, asked, documents, host, mean, block)


def topk_maxsim(
    queries: Any,
    documents: Any,
    offsets: Any,
    k: int,
    *,
    mask: Any = None,
    query_offsets: Any = None,
    mean: bool = False,
    block: int = _BLOCK,
) -> tuple[Any, Any]:
    """The k best documents of each query; documents stream by, so memory is O(Q k + block).

    Args:
        queries, documents, offsets, mask, query_offsets, mean, block: as in `maxsim`.
        k: results a query; at most N are returned.

    Returns:
        Scores ``[Q, min(k, N)]`` in falling order and int64 rows of the same shape. Ties go to the lower row; documents
        without tokens are never returned, and places that stay empty hold row -1 and score -inf.

    Raises:
        BadInput: shapes or offsets that do not fit together, or ``k < 1``.
    """
    xp = array_namespace(queries, documents)
    host = _offsets(offsets, documents, "offsets")
    asked = _padded(xp, queries, documents, mask, query_offsets)
    if k < 1:
        raise BadInput(f"k must be at least 1, got {k}", where="topk_maxsim")
    if block < 1:
        raise BadInput(f"block {block} is not positive", where="topk_maxsim")
    n_queries, n_documents = asked.tokens.shape[0], len(host) - 1
    k = min(k, n_documents)
    scores = np.full((n_queries, k), -np.inf, dtype=np.float32)
    rows = np.full((n_queries, k), -1, dtype=np.int64)
    step = max(1, _TOPK_SCORES // max(1, n_queries))
    for begin in range(0, n_documents if k and n_queries else 0, step):
        part = host[begin : begin + step + 1]
        values = _scores(xp, asked, documents[int(part[0]) : int(part[-1])], part - part[0], mean, block)
        take_best(xp, values, begin, scores, rows)
    if is_numpy_array(documents):
        return scores, rows
    to = {"device": device(documents)}
    return xp.asarray(scores, **to), xp.asarray(rows, **to)


def maxsim_of(
    queries: Any,
    documents: Any,
    offsets: Any,
    rows: Any,
    *,
    mask: Any = None,
    query_offsets: Any = None,
    mean: bool = False,
    reverse: bool = False,
    chunk: int | None = None,
) -> Any:
    """Late-interaction scores of some documents a query: the exact stage behind a fast first one.

    Args:
        queries, documents, offsets, mask, query_offsets, mean: as in `maxsim`.
        rows: int ``[Q, C]``, the documents to score for each query; -1 scores -inf.
        reverse: sum (or mean) over the document's tokens of the maximum over the query's, instead of the other way.
        chunk: queries a step; by default so many that the gathered tokens have 2**22 numbers.

    Returns:
        ``[Q, C]`` of the kind and device of ``documents``. A document without tokens scores -inf; a query without tokens
        scores 0 with all others, or -inf where the maximum is over its tokens (``reverse``).

    Raises:
        BadInput: shapes or offsets that do not fit together, or rows outside the documents.
    """
    xp = array_namespace(queries, documents)
    host = _offsets(offsets, documents, "offsets")
    asked = _padded(xp, queries, documents, mask, query_offsets)
    wanted = _host(rows)
    n, (length, dim) = len(host) - 1, asked.tokens.shape[1:]
    if wanted.ndim != 2 or len(wanted) != asked.tokens.shape[0]:
        raise BadInput(f"rows {wanted.shape} for {asked.tokens.shape[0]} queries", where="maxsim_of")
    if wanted.size and (wanted.min() < -1 or wanted.max() >= n):
        raise BadInput(f"rows point outside the {n} documents", where="maxsim_of")
    if not wanted.size or not host[-1]:
        return _like(xp, np.full(wanted.shape, -np.inf, np.float32), documents)
    lengths = np.append(np.diff(host), 0)[wanted]
    width = int(lengths.max(initial=1)) or 1
    step = chunk or max(1, _GATHERED // max(1, wanted.shape[1] * width * max(dim, length)))
    out = []
    for begin in range(0, len(wanted), step):
        part = slice(begin, begin + step)
        inside = np.arange(width)[None, None, :] < lengths[part, :, None]
        place = np.where(inside, np.append(host[:-1], 0)[wanted[part]][:, :, None] + np.arange(width), 0)
        real = _like(xp, inside, documents)
        tokens = xp.take(documents, _like(xp, place.ravel(), documents), axis=0)
        tokens = xp.reshape(xp.astype(tokens, asked.tokens.dtype, copy=False), (place.shape[0], -1, dim))
        values = xp.matmul(asked.tokens[part, :, :], xp.permute_dims(tokens, (0, 2, 1)))
        values = xp.reshape(values, (place.shape[0], length, *place.shape[1:]))
        out.append(_reduced(xp, values, asked.real[part, :], real, mean, reverse))
    return xp.concat(out)


@dataclass(frozen=True, slots=True)
class _Queries:
    """Tokens ``[Q, L, D]`` in floating point, which of them are real, and how many each query has (``[Q]``, at least 1)."""

    tokens: Any
    real: Any
    all_real: bool
    counts: Any


def _scores(xp: Any, asked: _Queries, documents: Any, offsets: np.ndarray, mean: bool, block: int) -> Any:
    """`maxsim` with everything checked."""
    n_queries, length, _ = asked.tokens.shape
    step = max(1, _QUERY_TOKENS // max(1, length))
    parts = []
    for begin in range(0, n_queries, step):
        some = slice(begin, begin + step)
        real = None if asked.all_real else asked.real[some, :]
        scores = _query_block(xp, asked.tokens[some, :, :], real, documents, offsets, block)
        parts.append(scores / asked.counts[some, None] if mean else scores)
    if not parts:
        return _like(xp, np.zeros((0, len(offsets) - 1), np.float32), documents)
    return parts[0] if len(parts) == 1 else xp.concat(parts)


def _query_block(xp: Any, tokens: Any, real: Any, documents: Any, offsets: np.ndarray, block: int) -> Any:
    """Sums ``[q, N]`` of some queries ``[q, L, D]``."""
    n_queries, length, dim = tokens.shape
    flat = xp.reshape(tokens, (n_queries * length, dim))
    across = flat.T if is_numpy_array(flat) else xp.permute_dims(flat, (1, 0))
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    empty = int(np.searchsorted(lengths[order], 1))
    parts = [_like(xp, np.full((empty, n_queries), -np.inf, np.float32), documents)] if empty else []
    for chosen, width in _alike(lengths, order[empty:], n_queries * length, block):
        best = _best(xp, documents, offsets[chosen], lengths[chosen], width, across, block)
        best = xp.reshape(best, (len(chosen), n_queries, length))
        if real is not None:
            best = xp.where(real[None, :, :], best, xp.zeros_like(best))
        parts.append(xp.sum(best, axis=2))
    if not parts:
        return _like(xp, np.zeros((n_queries, 0), np.float32), documents)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    scores = xp.take(xp.concat([xp.astype(p, tokens.dtype) for p in parts]), _like(xp, back, documents), axis=0)
    return scores.T if is_numpy_array(scores) else xp.permute_dims(scores, (1, 0))


def _alike(lengths: np.ndarray, order: np.ndarray, columns: int, block: int) -> Iterator[tuple[np.ndarray, int]]:
    """Runs of documents of about the same length, in rising length, and the length of their longest."""
    rising = lengths[order]
    at = 0
    while at < len(order):
        alike = int(np.searchsorted(rising, rising[at] * (1 + _SLACK), side="right"))
        size = max(1, block // (columns * int(rising[alike - 1])))
        end = min(alike, at + size)
        yield order[at:end], int(rising[end - 1])
        at = end


def _best(xp: Any, documents: Any, starts: np.ndarray, lengths: np.ndarray, width: int, across: Any, block: int) -> Any:
    """For each document and query token the best score ``[n * S]``; tokens come first, so maxima run along memory."""
    best = None
    step = max(1, block // max(1, len(starts) * across.shape[1]))
    for begin in range(0, width, step):
        steps = np.arange(begin, min(width, begin + step))
        # Past its end a document repeats its last token.
        place = starts[None, :] + np.minimum(steps[:, None], lengths[None, :] - 1)
        tokens = xp.take(documents, _like(xp, place.ravel(), documents), axis=0)
        tokens = xp.astype(tokens, across.dtype, copy=False)
        found = xp.max(xp.reshape(tokens @ across, (len(steps), -1)), axis=0)
        best = found if best is None else xp.maximum(best, found)
    return best


def _reduced(xp: Any, values: Any, asked: Any, real: Any, mean: bool, reverse: bool) -> Any:
    """Scores ``[q, C]`` of token scores ``[q, L, C, W]``; ``asked`` ``[q, L]`` and ``real`` ``[q, C, W]`` are the masks."""
    low = xp.asarray(-float("inf"), dtype=values.dtype, device=device(values))
    if reverse:
        best = xp.max(xp.where(asked[:, :, None, None], values, low), axis=1)
        counted = real
    else:
        best = xp.permute_dims(xp.max(xp.where(real[:, None, :, :], values, low), axis=3), (0, 2, 1))
        counted = xp.broadcast_to(asked[:, None, :], best.shape)
    total = xp.sum(xp.where(counted, best, xp.zeros_like(best)), axis=2)
    if mean:
        counts = xp.sum(xp.astype(counted, values.dtype), axis=2)
        total = total / xp.where(counts < 1, xp.ones_like(counts), counts)
    nothing = ~xp.any(real, axis=2)
    return xp.where(nothing, low, total)


def _padded(xp: Any, queries: Any, documents: Any, mask: Any, query_offsets: Any) -> _Queries:
    """Queries in one shape: ``[Q, L, D]`` and the mask."""
    if query_offsets is not None:
        starts = _offsets(query_offsets, queries, "query_offsets")
        lengths = np.diff(starts)
        width = int(lengths.max(initial=0))
        inside = np.arange(width)[None, :] < lengths[:, None]
        place = np.where(inside, starts[:-1, None] + np.arange(width), 0)
        if queries.shape[0]:
            tokens = xp.take(queries, _like(xp, place.ravel(), queries), axis=0)
        else:
            tokens = queries
        queries, mask = xp.reshape(tokens, (*inside.shape, queries.shape[1])), inside
    if queries.ndim != 3 or queries.shape[2] != documents.shape[1]:
        raise BadInput(
            f"queries {tuple(queries.shape)} and documents {tuple(documents.shape)} must be [Q, L, D] and [T, D]",
            where="maxsim",
        )
    inside = np.ones(tuple(queries.shape[:2]), dtype=bool) if mask is None else _host(mask).astype(bool)
    if inside.shape != tuple(queries.shape[:2]):
        raise BadInput(f"mask {inside.shape} for queries {tuple(queries.shape)}", where="maxsim")
    # float64 stays; everything else is wide enough to tell close scores apart in float32.
    kind = xp.float64 if documents.dtype == xp.float64 else xp.float32
    tokens = xp.astype(queries, kind, copy=False)
    if not inside.shape[1]:
        inside = np.zeros((len(inside), 1), dtype=bool)
        tokens = _like(xp, np.zeros((len(inside), 1, queries.shape[2]), np.float32), documents)
        tokens = xp.astype(tokens, kind, copy=False)
    elif not inside.all():
        # What stands in the padding may be anything, NaN too.
        tokens = xp.where(_like(xp, inside, documents)[:, :, None], tokens, xp.zeros_like(tokens))
    counts = xp.astype(_like(xp, np.maximum(inside.sum(axis=1), 1), documents), kind)
    return _Queries(tokens, _like(xp, inside, documents), bool(inside.all()), counts)


def _offsets(offsets: Any, flat: Any, name: str) -> np.ndarray:
    found = _host(offsets)
    if flat.ndim != 2:
        raise BadInput(f"flat tokens must be [T, D], got {tuple(flat.shape)}", where="maxsim")
    if found.ndim != 1 or not len(found) or found[0] != 0 or found[-1] != flat.shape[0] or (np.diff(found) < 0).any():
        raise BadInput(
            f"they must rise from 0 to the {flat.shape[0]} tokens", where=name, fix="Give N + 1 of them for N items"
        )
    return found.astype(np.int64)


def _host(array: Any) -> np.ndarray:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def _like(xp: Any, array: np.ndarray, other: Any) -> Any:
    return array if is_numpy_array(other) else xp.asarray(array, device=device(other))

"""Hubness: a few items that stand in almost every result list.

Radovanović, Nanopoulos & Ivanović 2010, *Hubs in Space* (N_k and its skewness); Feldbauer et al. 2018, *Fast
Approximate Hubness Reduction for Large High-Dimensional Data* (Robin Hood index, anti-hubs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from chiasm.errors import BadInput
from chiasm.kernels.topk import topk_inner
from chiasm.measure.vectors import as_rows, like, same_dim, to_numpy


@dataclass(frozen=True, slots=True)
class Hubness:
    """Hubness figures of one gallery.

    Args:
        counts: N_k, int64 ``[M]``: in how many of the result lists each item stands.
        k: length of the lists.
        skewness: of N_k over all items, those never retrieved included.
        robin_hood: share of result places that would have to move for all items to have equally many, 0 to 1.
        hub_share: share of result places that the top 1 % of the items take (at least one item).
        anti_hub_share: share of items that are in no list.
    """

    counts: Any
    k: int
    skewness: float
    robin_hood: float
    hub_share: float
    anti_hub_share: float

    def to_json(self) -> dict[str, Any]:
        names = ("k", "skewness", "robin_hood", "hub_share", "anti_hub_share")
        return {name: getattr(self, name) for name in names} | {"largest": int(to_numpy(self.counts).max(initial=0))}


def hubness(
    queries: Any,
    gallery: Any = None,
    k: int = 10,
    *,
    bias: Any = None,
    normalize: bool = True,
    chunk: int | None = None,
) -> Hubness:
    """Hubness of a gallery under a set of queries, streamed.

    Args:
        queries: ``[N, D]``.
        gallery: ``[M, D]``; None measures the hubness of ``queries`` among themselves, without the item itself.
        k: length of the lists; default 10, as in the hubness literature.
        bias: optional ``[M]``, added to every item's score.
        normalize: compare by cosine; False compares by inner product.
        chunk: gallery rows at a time, see `topk_inner`.

    Raises:
        BadInput: no query, fewer than two items, other dimensions, NaN.
    """
    rows = nearest(queries, gallery, k, bias=bias, normalize=normalize, chunk=chunk)[1]
    return hubness_of_lists(rows, (queries if gallery is None else gallery).shape[0])


def hubness_of_lists(rows: Any, n_items: int) -> Hubness:
    """Hubness of result lists that exist already.

    Args:
        rows: int ``[N, k]``, item numbers; -1 for an empty place.
        n_items: M, the size of the gallery (items in no list count too).

    Raises:
        BadInput: no list, or fewer than two items, or an item outside the gallery.
    """
    lists = to_numpy(rows)
    if lists.ndim != 2 or not lists.size:
        raise BadInput(
            f"result lists of shape {lists.shape}", where="hubness", fix="Give at least one query and one item"
        )
    if lists.max() >= n_items:
        raise BadInput(f"item {lists.max()} is listed, the gallery has {n_items}", where="hubness")
    counts = np.bincount(lists[lists >= 0], minlength=n_items)
    return Hubness(
        like(counts, rows),
        lists.shape[1],
        skewness(counts),
        robin_hood(counts),
        hub_share(counts),
        anti_hub_share(counts),
    )


def skewness(counts: Any) -> float:
    """Third standardized moment (population form) of N_k ``[M]``; 0 if all are equal."""
    values = _counts(counts)
    deviation = values - values.mean()
    variance = float((deviation**2).mean())
    return float((deviation**3).mean()) / variance**1.5 if variance > 0 else 0.0


def robin_hood(counts: Any) -> float:
    """sum |N_k - mean| / (2 sum N_k): the Hoover index; 0 for equal counts, 1 - 1/M if one item takes all places."""
    values = _counts(counts)
    total = float(values.sum())
    return float(np.abs(values - values.mean()).sum()) / (2 * total) if total else 0.0


def hub_share(counts: Any, top: float = 0.01) -> float:
    """Share of result places taken by the most frequent items.

    Args:
        counts: N_k ``[M]``.
        top: their share of the gallery, default 1 %; rounded up to at least one item.
    """
    values = np.sort(_counts(counts))[::-1]
    if not 0 < top <= 1:
        raise BadInput(f"top {top} is not a share", where="hub_share")
    total = float(values.sum())
    return float(values[: int(np.ceil(top * len(values)))].sum()) / total if total else 0.0


def anti_hub_share(counts: Any) -> float:
    """Share of items that are in no result list."""
    return float((_counts(counts) == 0).mean())


def nearest(
    queries: Any,
    gallery: Any = None,
    k: int = 10,
    *,
    bias: Any = None,
    normalize: bool = True,
    chunk: int | None = None,
) -> tuple[Any, Any]:
    """Exact nearest items of rows, streamed; without ``gallery`` the nearest *other* rows.

    Args:
        queries: ``[N, D]``.
        gallery: ``[M, D]`` or None.
        k: items a row; at most M (M - 1 among themselves).
        bias, normalize, chunk: as in `hubness`.

    Returns:
        Scores ``[N, k]`` in falling order and rows ``[N, k]``.

    Raises:
        BadInput: no query, no (other) item, other dimensions, NaN, k < 1.
    """
    among = gallery is None
    queries = as_rows(queries, "queries", normalize=normalize)
    gallery = queries if among else as_rows(gallery, "gallery", normalize=normalize)
    same_dim(queries, gallery, "queries and gallery")
    if not queries.shape[0] or gallery.shape[0] <= among:
        raise BadInput(
            f"{queries.shape[0]} queries and {gallery.shape[0]} items", where="nearest", fix="Give more rows"
        )
    k = min(k, gallery.shape[0] - among)
    scores, rows = topk_inner(queries, gallery, k + among, bias=bias, chunk=chunk)
    if not among:
        return scores, rows
    # Drop the row itself; where duplicates pushed it out of the list, the last one (its score is equal).
    xp = array_namespace(scores)
    own = rows == xp.reshape(xp.arange(rows.shape[0], dtype=rows.dtype, device=device(rows)), (-1, 1))
    last = xp.logical_not(xp.any(own, axis=1, keepdims=True))
    place = xp.reshape(xp.arange(k + 1, device=device(rows)), (1, -1))
    keep = xp.logical_not(own | (last & (place == k)))
    shape = (rows.shape[0], k)
    return xp.reshape(scores[keep], shape), xp.reshape(rows[keep], shape)


def _counts(counts: Any) -> np.ndarray:
    values = to_numpy(counts).astype(np.float64)
    if values.ndim != 1 or not len(values):
        raise BadInput(f"counts must be [M] with M >= 1, got shape {values.shape}", where="hubness")
    return values

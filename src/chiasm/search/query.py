"""From a query to hits: encode, find candidates, fuse, collapse, judge, fetch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.embeddings import Embeddings, unit
from chiasm.errors import BadInput, StoreError, UnsupportedModality
from chiasm.items import MODALITIES, Item
from chiasm.kernels.topk import topk_inner
from chiasm.search import ann, grown, lexical
from chiasm.search.exact import Snapshot
from chiasm.search.filters import allowed_rows
from chiasm.search.header import SpaceRecord, check_dim, check_space
from chiasm.search.results import Hit, SearchResult
from chiasm.search.schema import HIT_COLUMNS

if TYPE_CHECKING:
    from chiasm.search.relevance import Relevance
    from chiasm.search.store import Store
    from chiasm.space import Space

# Candidates that the calibration sees (its interface asks for the best 200 at most).
JUDGED = 200
# Rows of each modality that are judged at least, see `_every_modality`.
_PER_MODALITY = 50
# Below this share of allowed rows their vectors are gathered first, instead of scoring all and hiding the rest.
_GATHER_SHARE = 0.1
_GATHER_ROWS = 50_000
_MAX_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Asked:
    """An encoded query.

    Args:
        label: how the result names it.
        vector: float32 ``[D]``; None if the store is empty, where nothing needs to be encoded.
        words: the query in words, None for others.
        exclude: rows that may not be returned, by column and values.
    """

    label: str
    vector: np.ndarray | None
    words: str | None = None
    exclude: dict[str, list[str]] = field(default_factory=dict)


def check_numbers(k: Any, rate: float) -> None:
    """Raises `BadInput` for a k or rate that means nothing."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise BadInput(f"k must be a whole number of at least 1, got {k!r}", where="search")
    if not 0 < rate < 1:
        raise BadInput(f"rate must lie between 0 and 1, got {rate!r}", where="search")


def encode_query(store: Store, query: Any) -> Asked:
    """The query's vector.

    Raises:
        BadInput: an empty query, or a vector of another length or with values that are not finite.
        SpaceMismatch: `Embeddings` of another space.
        UnsupportedModality: the space has no encoder for it.
    """
    if isinstance(query, str):
        if not query.strip():
            raise BadInput("the query is empty", where="search", fix="Give some words, a file or a vector")
        if len(query) > _MAX_CHARACTERS:
            raise BadInput(f"the query has {len(query)} characters, {_MAX_CHARACTERS} at most", where="search")
        if not len(store):
            return Asked(query, None, query)
        return Asked(query, _encode(store, [Item.of(query)]), query)
    if isinstance(query, Path):
        return Asked(str(query), _encode_file(store, query))
    if isinstance(query, Embeddings):
        if len(query) != 1:
            raise BadInput(f"{len(query)} vectors given, a query has one", where="search")
        own = store.header.space
        if own is not None and query.space:
            check_space(own, SpaceRecord(query.space, query.space, query.dim), str(store.path))
        return Asked("<vector>", _vector(store, query.vectors[0]))
    if isinstance(query, (list, tuple)) or (hasattr(query, "__array__") and not _is_picture(query)):
        return Asked("<vector>", _vector(store, query))
    item = Item.of(query)
    if item.modality == "text":
        return encode_query(store, item.content)
    return Asked(item.uri or f"<{item.modality}>", _encode(store, [item]) if len(store) else None)


def similar_query(store: Store, id_or_path: str | Path) -> Asked:
    """The query that an item or file of the store makes; its own rows are excluded."""
    from chiasm.encode.files import path_to_uri

    snapshot = store.snapshot()
    name = str(id_or_path)
    if not name.strip():
        raise BadInput("an empty id or path", where="similar")
    path = Path(os.path.expanduser(id_or_path))
    if snapshot is not None:
        if isinstance(id_or_path, str) and len(rows := snapshot.rows_where("id", [name])):
            found = snapshot.fetch(rows[:1], ("uri", "modality"))[0]
            # A clip's other frames are the same thing; a document's other pages are not.
            whole = found["modality"] in ("video", "audio") and found["uri"]
            return Asked(
                name, snapshot.vectors[rows[0]].copy(), exclude={"uri": [found["uri"]]} if whole else {"id": [name]}
            )
        for uri in dict.fromkeys((name, path_to_uri(path))):
            rows = snapshot.rows_where("uri", [uri])
            if len(rows):
                return Asked(name, _mean(snapshot.vectors[rows]), exclude={"uri": [uri]})
    if not path.exists():
        raise BadInput(
            f"no item and no file is called {name!r}", where="similar", fix="Give an id or path of the store, or a file"
        )
    return Asked(name, _encode_file(store, path))


def _is_picture(thing: Any) -> bool:
    return type(thing).__module__.startswith("PIL.") or getattr(thing, "ndim", 0) == 3


def _vector(store: Store, given: Any) -> np.ndarray:
    try:
        vector = np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadInput(f"cannot be read as a vector ({error})", where="search") from error
    if vector.ndim == 2 and len(vector) == 1:
        vector = vector[0]
    if vector.ndim != 1 or not len(vector):
        raise BadInput(f"a query vector must be [D], got shape {vector.shape}", where="search")
    if not np.isfinite(vector).all():
        raise BadInput("the query vector holds NaN or infinite values", where="search")
    if store.header.space is not None:
        check_dim(store.header.space.dim, len(vector), "search")
    return vector


def _encode(store: Store, items: list[Item]) -> np.ndarray:
    space = store.space
    for item in items:
        if item.modality not in space.modalities:
            raise UnsupportedModality(
                f"the space {space.name} does not encode {item.modality}",
                where="search",
                fix=f"It encodes {', '.join(space.modalities)}",
            )
    return _of_items(store, space, items)


def _encode_file(store: Store, path: Path) -> np.ndarray:
    """A file's vector: of its only item, or the mean direction of its items that the space can encode."""
    from chiasm.encode import read

    space = store.space
    items = [
        item
        for item in read(Path(os.path.expanduser(path)), transcribe=space.speech_as_text)
        if item.modality in space.modalities
    ]
    if not items:
        raise UnsupportedModality("holds nothing that the space can encode", where=str(path))
    return _of_items(store, space, items)


def _of_items(store: Store, space: Space, items: list[Item]) -> np.ndarray:
    if any(item.modality == "audio" and not item.text for item in items):
        grown.warn(store.header, space, store._latest(), str(store.path))
    return _mean(space.encode(items, role="query").vectors)


def _mean(vectors: np.ndarray) -> np.ndarray:
    if len(vectors) == 1:
        return np.array(vectors[0], np.float32)
    return unit(unit(vectors).mean(axis=0, keepdims=True))[0]


def answer(store: Store, ask: Callable[[], Asked], k: int, *, hybrid: bool, **options: Any) -> SearchResult:
    """Makes the query and searches the newest version; once more if an upgrade took the store elsewhere in between."""
    start = time.perf_counter()
    while True:
        store.refresh()
        space = store.header.space
        asked = ask()
        if hybrid and asked.words is None:
            raise BadInput("hybrid search needs a query in words", where="search")
        if hybrid:
            store.text_index()
        now, snapshot = store.view()
        relevance = None if asked.words is None or asked.vector is None else store.relevance()
        if now == space == store.header.space:
            return run(store, snapshot, relevance, asked, k, start, hybrid=hybrid, **options)


def run(
    store: Store,
    snapshot: Snapshot | None,
    relevance: Relevance | None,
    asked: Asked,
    k: int,
    start: float,
    *,
    filters: dict[str, Any],
    hybrid: bool,
    exact: bool | None,
    rate: float,
    unique: bool,
) -> SearchResult:
    """Searches one version of the store; arguments as in `Store.search`."""
    allowed = None if snapshot is None else _allowed(snapshot, asked, filters)
    left = 0 if snapshot is None else snapshot.count if allowed is None else int(allowed.sum())
    if snapshot is None or asked.vector is None or not left:
        return SearchResult(asked.label, [], nothing_here=True, seconds=time.perf_counter() - start)

    depth = max(k, JUDGED)
    by_text = lexical.text_ranks(snapshot, asked.words, allowed) if hybrid and asked.words else np.empty(0, np.int64)
    while True:
        rows, scores = find(snapshot, asked.vector, min(depth, left), allowed, exact)
        if relevance is not None:
            rows, scores = _every_modality(snapshot, asked.vector, rows, scores, allowed, max(k, _PER_MODALITY))
        judgement = _judge(store, relevance, snapshot, asked.vector, rows, scores, by_text, filters, rate)
        ranked = _across_modalities(snapshot, rows, judgement) if judgement is not None else rows
        ranked = lexical.fuse(ranked, by_text) if hybrid else ranked
        shown = _collapse(snapshot, ranked) if unique else ranked
        if len(shown) >= k or depth >= left:
            break
        depth *= 4  # many frames of few clips: look deeper
    hits = _hits(snapshot, asked.vector, shown[:k], judgement, by_text)
    return SearchResult(
        asked.label,
        hits,
        nothing_here=False if judgement is None else bool(judgement.nothing_here),
        p_value=None if judgement is None else min(1.0, float(judgement.p_value)),
        seconds=time.perf_counter() - start,
        calibrated=judgement is not None,
    )


def _allowed(snapshot: Snapshot, asked: Asked, filters: dict[str, Any]) -> np.ndarray | None:
    allowed = allowed_rows(snapshot, **filters)
    for column, values in asked.exclude.items():
        allowed = snapshot.alive.copy() if allowed is None else allowed
        allowed[snapshot.rows_where(column, values)] = False
    return allowed


def find(
    snapshot: Snapshot, query: np.ndarray, k: int, allowed: np.ndarray | None = None, exact: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of a snapshot: row numbers and scores (with bias), best first.

    Args:
        snapshot: what to search.
        query: float32 ``[D]``.
        k: at most as many rows as are allowed.
        allowed: bool ``[R]`` or None.
        exact: see `Store.search`; a filtered search always scans the allowed rows.
    """
    subset: np.ndarray | None = None
    bias = snapshot.bias
    if allowed is not None:
        count = int(allowed.sum())
        if count <= min(_GATHER_ROWS, _GATHER_SHARE * len(allowed)):
            subset = np.flatnonzero(allowed)
        else:
            bias = np.where(allowed, bias, np.float32(-np.inf))
    elif (exact is False or (exact is None and snapshot.count > ann.EXACT_ROWS)) and ann.has_index(snapshot.table):
        subset = ann.candidates(snapshot, query, k)
    if subset is None:
        scores, rows = topk_inner(query[None, :], snapshot.vectors, k, bias=bias)
    else:
        scores, rows = topk_inner(query[None, :], snapshot.vectors[subset], k, bias=bias[subset])
        rows = np.where(rows >= 0, subset[rows], -1)
    keep = rows[0] >= 0
    return rows[0][keep], scores[0][keep]


def _collapse(snapshot: Snapshot, rows: np.ndarray) -> np.ndarray:
    """Keeps of each clip or recording only the first row."""
    timed = np.isin(snapshot.modality[rows], [MODALITIES.index("video"), MODALITIES.index("audio")])
    if not timed.any():
        return rows
    keep = np.ones(len(rows), bool)
    places = np.flatnonzero(timed)
    seen: set[tuple[int, str]] = set()
    for place, record in zip(places, snapshot.fetch(rows[places], ("uri",)), strict=True):
        key = (int(snapshot.modality[rows[place]]), record["uri"])
        if record["uri"] and key in seen:
            keep[place] = False
        seen.add(key)
    return rows[keep]


@dataclass(frozen=True, slots=True)
class _Judged:
    relevance: dict[int, float]  # by row
    p_value: float
    nothing_here: bool


def _judge(
    store: Store,
    relevance: Relevance | None,
    snapshot: Snapshot,
    query: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    by_text: np.ndarray,
    filters: dict[str, Any],
    rate: float,
) -> _Judged | None:
    """Relevance by row, and the verdict on the query; None if it cannot be calibrated."""
    if relevance is None or not len(rows):
        return None
    # The calibration knows plain scores, without the bias of a correction.
    plain = scores - snapshot.bias[rows]
    only_text = np.setdiff1d(by_text, rows)
    rows = np.concatenate([rows, only_text])
    plain = np.concatenate([plain, snapshot.vectors[only_text] @ query])
    only = filters.get("modality")
    with store.calibrating:
        verdict = relevance.judge(
            snapshot, query, rows, plain, modality=only if isinstance(only, str) else None, rate=rate
        )
    by_row = dict(zip(rows.tolist(), np.asarray(verdict.relevance).tolist(), strict=True))
    return _Judged(by_row, float(verdict.p_value), bool(verdict.nothing_here))


def _every_modality(
    snapshot: Snapshot, query: np.ndarray, rows: np.ndarray, scores: np.ndarray, allowed: np.ndarray | None, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Adds each modality's own best rows where the best over all hold less than k of it.

    Words score higher with texts than with pictures whatever they say, so that in a mixed store the best over all can
    be texts alone, and a picture that answers the query would never be judged.
    """
    live = snapshot.alive if allowed is None else allowed
    for code in np.unique(snapshot.modality[live]) if len(snapshot.modalities) > 1 else ():
        own = live & (snapshot.modality == code)
        there = int((snapshot.modality[rows] == code).sum())
        wanted = min(k, int(own.sum()))
        if there < wanted:
            more, more_scores = find(snapshot, query, wanted, own)
            fresh = ~np.isin(more, rows)
            rows, scores = np.concatenate([rows, more[fresh]]), np.concatenate([scores, more_scores[fresh]])
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def _across_modalities(snapshot: Snapshot, rows: np.ndarray, judgement: _Judged) -> np.ndarray:
    """Rows ranked by score within a modality, and by relevance between modalities, whose scores cannot be compared."""
    codes = snapshot.modality[rows]
    present = np.unique(codes)
    if len(present) < 2:
        return rows
    relevance = np.array([judgement.relevance[int(row)] for row in rows])
    for code in present:
        own = np.flatnonzero(codes == code)
        # Never above a better-scored row of its modality, so that the merge keeps each modality's order.
        relevance[own] = np.minimum.accumulate(relevance[own])
    return rows[np.argsort(-relevance, kind="stable")]


def _hits(
    snapshot: Snapshot,
    query: np.ndarray,
    shown: np.ndarray,
    judgement: _Judged | None,
    by_text: np.ndarray,
) -> list[Hit]:
    scores = snapshot.vectors[shown] @ query + snapshot.bias[shown]
    ranks = {int(row): rank for rank, row in enumerate(by_text, start=1)}
    try:
        records = snapshot.fetch(shown, HIT_COLUMNS)
    except Exception as error:
        raise StoreError(f"the found rows cannot be read ({error})", where="search", fix="Search again") from error
    return [
        Hit(
            id=record["id"],
            uri=record["uri"],
            part=record["part"],
            modality=record["modality"],
            score=float(score),
            relevance=None if judgement is None else judgement.relevance.get(int(row)),
            text=record["text"],
            meta=json.loads(record["meta"]),
            added_at=record["added_at"],
            rank_text=ranks.get(int(row)),
        )
        for row, score, record in zip(shown, scores, records, strict=True)
    ]

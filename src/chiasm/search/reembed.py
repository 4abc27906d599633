"""Re-embedding under an upgrade: what is done is noted in a table of its own, so that it can stop anywhere and be undone.

For each item the table ``upgrade`` gets one row, committed before the store's own table changes: the vector that was there
(null if the item came after the upgrade began), the vector of the new space, or why there is none. From it a killed run
goes on, the finished store is made, and every old vector is put back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from chiasm.errors import BadInput
from chiasm.items import Item, content_hash
from chiasm.learn.alignment.xbt.mapping import SpaceMap
from chiasm.search import hits
from chiasm.search.exact import Snapshot
from chiasm.search.header import UpgradeRecord
from chiasm.search.indexing import encode_good
from chiasm.search.mapped_space import MappedSpace
from chiasm.search.results import AddReport
from chiasm.search.upgrade_notes import alone, noted, notes, notes_schema, nullable, pages, stored, writing
from chiasm.search.writer import Writer
from chiasm.space import Space

if TYPE_CHECKING:
    from chiasm.search.store import Store

_COLUMNS = ("id", "uri", "part", "modality", "text", "sha256", "mtime_ns")
# A commit closes after this many items or seconds, whichever comes first: a crash costs at most this much work.
COMMIT_ITEMS = 1024
COMMIT_SECONDS = 5.0
# Every commit leaves a fragment, and many of them slow down every look at the table.
TIDY_COMMITS = 128


@dataclass
class Progress:
    """How far re-embedding has come.

    Args:
        items: items of the store.
        done: those with a vector of the new space.
        left: those that were not tried yet.
        failed: id -> why an item cannot be embedded again.
        encoded: items that went through the network in this run.
    """

    items: int = 0
    done: int = 0
    left: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    encoded: int = 0

    @property
    def complete(self) -> bool:
        return not self.left and not self.failed

    def to_json(self) -> dict[str, Any]:
        return {
            "items": self.items,
            "done": self.done,
            "left": self.left,
            "failed": [{"id": i, "reason": why} for i, why in self.failed.items()],
            "encoded": self.encoded,
        }


# ---- items and their originals


def originals(snapshot: Snapshot, rows: np.ndarray) -> list[dict[str, Any]]:
    """What is needed to encode these rows again."""
    return snapshot.fetch(rows, _COLUMNS)


def encode(
    space: Space, records: Sequence[dict[str, Any]], *, batch_size: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Vectors of items by id, and why the others have none. An original that has changed since is not taken."""
    from chiasm.encode.files import uri_to_path
    from chiasm.encode.pipeline import encode_files

    found: dict[str, np.ndarray] = {}
    failed: dict[str, str] = {}
    files: dict[Path, list[dict[str, Any]]] = {}
    words: list[tuple[Item, str]] = []
    for record in records:
        if record["mtime_ns"] and record["uri"]:
            files.setdefault(uri_to_path(record["uri"]), []).append(record)
        elif record["modality"] == "text" and content_hash(record["text"]) == record["sha256"]:
            words.append((Item.of(record["text"], id=record["id"]), record["sha256"]))
        else:
            failed[record["id"]] = "its original is not in the store"
    report = AddReport()
    kept, vectors = encode_good(space, words, batch_size, False, report)
    found.update((item.id, vector) for (item, _), vector in zip(kept, vectors, strict=True))
    failed.update((left_out.path, left_out.reason) for left_out in report.skipped)
    for result in encode_files(space, list(files), batch_size=batch_size):
        own = files[result.path]
        vectors = {item.id: vector for item, vector in zip(result.items, result.vectors, strict=True)}
        for record in own:
            if result.error is not None:
                failed[record["id"]] = result.error.what
            elif result.sha256 != record["sha256"]:
                failed[record["id"]] = "the file has changed; run chiasm index on it"
            elif record["id"] not in vectors:
                failed[record["id"]] = "the new space reads this file in other parts"
            else:
                found[record["id"]] = vectors[record["id"]]
    bad = [i for i, vector in found.items() if not np.isfinite(vector).all()]
    for i in bad:
        failed[i] = "the space gives NaN for it"
        del found[i]
    return found, failed


# ---- forward


def progress(store: Store) -> Progress:
    """How far it has come, without doing or writing anything."""
    return _plan(store)[0]


def _plan(store: Store) -> tuple[Progress, list[str]]:
    """Progress, and the ids that are left: most-shown first, then in the order in which they came."""
    snapshot = store.snapshot()
    if snapshot is None:
        return Progress(), []
    live = pa.array(np.flatnonzero(snapshot.alive))
    ids, shas = (snapshot.column(name).take(live).to_pylist() for name in ("id", "sha256"))
    keys = dict(zip(ids, shas, strict=True))
    done: set[str] = set()
    failed: dict[str, str] = {}
    for batch in noted(store):
        for i, sha, why in zip(*(batch.column(n).to_pylist() for n in ("id", "sha256", "reason")), strict=True):
            if keys.get(i) == sha:
                if why:
                    failed[i] = why
                else:
                    done.add(i)
    failed = {i: why for i, why in failed.items() if i not in done}
    left = [i for i in keys if i not in done and i not in failed]
    shown = hits.counts(store.path)
    left.sort(key=lambda i: -shown.get(i, 0))  # stable: rows rise in seq
    return Progress(len(keys), len(done), len(left), failed), left


def advance(
    store: Store,
    record: UpgradeRecord,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    tell: Callable[[Progress], object] | None = None,
) -> Progress:
    """Re-embeds what is left, most-shown items first; searching and indexing go on meanwhile.

    Args:
        store: a store whose upgrade is under way.
        record: its record.
        limit: at most so many items; None all, and those that failed before are tried again.
        batch_size: items that go through the network together.
        tell: called with the progress after every batch.

    Raises:
        StoreLocked: another process is doing it.
        BadInput: the upgrade was rolled back meanwhile.
    """
    space = _mapped(store)
    with alone(store):
        with writing(store, record, math.inf):
            table = notes(store, record)
            if limit is None:
                table.delete("reason != ''")
        _reconcile(store, record, space.map)
        state, left = _plan(store)
        left = left if limit is None else left[:limit]
        run = _Run(store, record, space.map)
        for begin in range(0, len(left), batch_size):
            part = left[begin : begin + batch_size]
            snapshot = store.snapshot()
            assert snapshot is not None
            records = originals(snapshot, snapshot.rows_where("id", part))
            found, failed = encode(space.inner, records, batch_size=batch_size)
            run.take(records, found, failed)
            state.encoded += len(found)
            state.failed |= failed
            state.left -= len(part)
            state.done += len(found)
            if tell is not None:
                tell(state)
        run.flush()
        with writing(store, record, math.inf) as writer:
            writer.tidy()
        return replace(progress(store), encoded=state.encoded)


def _mapped(store: Store) -> MappedSpace:
    """The store's space while an upgrade is under way, with the new space inside."""
    space = store.space
    if not isinstance(space, MappedSpace):
        store.use(None)
        space = store.space
    if not isinstance(space, MappedSpace):
        raise BadInput(
            "the store was opened with another space", where=str(store.path), fix="Open it without naming one"
        )
    return space


class _Run:
    """Collects re-embedded items until a commit is due."""

    def __init__(self, store: Store, record: UpgradeRecord, map: SpaceMap) -> None:
        self.store, self.record, self.map = store, record, map
        self.commits = 0
        self._clear()

    def _clear(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.found: dict[str, np.ndarray] = {}
        self.failed: dict[str, str] = {}
        self.since = time.monotonic()

    def take(self, records: Sequence[dict[str, Any]], found: dict[str, np.ndarray], failed: dict[str, str]) -> None:
        self.records += records
        self.found |= found
        self.failed |= failed
        if len(self.records) >= COMMIT_ITEMS or time.monotonic() - self.since >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Notes first, then the store: a crash between the two is made good by `_reconcile`."""
        if self.records:
            with writing(self.store, self.record, math.inf) as writer:
                self._commit(writer)
                self.commits += 1
                if self.commits % TIDY_COMMITS == 0:
                    writer.tidy()
                    notes(self.store, self.record).optimize()
        self._clear()

    def _commit(self, writer: Writer) -> None:
        there = stored(writer, [r["id"] for r in self.records])
        # What was deleted or replaced while it was encoded is left alone.
        kept = [r for r in self.records if r["id"] in there and there[r["id"]]["sha256"] == r["sha256"]]
        if not kept:
            return
        old, new = self.record.old.dim, self.record.new.dim
        good = [r["id"] in self.found for r in kept]
        before = [there[r["id"]] for r in kept]
        vectors = np.stack([self.found.get(r["id"], np.zeros(new, np.float32)) for r in kept])
        rows = pa.table(
            {
                "id": [r["id"] for r in kept],
                "sha256": [r["sha256"] for r in kept],
                "old": nullable(
                    np.stack([b["vector"] for b in before]), [b["seq"] <= self.record.since for b in before]
                ),
                "new": nullable(vectors, good),
                "reason": [self.failed.get(r["id"], "") for r in kept],
            },
            schema=notes_schema(old, new),
        )
        notes(self.store, self.record).add(rows)
        if any(good):
            z = applied(self.map, vectors[good], [r["modality"] for r, fine in zip(kept, good, strict=True) if fine])
            writer.revector(pa.array([r["id"] for r, fine in zip(kept, good, strict=True) if fine]), z)


def applied(map: SpaceMap, vectors: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    out = np.empty((len(vectors), map.old_dim), np.float32)
    modality = np.asarray(kinds)
    for kind in np.unique(modality):
        own = modality == kind
        out[own] = map(vectors[own], str(kind))
    return out


def _reconcile(store: Store, record: UpgradeRecord, map: SpaceMap) -> None:
    """Gives items that are noted but were not changed any more (a crash in between) their mapped vectors."""
    for ids, kinds, there, new in pages(store, record, "new"):
        z = applied(map, new, kinds)
        # A mapped vector that is there already is equal up to the order of summation.
        behind = np.flatnonzero(np.abs(z - there).max(axis=1) > 1e-4)
        if len(behind):
            with writing(store, record, math.inf) as writer:
                writer.revector(pa.array([ids[i] for i in behind]), z[behind])

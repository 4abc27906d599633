"""What an upgrade notes: for each re-embedded item the vector that was there and the one of the new space; see `reembed`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from lancedb.expr import col

from chiasm.errors import BadInput
from chiasm.search.exact import VectorFile
from chiasm.search.header import UpgradeRecord
from chiasm.search.lock import exclusive
from chiasm.search.schema import TABLE, vectors_of
from chiasm.search.writer import Writer

if TYPE_CHECKING:
    from chiasm.search.store import Store

NOTES = "upgrade"
FINISHED = "items-upgraded"
LOCK = "upgrade.lock"
# Noted items that are looked up at once: keeps one predicate's expression tree small.
PAGE = 1000
# Seconds to wait for another writer.
PATIENCE = 60.0


def notes_schema(old: int, new: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), False),
            pa.field("sha256", pa.string(), False),
            pa.field("old", pa.list_(pa.float32(), old), True),
            pa.field("new", pa.list_(pa.float32(), new), True),
            pa.field("reason", pa.string(), False),
        ]
    )


def nullable(vectors: np.ndarray, valid: Sequence[bool]) -> pa.Array:
    """Rows of an array ``[n, D]`` as an Arrow column, null where not valid."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array([not one for one in valid]))


def has_table(store: Store, name: str) -> bool:
    return any((store.path / f"{name}.lance" / "_versions").glob("*.manifest"))


def notes(store: Store, record: UpgradeRecord) -> Any:
    """The table of notes, made if it is not there; called with the writer lock held."""
    return store.database.create_table(NOTES, schema=notes_schema(record.old.dim, record.new.dim), exist_ok=True)


def noted(store: Store, columns: Sequence[str] = (), *, where: str | None = None) -> Iterator[pa.RecordBatch]:
    """The notes, `PAGE` at a time, so that memory stays flat."""
    if not has_table(store, NOTES):
        return
    search = store.database.open_table(NOTES).search().select(["id", "sha256", "reason", *columns])
    yield from (search if where is None else search.where(where)).to_batches(PAGE)


def clear(store: Store) -> None:
    """Removes what a former upgrade left: notes, and the table that is not in use with its memory-mapped vectors."""
    unused = other_table(store.header.table)
    for name in (NOTES, unused):
        if has_table(store, name):
            store.database.drop_table(name)
    # A new table of this name may number its rows like the former one.
    VectorFile(store.path, 0, writable=True, table=unused).clear()


def other_table(table: str) -> str:
    """The table that is not in use: a finished upgrade goes from one to the other."""
    return FINISHED if table == TABLE else TABLE


def stored(writer: Writer, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """id -> seq, sha256, modality and vector of those that are still there."""
    if not len(ids):
        return {}
    rows = writer.table.search().where(col("id").isin(list(ids))).select(["id", "seq", "sha256", "modality", "vector"])
    table = rows.to_arrow().combine_chunks()
    vectors = vectors_of(table)
    names = zip(*(table.column(n).to_pylist() for n in ("id", "seq", "sha256", "modality")), strict=True)
    return {
        i: {"seq": seq, "sha256": sha, "modality": kind, "vector": vectors[row]}
        for row, (i, seq, sha, kind) in enumerate(names)
    }


def pages(
    store: Store, record: UpgradeRecord, column: str
) -> Iterator[tuple[list[str], list[str], np.ndarray, np.ndarray]]:
    """Noted items that still are what they were: ids, modalities, their vectors in the store and those of a column."""
    for page in noted(store, (column,), where=f"{column} IS NOT NULL"):
        ids, shas = (page.column(n).to_pylist() for n in ("id", "sha256"))
        with writing(store, record, math.inf) as writer:
            there = stored(writer, ids)
        keep = [n for n, (i, sha) in enumerate(zip(ids, shas, strict=True)) if i in there and there[i]["sha256"] == sha]
        if keep:
            yield (
                [ids[n] for n in keep],
                [there[ids[n]]["modality"] for n in keep],
                np.stack([there[ids[n]]["vector"] for n in keep]),
                vectors_of(page, column)[keep],
            )


# ---- one at a time


@contextmanager
def alone(store: Store, wait: float = 0.0) -> Iterator[None]:
    """Held by the one process that carries an upgrade on."""
    with exclusive(store.path / LOCK, wait=wait, doing="is re-embedding its items"):
        yield


@contextmanager
def writing(store: Store, record: UpgradeRecord | None = None, wait: float = PATIENCE) -> Iterator[Writer]:
    """The writer, after waiting for whoever else writes.

    Raises:
        BadInput: the upgrade is no longer what ``record`` says.
        StoreLocked: another process goes on writing.
    """
    with store.writing(wait=wait) as writer:
        if record is not None and store.header.upgrade != record:
            now = "rolled back" if store.header.upgrade is None else store.header.upgrade.phase
            raise BadInput(f"the upgrade is no longer {record.phase}: it is {now}", where=str(store.path))
        yield writer

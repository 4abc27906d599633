"""How an upgrade ends: over to the vectors of the new space, or back to the old ones, bit for bit; see `reembed`."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import numpy as np
import pyarrow as pa

from chiasm.errors import BadInput, SpaceMismatch
from chiasm.learn.alignment.xbt.mapping import SpaceMap
from chiasm.search import ann, grown
from chiasm.search.exact import FOLDER as EXACT
from chiasm.search.exact import VectorFile
from chiasm.search.header import SpaceRecord, UpgradeRecord
from chiasm.search.indexing import COMMIT_ROWS
from chiasm.search.mapped_space import FILE, FOLDER, mapped_record
from chiasm.search.reembed import COMMIT_ITEMS, applied, encode, originals, progress
from chiasm.search.schema import table_schema, vectors_of
from chiasm.search.upgrade_notes import PATIENCE, alone, clear, has_table, noted, other_table, pages, stored, writing
from chiasm.search.writer import Writer
from chiasm.space import Space

if TYPE_CHECKING:
    from chiasm.search.store import Store


def finish(store: Store, record: UpgradeRecord) -> None:
    """Goes over to the vectors of the new space, which all items have: a new table, then one replacement of the header.

    A correction was fitted to the old vectors and does not come along.

    Raises:
        BadInput: items are left or could not be embedded again; they would vanish.
    """
    with alone(store), writing(store, record) as writer:
        state = progress(store)
        if not state.complete:
            raise BadInput(
                f"{state.left} items are left and {len(state.failed)} cannot be embedded again",
                where=str(store.path),
                fix="Searching goes on over mapped vectors; delete those items or bring back their files",
            )
        name = other_table(store.header.table)
        mode = "overwrite" if has_table(store, name) else "create"  # a former run may have been killed
        new = store.database.create_table(name, schema=table_schema(record.new.dim), mode=mode)
        VectorFile(store.path, record.new.dim, writable=True, table=name).clear()
        target = Writer(new)
        with TemporaryFile(dir=store.path / FOLDER) as file:
            vectors, place = _new_vectors(store, record, file)
            for batch in writer.table.search().to_batches(COMMIT_ROWS):
                keys = zip(batch.column("id").to_pylist(), batch.column("sha256").to_pylist(), strict=True)
                if len(batch):
                    target.copy(_with_vectors(pa.Table.from_batches([batch]), vectors[[place[k] for k in keys]], 0.0))
        target.tidy()
        if state.items > ann.EXACT_ROWS:
            ann.build(new, state.items)
        _forget_calibration(store)
        ended = replace(record, phase="finished")
        sounds = grown.carried(store.header, record.new)
        store.replace_header(space=record.new, correction=None, table=name, upgrade=ended, grown=sounds)
    store.snapshot()


def _new_vectors(store: Store, record: UpgradeRecord, file: IO[bytes]) -> tuple[np.ndarray, dict[tuple[str, str], int]]:
    """The noted vectors of the new space in a file, so that memory stays flat, and the row of each id and content."""
    place: dict[tuple[str, str], int] = {}
    rows = 0
    for page in noted(store, ("new",), where="new IS NOT NULL"):
        for key in zip(page.column("id").to_pylist(), page.column("sha256").to_pylist(), strict=True):
            place[key] = rows
            rows += 1
        file.write(vectors_of(page, "new").tobytes())
    file.flush()
    return np.memmap(file, np.float32, "r", shape=(rows, record.new.dim)), place


def _forget_calibration(store: Store) -> None:
    """Another table numbers its rows anew, and the calibration knows rows by their numbers."""
    (store.path / EXACT / "calibration.safetensors").unlink(missing_ok=True)


def _with_vectors(rows: pa.Table, vectors: np.ndarray, bias: float) -> pa.Table:
    """The same rows with other vectors in the schema for their length; token vectors of another space go."""
    schema = table_schema(vectors.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns = {name: rows.column(name) for name in schema.names}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    columns["tokens"] = pa.nulls(len(rows), schema.field("tokens").type)
    columns["bias"] = pa.array(np.full(len(rows), bias, np.float32))
    return pa.table(columns, schema=schema)


def rollback(store: Store, record: UpgradeRecord, old: Space | None = None, *, batch_size: int = 32) -> Counter[str]:
    """Puts every old vector back, bit for bit, then the header. Killed and run again, it goes on.

    Items that came meanwhile are encoded by the old space where their originals can be read; else their mapped vectors
    stay, which lie in the old space.

    Args:
        store: a store whose upgrade is under way or finished.
        record: its record.
        old: the old space, for items that came meanwhile; default: loaded by its name when it is needed.
        batch_size: items that go through the network together.

    Returns:
        ``restored``, ``encoded`` and ``mapped``: numbers of items.
    """
    if record.phase == "finished":
        _back_to_mapped(store, record)
    else:
        with writing(store, record):
            store.replace_header(upgrade=replace(record, phase="rolling back"))
    # Whoever re-embeds notices at the next commit and lets go.
    with alone(store, wait=PATIENCE):
        return _put_back(store, replace(record, phase="rolling back"), old, batch_size)


def _put_back(store: Store, record: UpgradeRecord, old: Space | None, batch_size: int) -> Counter[str]:
    counted: Counter[str] = Counter()
    known: set[str] = set()
    for ids, _, there, before in pages(store, record, "old"):
        known.update(ids)
        moved = np.flatnonzero((there != before).any(axis=1))
        with writing(store, record) as writer:
            writer.revector(pa.array([ids[i] for i in moved]), before[moved])
        counted["restored"] += len(ids)
    snapshot = store.snapshot()
    came = np.empty(0, np.int64)
    if snapshot is not None:
        live = np.flatnonzero(snapshot.alive & (snapshot.seq > record.since))
        ids = snapshot.column("id").take(pa.array(live)).to_pylist()
        came = live[[i not in known for i in ids]] if len(live) else live
    if snapshot is not None and len(came):
        if old is None:
            from chiasm.encode import load

            old = load(record.old.name)
        if old.fingerprint.digest != record.old.digest:
            raise SpaceMismatch(
                f"the old space is {record.old}, given is {SpaceRecord.of(old.name, old.fingerprint)}",
                where=str(store.path),
                fix="Name the space that the store was built with",
            )
        for begin in range(0, len(came), COMMIT_ITEMS):
            records = originals(snapshot, came[begin : begin + COMMIT_ITEMS])
            found, failed = encode(old, records, batch_size=batch_size)
            with writing(store, record) as writer:
                there = stored(writer, list(found))
                good = [r["id"] for r in records if r["id"] in there and there[r["id"]]["sha256"] == r["sha256"]]
                if good:
                    writer.revector(pa.array(good), np.stack([found[i] for i in good]))
            counted["encoded"] += len(found)
            counted["mapped"] += len(failed)
    with writing(store, record) as writer:
        store.replace_header(space=record.old, upgrade=None, grown=record.grown)
        writer.tidy()
        clear(store)
        shutil.rmtree(store.path / FOLDER, ignore_errors=True)
    store.use(old)
    store.snapshot()
    return counted


def _back_to_mapped(store: Store, record: UpgradeRecord) -> None:
    """From a finished upgrade to the table before it, with what was added, changed and deleted since."""
    map = SpaceMap.load(store.path / FOLDER / FILE)
    with writing(store, record) as writer:
        former = other_table(store.header.table)
        table = store.database.open_table(former)
        before = table.search().select(["id", "sha256"]).to_arrow()
        keys = dict(zip(before.column("id").to_pylist(), before.column("sha256").to_pylist(), strict=True))
        seen: set[str] = set()
        target = Writer(table)
        for batch in writer.table.search().to_batches(COMMIT_ROWS):
            rows = pa.Table.from_batches([batch])
            ids, shas = (rows.column(n).to_pylist() for n in ("id", "sha256"))
            seen.update(ids)
            fresh = rows.filter(pa.array([keys.get(i) != sha for i, sha in zip(ids, shas, strict=True)], pa.bool_()))
            if len(fresh):
                z = applied(map, vectors_of(fresh), fresh.column("modality").to_pylist())
                target.replace(_with_vectors(fresh, z, 0.0))
        target.delete("id", [i for i in keys if i not in seen])
        _forget_calibration(store)
        mapped = mapped_record(record.new, map, record.old.name)
        # A correction that came since was fitted to the new vectors.
        back = replace(record, phase="rolling back")
        sounds = grown.carried(store.header, mapped)
        store.replace_header(space=mapped, correction=None, table=former, upgrade=back, grown=sounds)


def forget(store: Store, record: UpgradeRecord) -> None:
    """Gives up the way back of a finished upgrade and frees its space on the disk.

    Raises:
        BadInput: the upgrade is not finished.
    """
    if record.under_way:
        raise BadInput(
            f"the upgrade is {record.phase}", where=str(store.path), fix="Only a finished one can be forgotten"
        )
    with writing(store, record):
        store.replace_header(upgrade=None)
        clear(store)
        shutil.rmtree(store.path / FOLDER, ignore_errors=True)

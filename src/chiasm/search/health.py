"""What is in a store, and whether all of it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from chiasm.items import MODALITIES
from chiasm.search import ann
from chiasm.search.schema import vectors_of

if TYPE_CHECKING:
    from chiasm.search.exact import Snapshot
    from chiasm.search.store import Store

_BATCH = 8192


def stats(store: Store) -> dict[str, Any]:
    """See `Store.stats`."""
    snapshot = store.snapshot()
    head = store.header
    out: dict[str, Any] = {
        "path": str(store.path),
        "items": 0 if snapshot is None else snapshot.count,
        "modalities": {},
        "files": 0,
        "bytes": _bytes(store.path),
        "dim": None if head.space is None else head.space.dim,
        "space": None if head.space is None else {"name": head.space.name, "digest": head.space.digest},
        "correction": None if head.correction is None else head.correction.name,
        "correction_complete": head.correction is None or head.correction.applied,
        "upgrade": None if head.upgrade is None else f"{head.upgrade.phase}, to {head.upgrade.new}",
        "index": "exact",
        "text_index": False,
        "version": 0 if snapshot is None else snapshot.version,
        "format": head.format,
        "created": head.created,
    }
    if snapshot is not None:
        codes = snapshot.modality[snapshot.alive]
        out["modalities"] = {name: n for i, name in enumerate(MODALITIES) if (n := int((codes == i).sum()))}
        uri = snapshot.column("uri")
        out["files"] = pc.count_distinct(uri.filter(pc.not_equal(uri, ""))).as_py()  # type: ignore[attr-defined]
        out["index"] = "ann" if snapshot.count > ann.EXACT_ROWS and ann.has_index(snapshot.table) else "exact"
        out["text_index"] = ann.has_text_index(snapshot.table)
    return out


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # a writer removed it meanwhile
            continue
    return total


def verify(store: Store) -> list[str]:
    """See `Store.verify`."""
    snapshot = store.snapshot()
    if snapshot is None:
        return []
    wrong: list[str] = []
    dim = snapshot.vectors.shape[1]
    if store.header.space is not None and store.header.space.dim != dim:
        wrong.append(f"the header says {store.header.space.dim} dimensions, the table has {dim}")
    if store.header.correction is not None and not store.header.correction.applied:
        wrong.append(f"the correction {store.header.correction.name or 'None'} was not finished: apply it again")
    if len(np.unique(snapshot.seq)) != len(snapshot.seq):
        wrong.append("two rows have the same seq")
    ids = snapshot.column("id")
    if pc.count_distinct(ids).as_py() != snapshot.count:  # type: ignore[attr-defined]
        wrong.append("two rows have the same id")
    wrong += _files(snapshot)
    for batch in snapshot.table.search().select(["seq", "vector"]).to_batches(_BATCH):
        vectors = vectors_of(batch)
        rows = snapshot.rows_of_seq(np.asarray(batch.column("seq")))
        if not np.isfinite(vectors).all():
            wrong.append(f"vectors with NaN or infinite values, for example {ids[int(rows[0])].as_py()!r} and after")
        if not np.array_equal(snapshot.vectors[rows], vectors):
            wrong.append("the memory-mapped vectors differ from the table: remove the folder 'exact', it is made anew")
            break
    return wrong


def _files(snapshot: Snapshot) -> list[str]:
    """Each file's rows must come from one version of it."""
    import pyarrow as pa

    table = pa.table(
        {"uri": snapshot.column("uri"), "sha256": snapshot.column("sha256"), "mtime_ns": snapshot.column("mtime_ns")}
    )
    table = table.filter(pc.greater(table["mtime_ns"], 0))  # type: ignore[attr-defined]
    if not len(table):
        return []
    counts = table.group_by("uri").aggregate([("sha256", "count_distinct")])
    mixed = counts.filter(pc.greater(counts["sha256_count_distinct"], 1))["uri"].to_pylist()  # type: ignore[attr-defined]
    return [f"rows of two versions of {uri}" for uri in mixed[:10]]

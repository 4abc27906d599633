"""Export of a whole store to files that other tools read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.errors import BadInput, StoreError
from chiasm.search.schema import vectors_of

FORMATS = ("parquet", "npy", "jsonl")
_BATCH = 8192


def export_table(table: Any, path: Path, format: str) -> int:
    """Writes all rows of the table at its version; returns their number. Memory stays flat in the number of rows.

    Args:
        table: a handle that stays at one version.
        path: the file (``parquet``, ``jsonl``) or folder (``npy``: ``vectors.npy`` ``[N, D]`` and ``items.jsonl``) to
            make. Written beside it first and then moved, so that a half-written export never has the name.
        format: one of `FORMATS`.

    Raises:
        BadInput: an unknown format, or ``path`` exists.
        StoreError: the files cannot be written.
    """
    if format not in FORMATS:
        raise BadInput(f"unknown format {format!r}", where="export", fix=f"Use one of {', '.join(FORMATS)}")
    if path.exists():
        raise BadInput("exists already", where=str(path), fix="Choose another name or remove it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {"parquet": _parquet, "npy": _npy, "jsonl": _jsonl}[format](table, part)
        os.replace(part, path)
        return rows
    except OSError as error:
        raise StoreError(f"export failed ({error})", where=str(path), fix="Check free space and rights") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _batches(table: Any) -> Iterator[pa.RecordBatch]:
    names = [name for name in table.schema.names if name != "seq"]
    yield from table.search().select(names).to_batches(_BATCH)


def _parquet(table: Any, path: Path) -> int:
    import pyarrow.parquet as pq

    schema = pa.schema([field for field in table.schema if field.name != "seq"])
    rows = 0
    with pq.ParquetWriter(path, schema) as writer:
        for batch in _batches(table):
            writer.write_batch(batch.select(schema.names))
            rows += len(batch)
    return rows


def _jsonl(table: Any, path: Path) -> int:
    with open(path, "w", encoding="utf-8") as file:
        return sum(_write_lines(file, batch, with_vectors=True) for batch in _batches(table))


def _npy(table: Any, path: Path) -> int:
    path.mkdir()
    total = table.count_rows()
    dim = table.schema.field("vector").type.list_size
    done = 0
    # Written as a stream behind a header: a map over a full disk would kill the process.
    with open(path / "vectors.npy", "wb") as vectors, open(path / "items.jsonl", "w", encoding="utf-8") as lines:
        header = {"descr": "<f4", "fortran_order": False, "shape": (total, dim)}
        np.lib.format.write_array_header_1_0(vectors, header)
        for batch in _batches(table):
            vectors.write(np.ascontiguousarray(vectors_of(batch), "<f4").tobytes())
            done += _write_lines(lines, batch, with_vectors=False)
    return done


def _write_lines(file: Any, batch: pa.RecordBatch, *, with_vectors: bool) -> int:
    names = [name for name in batch.schema.names if with_vectors or name not in ("vector", "tokens")]
    for row in batch.select(names).to_pylist():
        row["meta"] = json.loads(row["meta"])
        row["added_at"] = row["added_at"].isoformat()
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(batch)

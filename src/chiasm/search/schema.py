"""The columns of a store's table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

TABLE = "items"
HIT_COLUMNS = ("id", "uri", "part", "modality", "text", "meta", "added_at")
TIME = pa.timestamp("us", tz="UTC")


def table_schema(dim: int) -> pa.Schema:
    """The columns, for vectors of this length.

    ``seq`` numbers every written vector, rising and never reused, so that whatever is kept beside the table (the
    memory-mapped vectors, the calibration) can tell by one integer per row what came and what went, also after the
    table was compacted.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), False),
            pa.field("seq", pa.int64(), False),
            pa.field("modality", pa.string(), False),
            pa.field("uri", pa.string(), False),
            pa.field("part", pa.string(), False),
            pa.field("sha256", pa.string(), False),
            pa.field("size", pa.int64(), False),
            pa.field("mtime_ns", pa.int64(), False),
            pa.field("vector", pa.list_(pa.float32(), dim), False),
            pa.field("bias", pa.float32(), False),
            pa.field("tokens", pa.list_(pa.list_(pa.float32())), True),
            pa.field("text", pa.string(), False),
            pa.field("meta", pa.string(), False),
            pa.field("added_at", TIME, False),
        ]
    )


def rows_table(
    vectors: np.ndarray,
    *,
    ids: Sequence[str] | pa.Array,
    modality: Sequence[str] | pa.Array,
    uri: Sequence[str] | pa.Array | None = None,
    part: Sequence[str] | pa.Array | None = None,
    sha256: Sequence[str] | pa.Array | None = None,
    size: Sequence[int] | None = None,
    mtime_ns: Sequence[int] | None = None,
    text: Sequence[str] | pa.Array | None = None,
    meta: Sequence[str] | pa.Array | None = None,
    tokens: pa.Array | None = None,
) -> pa.Table:
    """Rows in the table's schema; ``seq``, ``bias`` and ``added_at`` are filled when they are committed.

    Args:
        vectors: float32 ``[N, D]``; not copied if contiguous.
        ids, modality, uri, part, sha256, size, mtime_ns, text, tokens: N values each; empty where not given.
        meta: N JSON objects as text.
    """
    n, dim = vectors.shape
    schema = table_schema(dim)
    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    columns: dict[str, Any] = {
        "id": ids,
        "seq": np.zeros(n, np.int64),
        "modality": modality,
        "uri": uri if uri is not None else pa.repeat("", n),
        "part": part if part is not None else pa.repeat("", n),
        "sha256": sha256 if sha256 is not None else pa.repeat("", n),
        "size": size if size is not None else np.zeros(n, np.int64),
        "mtime_ns": mtime_ns if mtime_ns is not None else np.zeros(n, np.int64),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), dim),
        "bias": np.zeros(n, np.float32),
        "tokens": tokens if tokens is not None else pa.nulls(n, schema.field("tokens").type),
        "text": text if text is not None else pa.repeat("", n),
        "meta": meta if meta is not None else pa.repeat("{}", n),
        "added_at": pa.array(np.zeros(n, np.int64), TIME),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def vectors_of(batch: pa.RecordBatch | pa.Table, column: str = "vector") -> np.ndarray:
    """The vectors of a batch as float32 ``[n, D]``, without a copy where Arrow allows it."""
    array = batch.column(column)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    dim = array.type.list_size
    return np.asarray(array.flatten()).reshape(len(array), dim)


def token_rows(tokens: np.ndarray | None, mask: np.ndarray | None) -> pa.Array | None:
    """Token vectors ``[N, L, D]`` with their mask as one list of vectors per row."""
    if tokens is None or mask is None:
        return None
    kind = pa.list_(pa.list_(pa.float32()))
    return pa.array([list(row[keep]) for row, keep in zip(tokens, mask, strict=True)], kind)


def meta_json(meta: Mapping[str, Any]) -> str:
    """Compact JSON; values that JSON does not know become text."""
    return json.dumps(dict(meta), separators=(",", ":"), default=str)

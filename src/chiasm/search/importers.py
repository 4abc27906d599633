"""Stores from what people already have: parquet and npy embeddings, clip-retrieval folders.

Vectors stream from memory-mapped or record-batched files straight into commits. Each row gets a stable id, so an import
that was killed is continued by running it again. A row that cannot be used (no vector, NaN, another length, an id seen
before) is skipped and listed.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chiasm.errors import BadInput
from chiasm.items import MODALITIES, item_id
from chiasm.search.header import SpaceRecord
from chiasm.search.indexing import COMMIT_ROWS, count_and_commit, stored_hashes, vector_hashes
from chiasm.search.results import AddReport, Skipped
from chiasm.search.schema import meta_json, rows_table
from chiasm.space import Space

if TYPE_CHECKING:
    from chiasm.search.store import Store

# Columns in which clip-retrieval, img2dataset and common data sets keep these things; the first present one is taken.
_ID = ("id", "key", "uid")
_URI = ("uri", "image_path", "path", "file_name", "filename", "url", "image_url")
_TEXT = ("text", "caption", "alt_text", "title")
_VECTOR = ("vector", "embedding", "embeddings", "image_embedding", "text_embedding", "img_emb", "text_emb", "emb")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table hold what; None takes the first common name that is present.

    Args:
        vector: the list column with the embeddings.
        id, uri, text, modality: text columns. All remaining columns go to ``meta``.
    """

    vector: str | None = None
    id: str | None = None
    uri: str | None = None
    text: str | None = None
    modality: str | None = None


def space_record(store: Store, space: Space | str | None, dim: int, default: str) -> SpaceRecord:
    """The space that the caller declares for vectors made elsewhere.

    Args:
        store: where they go.
        space: a `Space` or the name of one for `chiasm.load` (then searching by words works), ``"imported:<name>"``
            for vectors of a model that Chiasm does not run, or None for ``"imported:<default>"``.
        dim: length of the vectors.
        default: a name for their source.

    Raises:
        BadInput: the vectors have another length than the space's.
    """
    if space is None or (isinstance(space, str) and space.startswith("imported:")):
        name = (space or f"imported:{default}").removeprefix("imported:")
        return SpaceRecord(f"imported:{name}", name, dim)
    if isinstance(space, str):
        own = store.header.space
        if own is not None and own.name == space and not own.imported:
            record = own
        else:
            from chiasm.encode import load

            loaded = load(space)
            record = SpaceRecord.of(loaded.name, loaded.fingerprint)
    else:
        record = SpaceRecord.of(space.name, space.fingerprint)
    if record.dim != dim:
        raise BadInput(f"the vectors have {dim} dimensions, the space {record} has {record.dim}", where="import")
    return record


def import_parquet(
    store: Store,
    paths: str | Path | Iterable[str | Path],
    *,
    columns: Columns | None = None,
    modality: str = "image",
    space: Space | str | None = None,
) -> AddReport:
    """Imports parquet files with a column of embeddings (any list of floats).

    Args:
        store: where the rows go.
        paths: a file, a folder of ``*.parquet``, or several files.
        columns: which column holds what.
        modality: of rows without a modality column.
        space: see `space_record`.

    Raises:
        BadInput: no such file, no column of embeddings, or vectors of another length.
        SpaceMismatch: the store holds vectors of another space.
    """
    import pyarrow.parquet as pq

    files = files_of(paths, "*.parquet")

    def batches() -> Iterator[tuple[np.ndarray, pa.Table, str]]:
        for path in files:
            with _readable(path), pq.ParquetFile(path) as file:
                names = _resolve(file.schema_arrow, columns, str(path))
                row = 0
                for batch in file.iter_batches(batch_size=COMMIT_ROWS):
                    table = pa.Table.from_batches([batch])
                    vectors = _list_vectors(table[names.vector or ""])
                    yield vectors, table.drop_columns([names.vector or ""]), f"{path.name}:{row}"
                    row += len(batch)

    return _import(store, batches(), columns or Columns(), modality, space, files[0].stem)


def import_npy(
    store: Store,
    vectors: str | Path,
    metadata: str | Path | None = None,
    *,
    columns: Columns | None = None,
    modality: str = "image",
    space: Space | str | None = None,
) -> AddReport:
    """Imports a ``.npy`` file of vectors ``[N, D]`` (memory-mapped) with optional metadata in parquet or JSON lines.

    Args:
        store: where the rows go.
        vectors: the array; float16, float32 or float64.
        metadata: one row or line per vector, in the same order.
        columns, modality, space: see `import_parquet`.

    Raises:
        BadInput: a file that cannot be read, or numbers of rows that do not fit together.
        SpaceMismatch: the store holds vectors of another space.
    """
    path = Path(vectors).expanduser()
    batches = _npy_batches(path, None if metadata is None else Path(metadata).expanduser(), path.name)
    return _import(store, batches, columns or Columns(), modality, space, path.stem)


def import_clip_retrieval(store: Store, folder: str | Path, *, space: Space | str | None = None) -> AddReport:
    """Imports the folder that ``clip-retrieval inference`` writes.

    ``img_emb/img_emb_N.npy`` become pictures, ``text_emb/text_emb_N.npy`` texts, both with the columns of
    ``metadata/metadata_N.parquet``.

    Args:
        store: where the rows go.
        folder: the folder that holds ``img_emb`` or ``text_emb``.
        space: see `space_record`; the model that made the embeddings.

    Raises:
        BadInput: there are no embeddings in the folder, or parts that do not fit together.
        SpaceMismatch: the store holds vectors of another space.
    """
    root = Path(folder).expanduser()
    parts = [
        (kind, modality, path)
        for kind, modality in (("img_emb", "image"), ("text_emb", "text"))
        for path in sorted((root / kind).glob(f"{kind}_*.npy"), key=_number)
    ]
    if not parts:
        raise BadInput("holds no img_emb/img_emb_N.npy or text_emb/text_emb_N.npy", where=str(root))
    total = AddReport()
    for kind, modality, path in parts:
        metadata = root / "metadata" / f"metadata_{_number(path)}.parquet"
        # A picture and its caption share key and path; the prefix keeps their ids apart.
        batches = _npy_batches(path, metadata if metadata.exists() else None, f"{kind}/{path.name}")
        report = _import(
            store, batches, Columns(), modality, space, root.name, id_prefix="" if modality == "image" else "text:"
        )
        _merge(total, report)
    return total


def _import(
    store: Store,
    batches: Iterator[tuple[np.ndarray, pa.Table | None, str]],
    columns: Columns,
    modality: str,
    space: Space | str | None,
    source: str,
    *,
    id_prefix: str = "",
) -> AddReport:
    """Commits batches of (vectors ``[n, D]`` with NaN rows where there is none, other columns, a name for messages)."""
    if modality not in MODALITIES:
        raise BadInput(
            f"modality {modality!r} does not exist", where="import", fix=f"Use one of {', '.join(MODALITIES)}"
        )
    start, report = time.monotonic(), AddReport()
    first = next(batches, None)
    if first is None:
        return report
    dim = first[0].shape[1]
    with store.bulk(space_record(store, space, dim, source)) as writer:
        stored = stored_hashes(writer.table)
        seen: set[str] = set()
        for vectors, table, name in _chain(first, batches):
            if vectors.shape[1] != dim:
                raise BadInput(f"vectors have {vectors.shape[1]} dimensions, those before had {dim}", where=name)
            fields = _fields(table, columns, modality, len(vectors), f"{source}/{name}", id_prefix)
            keep = _usable(vectors, fields, name, seen, report)
            chosen = vectors[keep] if not keep.all() else vectors
            index = pa.array(np.flatnonzero(keep))
            taken = {key: pa.array(values, pa.string()).take(index) for key, values in fields.items()}
            rows = rows_table(chosen, **taken, sha256=vector_hashes(chosen))
            count_and_commit(writer, rows, stored, report)
    report.seconds = time.monotonic() - start
    return report


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _usable(vectors: np.ndarray, fields: Mapping[str, Any], name: str, seen: set[str], report: AddReport) -> np.ndarray:
    """Which rows can be imported, bool ``[n]``; the others are listed."""
    keep: np.ndarray = np.isfinite(vectors).all(axis=1)  # type: ignore[assignment]
    for row in np.flatnonzero(~keep):
        report.skipped.append(Skipped(f"{name}+{row}", "no vector, NaN, infinite values or another length"))
    for row, (identity, kind) in enumerate(zip(fields["ids"], fields["modality"], strict=True)):
        if not keep[row]:
            continue
        if identity in seen:
            keep[row] = False
            report.skipped.append(Skipped(f"{name}+{row}", f"the id {identity!r} was there before"))
        elif kind not in MODALITIES:
            keep[row] = False
            report.skipped.append(Skipped(f"{name}+{row}", f"modality {kind!r} does not exist"))
        else:
            seen.add(identity)
    return keep


def _fields(
    table: pa.Table | None, columns: Columns, modality: str, n: int, source: str, id_prefix: str
) -> dict[str, list[str]]:
    """ids, modality, uri, text and meta of a batch."""
    if table is None:
        return {
            "ids": [id_prefix + item_id(source, str(row)) for row in range(n)],
            "modality": [modality] * n,
            "uri": [""] * n,
            "text": [""] * n,
            "meta": ["{}"] * n,
        }
    names = {
        "id": _named(table, columns.id, _ID),
        "uri": _named(table, columns.uri, _URI),
        "text": _named(table, columns.text, _TEXT),
        "modality": _named(table, columns.modality, ("modality",)),
    }
    uri, text = _strings(table, names["uri"], ""), _strings(table, names["text"], "")
    if names["id"] is not None:
        ids = _strings(table, names["id"], "")
    elif names["uri"] is not None:
        ids = [item_id(u) if u else "" for u in uri]
    else:
        ids = [""] * n
    ids = [id_prefix + (i or item_id(source, str(row))) for row, i in enumerate(ids)]
    rest = table.drop_columns(list({name for name in names.values() if name is not None}))
    meta = (
        [meta_json({k: _plain(v) for k, v in row.items() if v is not None}) for row in rest.to_pylist()]
        if rest.num_columns
        else ["{}"] * n
    )
    return {
        "ids": ids,
        "modality": _strings(table, names["modality"], modality),
        "uri": uri,
        "text": text,
        "meta": meta,
    }


def _plain(value: Any) -> Any:
    """A value that JSON has a form for: NaN has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    return value


def _named(table: pa.Table, given: str | None, usual: Sequence[str]) -> str | None:
    if given is not None:
        if given not in table.column_names:
            raise BadInput(
                f"there is no column {given!r}", where="import", fix=f"There are {', '.join(table.column_names)}"
            )
        return given
    return next((name for name in usual if name in table.column_names), None)


def _strings(table: pa.Table, name: str | None, default: str) -> list[str]:
    if name is None:
        return [default] * len(table)
    return [default if value is None else str(value) for value in table[name].to_pylist()]


def _resolve(schema: pa.Schema, columns: Columns | None, where: str) -> Columns:
    """``columns`` with the vector column found."""
    columns = columns or Columns()
    lists = [f.name for f in schema if _is_vector(f.type)]
    if columns.vector is None:
        found = next((name for name in _VECTOR if name in lists), lists[0] if len(lists) == 1 else None)
    else:
        found = columns.vector if columns.vector in lists else None
    if found is None:
        fix = f"Lists of floats: {', '.join(lists)}" if lists else "There is no column with lists of floats"
        raise BadInput(
            f"cannot tell which column holds the embeddings ({columns.vector or 'none named'})", where=where, fix=fix
        )
    return replace(columns, vector=found)


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)  # type: ignore[attr-defined]


def _list_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A list column as float32 ``[n, D]``, NaN where a row has no list or one of another length."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), -1))  # type: ignore[attr-defined]
    real = lengths[lengths > 0]
    if not len(real):
        return np.full((len(array), 1), np.nan, np.float32)
    counts = np.bincount(real)
    dim = int(counts.argmax())
    good = lengths == dim
    kept = array if good.all() else array.filter(pa.array(good))
    flat = np.asarray(pc.fill_null(kept.flatten(), math.nan)).astype(np.float32, copy=False).reshape(-1, dim)  # type: ignore[attr-defined]
    if good.all():
        return flat
    out = np.full((len(array), dim), np.nan, np.float32)
    out[good] = flat
    return out


def _npy_batches(path: Path, metadata: Path | None, name: str) -> Iterator[tuple[np.ndarray, pa.Table | None, str]]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"is not an array file ({error})", where=str(path)) from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise BadInput(f"must hold floats [N, D], has {array.dtype} {array.shape}", where=str(path))
    table = None if metadata is None else _metadata(metadata)
    if table is not None and len(table) != len(array):
        raise BadInput(f"{len(table)} rows for {len(array)} vectors", where=str(metadata))
    for begin in range(0, len(array), COMMIT_ROWS):
        block = np.asarray(array[begin : begin + COMMIT_ROWS], np.float32)
        yield block, None if table is None else table.slice(begin, len(block)), f"{name}:{begin}"


def _metadata(path: Path) -> pa.Table:
    """The rows of a parquet, JSON lines or JSON file."""
    import pyarrow.parquet as pq

    with _readable(path):
        if path.suffix == ".parquet":
            return pq.read_table(path)
        with open(path, encoding="utf-8") as file:
            return pa.Table.from_pylist([json.loads(line) for line in file if line.strip()])
    raise AssertionError


class _readable:
    """Turns what readers of damaged or missing files raise into `BadInput`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, ValueError, pa.ArrowException)) and not isinstance(error, BadInput):
            raise BadInput(f"cannot be read ({str(error)[:200]})", where=str(self.path)) from error


def files_of(paths: str | Path | Iterable[str | Path], pattern: str) -> list[Path]:
    """The files named, and those in the folders named that match the pattern, shards in the order of their numbers."""
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found: list[Path] = []
    for entry in given:
        path = Path(entry).expanduser().absolute()
        if path.is_dir():
            found += sorted(path.glob(pattern), key=lambda p: (_number(p), p.name))
        elif path.exists():
            found.append(path)
        else:
            raise BadInput("does not exist", where=str(path))
    if not found:
        raise BadInput(f"holds no {pattern}", where=", ".join(map(str, given)) or "import")
    return found


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1


def _merge(total: AddReport, report: AddReport) -> None:
    total.added += report.added
    total.updated += report.updated
    total.unchanged += report.unchanged
    total.skipped += report.skipped
    total.seconds += report.seconds

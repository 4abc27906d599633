"""Files, items and ready-made vectors -> rows -> commits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chiasm.embeddings import Embeddings
from chiasm.errors import BadInput, BadItem, UnsupportedModality
from chiasm.items import Item, content_hash, file_hash
from chiasm.search.filters import below
from chiasm.search.header import check_dim
from chiasm.search.results import AddReport, Skipped
from chiasm.search.schema import meta_json, rows_table, token_rows
from chiasm.search.writer import Writer
from chiasm.space import Space

# A commit closes after this many rows or seconds, whichever comes first: a crash costs at most this much work.
COMMIT_ROWS = 4096
COMMIT_SECONDS = 2.0
_ITEM_BATCH = 256


@dataclass(frozen=True, slots=True)
class Known:
    """What the store has recorded of one file."""

    size: int
    mtime_ns: int
    sha256: bytes


def known_files(table: Any, folders: Sequence[str] | None = None) -> dict[str, Known]:
    """All files in the table by address, or those that are or lie below one of the given addresses."""
    found: dict[str, Known] = {}
    for batch in table.search().select(["uri", "size", "mtime_ns", "sha256"]).to_batches(65536):
        if folders is not None:
            keep = pc.is_in(batch.column("uri"), value_set=pa.array(folders, pa.string()))  # type: ignore[attr-defined]
            for folder in folders:
                keep = pc.or_(keep, below(batch.column("uri"), folder))  # type: ignore[attr-defined]
            batch = batch.filter(keep)
        for uri, size, mtime_ns, sha256 in zip(*(batch.column(i).to_pylist() for i in range(4)), strict=True):
            if uri and uri not in found:
                found[uri] = Known(size, mtime_ns, bytes.fromhex(sha256) if len(sha256) == 64 else b"")
    return found


def index_paths(
    writer: Writer,
    roots: Sequence[Path],
    *,
    remove_vanished: bool,
    encode: Callable[[list[Path]], Iterator[Any]],
) -> AddReport:
    """Brings files and folders into the table; only new and changed ones are read.

    Args:
        writer: commits the rows.
        roots: files and folders.
        remove_vanished: delete the rows of files that are gone below ``roots``.
        encode: paths -> `FileResult` in any order, see `chiasm.encode.pipeline.encode_files`.

    Raises:
        BadInput: a root does not exist.
        StoreError: a commit failed.
    """
    from chiasm.encode.files import path_to_uri, walk

    start, report = time.monotonic(), AddReport()
    known = known_files(writer.table, [path_to_uri(root) for root in roots])
    for root in roots:
        if not root.exists() and not (remove_vanished and path_to_uri(root) in known):
            raise BadInput("does not exist", where=str(root), fix="Name an existing file or folder")
    left_out: list[Skipped] = []
    files = (path for root in roots if root.exists() for path in walk(root, skipped=left_out))
    todo = list(_changed(writer, files, known, report))
    report.skipped += [skip for skip in left_out if skip.reason != "hidden"]
    batch = _FileBatch(writer, known, report)
    for result in encode(todo):
        batch.take(result)
    batch.flush()
    if remove_vanished:
        report.deleted = _remove_vanished(writer, known)
    report.seconds = time.monotonic() - start
    return report


def _changed(writer: Writer, files: Iterable[Path], known: dict[str, Known], report: AddReport) -> Iterator[Path]:
    """The files that must be read; those that were only touched get their new time recorded."""
    from chiasm.encode.files import path_to_uri

    touched: dict[str, tuple[int, int]] = {}
    seen: set[str] = set()
    for path in files:
        uri = path_to_uri(path)
        if uri in seen:  # named twice, or below two of the roots
            continue
        seen.add(uri)
        old = known.get(uri)
        if old is None:
            yield path
            continue
        try:
            stat = os.stat(path)
            if (stat.st_size, stat.st_mtime_ns) == (old.size, old.mtime_ns):
                report.unchanged += 1
                continue
            same = stat.st_size == old.size and bytes.fromhex(file_hash(path)) == old.sha256
        except OSError:
            yield path  # the reader says what is wrong with it
            continue
        if same:
            touched[uri] = (stat.st_size, stat.st_mtime_ns)
            report.unchanged += 1
        else:
            yield path
    writer.restamp_files(touched)


def _remove_vanished(writer: Writer, known: dict[str, Known]) -> int:
    from chiasm.encode.files import uri_to_path

    gone = [uri for uri, old in known.items() if old.mtime_ns and not os.path.lexists(uri_to_path(uri))]
    writer.delete("uri", gone)
    return len(gone)


class _FileBatch:
    """Collects whole files until a commit is due: new files in one append, changed ones in one replacement."""

    def __init__(self, writer: Writer, known: dict[str, Known], report: AddReport) -> None:
        self.writer, self.known, self.report = writer, known, report
        self._clear()

    def _clear(self) -> None:
        self.fresh: list[pa.Table] = []
        self.changed: list[pa.Table] = []
        self.changed_uris: list[str] = []
        self.rows = 0
        self.since = time.monotonic()

    def take(self, result: Any) -> None:
        """Takes one `FileResult`."""
        if result.error is not None:
            self.report.skipped.append(Skipped(str(result.path), _reason(result.error)))
            return
        self.report.skipped += [Skipped(str(result.path), _reason(error)) for error in result.dropped]
        if not result.items:
            self.report.skipped.append(Skipped(str(result.path), "nothing in it can be searched by this space"))
            return
        if not np.isfinite(result.vectors).all():
            self.report.skipped.append(Skipped(str(result.path), "the space made NaN or infinite values of it"))
            return
        rows = _file_rows(result)
        if result.uri in self.known:
            self.changed.append(rows)
            self.changed_uris.append(result.uri)
            self.report.updated += 1
        else:
            self.fresh.append(rows)
            self.report.added += 1
        if not result.cached:
            self.report.vectors_encoded += len(rows)
        if not self.rows:
            self.since = time.monotonic()
        self.rows += len(rows)
        if self.rows >= COMMIT_ROWS or time.monotonic() - self.since >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.fresh:
            self.writer.append(pa.concat_tables(self.fresh))
        if self.changed:
            self.writer.replace(pa.concat_tables(self.changed), uris=self.changed_uris)
        self._clear()


def _file_rows(result: Any) -> pa.Table:
    items: list[Item] = result.items
    n = len(items)
    if len({item.id for item in items}) != n:
        raise BadInput("two items of one file have the same id", where=str(result.path))
    return rows_table(
        result.vectors,
        ids=[item.id for item in items],
        modality=[item.modality for item in items],
        uri=[result.uri] * n,
        part=[_valid(item.part) for item in items],
        sha256=[result.sha256] * n,
        size=[result.size] * n,
        mtime_ns=[result.mtime_ns] * n,
        text=[_valid(item.text) for item in items],
        meta=[meta_json(item.meta) for item in items],
    )


def index_items(
    writer: Writer, space: Space, items: Iterable[Item], *, batch_size: int, progress: bool = False
) -> AddReport:
    """Encodes items and brings them into the table; an item whose content is already there under its id is left alone.

    Raises:
        BadInput: two items of the source have the same id.
        StoreError: a commit failed.
    """
    start, report = time.monotonic(), AddReport()
    stored = stored_hashes(writer.table)
    seen: set[str] = set()
    pending: list[pa.Table] = []
    rows, since = 0, time.monotonic()

    def flush() -> None:
        nonlocal rows, since
        if pending:
            table = pa.concat_tables(pending)
            commit_rows(writer, table, stored)
            pending.clear()
        rows, since = 0, time.monotonic()

    source = iter(items)
    while batch := list(islice(source, max(batch_size, _ITEM_BATCH))):
        todo: list[tuple[Item, str]] = []
        for item in batch:
            if item.id in seen:
                raise BadInput(f"duplicate id {item.id!r}", where="Store.add", fix="Ids must be unique")
            seen.add(item.id)
            sha256 = item.sha256 or content_hash(item.content)
            if stored.get(item.id) == sha256:
                report.unchanged += 1
            else:
                todo.append((item, sha256))
        kept, vectors = encode_good(space, todo, batch_size, progress, report)
        for item, _ in kept:
            if item.id in stored:
                report.updated += 1
            else:
                report.added += 1
        report.vectors_encoded += len(kept)
        if kept:
            pending.append(_item_rows(kept, vectors))
            rows += len(kept)
        if rows >= COMMIT_ROWS or time.monotonic() - since >= COMMIT_SECONDS:
            flush()
    flush()
    report.seconds = time.monotonic() - start
    return report


def encode_good(
    space: Space, todo: list[tuple[Item, str]], batch_size: int, progress: bool, report: AddReport
) -> tuple[list[tuple[Item, str]], np.ndarray]:
    """The items that the space can encode, and their vectors; one bad item does not spoil its batch."""
    if not todo:
        return [], np.empty((0, space.dim), np.float32)
    try:
        vectors = space.encode([item for item, _ in todo], batch_size=batch_size, progress=progress).vectors
        return todo, vectors
    except (BadItem, UnsupportedModality):
        pass
    kept, rows = [], []
    for item, sha256 in todo:
        try:
            rows.append(space.encode([item], batch_size=1).vectors)
            kept.append((item, sha256))
        except (BadItem, UnsupportedModality) as error:
            report.skipped.append(Skipped(item.uri or item.id, _reason(error)))
    return kept, np.concatenate(rows) if rows else np.empty((0, space.dim), np.float32)


def _item_rows(kept: list[tuple[Item, str]], vectors: np.ndarray) -> pa.Table:
    items = [item for item, _ in kept]
    return rows_table(
        vectors,
        ids=[item.id for item in items],
        modality=[item.modality for item in items],
        uri=[_valid(item.uri) for item in items],
        part=[_valid(item.part) for item in items],
        sha256=[sha256 for _, sha256 in kept],
        text=[_valid(item.text) for item in items],
        meta=[meta_json(item.meta) for item in items],
    )


def index_embeddings(writer: Writer, embeddings: Embeddings, dim: int) -> AddReport:
    """Brings ready-made vectors into the table; a vector that is already there under its id is left alone.

    Raises:
        BadInput: the vectors have another length than the store's.
        StoreError: a commit failed.
    """
    start, report = time.monotonic(), AddReport()
    check_dim(dim, embeddings.dim, "Store.add")
    stored = stored_hashes(writer.table)
    for begin in range(0, len(embeddings), COMMIT_ROWS):
        part = slice(begin, begin + COMMIT_ROWS)
        vectors = np.ascontiguousarray(embeddings.vectors[part], dtype=np.float32)
        tokens = None if embeddings.tokens is None else embeddings.tokens[part]
        mask = None if embeddings.mask is None else embeddings.mask[part]
        rows = rows_table(
            vectors,
            ids=embeddings.ids[part],
            modality=embeddings.modality[part],
            sha256=vector_hashes(vectors),
            tokens=token_rows(tokens, mask),
        )
        count_and_commit(writer, rows, stored, report)
    report.seconds = time.monotonic() - start
    return report


def vector_hashes(vectors: np.ndarray) -> list[str]:
    """SHA-256 of each row's bytes (hex)."""
    return [content_hash(row.tobytes()) for row in vectors]


def count_and_commit(writer: Writer, rows: pa.Table, stored: dict[str, str], report: AddReport) -> None:
    """Commits those rows that are new or have another ``sha256`` than the stored row of that id, and counts them."""
    if stored:
        hashes = rows.column("sha256").to_pylist()
        old = [stored.get(i) for i in rows.column("id").to_pylist()]
        keep = [a != b for a, b in zip(hashes, old, strict=True)]
        updated = sum(1 for a, b in zip(keep, old, strict=True) if a and b is not None)
        report.unchanged += len(keep) - sum(keep)
        rows = rows.filter(pa.array(keep))
    else:
        updated = 0
    report.updated += updated
    report.added += len(rows) - updated
    commit_rows(writer, rows, stored)


def commit_rows(writer: Writer, rows: pa.Table, stored: dict[str, str]) -> None:
    """One commit: an append if all ids are new to the table, a replacement otherwise."""
    if stored and any(i in stored for i in rows.column("id").to_pylist()):
        writer.replace(rows)
    else:
        writer.append(rows)


def stored_hashes(table: Any) -> dict[str, str]:
    """id -> sha256 of everything in the table."""
    data = table.search().select(["id", "sha256"]).to_arrow()
    return dict(zip(data.column("id").to_pylist(), data.column("sha256").to_pylist(), strict=True))


def _valid(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates (from damaged documents) become question marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _reason(error: Exception) -> str:
    return str(getattr(error, "what", None) or error)

"""`Store`: one folder that holds vectors of mixed media and is searched by words, pictures, sounds or vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.embeddings import Embeddings
from chiasm.errors import BadInput, BadItem
from chiasm.items import Item
from chiasm.search import ann, grown, hits, indexing, lexical
from chiasm.search import query as asking
from chiasm.search.export import export_table
from chiasm.search.filters import allowed_rows
from chiasm.search.folder import StoreFolder
from chiasm.search.header import SpaceRecord
from chiasm.search.results import AddReport, SearchResult
from chiasm.search.writer import Writer
from chiasm.space import Space


class Store(StoreFolder):
    """A searchable folder of vectors: a LanceDB table, its memory-mapped vectors and its calibration.

    Any number of processes and threads may search while one process writes; each search sees one version of the
    table, the newest when it began. Every commit is atomic: after a crash the store opens as it was at the last one.

        >>> store = Store("photos.chiasm", "pocket")
        >>> store.add("~/Pictures")
        >>> store.search("a place where people pray", k=5).hits

    Args:
        path: the folder; by convention ``NAME.chiasm``.
        space: a `Space`, a name for `chiasm.load`, or None: the space of the store itself is loaded when a query or
            file must be encoded. A store that does not exist yet may be made without one for ready-made vectors.
        create: make the store if it does not exist.
        read_only: never write, not even beside the table; for stores on read-only media.

    Raises:
        StoreError: no store there, a folder that is something else, a newer format, a corrupt header.
        SpaceMismatch: the store holds vectors of another space.
    """

    # ---- adding and removing

    def add(
        self, source: Any, *, progress: bool = False, workers: int | None = None, batch_size: int = 32
    ) -> AddReport:
        """Adds what is new or changed; what is there already is neither read nor encoded again.

        A file whose size and time are as recorded is not opened; one that was touched but has the same content is not
        encoded. Files that cannot be read are skipped and listed. Killed at any moment and run again, the result is
        that of one undisturbed run.

        Args:
            source: a file or folder, a list of them, an `Item`, pictures or `Sound`, an iterable of items, or
                `Embeddings` of the store's space.
            progress: show a progress bar.
            workers: threads that decode files; by default chosen by `encode_files`.
            batch_size: items per pass through the network.

        Raises:
            BadInput: a path that does not exist, duplicate ids, vectors of another length.
            SpaceMismatch: vectors of another space.
            StoreLocked: another process is writing.
            StoreError: the disk is full or the folder read-only; what was committed before stays.
        """
        return self._add(source, False, progress, workers, batch_size)

    def update(
        self, source: Any, *, progress: bool = False, workers: int | None = None, batch_size: int = 32
    ) -> AddReport:
        """Like `add`, and deletes the rows of files below ``source`` that are gone."""
        return self._add(source, True, progress, workers, batch_size)

    def _add(self, source: Any, vanished: bool, progress: bool, workers: int | None, batch_size: int) -> AddReport:
        if batch_size < 1 or (workers is not None and workers < 1):
            raise BadInput("workers and batch_size must be at least 1", where="Store.add")
        if isinstance(source, Embeddings):
            return self.add_embeddings(source)
        paths, items = _sort_source(source)
        if not paths:
            space = self._encoder()
            with self.writing(SpaceRecord.of(space.name, space.fingerprint)) as writer:
                self._grow(space, writer)
                report = indexing.index_items(writer, space, items, batch_size=batch_size, progress=progress)
                self._finish(writer)
            return report

        def encode(todo: list[Path]) -> Iterator[Any]:
            if not todo:  # nothing to read: neither the space nor the feature cache is opened
                return iter(())
            from chiasm.encode.pipeline import encode_files

            self._grow(self.space, writer)
            return encode_files(self.space, todo, workers=workers, batch_size=batch_size, progress=progress)

        with self.writing(self._record_to_write()) as writer:
            report = indexing.index_paths(writer, paths, remove_vanished=vanished, encode=encode)
            self._finish(writer)
        return report

    def _grow(self, space: Space, writer: Writer) -> None:
        """Refuses a sound encoder that is not that of the store's sounds, and records the one that makes them from now on."""
        grown.check(self.header, space, writer.table, str(self.path))
        own = grown.mark(space)
        if own and own != self.header.grown:
            self.replace_header(grown=own)

    def _record_to_write(self) -> SpaceRecord:
        """The store's own record where nothing says otherwise: a run that finds nothing new needs no network."""
        own = self.header.space
        if own is not None and not own.imported and (self._space is None or self._space == own.name):
            return own
        space = self._encoder()
        return SpaceRecord.of(space.name, space.fingerprint)

    def _encoder(self) -> Space:
        """The space to encode with; the store's own is loaded if none was given."""
        return self.space if self._space is not None or self.header.space is not None else self._no_space()

    def _no_space(self) -> Space:
        raise BadInput("needs a space to encode with", where=str(self.path), fix='Open it with Store(path, "pocket")')

    def add_embeddings(self, embeddings: Embeddings, *, space: SpaceRecord | None = None) -> AddReport:
        """Adds ready-made vectors; see `add`.

        Args:
            embeddings: their ``space`` must be the store's, where both are known.
            space: what to record as the space of a new store.
        """
        record = space or self._record_of(embeddings)
        with self.writing(record) as writer:
            report = indexing.index_embeddings(writer, embeddings, writer_dim(writer))
            self._finish(writer)
        return report

    def _record_of(self, embeddings: Embeddings) -> SpaceRecord:
        own = self.header.space
        if own is None and self._space is not None:
            space = self.space
            own = SpaceRecord.of(space.name, space.fingerprint)
        if own is not None and embeddings.space in ("", own.digest):
            return own
        name = embeddings.space or "unknown"
        return SpaceRecord(f"imported:{name}", name, embeddings.dim)

    @contextmanager
    def bulk(self, space: SpaceRecord) -> Iterator[Writer]:
        """The writer for an importer that commits its own rows; see `chiasm.search.importers`."""
        with self.writing(space) as writer:
            yield writer
            self._finish(writer)

    def _finish(self, writer: Writer) -> None:
        """After the last commit of a run: upkeep that makes the next search fast. Nothing is lost if it is cut short."""
        writer.tidy()
        rows = writer.table.count_rows()
        if rows > ann.EXACT_ROWS and not ann.has_index(writer.table):
            ann.build(writer.table, rows)
        self.snapshot()

    def delete(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        path: str | Path | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> int:
        """Deletes items by id, or all items that pass the filters (see `search`); returns their number.

        Raises:
            BadInput: neither ids nor a filter given.
        """
        if ids is None and path is None and not where:
            raise BadInput("needs ids or a filter", where="Store.delete", fix="To delete everything remove the folder")
        if not len(self):
            return 0
        with self.writing() as writer:
            wanted = None if ids is None else [ids] if isinstance(ids, str) else list(ids)
            if path is not None or where:
                snapshot = self.snapshot()
                assert snapshot is not None
                mask = allowed_rows(snapshot, path=path, where=where)
                assert mask is not None
                found = snapshot.column("id").filter(mask).to_pylist()
                wanted = found if wanted is None else list(set(wanted) & set(found))
            gone = writer.delete("id", wanted or [])
            writer.tidy()
            self.snapshot()
            return gone

    # ---- searching

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        modality: str | Iterable[str] | None = None,
        path: str | Path | None = None,
        where: Mapping[str, Any] | None = None,
        since: Any = None,
        until: Any = None,
        hybrid: bool = False,
        exact: bool | None = None,
        rate: float = 0.05,
        unique: bool = True,
    ) -> SearchResult:
        """The k nearest items, with calibrated relevance for queries in words.

        Args:
            query: words, an `Item`, a PIL picture, a `Sound`, a `Path` of a file, or a vector ``[D]``.
            k: number of hits; all items if larger than the store.
            modality, path, where, since, until: filters, see `chiasm.search.filters.allowed_rows`.
            hybrid: fuse with full-text search over the items' text (reciprocal rank fusion).
            exact: True scans all vectors, False asks the index (if there is one); None scans up to 200,000 items.
            rate: share of queries without an answer that may get one (the "nothing here" decision).
            unique: show several frames or segments of one clip or recording only once, the best.

        Raises:
            BadInput: an empty query, ``k < 1``, a vector that does not fit, an unknown filter.
            BadItem: a query file that cannot be read.
            UnsupportedModality: the space cannot encode this kind of query.
        """
        asking.check_numbers(k, rate)
        filters = {"modality": modality, "path": path, "where": where, "since": since, "until": until}
        options = {"filters": filters, "hybrid": hybrid, "exact": exact, "rate": rate, "unique": unique}
        return self._answer(lambda: asking.encode_query(self, query), k, options)

    def similar(self, id_or_path: str | Path, k: int = 10, **options: Any) -> SearchResult:
        """The items nearest to one in the store (by id or path), or to a file outside it; the item itself is left out.

        Args:
            id_or_path: an id, or a path.
            k: number of hits.
            **options: filters and switches of `search`.

        Raises:
            BadInput: no such id and no such file.
        """
        rate, unique, exact = options.pop("rate", 0.05), options.pop("unique", True), options.pop("exact", None)
        asking.check_numbers(k, rate)
        chosen = {"filters": options, "hybrid": False, "exact": exact, "rate": rate, "unique": unique}
        return self._answer(lambda: asking.similar_query(self, id_or_path), k, chosen)

    def _answer(self, ask: Callable[[], asking.Asked], k: int, options: dict[str, Any]) -> SearchResult:
        found = asking.answer(self, ask, k, **options)
        if not self.read_only:
            hits.count(self.path, [hit.id for hit in found.hits])
        return found

    def text_index(self) -> None:
        """Makes the full-text index if there is none.

        Raises:
            StoreError: there is none and the store cannot be written.
        """
        with self._lock:
            table = self._latest()
            if table is None or ann.has_text_index(table):
                return
        with self.writing() as writer:
            lexical.build(writer.table)

    # ---- looking and leaving

    def get(self, id: str) -> dict[str, Any]:
        """All columns of one item; ``vector`` as float32 ``[D]``, ``meta`` as a dictionary.

        Raises:
            BadInput: no such id.
        """
        snapshot = self.snapshot()
        rows = np.empty(0, np.int64) if snapshot is None else snapshot.rows_where("id", [id])
        if snapshot is None or not len(rows):
            raise BadInput(f"no item has the id {id!r}", where=str(self.path))
        columns = tuple(name for name in snapshot.table.schema.names if name != "seq")
        row = snapshot.fetch(rows[:1], columns)[0]
        return row | {"meta": json.loads(row["meta"]), "vector": np.asarray(row["vector"], np.float32)}

    def __len__(self) -> int:
        with self._lock:
            table = self._latest()
            return 0 if table is None else table.count_rows()

    def stats(self) -> dict[str, Any]:
        """Counts by modality, files, bytes, dimension, space, correction, index and versions."""
        from chiasm.search.health import stats

        return stats(self)

    def verify(self) -> list[str]:
        """Everything wrong with the store, as sentences; empty if all is well. Reads every vector."""
        from chiasm.search.health import verify

        return verify(self)

    def export(self, path: str | Path, format: str = "parquet") -> int:
        """Writes all items to ``parquet``, ``npy`` (a folder) or ``jsonl``; returns their number.

        Raises:
            BadInput: unknown format, or ``path`` exists.
        """
        snapshot = self.snapshot()
        if snapshot is None or not snapshot.count:
            raise BadInput("is empty, there is nothing to export", where=str(self.path))
        return export_table(snapshot.table, Path(path).expanduser(), format)

    def correct(self, correction: Any, queries: Any = None, *, items: Any = None) -> None:
        """Applies a correction to every later search at no cost, or removes it.

        The correction is fitted on all vectors of the store (memory-mapped, ``[M, D]``); its ``bias_`` is added to the
        scores from then on. Items added later get the mean bias until the correction is applied again.

        Args:
            correction: an object with ``fit(gallery, queries=..., items=...)`` and then ``bias_`` ``[M]``, such as
                those of `chiasm.correct`; None restores plain scores.
            queries: past queries: strings, or vectors ``[Q, D]``; what they are for is the correction's matter.
            items: bank of old items, vectors ``[B, D]``, for corrections that use one.

        Raises:
            BadInput: an empty store, or a bias of another length or with values that are not finite.
        """
        from chiasm.search.correction import apply

        apply(self, correction, queries, items)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {self.header.space})"


def writer_dim(writer: Writer) -> int:
    """The length of a vector in the table."""
    return writer.table.schema.field("vector").type.list_size


def _sort_source(source: Any) -> tuple[list[Path], Iterable[Item]]:
    """Paths, or items: a source is one or the other."""
    if isinstance(source, (str, Path)):
        return [_root(source)], ()
    if isinstance(source, (Item, np.ndarray)) or not isinstance(source, Iterable):
        return [], [_item(source)]
    if type(source).__module__.startswith("PIL."):
        return [], [_item(source)]
    things = iter(source)
    first = next(things, None)
    if first is None:
        return [], ()
    if isinstance(first, (str, Path)):
        roots = [first, *things]
        if not all(isinstance(root, (str, Path)) for root in roots):
            raise BadInput("mixes paths and items", where="Store.add", fix="Add them in two calls")
        return [_root(root) for root in roots], ()
    return [], (_item(thing) for thing in chain([first], things))


def _root(path: str | Path) -> Path:
    if not str(path).strip():
        raise BadInput("an empty path", where="Store.add")
    return Path(os.path.abspath(os.path.expanduser(path)))


def _item(thing: Any) -> Item:
    if isinstance(thing, (str, Path)):
        raise BadItem("mixes paths and items", where="Store.add", fix="Add them in two calls")
    return Item.of(thing)

"""The folder of a store: its header, its space, the versions that readers see and the one writer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lancedb

from chiasm.errors import BadInput, StoreError
from chiasm.search import header
from chiasm.search.exact import Snapshot, VectorFile
from chiasm.search.header import CorrectionRecord, Header, SpaceRecord
from chiasm.search.lock import exclusive
from chiasm.search.schema import TABLE, table_schema
from chiasm.search.writer import Writer
from chiasm.space import Space

_LOCK = "writer.lock"
# Seconds for which a writer waits while items are re-embedded.
UPGRADE_WAIT = 30.0


class StoreFolder:
    """What `chiasm.search.Store` stands on; arguments and errors as there."""

    def __init__(
        self, path: str | Path, space: Space | str | None = None, *, create: bool = True, read_only: bool = False
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.read_only = read_only
        self._lock = threading.RLock()
        self._write_lock = threading.RLock()
        self.calibrating = threading.Lock()
        self._space = self._given = space
        self._stamp: tuple[int, int] | None = None
        self._table: Any = None
        self._snapshot: Snapshot | None = None
        self._file: VectorFile | None = None
        self._relevance: Any = None
        self._open(create and not read_only)
        self.database = lancedb.connect(str(self.path))
        if space is not None and self.header.space is not None:
            same_name = isinstance(space, str) and space == self.header.space.name
            if not same_name:  # a space of the store's own name is loaded, and checked, when it is needed
                self.space  # noqa: B018

    def _open(self, create: bool) -> None:
        if not (self.path / header.FILE).exists() and create:
            if self.path.exists() and not self.path.is_dir():
                raise StoreError("is a file", where=str(self.path), fix="A store is a folder; choose another name")
            self._create()
        self.header: Header = header.read_header(self.path)

    def _create(self) -> None:
        """Makes the folder and its header; the table follows with the first rows."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # What a creation that was killed leaves behind is ours; anything else is not a store.
            foreign = [n for n in os.listdir(self.path) if n != _LOCK and not n.startswith(f".{header.FILE}.")]
        except OSError as error:
            raise StoreError(f"cannot be made ({error.strerror})", where=str(self.path)) from error
        if foreign:
            raise StoreError(
                "is a folder with other things in it, not a Chiasm store",
                where=str(self.path),
                fix="Choose a new or empty folder",
            )
        space = None if self._space is None else self._space_object()
        with exclusive(self.path / _LOCK, wait=10):
            if not (self.path / header.FILE).exists():
                record = None if space is None else SpaceRecord.of(space.name, space.fingerprint)
                header.write_header(self.path, header.new_header(record))

    # ---- the space

    @property
    def space(self) -> Space:
        """The space that encodes queries and files, loaded when first asked for.

        Raises:
            SpaceMismatch: what the store's name loads now makes other vectors than those in the store.
            BadInput: the store holds vectors made elsewhere, and no space was given.
        """
        with self._lock:
            if self._space is None:
                record = self.header.space
                if record is None or record.imported:
                    raise BadInput(
                        "the store does not know the space of its vectors",
                        where=str(self.path),
                        fix="Search by vector, or open it with the space that made them: Store(path, space)",
                    )
                self._space = record.name
            return self._space_object()

    def _space_object(self) -> Space:
        stored: Header | None = getattr(self, "header", None)
        upgrade = None if stored is None else stored.upgrade
        if upgrade is not None and not upgrade.under_way:
            upgrade = None
        if upgrade is None and stored is not None and stored.space is not None:
            inner: Any = getattr(self._space, "inner", None)
            if inner is not None:  # a mapped space whose upgrade has ended, perhaps in another process
                self._space = inner if inner.fingerprint.digest == stored.space.digest else stored.space.name
        if isinstance(self._space, str):
            from chiasm.encode import load

            own = stored is not None and stored.space is not None and self._space == stored.space.name
            self._space = load(upgrade.new.name if upgrade is not None and own else self._space)
        space: Any = self._space
        if upgrade is not None:
            digest = space.fingerprint.digest
            if digest == upgrade.new.digest:
                from chiasm.search.mapped_space import mapped_space

                space = self._space = mapped_space(self.path, space, upgrade)
            elif digest == upgrade.old.digest:
                return space  # the old space's own queries: the whole gallery still lies in it
        if stored is not None and stored.space is not None and not stored.space.imported:
            header.check_space(stored.space, SpaceRecord.of(space.name, space.fingerprint), str(self.path))
        elif stored is not None and stored.space is not None:
            header.check_dim(stored.space.dim, space.dim, str(self.path))
        return space

    def use(self, space: Space | str | None) -> None:
        """Goes over to another space object or name, which must fit the header; None loads the store's own again."""
        with self._lock:
            self._space = self._given = space
            self._relevance = None

    @property
    def can_encode_text(self) -> bool:
        """Whether queries in words can be answered; loads the space."""
        try:
            return "text" in self.space.modalities
        except BadInput:
            return False

    @property
    def fingerprint(self) -> SpaceRecord | None:
        """The space whose vectors are in the store; None before the first ones."""
        return self.header.space

    # ---- versions

    def _latest(self) -> Any:
        """The shared table handle at the newest version, None before the first commit. Call with the lock held."""
        self.refresh()
        if self._table is None:
            if not any((self.path / f"{self.header.table}.lance" / "_versions").glob("*.manifest")):
                return None
            self._table = self.database.open_table(self.header.table)
            if self.header.space is None:
                self.adopt(header.read_header(self.path))
        else:
            self._table.checkout_latest()
        return self._table

    def refresh(self) -> None:
        """Reads the header again if it was replaced: an upgrade may have begun, ended or been rolled back."""
        try:
            found = os.stat(self.path / header.FILE)
        except OSError:
            return  # the folder is gone or locked away; whoever reads next says so
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            self.adopt(header.read_header(self.path))

    def adopt(self, fresh: Header) -> None:
        """Goes over to a header; whatever belongs to another space or table than before is let go."""
        with self._lock:
            before, self.header = self.header, fresh
            if before.space is not None and fresh.space != before.space:
                self._space, self._relevance = self._given, None
            if fresh.table != before.table:
                self._table = self._snapshot = self._file = self._relevance = None

    def snapshot(self, *, dense: bool = False) -> Snapshot | None:
        """The newest version, ready to search; None if nothing was ever added.

        Args:
            dense: leave no dead rows between the live ones.
        """
        with self._lock:
            latest = self._latest()
            if latest is None:
                return None
            current = self._snapshot
            if current is None or current.version != latest.version or (dense and current.count < len(current.seq)):
                # Its own handle: stays at this version while others move on.
                table = self.database.open_table(self.header.table)
                if self._file is None:
                    dim = table.schema.field("vector").type.list_size
                    writable = not self.read_only and os.access(self.path, os.W_OK)
                    self._file = VectorFile(self.path, dim, writable=writable, table=self.header.table)
                current = self._snapshot = self._file.snapshot(table, dense=dense)
            return current

    def view(self) -> tuple[SpaceRecord | None, Snapshot | None]:
        """The newest version and the space of its vectors, which an upgrade may exchange between two calls."""
        with self._lock:
            snapshot = self.snapshot()
            return self.header.space, snapshot

    @contextmanager
    def writing(self, space: SpaceRecord | None = None, *, wait: float | None = None) -> Iterator[Writer]:
        """The one writer, on a table that exists if the dimension is known from the store or from ``space``.

        Args:
            space: that of the vectors to be written.
            wait: seconds to wait for another writer; by default none, and some under an upgrade, whose commits are short.
        """
        if self.read_only:
            raise StoreError("was opened read-only", where=str(self.path))
        self.refresh()
        if wait is None:
            wait = UPGRADE_WAIT if self.header.upgrade is not None else 0.0
        with self._write_lock, exclusive(self.path / _LOCK, wait=wait):
            self.adopt(header.read_header(self.path))
            if space is not None:
                header.check_upgrade(self.header, space, str(self.path))
                if self.header.space is None:
                    self.header = replace(self.header, space=space)
                    header.write_header(self.path, self.header)
                header.check_space(self.header.space, space, str(self.path))
            record = self.header.space
            if record is None:
                raise BadInput("the store has no space yet", where=str(self.path), fix="Add something first")
            try:
                table = self.database.create_table(self.header.table, schema=table_schema(record.dim), exist_ok=True)
            except Exception as error:
                raise StoreError(f"the table cannot be made ({error})", where=str(self.path)) from error
            correction = self.header.correction
            yield Writer(table, 0.0 if correction is None else correction.neutral)

    def set_header(self, correction: CorrectionRecord | None) -> None:
        """Records the correction in the header; called with the writer lock held."""
        self.replace_header(correction=correction)

    def replace_header(self, **fields: Any) -> None:
        """Writes the header with other fields, in one step; called with the writer lock held."""
        fresh = replace(self.header, **fields)
        plain = fresh.upgrade is None and fresh.table == TABLE
        fresh = replace(fresh, format=header.PLAIN if plain else header.FORMAT)
        header.write_header(self.path, fresh)
        self.adopt(fresh)

    def relevance(self) -> Any:
        """The store's calibration, None if its space has no text encoder."""
        with self._lock:
            if self._relevance is None and self.can_encode_text:
                from chiasm.search.relevance import Relevance

                self._relevance = Relevance(
                    self.path, self.space, writable=not self.read_only and os.access(self.path, os.W_OK)
                )
            return self._relevance

    def close(self) -> None:
        """Lets go of files and memory; the store can be used again, which opens them anew."""
        with self._lock:
            self._snapshot = self._table = self._relevance = None
            if self._file is not None and self._file.private is not None:
                self._file.private.cleanup()
            self._file = None

"""`FeatureCache`: what a file became in a space, keyed by the file's content, so that no file is encoded twice.

One SQLite file serves any number of processes and threads. It is a cache: whatever goes wrong with it costs time, never
a result, and it may be deleted at any moment.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from chiasm.items import Item

MAX_BYTES = 2 << 30
TOUCH_EVERY = 256  # hits whose time of use is written together
SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, items TEXT NOT NULL, vectors BLOB NOT NULL, crc INTEGER NOT NULL,
    bytes INTEGER NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the cache holds of a file: its items as JSON objects and their vectors float32 ``[n, D]``."""

    items: list[dict[str, Any]]
    vectors: np.ndarray


def default_folder() -> Path:
    """``$CHIASM_CACHE``, or ``chiasm`` in the user's cache folder of this platform."""
    if folder := os.environ.get("CHIASM_CACHE"):
        return Path(folder).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "chiasm" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "chiasm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chiasm"


class FeatureCache:
    """Vectors and items of files, by content hash and space.

    Args:
        folder: where ``features.sqlite`` lies; by default `default_folder`.
        max_bytes: the least recently used entries are dropped above this size; 2 GiB is about a million pictures
            in a 384-d space.

    A broken cache file is moved aside and a new one begun; a cache that cannot be written (full or read-only disk) goes
    on without one. Both are said once, as a warning.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(folder).expanduser() / "features.sqlite" if folder else default_folder() / "features.sqlite"
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._touched: dict[str, float] = {}
        self._since_prune = 0
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            self._open()

    def get(self, sha256: str, space: str, kind: str = "") -> Entry | None:
        """The entry of a file, or None.

        Args:
            sha256: hash of the file's bytes.
            space: digest of the space's fingerprint.
            kind: whatever else decides how the file is read, for example its extension.
        """
        key = _key(sha256, space, kind)
        row = self._run(lambda c: c.execute("SELECT items, vectors, crc FROM entries WHERE key = ?", (key,)).fetchone())
        if row is None:
            return None
        items, blob, crc = row
        try:
            if zlib.crc32(blob) != crc:
                return None
            # Not the npy format: its header is parsed by ast, which is not thread-safe in CPython 3.11.
            entry = Entry(json.loads(items), load(blob)["vectors"].copy())
        except (ValueError, KeyError, SafetensorError):
            return None
        self._touch(key)
        return entry

    def put(
        self, sha256: str, space: str, items: Sequence[dict[str, Any]], vectors: np.ndarray, kind: str = ""
    ) -> None:
        """Stores an entry; an older one of the same key is replaced.

        Args:
            sha256: hash of the file's bytes.
            space: digest of the space's fingerprint.
            items: n JSON-serializable objects.
            vectors: float32 ``[n, D]``, given back bit for bit.
            kind: as in `get`.
        """
        blob = save({"vectors": np.ascontiguousarray(vectors, dtype=np.float32)})
        text = json.dumps(list(items), ensure_ascii=True)
        row = (_key(sha256, space, kind), text, blob, zlib.crc32(blob), len(blob) + len(text), time.time())
        self._run(lambda c: c.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", row))
        self._since_prune += row[4]
        if self._since_prune > self.max_bytes // 64:
            self.prune()

    def __len__(self) -> int:
        return (self._run(lambda c: c.execute("SELECT count(*) FROM entries").fetchone()) or (0,))[0]

    def __bool__(self) -> bool:
        return True  # an empty cache is a cache

    def size(self) -> int:
        """Bytes of all entries."""
        return (self._run(lambda c: c.execute("SELECT coalesce(sum(bytes), 0) FROM entries").fetchone()) or (0,))[0]

    def prune(self) -> int:
        """Drops the least recently used entries until the rest fills at most 90 % of ``max_bytes``; returns how many."""
        self._flush()
        self._since_prune = 0
        if self.size() <= self.max_bytes:
            return 0
        return self._run(self._drop_oldest) or 0

    def clear(self) -> None:
        """Drops all entries and gives their space back to the disk."""
        self._run(lambda c: c.execute("DELETE FROM entries"))
        self._run(lambda c: c.execute("PRAGMA incremental_vacuum").fetchall())

    def close(self) -> None:
        self._flush()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_oldest(self, connection: sqlite3.Connection) -> int:
        kept, limit = 0, int(self.max_bytes * 0.9)
        connection.execute("BEGIN IMMEDIATE")
        for used, size in connection.execute("SELECT used, bytes FROM entries ORDER BY used DESC"):
            kept += size
            if kept > limit:
                dropped = connection.execute("DELETE FROM entries WHERE used <= ?", (used,)).rowcount
                break
        else:
            dropped = 0
        connection.execute("COMMIT")
        connection.execute("PRAGMA incremental_vacuum").fetchall()
        return dropped

    def _touch(self, key: str) -> None:
        self._touched[key] = time.time()
        if len(self._touched) >= TOUCH_EVERY:
            self._flush()

    def _flush(self) -> None:
        touched, self._touched = self._touched, {}
        rows = [(used, key) for key, used in touched.items()]
        if rows:

            def write(connection: sqlite3.Connection) -> None:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE entries SET used = ? WHERE key = ?", rows)
                connection.execute("COMMIT")

            self._run(write)

    def _run(self, work: Any) -> Any:
        """The result of ``work(connection)``, or None if the cache is out of order."""
        with self._lock:
            for attempt in range(2):
                if self._connection is None:
                    return None
                try:
                    return work(self._connection)
                except sqlite3.OperationalError as error:  # locked for too long, disk full, read-only, I/O error
                    self._roll_back()
                    if "locked" not in str(error) and "busy" not in str(error):
                        self._give_up(error)
                    return None
                except sqlite3.DatabaseError as error:  # the file is not a database, or is a damaged one
                    self._move_aside(error)
                    if attempt:
                        return None
            return None

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.rollback()
            except sqlite3.Error:
                pass

    def _open(self) -> None:
        for attempt in range(2):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # One connection behind a lock: the time goes into the network, not here.
                connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(SCHEMA)
                connection.execute("SELECT key, items, vectors, crc, bytes, used FROM entries LIMIT 1").fetchall()
                self._connection = connection
                return
            except (sqlite3.OperationalError, OSError) as error:
                if "no such column" not in str(error):
                    self._give_up(error)
                    return
                self._set_aside(error)
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                if attempt:
                    self._give_up(error)

    def _move_aside(self, error: Exception) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._set_aside(error)
        self._open()

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.broken-{time.time_ns()}")
        warnings.warn(
            f"the feature cache {self.path} is broken ({error}); moved to {aside.name}, starting anew", stacklevel=2
        )
        for suffix in ("", "-wal", "-shm"):
            try:
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
            except OSError:
                pass

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"the feature cache {self.path} cannot be used ({error}); going on without it", stacklevel=2)
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _key(sha256: str, space: str, kind: str) -> str:
    return f"{sha256}|{space}|{kind}"


def item_to_json(item: Item) -> dict[str, Any]:
    """What is kept of an item: everything but pixels, samples and where the file lay."""
    kept: dict[str, Any] = {"modality": item.modality, "part": item.part, "text": item.text, "meta": dict(item.meta)}
    if item.modality == "text":
        kept["content"] = item.content
    return kept


def item_from_json(kept: dict[str, Any], uri: str, sha256: str) -> Item:
    """The item of the same content at an address; pictures and sounds come without content."""
    return Item(
        kept["modality"],
        kept.get("content"),
        uri=uri,
        part=kept["part"],
        text=kept["text"],
        sha256=sha256,
        meta=kept["meta"],
    )

"""Files and items -> vectors: threads read and prepare while the network computes, in memory that does not grow.

    feeder (as much as the budget allows) -> threads: hash, cache, read, prepare -> calling thread: batches, network

Nothing that fails on one file stops the others: it ends in that file's `FileResult.error`.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from mimetypes import guess_type
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np

from chiasm import __version__
from chiasm.embeddings import Embeddings
from chiasm.encode.cache import FeatureCache, item_from_json, item_to_json
from chiasm.errors import BadInput, BadItem, ChiasmError
from chiasm.items import Item
from chiasm.space import Role, Space

Progress = Callable[[int, int | None], object] | bool | None

# Prepared inputs that wait for the network, in bytes: 400 pictures of 224 x 224 in float32.
BUDGET = 256 << 20
# Files that are being read or wait, beyond one batch: enough that a slow file does not leave the network idle.
AHEAD = 16
# Items that `encode_items` holds at once; texts are sorted by length within it.
WINDOW = 1024


@dataclass(frozen=True, slots=True)
class FileResult:
    """What one file became.

    Args:
        path: the file.
        uri: its address (`path_to_uri`).
        sha256: hash of its bytes (hex), ``""`` if it could not be read.
        size: in bytes, -1 if unknown.
        mtime_ns: time of its last change in nanoseconds, -1 if unknown.
        items: its items; pictures and sounds come without their content, so that memory stays flat.
        vectors: float32 ``[n, D]``, one row per item.
        error: why the file gave nothing at all, or None.
        dropped: items of the file that could not be encoded while others could.
        cached: True if the network was not needed.
    """

    path: Path
    uri: str
    sha256: str
    size: int
    mtime_ns: int
    items: list[Item]
    vectors: np.ndarray
    error: BadItem | None = None
    dropped: list[BadItem] = field(default_factory=list)
    cached: bool = False


@dataclass(slots=True)
class _File:
    """A file on its way: what the threads hand over and what the network has added."""

    path: Path
    uri: str
    sha256: str = ""
    size: int = -1
    mtime_ns: int = -1
    items: list[Item] = field(default_factory=list)
    prepared: list[Any] = field(default_factory=list)
    vectors: list[np.ndarray | None] = field(default_factory=list)
    dropped: list[BadItem] = field(default_factory=list)
    waiting: int = 0
    bytes: int = 0
    done: FileResult | None = None
    fatal: BaseException | None = None


def cpus() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def encode_files(
    space: Space,
    paths: Iterable[str | Path],
    *,
    workers: int | None = None,
    batch_size: int = 32,
    cache: FeatureCache | bool | None = None,
    progress: Progress = None,
) -> Iterator[FileResult]:
    """Reads and encodes files; results come in the order in which they are finished, one for each path.

    Args:
        space: the space.
        paths: files (not folders; see `walk`).
        workers: threads that read and prepare; by default one per processor, at most 8.
        batch_size: items that go through the network together, across files.
        cache: None or True for the user's cache (`FeatureCache()`), False for none, or a cache of your own.
        progress: a function of (files done, files or None), or True for a progress bar.

    Raises:
        BadInput: ``batch_size`` or ``workers`` is less than 1.
    """
    if batch_size < 1 or (workers is not None and workers < 1):
        raise BadInput("batch_size and workers must be at least 1", where="encode_files")
    own = cache is None or cache is True
    store = FeatureCache() if own else (cache if isinstance(cache, FeatureCache) else None)
    try:
        run = _Run(space, batch_size, store)
        with shown(progress, len(paths) if isinstance(paths, Sized) else None, "files") as tell:
            for done, result in enumerate(run.results(iter(paths), workers or min(cpus(), 8)), 1):
                tell(done)
                yield result
    finally:
        if own and store is not None:
            store.close()


class _Run:
    """One run of `encode_files`."""

    def __init__(self, space: Space, batch_size: int, cache: FeatureCache | None) -> None:
        self.space, self.batch_size, self.cache = space, batch_size, cache
        self.dim = space.dim  # and the model is warm before the threads start
        self.digest = "" if cache is None else space.fingerprint.digest
        # What the fingerprint leaves out: another sound encoder gives other vectors of sounds.
        self.grown = "" if cache is None else str(getattr(space, "grown", ""))
        self.buffers: dict[str, list[tuple[_File, int]]] = {}
        self.held = 0
        self.stopped = False

    def results(self, paths: Iterator[str | Path], workers: int) -> Iterator[FileResult]:
        finished: SimpleQueue[_File] = SimpleQueue()
        flying, more = 0, True
        pool = ThreadPoolExecutor(workers, thread_name_prefix="chiasm-read")
        try:
            while True:
                while more and flying < self.batch_size + AHEAD and self.held < BUDGET:
                    path = next(paths, None)
                    if path is None:
                        more = False
                    else:
                        pool.submit(self._read, Path(path), finished)
                        flying += 1
                if not flying:
                    if any(self.buffers.values()):
                        yield from self._encode_all(least=1)
                        continue
                    return
                file = finished.get()
                flying -= 1
                if file.fatal is not None:
                    raise file.fatal
                if file.done is not None:
                    yield file.done
                    continue
                self.held += file.bytes
                for row, item in enumerate(file.items):
                    self.buffers.setdefault(item.modality, []).append((file, row))
                if not file.items:
                    yield self._finish(file)
                # A budget that is used up must be worked off even if no batch is full.
                yield from self._encode_all(least=self.batch_size if self.held < BUDGET else 1)
        finally:
            self.stopped = True
            pool.shutdown(wait=True, cancel_futures=True)

    # In the threads

    def _read(self, path: Path, finished: SimpleQueue[_File]) -> None:
        from chiasm.encode.files import path_to_uri

        file = _File(path, path_to_uri(path))
        try:
            if not self.stopped:
                self._load(file)
        except BadItem as error:
            file.done = self._failed(file, error)
        except ChiasmError as error:
            file.done = self._failed(file, BadItem(error.what, where=error.where or file.uri, fix=error.fix))
        except MemoryError:
            file.done = self._failed(file, BadItem("needs more memory than there is", where=file.uri))
        except Exception as error:  # a reader's library met something its authors did not foresee
            line = (str(error).strip().splitlines() or [""])[0][:200]
            file.done = self._failed(file, BadItem(f"cannot be read ({type(error).__name__}: {line})", where=file.uri))
        except BaseException as error:  # not ours to swallow; raised again in the calling thread
            file.fatal = error
        finished.put(file)

    def _load(self, file: _File) -> None:
        from chiasm.encode.files import open_regular
        from chiasm.encode.read import read

        with open_regular(file.path) as stream:
            state = os.fstat(stream.fileno())
            file.size, file.mtime_ns = state.st_size, state.st_mtime_ns
            if self.cache is not None:
                file.sha256 = _sha256(stream)
        if self.cache is not None and (entry := self.cache.get(file.sha256, self.digest, self._kind(file))):
            items = [item_from_json(kept, file.uri, file.sha256) for kept in entry.items]
            file.done = self._result(file, items, entry.vectors, cached=True)
            return
        for item in read(file.path, transcribe=self.space.speech_as_text):
            file.sha256 = item.sha256 or file.sha256
            try:
                prepared = self.space.prepare(item)
            except ChiasmError as error:
                file.dropped.append(BadItem(error.what, where=error.where or place(item), fix=error.fix))
                continue
            file.prepared.append(prepared)
            file.items.append(item if item.modality == "text" else replace(item, content=None))
        if not file.sha256:
            with open_regular(file.path) as stream:
                file.sha256 = _sha256(stream)
        file.vectors = [None] * len(file.items)
        file.waiting = len(file.items)
        file.bytes = sum(_bytes(one) for one in file.prepared)

    # In the calling thread

    def _encode_all(self, least: int) -> Iterator[FileResult]:
        for modality, buffer in self.buffers.items():
            while len(buffer) >= least:
                batch, buffer[:] = buffer[: self.batch_size], buffer[self.batch_size :]
                self._embed(modality, batch)
                for file in {id(file): file for file, _ in batch}.values():
                    if not file.waiting:
                        yield self._finish(file)

    def _embed(self, modality: str, batch: list[tuple[_File, int]]) -> None:
        try:
            vectors = self.space.embed([file.prepared[row] for file, row in batch], modality)
        except Exception as error:
            if len(batch) > 1:  # one of them may be the cause; the others must not suffer
                for one in batch:
                    self._embed(modality, [one])
                return
            vectors = np.full((1, self.dim), np.nan, np.float32)
            reason = f"the network fails on it ({type(error).__name__}: {error})"
        else:
            reason = "the network gives NaN for it"
        finite = np.isfinite(vectors.sum(axis=1)).tolist()
        for (file, row), vector, good in zip(batch, vectors, finite, strict=True):
            if good:
                file.vectors[row] = np.array(vector, dtype=np.float32)
            else:
                file.dropped.append(BadItem(reason, where=place(file.items[row])))
            file.prepared[row] = None
            file.waiting -= 1

    def _finish(self, file: _File) -> FileResult:
        self.held -= file.bytes
        good = [row for row, vector in enumerate(file.vectors) if vector is not None]
        items = [file.items[row] for row in good]
        vectors = np.zeros((len(good), self.dim), np.float32)
        for i, row in enumerate(good):
            vectors[i] = file.vectors[row]
        if not items and file.dropped:
            return self._failed(file, file.dropped[0])
        if self.cache is not None and not file.dropped:
            kept = [item_to_json(item) for item in items]
            self.cache.put(file.sha256, self.digest, kept, vectors, self._kind(file))
        return self._result(file, items, vectors)

    def _failed(self, file: _File, error: BadItem) -> FileResult:
        return self._result(file, [], np.zeros((0, self.dim), np.float32), error=error)

    def _result(self, file: _File, items: list[Item], vectors: np.ndarray, **more: Any) -> FileResult:
        facts = (file.path, file.uri, file.sha256, file.size, file.mtime_ns)
        return FileResult(*facts, items, vectors, dropped=[] if more.get("error") else file.dropped, **more)

    def _kind(self, file: _File) -> str:
        # The extension, because it decides how a text is read; the version, because readers get better.
        kind = f"{file.path.suffix.lower()}|{__version__}"
        silent = (guess_type(file.path.name)[0] or "").startswith(("image/", "text/"))
        return kind if silent or not self.grown else f"{kind}|{self.grown}"


def encode_items(
    space: Space,
    items: Iterable[Any],
    *,
    role: Role = "document",
    tokens: bool = False,
    batch_size: int = 32,
    progress: Progress = False,
) -> Embeddings:
    """Vectors of items in memory, in their order; modalities may be mixed.

    Args:
        space: the space.
        items: whatever `Item.of` takes: strings, pictures, sounds, items. Of equal ids the later ones get ``#2``, ...
        role: ``"query"`` or ``"document"``; chooses the model's prompt.
        tokens: also give token and patch vectors and their mask.
        batch_size: items that go through the network together.
        progress: a function of (items done, items or None), or True for a progress bar.

    Raises:
        BadItem: an item that cannot be encoded.
        BadInput: something that is no item, or ``batch_size`` is less than 1.
        UnsupportedModality: the space has no encoder for a modality, or gives no token vectors for it.
    """
    if batch_size < 1:
        raise BadInput("batch_size must be at least 1", where="encode")
    if isinstance(items, (str, bytes)):
        raise BadInput("items must be a list; this is one string", where="encode", fix="Use encode([text])")
    embed_tokens = getattr(space, "embed_tokens", None)
    if tokens and embed_tokens is None:
        raise BadInput(f"{space.name} gives no token vectors", where="encode")
    ids: list[str] = []
    modality: list[str] = []
    blocks: list[np.ndarray] = []
    token_rows: list[np.ndarray] = []
    total = len(items) if isinstance(items, Sized) else None
    with shown(progress, total, "items") as tell, ThreadPoolExecutor(min(cpus(), 8), "chiasm-prepare") as pool:
        rest = iter(items)
        while window := [Item.of(thing) for _, thing in zip(range(WINDOW), rest)]:
            start, block = len(ids), np.zeros((len(window), space.dim), np.float32)
            rows_of: list[Any] = [None] * len(window)
            ids += [item.id for item in window]
            modality += [item.modality for item in window]
            done = 0
            for kind, rows, prepared in _prepared(space, window, batch_size, pool):
                if tokens and embed_tokens is not None:
                    block[rows], held, mask = embed_tokens(prepared, kind, role=role)
                    for row, one, kept in zip(rows, held, mask):
                        rows_of[row] = one[kept]
                else:
                    block[rows] = space.embed(prepared, kind, role=role)
                done += len(rows)
                tell(start + done)
            blocks.append(block)
            token_rows += rows_of if tokens else []
    vectors = np.concatenate(blocks) if blocks else np.zeros((0, space.dim), np.float32)
    digest = space.fingerprint.digest
    if not tokens:
        return Embeddings(vectors, _distinct(ids), modality, space=digest)
    longest = max((len(one) for one in token_rows), default=0)
    padded, mask = np.zeros((len(ids), longest, space.dim), np.float32), np.zeros((len(ids), longest), bool)
    for row, one in enumerate(token_rows):
        padded[row, : len(one)], mask[row, : len(one)] = one, True
    return Embeddings(vectors, _distinct(ids), modality, padded, mask, digest)


def _prepared(
    space: Space, window: Sequence[Item], batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[str, list[int], list[Any]]]:
    """Batches of one modality; the next one is prepared in threads while the caller uses this one."""
    batches: list[tuple[str, list[int]]] = []
    for kind in dict.fromkeys(item.modality for item in window):
        rows = [row for row, item in enumerate(window) if item.modality == kind]
        if kind == "text":
            rows.sort(key=lambda row: len(window[row].text or ""))
        batches += [(kind, rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    ahead: deque[list[Any]] = deque()
    for number, (kind, rows) in enumerate(batches):
        while len(ahead) < 2 and number + len(ahead) < len(batches):
            coming = batches[number + len(ahead)][1]
            ahead.append([pool.submit(space.prepare, window[row]) for row in coming])
        yield kind, rows, [future.result() for future in ahead.popleft()]


def _distinct(ids: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    taken = set(ids)
    for row, name in enumerate(ids):
        count = seen[name] = seen.get(name, 0) + 1
        if count > 1:
            while f"{name}#{count}" in taken:
                count += 1
            seen[name], ids[row] = count, f"{name}#{count}"
            taken.add(ids[row])
    return ids


def place(item: Item) -> str:
    """Where an item is, as messages print it."""
    return f"{item.uri or item.id} {item.part}".strip()


@contextmanager
def shown(progress: Progress, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """A function that is told how many are done: the caller's, a progress bar's, or one that does nothing."""
    if callable(progress):
        tell = progress
        yield lambda done: tell(done, total)
    elif progress:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(unit, total=total)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield lambda done: None


def _sha256(stream: BinaryIO) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()  # pyright: ignore[reportArgumentType] (stubs lack BinaryIO)


def _bytes(prepared: Any) -> int:
    if isinstance(prepared, dict):
        return sum(_bytes(one) for one in prepared.values())
    return int(getattr(prepared, "nbytes", 0) or (len(prepared) if isinstance(prepared, str) else 0))

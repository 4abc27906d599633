"""What `chiasm doctor` examines: files of embeddings, pairs, and stores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.errors import BadInput, ChiasmError

if TYPE_CHECKING:
    from chiasm.search.store import Store

VECTOR_FILES = (".safetensors", ".npy", ".npz", ".parquet")
PAIR_FILES = (".csv", ".jsonl")
# Common names of what is searched with and what is found, in the order of preference.
_QUERY_KEYS = ("query", "query_id", "text", "caption", "question")
_ITEM_KEYS = ("item", "item_id", "id", "image", "uri", "path", "document")
_VECTOR_COLUMNS = ("vector", "embedding", "embeddings", "emb")
_PAIR_ARRAYS = (("a", "b"), ("text", "image"), ("queries", "items"), ("queries", "gallery"))


@dataclass(frozen=True, slots=True)
class Vectors:
    """What one file holds.

    Args:
        array: ``[N, D]``; memory-mapped where the format allows it.
        ids: N names, or None: rows are named by their numbers.
        modality: N modalities, or None.
        labels: N kinds, or None.
    """

    array: np.ndarray
    ids: Sequence[str] | None = None
    modality: Sequence[str] | None = None
    labels: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Patient:
    """The arguments of `examine`, and what to say about where they come from."""

    gallery: np.ndarray
    queries: np.ndarray | None = None
    positives: Any = None
    labels: np.ndarray | None = None
    modality: Sequence[str] | None = None
    names: tuple[str, str] = ("queries", "items")
    notes: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `examine`, without the gallery."""
        names = ("queries", "positives", "labels", "modality", "names")
        return {name: getattr(self, name) for name in names}


def read(source: str | Path, *, queries: str | Path | None = None, pairs: str | Path | None = None) -> Patient:
    """Reads what is to be examined.

    Args:
        source: a store, or a file of embeddings (``.safetensors`` of `Embeddings.save`, ``.npy``, ``.npz``, ``.parquet``).
            An ``.npz`` with arrays ``a`` and ``b`` (or ``text`` and ``image``) is a set of pairs: the first ones search
            the second ones.
        queries: vectors to search with, or for a store a ``.txt`` of words, one query a line. Default: for a store whose
            space encodes text, the bank of everyday phrases.
        pairs: a second file of embeddings, row by row the partners of the items; or a ``.csv`` or ``.jsonl`` with the
            columns ``query`` and ``item``: ids (or row numbers) of the files, for a store words and ids.

    Raises:
        BadInput: a file that is missing, of an unknown type or cannot be read, or that does not fit the others.
        StoreError: a folder that is no store.
    """
    path = Path(source).expanduser()
    asked, matched = (None if p is None else Path(p).expanduser() for p in (queries, pairs))
    if path.is_dir():
        return _of_store(path, asked, matched)
    if (
        path.suffix.lower() == ".npz"
        and asked is None
        and matched is None
        and (sides := _pair_arrays(path)) is not None
    ):
        a, b, labels = sides
        if len(a) != len(b):
            raise BadInput(f"{len(a)} and {len(b)} rows are not pairs", where=str(path))
        return Patient(b, a, "rows", labels)
    items = vectors_of_file(path)
    if asked is not None and asked.suffix.lower() == ".txt":
        raise BadInput("words can only be encoded by a store's space", where=str(asked), fix="Give vectors")
    found = None if asked is None else vectors_of_file(asked)
    if matched is not None and matched.suffix.lower() not in PAIR_FILES:
        if found is not None:
            raise BadInput(
                "row-aligned --pairs are the queries already",
                where=str(matched),
                fix="Leave out --queries, or give ids",
            )
        partners = vectors_of_file(matched)
        if len(partners.array) != len(items.array):
            raise BadInput(
                f"{len(partners.array)} rows for {len(items.array)} items of {path.name}",
                where=str(matched),
                fix="Row i must be the partner of item i; else give --queries and a file of ids",
            )
        return Patient(items.array, partners.array, "rows", items.labels, items.modality)
    if matched is None:
        return Patient(items.array, None if found is None else found.array, None, items.labels, items.modality)
    if found is None:
        raise BadInput("ids of queries need their vectors", where=str(matched), fix="Give --queries FILE")
    named = read_pairs(matched)
    query_rows = _numbered(found.ids, len(found.array), [q for q, _ in named], "query", matched)
    item_rows = _numbered(items.ids, len(items.array), [i for _, i in named], "item", matched)
    right = _lists(query_rows, item_rows, len(found.array))
    return Patient(items.array, found.array, right, items.labels, items.modality)


def vectors_of_file(path: Path) -> Vectors:
    """Reads one file of embeddings.

    Raises:
        BadInput: missing, of an unknown type, unreadable, or without vectors.
    """
    kind = path.suffix.lower()
    if not path.exists():
        raise BadInput("does not exist", where=str(path))
    if kind not in VECTOR_FILES:
        raise BadInput(
            f"is of unknown type {kind or 'without ending'}", where=str(path), fix=f"Use {', '.join(VECTOR_FILES)}"
        )
    if kind == ".safetensors":
        from chiasm.embeddings import Embeddings

        loaded = Embeddings.load(path)
        return Vectors(loaded.vectors, loaded.ids, loaded.modality)
    if kind == ".parquet":
        return _parquet(path)
    loaded = _numpy(path)
    if isinstance(loaded, np.ndarray):
        return Vectors(loaded)
    tables = {name: loaded[name] for name in loaded.files if loaded[name].ndim == 2}
    name = next(
        (n for n in ("vectors", *_VECTOR_COLUMNS) if n in tables), next(iter(tables)) if len(tables) == 1 else None
    )
    if name is None:
        raise BadInput(
            f"holds {', '.join(loaded.files) or 'nothing'}",
            where=str(path),
            fix="Name the array 'vectors', or two arrays of pairs 'a' and 'b'",
        )
    return Vectors(tables[name], labels=loaded["labels"] if "labels" in loaded.files else None)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(query, item) of every line of a ``.csv`` with a heading or a ``.jsonl``.

    Raises:
        BadInput: it cannot be read, lacks the columns, or is empty.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                records: list[Mapping[str, Any]] = list(csv.DictReader(file))
            else:
                records = [json.loads(line) for line in file if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"cannot be read ({str(error)[:200]})", where=str(path)) from error
    if not records or not all(isinstance(record, Mapping) for record in records):
        raise BadInput("holds no pairs", where=str(path), fix="One query and one item a line")
    query, item = (next((k for k in keys if k in records[0]), None) for keys in (_QUERY_KEYS, _ITEM_KEYS))
    if query is None or item is None:
        raise BadInput(
            f"has the columns {', '.join(map(str, records[0]))}",
            where=str(path),
            fix="Name two columns 'query' and 'item'",
        )
    broken = next((n for n, r in enumerate(records, 1) if r.get(query) is None or r.get(item) is None), None)
    if broken is not None:
        raise BadInput(f"pair {broken} lacks its {query} or {item}", where=str(path))
    return [(str(record[query]), str(record[item])) for record in records]


def _of_store(path: Path, asked: Path | None, matched: Path | None) -> Patient:
    from chiasm.search import Store

    with Store(path, create=False) as store:
        snapshot = store.snapshot(dense=True)
        if snapshot is None or not snapshot.count:
            raise BadInput("the store is empty, there is nothing to examine", where=str(path))
        alive = snapshot.alive
        keep = slice(None) if alive.all() else alive
        # The memory map stays open with the snapshot; only sampled rows are read.
        gallery, notes = snapshot.vectors[keep], []
        modality = snapshot.column("modality").to_numpy(zero_copy_only=False)[keep]
        if store.header.correction is not None:
            notes.append(
                f"The store's correction ({store.header.correction.name}) is left out: the vectors are examined."
            )
        names = ("queries", "items")
        positives = queries = None
        if matched is not None:
            if matched.suffix.lower() not in PAIR_FILES:
                raise BadInput(
                    "for a store pairs are a .csv or .jsonl",
                    where=str(matched),
                    fix="Columns: query (words), item (id)",
                )
            queries, positives = _store_pairs(store, snapshot, keep, asked, matched, len(gallery))
        elif asked is not None:
            queries = _store_queries(store, asked)
        else:
            queries = _everyday(store, notes)
            names = ("everyday phrases", "items")
        return Patient(gallery, queries, positives, None, modality, names, notes)


def _store_pairs(
    store: Store, snapshot: Any, keep: Any, asked: Path | None, matched: Path, n_items: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    pairs = read_pairs(matched)
    ids = [str(i) for i in snapshot.column("id").to_numpy(zero_copy_only=False)[keep]]
    try:
        rows = _numbered(ids, n_items, [i for _, i in pairs], "item", matched, numbers=False)
    except BadInput:  # paths are what people know
        uris = [str(u) for u in snapshot.column("uri").to_numpy(zero_copy_only=False)[keep]]
        rows = _numbered(uris, n_items, [i for _, i in pairs], "item", matched, numbers=False)
    if asked is not None and asked.suffix.lower() != ".txt":
        found = vectors_of_file(asked)
        return found.array, _lists(
            _numbered(found.ids, len(found.array), [q for q, _ in pairs], "query", matched), rows, len(found.array)
        )
    words = list(dict.fromkeys(q for q, _ in pairs))
    place = {word: i for i, word in enumerate(words)}
    queries = store.space.encode(words, role="query", batch_size=128).vectors
    return queries, _lists(np.array([place[q] for q, _ in pairs]), rows, len(words))


def _store_queries(store: Store, asked: Path) -> np.ndarray:
    """Vectors of a file, or of the lines of a text file."""
    if asked.suffix.lower() != ".txt":
        return vectors_of_file(asked).array
    return store.space.encode(read_lines(asked), role="query", batch_size=128).vectors


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, each once.

    Raises:
        BadInput: it cannot be read, or there are none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(path)) from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise BadInput("holds no query", where=str(path), fix="One query a line")
    return found


def _everyday(store: Store, notes: list[str]) -> np.ndarray | None:
    """The bank of everyday phrases, where the store's space encodes text."""
    from chiasm.search.calibrate import null_bank

    try:
        if store.can_encode_text:
            notes.append(
                "Queries: everyday phrases, not questions about this store. Real ones can be given with --queries."
            )
            return null_bank(store.space)
        notes.append("The store's space encodes no text: the items are examined without queries.")
    except ChiasmError as error:
        notes.append(f"The store's space could not be loaded ({error.what}): examined without queries.")
    return None


def _numbered(
    ids: Sequence[str] | None, n: int, names: Sequence[str], kind: str, where: Path, *, numbers: bool = True
) -> np.ndarray:
    """Row of each name; without ids (or if no name is one) names are row numbers."""
    place = {} if ids is None else {name: row for row, name in enumerate(ids)}
    rows = [place.get(name) for name in names]
    if numbers and all(row is None for row in rows) and all(name.isdecimal() for name in names):
        rows = [int(name) if int(name) < n else None for name in names]
    missing = [name for name, row in zip(names, rows) if row is None]
    if missing:
        raise BadInput(
            f"{len(missing)} of {len(names)} pairs name a {kind} that is not there, first {missing[0]!r}",
            where=str(where),
            fix="Use the ids of the file (or row numbers from 0, if it has none)",
        )
    return np.asarray(rows, dtype=np.int64)


def _lists(queries: np.ndarray, items: np.ndarray, n: int) -> list[np.ndarray]:
    """The items of each of n queries."""
    order = np.argsort(queries, kind="stable")
    counts = np.bincount(queries, minlength=n)
    return np.split(items[order], np.cumsum(counts)[:-1])


def _numpy(path: Path) -> Any:
    import zipfile

    try:
        # Never pickle: an array of objects is refused.
        return np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"cannot be read ({str(error)[:200]})", where=str(path)) from error


def _pair_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """The two arrays of an ``.npz`` of pairs and its labels, or None if it holds no pairs."""
    import zipfile

    if not path.exists():
        return None
    loaded = _numpy(path)
    for names in _PAIR_ARRAYS:
        if all(name in loaded.files for name in names):
            try:
                labels = loaded["labels"] if "labels" in loaded.files else None
                return loaded[names[0]], loaded[names[1]], labels
            except (ValueError, zipfile.BadZipFile) as error:
                raise BadInput(f"cannot be read ({str(error)[:200]})", where=str(path)) from error
    return None


def _parquet(path: Path) -> Vectors:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, n = file.schema_arrow, file.metadata.num_rows
            lists = [f.name for f in schema if getattr(f.type, "value_type", None) is not None]
            column = next((c for c in _VECTOR_COLUMNS if c in lists), lists[0] if len(lists) == 1 else None)
            if column is None:
                raise BadInput(
                    f"cannot tell which column holds the vectors ({', '.join(schema.names)})",
                    where=str(path),
                    fix="Name it 'vector'",
                )
            others = [name for name in ("id", "modality", "label") if name in schema.names]
            array, more, row = np.empty((0, 0), np.float32), {name: [] for name in others}, 0
            for batch in file.iter_batches(columns=[column, *others], batch_size=8192):
                values = batch[column]
                flat = np.asarray(values.flatten()).astype(np.float32, copy=False)
                if values.null_count or len(flat) % len(values):
                    raise BadInput(
                        "has rows without a vector or of different lengths", where=f"{path}, column {column}"
                    )
                if not row:
                    array = np.empty((n, len(flat) // len(values)), np.float32)
                if len(flat) != len(values) * array.shape[1]:
                    raise BadInput("has rows of different lengths", where=f"{path}, column {column}")
                array[row : row + len(values)] = flat.reshape(len(values), -1)
                row += len(values)
                for name in others:
                    more[name] += [str(v) for v in batch[name].to_pylist()]
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"cannot be read ({str(error)[:200]})", where=str(path)) from error
    return Vectors(array, more.get("id"), more.get("modality"), np.asarray(more["label"]) if "label" in more else None)

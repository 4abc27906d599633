"""Pairs from files: csv, tsv, jsonl, parquet, webdataset shards, and folders of pictures with captions beside them.

    >>> table = read_pairs("pairs.csv")                      # columns are guessed, or named: columns=("photo", "title")
    >>> table.rows("test"), table.skipped, table.notes

A picture may have several captions (several rows, or a list in one row), a caption several pictures. Pictures are known by
their content: the same picture under two names is one picture, so that a hold-out never has it on both sides. Either
column may hold pictures, recordings or text; what is not text is named by a path, or lies in the file itself as bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.errors import BadInput, ChiasmError, unknown_name
from chiasm.items import content_hash
from chiasm.learn.pair_table import Entry, PairTable, Skipped
from chiasm.learn.splits import HELD_OUT, settled
from chiasm.learn.splits import NAMES as SPLIT_NAMES
from chiasm.learn.tables import Line, Member, lines_of

_FIRST = [
    "image",
    "images",
    "img",
    "picture",
    "photo",
    "image_path",
    "img_path",
    "filepath",
    "file_path",
    "file",
    "file_name",
    "filename",
    "path",
    "jpg",
    "png",
    "audio",
    "sound",
    "wav",
    "video",
    "a",
]
_SECOND = [
    "caption",
    "captions",
    "text",
    "texts",
    "sentence",
    "sentences",
    "title",
    "description",
    "txt",
    "caption_en",
    "captions_en",
    "raw",
    "b",
]
_LABEL = ("label", "class", "category")
_SPLIT = ("split", "subset", "fold")
_ID = ("id", "image_id", "img_id", "key")
_MEDIA_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".ppm",
        ".wav",
        ".flac",
        ".mp3",
        ".ogg",
        ".m4a",
        ".mp4",
        ".mkv",
        ".webm",
    ]
)


def read_pairs(
    path: str | Path,
    *,
    columns: tuple[str | None, str | None] = (None, None),
    split_column: str | None = None,
    label_column: str | None = None,
    root: str | Path | None = None,
    held_out: Mapping[str, float] | None = None,
    seed: int = 0,
) -> PairTable:
    """Reads pairs.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, a webdataset shard (``.tar``) or a folder of shards, or a
            folder of pictures with ``metadata.csv``, ``metadata.jsonl`` or ``captions.jsonl`` in it, or with a ``.txt`` beside
            each picture (every line is a caption).
        columns: names of the two columns; what is None is guessed from common names (``image``, ``file_name``, ...;
            ``caption``, ``text``, ``captions_en``, ...). A column ``captions`` may hold lists, and ``caption_1``,
            ``caption_2``, ... are taken together.
        split_column: names the split of a row; guessed (``split``) where there is one. Without one, or where it names only
            one split, pictures are held out at random.
        label_column: names a class (``label``), for objectives that use classes.
        root: folder that relative paths start from; default the file's own.
        held_out: shares of the pictures for ``val`` and ``test``; default `HELD_OUT`.
        seed: of the hold-out.

    Raises:
        BadInput: the file cannot be read, its columns cannot be told, or not a single pair is left.
        UnknownName: a column that is not there; the nearest are offered.
    """
    path = Path(path).expanduser()
    skipped: list[Skipped] = []
    notes: list[str] = []
    rows = list(lines_of(path, lambda where, why: skipped.append(Skipped(where, why))))
    if not rows:
        why = f"; {len(skipped)} skipped, first {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        raise BadInput(f"holds no pairs{why}", where=str(path), fix="Give a table, shards, or a folder of pictures")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    first, second = _columns(names, columns, str(path))
    base = Path(root).expanduser() if root is not None else path if path.is_dir() else path.parent
    build = _Build(first, second, base, skipped, notes)
    split_name = _optional(names, split_column, _SPLIT, "column", str(path))
    label_name = _optional(names, label_column, _LABEL, "column", str(path))
    id_name = next((n for n in _ID if n in names and n not in (*first, *second)), None)
    for row in rows:
        build.add(row, split_name, label_name, id_name)
    return build.table(str(path), dict(HELD_OUT if held_out is None else held_out), seed)


def table_of(
    pairs: Sequence[Sequence[Any]], *, held_out: Mapping[str, float] | None = None, seed: int = 0
) -> PairTable:
    """The table of pairs in memory: ``[(path of a picture, caption), ...]``, a third entry names the split.

    Raises:
        BadInput: an entry that is no pair, or none is left.
    """
    build = _Build(["image"], ["caption"], Path(), [], [])
    for number, pair in enumerate(pairs):
        if isinstance(pair, (str, bytes)) or len(pair) not in (2, 3):
            raise BadInput(
                "is not (picture, caption) or (picture, caption, split)",
                where=f"pair {number}",
                fix="Or name a file of pairs",
            )
        values = {"image": pair[0], "caption": pair[1], **({"split": pair[2]} if len(pair) == 3 else {})}
        build.add(Line(f"pair {number}", values), "split", None, None)
    return build.table("pairs", dict(HELD_OUT if held_out is None else held_out), seed)


class _Build:
    """Collects entries and pairs row by row."""

    def __init__(
        self, first: Sequence[str], second: Sequence[str], base: Path, skipped: list[Skipped], notes: list[str]
    ) -> None:
        self.names = (first, second)
        self.base, self.skipped, self.notes = base, skipped, notes
        # One side: name -> what was found; hashes are taken together afterwards.
        self.found: tuple[dict[str, Path | Member | str], dict[str, Path | Member | str]] = ({}, {})
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.ids: dict[str, set[str]] = {}
        self.unused: dict[str, int] = {}

    def add(self, row: Line, split_name: str | None, label_name: str | None, id_name: str | None) -> None:
        sides: list[list[str]] = []
        for place, names in enumerate(self.names):
            values = [v for name in names for v in _flat(row.values.get(name))]
            kept = []
            for value in values:
                source = self._source(value, row, names[0], place)
                if isinstance(source, Skipped):
                    self.skipped.append(source)
                elif source is not None:
                    key = source if isinstance(source, str) else str(source)
                    self.found[place].setdefault(key, source)
                    kept.append(key)
            if not kept:
                if not values or all(v is None or not str(v).strip() for v in values):
                    self.skipped.append(Skipped(row.where, f"has no {names[0]}"))
                return
            sides.append(kept)
        split = self._split(row.values.get(split_name) if split_name else None)
        label = str(row.values.get(label_name) or "") if label_name else ""
        if id_name is not None and row.values.get(id_name) not in (None, ""):
            self.ids.setdefault(str(row.values[id_name]), set()).update(sides[0])
        self.rows += [(a, b, split, label, row.where) for a in sides[0] for b in sides[1]]

    def _source(self, value: Any, row: Line, name: str, place: int) -> Path | Member | str | Skipped | None:
        """Where an item's content lies: text as it is, a file, or a part of the table itself; None for an empty cell."""
        if isinstance(value, Member):
            return value
        if isinstance(value, Mapping):  # the datasets library's form of a picture, or a sentence with its words
            inner = next((value[k] for k in ("path", "raw", "text", "caption") if isinstance(value.get(k), str)), None)
            value = inner
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if value is None:
            return None
        if isinstance(value, bytes):
            return Skipped(row.where, f"{name} holds bytes outside a parquet file")
        text = str(value).strip()
        if not text:
            return None
        if place == 1 and Path(text).suffix.lower() not in _MEDIA_SUFFIXES:
            return text
        if "://" in text and not text.startswith("file://"):
            return Skipped(row.where, f"{name} is an address, and nothing is fetched: {text[:200]}")
        if "\0" in text:
            return Skipped(row.where, f"{name} is no path")
        file = (self.base / text.removeprefix("file://")).absolute()
        try:
            there = file.is_file()
        except OSError:  # a name longer than the system takes
            there = False
        if there:
            return file
        # A sentence may end in something like a suffix; a picture that is not there is said.
        if place == 1 and " " in text:
            return text
        return Skipped(row.where, f"there is no file {text[:200]!r}")

    def _split(self, value: Any) -> str:
        name = str(value or "").strip().lower()
        if not name:
            return "?"
        if name not in SPLIT_NAMES:
            self.unused[name] = self.unused.get(name, 0) + 1
            return ""
        return SPLIT_NAMES[name]

    def table(self, where: str, held_out: dict[str, float], seed: int) -> PairTable:
        """Hashes everything, joins equal contents, removes repeated pairs, settles the splits."""
        sides: list[list[Entry]] = []
        maps: list[dict[str, int]] = []
        for found in self.found:
            entries, rows, bad = _distinct(found)
            sides.append(entries)
            maps.append(rows)
            self.skipped += [Skipped(name, why) for name, why in bad.items()]
            joined = len(rows) - len(entries)
            if joined:
                self.notes.append(f"{joined} files hold the same content as another one and count as the same item.")
        seen: dict[tuple[int, int], int] = {}
        pairs, splits, labels, places, twice = [], [], [], [], 0
        for a, b, split, label, place in self.rows:
            if a not in maps[0] or b not in maps[1]:
                continue
            key = maps[0][a], maps[1][b]
            if key in seen:
                twice += 1
                continue
            seen[key] = len(pairs)
            pairs.append(key)
            splits.append(split)
            labels.append(label)
            places.append(place)
        if not pairs:
            first = f": {self.skipped[0].where}: {self.skipped[0].reason}" if self.skipped else ""
            raise BadInput(f"not one pair is left of {len(self.rows) + len(self.skipped)}{first}", where=where)
        if twice:
            self.notes.append(f"{twice} pairs stand there more than once and count once.")
        double = [i for i, names in self.ids.items() if len({maps[0][n] for n in names if n in maps[0]}) > 1]
        if double:
            self.notes.append(
                f"{len(double)} ids name more than one item (first: {double[0][:60]!r}); all of them are kept."
            )
        if self.unused:
            listed = ", ".join(f"{name[:40]!r} ({n})" for name, n in sorted(self.unused.items())[:5])
            self.notes.append(f"Rows of these splits are not used: {listed}.")
        array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        split = settled(np.array(splits, dtype=object), array[:, 0], sides[0], held_out, seed, self.notes)
        names = (self.names[0][0], self.names[1][0])
        return PairTable(sides[0], sides[1], array, split, labels, places, self.skipped, self.notes, names)


def _distinct(
    found: Mapping[str, Path | Member | str],
) -> tuple[list[Entry], dict[str, int], dict[str, str]]:
    """Distinct contents, the row of each name, and names that cannot be read with the reason."""
    bad: dict[str, str] = {}

    def digest(one: tuple[str, Path | Member | str]) -> str | None:
        name, source = one
        try:
            if isinstance(source, str):
                return content_hash(source)
            if isinstance(source, Path):
                with open(source, "rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            return hashlib.sha256(source.read_bytes()).hexdigest()
        except (OSError, ChiasmError) as error:
            bad[name] = f"cannot be read ({error})"
            return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(digest, found.items(), chunksize=64))
    entries: list[Entry] = []
    place: dict[str, int] = {}
    rows: dict[str, int] = {}
    for (name, source), sha in zip(found.items(), hashes):
        if sha is None:
            continue
        if sha not in place:
            place[sha] = len(entries)
            entries.append(Entry(name, sha, source))
        rows[name] = place[sha]
    return entries, rows, bad


def _columns(names: Sequence[str], asked: tuple[str | None, str | None], where: str) -> tuple[list[str], list[str]]:
    """The columns of each side: what was asked for, else the first common name."""
    found: list[list[str]] = []
    for wanted, common, what in zip(asked, (_FIRST, _SECOND), ("pictures", "captions")):
        if wanted is not None:
            chosen = _numbered(wanted, names)
            if not chosen:
                raise unknown_name(f"column of {where}", wanted, names)
        else:
            lower = {name.lower(): name for name in reversed(names)}
            free = [lower[c] for c in common if c in lower and lower[c] not in (found[0] if found else [])]
            chosen = free[:1] or next((n for c in common if (n := _numbered(c, names))), [])
        if not chosen:
            raise BadInput(
                f"cannot tell which column holds the {what} (columns: {', '.join(map(str, names[:20]))})",
                where=where,
                fix="Name it: --columns IMAGE,CAPTION, or columns=(..., ...)",
            )
        found.append(chosen)
    if set(found[0]) & set(found[1]):
        raise BadInput(f"both sides are the column {found[0][0]!r}", where=where, fix="Name two columns")
    return found[0], found[1]


def _numbered(name: str, names: Sequence[str]) -> list[str]:
    """The column of this name, or its numbered ones (``caption_1``, ``caption2``, ...)."""
    if name in names:
        return [name]
    stem = name.lower().rstrip("s")
    return [n for n in names if (rest := n.lower().removeprefix(stem)) != n.lower() and rest.strip("_- ").isdecimal()]


def _optional(names: Sequence[str], wanted: str | None, common: Sequence[str], kind: str, where: str) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise unknown_name(f"{kind} of {where}", wanted, names)
        return wanted
    lower = {name.lower(): name for name in names}
    return next((lower[c] for c in common if c in lower), None)


def _flat(value: Any) -> Iterator[Any]:
    """The values of a cell: one, or those of a list."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _flat(one)
    else:
        yield value

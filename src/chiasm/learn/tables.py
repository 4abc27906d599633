"""Tables of pairs, line by line: csv, tsv, jsonl, parquet, webdataset shards, folders of pictures.

Whatever cannot be read on a line is told and left out; the rest goes on. Content inside an archive or a parquet file stays
there and is read when it is needed (`Member`).
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from chiasm.errors import BadInput

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# What a folder of pictures may have in it, in the order of search.
BESIDE = ("metadata.csv", "metadata.jsonl", "captions.jsonl", "captions.csv", "metadata.parquet")
_TEXT_MEMBERS = ("txt", "caption", "cap", "text")
_MAX_MEMBER = 1 << 30
_MAX_FIELD = 1 << 24  # characters of a csv cell

Tell = Callable[[str, str], object]


@dataclass(frozen=True, slots=True)
class Line:
    """One row: its place for messages, and its values by column."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """Content that lies in another file: bytes of a tar file, or a cell of a parquet file.

    Args:
        file: the archive or table.
        name: what messages call it.
        offset, size: where its bytes lie in a tar file.
        group, row, column: where its cell lies in a parquet file.
    """

    file: Path
    name: str
    offset: int = -1
    size: int = 0
    group: int = -1
    row: int = -1
    column: str = ""

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            OSError: the file is gone or shorter than it was.
        """
        if self.offset >= 0:
            with open(self.file, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
            if len(data) != self.size:
                raise OSError(f"{self} is cut off")
            return data
        value = _column(str(self.file), self.file.stat().st_mtime_ns, self.group, self.column)[self.row]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise OSError(f"{self} holds no bytes")
        return data


@lru_cache(maxsize=2)
def _column(path: str, stamp: int, group: int, column: str) -> list[Any]:
    """A column of a row group; the last two stay, since rows are read in their order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column].to_pylist()


def lines_of(path: Path, tell: Tell) -> Iterator[Line]:
    """The rows of a table, shards or folder.

    Args:
        path: the file or folder.
        tell: called with the place and the reason for everything that is left out.

    Raises:
        BadInput: it does not exist, cannot be read, or is of no known kind.
    """
    try:
        if path.is_dir():
            yield from _folder(path, tell)
        elif not path.is_file():
            raise BadInput("there is no such file or folder", where=str(path))
        elif path.suffix.lower() == ".tar":
            yield from _shard(path, tell)
        elif path.suffix.lower() in TABLES:
            yield from _table(path, tell)
        else:
            raise BadInput(
                f"is no table of pairs ({path.suffix or 'without a suffix'})",
                where=str(path),
                fix=f"Give {', '.join(TABLES)}, .tar shards, or a folder of pictures",
            )
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot be read ({error})", where=str(path), fix="Text must be UTF-8") from error


def _table(path: Path, tell: Tell) -> Iterator[Line]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind in (".csv", ".tsv"):
        yield from _csv(path, tell)
    else:
        yield from _jsonl(path, tell)


def _csv(path: Path, tell: Tell) -> Iterator[Line]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        head = file.read(1 << 14)
        file.seek(0)
        delimiter = "\t"
        if path.suffix.lower() == ".csv":
            first = head.splitlines()[0] if head.strip() else ""
            # The header decides: captions are full of commas, and a sniffer would count them.
            delimiter = max(",;\t|", key=lambda c: (first.count(c), c == ","))
        csv.field_size_limit(_MAX_FIELD)
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            for values in reader:
                where = f"{path}:{reader.line_num}"
                if None in values:
                    tell(where, f"has more cells than the header names ({len(reader.fieldnames or [])})")
                    continue
                yield Line(where, {str(k): v for k, v in values.items()})
        except csv.Error as error:
            raise BadInput(f"is broken ({error})", where=f"{path}:{reader.line_num}") from error


def _jsonl(path: Path, tell: Tell) -> Iterator[Line]:
    with open(path, encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                tell(where, f"is not JSON ({str(error)[:100]})")
                continue
            if isinstance(values, dict):
                yield Line(where, values)
            else:
                tell(where, "is no JSON object")


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def has_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type) for f in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            # A column of bytes stays in the file; its rows are named by their place.
            inside = [f.name for f in schema if has_bytes(f.type)]
            plain = [f.name for f in schema if f.name not in inside]
            number = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=plain) if plain else None
                names = {c: _names(file, group, c) for c in inside}
                for row in range(file.metadata.row_group(group).num_rows):
                    values = {c: table[c][row].as_py() for c in plain} if table is not None else {}
                    for c in inside:
                        name, empty = names[c][row]
                        member = Member(path, f"row={number},{c}{name}", group=group, row=row, column=c)
                        values[c] = None if empty else member
                    yield Line(f"{path}, row {number}", values)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"cannot be read ({str(error)[:200]})", where=str(path)) from error


def _names(file: Any, group: int, column: str) -> list[tuple[str, bool]]:
    """The suffix of each cell's own name, and whether the cell is empty."""
    cells = file.read_row_group(group, columns=[column])[column].to_pylist()
    found = []
    for cell in cells:
        name = cell.get("path") if isinstance(cell, dict) else None
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        found.append((PurePosixPath(name).suffix if isinstance(name, str) else "", not data))
    return found


def _folder(path: Path, tell: Tell) -> Iterator[Line]:
    shards = sorted(path.glob("*.tar"))
    beside = next((path / name for name in BESIDE if (path / name).is_file()), None)
    if beside is not None:
        yield from _table(beside, tell)
    elif shards:
        for shard in shards:
            yield from _shard(shard, tell)
    else:
        yield from _sidecars(path, tell)


def _sidecars(path: Path, tell: Tell) -> Iterator[Line]:
    """Pictures with a text file of the same name; the folder above (``train/``) names the split if it is one."""
    from chiasm.encode.files import walk

    files = list(walk(path))
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    paired = set()
    for file in files:
        if file.suffix.lower() == ".txt":
            continue
        text = texts.get(file.with_suffix(""))
        if text is None:
            tell(str(file), "has no caption: no .txt of the same name beside it")
            continue
        paired.add(text)
        try:
            captions = [line for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            tell(str(text), f"cannot be read ({error})")
            continue
        relative = file.relative_to(path)
        values = {"image": str(relative), "caption": captions}
        if len(relative.parts) > 1 and relative.parts[0].lower() in ("train", "val", "valid", "validation", "test"):
            values["split"] = relative.parts[0]
        yield Line(str(file), values)
    for text in texts.values():
        if text not in paired:
            tell(str(text), "is a caption without a picture")


def _shard(path: Path, tell: Tell) -> Iterator[Line]:
    """Samples of a webdataset shard: members with one key are one sample; pictures stay in the archive."""
    key, sample = "", {}
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isreg() or name.name.startswith("."):
                    if not member.isdir() and not name.name.startswith("."):
                        tell(f"{path}/{member.name}", "not a regular file")
                    continue
                if member.size > _MAX_MEMBER:
                    tell(f"{path}/{member.name}", f"has {member.size} bytes, {_MAX_MEMBER} at most")
                    continue
                base, _, extension = name.name.partition(".")
                this = str(name.parent / base)
                if this != key and sample:
                    yield _sample(path, key, sample, tell)
                    sample = {}
                key = this
                sample[extension.lower()] = Member(path, member.name, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        if not sample and not key:
            raise BadInput(f"is no tar file ({error})", where=str(path)) from error
        tell(str(path), f"the archive cannot be read further ({error})")
    if sample:
        yield _sample(path, key, sample, tell)


def _sample(path: Path, key: str, sample: dict[str, Member], tell: Tell) -> Line:
    values: dict[str, Any] = {}
    captions: list[str] = []
    for extension, member in sample.items():
        if extension in _TEXT_MEMBERS:
            captions += [t for t in member.read_bytes().decode("utf-8", "replace").splitlines() if t.strip()]
        elif extension == "json":
            try:
                facts = json.loads(member.read_bytes())
                values |= facts if isinstance(facts, dict) else {}
            except ValueError as error:
                tell(str(member), f"is not JSON ({str(error)[:100]})")
        elif extension != "cls":
            values.setdefault("image", member)
    if captions:
        values["caption"] = captions
    if not isinstance(values.get("image"), Member):
        values.pop("image", None)  # a path in the facts names no file of ours
    return Line(f"{path}/{key}", {"image": None, "caption": None, **values})

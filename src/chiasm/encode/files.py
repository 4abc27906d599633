"""Files: which ones to read, what they hold, and how their names become addresses that are always valid UTF-8."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from chiasm.encode.formats import Format, detect
from chiasm.errors import BadItem
from chiasm.items import Skipped

# Below this many bytes a file is read once, hashed and decoded from memory, so that hash and content cannot differ.
IN_MEMORY = 64 << 20

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def path_to_uri(path: str | Path) -> str:
    """The address of a file: its absolute path, always valid UTF-8.

    A name that is not valid UTF-8 (possible on Linux) becomes ``file://`` and percent-encoded bytes. Links are not
    resolved. `uri_to_path` is the way back.
    """
    text = os.path.abspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(text))
    return text


def uri_to_path(uri: str) -> Path:
    """The file that an address of `path_to_uri` stands for."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


def is_store(folder: str | Path) -> bool:
    """True for the folder of a store, which is never indexed itself."""
    return str(folder).endswith(".chiasm") or os.path.isfile(os.path.join(folder, "chiasm.json"))


def walk(
    root: str | Path,
    *,
    follow_links: bool = False,
    skipped: list[Skipped] | Callable[[Skipped], object] | None = None,
) -> Iterator[Path]:
    """All regular files below a folder, in an order that depends on nothing but their names.

    Skipped and reported: hidden files and folders (``.git``, ``.DS_Store``, ``._*``; reason ``"hidden"``), folders of
    stores, links (without ``follow_links``), broken links, FIFOs, sockets, devices, and folders that cannot be listed.

    Args:
        root: a folder, or one file, which is then the only result; ``~`` is expanded. A root that is itself a link or
            hidden was named on purpose and is read.
        follow_links: follow links, also out of the folder; no folder is visited twice, so that loops end.
        skipped: receives a `Skipped` for each path left out: a list to append to or a function to call.

    Raises:
        BadItem: ``root`` does not exist or cannot be read.
    """
    tell = skipped.append if isinstance(skipped, list) else (skipped or (lambda _: None))
    base = os.path.abspath(os.path.expanduser(os.fspath(root)))
    try:
        state = os.stat(base)
    except (OSError, ValueError) as error:
        raise BadItem(_reason(error), where=str(root), fix="Name an existing file or folder") from error
    if not stat.S_ISDIR(state.st_mode):
        if stat.S_ISREG(state.st_mode):
            yield Path(base)
        else:
            tell(Skipped(base, f"{_kind(state.st_mode)} is never opened"))
        return
    home = os.path.realpath(base)
    seen = {(state.st_dev, state.st_ino)}
    stack = [base]
    while stack:
        here = stack.pop()
        if os.path.isdir(here):  # a folder; it may have vanished since it was listed
            if is_store(here):
                tell(Skipped(here, "the folder of a Chiasm store"))
                continue
            try:
                names = sorted((os.path.join(here, name) for name in os.listdir(here)), key=os.fsencode, reverse=True)
            except OSError as error:
                tell(Skipped(here, _reason(error)))
                continue
            stack += [name for name in names if _enter(name, home, follow_links, seen, tell)]
        else:
            yield Path(here)


def _enter(path: str, home: str, follow_links: bool, seen: set[tuple[int, int]], tell: Callable) -> bool:
    """True if a folder's entry is a regular file to yield or a folder to visit; otherwise says why not."""
    if os.path.basename(path).startswith("."):
        tell(Skipped(path, "hidden"))
        return False
    try:
        state = os.lstat(path)
        if stat.S_ISLNK(state.st_mode):
            if not follow_links:
                inside = os.path.commonpath([home, os.path.realpath(path)]) == home
                reason = "a link; what it points to is read in its own place" if inside else "a link out of the folder"
                tell(Skipped(path, reason))
                return False
            state = os.stat(path)
    except OSError as error:
        tell(Skipped(path, _reason(error)))
        return False
    if stat.S_ISDIR(state.st_mode):
        key = (state.st_dev, state.st_ino)
        if key in seen:
            tell(Skipped(path, "a link to a folder that is visited already"))
            return False
        seen.add(key)
        return True
    if not stat.S_ISREG(state.st_mode):
        tell(Skipped(path, f"{_kind(state.st_mode)} is never opened"))
        return False
    return True


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a loop of links"
    return str(getattr(error, "strerror", None) or error)


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading; a FIFO, socket, device or folder is refused without waiting on it.

    Raises:
        BadItem: it is not a regular file, does not exist (any more), or may not be read.
    """
    name = show(path)
    try:
        # O_NONBLOCK: if the file is swapped for a FIFO between the listing and here, open must not hang.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise BadItem(f"{_kind(mode)} is never opened", where=name)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise BadItem(_reason(error), where=name) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BadItem("not a regular file any more", where=name)
    return os.fdopen(handle, "rb")


def show(path: str | Path) -> str:
    """A path as messages print it: valid UTF-8 on one line."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class Source:
    """An open file, hashed, as all readers take it.

    Args:
        path: where it lies.
        file: its bytes, positioned at the start.
        size: number of bytes.
        sha256: hash of the bytes (hex).
        format: what its content is; None if nothing here can tell.
    """

    path: Path
    file: BinaryIO
    size: int
    sha256: str
    format: Format | None

    @property
    def name(self) -> str:
        return show(self.path)

    @property
    def uri(self) -> str:
        return path_to_uri(self.path)

    def bad(self, what: str, fix: str | None = None) -> BadItem:
        """The error that says what is wrong with this file."""
        return BadItem(what, where=self.name, fix=fix)


@contextmanager
def open_source(path: str | Path, *, hashed: bool = True) -> Iterator[Source]:
    """Opens, hashes and recognizes a file.

    Args:
        path: the file.
        hashed: compute ``sha256``; a thumbnail does not need it.

    Raises:
        BadItem: it cannot be opened or read, or is empty.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            stream: BinaryIO = io.BytesIO(file.read()) if size <= IN_MEMORY else file
            if isinstance(stream, io.BytesIO):
                size = stream.getbuffer().nbytes
            if size == 0:
                raise BadItem("is empty (0 bytes)", where=show(path))
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest() if hashed else ""  # type: ignore[arg-type]
            found = _detect(stream, Path(path))
        except OSError as error:
            raise BadItem(_reason(error), where=show(path)) from error
        yield Source(Path(path), stream, size, sha256, found)


def _detect(stream: BinaryIO, path: Path) -> Format | None:
    stream.seek(0)
    head = stream.read(4096)
    members: tuple[str, ...] = ()
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(stream) as archive:
                members = tuple(archive.namelist())
        except Exception:  # a broken archive: zipfile raises many kinds of errors
            members = ()
    stream.seek(0)
    return detect(head, path.suffix.lower(), members)


def sniff(path: str | Path) -> str | None:
    """What a file holds: ``"image"``, ``"document"``, ``"audio"``, ``"video"``, ``"text"``, or None.

    The content decides; the extension is asked only where the content cannot tell (raw MPEG audio, plain text in an
    old encoding). None also stands for an empty file, an archive, and anything that cannot be opened.
    """
    try:
        with open_regular(path) as file:
            found = _detect(file, Path(path))
    except (BadItem, OSError):
        return None
    return found.kind if found else None

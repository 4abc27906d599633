"""Webdataset shards: tar files whose members with one key are one sample, streamed into a store."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from chiasm.errors import BadItem
from chiasm.items import Item, item_id
from chiasm.search.importers import files_of
from chiasm.search.results import AddReport, Skipped
from chiasm.space import Space

if TYPE_CHECKING:
    from chiasm.search.store import Store

_MAX_MEMBER = 1 << 30
_TEXT = ("txt", "caption", "cap", "text")


def import_webdataset(
    store: Store, shards: str | Path | Iterable[str | Path], *, batch_size: int = 32, progress: bool = False
) -> AddReport:
    """Encodes and adds the samples of webdataset shards (tar files), streamed.

    Members with one key are one sample: ``.txt`` (or ``.caption``) is the text of its pictures and sounds, and an item
    of its own if there is neither; ``.json`` becomes ``meta``. Members are read through a temporary file of our own
    naming, so that no name inside an archive ever becomes a path; links and devices in it are skipped.

    Args:
        store: must have a space.
        shards: a tar file, a folder of ``*.tar``, or several files.
        batch_size: items per pass through the network.
        progress: show a progress bar.

    Raises:
        BadInput: no such file.
    """
    files = files_of(shards, "*.tar")
    skipped: list[Skipped] = []

    def items() -> Iterator[Item]:
        for path in files:
            try:
                yield from _shard_items(path, store.space, skipped)
            except (tarfile.TarError, OSError, EOFError) as error:
                skipped.append(Skipped(str(path), f"the archive cannot be read further ({error})"))

    report = store.add(items(), batch_size=batch_size, progress=progress)
    report.skipped = skipped + report.skipped
    return report


def _shard_items(path: Path, space: Space, skipped: list[Skipped]) -> Iterator[Item]:
    with tarfile.open(path, mode="r|*") as archive, tempfile.TemporaryDirectory(prefix="chiasm-") as folder:
        key, sample = "", {}
        for member in archive:
            where = f"{path}/{member.name}"
            if not member.isreg():
                if not member.isdir():
                    skipped.append(Skipped(where, "not a regular file"))
                continue
            name = PurePosixPath(member.name)
            if name.name.startswith("."):
                continue
            if member.size > _MAX_MEMBER:
                skipped.append(Skipped(where, f"has {member.size} bytes, {_MAX_MEMBER} at most"))
                continue
            base, _, extension = name.name.partition(".")
            this = str(name.parent / base)
            if this != key and sample:
                yield from _sample_items(path, key, sample, space, Path(folder), skipped)
                sample = {}
            key = this
            file = archive.extractfile(member)
            sample[extension.lower()] = (member.name, b"" if file is None else file.read())
        if sample:
            yield from _sample_items(path, key, sample, space, Path(folder), skipped)


def _sample_items(
    shard: Path, key: str, sample: dict[str, tuple[str, bytes]], space: Space, folder: Path, skipped: list[Skipped]
) -> Iterator[Item]:
    """The items of one sample: its media with its text and facts, or its text if there are no media."""
    from chiasm.encode.files import path_to_uri
    from chiasm.encode.read import read

    caption, meta = "", {"key": key}
    text_member = ""
    for extension, (name, data) in sample.items():
        if extension in _TEXT:
            caption, text_member = data.decode("utf-8", "replace").strip(), name
        elif extension == "json":
            try:
                facts = json.load(io.BytesIO(data))
                meta |= facts if isinstance(facts, dict) else {"json": facts}
            except ValueError as error:
                skipped.append(Skipped(f"{shard}/{name}", f"not JSON ({error})"))
    caption = caption or str(meta.get("caption") or "")
    media = 0
    for extension, (name, data) in sample.items():
        if extension in (*_TEXT, "json", "cls"):
            continue
        media += 1
        uri = f"{path_to_uri(shard)}/{_utf8(name)}"
        # Only the last suffix of a plain form is kept from the archive's name; it can help to recognize the format.
        suffix = re.sub(r"[^a-z0-9]", "", extension.rsplit(".", 1)[-1])[:8]
        member = folder / f"member.{suffix or 'bin'}"
        try:
            member.write_bytes(data)
            found = read(member, transcribe=space.speech_as_text)
        except BadItem as error:
            skipped.append(Skipped(f"{shard}/{name}", error.what))
            continue
        finally:
            member.unlink(missing_ok=True)
        for item in found:
            yield Item(
                item.modality,
                item.content,
                uri,
                item.part,
                item.text or caption,
                item.sha256,
                {**item.meta, **meta},
                item_id(uri, item.part),
            )
    if caption and not media:
        yield Item("text", caption, f"{path_to_uri(shard)}/{_utf8(text_member or key)}", "", caption, meta=meta)


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")

"""`read`: any supported file becomes items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from chiasm.encode.files import Source, open_source
from chiasm.encode.images import MIN_SIDE
from chiasm.errors import BadItem, ChiasmError
from chiasm.items import Item


def read(path: str | Path, *, transcribe: bool = False, min_side: int | None = MIN_SIDE) -> list[Item]:
    """The searchable things in a file; at least one. Safe to call from several threads.

    A picture is one item (a TIFF one per page); a document its chunks of text and its pictures; a recording its
    segments of 30 seconds; a clip up to 16 frames and its sound track. Every item has ``uri``, ``part``, ``sha256`` (of
    the file) and ``meta`` with ``format`` and ``size`` (bytes). What bounds cut off is said in ``meta["truncated"]``
    of all items of the file. The content decides what a file is, not its name.

    Args:
        path: the file.
        transcribe: recognize speech (English) in recordings and clips into ``Item.text``.
        min_side: pictures and frames are read at reduced size with their shorter side at least this many pixels,
            which is several times faster for photographs of a camera; None for full size.

    Raises:
        BadItem: it cannot be opened, is no supported format, or is corrupt; the message says which.
        MissingExtra: its reader's package is not installed.
    """
    with open_source(path) as source:
        try:
            items = _read(source, transcribe, min_side)
        except ChiasmError:
            raise
        except (Exception, RecursionError) as error:  # a hostile file must not end the indexing of the others
            raise source.bad(f"could not be read ({type(error).__name__}: {str(error)[:200]})") from error
        name = source.format.name if source.format else ""
        return [replace(item, meta={"format": name, "size": source.size, **item.meta}) for item in items]


def _read(source: Source, transcribe: bool, min_side: int | None) -> list[Item]:
    found = supported(source)
    if found == "image":
        from chiasm.encode.images import read_image

        return read_image(source, min_side=min_side)
    if found == "audio":
        from chiasm.encode.audio import read_audio

        return read_audio(source, transcribe=transcribe)
    if found == "video":
        from chiasm.encode.video import read_video

        return read_video(source, transcribe=transcribe, min_side=min_side)
    from chiasm.encode.documents import read_document

    return read_document(source, min_side=min_side)


def supported(source: Source) -> str:
    """The kind of a file that can be read.

    Raises:
        BadItem: it cannot; the message says what it is.
    """
    if source.format is None:
        raise source.bad(
            "is not a picture, document, recording, clip or text (archives are not unpacked)",
            "Leave it out, or convert it to a supported format",
        )
    if source.format.refusal:
        raise BadItem(source.format.refusal, where=source.name)
    return source.format.kind

"""Documents: chunks of text with their place (page, slide, sheet and rows, heading) and the pictures inside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from chiasm.encode import chunks
from chiasm.encode.files import Source
from chiasm.encode.images import MAX_PIXELS, MIN_SIDE
from chiasm.items import Item

# Bounds per file; what they leave out is said in meta["truncated"] of every item of the file.
MAX_CHUNKS = 4000
MAX_PICTURES = 500
# Smaller pictures are bullets, rules and icons.
MIN_PICTURE_SIDE = 64


@dataclass(frozen=True, slots=True)
class Passage:
    """A run of text that belongs together, before it is cut into chunks.

    Args:
        text: the text.
        place: what ``part`` begins with, for example ``"page=3"``; ``""`` if the format has no places.
        meta: facts that all its chunks share.
        whole: the text is one chunk already (rows of a table).
    """

    text: str
    place: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture inside a document; ``part`` is its place, for example ``"page=3,image=1"``."""

    image: Image.Image
    part: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Trace:
    """What a reader had to leave out of a file; ends up in the items' ``meta``."""

    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_document(source: Source, *, min_side: int | None = MIN_SIDE) -> list[Item]:
    """The chunks of text and the pictures of a document or text file, in reading order.

    Text chunks have modality ``text``, at most about 180 words, and in ``meta`` where they stand: ``page``, ``slide``,
    ``sheet`` and ``rows``, ``heading``, ``title``. Pictures have modality ``image``; a PDF page without text is
    rendered as one. If bounds cut something off, every item says so in ``meta["truncated"]``.

    Args:
        source: the open file, of kind ``document`` or ``text``.
        min_side: large pictures are reduced, as in `chiasm.encode.images.read_image`.

    Raises:
        BadItem: corrupt, encrypted, a zip or XML bomb, or nothing readable inside.
        MissingExtra: the reader's package is not installed.
    """
    trace = Trace()
    items: list[Item] = []
    counts: dict[str, int] = {}
    seen: set[bytes] = set()
    pictures = 0
    for piece in _pieces(source, min_side, trace):
        if isinstance(piece, Picture):
            key = hashlib.sha256(f"{piece.image.size}".encode() + piece.image.tobytes()).digest()
            if key in seen:
                continue  # the logo on every page
            if pictures >= MAX_PICTURES:
                trace.note(f"only the first {MAX_PICTURES} pictures were read")
                continue
            seen.add(key)
            pictures += 1
            items.append(Item("image", piece.image, source.uri, piece.part, sha256=source.sha256, meta=piece.meta))
            continue
        text = chunks.clean(piece.text)
        for chunk in [text.strip()] if piece.whole else chunks.chunk(text):
            if not chunk:
                continue
            if len(items) - pictures >= MAX_CHUNKS:
                trace.note(f"only the first {MAX_CHUNKS} chunks of text were read")
                break
            counts[piece.place] = number = counts.get(piece.place, 0) + 1
            part = f"{piece.place},chunk={number}" if piece.place else f"chunk={number}"
            items.append(Item("text", chunk, source.uri, part, chunk, source.sha256, piece.meta))
        if len(items) - pictures >= MAX_CHUNKS and pictures >= MAX_PICTURES:
            break
    if not items:
        raise source.bad("holds neither text nor pictures" + "".join(f"; {note}" for note in trace.notes))
    if trace.notes:
        said = "; ".join(trace.notes)
        items = [_with_meta(item, truncated=said) for item in items]
    return items


def _with_meta(item: Item, **more: Any) -> Item:
    return replace(item, meta={**item.meta, **more})


def _pieces(source: Source, min_side: int | None, trace: Trace) -> Iterator[Passage | Picture]:
    name = source.format.name if source.format else "plain"
    if name == "pdf":
        from chiasm.encode.pdf import read_pdf

        return read_pdf(source, min_side, trace)
    if name in ("docx", "pptx", "xlsx"):
        from chiasm.encode import office

        return getattr(office, f"read_{name}")(source, min_side, trace)
    from chiasm.encode import prose

    return getattr(prose, f"read_{name}")(source, trace)


def worth_reading(width: int, height: int) -> bool:
    """True for an embedded picture of reasonable size: not a bullet or a rule, and not a decompression bomb."""
    return min(width, height) >= MIN_PICTURE_SIDE and width * height <= MAX_PIXELS


def table_passages(rows: Iterable[tuple[int, list[str]]], place: str, meta: dict[str, Any]) -> Iterator[Passage]:
    """Rows of a table as passages of whole rows, each opened by the table's header.

    A first row of words without numbers is the header. Long rows are cut by the chunker.

    Args:
        rows: row numbers (from 1) and cells; empty rows are left out.
        place: ``part`` of the table, for example ``"sheet=Prices"``.
        meta: facts of all its chunks; ``rows`` ("first-last") is added.
    """
    header, header_row, budget = "", 0, chunks.MAX_PIECES
    held: list[str] = []
    used = first = last = 0
    for number, cells in rows:
        line = " | ".join(" ".join(chunks.clean(cell).split()) for cell in cells).strip(" |")
        if not line:
            continue
        cost = chunks.pieces(line) + 1
        if not last and not header and _is_header(cells) and cost <= budget // 4:
            header, header_row, budget = line, number, budget - cost
            continue
        if held and used + cost > budget:
            yield _rows_passage(header, held, first, last, place, meta)
            held, used = [], 0
        last = number
        if cost > budget:
            for chunk in chunks.chunk(line, limit=budget):
                yield _rows_passage(header, [chunk], number, number, place, meta)
            continue
        first = first if held else number
        held.append(line)
        used += cost
    if held:
        yield _rows_passage(header, held, first, last, place, meta)
    elif header and not last:
        yield _rows_passage("", [header], header_row, header_row, place, meta)


def _rows_passage(header: str, held: list[str], first: int, last: int, place: str, meta: dict[str, Any]) -> Passage:
    text = "\n".join([header, *held] if header else held)
    return Passage(text, place, {**meta, "rows": f"{first}-{last}"}, whole=True)


def _is_header(cells: list[str]) -> bool:
    filled = [cell.strip() for cell in cells if cell.strip()]
    return len(filled) >= 2 and not any(
        any(c.isdigit() for c in cell) and not any(c.isalpha() for c in cell) for cell in filled
    )

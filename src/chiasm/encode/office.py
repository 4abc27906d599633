"""Word, PowerPoint and Excel files (the XML formats), guarded against zip and entity bombs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from chiasm.encode.documents import Passage, Picture, Trace, table_passages, worth_reading
from chiasm.encode.files import Source
from chiasm.encode.formats import detect
from chiasm.encode.images import decode, open_image
from chiasm.errors import BadItem, missing_extra

# Uncompressed bounds of one file. A DOM takes about ten times the bytes of its XML; sheets are streamed.
MAX_MEMBERS = 20_000
MAX_BYTES = 1 << 30
MAX_XML_BYTES = 128 << 20
MAX_ROWS = 100_000  # of one workbook
MAX_COLUMNS = 256
MAX_DEPTH = 20  # of groups within groups
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"


def _guard(source: Source) -> None:
    """Refuses bombs before any parser sees them.

    The sizes in a zip directory can be trusted as bounds: zipfile never inflates more than they say.
    """
    try:
        source.file.seek(0)
        with zipfile.ZipFile(source.file) as archive:
            members = archive.infolist()
            xml = [m for m in members if m.filename.lower().endswith((".xml", ".rels", ".vml"))]
            if len(members) > MAX_MEMBERS:
                raise source.bad(f"is a zip file with {len(members)} members (limit {MAX_MEMBERS}); it was not opened")
            for what, found, limit in (("", members, MAX_BYTES), (" of XML", xml, MAX_XML_BYTES)):
                total = sum(m.file_size for m in found)
                if total > limit:
                    raise source.bad(
                        f"would unpack to {total >> 20} MiB{what} (limit {limit >> 20}; a zip bomb?); it was not unpacked"
                    )
            if any(m.flag_bits & 1 for m in members):
                raise source.bad("is encrypted", "Save a copy without a password")
            for member in xml:
                _refuse_entities(archive, member, source)
    except BadItem:
        raise
    except Exception as error:
        raise source.bad(f"is not a readable zip archive ({error})") from error
    source.file.seek(0)


def _refuse_entities(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Source) -> None:
    # Office never writes a document type; without one there are no entities that could expand.
    tail = b""
    with archive.open(member) as file:
        while block := file.read(1 << 20):
            window = (tail + block).replace(b"\0", b"")  # UTF-16 too
            if b"<!DOCTYPE" in window or b"<!ENTITY" in window:
                raise source.bad(f"declares XML entities in {member.filename} (an entity bomb?); it was not parsed")
            tail = block[-32:]


def _parse(source: Source, feature: str, package: str, opener: Any) -> Any:
    _guard(source)
    try:
        return opener(source.file)
    except ImportError as error:
        raise missing_extra(feature, "media", package) from error
    except Exception as error:  # the parsers assume well-formed parts
        raise source.bad(f"is not a readable {source.format.name if source.format else ''} file ({error})") from error


def _picture(blob: bytes, part: str, meta: dict[str, Any], min_side: int | None, trace: Trace) -> Iterator[Picture]:
    """The picture in an embedded file, unless it is too small, a vector drawing, or broken (which is noted)."""
    found = detect(blob[:4096])
    if found is None or found.kind != "image" or found.refusal:
        return  # EMF, WMF, SVG drawings
    try:
        image = open_image(io.BytesIO(blob), found.name, part)
        if not worth_reading(*image.size):
            return
        size = {"width": image.width, "height": image.height}
        yield Picture(decode(image, part, min_side=min_side), part, {**meta, **size})
    except BadItem as error:
        trace.note(f"a picture could not be read ({error})")


def _cells(rows: Iterable[Any]) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(rows, start=1):
        cells: list[str] = []
        previous = None
        for cell in row.cells:
            # Word lists a merged cell once per column it covers.
            if getattr(cell, "_tc", cell) is not previous:
                cells.append(cell.text)
            previous = getattr(cell, "_tc", cell)
        yield number, cells


def read_docx(source: Source, min_side: int | None, trace: Trace) -> Iterator[Passage | Picture]:
    """Paragraphs under their headings, tables as rows, embedded pictures; headers and footers are left out."""

    def opener(file: Any) -> Any:
        import docx

        return docx.Document(file)

    document = _parse(source, "reading Word files", "python-docx", opener)
    title = (document.core_properties.title or "").strip()
    base = {"title": title} if title else {}
    heading, lines, tables = "", [], 0
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            yield Passage("\n".join(lines), "", base | ({"heading": heading} if heading else {}))
            lines, tables = [], tables + 1
            yield from table_passages(
                _cells(block.rows), f"table={tables}", base | ({"heading": heading} if heading else {})
            )
            continue
        style = (block.style.name or "") if block.style is not None else ""
        if style.startswith(("Heading", "Title")) and block.text.strip():
            yield Passage("\n".join(lines), "", base | ({"heading": heading} if heading else {}))
            heading, lines = block.text.strip(), []
        if text := _with_equations(block):
            lines.append(text + ("\n" if style.startswith(("Heading", "Title")) else ""))
    yield Passage("\n".join(lines), "", base | ({"heading": heading} if heading else {}))
    number = 0
    for relation in document.part.rels.values():
        if "image" in relation.reltype and not relation.is_external:
            number += 1
            yield from _picture(relation.target_part.blob, f"image={number}", base, min_side, trace)


def _with_equations(paragraph: Any) -> str:
    """A paragraph's text; its equations, which are no runs of text, follow as ``$$...$$`` in one line each."""
    equations = ["".join(t.text or "" for t in m.iter(f"{_MATH}t")) for m in paragraph._p.iter(f"{_MATH}oMath")]
    shown = [f"$${equation.strip()}$$" for equation in equations if equation.strip()]
    return "\n".join([paragraph.text, *shown] if paragraph.text.strip() else shown)


def read_pptx(source: Source, min_side: int | None, trace: Trace) -> Iterator[Passage | Picture]:
    """Slide by slide: its texts, tables and pictures, then the speaker's notes."""

    def opener(file: Any) -> Any:
        import pptx

        return pptx.Presentation(file)

    deck = _parse(source, "reading PowerPoint files", "python-pptx", opener)
    for number, slide in enumerate(deck.slides, start=1):
        title = slide.shapes.title.text.strip() if slide.shapes.title is not None else ""
        meta: dict[str, Any] = {"slide": number} | ({"title": title} if title else {})
        lines, pictures = [], []
        for shape in _shapes(slide.shapes, trace):
            if getattr(shape, "has_text_frame", False) and shape.text_frame.text.strip():
                lines.append(shape.text_frame.text)
            elif getattr(shape, "has_table", False) and shape.has_table:
                rows = ([cell.text for cell in row.cells] for row in shape.table.rows)
                lines += [" | ".join(cells) for cells in rows if any(cells)]
            elif hasattr(shape, "image"):
                pictures.append(shape)
        yield Passage("\n\n".join(lines), f"slide={number}", meta)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            yield Passage(slide.notes_slide.notes_text_frame.text, f"slide={number},notes", {**meta, "notes": True})
        for index, shape in enumerate(pictures, start=1):
            try:
                blob = shape.image.blob
            except Exception as error:  # a picture that is only linked, or whose part is missing
                trace.note(f"picture {index} on slide {number} could not be read ({error})")
                continue
            yield from _picture(blob, f"slide={number},image={index}", meta, min_side, trace)


def _shapes(shapes: Any, trace: Trace, depth: int = 0) -> Iterator[Any]:
    for shape in shapes:
        if not hasattr(shape, "shapes"):
            yield shape
        elif depth < MAX_DEPTH:
            yield from _shapes(shape.shapes, trace, depth + 1)
        else:
            trace.note(f"groups nested deeper than {MAX_DEPTH} were not read")


def read_xlsx(source: Source, min_side: int | None, trace: Trace) -> Iterator[Passage]:
    """Rows of each visible sheet, several to a chunk, each chunk opened by the sheet's header row."""

    def opener(file: Any) -> Any:
        import openpyxl

        return openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)

    book = _parse(source, "reading Excel files", "openpyxl", opener)
    try:
        left = MAX_ROWS
        for sheet in book.worksheets:
            if sheet.sheet_state != "visible":
                trace.note(f"the hidden sheet {sheet.title!r} was not read")
                continue
            columns = sheet.max_column or 0
            # What a file says about its own size can be wrong, on purpose or not; an absurd size fills memory with gaps.
            sheet.reset_dimensions()
            if columns > MAX_COLUMNS:
                trace.note(f"only the first {MAX_COLUMNS} columns of sheet {sheet.title!r} were read")
            rows = sheet.iter_rows(max_col=MAX_COLUMNS, values_only=True)
            counted = _Counted(islice(rows, left + 1), left)
            meta = {"sheet": sheet.title}
            yield from table_passages(counted, f"sheet={sheet.title}", meta)
            left -= counted.seen
            if counted.more:
                trace.note(f"only the first {MAX_ROWS} rows were read, up to sheet {sheet.title!r}")
                break
    except Exception as error:
        raise source.bad(f"is not a readable xlsx file ({error})") from error
    finally:
        book.close()


class _Counted:
    """Rows as texts with their numbers; knows afterwards how many there were and whether the limit cut some off."""

    def __init__(self, rows: Iterable[tuple[Any, ...]], limit: int) -> None:
        self.rows, self.limit, self.seen, self.more = rows, limit, 0, False

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        for number, row in enumerate(self.rows, start=1):
            if number > self.limit:
                self.more = True
                return
            self.seen = number
            yield number, ["" if value is None else _shown(value) for value in row]


def _shown(value: Any) -> str:
    text = str(value)
    # Midnight is how spreadsheets store a plain date; 3.0 is how they store a 3.
    return text.removesuffix(" 00:00:00") if not isinstance(value, float) else f"{value:.15g}"

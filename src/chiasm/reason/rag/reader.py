"""The document reader: a file as passages of text, pictures, tables and equations, with their pages and captions.

It stands on `chiasm.encode.read`, which opens, bounds and chunks every format; here a chunk of text is looked through for
what is not running text, and captions are given to what they belong to.

    text      runs of sentences, as chunked by the encoder
    table     sheets, CSV and Word tables; tables in Markdown; lines of figures in columns on a PDF page
    equation  $$ ... $$, \\[ ... \\], \\begin{equation}; in PDF and Word also lines that are formulas
    image     pictures in documents, pages without text, picture files; audio and video come as they are
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chiasm.items import Item, item_id
from chiasm.reason.rag.messages import Passage

# Formats whose equations stand as plain lines; in the others such a line is more often source code.
_FORMULA_LINES = frozenset(("pdf", "docx"))
_CAPTION = re.compile(
    r"^[ \t]*((?P<kind>fig(?:ure)?|chart|diagram|photo(?:graph)?|image|table|tab|eq(?:uation)?)\.?[ \t]*"
    r"(?P<number>[A-Z]?\d+(?:\.\d+)*)[.:)]?[ \t]+\S[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_KINDS = {"table": "table", "tab": "table", "eq": "equation", "equation": "equation"}
_DISPLAYED = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\begin\{(equation|align|gather|multline|eqnarray)\*?\}(.+?)\\end\{\3\*?\}", re.DOTALL
)
_NUMBER = re.compile(r"[-+(]?[$€£]?\d[\d,.]*%?\)?|[-–—]|n/?a", re.IGNORECASE)
_OPERATOR = re.compile(r"[=≤≥≈≡∝∑∏∫√∂∈∞→±≠]")
_WORD = re.compile(r"[A-Za-z]{4,}")
_RULE = re.compile(r"[\s|:+\-–—=]*")


@dataclass(frozen=True, slots=True)
class _Block:
    kind: str  # "text", "table" or "equation"
    text: str


def read_units(source: str | Path | Item | Sequence[Item], /, *, transcribe: bool = False) -> list[Passage]:
    """A file as passages, in reading order.

    Args:
        source: a path, or items that `chiasm.encode.read` has made already.
        transcribe: recognize speech in recordings and clips.

    Returns:
        Passages with the reader's facts in ``meta`` (``page``, ``heading``, ``sheet``, ``rows``, ``title`` ...) and
        ``caption`` where one stands on the same page. The ids of whole chunks and pictures are those a store gives them.

    Raises:
        BadItem: the file cannot be read, or holds neither text nor pictures.
        MissingExtra: its reader's package is not installed.
    """
    if isinstance(source, Item):
        items: Sequence[Item] = [source]
    elif isinstance(source, (str, Path)):
        from chiasm.encode import read

        items = read(Path(source).expanduser(), transcribe=transcribe)
    else:
        items = source
    return with_captions(_with_headers([unit for item in items for unit in units_of(item)]))


def units_of(item: Item) -> list[Passage]:
    """One item as passages; see `read_units`."""
    base = Passage(
        item.id,
        item.text or (item.content if isinstance(item.content, str) else ""),
        item.modality,
        item.uri,
        item.part,
        dict(item.meta),
        content=None if isinstance(item.content, str) else item.content,
    )
    if item.modality != "text":
        return [base]
    if "rows" in item.meta or item.part.startswith("table="):
        return [replace(base, modality="table")]
    blocks = list(_blocks(base.text, formulas=item.meta.get("format") in _FORMULA_LINES))
    if [block.kind for block in blocks] == ["text"]:
        return [base]
    found, counts = [], {"text": 0, "table": 0, "equation": 0}
    for block in blocks:
        counts[block.kind] += 1
        part = ",".join(piece for piece in (item.part, f"{block.kind}={counts[block.kind]}") if piece)
        name = item.id if block.kind == "text" and counts["text"] == 1 else item_id(item.uri or item.sha256, part)
        found.append(
            replace(base, id=name, text=block.text, modality=block.kind, part=item.part if name == item.id else part)
        )
    return found


def _with_headers(units: Sequence[Passage]) -> list[Passage]:
    """Gives the rows of a table that goes on in the next chunk the names of their columns."""
    out: list[Passage] = []
    for unit in units:
        before = out[-1] if out else None
        goes_on = (
            before is not None
            and unit.modality == before.modality == "table"
            and "rows" not in unit.meta  # sheets and Word tables carry their header already
            and unit.part.endswith("table=1")
            and (unit.uri, unit.meta.get("heading")) == (before.uri, before.meta.get("heading"))
        )
        if goes_on and before is not None:
            header, first = before.text.split("\n", 1)[0], unit.text.split("\n", 1)[0]
            if header != first and header.count("|") == first.count("|"):
                unit = replace(unit, text=f"{header}\n{unit.text}")
        out.append(unit)
    return out


def with_captions(units: Sequence[Passage]) -> list[Passage]:
    """Gives each picture, table and equation the caption that belongs to it, and drops equations read twice.

    The n-th caption of a kind on a page belongs to the n-th unit of that kind there; without pages the document counts
    as one page. Chunks overlap, so that an equation at the end of one can be at the beginning of the next.
    """
    captions: dict[tuple[str, Any, str], list[str]] = {}
    for unit in units:
        if unit.modality in ("text", "table"):
            for found in _CAPTION.finditer(unit.text):
                kind = _KINDS.get(found["kind"].casefold().rstrip("."), "image")
                held = captions.setdefault((unit.uri, unit.page, kind), [])
                line = " ".join(found[1].split())
                if line not in held:
                    held.append(line)
    seen: set[tuple[str, Any, str]] = set()
    taken: dict[tuple[str, Any, str], int] = {}
    out = []
    for unit in units:
        if unit.modality == "equation":
            key = (unit.uri, unit.page, unit.text)
            if key in seen:
                continue
            seen.add(key)
        if unit.modality in ("image", "table", "equation") and "caption" not in unit.meta:
            place = (unit.uri, unit.page, unit.modality)
            number = taken.get(place, 0)
            taken[place] = number + 1
            if number < len(captions.get(place, ())):
                unit = _captioned(unit, captions[place][number])
        out.append(unit)
    return out


def _captioned(unit: Passage, caption: str) -> Passage:
    # A picture's words are its caption: without them no search in words could find it.
    text = unit.text or caption if unit.modality == "image" else unit.text
    return replace(unit, text=text, meta={**unit.meta, "caption": caption})


def _blocks(text: str, *, formulas: bool) -> Iterator[_Block]:
    """Runs of text, tables and equations, in order."""
    at = 0
    for found in _DISPLAYED.finditer(text):
        inner = next(group for group in (found[1], found[2], found[4]) if group is not None).strip()
        if not _OPERATOR.search(inner) and "\\" not in inner:
            continue  # "$$" as money or a shell's process number
        yield from _line_blocks(text[at : found.start()], formulas)
        yield _Block("equation", " ".join(inner.split()))
        at = found.end()
    yield from _line_blocks(text[at:], formulas)


def _line_blocks(text: str, formulas: bool) -> Iterator[_Block]:
    lines = text.split("\n")
    held: list[str] = []

    def flush() -> Iterator[_Block]:
        joined = "\n".join(held).strip()
        held.clear()
        if joined:
            yield _Block("text", joined)

    place = 0
    while place < len(lines):
        taken, table = _table_at(lines, place)
        if taken:
            yield from flush()
            yield _Block("table", table)
            place += taken
            continue
        if formulas and _is_formula(lines[place]):
            yield from flush()
            yield _Block("equation", " ".join(lines[place].split()))
        else:
            held.append(lines[place])
        place += 1
    yield from flush()


def _table_at(lines: Sequence[str], place: int) -> tuple[int, str]:
    """How many lines from here are a table, and its rows with cells parted by `` | ``; 0 if there is none."""
    for cells_of, least in ((_barred, 3), (_tabbed, 3), (_figures, 3)):
        rows, end = [], place
        while end < len(lines):
            cells = cells_of(lines[end])
            # A blank line between rows is layout, as Markdown's reader makes it.
            if cells is None and rows and not lines[end].strip() and end + 1 < len(lines) and cells_of(lines[end + 1]):
                end += 1
                continue
            if cells is None or (rows and len(cells) != len(rows[0]) and cells_of is not _barred):
                break
            rows.append(cells)
            end += 1
        if len(rows) >= least or (cells_of is _barred and len(rows) == 2):
            return end - place, "\n".join(" | ".join(row) for row in rows if any(row))
        if cells_of is _figures and not rows:
            taken, table = _headed_figures(lines, place)
            if taken:
                return taken, table
    return 0, ""


def _headed_figures(lines: Sequence[str], place: int) -> tuple[int, str]:
    """A line of column names over lines of figures."""
    names = lines[place].split()
    if place + 2 >= len(lines) or lines[place].rstrip().endswith((".", ":", "?", "!", ";")):
        return 0, ""
    taken, table = _table_at(lines, place + 1)
    first = _figures(lines[place + 1])
    if not taken or first is None or not len(first) - 1 <= len(names) <= len(first) + 3:
        return 0, ""
    columns = len(first) - 1
    header = [" ".join(names[: len(names) - columns]), *names[len(names) - columns :]]
    return taken + 1, " | ".join(header) + "\n" + table


def _barred(line: str) -> list[str] | None:
    if line.count("|") < 1 or not line.strip(" |\t"):
        return None
    if _RULE.fullmatch(line):
        return []
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    return cells if len(cells) >= 2 else None


def _tabbed(line: str) -> list[str] | None:
    cells = [cell.strip() for cell in line.strip("\n").split("\t")]
    return cells if len(cells) >= 2 and sum(bool(cell) for cell in cells) >= 2 else None


def _figures(line: str) -> list[str] | None:
    """A label and at least two figures in columns."""
    words = line.split()
    first = len(words)
    while first and _NUMBER.fullmatch(words[first - 1]):
        first -= 1
    if not 1 <= first <= 6 or len(words) - first < 2:
        return None
    return [" ".join(words[:first]), *words[first:]]


def _is_formula(line: str) -> bool:
    text = line.strip()
    return (
        3 <= len(text) <= 200
        and _OPERATOR.search(text) is not None
        and len(_WORD.findall(text)) <= 2
        and not text.endswith((";", "{", "}", ","))
        and any(c.isalpha() for c in text)
    )

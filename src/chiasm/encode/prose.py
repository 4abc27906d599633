"""Text files: plain text and source code, Markdown and HTML with their headings, CSV as a table."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from typing import Any

from chiasm.encode.documents import Passage, Trace, table_passages
from chiasm.encode.files import Source
from chiasm.errors import missing_extra

MAX_BYTES = 16 << 20  # what is read of a text file; 4000 chunks are about 4 MB of English
MAX_HTML_BYTES = 8 << 20
MAX_MARKDOWN = 2_000_000  # characters; beyond, the file is read as plain text

# What a page shows around its content.
_NOT_CONTENT = frozenset(
    ("title", "script", "style", "noscript", "template", "nav", "iframe", "object", "svg", "canvas", "form")
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_APART = _HEADINGS | {"p"}  # what stands between blank lines
_BLOCK_NAMES = (
    "div section article main header footer aside ul ol li dl dt dd pre blockquote table tr caption figure figcaption "
    "hr address details summary"
)
_BLOCKS = _APART | frozenset(_BLOCK_NAMES.split())


def decode_text(raw: bytes) -> str:
    """Bytes as text: UTF-8 (a cut last character is dropped), UTF-16 with a byte order mark, else Latin-1."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if raw.startswith(mark):
            return raw[len(mark) :].decode(name, "replace")
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(raw)
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _read(source: Source, trace: Trace, limit: int) -> bytes:
    source.file.seek(0)
    raw = source.file.read(limit)
    if source.size > limit:
        trace.note(f"the first {limit >> 20} of {source.size >> 20} MiB were read")
    return raw


def read_plain(source: Source, trace: Trace) -> Iterator[Passage]:
    """Plain text, logs, JSON, source code: as it is."""
    yield Passage(decode_text(_read(source, trace, MAX_BYTES)))


def read_csv(source: Source, trace: Trace) -> Iterator[Passage]:
    """Rows of a table, several to a chunk, each chunk opened by the header row."""
    text = decode_text(_read(source, trace, MAX_BYTES))
    first = text[:10_000].lstrip().split("\n", 1)[0]
    delimiter = max((",", ";", "\t", "|"), key=first.count)
    lines = text.replace("\0", "").splitlines(keepends=True)
    try:
        rows = list(enumerate(csv.reader(lines, delimiter=delimiter), start=1))
    except csv.Error:  # a field beyond csv's limit: no table
        yield Passage(text)
        return
    yield from table_passages(rows, "", {})


def read_markdown(source: Source, trace: Trace) -> Iterator[Passage]:
    """Markdown without its marks, section by section; ``meta.heading`` is the heading above.

    Raises:
        MissingExtra: markdown-it-py is not installed.
    """
    text = decode_text(_read(source, trace, MAX_BYTES))
    if len(text) > MAX_MARKDOWN:
        yield Passage(text)
        return
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise missing_extra("reading Markdown files", "media", "markdown-it-py") from error
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    heading, blocks, opened = "", [], False
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            yield _section(heading, blocks)
            heading, blocks, opened = "", [], True
        elif token.type == "inline":
            line = _inline(token)
            if opened:
                heading = " ".join(line.split())
            # Cells of one row stand on one line.
            if (
                blocks
                and index
                and tokens[index - 1].type in ("td_open", "th_open")
                and tokens[index - 2].type != "tr_open"
            ):
                blocks[-1] += " | " + line
            else:
                blocks.append(line)
        elif token.type == "heading_close":
            opened = False
        elif token.type in ("fence", "code_block"):
            blocks.append(token.content)
        elif token.type == "html_block":
            blocks.append(re.sub(r"<[^<>]*>", " ", token.content))
    yield _section(heading, blocks)


def _section(heading: str, blocks: list[str]) -> Passage:
    return Passage("\n\n".join(blocks), "", {"heading": heading} if heading else {})


def _inline(token: Any) -> str:
    parts = []
    for child in token.children or ():
        if child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type == "image":
            parts.append(child.content or "")  # its description
        elif child.type != "html_inline":
            parts.append(child.content)
    return "".join(parts)


def read_html(source: Source, trace: Trace) -> Iterator[Passage]:
    """The visible text of a page, section by section, without scripts, styles and navigation; its title in ``meta``.

    Raises:
        BadItem: nested too deeply.
        MissingExtra: beautifulsoup4 or lxml is not installed.
    """
    try:
        import bs4  # noqa: F401
        import lxml  # noqa: F401
    except ImportError as error:
        raise missing_extra("reading HTML files", "media", "beautifulsoup4") from error
    raw = _read(source, trace, MAX_HTML_BYTES)
    try:
        page = _parse_html(raw)
        title = " ".join(page.title.get_text().split())[:300] if page.title else ""
        sections = _sections(page)
    except RecursionError as error:
        raise source.bad("is HTML that is nested too deeply") from error
    base = {"title": title} if title else {}
    for heading, body in sections:
        name = " ".join("".join(heading).split())
        yield Passage(_lines("".join(body)), "", base | ({"heading": name} if name else {}))


def _sections(page: Any) -> list[tuple[list[str], list[str]]]:
    """The (heading, text) parts of a page, in one pass over it: linear also for hostile nesting.

    A line ends where the innermost block changes; a heading opens a section that contains it.
    """
    from bs4 import CData, NavigableString, Tag

    # For each tag: its innermost block, whether it is content, its innermost heading. Parents come before children.
    known: dict[int, tuple[Any, bool, Any]] = {id(page): (None, True, None)}
    sections: list[tuple[list[str], list[str]]] = [([], [])]
    last_block = last_heading = None
    for node in page.descendants:
        block, content, heading = known[id(node.parent)]
        if isinstance(node, Tag):
            name = node.name
            block = node if name in _BLOCKS else block
            heading = node if name in _HEADINGS else heading
            known[id(node)] = (block, content and name not in _NOT_CONTENT, heading)
            if content and name in ("br", "td", "th"):
                sections[-1][1].append("\n" if name == "br" else " ")
        elif content and type(node) in (NavigableString, CData) and node.strip():
            if heading is not last_heading and heading is not None:
                sections.append(([], []))
            elif block is not last_block:
                apart = any(b is not None and b.name in _APART for b in (block, last_block))
                sections[-1][1].append("\n\n" if apart else "\n")
            last_block, last_heading = block, heading
            if heading is not None:
                sections[-1][0].append(str(node))
            sections[-1][1].append(str(node))
        elif content and type(node) is NavigableString:
            sections[-1][1].append(" ")
    return sections


def _parse_html(raw: bytes) -> Any:
    from bs4 import BeautifulSoup

    # XHTML is read as HTML on purpose: that parser ignores entity declarations. An XML declaration would only bring a
    # warning that it might have been meant otherwise.
    return BeautifulSoup(re.sub(rb"^\s*<\?xml[^>]*>", b"", raw, count=1), "lxml")


def _lines(text: str) -> str:
    """Runs of spaces joined and blank lines reduced to one, as a browser would show them."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

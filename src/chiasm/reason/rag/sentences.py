"""Sentences of a text as spans, also where a page's layout has broken them into lines."""

from __future__ import annotations

import re

_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_LINE = re.compile(r"[^\n]+")
# The end of a sentence: its mark, closing quotes, space; or a full-width mark, after which no space is written.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*")
# A point after these ends no sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:e\.g|i\.e|cf|vs|etc|al|approx|ca|no|nos|fig|figs|eq|eqs|sec|ch|vol|pp?|dr|mr|mrs|ms|prof|st|jr|sr|inc|ltd|dept|[A-Z])\.$",
    re.IGNORECASE,
)
_NEXT = re.compile(r"\s*(\S)")
# What opens a line that stands for itself: a bullet, a number of a list, a heading, a row of a table.
_OPENS = re.compile(r"[-*•·–—#|>]|\(?\d{1,3}[.)]\s|\(?[a-z][.)]\s")
# A line this much shorter than the paragraph's longest was ended on purpose, not by the edge of the page.
_FULL = 0.7


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, in order, without the space around it; together they hold all visible text.

    A line break ends a sentence only if the line says so: it ends like a sentence, is much shorter than its
    paragraph's longest line, or the next line opens a list, a heading or a table row.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for gap in [*_PARAGRAPH.finditer(text), None]:
        end = gap.start() if gap else len(text)
        for left, right in _lines(text, start, end):
            spans += _in_line(text, left, right)
        start = gap.end() if gap else end
    return spans


def sentences(text: str) -> list[str]:
    """The sentences of `sentence_spans`, each on one line."""
    return [" ".join(text[start:end].split()) for start, end in sentence_spans(text)]


def _lines(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """A paragraph's lines, those joined that the page's edge has parted."""
    lines = [match.span() for match in _LINE.finditer(text, start, end)]
    longest = max((right - left for left, right in lines), default=0)
    joined: list[tuple[int, int]] = []
    for left, right in lines:
        if joined:
            before = text[joined[-1][0] : joined[-1][1]]
            last_line = before[before.rfind("\n") + 1 :]
            goes_on = (
                len(last_line) >= _FULL * longest
                and not before.rstrip().endswith((":", ";", "|"))
                and not _OPENS.match(text[left:right].lstrip())
                and "|" not in last_line
            )
            if goes_on:
                joined[-1] = (joined[-1][0], right)
                continue
        joined.append((left, right))
    return joined


def _in_line(text: str, start: int, end: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    left = start
    for match in _END.finditer(text, start, end):
        right = match.end()
        follows = _NEXT.match(text, right, end)
        lower = follows is not None and follows[1].islower()
        if text[right - 1] == "." and (lower or _ABBREVIATION.search(text[max(left, right - 12) : right])):
            continue
        spans.append((left, right))
        left = right
    spans.append((left, end))
    out = []
    for left, right in spans:
        piece = text[left:right]
        inner = piece.strip()
        if inner:
            left += len(piece) - len(piece.lstrip())
            out.append((left, left + len(inner)))
    return out

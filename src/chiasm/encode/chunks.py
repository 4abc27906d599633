"""The one chunker: text of any format in pieces that a sentence encoder sees whole."""

from __future__ import annotations

import re
from itertools import pairwise

# all-MiniLM-L6-v2 sees 256 word pieces, two of them its own marks; the rest is room for estimates that are too low.
MAX_PIECES = 230
# What the next chunk repeats of the one before, so that a sentence keeps its neighbor.
OVERLAP = 40
# A chunk prefers to end with a paragraph once it is this full.
FULL_ENOUGH = 0.6

# Where a text may be cut, strongest first: after a blank line, after a sentence or line, after a word.
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+|\n\s*")
_WORD = re.compile(r"\S+")
_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufffe\uffff]")


def clean(text: str) -> str:
    """Text without control characters and lone surrogates, with ``\\n`` for every kind of line end."""
    text = re.sub(r"\r\n?|\f|\x85|\u2028|\u2029", "\n", text)
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode()


def pieces(text: str) -> int:
    """An upper estimate of how many word pieces a tokenizer makes of a text.

    A common word is one piece, a long one several; digits go by two; every character outside ASCII and every
    punctuation mark is a piece of its own (true for Chinese, generous for most alphabets).
    """
    total = 0
    for match in _PIECE.finditer(text):
        size = match.end() - match.start()
        first = match.group()[0]
        if not first.isascii():
            total += size
        elif first.isalpha():
            # Long words are names and compounds, which the tokenizer cuts finely.
            total += 1 + (size - 1) // 6 if size < 12 else 2 * size // 5 + 1
        else:
            total += (size + 1) // 2
    return total


def chunk_spans(text: str, *, limit: int = MAX_PIECES, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """Cuts a text into chunks ``text[start:end]`` of at most ``limit`` estimated word pieces.

    Chunks end at paragraphs where that wastes little room, else at sentences or lines; only a sentence that is too
    long for one chunk is cut between words, and a word that is too long between characters. Each chunk repeats up to
    ``overlap`` pieces (whole sentences) of the one before. Every visible character is in at least one chunk.

    Args:
        text: any text.
        limit: pieces per chunk; 230 fits all-MiniLM-L6-v2 (256) also where `pieces` is too low.
        overlap: pieces repeated at most; 0 for none.

    Returns:
        Start and end of each chunk, in order; empty if the text holds nothing visible.
    """
    units = _units(text, limit)
    overlap = min(overlap, limit // 3)  # well below FULL_ENOUGH, so that every chunk brings something new
    spans: list[tuple[int, int]] = []
    first = 0
    while first < len(units):
        last, used, paragraph = first, 0, None
        while last < len(units) and (last == first or used + units[last][2] <= limit):
            used += units[last][2]
            last += 1
            if last < len(units) and units[last][3] and used >= FULL_ENOUGH * limit:
                paragraph = last
        if last < len(units) and paragraph is not None:
            last = paragraph
        spans.append((units[first][0], units[last - 1][1]))
        if last == len(units):
            break
        # Step back over whole sentences, but always forward of this chunk's start.
        back, repeated = last, 0
        while back - 1 > first and repeated + units[back - 1][2] <= overlap:
            back -= 1
            repeated += units[back][2]
        # A repetition that leaves no room for the next unit would make a chunk of nothing new.
        first = back if repeated + units[last][2] <= limit else last
    return spans


def chunk(text: str, *, limit: int = MAX_PIECES, overlap: int = OVERLAP) -> list[str]:
    """The chunks of `chunk_spans` as strings."""
    return [text[start:end] for start, end in chunk_spans(text, limit=limit, overlap=overlap)]


def _units(text: str, limit: int) -> list[tuple[int, int, int, bool]]:
    """The smallest parts that chunks are made of: (start, end, pieces, starts a paragraph), without outer spaces."""
    units: list[tuple[int, int, int, bool]] = []
    for start, end in _split(text, 0, len(text), _PARAGRAPH):
        opens = True
        for left, right in _split(text, start, end, _SENTENCE):
            cost = pieces(text[left:right])
            parts = [(left, right, cost)] if cost <= limit else _split_long(text, left, right, limit)
            for part in parts:
                units.append((*part, opens))
                opens = False
    return units


def _split(text: str, start: int, end: int, cut: re.Pattern) -> list[tuple[int, int]]:
    """The spans between matches of ``cut`` (which stay with the span before), stripped; empty ones are left out."""
    edges = [start, *(match.end() for match in cut.finditer(text, start, end)), end]
    spans = []
    for left, right in pairwise(edges):
        piece = text[left:right]
        inner = piece.strip()
        if inner:
            left += len(piece) - len(piece.lstrip())
            spans.append((left, left + len(inner)))
    return spans


def _split_long(text: str, start: int, end: int, limit: int) -> list[tuple[int, int, int]]:
    """A sentence that is too long for one chunk, as runs of words (of characters, if a word is too long)."""
    parts: list[tuple[int, int, int]] = []
    left, right, used = start, start, 0
    for match in _WORD.finditer(text, start, end):
        cost = pieces(match.group())
        if used and used + cost > limit // 2:  # halves pack better with their neighbors than whole chunks
            parts.append((left, right, used))
            used = 0
        if not used:
            left = match.start()
        if cost > limit:
            # limit // 2 characters cost at most as many pieces, whatever they are.
            step = max(limit // 2, 1)
            for at in range(match.start(), match.end(), step):
                stop = min(at + step, match.end())
                parts.append((at, stop, pieces(text[at:stop])))
            used = 0
            continue
        right, used = match.end(), used + cost
    if used:
        parts.append((left, right, used))
    return parts

"""The contact sheet: search results as one self-contained HTML page, thumbnails inside, no script, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from chiasm.errors import ChiasmError, StoreError

if TYPE_CHECKING:
    from chiasm.search import Hit, SearchResult

# Nothing may be loaded or run, whatever a file's name or text holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --pale: #667080; --page: #f6f7f9; --card: #fff; --line: #dde2e8; --bar: #2f7d5b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebef; --pale: #98a2b0; --page: #14171b; --card: #1e2329; --line: #323a44; --bar: #5cc295; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 88rem; background: var(--page); color: var(--ink);
       font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 small, .pale { color: var(--pale); font-weight: normal; font-size: .85rem; }
nav { margin: .75rem 0; display: flex; flex-wrap: wrap; gap: .4rem; }
nav a { color: inherit; text-decoration: none; border: 1px solid var(--line); border-radius: 1rem; padding: .1rem .7rem; }
nav a.none { color: var(--pale); border-style: dashed; }
section { margin: 1.6rem 0; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; display: flex; flex-direction: column; }
li img, li .words { display: block; width: 100%; height: 10rem; }
li img { object-fit: contain; background: var(--page); }
li .words { padding: .7rem .8rem; overflow: hidden; font-family: Georgia, serif; font-size: .9rem; overflow-wrap: anywhere; }
li footer { padding: .5rem .7rem .6rem; border-top: 1px solid var(--line); font-size: .8rem; margin-top: auto; }
li footer a, li footer b { color: inherit; font-weight: 600; display: block; overflow-wrap: anywhere; }
.relevance { display: flex; align-items: center; gap: .4rem; font-variant-numeric: tabular-nums; }
.relevance i { flex: 1; height: .4rem; border-radius: .2rem; background: var(--line); overflow: hidden; }
.relevance i::before { content: ""; display: block; height: 100%; width: var(--share); background: var(--bar); }
.nothing { border: 1px dashed var(--line); border-radius: .5rem; padding: 1rem 1.2rem; }
.nothing ol { margin-top: .8rem; opacity: .75; }
summary { cursor: pointer; color: var(--pale); }
"""


def write(path: Path, results: Sequence[SearchResult], *, title: str, intro: str = "") -> Path:
    """Writes the page.

    Args:
        path: the HTML file.
        results: one section each.
        title: heading of the page.
        intro: a line below it.

    Raises:
        StoreError: the file cannot be written.
    """
    path = path.expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(results, title=title, intro=intro), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StoreError(f"cannot be written ({error.strerror})", where=str(path)) from error
    return path


def page(
    results: Sequence[SearchResult],
    *,
    title: str,
    intro: str = "",
    thumbnail: Callable[[str, str], bytes] | None = None,
) -> str:
    """The page as HTML.

    Args:
        results: one section each.
        title: heading of the page.
        intro: a line below it.
        thumbnail: ``(uri, part) -> JPEG or PNG bytes``, raises `BadItem`; default `chiasm.encode.thumbnails.thumbnail`.
    """
    if thumbnail is None:
        from chiasm.encode.thumbnails import thumbnail
    pictures = _Pictures(thumbnail)
    links = "".join(
        f'<a href="#q{n}"{" class=none" if result.nothing_here else ""}>{escape(result.query)}</a>'
        for n, result in enumerate(results)
    )
    sections = "\n".join(_section(result, n, pictures) for n, result in enumerate(results))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>"
        + (f'<p class="pale">{escape(intro)}</p>' if intro else "")
        + (f"<nav>{links}</nav>" if len(results) > 1 else "")
        + f"\n{sections}\n</body></html>\n"
    )


class _Pictures:
    """Thumbnails as data addresses, each made once though several queries may find its item."""

    def __init__(self, make: Callable[[str, str], bytes]) -> None:
        self._make = make
        self._made: dict[tuple[str, str], str | None] = {}

    def of(self, hit: Hit) -> str | None:
        key = hit.uri, hit.part
        if key not in self._made:
            try:
                data = self._make(*key)
                kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
                self._made[key] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            except (ChiasmError, OSError):  # gone or changed since it was indexed: the card says what it was
                self._made[key] = None
        return self._made[key]


def _section(result: SearchResult, number: int, pictures: _Pictures) -> str:
    cards = "".join(_card(hit, pictures) for hit in result.hits)
    grid = f"<ol>{cards}</ol>" if cards else ""
    facts = f"{result.seconds * 1000:.0f} ms"
    if result.p_value is not None:
        facts = f"{p_value(result.p_value)}, {facts}"
    head = f"<h2>{escape(result.query)} <small>{facts}</small></h2>"
    if result.nothing_here:
        more = f"<details><summary>Show the nearest anyway</summary>{grid}</details>" if grid else ""
        body = (
            f'<div class="nothing"><b>Nothing here.</b> <span class="pale">No item fits these words.</span>{more}</div>'
        )
    else:
        body = grid or '<p class="pale">No item passes the filters.</p>'
    return f'<section id="q{number}">{head}{body}</section>'


def p_value(p: float) -> str:
    """``p = 0.031``; what rounds to zero is not zero."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _card(hit: Hit, pictures: _Pictures) -> str:
    name = hit.uri.rstrip("/").rpartition("/")[2] or hit.uri or hit.id
    picture = pictures.of(hit) if hit.uri and hit.modality != "text" else None
    if picture is not None:
        top = f'<img src="{picture}" alt="{escape(name)}">'
    else:
        top = f'<div class="words">{escape(_cut(hit.text) or f"({hit.modality}, no preview)")}</div>'
    heard = f'<div class="pale">{escape(_cut(hit.text, 120))}</div>' if picture is not None and hit.text else ""
    link = file_address(hit.uri)
    label = f'<a href="{escape(link)}">{escape(name)}</a>' if link else f"<b>{escape(name)}</b>"
    return (
        f'<li>{top}<footer>{label}{heard}<div class="pale">{escape(_facts(hit))}</div>{_relevance(hit)}</footer></li>'
    )


def _relevance(hit: Hit) -> str:
    if hit.relevance is None:
        return ""
    percent = f"{min(max(hit.relevance, 0.0), 1.0):.0%}"
    return f'<div class="relevance" title="relevance"><i style="--share: {percent}"></i>{percent}</div>'


def _facts(hit: Hit) -> str:
    return ", ".join(fact for fact in (hit.modality, hit.part, f"score {hit.score:.3f}") if fact)


def _cut(text: str, limit: int = 280) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 1].rstrip() + "…"


def file_address(uri: str) -> str | None:
    """A ``file://`` address to link to; None for anything that is not a file (no ``javascript:`` from a foreign table)."""
    from chiasm.encode.files import uri_to_path

    try:
        path = uri_to_path(uri)
        return path.as_uri() if path.is_absolute() else None
    except (ChiasmError, ValueError):
        return None

"""What the commands print and the contact sheet: plain, safe whatever names and texts hold, and honest about nothing."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser

import pytest

from chiasm.cli import contact_sheet
from chiasm.cli.console import one_line, printable
from chiasm.cli.search import facts, moment, show
from chiasm.errors import BadInput, BadItem
from chiasm.search import Hit, SearchResult

# ---- what is printed


def hit(uri: str = "/media/a.png", **fields) -> Hit:
    values = {"id": "1", "part": "", "modality": "image", "score": 0.5, "relevance": 0.75, **fields}
    return Hit(uri=uri, **values)


def test_nothing_here_hides_the_nearest_until_asked(capsys):
    result = SearchResult("an elephant", [hit()], nothing_here=True, p_value=0.4, calibrated=True)
    show(result)
    out = capsys.readouterr().out
    assert out == "Nothing here for 'an elephant' (p = 0.400).\nAdd --show-nearest to see the nearest anyway.\n"
    show(result, show_nearest=True)
    assert "/media/a.png" in capsys.readouterr().out
    show(result, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["nothing_here"] is True
    assert len(found["hits"]) == 1


def test_an_uncalibrated_result_says_so(capsys):
    show(SearchResult("<image>", [hit(relevance=None)]))
    said = capsys.readouterr()
    assert "not calibrated" in said.err
    assert "%" not in said.out


def test_names_cannot_move_the_cursor_or_break_lines(capsys):
    show(SearchResult("x", [hit("/m/\x1b[31mred\nnew\u202egnp.exe", text="a\x07b")], calibrated=True))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert len(out.splitlines()) == 2
    assert "\\nnew" in out
    assert printable("a\tb") == "a\\tb"
    assert one_line("a\n b" + "c" * 200, 20).endswith("…")
    assert len(one_line("c" * 200, 20)) == 20


def test_a_name_that_looks_like_markup_is_printed_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show(SearchResult("x", [hit("/m/[bold]x[/bold].png")], calibrated=True))
    assert "[bold]x[/bold].png" in capsys.readouterr().out.replace("\n", "")


def test_where_conditions():
    assert facts(["page=3", "kind=pdf", "width>=800", "a!=b", "ok=true", "t==1.5", "x=a=b", 'q="3"']) == {
        "page": 3,
        "kind": "pdf",
        "width": (">=", 800),
        "a": ("!=", "b"),
        "ok": True,
        "t": 1.5,
        "x": "a=b",
        "q": "3",
    }
    assert facts([]) is None
    for bad in ("page", "=3", ""):
        with pytest.raises(BadInput):
            facts([bad])


def test_times_without_a_zone_are_local():
    given = moment("2026-05-31T14:00", "--since")
    assert given is not None
    assert given.tzinfo is not None
    assert (given.hour, given.day) == (14, 31)
    assert moment("2026-05-31T14:00+00:00", "--since").timestamp() == 1780236000
    assert moment(None, "--since") is None


# ---- the contact sheet

PIXEL = b"\x89PNG\r\n\x1a\n-not-really-"


class Page(HTMLParser):
    """Collects tags and attributes, and fails on anything that could load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} on {tag}"
            if name in ("src", "href"):
                self.addresses.append(value)

    def handle_data(self, data):
        self.words += data


def test_page_holds_everything_and_loads_nothing():
    results = [
        SearchResult(
            "a cat",
            [hit(), hit("/media/b.pdf", modality="text", text="words of it", part="page=2")],
            p_value=0.01,
            calibrated=True,
        ),
        SearchResult("sushi", [hit()], nothing_here=True, p_value=0.8, calibrated=True),
        SearchResult("empty", []),
    ]
    made = []

    def thumbnail(uri, part):
        made.append((uri, part))
        return PIXEL

    page = Page(contact_sheet.page(results, title="T", thumbnail=thumbnail))
    assert made == [("/media/a.png", "")]  # once, though two queries found it
    assert page.tags.count("section") == 3
    assert page.tags.count("img") == 2
    assert page.tags.count("details") == 1
    assert not {"script", "iframe", "link", "form"} & set(page.tags)
    assert "Nothing here" in page.words
    assert "Show the nearest anyway" in page.words
    assert "words of it" in page.words
    assert all(a.startswith(("data:image/", "#q", "file:///media/")) for a in page.addresses)


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'onload='x", "</style><script>x</script>"]
)
def test_page_escapes_everything(evil: str):
    result = SearchResult(
        evil, [hit(f"/media/{evil}", text=evil, part=evil), hit(f"javascript:{evil}", modality="text", text=evil)]
    )
    page = Page(contact_sheet.page([result, result], title=evil, intro=evil, thumbnail=lambda uri, part: PIXEL))
    assert "script" not in page.tags
    assert evil in page.words
    assert not any(a.startswith("javascript:") for a in page.addresses)


def test_page_survives_a_vanished_file():
    def gone(uri, part):
        raise BadItem("is gone", where=uri)

    page = Page(contact_sheet.page([SearchResult("x", [hit(text="what was heard")])], title="T", thumbnail=gone))
    assert "img" not in page.tags
    assert "what was heard" in page.words

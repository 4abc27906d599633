"""``chiasm search "words"``: find things by words or by a file, or be told that nothing fits."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.console import bar, note, one_line, print_json, print_table, printable, waiting
from chiasm.cli.contact_sheet import p_value, write
from chiasm.cli.filter_options import ModalityOption, PathOption, WhereOption
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, open_store
from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.search import SearchResult

PANEL, PLACE = "Search", 2


def command(
    query: Annotated[str | None, typer.Argument(help="Words.", show_default=False)] = None,
    store: StoreOption = DEFAULT_STORE,
    k: Annotated[int, typer.Option("-k", "--limit", help="Number of hits.")] = 10,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "--image", "-f", help="Search by this picture, recording, clip or document.", show_default=False
        ),
    ] = None,
    modality: ModalityOption = None,
    path: PathOption = None,
    where: WhereOption = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only what was indexed at or after this time, for example 2026-05-31.", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Only what was indexed before this time.", show_default=False)
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Mix with full-text search.")] = False,
    rate: Annotated[float, typer.Option(help="Share of absent things that may pass as found.")] = 0.05,
    show_nearest: Annotated[
        bool, typer.Option("--show-nearest", help="Show the nearest items even if nothing fits.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the hits with thumbnails to this page.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find things by words, or by a file."""
    if (query is None) == (file is None):
        raise BadInput(
            "give either words or --file", where="chiasm search", fix='For example: chiasm search "a red boat"'
        )
    asked: str | Path = query if query is not None else existing_file(file)
    filters = {
        "modality": modality or None,
        "path": path,
        "where": facts(where or []),
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
    }
    with open_store(store) as opened, waiting("searching"):
        result = opened.search(asked, k, hybrid=hybrid, rate=rate, **filters)
    show(result, as_json=as_json, html=html, show_nearest=show_nearest)


def existing_file(path: Path | None) -> Path:
    """The path, if there is a file.

    Raises:
        BadInput: there is none.
    """
    path = Path("") if path is None else path.expanduser()
    if not path.is_file():
        raise BadInput("there is no such file", where=str(path))
    return path


def facts(conditions: list[str]) -> dict[str, Any] | None:
    """Conditions on ``meta`` as `Store.search` takes them.

    ``["page=3", "width>=800"]`` -> ``{"page": 3, "width": (">=", 800)}``; numbers, true and false are values, the rest
    is text.

    Raises:
        BadInput: it is not NAME, one of ``= != < <= > >=``, VALUE.
    """
    found: dict[str, Any] = {}
    for condition in conditions:
        parts = re.fullmatch(r"([^=<>!]+)(==|!=|<=|>=|=|<|>)(.*)", condition, re.DOTALL)
        if parts is None:
            raise BadInput(
                f"{condition!r} is not NAME=VALUE", where="--where", fix="For example: page=3 or 'width>=800'"
            )
        name, operator, text = parts.groups()
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if not isinstance(value, int | float | bool | str):
            value = text
        found[name.strip()] = value if operator in ("=", "==") else (operator, value)
    return found or None


def moment(text: str | None, option: str) -> datetime | None:
    """A time written as ISO 8601; without a zone it is the local one.

    Raises:
        BadInput: it cannot be read.
    """
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise BadInput(
            f"{text!r} is not a time", where=option, fix="Write it like 2026-05-31 or 2026-05-31T14:00"
        ) from error


def show(result: SearchResult, *, as_json: bool = False, html: Path | None = None, show_nearest: bool = False) -> None:
    """Prints a result as a table or as JSON, and writes its page if asked to."""
    if html is not None:
        write(html, [result], title=f"Search: {result.query}")
    if as_json:
        print_json(result.to_json())
        return
    if result.nothing_here:
        p = "" if result.p_value is None else f" ({p_value(result.p_value)})"
        typer.echo(f"Nothing here for {printable(result.query)!r}{p}.")
        if result.hits and not show_nearest:
            typer.echo("Add --show-nearest to see the nearest anyway.")
    elif not result.hits:
        typer.echo("No item passes the filters, or the store is empty.")
    if result.hits and (show_nearest or not result.nothing_here):
        print_hits(result)
        if not result.calibrated:
            note("Relevance is not calibrated for this query: the order counts, not the size.")
    if html is not None:
        typer.echo(f"Page: {html}")


def print_hits(result: SearchResult) -> None:
    """The table of hits."""
    rows = []
    for place, hit in enumerate(result.hits, 1):
        sure = "" if hit.relevance is None else f"{bar(hit.relevance)} {hit.relevance:4.0%}"
        snippet = one_line(hit.text, 60) if hit.text else ""
        rows.append([str(place), sure, f"{hit.score:.3f}", hit.modality, hit.uri or hit.id, hit.part, snippet])
    columns = ["#", "relevance", "score", "kind", "item", "part", "text"]
    print_table(columns, rows, right=("#", "score"), dim=result.nothing_here)

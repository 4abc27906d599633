"""What the commands print: tables for people, plain lines for pipes and logs, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

# What could move the cursor, color the terminal or break a line when it stands in a file's name or text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    r"""The text with control characters written as escapes (a line break becomes ``\n``), safe for a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(text: str, limit: int = 90) -> str:
    """The text with white space folded, cut at ``limit`` characters."""
    folded = printable(" ".join(text.split()))
    return folded if len(folded) <= limit else folded[: limit - 1].rstrip() + "…"


def error(message: str) -> None:
    """One red line on stderr (without color where it is not a terminal)."""
    typer.secho(f"Error: {printable(message)}", fg="red", err=True)


def note(message: str) -> None:
    """One line on stderr: what is going on, kept out of the result on stdout."""
    typer.echo(printable(message), err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    # ASCII escapes survive every terminal encoding, and lone surrogates of odd file names.
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def stdout() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), dim: bool = False
) -> None:
    """A table: drawn on a terminal without its empty columns; elsewhere all columns, aligned, without cuts or colors.

    Args:
        columns: headings.
        rows: cells as text; control characters are escaped here.
        right: headings of the columns that are aligned right.
        dim: draw it pale (nearest hits of an empty result).
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        filled = [place for place in range(len(columns)) if not cells or any(row[place] for row in cells)]
        table = Table(box=SIMPLE_HEAD, header_style="bold", row_styles=["dim"] if dim else None)
        for place in filled:
            table.add_column(columns[place], justify="right" if columns[place] in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(row[place]) for place in filled))  # Text: names may look like rich markup
        stdout().print(table)
        return
    widths = [max(len(row[place]) for row in (list(columns), *cells)) for place in range(len(columns))]
    for row in (list(columns), *cells):
        padded = [cell.rjust(w) if name in right else cell.ljust(w) for name, cell, w in zip(columns, row, widths)]
        typer.echo("  ".join(padded).rstrip())


def bar(share: float, width: int = 10) -> str:
    """A bar for a share in [0, 1], for example ``███████░░░``."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows a spinner on a terminal while something slow without a known length runs; silent elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield

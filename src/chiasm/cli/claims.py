"""``chiasm claims table``: write the public table of claims into the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The public table of claims.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The public table of claims."""


@app.command("table")
def table(
    results: Annotated[Path, typer.Option(help="Folder with the results of chiasm reproduce.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("docs/claims.md"),
) -> None:
    """Write all results as one page: verdicts, intervals, ablations, provenance."""
    from chiasm.claims.table import markdown, read_results

    reports = read_results(results)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(reports), encoding="utf-8")
    typer.echo(f"{out}: {len(reports)} claims")

"""``chiasm compare``: all objectives side by side, with the same towers, pairs, steps and seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def command(
    objectives: Annotated[
        list[str] | None, typer.Argument(help="Objectives, for example filip tcl. Default: all.", show_default=False)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="Data to compare on, by the beginning of its name; may be repeated.", show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...", min=1)] = 3,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of every arm.", show_default="300", min=1)] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data sets.", envvar="CHIASM_DATA", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are kept; runs that are there are not made again.")] = Path(
        "results/tables/objectives.json"
    ),
    page: Annotated[
        Path | None,
        typer.Option(help="Also put the table into this Markdown page, between its markers.", show_default=False),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="One seed, a few steps, nothing is written: does it run?")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """Train every objective with equal encoders, data, steps and seeds, and show recall on held-out pairs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from chiasm.claims.data import Data
    from chiasm.claims.side_by_side import SETTINGS, STEPS, compare, rows_of
    from chiasm.errors import BadInput, unknown_name

    chosen = []
    for text in setting or []:
        found = [name for name in SETTINGS if name.lower().startswith(text.lower())]
        if not found:
            raise unknown_name("setting", text, SETTINGS)
        chosen += found
    if page is not None and (not page.exists() or BEGIN not in page.read_text(encoding="utf-8")):
        raise BadInput(f"has no line {BEGIN!r}", where=str(page), fix="Put the two markers where the table belongs")
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bars:
        task = bars.add_task("", total=None)
        table = compare(
            Data(data, smoke=smoke),
            objectives=objectives,
            settings=chosen or None,
            seeds=range(1 if smoke else seeds),
            steps=steps or (6 if smoke else STEPS),
            out=None if smoke else out,
            progress=lambda what, done, n: bars.update(task, description=what, completed=done, total=n),
        )
    if as_json:
        typer.echo(json.dumps({"about": table.about, "runs": list(rows_of(table))}, indent=1))
    else:
        from rich.table import Table

        for name in table.settings:
            shown = Table(title=name, title_justify="left")
            heads, *lines = table.cells(name)
            for at, head in enumerate(heads):
                shown.add_column(head, justify="right" if at else "left")
            for line in lines:
                shown.add_row(*line)
            Console().print(shown)
    if page is not None:
        text = page.read_text(encoding="utf-8")
        head, tail = text.split(BEGIN)[0], text.split(END)[-1]
        page.write_text(f"{head}{BEGIN}\n\n{table.markdown()}\n{END}{tail}", encoding="utf-8")

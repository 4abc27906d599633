"""``chiasm reproduce SLUG...``: re-measure the central claim of one or more methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    slugs: Annotated[list[str] | None, typer.Argument(help="Methods, for example dbnorm.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All methods of the catalogue.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only those whose code changed since their result was measured.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="One seed, small sizes, nothing is written: does it run?")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder of real data sets.", envvar="CHIASM_DATA", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Re-measure what a method claims: baseline, method, ablations, negative control, intervals, verdict."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from chiasm import catalog
    from chiasm.claims.data import Data
    from chiasm.claims.run import changed as changed_methods
    from chiasm.claims.run import reproduce
    from chiasm.errors import BadInput

    found = catalog.methods() if every or (changed and not slugs) else [catalog.method(slug) for slug in slugs or []]
    if changed:
        found = changed_methods(found, out)
    if not found and not changed and not every:
        raise BadInput("no method named", where="chiasm reproduce", fix="Name one (see 'chiasm methods') or use --all")
    reports = []
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("seed {task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bars:
        for method in found:
            task = bars.add_task(method.slug, total=None)
            source = Data(data, smoke=smoke)
            reports.append(
                reproduce(
                    method.slug,
                    data=source,
                    out=out,
                    progress=lambda _, done, n, task=task: bars.update(task, completed=done, total=n),
                )
            )
    if as_json:
        typer.echo(json.dumps(reports, indent=1))
    else:
        console = Console()
        for report in reports:
            print_report(console, report)
        if not reports:
            console.print("Nothing to do: every result was measured with the present code.")
    if any(report["status"] == "control failed" for report in reports):
        raise typer.Exit(1)


def print_report(console, report: dict) -> None:
    """One claim as two tables: what was measured, and what follows from it."""
    from rich.markup import escape
    from rich.table import Table

    from chiasm.claims.table import interval_text

    colors = {"held": "green", "no data": "dim", "not resolved": "yellow"}
    metrics = list(dict.fromkeys(row["metric"] for row in report["rows"]))
    table = Table(title=f"{report['slug']}: {report['statement']}", title_justify="left")
    table.add_column("setting / arm")
    for name in metrics:
        table.add_column(f"{name} (sd)", justify="right")
    settings: dict[str, dict[str, dict[str, str]]] = {}
    for row in report["rows"]:
        sd = "" if row["sd"] is None else f" ({row['sd']:.3g})"
        settings.setdefault(row["setting"], {}).setdefault(row["arm"], {})[row["metric"]] = f"{row['mean']:.4g}{sd}"
    for setting, arms in settings.items():
        table.add_section()
        table.add_row(f"[bold]{escape(setting)}[/]")
        for arm, cells in arms.items():
            table.add_row(f"  {escape(arm)}", *(cells.get(name, "") for name in metrics))
    console.print(table)
    gates = Table(title_justify="left")
    for name in ("setting", "condition", "measured [95 %]", "verdict"):
        gates.add_column(name)
    for gate in report["gates"]:
        color = colors.get(gate["status"], "red")
        verdict = f"[{color}]{gate['status']}[/]" + (" (control)" if gate["control"] else "")
        gates.add_row(
            escape(gate["setting"]), escape(gate["condition"]), escape(interval_text(gate["estimate"])), verdict
        )
    console.print(gates)
    color = colors.get(report["status"], "red")
    data = ", ".join(report["provenance"]["data"]) or "generated worlds"
    console.print(
        f"[bold {color}]{report['status']}[/]  ({len(report['seeds'])} seeds, {report['seconds']:.0f} s, data: {data})\n"
    )

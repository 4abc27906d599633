"""``chiasm doctor STORE|FILE``: what is wrong with a space, what cures it, and what the cure gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chiasm.cli.console import note, print_json, print_table, printable, waiting
from chiasm.cli.store_option import JsonOption

if TYPE_CHECKING:
    from chiasm.doctor import Report
    from chiasm.measure.intervals import Interval

PANEL, PLACE = "Spaces", 5


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="A store, or embeddings: .safetensors, .npy, .npz (arrays a and b are pairs), .parquet.",
            metavar="STORE|FILE",
            show_default=False,
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="What belongs together: embeddings, row by row the partners; or a .csv/.jsonl with query and item.",
            show_default=False,
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="Embeddings to search with; for a store also a .txt of words.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a report with charts to this page.", show_default=False)
    ] = None,
    sample: Annotated[int, typer.Option(help="Items (and at most as many queries) to look at.")] = 8000,
    seed: Annotated[int, typer.Option(help="Seed of sample, splits and intervals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a space, name what is wrong, try the cures and report their gain."""
    from chiasm.doctor import examine, read

    with waiting("examining"):
        patient = read(source, queries=queries, pairs=pairs)
        report = examine(patient.gallery, **patient.arguments(), sample=sample, seed=seed)
        report.notes[:0] = patient.notes
    if html is not None:
        from chiasm.doctor.page import write

        write(html.expanduser(), report, title=source.name)
        note(f"Report: {html}")
    if as_json:
        print_json(report.to_json())
    else:
        show(report)


def show(report: Report) -> None:
    """Prints verdict, symptoms, cures and figures."""
    facts = report.facts
    searched = f", {facts['queries']:,} {facts['names'][0]}" if facts["queries"] else ""
    typer.echo(
        printable(
            f"{facts['items']:,} {facts['names'][1]}{searched}, {facts['dimensions']} dimensions, {report.seconds:.1f} s"
        )
    )
    typer.echo()
    _heading("Symptoms")
    for symptom in report.symptoms:
        typer.echo(
            typer.style(f"  {printable(symptom.name)}", fg="yellow")
            + f" ({printable(', '.join((symptom.part, *symptom.also)))})"
        )
        shown = interval(symptom.figure.interval) if symptom.figure.interval else number(symptom.figure.value)
        sign = "below" if symptom.rule.below else "above"
        typer.echo(
            f"    {symptom.figure.name} {shown}, a symptom {sign} {symptom.rule.threshold:g}. {symptom.rule.meaning}"
        )
        if symptom.methods:
            typer.echo(f"    Treated by: {', '.join(slug for slug, _, _ in symptom.methods)}")
    if not report.symptoms:
        typer.echo("  none")
    if report.trials:
        typer.echo()
        _heading("Cures, the cheapest first (gain of hit@1 in points)")
        rows = [(t.cure, t.correction, points(t.gain), points(t.gain_at_10), t.cost) for t in report.trials]
        print_table(("cure", "chosen", "hit@1", "hit@10", "cost"), rows, right=("hit@1", "hit@10"))
    typer.echo()
    _heading("Figures")
    rows = [(f.part, f.name, number(f.value), span(f.interval)) for f in report.figures]
    print_table(("part", "figure", "value", "95 %"), rows, right=("value",))
    typer.echo()
    for line in report.notes:
        typer.echo(printable(f"Note: {line}"))
    verdict = report.verdict
    color = "green" if verdict.cure or verdict.judged else "yellow"
    typer.echo(typer.style(printable(verdict.text), fg=color, bold=True))
    for line in verdict.apply:
        typer.echo(printable(f"  {line}"))


def number(value: float) -> str:
    return f"{value:.4g}"


def span(found: Interval | None) -> str:
    return "" if found is None else f"[{found.low:.4g}, {found.high:.4g}]"


def interval(found: Interval) -> str:
    return f"{found.mean:.4g} {span(found)}"


def points(gain: Interval) -> str:
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def _heading(text: str) -> None:
    typer.echo(typer.style(text, bold=True))

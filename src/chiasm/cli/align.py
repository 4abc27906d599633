"""``chiasm align PAIRS --space SPACE --out FOLDER``: teach a space from your own pairs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.console import error, note, one_line, print_json, print_table, printable, waiting
from chiasm.cli.pairs_option import ColumnsOption, ImagesOption
from chiasm.cli.store_option import DEFAULT_SPACE, JsonOption
from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.learn.report import AlignReport

PANEL, PLACE = "Spaces", 2
SHOWN_SKIPPED = 5


def command(
    pairs: Annotated[
        Path,
        typer.Argument(
            help="A .csv, .tsv, .jsonl or .parquet with pictures and captions, webdataset shards, or a folder of pictures.",
            metavar="PAIRS",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the aligned space and its report to.", show_default=False)],
    space: Annotated[str, typer.Option(help="Model by name, hub id or folder.")] = DEFAULT_SPACE,
    objective: Annotated[
        str, typer.Option(help="What to train with: info-nce, or a method of 'chiasm methods'.")
    ] = "info-nce",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An argument of the objective, key=value; may be repeated.", metavar="KEY=VALUE", show_default=False
        ),
    ] = None,
    unfreeze: Annotated[bool, typer.Option("--unfreeze", help="Train the encoders too. Slow without a GPU.")] = False,
    epochs: Annotated[
        float | None, typer.Option(help="At most so many.  [default: 8, or 150 steps]", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs a step.  [default: 128; 32 with --unfreeze]", show_default=False)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate.  [default: 3e-4; 2e-5 with --unfreeze]", show_default=False)
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Evaluations without a better recall before training stops.", min=1)
    ] = 3,
    seed: Annotated[int, typer.Option(help="Seed of hold-out and training.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    columns: ColumnsOption = None,
    images: ImagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a space from pairs: small heads behind frozen encoders, stopped early, with a report of what it gained."""
    from chiasm.doctor.alignment import write
    from chiasm.learn.align import align

    try:
        with waiting("aligning") if as_json else _quietly():
            made = align(
                pairs,
                space,
                objective,
                options=options_of(option or []),
                out=out,
                unfreeze=unfreeze,
                epochs=epochs,
                batch_size=batch_size,
                rate=rate,
                patience=patience,
                seed=seed,
                resume=resume,
                progress=not as_json,
                columns=columns_of(columns),
                root=images,
            )
    except KeyboardInterrupt:
        error("interrupted. What was finished is kept; give the same command with --resume to go on")
        raise typer.Exit(130) from None
    assert made.path is not None
    page = made.path / "report.html"
    write(page, made.report, title=pairs.name)
    if as_json:
        print_json({"path": str(made.path), "report": str(page), **made.report.to_json()})
    else:
        show(made.report)
        typer.echo(printable(f"Report: {page}"))
        typer.echo(printable(f"Now try: chiasm index FOLDER --space {shlex.quote(str(made.path))} --store new.chiasm"))


def _quietly() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def options_of(given: list[str]) -> dict[str, Any]:
    """``["keep=0.25", "mode=sum"]`` -> a dict; numbers, true, false, null and lists as in JSON, the rest as text.

    Raises:
        BadInput: an option without ``=``.
    """
    import json

    found: dict[str, Any] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign or not name.strip():
            raise BadInput(f"{one!r} is no option", where="--option", fix="Write key=value")
        try:
            found[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.strip().replace("-", "_")] = value
    return found


def columns_of(given: str | None) -> tuple[str | None, str | None]:
    """``"image,caption"`` -> the two names; either may be empty.

    Raises:
        BadInput: not two names.
    """
    if given is None:
        return None, None
    names = [name.strip() or None for name in given.split(",")]
    if len(names) != 2:
        raise BadInput(f"{given!r} are not two columns", where="--columns", fix="Write IMAGE,CAPTION")
    return names[0], names[1]


def show(report: AlignReport) -> None:
    """Prints sizes, recall before and after, the share of noisy pairs, and what was left out."""
    facts = report.facts
    sizes = ", ".join(f"{facts['pairs'][name]:,} {name}" for name in ("train", "val", "test"))
    typer.echo(printable(f"{sizes} pairs; {facts['objective']} over {facts['space']}; {report.seconds['total']:.1f} s"))
    typer.echo()
    rows = []
    gains = report.gains()
    for one in report.after.directions:
        for name, gain in gains[one.name].items():
            before, after = (side[one.name].interval(name, report.seed) for side in (report.before, report.after))
            points = f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            rows.append((one.name, name, f"{100 * before.mean:.1f}", f"{100 * after.mean:.1f}", points))
    columns = (f"{facts['reported']} pairs", "figure", "unaligned", "aligned", "gain, points [95 %]")
    print_table(columns, rows, right=("unaligned", "aligned", "gain, points [95 %]"))
    typer.echo()
    if report.noisy is not None:
        rate = report.noisy.rate
        typer.echo(f"Mismatched pairs: about {100 * rate.mean:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]")
    for line in report.notes:
        note(f"Note: {line}")
    skipped_lines(report.skipped)


def skipped_lines(skipped: list[Any]) -> None:
    """The first of what gave no pair, on stderr."""
    if skipped:
        note(f"{len(skipped)} lines or items gave no pair:")
    for found in skipped[:SHOWN_SKIPPED]:
        note(f"  {found.where}: {one_line(found.reason, 160)}")
    if len(skipped) > SHOWN_SKIPPED:
        note(f"  ... and {len(skipped) - SHOWN_SKIPPED} more; all are in report.json or --json")

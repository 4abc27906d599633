"""``chiasm evaluate ...``: measure a space. ``chiasm evaluate retrieval SPACE PAIRS`` measures search on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chiasm.cli.align import columns_of, skipped_lines
from chiasm.cli.console import note, print_json, print_table, printable
from chiasm.cli.pairs_option import ColumnsOption, ImagesOption
from chiasm.cli.store_option import JsonOption

if TYPE_CHECKING:
    from chiasm.learn.retrieval import RetrievalReport

PANEL, PLACE = "Spaces", 4

app = typer.Typer(
    help="Measure a space.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _group() -> None:
    """Measure a space."""


@app.command("retrieval")
def retrieval_command(
    space: Annotated[str, typer.Argument(help="Model by name, hub id or folder.", show_default=False)],
    pairs: Annotated[
        Path, typer.Argument(help="Pairs, as 'chiasm align' reads them.", metavar="PAIRS", show_default=False)
    ],
    split: Annotated[
        str, typer.Option(help="train, val, test or all. Where the file names no splits, all is meant.")
    ] = "test",
    columns: ColumnsOption = None,
    images: ImagesOption = None,
    seed: Annotated[int, typer.Option(help="Seed of hold-out and intervals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Recall of a search among pairs, in both directions, with intervals; hubness and gap."""
    from chiasm.learn.retrieval import measure_space

    found = measure_space(
        space, pairs, split=split, seed=seed, progress=not as_json, columns=columns_of(columns), root=images
    )
    if as_json:
        print_json(found.to_json())
    else:
        typer.echo(printable(f"{found.space}, {found.split} pairs ({found.pairs:,})"))
        typer.echo()
        show(found.report, seed)
        for line in found.notes:
            note(f"Note: {line}")
        skipped_lines(found.skipped)


def show(report: RetrievalReport, seed: int = 0) -> None:
    """Prints the figures of both directions, and the gap."""
    from chiasm.learn.retrieval import RECALL

    rows = []
    for one in report.directions:
        for name in (*RECALL, "map"):
            found = one.interval(name, seed)
            shown = "mAP" if name == "map" else name
            rows.append(
                (one.name, shown, f"{100 * found.mean:.1f}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]")
            )
        rows.append((one.name, "median rank", f"{one.ranking['median_rank']:.0f}", f"of {one.candidates:,}"))
        rows += [(one.name, name.replace("_", " "), f"{value:.3f}", "") for name, value in one.hubs.items()]
    rows += [("gap", name, f"{value:.3f}", "") for name, value in report.gap.items()]
    print_table(("direction", "figure", "value", "95 %"), rows, right=("value",))

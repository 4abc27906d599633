"""``chiasm index FOLDER...``: make a store of files, or bring one up to date."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chiasm.cli.console import error, note, one_line, print_json, printable, waiting
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, calibrate, open_for_indexing
from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.search import AddReport

PANEL, PLACE = "Search", 1
SHOWN_SKIPPED = 10


def command(
    paths: Annotated[list[Path], typer.Argument(help="Folders and files.", metavar="PATH...", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    space: Annotated[
        str | None,
        typer.Option(
            help="Model by name, hub id or folder.  [default: the store's own, else pocket]", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that read files.  [default: one per core]", min=1, show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Items per step of the network.", min=1)] = 32,
    prune: Annotated[bool, typer.Option("--prune", help="Also remove what has vanished from these folders.")] = False,
    skipped: Annotated[
        Path | None, typer.Option(help="Write every skipped file and its reason to this file.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a folder searchable. Run it again at any time: only what is new or changed is read."""
    sources = [path.expanduser() for path in paths]
    for path in sources:
        if not path.exists() and not prune:
            raise BadInput("there is no such file or folder", where=str(path))
    try:
        with open_for_indexing(store, space) as opened:
            write = opened.update if prune else opened.add
            report = write(sources, progress=not as_json, workers=workers, batch_size=batch_size)
            held = len(opened)
            if report.added or report.updated or report.deleted:
                with waiting("calibrating relevance"):
                    calibrate(opened)
    except KeyboardInterrupt:
        again = shlex.join(["chiasm", "index", *map(str, paths), "--store", str(store)])
        error(f"interrupted. What was finished is kept; go on with: {again}")
        raise typer.Exit(130) from None
    if skipped is not None:
        lines = [f"{printable(found.path)}\t{printable(found.reason)}\n" for found in report.skipped]
        skipped.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    if as_json:
        print_json({"store": str(store), "items": held, **report.to_json()})
    else:
        print_report(report, store, held, skipped)
    if not (report.added or report.updated or report.unchanged or report.deleted):
        raise typer.Exit(1)


def print_report(
    report: AddReport, store: Path, held: int, skipped_file: Path | None = None, *, hint: bool = True
) -> None:
    """What happened to the files: one line of counts, the first skipped files, and what to type next."""
    counts = (
        f"{report.added} added, {report.updated} updated, {report.unchanged} unchanged, {len(report.skipped)} skipped"
    )
    if report.deleted:
        counts += f", {report.deleted} removed"
    typer.echo(f"{counts} in {report.seconds:.1f} s; {store} holds {held} items")
    for found in report.skipped[:SHOWN_SKIPPED]:
        note(f"  skipped {found.path}: {one_line(found.reason, 160)}")
    if len(report.skipped) > SHOWN_SKIPPED:
        rest = len(report.skipped) - SHOWN_SKIPPED
        where = f"they are in {skipped_file}" if skipped_file else "--skipped FILE lists them all"
        note(f"  ... and {rest} more; {where}")
    if held and hint:
        typer.echo(f'Now try: chiasm search "words" --store {shlex.quote(str(store))}')
    elif not held and not report.skipped:
        note("  Nothing to index was found there.")

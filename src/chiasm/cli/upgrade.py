"""``chiasm upgrade --store S --space NEW``: a better model for a store, without embedding it again first."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chiasm.cli.console import error, note, one_line, print_json, print_table, printable, waiting
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, open_store
from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.search import Store
    from chiasm.search.reembed import Progress
    from chiasm.search.upgrade import UpgradeReport

PANEL, PLACE = "Spaces", 4
SHOWN_FAILED = 5


def command(
    store: StoreOption = DEFAULT_STORE,
    space: Annotated[
        str | None, typer.Option(help="The new model by name, hub id or folder.", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to learn the map from, one a line: captions or past queries.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Pictures with captions, as for 'chiasm align': a better map, and recall itself in the report.",
            metavar="PAIRS",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go over to the new space. Without it only the report.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the report; what happens without --yes.")] = False,
    background: Annotated[bool, typer.Option("--background", help="Re-embed in a process of its own.")] = False,
    limit: Annotated[
        int | None, typer.Option(help="Re-embed at most so many items now.", min=1, show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Items per step of the network.", min=1)] = 32,
    rollback: Annotated[bool, typer.Option("--rollback", help="Put the old vectors and the old space back.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Give up the way back of a finished upgrade; frees disk space.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far it has come.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the map and of the sample.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Search a store with a better model at once; items are re-embedded bit by bit, the most shown first."""
    if sum((rollback, forget, status)) > 1 or (yes and dry_run):
        raise BadInput("options that exclude each other", where="chiasm upgrade")
    from chiasm.search import upgrade as upgrading
    from chiasm.search import upgrade_end

    with open_store(store) as opened:
        if rollback:
            with waiting("rolling back"):
                counted = upgrade_end.rollback(opened, upgrading.under_way(opened), batch_size=batch_size)
            _say(as_json, {"rolled_back": True, **counted}, _rolled_back(counted))
        elif forget:
            upgrade_end.forget(opened, upgrading.under_way(opened))
            _say(as_json, {"forgotten": True}, "The way back is given up; the old vectors are removed.")
        elif status:
            _status(opened, as_json)
        else:
            report = _begun(opened, space, texts, pairs, seed, yes, dry_run, as_json)
            if opened.header.upgrade is not None:
                _go_on(opened, store, report, background, limit, batch_size, as_json)


def _status(opened: Store, as_json: bool) -> None:
    from chiasm.search import reembed

    record = opened.header.upgrade
    if record is None:
        _say(as_json, {"phase": None}, f"No upgrade is under way; the store's space is {opened.header.space}")
        return
    found: dict[str, Any] = {"phase": record.phase, "old": str(record.old), "new": str(record.new)}
    state = reembed.progress(opened) if record.phase == "serving" else None
    if state is not None:
        found["progress"] = state.to_json()
    _say(as_json, found, f"{record.phase}: {record.old} -> {record.new}")
    if state is not None and not as_json:
        show_progress(state)


def _begun(
    opened: Store,
    space: str | None,
    texts: Path | None,
    pairs: Path | None,
    seed: int,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> dict[str, Any] | None:
    """Begins an upgrade if none is under way and the user wants it; the report, if one was made."""
    from chiasm.search import upgrade as upgrading

    found, path = opened.header.upgrade, str(opened.path)
    if found is not None:
        if space is not None and _full(space) != found.new.name:
            raise BadInput(
                f"an upgrade to {found.new.name} is {found.phase}",
                where=path,
                fix="Leave --space away to go on with it, or go back with --rollback"
                if found.under_way
                else "Give up the way back with --forget, then upgrade again; or go it with --rollback",
            )
        if texts is not None or pairs is not None or dry_run:
            raise BadInput(f"the map to {found.new.name} is made already", where=path, fix="See --status")
        return None
    if space is None:
        raise BadInput("no upgrade is under way", where=path, fix="Name the new model: --space NEW")
    made = _planned(opened, space, texts, pairs, seed, as_json)
    report = made.report.to_json()
    if not as_json:
        show(made.report)
        if not yes and not dry_run and sys.stdin.isatty():
            yes = typer.confirm("Go over to the new space?")
    if yes:
        upgrading.begin(opened, made)
    elif as_json:
        print_json({"written": False, "report": report})
    else:
        typer.echo("Nothing was written. Add --yes to go over to the new space.")
    return report


def _full(space: str) -> str:
    """The name under which a store keeps a space: a folder's full path."""
    folder = Path(space).expanduser()
    return str(folder.resolve()) if folder.is_dir() else space


def _planned(opened: Store, space: str, texts: Path | None, pairs: Path | None, seed: int, as_json: bool) -> Any:
    from chiasm.encode import load
    from chiasm.search import upgrade as upgrading

    words = None if texts is None else _lines(texts)
    table = None
    if pairs is not None:
        from chiasm.learn.readers import read_pairs

        table = read_pairs(pairs.expanduser(), seed=seed)
    with waiting("learning the map") if not as_json else nullcontext():
        return upgrading.plan(opened, load(space), words, table, seed=seed)


def _lines(path: Path) -> list[str]:
    try:
        return path.expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as wrong:
        raise BadInput(f"cannot be read ({wrong.strerror})", where=str(path)) from wrong
    except UnicodeDecodeError as wrong:
        raise BadInput("is not UTF-8 text", where=str(path), fix="Write one text a line, in UTF-8") from wrong


def _go_on(
    opened: Store,
    store: Path,
    report: dict[str, Any] | None,
    background: bool,
    limit: int | None,
    batch_size: int,
    as_json: bool,
) -> None:
    from chiasm.search import reembed, upgrade_end, upgrade_notes
    from chiasm.search import upgrade as upgrading

    again = ["chiasm", "upgrade", "--store", str(store)]
    record = upgrading.under_way(opened, "serving")
    begun = {"written": True, "report": report}
    if background:
        with upgrade_notes.alone(opened):
            pass  # raises if another process does it already
        log = opened.path / "upgrade" / "log.txt"
        command = [sys.executable, "-m", *again, "--batch-size", str(batch_size)]
        if limit is not None:
            command += ["--limit", str(limit)]
        with open(log, "ab") as out:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        _say(
            as_json,
            {**begun, "background": started.pid, "log": str(log)},
            f"Re-embedding in process {started.pid}; {shlex.join([*again, '--status'])} says how far it is",
        )
        return
    try:
        with _shown(as_json) as tell:
            found = reembed.advance(opened, record, limit=limit, batch_size=batch_size, tell=tell)
            if found.complete:
                upgrade_end.finish(opened, record)
    except KeyboardInterrupt:
        error(f"interrupted. Searching works over mapped vectors; go on with: {shlex.join(again)}")
        raise typer.Exit(130) from None
    if as_json:
        print_json({**begun, "finished": found.complete, "progress": found.to_json()})
        return
    show_progress(found)
    if found.complete:
        typer.echo(f"All items have vectors of {printable(record.new)} now")
        typer.echo(f"  {shlex.join([*again, '--rollback'])} goes back")
        typer.echo(f"  {shlex.join([*again, '--forget'])} gives up the way back and frees its space")
    elif found.left:
        typer.echo(f"Go on with: {shlex.join(again)}")
    else:
        typer.echo(
            "Searching goes on over mapped vectors. Bring those files back, or delete the items, and run it again."
        )


def _shown(as_json: bool) -> Any:
    """A progress bar on a terminal."""
    if as_json or not sys.stderr.isatty():
        return nullcontext(None)
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    @contextmanager
    def bar() -> Any:
        columns = (TextColumn("Re-embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True)) as drawn:
            task = drawn.add_task("")
            yield lambda found: drawn.update(task, total=found.items, completed=found.items - found.left)

    return bar()


def _say(as_json: bool, value: dict[str, Any], line: str) -> None:
    if as_json:
        print_json(value)
    else:
        typer.echo(printable(line))


def _rolled_back(counted: Any) -> str:
    line = f"{counted['restored']} old vectors are back"
    if counted["encoded"]:
        line += f", {counted['encoded']} items that came meanwhile were encoded by the old space"
    if counted["mapped"]:
        line += f", {counted['mapped']} keep their mapped vectors because their files cannot be read"
    return line


def show(report: UpgradeReport) -> None:
    """Prints what the upgrade will cost."""
    learned = f"{report.texts:,} texts" + (f" and {report.pairs[0]:,} pairs" if report.pairs[0] else "")
    typer.echo(printable(f"{report.old} -> {report.new}; {report.kind} map, learned from {learned}"))
    typer.echo()
    rows = [
        ("held-out texts that find their own old vector first", _percent(report.text_recall)),
        ("today's ten best hits that stay among the ten best", _percent(report.overlap)),
        (f"items ({report.items} tried) that would find their own stored vector first", _percent(report.item_recall)),
    ]
    print_table(("agreement of mapped and old vectors", "share"), rows, right=("share",))
    if report.compatibility:
        typer.echo()
        lines = []
        for way, row in report.compatibility.items():
            cells = [_percent(row[name]) for name in ("old_old", "new_old", "new_new")]
            change = f"{100 * (row['new_old'] - row['old_old']):+.1f}"
            flips = f"+{100 * row['pfr']:.1f} -{100 * row['nfr']:.1f}"
            lines.append((way, *cells, change, flips, "yes" if row["compatible"] else "NO"))
        columns = ("R@10", "today", "mapped queries", "all re-embedded", "change", "flips", "compatible")
        print_table(columns, lines, right=columns[1:])
    typer.echo()
    for line in report.notes:
        note(f"Note: {line}")


def _percent(share: float) -> str:
    return "n/a" if share != share else f"{100 * share:.1f} %"


def show_progress(found: Progress) -> None:
    """Prints how far re-embedding has come, and the first items that failed."""
    typer.echo(
        f"{found.done:,} of {found.items:,} items re-embedded, {found.left:,} left, {len(found.failed):,} failed"
    )
    for name, why in list(found.failed.items())[:SHOWN_FAILED]:
        note(f"  {name}: {one_line(why, 160)}")
    if len(found.failed) > SHOWN_FAILED:
        note(f"  ... and {len(found.failed) - SHOWN_FAILED} more; --json lists them all")

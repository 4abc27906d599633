"""``chiasm world KIND``: make a world with full ground truth and write it to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chiasm.cli.console import print_json
from chiasm.cli.store_option import JsonOption

PANEL, PLACE = "Methods", 8


class Kind(StrEnum):
    scenes = "scenes"
    pairs = "pairs"
    graph = "graph"


def command(
    kind: Annotated[Kind, typer.Argument(help="What to make.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.", metavar="DIR", show_default=False)],
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            help="Scenes, test pairs or entities.  [default: 100 scenes, or as the kind has it]",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same world.")] = 0,
    fault: Annotated[
        str, typer.Option(help="Pairs: clean, cone, popularity, clusters, gap, noisy, ... (an unknown name lists all).")
    ] = "cone",
    size: Annotated[int, typer.Option(help="Scenes: side of a picture in pixels.")] = 64,
    split: Annotated[
        str, typer.Option(help="Scenes: all, train, or unseen (held-out pairs of color and shape).")
    ] = "all",
    speech: Annotated[
        str, typer.Option(help="Scenes: speak captions in these languages, for example en,de (needs espeak-ng).")
    ] = "",
    clips: Annotated[int, typer.Option(min=0, help="Scenes: also write this many short clips.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a world with full ground truth: scenes, paired embeddings with a planted fault, or a graph."""
    from chiasm.worlds import write

    out = out.expanduser()
    if kind is Kind.scenes:
        from chiasm.worlds.scenes import make_scenes

        scenes = make_scenes(100 if n is None else n, seed=seed, size=size, split=split)
        languages = tuple(language.strip() for language in speech.split(",") if language.strip())
        with _progress(len(scenes)) as progress:
            facts = write.write_scenes(scenes, out, speech=languages, clips=clips, progress=progress)
    elif kind is Kind.pairs:
        from chiasm.worlds.pairs import make_pairs

        facts = write.write_pairs(make_pairs(fault, seed=seed, **({} if n is None else {"n": n})), out)
    else:
        from chiasm.worlds.graphs import make_graph

        sized = {} if n is None else {"entities": n, "pictures": min(60, n)}
        facts = write.write_graph(make_graph(seed=seed, **sized), out)
    if as_json:
        print_json({"world": kind.value, "out": str(out), "seed": seed, **facts})
        return
    typer.echo(f"{out}: {kind.value}, seed {seed}; README.md there describes the files")
    for name, value in facts.items():
        if name not in ("kind", "seed"):
            typer.echo(f"  {name.replace('_', ' ')}: {value}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on a terminal; nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Making scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)

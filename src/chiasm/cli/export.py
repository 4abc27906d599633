"""``chiasm export FILE``: write a store's items for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from chiasm.cli.store_option import DEFAULT_STORE, StoreOption, open_store

PANEL, PLACE = "Spaces", 2


class Format(StrEnum):
    parquet = "parquet"
    npy = "npy"
    jsonl = "jsonl"


SUFFIXES = {".parquet": Format.parquet, ".npy": Format.npy, ".jsonl": Format.jsonl}


def command(
    path: Annotated[Path, typer.Argument(help="File to write.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    kind: Annotated[
        Format | None,
        typer.Option("--format", help="Format.  [default: by the file's ending, else parquet]", show_default=False),
    ] = None,
) -> None:
    """Write vectors and facts of all items to a file."""
    kind = kind or SUFFIXES.get(path.suffix.lower(), Format.parquet)
    with open_store(store) as opened:
        opened.export(path.expanduser(), format=kind.value)
        typer.echo(f"{path}: {len(opened)} items as {kind.value}")

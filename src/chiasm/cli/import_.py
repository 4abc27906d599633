"""``chiasm import PATH``: a store from what other programs wrote, without encoding anything again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chiasm.cli.console import print_json, waiting
from chiasm.cli.index import print_report
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, open_for_indexing
from chiasm.errors import BadInput

if TYPE_CHECKING:
    from chiasm.search import AddReport, Store

PANEL, PLACE = "Spaces", 3


class Source(StrEnum):
    parquet = "parquet"
    npy = "npy"
    clip_retrieval = "clip-retrieval"
    webdataset = "webdataset"


def command(
    path: Annotated[
        Path,
        typer.Argument(
            help="Parquet or npy embeddings, a clip-retrieval folder, or webdataset shards.", show_default=False
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    space: Annotated[
        str | None,
        typer.Option(
            help="The model that made the embeddings, if Chiasm can load it: then words can be searched.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        Source | None, typer.Option("--format", help="What it is.  [default: seen from the files]", show_default=False)
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option(help="For npy: parquet or JSON lines, one row per vector.", show_default=False)
    ] = None,
    modality: Annotated[str, typer.Option(help="Of rows that do not say theirs.")] = "image",
    as_json: JsonOption = False,
) -> None:
    """Import embeddings that others computed, or webdataset shards."""
    path = path.expanduser()
    if not path.exists():
        raise BadInput("there is no such file or folder", where=str(path))
    kind = kind or seen(path)
    # Shards are encoded here, so they need a space; vectors bring their own.
    with open_for_indexing(store, space, encodes=kind is Source.webdataset) as opened:
        with waiting(f"importing {path}"):
            report = bring_in(opened, path, kind, space=space, metadata=metadata, modality=modality)
        held = len(opened)
    if as_json:
        print_json({"store": str(store), "items": held, **report.to_json()})
    else:
        print_report(report, store, held)
    if not (report.added or report.updated or report.unchanged):
        raise typer.Exit(1)


def seen(path: Path) -> Source:
    """What a path holds, by its names.

    Raises:
        BadInput: it cannot be told.
    """
    if path.is_dir() and ((path / "img_emb").is_dir() or (path / "text_emb").is_dir()):
        return Source.clip_retrieval
    for pattern, kind in {"*.parquet": Source.parquet, "*.tar": Source.webdataset, "*.npy": Source.npy}.items():
        if path.match(pattern) or (kind is not Source.npy and path.is_dir() and any(path.glob(pattern))):
            return kind
    choices = ", ".join(Source)
    raise BadInput("cannot tell what this is", where=str(path), fix=f"Say it with --format, one of {choices}")


def bring_in(
    store: Store, path: Path, kind: Source, *, space: str | None, metadata: Path | None, modality: str
) -> AddReport:
    """Imports one source of a known kind; see `chiasm.search.importers`."""
    from chiasm.search.importers import import_clip_retrieval, import_npy, import_parquet
    from chiasm.search.webdataset import import_webdataset

    if kind is Source.webdataset:
        return import_webdataset(store, path)
    if kind is Source.clip_retrieval:
        return import_clip_retrieval(store, path, space=space)
    if kind is Source.npy:
        return import_npy(store, path, metadata, modality=modality, space=space)
    return import_parquet(store, path, modality=modality, space=space)

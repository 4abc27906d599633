"""The ``--store`` option that the commands share, and how they open what it names."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chiasm.errors import StoreError

if TYPE_CHECKING:
    from chiasm.search import Store

DEFAULT_STORE = Path("store.chiasm")
DEFAULT_SPACE = "pocket"

StoreOption = Annotated[
    Path, typer.Option("--store", "-s", envvar="CHIASM_STORE", help="Folder of the store.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_store(path: Path) -> Store:
    """Opens a store that must be there; the space it was made by is loaded when a query must be encoded.

    Raises:
        StoreError: there is no store at the path.
    """
    path = path.expanduser()
    if not path.is_dir():
        fix = f"Make one with: chiasm index FOLDER --store {shlex.quote(str(path))}"
        raise StoreError("there is no store here", where=str(path), fix=fix)
    from chiasm.search import Store

    return Store(path, create=False)


def open_for_indexing(path: Path, space: str | None, *, encodes: bool = True) -> Store:
    """Opens a store to be written, or makes it.

    Args:
        path: the store's folder.
        space: name of the space; by default the store's own, else pocket.
        encodes: whether the space will be asked to encode. Vectors made elsewhere need none, and a store of them keeps
            the space that they say they come from.
    """
    from chiasm.search import Store
    from chiasm.search.header import FILE, read_header

    path = path.expanduser()
    if space is None and encodes and (not (path / FILE).exists() or read_header(path).space is None):
        space = DEFAULT_SPACE
    return Store(path, space if encodes else None)


def calibrate(store: Store) -> None:
    """Brings the calibrated relevance up to the store's items now, so that the first search does not wait for it."""
    relevance, snapshot = store.relevance(), store.snapshot()
    if relevance is not None and snapshot is not None:
        relevance.sync(snapshot)

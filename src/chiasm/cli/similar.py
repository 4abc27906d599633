"""``chiasm similar FILE|ID``: what is like a file, or like an item of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chiasm.cli.console import waiting
from chiasm.cli.filter_options import ModalityOption
from chiasm.cli.search import show
from chiasm.cli.store_option import DEFAULT_STORE, JsonOption, StoreOption, open_store

PANEL, PLACE = "Search", 3


def command(
    item: Annotated[
        str,
        typer.Argument(
            help="A file, in the store or not, or the id of an item.", metavar="FILE|ID", show_default=False
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    k: Annotated[int, typer.Option("-k", "--limit", help="Number of hits.")] = 10,
    modality: ModalityOption = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the hits with thumbnails to this page.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find what is like a file or an item."""
    path = Path(item).expanduser()
    with open_store(store) as opened, waiting("searching"):
        result = opened.similar(path if path.is_file() else item, k, modality=modality or None)
    show(result, as_json=as_json, html=html, show_nearest=True)

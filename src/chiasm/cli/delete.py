"""``chiasm delete``: take items out of a store; the files themselves are never touched."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.cli.search import facts
from chiasm.cli.store_option import DEFAULT_STORE, StoreOption, open_store
from chiasm.errors import BadInput

PANEL, PLACE = "Spaces", 4


def command(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of items.", metavar="[ID]...", show_default=False)
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    path: Annotated[str | None, typer.Option(help="Everything from this file or folder.", show_default=False)] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only items with this fact; may be repeated.", metavar="NAME=VALUE", show_default=False),
    ] = None,
) -> None:
    """Remove items from the store. Files are not touched."""
    if not ids and path is None and not where:
        raise BadInput("nothing named to delete", where="chiasm delete", fix="Give ids, --path or --where")
    with open_store(store) as opened:
        gone = opened.delete(ids or None, path=path, where=facts(where or []))
        typer.echo(f"{gone} removed; {store} holds {len(opened)} items")
    if not gone:
        raise typer.Exit(1)

"""``chiasm serve``: the store over HTTP, with a gallery page."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.cli.store_option import DEFAULT_STORE, StoreOption, open_store

PANEL, PLACE = "Search", 4


def command(
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 takes a free one.", min=0, max=65535)] = 8765,
    token: Annotated[
        str | None,
        typer.Option(envvar="CHIASM_TOKEN", help="What clients must send as bearer token.", show_default=False),
    ] = None,
) -> None:
    """Serve the store over HTTP, with a gallery page."""
    from chiasm.serve import run

    open_store(store).close()  # a missing store is told before a server starts
    run(store.expanduser(), host, port, token)

"""HTTP API and gallery page: ``chiasm serve``.

    >>> import chiasm.serve
    >>> chiasm.serve.run("photos.chiasm")                       # http://127.0.0.1:8765, for this machine only

`create_app` gives the ASGI application, for any ASGI server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chiasm.serve.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from chiasm.serve.app import create_app

__all__ = ["Limits", "create_app", "run"]

DEFAULT_PORT = 8765


def run(
    store_path: str | Path, host: str = "127.0.0.1", port: int = DEFAULT_PORT, token: str | None = None, **options: Any
) -> None:
    """Serves a store until it is interrupted.

    Args:
        store_path: the store's folder; indexing can go on meanwhile, and new items are found at once.
        host: address to bind to; by default only this machine can connect.
        port: TCP port; 0 takes a free one.
        token: what clients must send as ``Authorization: Bearer TOKEN``; needed if ``host`` is public. The
            environment variable ``CHIASM_TOKEN`` stands in for it, and does not show up in the list of processes.
        **options: ``limits`` and ``names`` of `create_app`.

    Raises:
        BadInput: a public address without a token, or a port that cannot be had.
        MissingExtra: the extra ``serve`` is not installed.
        StoreError: the store cannot be opened.
    """
    from chiasm.errors import missing_extra

    try:
        from chiasm.serve import server
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("chiasm"):
            raise
        raise missing_extra("serving over HTTP", "serve", error.name or "fastapi") from error
    server.run(store_path, host, port, token, **options)


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from chiasm.serve.app import create_app

        return create_app
    raise AttributeError(f"module 'chiasm.serve' has no attribute {name!r}")

"""Runs the application in uvicorn; see `chiasm.serve.run`."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from pathlib import Path

import uvicorn

from chiasm.errors import BadInput
from chiasm.search import Store
from chiasm.serve.app import create_app
from chiasm.serve.gate import check_address
from chiasm.serve.limits import Limits


def run(
    store_path: str | Path,
    host: str,
    port: int,
    token: str | None,
    *,
    limits: Limits = Limits(),
    names: Collection[str] = (),
) -> None:
    """Opens the store, binds the port and serves; every refusal comes before anything listens."""
    token = token if token is not None else os.environ.get("CHIASM_TOKEN")
    check_address(host, token)
    # Written to are only the full-text index and the calibration, and only where that is possible.
    store = Store(store_path, create=False, read_only=not os.access(Path(store_path).expanduser(), os.W_OK))
    try:
        listening = bind(host, port)
        app = create_app(store, token=token, limits=limits, host=host, names=names)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            # The gate trusts no forwarded header, so nobody can pretend to come from loopback.
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=5,
        )
        name = f"[{host}]" if ":" in host else host
        print(f"{len(store)} items at http://{name}:{listening.getsockname()[1]}  (stop with Ctrl+C)", flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        store.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        BadInput: the address does not exist here, or the port is taken or not allowed.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # from here on clients wait for the server to come up instead of being refused
    except (OSError, OverflowError) as error:
        raise BadInput(f"cannot listen there ({error})", where=f"{host}:{port}", fix="Choose another --port") from error
    return listening

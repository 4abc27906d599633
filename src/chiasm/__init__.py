"""Chiasm: pictures, text, sound, video, tables and graphs in one searchable space.

Importing this package is cheap: everything heavy is imported when it is first used.

    >>> import chiasm
    >>> space = chiasm.load("pocket")
    >>> store = chiasm.Store("photos.chiasm", space)
    >>> store.add("~/Pictures")
    >>> store.search("a place where people pray", k=5).hits
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "ChiasmError": "chiasm.errors",
    "Item": "chiasm.items",
    "Sound": "chiasm.items",
    "Embeddings": "chiasm.embeddings",
    "Fingerprint": "chiasm.space",
    "Space": "chiasm.space",
    "Store": "chiasm.search",
    "align": "chiasm.learn.align",
    "load": "chiasm.encode",
    "methods": "chiasm.catalog",
}

__all__ = [
    "ChiasmError",
    "Embeddings",
    "Fingerprint",
    "Item",
    "Sound",
    "Space",
    "Store",
    "__version__",
    "align",
    "load",
    "methods",
]

if TYPE_CHECKING:
    from chiasm.catalog import methods
    from chiasm.embeddings import Embeddings
    from chiasm.encode import load
    from chiasm.errors import ChiasmError
    from chiasm.items import Item, Sound
    from chiasm.learn.align import align
    from chiasm.search import Store
    from chiasm.space import Fingerprint, Space


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'chiasm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""The same, cheaper: distillation, upgrades and reductions of a space. Each method lies in a folder of its own."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """The public classes of the methods in this room, found through the catalogue and imported when first used."""
    if not name.startswith("_"):
        from chiasm.catalog import folder_name, methods

        for method in methods():
            if method.room == "compress":
                module = import_module(f"chiasm.compress.{folder_name(method.slug)}")
                if name in getattr(module, "__all__", ()):
                    return getattr(module, name)
    raise AttributeError(f"module 'chiasm.compress' has no attribute {name!r}")

"""The same, cheaper: distillation, upgrades and reductions of a space. Each method lies in a folder of its own."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """The public classes of the methods in this room, found through the catalogue and imported when first used."""
    from chiasm.catalog import export

    return export("compress", name)

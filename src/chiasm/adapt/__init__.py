"""Few labels in, decisions out: prompts and heads on frozen encoders, out-of-distribution scores, boosting over many tasks."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """The public classes of the methods in this room, found through the catalogue and imported when first used."""
    from chiasm.catalog import export

    return export("adapt", name)

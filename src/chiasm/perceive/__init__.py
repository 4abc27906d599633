"""Dense vision: which pixels, which objects, which moments; segmentation from few, noisy or no labels."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """The public classes of the methods in this room, found through the catalogue and imported when first used."""
    from chiasm.catalog import export

    return export("perceive", name)

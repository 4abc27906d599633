"""Scores, fairer: corrections of a space's scores without training. Each is one class with one contract (see `bias`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Public names and where they live; imported when first used.
_LAZY = {
    "Correction": "chiasm.correct.bias",
    "ItemBias": "chiasm.correct.bias",
    "fold_gallery": "chiasm.correct.bias",
    "fold_queries": "chiasm.correct.bias",
    "choose": "chiasm.correct.choice",
}

if TYPE_CHECKING:
    from chiasm.correct.bias import Correction, ItemBias, fold_gallery, fold_queries
    from chiasm.correct.choice import choose

__all__ = ["Correction", "ItemBias", "choose", "fold_gallery", "fold_queries"]


def __getattr__(name: str) -> Any:
    """Names of this module, and the public classes of the methods in this room (found through the catalogue)."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    from chiasm.catalog import export

    return export("correct", name)

"""Cross the Gap: search inside one modality by a pseudo-feature of the other. Names load torch when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "ClipLoss": "loss",
    "Comparison": "gain",
    "Inverted": "inversion",
    "TextualInversion": "inversion",
    "VisualInversion": "inversion",
    "close_gap_by_training": "closing",
    "compare": "gain",
    "fine_tune": "closing",
    "invert": "optimize",
}

if TYPE_CHECKING:
    from chiasm.correct.cross_the_gap.closing import close_gap_by_training, fine_tune
    from chiasm.correct.cross_the_gap.gain import Comparison, compare
    from chiasm.correct.cross_the_gap.inversion import Inverted, TextualInversion, VisualInversion
    from chiasm.correct.cross_the_gap.loss import ClipLoss
    from chiasm.correct.cross_the_gap.optimize import invert

__all__ = [
    "ClipLoss",
    "Comparison",
    "Inverted",
    "TextualInversion",
    "VisualInversion",
    "close_gap_by_training",
    "compare",
    "fine_tune",
    "invert",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

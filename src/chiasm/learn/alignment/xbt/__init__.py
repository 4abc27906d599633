"""XBT: queries of a new model on a gallery of the old one, without embedding the gallery again."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.learn.alignment.xbt.calibration import QuantileMatch
    from chiasm.learn.alignment.xbt.closed_form import SlerpCompanion, least_squares, procrustes, slerp
    from chiasm.learn.alignment.xbt.criterion import Compatibility, flips, update_gain
    from chiasm.learn.alignment.xbt.lora import TowerLora, compatible_towers
    from chiasm.learn.alignment.xbt.mapping import SpaceMap
    from chiasm.learn.alignment.xbt.modules import LowRank, Noise, Projection
    from chiasm.learn.alignment.xbt.objectives import CompatibleObjective, TextObjective
    from chiasm.learn.alignment.xbt.xbt import XBT

# name -> module; loaded at first use, because a store that only applies a map must not bring torch along.
_PLACES = {
    "Compatibility": "criterion",
    "CompatibleObjective": "objectives",
    "LowRank": "modules",
    "Noise": "modules",
    "Projection": "modules",
    "QuantileMatch": "calibration",
    "SlerpCompanion": "closed_form",
    "SpaceMap": "mapping",
    "TextObjective": "objectives",
    "TowerLora": "lora",
    "XBT": "xbt",
    "compatible_towers": "lora",
    "flips": "criterion",
    "least_squares": "closed_form",
    "procrustes": "closed_form",
    "slerp": "closed_form",
    "update_gain": "criterion",
}

__all__ = [
    "XBT",
    "Compatibility",
    "CompatibleObjective",
    "LowRank",
    "Noise",
    "Projection",
    "QuantileMatch",
    "SlerpCompanion",
    "SpaceMap",
    "TextObjective",
    "TowerLora",
    "compatible_towers",
    "flips",
    "least_squares",
    "procrustes",
    "slerp",
    "update_gain",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

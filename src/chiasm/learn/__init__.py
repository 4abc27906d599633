"""Teaching a space from pairs: objectives, and the loop that trains them (sentence-transformers')."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.learn.contrastive import InfoNCE, info_nce
    from chiasm.learn.features import Features
    from chiasm.learn.held_out import HeldOut
    from chiasm.learn.momentum import FeatureQueue, Momentum
    from chiasm.learn.objectives import objective
    from chiasm.learn.pairs import OnePerGroup, Pairs, SeveralPerGroup
    from chiasm.learn.sentence_loss import SentenceLoss
    from chiasm.learn.stages import Stage
    from chiasm.learn.training import TrainReport, train

# name -> module; loaded at first use, because all of them bring torch along.
_PLACES = {
    "FeatureQueue": "momentum",
    "Features": "features",
    "HeldOut": "held_out",
    "InfoNCE": "contrastive",
    "Momentum": "momentum",
    "OnePerGroup": "pairs",
    "Pairs": "pairs",
    "SentenceLoss": "sentence_loss",
    "SeveralPerGroup": "pairs",
    "Stage": "stages",
    "TrainReport": "training",
    "info_nce": "contrastive",
    "objective": "objectives",
    "train": "training",
}

__all__ = [
    "FeatureQueue",
    "Features",
    "HeldOut",
    "InfoNCE",
    "Momentum",
    "OnePerGroup",
    "Pairs",
    "SentenceLoss",
    "SeveralPerGroup",
    "Stage",
    "TrainReport",
    "info_nce",
    "objective",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""PC2: learning from pairs of which many do not belong together."""

from chiasm.learn.objectives.pc2.head import PseudoHead, class_usage
from chiasm.learn.objectives.pc2.memory import PairMemory
from chiasm.learn.objectives.pc2.objective import PC2
from chiasm.learn.objectives.pc2.protocol import CoTaught, co_teach
from chiasm.learn.objectives.pc2.split import (
    SplitFigures,
    clean_pairs,
    corrected,
    lend_captions,
    low_posterior,
    oscillation,
    pair_losses,
)
from chiasm.learn.objectives.pc2.triplet import soft_margin, triplet
from chiasm.learn.objectives.pc2.twins import Twins, twins

__all__ = [
    "PC2",
    "CoTaught",
    "PairMemory",
    "PseudoHead",
    "SplitFigures",
    "Twins",
    "class_usage",
    "clean_pairs",
    "co_teach",
    "corrected",
    "lend_captions",
    "low_posterior",
    "oscillation",
    "pair_losses",
    "soft_margin",
    "triplet",
    "twins",
]

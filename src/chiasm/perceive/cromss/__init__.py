"""CromSS: pre-training on wrong pixel labels, where each sensor tells the other which of them to trust."""

from chiasm.perceive.cromss.fitting import FitReport
from chiasm.perceive.cromss.heads import HEADS, make_head
from chiasm.perceive.cromss.losses import (
    CromSS,
    consistency_loss,
    one_hot,
    weighted_cross_entropy,
    weighted_dice,
)
from chiasm.perceive.cromss.networks import BackboneEncoder, SmallEncoder, TwoSensorNet, UNetDecoder
from chiasm.perceive.cromss.pretraining import pretrain
from chiasm.perceive.cromss.selection import Trust, entangle, kept_share, ramp
from chiasm.perceive.cromss.smoothing import LabelSmoothing, frequencies
from chiasm.perceive.cromss.transfer import Segmenter, transfer

__all__ = [
    "HEADS",
    "BackboneEncoder",
    "CromSS",
    "FitReport",
    "LabelSmoothing",
    "Segmenter",
    "SmallEncoder",
    "Trust",
    "TwoSensorNet",
    "UNetDecoder",
    "consistency_loss",
    "entangle",
    "frequencies",
    "kept_share",
    "make_head",
    "one_hot",
    "pretrain",
    "ramp",
    "transfer",
    "weighted_cross_entropy",
    "weighted_dice",
]

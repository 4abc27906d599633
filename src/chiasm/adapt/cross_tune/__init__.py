"""CrossTune: a small cross-attention head between frozen features of inputs and of label descriptions."""

from chiasm.adapt.cross_tune.baselines import LinearProbe, VerbalizerSearch, ZeroShot
from chiasm.adapt.cross_tune.classifier import CrossTune, Switch
from chiasm.adapt.cross_tune.encoding import BlackBox
from chiasm.adapt.cross_tune.generation import NGrams, generate_texts, prompt
from chiasm.adapt.cross_tune.matcher import CrossMatcher

__all__ = [
    "BlackBox",
    "CrossMatcher",
    "CrossTune",
    "LinearProbe",
    "NGrams",
    "Switch",
    "VerbalizerSearch",
    "ZeroShot",
    "generate_texts",
    "prompt",
]

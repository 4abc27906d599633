"""CrossGET and ToMe: merge tokens inside the towers of a dual encoder or a generative model."""

from chiasm.compress.crossget.alignment import CrossGuided, js_divergence, paired_layers
from chiasm.compress.crossget.methods import CrossGET, ToMe
from chiasm.compress.crossget.reduction import TowerReduction

__all__ = ["CrossGET", "CrossGuided", "ToMe", "TowerReduction", "js_divergence", "paired_layers"]

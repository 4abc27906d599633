"""VisionDrop: image tokens are dropped by what they mean to each other; VisionZip, FastV and PyramidDrop beside it."""

from chiasm.compress.visiondrop.baselines import fast_v, pyramid_drop, vision_zip
from chiasm.compress.visiondrop.probe import Alignment, misalignment
from chiasm.compress.visiondrop.pruner import VisionDrop
from chiasm.compress.visiondrop.schedule import Stage, even_cuts, mean_tokens, schedule, tokens_by_layer
from chiasm.compress.visiondrop.sequence import Cut

__all__ = [
    "Alignment",
    "Cut",
    "Stage",
    "VisionDrop",
    "even_cuts",
    "fast_v",
    "mean_tokens",
    "misalignment",
    "pyramid_drop",
    "schedule",
    "tokens_by_layer",
    "vision_zip",
]

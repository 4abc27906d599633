"""FDT: both sides as sparse mixtures over one learned codebook."""

from chiasm.learn.objectives.fdt.activation import activate, sparsemax, starting_temperature
from chiasm.learn.objectives.fdt.codebook import FDT, QueryMap
from chiasm.learn.objectives.fdt.grounding import ground
from chiasm.learn.objectives.fdt.inspection import CodeUse, code_use, grounded_tokens, support_iou, top_items
from chiasm.learn.objectives.fdt.inverted import InvertedIndex

__all__ = [
    "FDT",
    "CodeUse",
    "InvertedIndex",
    "QueryMap",
    "activate",
    "code_use",
    "ground",
    "grounded_tokens",
    "sparsemax",
    "starting_temperature",
    "support_iou",
    "top_items",
]

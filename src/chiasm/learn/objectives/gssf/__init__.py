"""GSSF: a diagonal plus block-diagonal metric between paired embeddings, at the cost of the cosine."""

from chiasm.learn.objectives.gssf.grouping import channel_order
from chiasm.learn.objectives.gssf.objective import GSSF, faster_head
from chiasm.learn.objectives.gssf.plug_ins import RelationDistillation, StructuralAttention
from chiasm.learn.objectives.gssf.post_hoc import fit, folded
from chiasm.learn.objectives.gssf.structure import StructuralMetric

__all__ = [
    "GSSF",
    "RelationDistillation",
    "StructuralAttention",
    "StructuralMetric",
    "channel_order",
    "faster_head",
    "fit",
    "folded",
]

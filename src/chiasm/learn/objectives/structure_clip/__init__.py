"""Structure-CLIP: negatives from scene graphs, so that relations and attribute bindings count."""

from chiasm.learn.objectives.structure_clip.columns import Drawn, Structure, with_structure, with_triples
from chiasm.learn.objectives.structure_clip.evaluation import PairAccuracy, pair_accuracy
from chiasm.learn.objectives.structure_clip.graph import Mention, Relation, SceneGraph, parse
from chiasm.learn.objectives.structure_clip.knowledge import KnowledgeEncoder, KnowledgeTower, triple_ids, triple_tokens
from chiasm.learn.objectives.structure_clip.negatives import Negative, combined, negatives, swap
from chiasm.learn.objectives.structure_clip.objective import StructureCLIP, structure_hinge

__all__ = [
    "Drawn",
    "KnowledgeEncoder",
    "KnowledgeTower",
    "Mention",
    "Negative",
    "PairAccuracy",
    "Relation",
    "SceneGraph",
    "Structure",
    "StructureCLIP",
    "combined",
    "negatives",
    "pair_accuracy",
    "parse",
    "structure_hinge",
    "swap",
    "triple_ids",
    "triple_tokens",
    "with_structure",
    "with_triples",
]

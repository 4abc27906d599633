"""IRRA: several pairs of one identity. Distribution matching, implicit relation reasoning, identity classification."""

from chiasm.learn.objectives.irra.interaction import RelationReasoning, mask_words
from chiasm.learn.objectives.irra.matching import cmpm, match_targets, sdm
from chiasm.learn.objectives.irra.objective import IRRA, PARTS
from chiasm.learn.objectives.irra.rates import faster_heads

__all__ = ["IRRA", "PARTS", "RelationReasoning", "cmpm", "faster_heads", "mask_words", "match_targets", "sdm"]

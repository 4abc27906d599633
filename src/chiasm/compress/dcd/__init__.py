"""DCD: distill a slow matcher into a fast one, on the candidates that the slow one finds hardest."""

from chiasm.compress.dcd.mining import ROUTES, Pool, candidates, hardest, mined
from chiasm.compress.dcd.objective import DCD
from chiasm.compress.dcd.reranker import Items, Reranker
from chiasm.compress.dcd.scorers import CrossFusion, DualEncoder, ProductFusion, grid
from chiasm.compress.dcd.succession import heirs, succeed
from chiasm.compress.dcd.teacher import Matching, Teacher, ask
from chiasm.compress.dcd.weights import entropies, entropy_weights, mastery_weights

__all__ = [
    "DCD",
    "ROUTES",
    "CrossFusion",
    "DualEncoder",
    "Items",
    "Matching",
    "Pool",
    "ProductFusion",
    "Reranker",
    "Teacher",
    "ask",
    "candidates",
    "entropies",
    "entropy_weights",
    "grid",
    "hardest",
    "heirs",
    "mastery_weights",
    "mined",
    "succeed",
]

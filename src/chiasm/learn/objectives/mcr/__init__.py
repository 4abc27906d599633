"""MCR: several modalities in one classifier, none of which may rest on the others."""

from chiasm.learn.objectives.mcr.fusion import HEADS, fusion_head
from chiasm.learn.objectives.mcr.objective import MCR, Unimodal
from chiasm.learn.objectives.mcr.perturbation import divergence, jensen_shannon, permutations, play
from chiasm.learn.objectives.mcr.protocol import Answers, DivergenceLog, fit
from chiasm.learn.objectives.mcr.terms import ConditionalBottleneck, label_contrast

__all__ = [
    "HEADS",
    "MCR",
    "Answers",
    "ConditionalBottleneck",
    "DivergenceLog",
    "Unimodal",
    "divergence",
    "fit",
    "fusion_head",
    "jensen_shannon",
    "label_contrast",
    "permutations",
    "play",
]

"""HiCroPL: deep prompts in both frozen towers of a dual encoder, whose knowledge flows from text to vision and back."""

from chiasm.adapt.hicropl.adapter import HiCroPL
from chiasm.adapt.hicropl.classifier import PromptedClassifier
from chiasm.adapt.hicropl.flow import HierarchicalMapper, KnowledgePooler, PromptFlow
from chiasm.adapt.hicropl.protocol import BaseToNovel, base_and_novel, base_to_novel, harmonic_mean, shots
from chiasm.adapt.hicropl.tuning import TuneReport, crop_and_flip, tune

__all__ = [
    "BaseToNovel",
    "HiCroPL",
    "HierarchicalMapper",
    "KnowledgePooler",
    "PromptFlow",
    "PromptedClassifier",
    "TuneReport",
    "base_and_novel",
    "base_to_novel",
    "crop_and_flip",
    "harmonic_mean",
    "shots",
    "tune",
]

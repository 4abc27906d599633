"""LexVLA: pictures and texts as sparse vectors over words that can be read."""

from chiasm.learn.objectives.lexvla.objective import LexVLA
from chiasm.learn.objectives.lexvla.overuse import Weight, flops, overuse, usage
from chiasm.learn.objectives.lexvla.patchdis import PatchDis, patch_labels, patchdis, upsampled
from chiasm.learn.objectives.lexvla.reading import (
    WordUse,
    best_patches,
    explain,
    top_words,
    word_precision,
    word_recall,
    word_use,
)
from chiasm.learn.objectives.lexvla.space_words import SpaceWords
from chiasm.learn.objectives.lexvla.towers import BagOfWords, LexicalHead, PatchAdapter, TextAdapter, sparse_encoder
from chiasm.learn.objectives.lexvla.vocabulary import Vocabulary, bag_of_words, codebook_of

__all__ = [
    "BagOfWords",
    "LexVLA",
    "LexicalHead",
    "PatchAdapter",
    "PatchDis",
    "SpaceWords",
    "TextAdapter",
    "Vocabulary",
    "Weight",
    "WordUse",
    "bag_of_words",
    "best_patches",
    "codebook_of",
    "explain",
    "flops",
    "overuse",
    "patch_labels",
    "patchdis",
    "sparse_encoder",
    "top_words",
    "upsampled",
    "usage",
    "word_precision",
    "word_recall",
    "word_use",
]

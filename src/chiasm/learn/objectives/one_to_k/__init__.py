"""1-to-K contrast over K languages at once, its companion losses, and the consistency of ranks over languages."""

from chiasm.learn.objectives.one_to_k.consistency import Consistency, consistency, consistency_of
from chiasm.learn.objectives.one_to_k.contrast import one_to_k, one_to_one, per_language, pivot
from chiasm.learn.objectives.one_to_k.matching import choose_languages, choose_negatives
from chiasm.learn.objectives.one_to_k.objective import OneToK
from chiasm.learn.objectives.one_to_k.words import mask_spans

__all__ = [
    "Consistency",
    "OneToK",
    "choose_languages",
    "choose_negatives",
    "consistency",
    "consistency_of",
    "mask_spans",
    "one_to_k",
    "one_to_one",
    "per_language",
    "pivot",
]

"""CMA: fine-tuning that closes the modality gap, and scores that reject unknown classes (NegLabel, MCM, energy)."""

from chiasm.adapt.mm_ood.alignment import AlignmentReport, CrossModalAlignment, alignment_report
from chiasm.adapt.mm_ood.detector import OODClassifier
from chiasm.adapt.mm_ood.mining import NegativeLabels, mine_negatives, name_similarity
from chiasm.adapt.mm_ood.scores import SCORES, energy, max_logit, maximum_softmax, mcm, neglabel
from chiasm.adapt.mm_ood.tuning import CMAClassifier, encode_texts, fine_tune

__all__ = [
    "SCORES",
    "AlignmentReport",
    "CMAClassifier",
    "CrossModalAlignment",
    "NegativeLabels",
    "OODClassifier",
    "alignment_report",
    "encode_texts",
    "energy",
    "fine_tune",
    "max_logit",
    "maximum_softmax",
    "mcm",
    "mine_negatives",
    "name_similarity",
    "neglabel",
]

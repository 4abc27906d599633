"""Figures of spaces and rankings: functions on arrays, no models."""

from __future__ import annotations

from chiasm.measure.consistency import RankVariance, mean_rank_variance
from chiasm.measure.degeneration import delta_deg, effective_rank, mean_similarity, participation_ratio, spectrum
from chiasm.measure.detection import Detection, detection
from chiasm.measure.gap import (
    IntraModal,
    ModalityGap,
    close_gap,
    intra_modal_misalignment,
    modality_gap,
    neighbor_agreement,
)
from chiasm.measure.hubness import (
    Hubness,
    anti_hub_share,
    hub_share,
    hubness,
    hubness_of_lists,
    nearest,
    robin_hood,
    skewness,
)
from chiasm.measure.intervals import (
    Interval,
    difference_interval,
    grouped_mean_interval,
    mean_interval,
    statistic_interval,
)
from chiasm.measure.pairs import NoisyPairs, noisy_pairs
from chiasm.measure.positives import Positives, same_label
from chiasm.measure.ranking import RankingReport, evaluate, evaluate_lists, evaluate_scores
from chiasm.measure.segmentation import Segmentation, confusion, harmonic_mean, segmentation
from chiasm.measure.uniformity import alignment, uniformity

__all__ = [
    "Detection",
    "Hubness",
    "Interval",
    "IntraModal",
    "ModalityGap",
    "NoisyPairs",
    "Positives",
    "RankVariance",
    "RankingReport",
    "Segmentation",
    "alignment",
    "anti_hub_share",
    "close_gap",
    "confusion",
    "delta_deg",
    "detection",
    "difference_interval",
    "effective_rank",
    "evaluate",
    "evaluate_lists",
    "evaluate_scores",
    "grouped_mean_interval",
    "harmonic_mean",
    "hub_share",
    "hubness",
    "hubness_of_lists",
    "intra_modal_misalignment",
    "mean_interval",
    "mean_rank_variance",
    "mean_similarity",
    "modality_gap",
    "nearest",
    "neighbor_agreement",
    "noisy_pairs",
    "participation_ratio",
    "robin_hood",
    "same_label",
    "segmentation",
    "skewness",
    "spectrum",
    "statistic_interval",
    "uniformity",
]

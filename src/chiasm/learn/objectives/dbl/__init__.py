"""DBL: a target branch that must beat the margins of an anchor branch, in three schedules, and its comparators."""

from chiasm.learn.objectives.dbl.boosting import absolute, adaptive_margin, positive_gap, relative, triplet
from chiasm.learn.objectives.dbl.cohort import (
    branch_optimizer,
    branch_routes,
    branched,
    cohort,
    ensemble,
    offline,
    online,
)
from chiasm.learn.objectives.dbl.comparators import (
    dark_rank,
    distillation,
    relational,
    similarity_preserving,
    softmax_boost,
)
from chiasm.learn.objectives.dbl.objective import DeepBoosting, MomentumBoosting

__all__ = [
    "DeepBoosting",
    "MomentumBoosting",
    "absolute",
    "adaptive_margin",
    "branch_optimizer",
    "branch_routes",
    "branched",
    "cohort",
    "dark_rank",
    "distillation",
    "ensemble",
    "offline",
    "online",
    "positive_gap",
    "relational",
    "relative",
    "similarity_preserving",
    "softmax_boost",
    "triplet",
]

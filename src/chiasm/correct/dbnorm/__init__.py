"""DBNorm: hubness correction with query and item banks, and its peers."""

from chiasm.correct.dbnorm.dual import DualBankNorm, DynamicDualBankNorm
from chiasm.correct.dbnorm.peers import (
    CSLS,
    DynamicInvertedSoftmax,
    GloballyCorrected,
    InvertedSoftmax,
    NearestNeighborNormalization,
)

__all__ = [
    "CSLS",
    "DualBankNorm",
    "DynamicDualBankNorm",
    "DynamicInvertedSoftmax",
    "GloballyCorrected",
    "InvertedSoftmax",
    "NearestNeighborNormalization",
]

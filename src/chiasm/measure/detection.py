"""Detection of inputs that do not belong: FPR95, AUROC, AUPR. In-distribution is the positive class, as in CMA
(mm-ood).

Hendrycks & Gimpel 2017, *A Baseline for Detecting Misclassified and Out-of-Distribution Examples*.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy


@dataclass(frozen=True, slots=True)
class Detection:
    """How well a score separates in-distribution (ID) from out-of-distribution (OOD) inputs; higher scores mean ID.

    Args:
        auroc: probability that an ID score is above an OOD score, ties count half.
        aupr_in: average precision with ID as the positive class.
        aupr_out: average precision with OOD as the positive class and negated scores.
        fpr95: share of OOD inputs accepted at the highest threshold that accepts ``tpr`` of the ID inputs.
        tpr: that share, default 0.95.
        threshold: that threshold (scores >= threshold are accepted).
    """

    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    tpr: float
    threshold: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def detection(inside: Any, outside: Any, *, tpr: float = 0.95) -> Detection:
    """All detection figures.

    Args:
        inside: ``[N]`` scores of ID inputs, higher is more ID. Log-odds avoid saturation at 1.0.
        outside: ``[M]`` scores of OOD inputs.
        tpr: share of ID inputs that must be accepted, default 0.95.

    Raises:
        BadInput: an empty side, NaN, or ``tpr`` outside (0, 1].
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    inside, outside = _scores(inside, "inside"), _scores(outside, "outside")
    if not 0 < tpr <= 1:
        raise BadInput(f"tpr {tpr} is not a share", where="detection")
    scores = np.concatenate([inside, outside])
    if np.isinf(scores).any():
        # Saturated log-odds: only the order matters to every figure here.
        _, order = np.unique(scores, return_inverse=True)
    else:
        order = scores
    labels = np.arange(len(scores)) < len(inside)
    # Rounding guard: 0.95 * 20 must need 19 inputs, not 20.
    needed = max(1, int(np.ceil(tpr * len(inside) - 1e-9)))
    threshold = float(np.sort(inside)[::-1][needed - 1])
    return Detection(
        float(roc_auc_score(labels, order)),
        float(average_precision_score(labels, order)),
        float(average_precision_score(~labels, -order)),
        float((outside >= threshold).mean()),
        tpr,
        threshold,
    )


def _scores(scores: Any, where: str) -> np.ndarray:
    values = to_numpy(scores).astype(np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise BadInput(f"scores must be [N] without NaN and not empty, got shape {values.shape}", where=where)
    return values

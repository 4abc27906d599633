"""The switch between generated texts and none, and the calibration of the shares."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax


@dataclass(frozen=True)
class Switch:
    """What became of the generated texts.

    Args:
        on: whether they are used: accuracy on the development items with them is at least that without (ties: lower loss).
        made, new, kept: texts generated, those that are no copies, those that the teacher believes.
        without, with_: accuracy on the development items; ``with_`` is NaN if nothing was kept.
    """

    on: bool
    made: int
    new: int
    kept: int
    without: float
    with_: float


def judged(teacher: Any, X: Any, labels: np.ndarray, made: Any, classes: int) -> np.ndarray:
    """What a teacher that has seen the training items only thinks of generated ones: shares ``[N, C]``.

    Args:
        teacher: unfitted; a copy of it is fitted.
        X: training items; labels: their class numbers.
        made: N generated items.
        classes: C; a class that the teacher has not seen has no share.
    """
    teacher = copy.deepcopy(teacher).fit(X, labels)
    shares = np.zeros((len(made), classes))
    shares[:, np.asarray(teacher.classes_, dtype=np.int64)] = teacher.predict_proba(made)
    return shares


def temperature(found: np.ndarray, target: np.ndarray) -> float:
    """The temperature whose softmax has the lowest cross-entropy on some items; 1 where nothing can be told."""
    if found.shape[1] < 2:
        return 1.0

    def loss(log_t: float) -> float:
        shares = softmax(found.astype(np.float64) / np.exp(log_t), axis=1)[np.arange(len(target)), target]
        return -float(np.log(np.maximum(shares, 1e-12)).mean())

    best: Any = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(best.x))

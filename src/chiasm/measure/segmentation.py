"""Segmentation: IoU of every class, mIoU, foreground-background IoU, and base against novel classes with their harmonic mean.

    >>> table = confusion(predicted, truth, classes=21)           # streams: tables of several pictures add up
    >>> segmentation(table, novel=[16, 17, 18, 19, 20]).miou_novel

Intersections and unions are summed over all pictures before they are divided, as in PASCAL VOC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy

IGNORE = 255


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Figures of a confusion table; class 0 is the background. All in [0, 1]; NaN where there is nothing to measure.

    Args:
        iou: of every class; NaN for a class that neither occurs nor was predicted.
        miou: mean over the classes but the background.
        miou_with_background: mean over all classes.
        fb_iou: mean IoU of foreground (all classes as one) and background.
        accuracy: share of right pixels.
        mean_accuracy: mean over the classes that occur, the background included, of the share of their pixels that is right.
        miou_base, miou_novel, harmonic_mean: if the novel classes were named.
    """

    iou: tuple[float, ...]
    miou: float
    miou_with_background: float
    fb_iou: float
    accuracy: float
    mean_accuracy: float
    miou_base: float = float("nan")
    miou_novel: float = float("nan")
    harmonic_mean: float = float("nan")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def confusion(predicted: Any, truth: Any, *, classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Counts of pixels: int64 ``[classes, classes]``, rows the truth, columns the prediction.

    Args:
        predicted, truth: integers of one shape, or sequences of such (pictures of different sizes).
        classes: their number, the background (0) included.
        ignore: pixels with this truth do not count.

    Raises:
        BadInput: shapes that differ, values that are no integers, or a class outside of 0 .. classes - 1.
    """
    if isinstance(predicted, (list, tuple)) and isinstance(truth, (list, tuple)):
        if len(predicted) != len(truth):
            raise BadInput(
                f"{len(predicted)} predictions for {len(truth)} pictures", where="confusion", fix="Give one a picture"
            )
        table = np.zeros((classes, classes), dtype=np.int64)
        for one, other in zip(predicted, truth, strict=True):
            table += confusion(one, other, classes=classes, ignore=ignore)
        return table
    found, right = to_numpy(predicted), to_numpy(truth)
    if classes < 1 or found.shape != right.shape:
        raise BadInput(
            f"{found.shape} predicted, {right.shape} in truth, {classes} classes",
            where="confusion",
            fix="Predict at the size of the truth: a smaller size flatters",
        )
    if any(not np.issubdtype(values.dtype, np.integer) and values.dtype != bool for values in (found, right)):
        raise BadInput(
            f"{found.dtype} predicted, {right.dtype} in truth", where="confusion", fix="Give class numbers, as integers"
        )
    counted = right != ignore
    found, right = found[counted].astype(np.int64), right[counted].astype(np.int64)
    for name, values in (("predicted", found), ("truth", right)):
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise BadInput(
                f"{name} holds class {values.max() if values.max() >= classes else values.min()}",
                where="confusion",
                fix=f"Classes are 0 .. {classes - 1}, and {ignore} in the truth does not count",
            )
    return np.bincount(right * classes + found, minlength=classes * classes).reshape(classes, classes)


def segmentation(table: Any, *, novel: Iterable[int] | None = None) -> Segmentation:
    """All figures of a confusion table.

    Args:
        table: ``[C, C]`` of `confusion`.
        novel: numbers of the novel classes; all others but the background are base.

    Raises:
        BadInput: no square table, or novel classes that are not in it.
    """
    counts = np.asarray(table, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not len(counts):
        raise BadInput(f"a table {counts.shape}", where="segmentation", fix="Give the square table of `confusion`")
    iou = _iou(counts)
    merged = np.array([[counts[0, 0], counts[0, 1:].sum()], [counts[1:, 0].sum(), counts[1:, 1:].sum()]])
    accuracy = float(np.trace(counts) / counts.sum()) if counts.sum() else float("nan")
    recalls = np.divide(
        np.diagonal(counts), counts.sum(axis=1), out=np.full(len(counts), np.nan), where=counts.sum(axis=1) > 0
    )
    figures: dict[str, float] = {}
    if novel is not None:
        chosen = sorted({int(c) for c in novel})
        if not chosen or chosen[0] < 1 or chosen[-1] >= len(counts):
            raise BadInput(f"novel classes {chosen}", where="segmentation", fix=f"Give some of 1 .. {len(counts) - 1}")
        base = [c for c in range(1, len(counts)) if c not in chosen]
        means = _mean(iou[base]), _mean(iou[chosen])
        figures = {"miou_base": means[0], "miou_novel": means[1], "harmonic_mean": harmonic_mean(*means)}
    return Segmentation(
        tuple(float(x) for x in iou),
        _mean(iou[1:]),
        _mean(iou),
        _mean(_iou(merged)),
        accuracy,
        _mean(recalls),
        **figures,
    )


def harmonic_mean(first: float, second: float) -> float:
    """``2 a b / (a + b)``; 0 if both are 0."""
    total = first + second
    return 2 * first * second / total if total else total


def _iou(counts: np.ndarray) -> np.ndarray:
    right = np.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    return np.divide(right, union, out=np.full(len(counts), np.nan), where=union > 0)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    values = np.asarray(values)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")

"""`pretrain`: pictures of two sensors and wrong labels in, two encoders out.

CromSS (cromss, arXiv 2405.01217), its protocol: Adam, halved rate on a plateau, one random date a place and epoch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy
from chiasm.perceive.cromss.fitting import Draw, FitReport, cut, fit, windows
from chiasm.perceive.cromss.losses import CromSS, one_hot, weighted_cross_entropy, weighted_dice
from chiasm.perceive.cromss.networks import TwoSensorNet
from chiasm.perceive.cromss.smoothing import LabelSmoothing


def pretrain(
    net: TwoSensorNet,
    a: Any,
    b: Any,
    labels: Any,
    *,
    objective: CromSS | None = None,
    smoothing: LabelSmoothing | None = None,
    epochs: int = 200,
    batch_size: int = 128,
    rate: float = 5e-3,
    weight_decay: float = 1e-8,
    validation: float = 0.01,
    schedule: str = "plateau",
    patience: int = 30,
    factor: float = 0.5,
    crop: int | None = None,
    flip: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> FitReport:
    """Trains both encoders and the decoder(s) in place on noisy labels.

    Args:
        net: what is trained; afterwards take its ``encoder_a`` and ``encoder_b`` (`transfer`).
        a, b: pictures float ``[N, T, C, H, W]`` of N places at T dates, or ``[N, C, H, W]`` of one date. In each epoch
            every place shows one random date, the same of both sensors.
        labels: noisy labels ``[N, T, H, W]`` or ``[N, H, W]``; negative ones are ignored.
        objective: the loss; default `CromSS` with its defaults.
        smoothing: softens the labels; default `LabelSmoothing` of these labels with its defaults; with ``cache=True`` its filters
            run once instead of in every batch. Cropped and mirrored with the pictures. For hard labels:
            ``LabelSmoothing(labels, K, prior="none", uniform_share=0)``.
        epochs, batch_size, rate, weight_decay: 200, 128, 5e-3, 1e-8, Adam (the paper's).
        validation: share of the places whose noisy, hard labels judge the plateau; 1 % (the paper's), at least one place. 0
            for none.
        schedule: ``"plateau"``, ``"cosine"`` or ``"constant"``.
        patience, factor: of the plateau, 30 epochs and 0.5 (the paper's).
        crop: side of random windows; None for whole pictures.
        flip: random mirror images.
        seed: of everything random here.
        progress: show a bar.

    Raises:
        BadInput: shapes that do not fit, labels that are no classes, a validation share outside 0 .. 1.
        TrainingDiverged, MissingExtra: see `fit`.
    """
    a, b, labels = _with_dates(a, b, labels)
    if not 0 <= validation < 1:
        raise BadInput(f"validation {validation} is no share", where="pretrain", fix="Give 0 to less than 1")
    objective = CromSS() if objective is None else objective
    smoothing = LabelSmoothing(labels, net.classes) if smoothing is None else smoothing
    if smoothing.labels.shape != labels.shape or smoothing.classes != net.classes:
        raise BadInput(
            f"smoothing of {smoothing.labels.shape} labels and {smoothing.classes} classes for {labels.shape} and {net.classes}",
            where="pretrain",
            fix="Make it of the same labels and classes",
        )
    order = np.random.default_rng([seed, 60]).permutation(len(a))
    held = max(1, round(validation * len(a))) if validation and len(a) > 1 else 0
    return fit(
        _Step(net, objective),
        _draw(a, b, labels, smoothing, crop, flip),
        order[held:],
        validation=order[:held] if held else None,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        weight_decay=weight_decay,
        schedule=schedule,
        patience=patience,
        factor=factor,
        seed=seed,
        on_epoch=objective.set_epoch,
        progress=progress,
    )


class _Step(nn.Module):
    """Net and loss in one, as the trainer wants them."""

    def __init__(self, net: TwoSensorNet, objective: CromSS) -> None:
        super().__init__()
        self.net, self.objective = net, objective

    def forward(self, a: Tensor, b: Tensor, labels: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        first, second = self.net(a, b)
        if self.training:
            parts = self.objective(first, second, labels, targets)
            return {"loss": torch.stack(list(parts.values())).sum()}
        # Validation asks how well the labels themselves are met, whatever is trusted by now.
        hot, seen = one_hot(labels, self.net.classes), (labels >= 0).float()
        loss = [weighted_cross_entropy(z, hot, seen) + weighted_dice(z.softmax(1), hot, seen) for z in (first, second)]
        return {"loss": torch.stack(loss).sum()}


def _draw(
    a: np.ndarray, b: np.ndarray, labels: np.ndarray, smoothing: LabelSmoothing, crop: int | None, flip: bool
) -> Draw:
    dates, size = a.shape[1], (int(labels.shape[2]), int(labels.shape[3]))

    def draw(rows: np.ndarray, generator: np.random.Generator | None) -> dict[str, Tensor]:
        date = rows % dates if generator is None else generator.integers(0, dates, size=len(rows))
        lines, columns = windows(len(rows), size, crop, flip, generator)

        def taken(maps: np.ndarray) -> np.ndarray:
            return cut(maps, lines, columns)

        batch = {
            "a": torch.from_numpy(taken(a[rows, date])),
            "b": torch.from_numpy(taken(b[rows, date])),
            "labels": torch.from_numpy(taken(labels[rows, date])),
        }
        if generator is not None:
            batch["targets"] = torch.from_numpy(taken(smoothing.targets(rows, date)))
        return batch

    return draw


def _with_dates(a: Any, b: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays ``[N, T, C, H, W]``, the same of the second sensor, and ``[N, T, H, W]``."""
    a, b, labels = (to_numpy(x) for x in (a, b, labels))
    if a.ndim == 4 and b.ndim == 4 and labels.ndim == 3:
        a, b, labels = a[:, None], b[:, None], labels[:, None]
    fits = a.ndim == 5 and b.ndim == 5 and labels.ndim == 4
    if not fits or not (
        a.shape[:2] == b.shape[:2] == labels.shape[:2] and a.shape[3:] == b.shape[3:] == labels.shape[2:]
    ):
        raise BadInput(
            f"pictures {a.shape} and {b.shape}, labels {labels.shape}",
            where="pretrain",
            fix="Give [N, T, C, H, W] of both sensors and [N, T, H, W], or all without T",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise BadInput(
            f"labels of type {labels.dtype}", where="pretrain", fix="Give class numbers, -1 for ignored ones"
        )
    for name, pictures in (("a", a), ("b", b)):
        if not np.isfinite(pictures).all():
            raise BadInput("pictures hold NaN or infinite values", where=f"pretrain, {name}", fix="Fill them in first")
    return a.astype(np.float32, copy=False), b.astype(np.float32, copy=False), labels.astype(np.int64)

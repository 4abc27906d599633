"""Tuning a `PromptedClassifier` on a few labelled pictures; the loop is that of `transformers.Trainer`.

>>> report = tune(classifier, pixel_values, labels, epochs=50, augment=crop_and_flip)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chiasm.adapt.hicropl.classifier import PromptedClassifier
from chiasm.errors import BadInput, TrainingDiverged
from chiasm.learn.fitting import finite, fit_module

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass
class TuneReport:
    """What happened.

    Args:
        steps: optimizer steps.
        seconds: wall time.
        history: one dict a logged step: ``step``, ``loss``.
        parameters: number of trained parameters.
    """

    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    parameters: int = 0


def tune(
    classifier: PromptedClassifier,
    pixel_values: Tensor,
    labels: Sequence[int] | np.ndarray | Tensor,
    *,
    epochs: int = 50,
    batch_size: int = 32,
    rate: float = 1e-3,
    weight_decay: float = 5e-4,
    warmup_epochs: int = 1,
    warmup_rate: float = 1e-5,
    eps: float = 1e-8,
    clip: float = 0.0,
    augment: Augment | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TuneReport:
    """Trains the adapter's parameters in place; the model stays as it is.

    Args:
        classifier: what is tuned.
        pixel_values: float ``[N, 3, H, W]``, preprocessed for the model.
        labels: int ``[N]``, numbers of the classifier's classes.
        epochs: 50; on ImageNet 40, across data sets 5 (the paper's configurations).
        batch_size: 32; on ImageNet 128.
        rate: learning rate of Adam. The paper trains in half precision with 2.5e-3 and eps 1e-3; in float32 1e-3 or less
            is what goes with eps 1e-8.
        weight_decay: of Adam; 5e-4 is the default of the trainer that the paper's code uses [inferred].
        warmup_epochs, warmup_rate: epochs at a constant small rate before the cosine to 0.
        eps: of Adam.
        clip: largest norm of the gradient; 0 for no clipping.
        augment: (batch, generator) -> batch, for example `crop_and_flip`. Without it the frozen vectors of the pictures
            are computed once instead of in every step.
        seed: of the order and of the augmentation.
        progress: show a bar.

    Raises:
        BadInput: no pictures, NaN in them, labels that do not fit, or settings that are not positive.
        TrainingDiverged: the loss is no number any more.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    if epochs < 1 or batch_size < 1 or not 0 < rate < math.inf:
        raise BadInput(
            f"epochs {epochs}, batch_size {batch_size}, rate {rate}", where="tune", fix="All three are positive"
        )
    given = np.asarray(labels)
    if given.dtype.kind not in "iub":
        raise BadInput(f"labels of type {given.dtype}", where="tune", fix="Give whole numbers of classes")
    labels = torch.as_tensor(given).long()
    if not torch.is_tensor(pixel_values):
        raise BadInput(
            f"pictures as a {type(pixel_values).__name__}",
            where="tune",
            fix="Give the processor's pixel_values, a tensor [N, 3, H, W]",
        )
    if pixel_values.ndim != 4 or not len(pixel_values) or labels.shape != (len(pixel_values),):
        raise BadInput(
            f"pictures {tuple(pixel_values.shape)} and labels {tuple(labels.shape)}",
            where="tune",
            fix="Give [N, 3, H, W] and [N] with N >= 1",
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(classifier.classes):
        raise BadInput(
            f"labels from {int(labels.min())} to {int(labels.max())} for {len(classifier.classes)} classes",
            where="tune",
            fix="Number the classes from 0 on",
        )
    broken = ~pixel_values.flatten(1).isfinite().all(1)
    if bool(broken.any()):
        raise BadInput(
            f"picture {int(broken.nonzero()[0])} holds NaN or infinite values", where="tune", fix="Remove or repair it"
        )
    learned = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    if not learned:
        raise BadInput("has nothing to learn", where="tune", fix="Give the adapter at least one prompt token")
    report = TuneReport(parameters=sum(parameter.numel() for parameter in learned))
    optimizer = torch.optim.Adam(learned, lr=rate, eps=eps, weight_decay=weight_decay)
    each = math.ceil(len(labels) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _factor(step, warmup_epochs * each, epochs * each, warmup_rate / rate)
    )
    pictures = _Pictures(pixel_values, labels, None if augment else _frozen(classifier, pixel_values))
    start = time.perf_counter()
    state = fit_module(
        classifier,
        pictures,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        collate=_Batches(augment, seed),
        optimizers=(optimizer, schedule),
        progress=progress,
        max_grad_norm=clip,
        logging_steps=max(1, each),
    )
    report.seconds, report.steps = time.perf_counter() - start, int(state.global_step)
    report.history = [
        {"step": float(entry["step"]), "loss": float(entry["loss"])} for entry in state.log_history if "loss" in entry
    ]
    if not finite(learned):
        raise TrainingDiverged("a prompt or mapper is no number any more", where="tune", fix="Lower the learning rate")
    return report


def _factor(step: int, warm: int, steps: int, low: float) -> float:
    """The rate's factor: constant and small, then a cosine to 0."""
    if step < warm:
        return low
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def _frozen(classifier: PromptedClassifier, pixel_values: Tensor) -> Tensor:
    return torch.cat([classifier.frozen_images(part).cpu() for part in pixel_values.split(256)])


class _Pictures(torch.utils.data.Dataset):
    """What `transformers.Trainer` draws from."""

    def __init__(self, pixel_values: Tensor, labels: Tensor, frozen_images: Tensor | None) -> None:
        self.pixel_values, self.labels, self.frozen_images = pixel_values, labels, frozen_images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        found = {"pixel_values": self.pixel_values[row], "labels": self.labels[row]}
        return found if self.frozen_images is None else {**found, "frozen_images": self.frozen_images[row]}


class _Batches:
    """Stacks what was drawn, and changes the pictures if asked."""

    def __init__(self, augment: Augment | None, seed: int) -> None:
        self.augment, self.generator = augment, torch.Generator().manual_seed(seed)

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        batch: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if self.augment is not None:
            batch["pixel_values"] = self.augment(batch["pixel_values"], self.generator)
        return batch


def crop_and_flip(
    pixel_values: Tensor, generator: torch.Generator, *, least: float = 0.08, flip: float = 0.5
) -> Tensor:
    """Random resized crops (bicubic) and mirror images, each picture its own: the usual augmentation of ImageNet.

    Args:
        pixel_values: float ``[B, C, H, W]``; not changed.
        generator: of all draws.
        least: smallest share of the area that is kept; sides are in a ratio of 3/4 to 4/3.
        flip: share of pictures that are mirrored.
    """
    count = len(pixel_values)
    area = least + (1 - least) * torch.rand(count, generator=generator)
    ratio = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * math.log(4 / 3))
    wide, high = ((area * r).sqrt().clamp(max=1.0) for r in (ratio, 1 / ratio))
    across, down = ((torch.rand(count, generator=generator) * 2 - 1) * (1 - side) for side in (wide, high))
    mirrored = torch.where(torch.rand(count, generator=generator) < flip, -1.0, 1.0)
    zero = torch.zeros(count)
    rows = torch.stack([torch.stack([wide * mirrored, zero, across], 1), torch.stack([zero, high, down], 1)], 1)
    grid = functional.affine_grid(rows.to(pixel_values), list(pixel_values.shape), align_corners=False)
    return functional.grid_sample(pixel_values, grid, mode="bicubic", padding_mode="border", align_corners=False)

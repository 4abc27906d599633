"""`transfer`: a pre-trained encoder, a few clean label maps, and a head for them.

CromSS (cromss, arXiv 2405.01217): decoders are thrown away, encoders are kept, frozen or fine-tuned.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import BadInput
from chiasm.measure.vectors import to_numpy
from chiasm.perceive.cromss.fitting import FitReport, cut, fit, windows
from chiasm.perceive.cromss.heads import make_head
from chiasm.perceive.cromss.losses import one_hot, weighted_cross_entropy, weighted_dice
from chiasm.perceive.cromss.networks import in_batches


class Segmenter(nn.Module):
    """An encoder and a head.

    Args:
        encoder: gives a feature pyramid and tells its ``channels``; it is copied.
        classes: K.
        head: ``"linear"``, ``"unet"``, ``"fpn"``, ``"pspnet"`` or ``"deeplab"``.
        frozen: the encoder learns nothing, its batch statistics included.

    Raises:
        UnknownName, BadInput: no such head, an encoder without channels, fewer than two classes.
    """

    def __init__(self, encoder: nn.Module, classes: int, *, head: str = "linear", frozen: bool = True) -> None:
        super().__init__()
        channels = tuple(getattr(encoder, "channels", ()))
        if not channels:
            raise BadInput("the encoder does not tell its channels", where="Segmenter", fix="See SmallEncoder")
        self.classes, self.frozen = classes, frozen
        self.encoder = copy.deepcopy(encoder)
        self.head = make_head(head, channels, classes)
        self.encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Segmenter:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``[B, K, H, W]`` of pictures ``[B, C, H, W]``."""
        if self.frozen:
            with torch.no_grad():
                maps = self.encoder(pictures)
        else:
            maps = self.encoder(pictures)
        return self.head(maps, pictures.shape[2:])

    @torch.inference_mode()
    def predict(self, pictures: Any, *, batch_size: int = 64) -> Tensor:
        """Classes int64 ``[N, H, W]`` in evaluation mode.

        Args:
            pictures: ``[N, C, H, W]``, array or tensor.
            batch_size: pictures at a time; changes nothing.

        Raises:
            BadInput: pictures of another shape, with NaN, or batches of none.
        """
        given = torch.as_tensor(pictures, dtype=torch.float32)
        if given.ndim != 4:
            raise BadInput(f"pictures {tuple(given.shape)}", where="Segmenter.predict", fix="Give [N, C, H, W]")
        return in_batches(self, lambda part: self(part).argmax(1), given, batch_size)


def transfer(
    encoder: nn.Module,
    pictures: Any,
    labels: Any,
    classes: int,
    *,
    head: str = "linear",
    frozen: bool = True,
    epochs: int = 50,
    batch_size: int = 8,
    rate: float = 1e-3,
    weight_decay: float = 0.0,
    crop: int | None = None,
    flip: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Segmenter, FitReport]:
    """Trains a head, and with ``frozen=False`` the encoder, on clean label maps.

    Args:
        encoder: of one sensor; it is copied.
        pictures: ``[N, C, H, W]``.
        labels: ``[N, H, W]``; negative ones are ignored.
        classes: K of the new task.
        head, frozen: see `Segmenter`.
        epochs, batch_size, rate, weight_decay: Adam with a cosine to 0; 50, 8, 1e-3, 0 [ours; the paper gives none that
            would fit few scenes].
        crop, flip: random windows and mirror images.
        seed: of the head's first weights, of order and changes.
        progress: show a bar.

    Raises:
        BadInput: shapes that do not fit, labels that are no classes.
        UnknownName, TrainingDiverged, MissingExtra: see `Segmenter` and `fit`.
    """
    pictures, labels = to_numpy(pictures).astype(np.float32, copy=False), to_numpy(labels)
    if (
        pictures.ndim != 4
        or not len(pictures)
        or labels.shape != (len(pictures), *pictures.shape[2:])
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise BadInput(
            f"pictures {pictures.shape}, labels {labels.shape} of type {labels.dtype}",
            where="transfer",
            fix="Give [N, C, H, W] and class numbers [N, H, W]",
        )
    if labels.max(initial=0) >= classes:
        raise BadInput(
            f"label {labels.max(initial=0)} for {classes} classes",
            where="transfer",
            fix=f"Give 0 to {max(classes, 2) - 1}, and -1 for ignored pixels",
        )
    if not np.isfinite(pictures).all():
        raise BadInput("pictures hold NaN or infinite values", where="transfer", fix="Fill them in first")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        segmenter = Segmenter(encoder, classes, head=head, frozen=frozen)
    segmenter.to(next(encoder.parameters()).device)
    size = (int(labels.shape[1]), int(labels.shape[2]))

    def draw(rows: np.ndarray, generator: np.random.Generator | None) -> dict[str, Tensor]:
        lines, columns = windows(len(rows), size, crop, flip, generator)
        return {
            "pictures": torch.from_numpy(cut(pictures[rows], lines, columns)),
            "labels": torch.from_numpy(cut(labels[rows], lines, columns).astype(np.int64)),
        }

    report = fit(
        _Step(segmenter),
        draw,
        np.arange(len(pictures)),
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        weight_decay=weight_decay,
        schedule="cosine",
        seed=seed,
        progress=progress,
    )
    return segmenter.eval(), report


class _Step(nn.Module):
    """Segmenter and loss in one, as the trainer wants them."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.segmenter(pictures)
        hot, seen = one_hot(labels, self.segmenter.classes), (labels >= 0).float()
        dice = weighted_dice(logits.softmax(1), hot, seen)
        return {"loss": weighted_cross_entropy(logits, hot, seen) + dice}

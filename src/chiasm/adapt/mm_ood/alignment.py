"""Cross-modal alignment (CMA): the contrastive fine-tuning loss with one more term that closes the modality gap.

With logits ``l_ij = s u_i . v_j`` of a batch (u images, v texts of their classes, unit length):

    L = 1/2 [ CE_rows + lambda * mean_i E_i ] + 1/2 [ CE_columns + lambda * mean_j E_j ],   E_i = -log sum_j exp l_ij

Row by row that is ``-l_ii + (1 - lambda) LSE_j l_ij``: lambda weakens the repulsion half of InfoNCE. lambda = 0 is FLYP (arXiv
2212.00638), lambda = 1 is pure alignment and collapses. As an energy model, the added terms are the log-likelihood of the batch's
images and texts themselves. CMA (CVPR 2025, arXiv 2503.18817).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce
from chiasm.measure.gap import modality_gap
from chiasm.measure.vectors import as_rows, same_dim, to_numpy

TERMS = ("both", "image", "text", "none")


class CrossModalAlignment(nn.Module):
    """The CMA loss as an objective for `chiasm.learn.train`; ``a`` are images, ``b`` the texts of their classes.

    Args:
        lam: weight lambda of the energies; 1e-3 as in the paper's command (its flag's own default, 0, is FLYP).
        scale: inverse temperature at the start; 100 as in CLIP.
        learn_scale: train it.
        max_scale: its bound; 100 as in CLIP. None for no bound, as in the paper's code: then a large lambda is lowered most
            cheaply by raising the scale.
        terms: energies of ``"both"`` sides, of one (``"image"``, ``"text"``) or ``"none"`` (ablation).
        false_negatives: ``"keep"`` pairs of one class as negatives of each other, as FLYP and CMA do, or ``"ignore"`` them
            (needs ``groups``).
        warmup: share of the training over which lambda rises from 0; 0 as in the paper.

    Raises:
        BadInput: a lambda outside 0 .. 1, a scale that is not positive.
        UnknownName: terms or a treatment of false negatives that do not exist.
    """

    def __init__(
        self,
        lam: float = 1e-3,
        *,
        scale: float = 100.0,
        learn_scale: bool = True,
        max_scale: float | None = 100.0,
        terms: str = "both",
        false_negatives: str = "keep",
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= lam <= 1:
            raise BadInput(f"lam {lam} is outside 0..1", where="CrossModalAlignment", fix="Values far below 1 work")
        if not scale > 0 or not 0 <= warmup <= 1 or (max_scale is not None and not max_scale > 0):
            raise BadInput(
                f"scale {scale}, max_scale {max_scale}, warmup {warmup}",
                where="CrossModalAlignment",
                fix="Scales are positive, warmup is a share from 0 to 1",
            )
        if terms not in TERMS:
            raise unknown_name("terms", terms, TERMS)
        if false_negatives not in ("keep", "ignore"):
            raise unknown_name("treatment of false negatives", false_negatives, ("keep", "ignore"))
        log_scale = torch.tensor(math.log(scale))
        self.log_scale = nn.Parameter(log_scale) if learn_scale else nn.Buffer(log_scale)
        self.lam, self.max_scale, self.terms, self.false_negatives, self.warmup = (
            lam,
            max_scale,
            terms,
            false_negatives,
            warmup,
        )
        self.reached = nn.Buffer(torch.tensor(1.0 if warmup == 0 else 0.0))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature in use."""
        scale = self.log_scale.exp()
        return scale if self.max_scale is None else scale.clamp(max=self.max_scale)

    def on_progress(self, step: int, steps: int) -> None:
        """Lets lambda rise over the warm-up."""
        if self.warmup:
            self.reached.fill_(min(1.0, step / max(1.0, self.warmup * steps)))

    def forward(self, a: Tensor, b: Tensor, *, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Loss parts ``a_to_b`` and ``b_to_a`` (FLYP), ``energy_a`` and ``energy_b``.

        Args:
            a: images ``[N, D]``, scaled to unit length here.
            b: the texts of their classes ``[N, D]``; equal texts may occur.
            groups: classes ``[N]``; looked at only where false negatives are to be ignored.

        Raises:
            BadInput: sides of different lengths.
        """
        if a.shape != b.shape:
            raise BadInput(
                f"images {tuple(a.shape)} and texts {tuple(b.shape)} are no pairs", where="CrossModalAlignment"
            )
        a, b = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        ignore = None
        if self.false_negatives == "ignore" and groups is not None:
            ignore = groups[:, None] == groups
        scale = self.scale
        parts = info_nce(a, b, scale=scale, ignore=ignore)
        weight = self.lam * self.reached
        own = scale * (a * b).sum(-1).mean()
        # info_nce gives half of mean(LSE - l_ii), so the mean log-sum-exp needs no second pass.
        for side, name, part in (("image", "energy_a", "a_to_b"), ("text", "energy_b", "b_to_a")):
            if self.terms in ("both", side):
                parts[name] = -0.5 * weight * (2 * parts[part] + own)
        return parts


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """How close the modalities are, and what the negative labels stand off.

    Args:
        gap: distance of the mean image from the mean of its texts, 0 .. 2.
        cosine: mean cosine of an image to the text of its own class.
        separation: mean of that cosine minus the largest cosine to a negative label; NaN without negatives.
    """

    gap: float
    cosine: float
    separation: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def alignment_report(images: Any, labels: Any, texts: Any, negatives: Any = None) -> AlignmentReport:
    """The figures that CMA is meant to move.

    Args:
        images: ``[N, D]``, N >= 4.
        labels: int ``[N]``, rows of ``texts``.
        texts: ``[K, D]``.
        negatives: ``[M, D]`` or None.

    Raises:
        BadInput: fewer than four images, labels of another length or outside the texts, or widths that differ.
    """
    u, t = to_numpy(as_rows(images, "images")), to_numpy(as_rows(texts, "texts"))
    same_dim(u, t, "images and texts")
    rows = np.asarray(labels)
    if (
        rows.shape != (len(u),)
        or rows.dtype.kind not in "iu"
        or (len(rows) and not 0 <= rows.min() <= rows.max() < len(t))
    ):
        raise BadInput(
            f"labels {rows.shape} of type {rows.dtype} for {len(u)} images and {len(t)} texts",
            where="alignment_report",
            fix=f"Give one whole number an image, 0 to {len(t) - 1}",
        )
    own = t[rows]
    cosine = (u * own).sum(axis=1)
    separation = float("nan")
    if negatives is not None and len(negatives):
        others = to_numpy(as_rows(negatives, "negatives"))
        same_dim(u, others, "images and negatives")
        separation = float((cosine - (u @ others.T).max(axis=1)).mean())
    return AlignmentReport(modality_gap(u, own).distance, float(cosine.mean()), separation)

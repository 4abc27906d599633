"""The intra-modal loss term: CLIP's loss with contrast inside each modality, so that search inside one is trained too.

Cross the Gap (arXiv 2502.04263) finds that inversion gains little on models trained with such a term, as SLIP (Mu et al. 2021,
arXiv 2112.12750):

    L = InfoNCE(a, b) + lambda_image InfoNCE(a, a') + lambda_text InfoNCE(b, b')

with a, b pictures and texts, and a', b' other views of the same things, in the space that is searched (no head on top).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput
from chiasm.learn.contrastive import InfoNCE

Views = Tensor | tuple[Tensor, Tensor]


class ClipLoss(nn.Module):
    """CLIP's symmetric loss with intra-modal terms.

    Args:
        intra_image: weight of the term on pictures; SLIP uses 1, 0 is CLIP.
        intra_text: weight of the term on texts (views by dropout).
        temperature: of the pairs; 0.07, learned, as in CLIP. A fixed high one (1.0) closes the modality gap.
        learn_temperature: learn it (its inverse stays below 100, as in CLIP).
        intra_temperature: of the intra-modal terms; 0.1, fixed, as in SLIP.
        warmup: training steps over which the intra-modal weights rise from 0; SLIP has none.

    Raises:
        BadInput: a negative weight or warm-up.
    """

    def __init__(
        self,
        intra_image: float = 0.0,
        intra_text: float = 0.0,
        *,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        intra_temperature: float = 0.1,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("intra_image", intra_image), ("intra_text", intra_text), ("warmup", warmup)):
            if value < 0:
                raise BadInput(f"{name} {value} is negative", where="ClipLoss")
        self.intra_image = intra_image
        self.intra_text = intra_text
        self.warmup = warmup
        self.pairs = InfoNCE(temperature, learn_temperature=learn_temperature)
        self.within = InfoNCE(intra_temperature)
        self.step = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(
        self, a: Tensor, b: Tensor, *, groups: Any = None, views_a: Views | None = None, views_b: Views | None = None
    ) -> dict[str, Tensor]:
        """Loss parts; the loss is their sum.

        Args:
            a: image features ``[N, D]``; normalized first.
            b: text features ``[N, D]``.
            groups: ids ``[N]`` (or one tensor a side); equal ids are positives, in every term.
            views_a: another view of each picture ``[N, D]``, contrasted with ``a``, or two views, contrasted with each other.
            views_b: the same for texts.

        Returns:
            ``a_to_b``, ``b_to_a`` and, where their weight is not 0, ``intra_image``, ``intra_text``.

        Raises:
            BadInput: an intra-modal term without views.
        """
        ids = groups if isinstance(groups, (tuple, list)) else (groups, groups)
        parts = self.pairs(a, b, groups=groups)
        share = 1.0
        if self.training and self.warmup:
            share = min(1.0, self.step.item() / self.warmup)
            self.step += 1
        for name, weight, own, views, side in (
            ("intra_image", self.intra_image, a, views_a, ids[0]),
            ("intra_text", self.intra_text, b, views_b, ids[1]),
        ):
            if not weight:
                continue
            if views is None:
                raise BadInput(
                    f"{name} is {weight:g} but there are no views", where="ClipLoss", fix="Give views_a / views_b"
                )
            first, second = views if isinstance(views, (tuple, list)) else (own, views)
            inner = self.within(first, second, groups=side)
            parts[name] = weight * share * (inner["a_to_b"] + inner["b_to_a"])
        return parts

"""The alignment of cross tokens: Jensen-Shannon divergence between what image and text towers put into them.

p, t = softmax over the D features of the image's and the text's cross token,  m = (p + t) / 2
L = 1/2 [KL(p || m) + KL(t || m)]         (described)         L = 1/2 [KL(m || p) + KL(m || t)]         (released code)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput


def js_divergence(a: Tensor, b: Tensor, *, parity: bool = False) -> Tensor:
    """Jensen-Shannon divergence of the softmaxes of two sets of vectors, mean over the rows; from 0 to log 2.

    Args:
        a, b: logits ``[N, D]``.
        parity: the released code's direction of the divergences, which has no upper bound.

    Raises:
        BadInput: shapes that differ.
    """
    if a.shape != b.shape:
        raise BadInput(
            f"{tuple(a.shape)} and {tuple(b.shape)} cannot be compared",
            where="js_divergence",
            fix="Give both as [N, D]",
        )
    p, t = a.float().log_softmax(-1), b.float().log_softmax(-1)
    m = torch.logaddexp(p, t) - torch.log(torch.tensor(2.0))
    if parity:
        total = m.exp() * ((m - p) + (m - t))
    else:
        total = p.exp() * (p - m) + t.exp() * (t - m)
    return 0.5 * total.sum(-1).mean()


def paired_layers(image: int, text: int) -> list[int]:
    """For towers of different depth: how many text layers each image layer is compared with; sums to ``text``."""
    return [int((i + 1) * text / image) - int(i * text / image) for i in range(image)]


class CrossGuided(nn.Module):
    """An objective with the alignment of the cross tokens beside it: ``(1 - w) L_task + w L_JS``.

    Args:
        objective: the task's objective, for example `chiasm.learn.contrastive.InfoNCE`.
        reduction: an attached `CrossGET`; its cross tokens are trained with the objective.
        weight: w; 0.5 for CLIP on Flickr30k.
        additive: ``L_task + w L_JS`` instead, as for LLaVA (w = 1e-3 at 7B, 0.1 at 13B).
        warmup: share of the steps over which w rises from 0.

    Raises:
        BadInput: a weight outside 0..1 (non-additive), a warm-up that is no share, or a reduction without cross tokens.
    """

    def __init__(
        self, objective: nn.Module, reduction: Any, *, weight: float = 0.5, additive: bool = False, warmup: float = 0.1
    ) -> None:
        super().__init__()
        if not weight >= 0 or (weight > 1 and not additive) or not 0 <= warmup <= 1:
            raise BadInput(f"weight {weight}, warmup {warmup}", where="CrossGuided", fix="Both lie between 0 and 1")
        if not getattr(reduction, "has_cross", True):
            raise BadInput("the reduction has no cross tokens to align", where="CrossGuided", fix="Give a CrossGET")
        self.objective, self.reduction = objective, reduction
        self.weight, self.additive, self.warmup = weight, additive, warmup
        self.register_buffer("share", torch.tensor(0.0 if warmup else 1.0))

    def on_progress(self, step: int, steps: int) -> None:
        """Raises the weight during the warm-up; passes the step on to the task's objective."""
        rising = self.warmup * steps
        self.get_buffer("share").fill_(1.0 if not rising else min(1.0, step / rising))
        tell: Callable[[int, int], None] | None = getattr(self.objective, "on_progress", None)
        if tell is not None:
            tell(step, steps)

    def forward(self, a: Tensor, b: Tensor, *, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Loss parts of vectors ``a``, ``b`` ``[N, D]``; the cross tokens are those of the forward that made them."""
        weight = self.weight * self.get_buffer("share")
        task = self.objective(a, b, groups=groups)
        rest = 1.0 if self.additive else 1 - weight
        return {name: rest * part for name, part in task.items()} | {"alignment": weight * self.reduction.alignment()}

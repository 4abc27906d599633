"""The loss of every step: ``L = (CE(S, arange) + CE(S^T, arange)) / 2``, ``S = exp(s) e_a e_b^T`` with unit rows.

The paper's s is fixed at 2.5 (scale 12.18): its code starts a learned temperature at 0.07 and clamps it to [2.5, 3.0], so that
it gets no gradient. Here a learned s starts inside the bounds (log(1 / 0.07) = 2.659) and is brought back into them before
every step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce

LOG_SCALE = 2.5
BOUNDS = (2.5, 3.0)
_START = math.log(1 / 0.07)

Scale = Literal["fixed", "learned"]


class OneEncoderLoss(nn.Module):
    """The contrastive loss of OneEncoder as an objective.

    Args:
        logit_scale: ``"fixed"`` (the paper's default in effect) or ``"learned"``, clamped to ``bounds``.
        log_scale: s, if it is fixed; 2.5.
        bounds: of a learned s.
        anchor: the side that gets no gradient: ``"b"`` in step k, where ``b`` is the modality that is there already.
        per_pair: True takes every other pair for a negative, as the paper does; False (default) takes pairs of one group
            (captions of one picture, recordings of one class) for positives of each other.

    Raises:
        UnknownName: another ``logit_scale`` or ``anchor``.
        BadInput: bounds in the wrong order.
    """

    def __init__(
        self,
        logit_scale: Scale = "fixed",
        *,
        log_scale: float = LOG_SCALE,
        bounds: tuple[float, float] = BOUNDS,
        anchor: Literal["a", "b"] | None = None,
        per_pair: bool = False,
    ) -> None:
        super().__init__()
        if logit_scale not in ("fixed", "learned"):
            raise unknown_name("logit_scale", logit_scale, ("fixed", "learned"))
        if anchor not in (None, "a", "b"):
            raise unknown_name("anchor", str(anchor), ("a", "b"))
        if bounds[0] > bounds[1]:
            raise BadInput(f"bounds {bounds} are in the wrong order", where="OneEncoderLoss")
        self.learned, self.bounds, self.per_pair = logit_scale == "learned", bounds, per_pair
        self.anchor: Literal["a", "b"] | None = anchor
        start = torch.tensor(min(max(_START, bounds[0]), bounds[1]) if self.learned else float(log_scale))
        self.log_scale = nn.Parameter(start) if self.learned else nn.Buffer(start)

    @property
    def scale(self) -> Tensor:
        """exp(s)."""
        return (self.log_scale.clamp(*self.bounds) if self.learned else self.log_scale).exp()

    def on_progress(self, step: int, steps: int) -> None:
        """Brings a learned s back into its bounds: outside of them it would have no gradient and stay there."""
        if self.learned:
            with torch.no_grad():
                self.log_scale.clamp_(*self.bounds)

    def forward(self, a: Tensor, b: Tensor, *, groups: Any = None, negative: Tensor | None = None) -> dict[str, Tensor]:
        """Loss parts ``a_to_b`` and ``b_to_a``.

        Args:
            a: ``[N, D]``.
            b: ``[N, D]``.
            groups: int ``[N]``; see ``per_pair``.
            negative: ``[E, D]`` of ``b``'s kind that belong to none of ``a`` (a further column of the pairs); not in the paper.
        """
        a, b = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        groups = None if self.per_pair else groups
        others = None if negative is None else nn.functional.normalize(negative, dim=-1)
        scale = self.scale.to(a.dtype)
        return info_nce(a, b, scale=scale, groups=groups, stop_gradient=self.anchor, extra_b=others)

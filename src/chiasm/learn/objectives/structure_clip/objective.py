"""Structure-CLIP (Huang et al., AAAI 2024, arXiv 2305.06152): negatives made from scene graphs, and knowledge of the graph.

A bag of words scores "an astronaut rides a horse" and "a horse rides an astronaut" alike. Each caption t_i therefore gets
negatives t-_i of its own, made of the same words, beside the other captions of the batch (v pictures, all of unit length):

    L = L_itc(v, t') + w * mean_i [ margin - v_i . t'_i + v_i . t'-_i ]+

t' = t + lambda k is the caption with the knowledge of its graph (`KnowledgeTower`; without it t' = t).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import InfoNCE, info_nce
from chiasm.learn.held_out import Direction, Encoded


class StructureCLIP(nn.Module):
    """Contrast between pictures and captions, and a hinge against each caption's semantic negatives.

    Data: pairs with the columns ``negative/0``, ``negative/1``, ... (row -1 where a caption has none), as
    `chiasm.learn.objectives.structure_clip.with_structure` makes them, routed like the captions:
    ``train(..., routes={"negative": "b"})``. Without such columns it is the plain contrastive loss.

    Args:
        itc: the contrast within the batch: ``"infonce"`` (paper) or ``"triplet"``, with the hardest negative in each
            direction (released code).
        neg_on: vectors that the hinge compares: ``"fused"`` (paper) or ``"text"``, without knowledge (released code).
        margin: of the hinge against the semantic negatives; 0.2 (paper; 0.1 in the released code).
        weight: w; 5 (released code).
        hinge: margin of ``"triplet"``; 0.2 (released code).
        denominator: count all negatives of the batch as further captions of the InfoNCE denominator (NegCLIP), too.
        temperature, learn_temperature: of InfoNCE, as in `chiasm.learn.InfoNCE`.
        warmup: share of the training over which ``weight`` rises from 0.
        mean_steps: with ``"triplet"``, the captions count with their mean instead of the hardest one during so many steps;
            100 (released code).
        fused: the captions' vectors come from a `KnowledgeTower`: they are taken as they are, not scaled to unit length.
        parity: the defaults of the released code: triplet, text, margin 0.1.

    Raises:
        UnknownName: an ``itc`` or ``neg_on`` that does not exist.
        BadInput: a negative margin or weight, or a warm-up outside 0..1.
    """

    def __init__(
        self,
        *,
        itc: Literal["infonce", "triplet"] | None = None,
        neg_on: Literal["text", "fused"] | None = None,
        margin: float | None = None,
        weight: float = 5.0,
        hinge: float = 0.2,
        denominator: bool = False,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        warmup: float = 0.1,
        mean_steps: int = 100,
        fused: bool = False,
        parity: bool = False,
    ) -> None:
        super().__init__()
        self.itc = itc or ("triplet" if parity else "infonce")
        self.neg_on = neg_on or ("text" if parity else "fused")
        self.margin = margin if margin is not None else (0.1 if parity else 0.2)
        for kind, value, known in (
            ("itc", self.itc, ("infonce", "triplet")),
            ("neg_on", self.neg_on, ("text", "fused")),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        if self.margin < 0 or weight < 0 or hinge < 0 or not 0 <= warmup <= 1:
            raise BadInput(
                f"margin={self.margin}, weight={weight}, hinge={hinge}, warmup={warmup}", where="StructureCLIP"
            )
        self.weight, self.hinge, self.denominator, self.warmup = weight, hinge, denominator, warmup
        self.mean_steps, self.fused = mean_steps, fused
        self.contrast = InfoNCE(temperature, learn_temperature=learn_temperature)
        self.ramp = nn.Buffer(torch.ones(()))
        self.early = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def on_progress(self, step: int, steps: int) -> None:
        """Sets the weight of the negatives, and whether the triplet loss still takes the mean caption."""
        self.ramp.fill_(min(1.0, step / (self.warmup * steps)) if self.warmup and steps > 0 else 1.0)
        self.early.fill_(step < self.mean_steps)

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        negative: Tensor | None = None,
        negative_present: Tensor | None = None,
        b_plain: Tensor | None = None,
        negative_plain: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts.

        Args:
            a: pictures ``[N, D]``.
            b: captions ``[N, D]``.
            groups: int ``[N]``; pairs of one group are positives of each other.
            negative: ``[N, K, D]`` or ``[N, D]``, negatives of each caption.
            negative_present: bool ``[N, K]``, False where there is none.
            b_plain, negative_plain: unit vectors without knowledge, for ``neg_on="text"``.
        """
        a = nn.functional.normalize(a, dim=-1)
        b = self._captions(b)
        found = None
        if negative is not None:
            negative = self._captions(negative if negative.ndim == 3 else negative.unsqueeze(1))
            if negative_present is None:
                negative_present = torch.ones(negative.shape[:2], dtype=torch.bool, device=a.device)
            found = negative, negative_present.reshape(negative.shape[:2])
        if self.itc == "infonce":
            extra = found[0][found[1]] if found is not None and self.denominator else None
            extra = None if extra is None or not len(extra) else extra
            parts = info_nce(a, b, scale=self.contrast.scale, groups=groups, extra_b=extra)
        else:
            parts = self._triplet(a, b, groups)
        if found is not None and self.weight:
            captions, false = b, found[0]
            if self.neg_on == "text" and self.fused:
                if b_plain is None or negative_plain is None:
                    raise BadInput(
                        "neg_on='text' needs the vectors without knowledge",
                        where="StructureCLIP",
                        fix="Train a model with a KnowledgeTower, or use neg_on='fused'",
                    )
                captions, false = b_plain, negative_plain.reshape(false.shape)
            parts["structure"] = self.weight * self.ramp * structure_hinge(a, captions, false, found[1], self.margin)
        return parts

    def _captions(self, vectors: Tensor) -> Tensor:
        return vectors if self.fused else nn.functional.normalize(vectors, dim=-1)

    def _triplet(self, a: Tensor, b: Tensor, groups: Tensor | None) -> dict[str, Tensor]:
        """Hinge against the hardest other caption (at first: the mean one) and the hardest other picture."""
        scores = a @ b.T
        groups = torch.arange(len(a), device=a.device) if groups is None else groups
        others = groups[:, None] != groups[None, :]
        own = scores.diagonal()
        hardest = scores.masked_fill(~others, -torch.inf)
        # Rows without another group have no negative: -inf, so their hinge is zero.
        count = others.sum(1)
        mean = scores.masked_fill(~others, 0).sum(1) / count.clamp_min(1)
        text = torch.where(self.early, mean.masked_fill(count == 0, -torch.inf), hardest.amax(1))
        image = hardest.amax(0)
        return {
            "a_to_b": (self.hinge - own + text).clamp_min(0).mean(),
            "b_to_a": (self.hinge - own + image).clamp_min(0).mean(),
        }

    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a") -> Tensor:
        """Scores ``[N, M]``: unit pictures times captions, which are of unit length only without knowledge."""
        return nn.functional.normalize(a.vectors, dim=-1) @ self._captions(b.vectors).T

    def paired(self, a: Encoded, b: Encoded) -> Tensor:
        """Scores ``[N]`` of row i of ``a`` with row i of ``b``: the diagonal of `similarity`."""
        return (nn.functional.normalize(a.vectors, dim=-1) * self._captions(b.vectors)).sum(-1)


def structure_hinge(a: Tensor, captions: Tensor, negatives: Tensor, present: Tensor, margin: float) -> Tensor:
    """Mean over the negatives that are there of ``[margin - a.caption + a.negative]+``; 0 without any.

    Args:
        a: unit pictures ``[N, D]``.
        captions: ``[N, D]``.
        negatives: ``[N, K, D]``.
        present: bool ``[N, K]``.
        margin: the margin.
    """
    own = (a * captions).sum(-1, keepdim=True)
    false = torch.einsum("nd,nkd->nk", a, negatives)
    loss = (margin - own + false).clamp_min(0).masked_fill(~present, 0)
    return loss.sum() / present.sum().clamp_min(1)

"""DBL: train a second copy of a matching model that must beat the first one's margins instead of imitating it.

Diao and others, "Deep Boosting Learning: A Brand-new Cooperative Approach for Image-Text Matching", IEEE TIP 33, 2024,
arXiv 2404.18114. Branch k of a cohort learns ``L_tri(S_k) + alpha / k * sum_{q<k} L_boost(S_k, S_q)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce
from chiasm.learn.momentum import cosine_momentum
from chiasm.learn.objectives.dbl import boosting, comparators
from chiasm.learn.objectives.dbl.boosting import MARGINS, NEGATIVES, REDUCTIONS, Margin, Negatives, Reduction

Boost = Literal["relative", "absolute", "softmax", "kl", "dml", "rkd", "sp", "darkrank"]
Warmup = Literal["sum", "mean", "info_nce"]

_IMITATE: dict[str, Callable[..., Tensor]] = {
    "softmax": comparators.softmax_boost,
    "kl": comparators.distillation,
    "dml": comparators.distillation,
    "rkd": comparators.relational,
    "sp": comparators.similarity_preserving,
    "darkrank": comparators.dark_rank,
}
BOOSTS = ("relative", "absolute", *_IMITATE)
WARMUPS = ("sum", "mean", "info_nce")


class DeepBoosting(nn.Module):
    """The losses of all branches of a cohort; with one branch the plain ranking loss.

    Branches are the views of a side (`cohort` and `branched` make them): ``a`` and ``b`` are ``[n, K, D]``, the last branch is
    the target that is kept. Scores are cosines, unless ``score`` says otherwise.

    Args:
        boost: what a branch learns from earlier ones: ``"relative"`` (the paper's default) or ``"absolute"`` boosting; their
            ``"softmax"`` form; or the comparators ``"kl"``, ``"dml"`` (mutual), ``"rkd"``, ``"sp"``, ``"darkrank"``.
        alpha: weight of the boost; 1 as in the paper. 0 trains all branches alone.
        margin: m of all hinges; 0.2.
        beta: the boost's margin in units of m; 1.
        share: gamma of absolute boosting; 0.5.
        negatives: over which wrong pairs the hinges of the boost run: the hardest (``"max"``), ``"sum"`` or ``"mean"``.
        adapt: the boost's margin: ``"fixed"``, ``"hard"`` or ``"soft"`` (smaller where the anchor is near the limit).
        reduction: ``"sum"`` over the batch as in the paper, or ``"mean"``.
        warmup: share of all steps before hard negatives and boosting begin; 0.12 (3 of 25 epochs). Hard negatives from
            random weights collapse: every score becomes equal and recall stays at chance.
        warmup_loss: what is trained until then: hinges of all negatives (``"sum"``, ``"mean"``) or ``"info_nce"``.
        score: ``score(a, b) -> [n, n]`` of the vectors ``[n, D]`` of one branch; default the cosine.

    Raises:
        BadInput: numbers outside their range.
        UnknownName: an option that does not exist.
    """

    progress: Tensor

    def __init__(
        self,
        boost: Boost = "relative",
        *,
        alpha: float = 1.0,
        margin: float = 0.2,
        beta: float = 1.0,
        share: float = 0.5,
        negatives: Negatives = "max",
        adapt: Margin = "fixed",
        reduction: Reduction = "sum",
        warmup: float = 0.12,
        warmup_loss: Warmup = "sum",
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        for what, name, known in (
            ("boost", boost, BOOSTS),
            ("negatives", negatives, NEGATIVES),
            ("margin", adapt, MARGINS),
            ("reduction", reduction, REDUCTIONS),
            ("warm-up loss", warmup_loss, WARMUPS),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        if margin <= 0 or alpha < 0 or beta < 0 or not 0 <= warmup < 1:
            raise BadInput(
                f"margin {margin}, alpha {alpha}, beta {beta}, warmup {warmup}",
                where="DeepBoosting",
                fix="margin > 0, alpha and beta >= 0, warmup a share of the steps below 1",
            )
        self.boost: Boost = boost
        self.alpha, self.margin, self.beta, self.share = alpha, margin, beta, share
        self.negatives: Negatives = negatives
        self.adapt: Margin = adapt
        self.reduction: Reduction = reduction
        self.warmup, self.warmup_loss = warmup, warmup_loss
        self.score = score or _cosine
        # Outside a training the losses are those after the warm-up.
        self.register_buffer("progress", torch.ones(()))

    def on_progress(self, step: int, steps: int) -> None:
        """Where the training is; decides when the warm-up ends."""
        self.progress.fill_(step / max(1, steps))

    @property
    def warming_up(self) -> bool:
        return float(self.progress) < self.warmup

    def forward(self, a: Tensor, b: Tensor, *, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch, all from the scores before any branch has moved.

        Args:
            a: ``[n, D]``, or ``[n, K, D]`` with one entry a branch.
            b: the same of the other side.
            groups: int ``[n]``; pairs of one group are no negatives of each other.

        Returns:
            ``triplet`` and ``boost`` of the last branch, ``anchor`` for the sum over the earlier ones. Branches that need no
            gradient (frozen anchors) add nothing.
        """
        return self._losses(*self._branches(a, b), [], groups)

    def _branches(self, a: Tensor, b: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if a.shape != b.shape or a.ndim not in (2, 3) or not len(a):
            raise BadInput(f"a and b of shapes {tuple(a.shape)} and {tuple(b.shape)}", where="DeepBoosting")
        return ([*a.unbind(1)], [*b.unbind(1)]) if a.ndim == 3 else ([a], [b])

    def _losses(
        self, a: list[Tensor], b: list[Tensor], anchors: list[Tensor], groups: Tensor | None
    ) -> dict[str, Tensor]:
        """``anchors``: scores of teachers that come before all branches."""
        same = None if groups is None else groups[:, None] == groups[None, :]
        scores = [*anchors, *(self.score(x, y) for x, y in zip(a, b, strict=True))]
        first, last = len(anchors), len(scores) - 1
        frozen = [not s.requires_grad for s in scores]
        found: dict[str, Tensor] = {}
        for k in range(first, last + 1):
            if frozen[k] and not all(frozen):
                continue
            parts = {"triplet": self._base(a[k - first], b[k - first], scores[k], same)}
            others = [q for q in range(len(scores)) if q < k or (self.boost == "dml" and q != k)]
            if others and not self.warming_up:
                boosts = [self._boost(scores[k], scores[q], same) for q in others]
                parts["boost"] = self.alpha * torch.stack(boosts).mean()
            if k < last:
                parts = {"anchor": torch.stack(list(parts.values())).sum()}
            for name, value in parts.items():
                found[name] = found[name] + value if name in found else value
        return found

    def _base(self, a: Tensor, b: Tensor, scores: Tensor, same: Tensor | None) -> Tensor:
        """The ranking loss of a branch, or what stands for it during the warm-up."""
        if not self.warming_up:
            return boosting.triplet(scores, self.margin, same=same, reduction=self.reduction)
        if self.warmup_loss == "info_nce":
            unit = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
            ignore = None if same is None else same & ~unit.bool()
            return torch.stack(list(info_nce(scores, unit, ignore=ignore).values())).sum()
        negatives: Any = self.warmup_loss
        return boosting.triplet(scores, self.margin, same=same, negatives=negatives, reduction=self.reduction)

    def _boost(self, scores: Tensor, anchor: Tensor, same: Tensor | None) -> Tensor:
        anchor = anchor.detach()
        if self.boost in _IMITATE:
            return _IMITATE[self.boost](scores, anchor, same=same)
        settings: dict[str, Any] = {
            "same": same,
            "negatives": self.negatives,
            "reduction": self.reduction,
            "adapt": self.adapt,
        }
        if self.boost == "absolute":
            settings["share"] = self.share
        kind = boosting.absolute if self.boost == "absolute" else boosting.relative
        return kind(scores, anchor, self.margin * self.beta, **settings)


class MomentumBoosting(DeepBoosting):
    """DBL's momentum synchronous schedule (MSS): the anchor is a moving average of the target, so there is one branch to train.

    Args:
        start: momentum of the average at the first step, from where it rises to 1 along a half cosine; 0.9995 as in the
            paper's text (the released script has 0.99995).
        **options: of `DeepBoosting`.
    """

    def __init__(self, boost: Boost = "relative", *, start: float = 0.9995, **options: Any) -> None:
        super().__init__(boost, **options)
        if not 0 <= start <= 1:
            raise BadInput(f"start {start} is outside 0..1", where="MomentumBoosting")
        self.start = self.momentum = start

    def on_progress(self, step: int, steps: int) -> None:
        """Sets the momentum of the step, too."""
        super().on_progress(step, steps)
        self.momentum = cosine_momentum(step, steps, self.start)

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        a_momentum: Tensor | None = None,
        b_momentum: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            a: ``[n, D]``, or ``[n, K, D]``.
            b: the same of the other side.
            groups: as in `DeepBoosting.forward`.
            a_momentum, b_momentum: what the average gives for the same items; without them there is no boost.
        """
        anchors: list[Tensor] = []
        if a_momentum is not None and b_momentum is not None:
            with torch.no_grad():
                anchors = [self.score(x, y) for x, y in zip(*self._branches(a_momentum, b_momentum), strict=True)]
        return self._losses(*self._branches(a, b), anchors, groups)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.normalize(a, dim=-1) @ nn.functional.normalize(b, dim=-1).T

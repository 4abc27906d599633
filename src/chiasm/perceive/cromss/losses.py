"""`CromSS`: two predictions of one noisy label map learn from the labels that both believe, and from each other.

    L_seg,m = sum S_m CE(z_m, y~) / sum S_m + Dice(p_m, y~; S_m)
    L_con   = sum Q_2 CE(z_1, sg p_2) / sum Q_2 + sum Q_1 CE(z_2, sg p_1) / sum Q_1
    L       = L_seg,1 + L_seg,2 + w L_con

S and Q: `chiasm.perceive.cromss.selection`. CromSS (cromss, arXiv 2405.01217).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.adapt.pseudo_labels import Certainty, certainty, class_thresholds, label_confidence, threshold_weights
from chiasm.errors import BadInput, TrainingDiverged, unknown_name
from chiasm.perceive.cromss.selection import Ramp, Trust, entangle, kept_share, ramp

Consistency = Literal["ce", "kl", "mse", "none"]
# Name in the paper -> what `certainty` calls it.
CERTAINTIES: dict[str, Certainty] = {"ce": "entropy", "gini": "gini"}


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[B, ...] -> [B, K, ...]``; zeros where a label is negative (ignored).

    Raises:
        BadInput: no whole numbers, or a label that is no class.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise BadInput(f"labels of type {labels.dtype}", where="labels", fix="Give class numbers, -1 for ignored ones")
    if labels.numel() and int(labels.max()) >= classes:
        raise BadInput(
            f"label {int(labels.max())} for {classes} classes",
            where="labels",
            fix=f"Give 0 to {classes - 1}, and -1 for ignored pixels",
        )
    hot = functional.one_hot(labels.long().clamp(min=0), classes).movedim(-1, 1).to(dtype)
    return hot * (labels >= 0).unsqueeze(1)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """``sum w CE / sum w``; 0 if no weight is left.

    Args:
        logits: ``[B, K, ...]``.
        targets: shares ``[B, K, ...]``.
        weights: ``[B, ...]``, at least 0.
    """
    return _weighted_mean(-(targets * logits.log_softmax(1)).sum(1), weights)


def weighted_dice(shares: Tensor, targets: Tensor, weights: Tensor, present: Tensor | None = None) -> Tensor:
    """``mean_k 1[k is present] (1 - 2 sum w p_k t_k / (sum w p_k + sum w t_k))``, sums over batch and pixels.

    Args:
        shares: probabilities ``[B, K, ...]``.
        targets: ``[B, K, ...]``.
        weights: ``[B, ...]``; 1 everywhere gives the usual soft Dice loss.
        present: bool ``[K]``; default the classes of which the targets have any. Smoothed targets have some of every class, so
            that this default means nothing for them: give the classes of the labels themselves.
    """
    over = [d for d in range(shares.ndim) if d != 1]
    weights = weights.unsqueeze(1)
    both = (weights * shares * targets).sum(over)
    either = (weights * shares).sum(over) + (weights * targets).sum(over)
    # A class without any weight has no overlap to speak of: no loss, rather than 0 / 0.
    loss = torch.where(either > 0, 1 - 2 * both / either.clamp_min(torch.finfo(either.dtype).tiny), 0.0)
    present = targets.sum(over) > 0 if present is None else present
    return torch.where(present, loss, 0.0).mean()


def consistency_loss(student: Tensor, teacher: Tensor, weights: Tensor, kind: Consistency = "ce") -> Tensor:
    """How far a prediction is from the other modality's, weighted by the teacher's confidence; no gradient to the teacher.

    Args:
        student, teacher: logits ``[B, K, ...]``.
        weights: ``[B, ...]``.
        kind: cross entropy, Kullback-Leibler divergence, or squared difference of the shares, summed over classes.

    Raises:
        UnknownName: another kind.
    """
    logs = teacher.detach().log_softmax(1)
    if kind == "ce":
        each = -(logs.exp() * student.log_softmax(1)).sum(1)
    elif kind == "kl":
        each = (logs.exp() * (logs - student.log_softmax(1))).sum(1)
    elif kind == "mse":
        each = (student.softmax(1) - logs.exp()).square().sum(1)
    else:
        raise unknown_name("consistency", kind, ("ce", "kl", "mse"))
    return _weighted_mean(each, weights)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


class CromSS(nn.Module):
    """The loss of two modalities that share noisy labels; for maps ``[B, K, H, W]``, volumes, or single labels ``[B, K]``.

    Args:
        ramp_epochs: E, over which selection sets in; 80 of 200 (the paper's).
        ramp_kind: see `ramp`.
        final_share: rho_f, the share of each class that keeps full weight in the end; 0.5 (the paper's). 1: every label weighs 1.
        select: False: every label and every teacher weighs 1.
        entangle: False: each modality trusts its own confidence alone.
        balanced: False: one threshold for all classes together.
        consistency: ``"ce"``, ``"kl"``, ``"mse"`` or ``"none"``.
        consistency_weight: w, 1 (the paper's).
        consistency_warmup: epochs over which w rises from 0; 0 (the paper's): at once, with teachers that weigh 1 each.
        confidence: how sure a teacher is: ``"ce"`` (1 - H / ln K) or ``"gini"`` (sum of squares).
        dice: False leaves the Dice term out, for example where there are single labels instead of maps.
        presence: the classes in Dice: those of the ``"labels"``, or with ``"targets"`` all of which the smoothed targets have
            any, as in the released code: all of them.
        threshold_momentum: share of the old thresholds in an average over steps, for small batches; 0 takes each batch's own.
        bins: thresholds from a histogram instead of sorting, see `class_thresholds`.

    Buffers (saved with the state): ``epoch``, set by `set_epoch`; ``thresholds`` ``[2, K or 1]``, the running average, made at
    first use.

    Raises:
        UnknownName, BadInput: an option that does not exist or lies outside its range.
    """

    epoch: Tensor
    thresholds: Tensor

    def __init__(
        self,
        *,
        ramp_epochs: float = 80,
        ramp_kind: Ramp = "exp",
        final_share: float = 0.5,
        select: bool = True,
        entangle: bool = True,
        balanced: bool = True,
        consistency: Consistency = "ce",
        consistency_weight: float = 1.0,
        consistency_warmup: float = 0.0,
        confidence: Literal["ce", "gini"] = "ce",
        dice: bool = True,
        presence: Literal["labels", "targets"] = "labels",
        threshold_momentum: float = 0.0,
        bins: int | None = None,
    ) -> None:
        super().__init__()
        for kind, name, known in (
            ("consistency", consistency, ("ce", "kl", "mse", "none")),
            ("confidence", confidence, tuple(CERTAINTIES)),
            ("presence", presence, ("labels", "targets")),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if not 0 <= threshold_momentum < 1 or not consistency_weight >= 0 or not consistency_warmup >= 0:
            raise BadInput(
                f"threshold_momentum {threshold_momentum}, consistency_weight {consistency_weight}, "
                f"consistency_warmup {consistency_warmup}",
                where="CromSS",
                fix="Give a momentum from 0 to less than 1; weight and warm-up are at least 0",
            )
        kept_share(ramp(0, ramp_epochs, ramp_kind), final_share)  # refuses what is out of range now, not in training
        self.ramp_kind: Ramp = ramp_kind
        self.ramp_epochs, self.final_share = ramp_epochs, final_share
        self.select, self.entangle, self.balanced = select, entangle, balanced
        self.consistency: Consistency = consistency
        self.consistency_weight, self.consistency_warmup = consistency_weight, consistency_warmup
        self.confidence, self.dice, self.presence = confidence, dice, presence
        self.threshold_momentum, self.bins = threshold_momentum, bins
        self.register_buffer("epoch", torch.tensor(0.0))
        self.register_buffer("thresholds", torch.empty(2, 0))

    def set_epoch(self, epoch: float) -> None:
        """Tells how many epochs are done; `pretrain` does."""
        self.epoch.fill_(float(epoch))

    def forward(self, a: Tensor, b: Tensor, labels: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Loss parts; the loss is their sum.

        Args:
            a, b: logits ``[B, K, ...]`` of the two modalities.
            labels: noisy labels ``[B, ...]``; negative ones are ignored pixels, which only the consistency sees.
            targets: smoothed labels ``[B, K, ...]`` (`LabelSmoothing`); default the labels themselves.

        Raises:
            BadInput: shapes that do not fit, one class, labels outside the classes.
            TrainingDiverged: a prediction that is no number.
        """
        hot = self._checked(a, b, labels, targets)
        trust = self._trust(a, b, labels)
        soft = hot if targets is None else targets.to(hot.dtype)
        present = hot.sum([d for d in range(hot.ndim) if d != 1]) > 0 if self.presence == "labels" else None
        parts: dict[str, Tensor] = {}
        for side, logits, weights in (("a", a, trust.label_a), ("b", b, trust.label_b)):
            parts[f"labels_{side}"] = weighted_cross_entropy(logits, soft, weights)
            if self.dice:
                parts[f"dice_{side}"] = weighted_dice(logits.softmax(1), soft, weights, present)
        if self.consistency != "none" and self.consistency_weight:
            taught_a = consistency_loss(a, b, trust.teacher_b, self.consistency)
            taught_b = consistency_loss(b, a, trust.teacher_a, self.consistency)
            parts["consistency"] = self._weight() * (taught_a + taught_b)
        return parts

    def trust(self, a: Tensor, b: Tensor, labels: Tensor) -> Trust:
        """The weights of labels and teachers for these predictions; in training mode the running thresholds move on.

        Args:
            a, b, labels: as in `forward`.
        """
        self._checked(a, b, labels, None)
        return self._trust(a, b, labels)

    def _weight(self) -> float:
        """w, or less of it while it rises."""
        warm = self.consistency_warmup
        return self.consistency_weight * (min(1.0, float(self.epoch) / warm) if warm else 1.0)

    @torch.no_grad()
    def _trust(self, a: Tensor, b: Tensor, labels: Tensor) -> Trust:
        strength = ramp(float(self.epoch), self.ramp_epochs, self.ramp_kind) if self.select else 0.0
        share = kept_share(strength, self.final_share)
        seen = (labels >= 0).to(a.dtype)
        if not self.select:
            whole = torch.ones_like(seen)
            return Trust(seen, seen.clone(), whole, whole.clone(), 1.0, 0.0)
        shares = [z.softmax(1).movedim(1, -1) for z in (a, b)]
        known = labels.long().clamp(min=0)
        mine = [label_confidence(p, known) for p in shares]
        sure = [certainty(p, CERTAINTIES[self.confidence]) for p in shares]
        if self.entangle:
            mine, sure = entangle(*mine), entangle(*sure)
        limits = [self._limits(side, c, labels, share, a.shape[1]) for side, c in enumerate(mine)]
        weights = [threshold_weights(c, labels, limit) for c, limit in zip(mine, limits, strict=True)]
        if share == 1:  # nothing is to be sorted out, and no label weighs less than another
            weights = [seen, seen.clone()]
        teachers = [(1 - strength) + strength * q for q in sure]
        return Trust(weights[0], weights[1], teachers[0], teachers[1], share, strength)

    def _limits(self, side: int, confidence: Tensor, labels: Tensor, share: float, classes: int) -> Tensor:
        """Thresholds of this batch, or their running average."""
        new = class_thresholds(confidence, labels, share, classes=classes, balanced=self.balanced, bins=self.bins)
        if not self.threshold_momentum:
            return new
        if self.thresholds.shape[1] != len(new):
            self.thresholds = new.new_full((2, len(new)), torch.nan)
        old = self.thresholds[side]
        moved = torch.where(old.isnan(), new, self.threshold_momentum * old + (1 - self.threshold_momentum) * new)
        moved = torch.where(new.isnan(), old, moved)  # a class that this batch lacks
        if self.training:
            self.thresholds[side] = moved
        return moved

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        """The saved thresholds decide how many there are."""
        saved = state_dict.get(f"{prefix}thresholds")
        if saved is not None and saved.shape != self.thresholds.shape:
            self.thresholds = self.thresholds.new_full(saved.shape, torch.nan)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # pyright: ignore[reportArgumentType]

    def _checked(self, a: Tensor, b: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        where = "CromSS"
        if a.ndim < 2 or a.shape != b.shape:
            raise BadInput(f"logits {tuple(a.shape)} and {tuple(b.shape)}", where=where, fix="Give both as [B, K, ...]")
        if a.shape[1] < 2:
            raise BadInput(f"{a.shape[1]} class", where=where, fix="Give at least two classes; the rest is one of them")
        if labels.shape != (len(a), *a.shape[2:]):
            raise BadInput(
                f"labels {tuple(labels.shape)} for logits {tuple(a.shape)}",
                where=where,
                fix="Give [B, ...], a label a pixel",
            )
        if targets is not None and targets.shape != a.shape:
            raise BadInput(
                f"targets {tuple(targets.shape)} for logits {tuple(a.shape)}",
                where=where,
                fix="Give shares [B, K, ...], of the logits' shape",
            )
        if not len(a):
            raise BadInput("an empty batch", where=where, fix="Give at least one picture")
        for side, logits in (("a", a), ("b", b)):
            if not bool(torch.isfinite(logits).all()):
                raise TrainingDiverged(
                    f"the predictions {side!r} are no numbers", where=where, fix="Lower the learning rate"
                )
        return one_hot(labels, a.shape[1], a.dtype)

"""`MCR`: a classifier over several modalities whose encoders play a game for influence on the answer.

    L = L_task(f(Z), y) + lam_u sum_i L_task(u_i(Z_i), y) + lam_M game(J_1 .. J_M) + lam_c L_con + lam_b L_ceb

The greedy game is 0 as a number and moves only the encoders: look at `divergences`, not at the loss part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.objectives.mcr.fusion import fusion_head
from chiasm.learn.objectives.mcr.perturbation import (
    GAMES,
    PERMUTATIONS,
    Game,
    absolute_distance,
    class_distance,
    permutations,
    play,
    squared_distance,
)
from chiasm.learn.objectives.mcr.terms import ConditionalBottleneck, label_contrast

DISTANCES = {"divergence": class_distance, "squared": squared_distance, "absolute": absolute_distance}
MODALITIES = ("a", "b", "c", "d")


class MCR(nn.Module):
    """Multimodal Competition Regularizer (Kontras and others, NeurIPS 2025, arXiv 2411.07335).

    >>> mcr = MCR(classes=6, dims=(64, 64), head="mlp")
    >>> train(model, pairs, mcr)                              # pairs with per_pair={"labels": ...}
    >>> mcr.predict([pictures, sounds]), mcr.divergences      # [N, 6], J of each modality

    Args:
        classes: number of classes C, or of outputs in a regression.
        dims: lengths of the latents, two to four modalities: columns ``a``, ``b`` (``c``, ``d``) of the pairs.
        head: ``"linear"`` (the reference's), ``"mlp"``, ``"film"``, ``"gated"``, ``"transformer"``, or a module that reads a
            list of latents.
        width: of the hidden layers of the heads.
        regression: outputs are numbers and the task's loss is the mean squared error.
        game: ``"greedy"`` (default), ``"independent"`` or ``"collaborative"``; see `play`.
        competition: lam_M, 0.1; 0 switches the game off.
        unimodal: lam_u, 1.
        contrast: lam_c, 0: the published CREMA-D configuration has none; 1e-3 .. 1 depending on the data.
        contrast_by: what makes two latents positives of each other: equal ``"labels"``, or ``"pairs"`` (the "pure" form,
            an ordinary cross-modal NT-Xent).
        contrast_dim: length to which latents are mapped before the contrast; needed where their lengths differ.
        bottleneck: lam_b, 0: it helps with large pretrained encoders and hurts from-scratch ones.
        bottleneck_on: ``"logits"`` as in the released code, or ``"labels"`` as in the paper's text.
        temperature: t of the contrast, 0.5.
        permutation: ``"rand"``, ``"rsi"``, ``"rsl"`` or ``"all"``; see `permutations`. Outside training always "all", so
            that figures hang neither on chance nor on the order of the batch.
        count: permutations a step, 6.
        distance: ``"divergence"``, or for regression ``"squared"`` or ``"absolute"``; None takes the one that fits.
        rivals, shared_clean: see `play`.
        cap: shrink lam_M so that the gradient of the game on the latents is at most ``cap`` times that of the task (0.3 is
            a good value: with a large lam_M a collaborative game is won by wrong answers). None: no cap.
        warmup: share of the steps over which game, contrast and bottleneck come in; 0.1; 0 for none.

    Raises:
        UnknownName: a head, game, permutation or distance that does not exist.
        BadInput: sizes or weights out of range.
    """

    divergences: Tensor
    ramp: Tensor

    def __init__(
        self,
        classes: int,
        dims: Sequence[int] = (64, 64),
        *,
        head: str | nn.Module = "linear",
        width: int = 64,
        regression: bool = False,
        game: Game = "greedy",
        competition: float = 0.1,
        unimodal: float = 1.0,
        contrast: float = 0.0,
        contrast_by: Literal["labels", "pairs"] = "labels",
        contrast_dim: int | None = None,
        bottleneck: float = 0.0,
        bottleneck_on: Literal["logits", "labels"] = "logits",
        temperature: float = 0.5,
        permutation: str = "rand",
        count: int = 6,
        distance: str | None = None,
        rivals: Literal["sum", "mean"] = "sum",
        shared_clean: bool = False,
        cap: float | None = None,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        distance = distance or ("squared" if regression else "divergence")
        for kind, name, known in (
            ("game", game, GAMES),
            ("permutation", permutation, PERMUTATIONS),
            ("distance", distance, DISTANCES),
            ("contrast_by", contrast_by, ("labels", "pairs")),
            ("bottleneck_on", bottleneck_on, ("logits", "labels")),
            ("rivals", rivals, ("sum", "mean")),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if (
            classes < 1
            or count < 1
            or temperature <= 0
            or not 0 <= warmup <= 1
            or not 2 <= len(dims) <= len(MODALITIES)
        ):
            raise BadInput(
                f"classes={classes}, dims={tuple(dims)}, count={count}, temperature={temperature}, warmup={warmup}",
                where="MCR",
                fix=f"Two to {len(MODALITIES)} modalities; sizes of at least 1",
            )
        if min(competition, unimodal, contrast, bottleneck, cap or 0.0) < 0:
            raise BadInput("a weight is negative", where="MCR")
        if contrast and contrast_dim is None and len(set(dims)) > 1:
            raise BadInput(
                f"latents of lengths {tuple(dims)} cannot be contrasted", where="MCR", fix="Give contrast_dim"
            )
        self.classes, self.dims, self.regression = classes, tuple(dims), regression
        self.head = fusion_head(head, dims, classes, width) if isinstance(head, str) else head
        self.heads = nn.ModuleList(nn.Linear(dim, classes) for dim in dims)
        self.level = nn.ModuleList(nn.Linear(dim, contrast_dim) for dim in dims) if contrast_dim else None
        self.bottleneck = ConditionalBottleneck(classes, dims, width) if bottleneck else None
        self.game: Game = game
        self.competition, self.unimodal, self.contrast, self.bottleneck_weight = (
            competition,
            unimodal,
            contrast,
            bottleneck,
        )
        self.contrast_by, self.bottleneck_on, self.temperature = contrast_by, bottleneck_on, temperature
        self.permutation, self.count, self.distance = permutation, count, DISTANCES[distance]
        self.rivals: Literal["sum", "mean"] = rivals
        self.shared_clean, self.cap, self.warmup = shared_clean, cap, warmup
        # J of each modality in the last batch; NaN before the first.
        self.register_buffer("divergences", torch.full((len(dims),), torch.nan))
        self.register_buffer("ramp", torch.ones(()))

    def on_progress(self, step: int, steps: int) -> None:
        """Moves the warm-up on; `chiasm.learn.train` calls it before every step."""
        self.ramp.fill_(min(1.0, step / max(1.0, self.warmup * steps)) if self.warmup else 1.0)

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        c: Tensor | None = None,
        d: Tensor | None = None,
        labels: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a: latents ``[N, dims[0]]``.
            b: latents ``[N, dims[1]]``; further modalities in ``c`` and ``d``.
            c: see ``b``.
            d: see ``b``.
            labels: classes int ``[N]``, or ``[N]`` or ``[N, C]`` floats in a regression. Without them only the parts that
                need none are there: the game, and the contrast by pairs (or by groups).
            groups: int ``[N]``; in the contrast by pairs, pairs of one group belong together.

        Returns:
            ``task``, ``unimodal``, ``game``, ``contrast``, ``bottleneck``: those that have a weight.
        """
        return self.losses([z for z in (a, b, c, d) if z is not None], labels, groups)

    def losses(
        self, latents: Sequence[Tensor], labels: Tensor | None = None, groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What `forward` gives, for a list of latents ``[N, dims[i]]``."""
        self._check(latents, labels)
        parts: dict[str, Tensor] = {}
        fused = self.head(latents)
        if labels is not None:
            parts["task"] = self.task(fused, labels)
            if self.unimodal:
                parts["unimodal"] = self.unimodal * self.unimodal_task(latents, labels)
        if self.competition:
            parts["game"] = self._game(latents, labels, parts.get("task"))
        if self.contrast:
            parts["contrast"] = self.ramp * self.contrast * self._contrast(latents, labels, groups)
        if self.bottleneck is not None:
            evidence = fused if self.bottleneck_on == "logits" else self._evidence(labels, fused)
            parts["bottleneck"] = self.ramp * self.bottleneck_weight * self.bottleneck(latents, evidence)
        return parts or {"task": fused.sum() * 0.0}

    # ---- the terms

    def task(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error of a regression."""
        if self.regression:
            return nn.functional.mse_loss(outputs, labels.to(outputs.dtype).reshape(outputs.shape))
        return nn.functional.cross_entropy(outputs, labels.long())

    def unimodal_task(self, latents: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Sum over modalities of the task's loss of each one alone."""
        return torch.stack([self.task(out, labels) for out in self.predict_alone(latents)]).sum()

    def _game(self, latents: Sequence[Tensor], labels: Tensor | None, task: Tensor | None) -> Tensor:
        kind = self.permutation if self.training else "all"
        by = None if self.regression else labels
        index, counts = permutations(len(latents[0]), kind, self.count, by, latents[0].device)
        term, found = play(
            self.head,
            latents,
            self.game,
            index,
            counts,
            self.distance,
            rivals=self.rivals,
            shared_clean=self.shared_clean,
        )
        self.divergences = found
        return self.ramp * self.competition * self._shrink(latents, term, task) * term

    def _shrink(self, latents: Sequence[Tensor], term: Tensor, task: Tensor | None) -> Tensor:
        """The factor that keeps the game's gradient on the latents below ``cap`` times the task's."""
        reached = [z for z in latents if z.requires_grad]
        if self.cap is None or task is None or not reached or not torch.is_grad_enabled():
            return term.new_ones(())
        sizes = [
            torch.stack(
                [
                    g.square().sum()
                    for g in torch.autograd.grad(x, reached, retain_graph=True, allow_unused=True)
                    if g is not None
                ]
                or [term.new_zeros(())]
            )
            .sum()
            .sqrt()
            for x in (self.ramp * self.competition * term, task)
        ]
        return (self.cap * sizes[1] / sizes[0].clamp_min(1e-12)).clamp(max=1.0).detach()

    def _contrast(self, latents: Sequence[Tensor], labels: Tensor | None, groups: Tensor | None) -> Tensor:
        z = latents if self.level is None else [one(latent) for one, latent in zip(self.level, latents, strict=True)]
        own = torch.arange(len(z[0]), device=z[0].device) if groups is None else groups
        by_class = self.contrast_by == "labels" and labels is not None and not self.regression
        return label_contrast(z, labels if by_class and labels is not None else own, self.temperature)

    def _evidence(self, labels: Tensor | None, fused: Tensor) -> Tensor:
        if labels is None:
            return fused
        if self.regression:
            return labels.to(fused.dtype).reshape(fused.shape)
        return nn.functional.one_hot(labels.long(), self.classes)

    # ---- answers

    def predict(self, latents: Sequence[Tensor]) -> Tensor:
        """Fused logits (or numbers) ``[N, C]``."""
        return self.head(latents)

    def predict_alone(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each modality's own head, M tensors ``[N, C]``."""
        return [head(z) for head, z in zip(self.heads, latents, strict=True)]

    def ensemble(self, latents: Sequence[Tensor]) -> Tensor:
        """Mean of the unimodal probabilities (in a regression: of the numbers), ``[N, C]``: the baseline to beat."""
        alone = torch.stack(self.predict_alone(latents))
        return alone.mean(dim=0) if self.regression else alone.softmax(dim=-1).mean(dim=0)

    def shares(self) -> Tensor:
        """Each modality's part of the influence on the answer, ``[M]``, sums to 1 (all equal where nothing has any)."""
        total = self.divergences.sum()
        return torch.where(total > 0, self.divergences / total, torch.full_like(self.divergences, 1 / len(self.dims)))

    def _check(self, latents: Sequence[Tensor], labels: Tensor | None) -> None:
        shapes = [tuple(z.shape) for z in latents]
        if len(latents) != len(self.dims) or any(s != (len(latents[0]), n) for s, n in zip(shapes, self.dims)):
            raise BadInput(f"latents of shapes {shapes}, made for lengths {self.dims}", where="MCR")
        if labels is None or self.regression:
            return
        if labels.shape != (len(latents[0]),) or labels.is_floating_point():
            raise BadInput(f"labels {labels.dtype} {tuple(labels.shape)} are no classes", where="MCR")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.classes):
            raise BadInput(f"labels up to {int(labels.max())}, made for {self.classes} classes", where="MCR")


class Unimodal(nn.Module):
    """The first stage: every modality learns the task alone, with its own head of an `MCR`.

    Gradients do not mix, so all modalities learn in one run as they would one by one (without gradient clipping).

    Args:
        mcr: whose heads learn.
        only: number of the modality that learns; None for all.
    """

    def __init__(self, mcr: MCR, only: int | None = None) -> None:
        super().__init__()
        self.heads, self.only = mcr.heads, only
        # A list keeps the rest of the MCR out of parameters() and state_dict().
        self._mcr = [mcr]

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        labels: Tensor,
        c: Tensor | None = None,
        d: Tensor | None = None,
        groups: Any = None,
    ) -> dict[str, Tensor]:
        """The task's loss of each modality: ``unimodal_a``, ``unimodal_b``, ..."""
        mcr = self._mcr[0]
        outputs = mcr.predict_alone([z for z in (a, b, c, d) if z is not None])
        chosen = range(len(outputs)) if self.only is None else [self.only]
        return {f"unimodal_{MODALITIES[i]}": mcr.task(outputs[i], labels) for i in chosen}

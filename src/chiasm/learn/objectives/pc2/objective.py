"""PC2: pseudo-classification based pseudo-captioning for pairs of which many do not belong together (arXiv 2408.01349).

    clean pairs:  L = sum_i hinge_i(m_i) + CE(h(v_i), argmax h(t_i)) - lambda H,      m_i = m (10^{y_i} - 1) / 9
    noisy pairs:  the caption of the clean pair with the most similar pseudo-prediction, and the hinge again

v, t unit vectors ``[N, D]``; h a head with K = 128 classes that both sides share; y the corrected correspondence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce
from chiasm.learn.objectives.pc2.head import PseudoHead, marginal_entropy, sample_entropy
from chiasm.learn.objectives.pc2.memory import PairMemory
from chiasm.learn.objectives.pc2.split import lend_captions
from chiasm.learn.objectives.pc2.triplet import FORMS, Form, Negatives, soft_margin, triplet

_OPTIONS = {
    "loss": ("triplet", "info_nce"),
    "entropy": ("marginal", "per_sample"),
    "form": FORMS,
    "pseudo_negatives": ("hard", "mean"),
}


class PC2(nn.Module):
    """Training with noisy correspondence: a split into clean and noisy pairs, and borrowed captions for the noisy ones.

    With `chiasm.learn.objectives.pc2.co_teach` two networks split the pairs for each other, from losses that are measured
    by a pass over all pairs. In any other training one network does it for itself, from the losses of its own steps.

    Args:
        classes: K = 128 pseudo-classes.
        hidden: hidden units of the head, 256.
        tokens: None: the head reads the vector of an item (for models with global features); 36: so many token vectors.
        width: length of what the head reads; None finds it at the first use.
        margin: m = 0.2.
        form: soft margin: ``"exponential"``, ``"linear"`` or ``"sine"``.
        loss: ``"triplet"``, or ``"info_nce"``, in which y weighs each pair instead of setting its margin.
        temperature: of ``"info_nce"``; 0.05 as in `InfoNCE`.
        entropy: ``"marginal"``: entropy of the mean prediction of a batch, so that all classes are used; ``"per_sample"``: mean
            entropy of each prediction, as the released code has it.
        entropy_weight: lambda; 1 (the released commands pass 10 with ``"per_sample"``).
        classify: weight of the pseudo-classification; 0 trains without the head.
        correct: use the oscillation of pseudo-predictions (y = w + (1 - w) u [u > 0.5]); else y = w.
        reuse: lend captions to noisy pairs; else they are dropped.
        split: False believes every pair; what is left is a triplet loss with hard negatives.
        pseudo_negatives: ``"hard"`` as in the paper, or the gentler ``"mean"`` for the borrowed captions.
        pseudo_weight: weight of that part, 1.
        least_cosine: a lent caption counts from this similarity of the predictions on, 0.5.
        threshold: pairs are clean above this posterior, 0.5.
        warmup: share of the training with mean negatives and all pairs; 5 of 50 epochs.
        reuse_from: share of the training after which captions are lent; 25 of 50 epochs.
        splits: how often a whole training would split the pairs; once an epoch of 50.
        networks: how many networks' vectors ``a`` and ``b`` hold side by side.
        pairs: number of pairs, if known; else the memory grows.
        seed: of the mixtures.
        parity: the released code's choices: per-sample entropy with weight 10.

    Raises:
        UnknownName: an option that does not exist.
        BadInput: numbers outside their range.
    """

    progress: Tensor

    def __init__(
        self,
        *,
        classes: int = 128,
        hidden: int = 256,
        tokens: int | None = None,
        width: int | None = None,
        margin: float = 0.2,
        form: Form = "exponential",
        loss: Literal["triplet", "info_nce"] = "triplet",
        temperature: float = 0.05,
        entropy: Literal["marginal", "per_sample"] = "marginal",
        entropy_weight: float = 1.0,
        classify: float = 1.0,
        correct: bool = True,
        reuse: bool = True,
        split: bool = True,
        pseudo_negatives: Negatives = "hard",
        pseudo_weight: float = 1.0,
        least_cosine: float = 0.5,
        threshold: float = 0.5,
        warmup: float = 0.1,
        reuse_from: float = 0.5,
        splits: int = 50,
        networks: int = 1,
        pairs: int = 0,
        seed: int = 0,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if parity:
            entropy, entropy_weight = "per_sample", 10.0
        given = {"loss": loss, "entropy": entropy, "form": form, "pseudo_negatives": pseudo_negatives}
        for name, value in given.items():
            if value not in _OPTIONS[name]:
                raise unknown_name(f"{name} of PC2", str(value), _OPTIONS[name])
        if temperature <= 0 or margin < 0 or networks < 1 or splits < 1 or not 0 <= warmup <= 1:
            raise BadInput(
                f"temperature {temperature}, margin {margin}, {networks} networks, {splits} splits, warmup {warmup}",
                where="PC2",
            )
        self.margin, self.loss, self.temperature = margin, loss, temperature
        self.form: Form = form
        self.entropy, self.entropy_weight, self.classify = entropy, entropy_weight, classify
        self.correct, self.reuse, self.split_pairs = correct, reuse, split
        self.pseudo_negatives: Negatives = pseudo_negatives
        self.pseudo_weight, self.least_cosine, self.threshold = pseudo_weight, least_cosine, threshold
        self.warmup, self.reuse_from, self.splits, self.networks, self.seed = warmup, reuse_from, splits, networks, seed
        self.heads = nn.ModuleList(PseudoHead(classes, hidden, tokens, width) for _ in range(networks))
        self.memory = PairMemory(pairs, classes, networks)
        # 1 before anybody has told how far training is: then there is no warm-up.
        self.register_buffer("progress", torch.ones(()))
        self.span = (0.0, 1.0)
        # Measures all pairs and splits them; without it the losses of the training steps are what is split.
        self.measure: Callable[[], None] | None = None
        self.seen: dict[str, float] = {}

    @property
    def phase(self) -> str:
        """``"warm-up"``, ``"clean"`` or ``"reuse"``."""
        progress = float(self.progress)
        if progress < self.warmup:
            return "warm-up"
        return "reuse" if self.reuse and progress >= self.reuse_from else "clean"

    @torch.no_grad()
    def on_progress(self, step: int, steps: int) -> None:
        """Moves on to the phase of this step, and splits the pairs if it is time."""
        start, end = self.span
        before = float(self.progress) if start or step else 0.0
        now = start + (end - start) * step / max(1, steps)
        self.progress.fill_(now)
        if not self.split_pairs or now < self.warmup:
            return
        # The small number keeps rounding from moving a split by one step.
        turns = [math.floor((p - self.warmup) * self.splits + 1e-6) for p in (before, now)]
        if turns[1] > turns[0] or not int(self.memory.splits):
            if self.measure is None:
                self.memory.split(threshold=self.threshold, seed=self.seed)
            else:
                self.measure()

    def per_network(self, vectors: Tensor) -> list[Tensor]:
        """The unit vectors of each network, ``[N, D]`` each."""
        if vectors.shape[-1] % self.networks:
            raise BadInput(f"vectors of length {vectors.shape[-1]} for {self.networks} networks", where="PC2")
        return [functional.normalize(part, dim=-1) for part in vectors.chunk(self.networks, dim=-1)]

    def predictions(
        self, network: int, vectors: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Pseudo-predictions ``[N, K]`` of one network.

        Args:
            network: which.
            vectors: ``[N, D]`` of that network.
            tokens, mask: ``[N, L, D]`` and ``[N, L]`` of that network, if the head reads tokens.
        """
        return self.heads[network](vectors, tokens, mask).softmax(-1)

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        ids: Tensor | None = None,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch, summed over the networks: ``match``, ``classify``, ``entropy``, ``pseudo``.

        Args:
            a: images ``[N, networks * D]``.
            b: captions, likewise.
            groups: int64 ``[N]``; pairs of one group are no negatives of each other.
            ids: int64 ``[N]``, numbers of the pairs in the whole set. Without them nothing is remembered and every pair
                is believed.
            a_tokens, a_mask, b_tokens, b_mask: ``[N, L, networks * D]`` and bool ``[N, L]``, for a head over tokens.
        """
        parts: dict[str, Tensor] = {}
        halves = self.per_network(a), self.per_network(b)
        for network, (image, caption) in enumerate(zip(*halves)):
            image_tokens, caption_tokens = (
                None if t is None else t.chunk(self.networks, dim=-1)[network] for t in (a_tokens, b_tokens)
            )
            scores = (
                self.heads[network](image, image_tokens, a_mask),
                self.heads[network](caption, caption_tokens, b_mask),
            )
            for name, value in self._one(network, image, caption, *scores, groups, ids).items():
                parts[name] = parts[name] + value if name in parts else value
        return parts

    def _one(
        self,
        network: int,
        image: Tensor,
        caption: Tensor,
        image_scores: Tensor,
        caption_scores: Tensor,
        groups: Tensor | None,
        ids: Tensor | None,
    ) -> dict[str, Tensor]:
        """The parts of one network."""
        predicted = image_scores.softmax(-1)
        clean, belief = self._believed(network, image, ids)
        kept = clean.nonzero().squeeze(1)
        warming = self.phase == "warm-up"
        within = None if groups is None else groups[kept]
        parts = {"match": self._match(image[kept], caption[kept], belief[kept], within, "mean" if warming else "hard")}
        if self.classify and len(kept):
            label = caption_scores[kept].detach().argmax(-1)
            parts["classify"] = self.classify * functional.cross_entropy(image_scores[kept], label)
            # The mirror image of this term is only looked at, never trained.
            mirror = functional.cross_entropy(caption_scores[kept].detach(), predicted[kept].detach().argmax(-1))
            entropy = marginal_entropy if self.entropy == "marginal" else sample_entropy
            parts["entropy"] = -self.classify * self.entropy_weight * entropy(predicted[kept])
            self.seen = {"mirror": mirror.item(), "clean": len(kept) / len(clean)}
        others = (~clean).nonzero().squeeze(1)
        if self.phase == "reuse" and len(others) and len(kept):
            lender, similar = lend_captions(predicted[others], predicted[kept], threshold=self.least_cosine)
            lent = caption[kept[lender]]
            # Two images with the same lent caption are no negatives of each other.
            pseudo = self._match(image[others], lent, similar, kept[lender], self.pseudo_negatives)
            parts["pseudo"] = self.pseudo_weight * pseudo
        if self.training and ids is not None:
            self._remember(network, image, caption, predicted, groups, ids, clean)
        return parts

    def _believed(self, network: int, image: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which pairs the other network calls clean, and how far it believes them."""
        if ids is None or not int(self.memory.splits) or self.phase == "warm-up":
            return torch.ones(len(image), dtype=torch.bool, device=image.device), image.new_ones(len(image))
        clean, belief = self.memory.belief((network + 1) % self.networks, ids, correct=self.correct)
        return clean, belief.to(image.dtype)

    def _match(self, image: Tensor, caption: Tensor, belief: Tensor, groups: Any, negatives: Negatives) -> Tensor:
        """The loss that pulls pairs together as far as they are believed."""
        if not len(image):
            return image.sum() * 0
        if self.loss == "triplet":
            margins = soft_margin(belief, self.margin, self.form)
            return triplet(image @ caption.T, margins, groups=groups, negatives=negatives).sum()
        parts = info_nce(image, caption, scale=1 / self.temperature, groups=groups, weights=belief)
        # The core gives a weighted mean; a batch in which nobody is believed must not count like any other.
        return belief.mean() * torch.stack(list(parts.values())).sum()

    @torch.no_grad()
    def _remember(
        self,
        network: int,
        image: Tensor,
        caption: Tensor,
        predicted: Tensor,
        groups: Tensor | None,
        ids: Tensor,
        clean: Tensor,
    ) -> None:
        if self.measure is None:
            losses = triplet(image @ caption.T, self.margin, groups=groups, negatives="mean")
            self.memory.measured(network, ids, losses, predicted)
        trained = clean | (self.phase == "reuse")
        self.memory.trained(network, ids[trained], predicted[trained])

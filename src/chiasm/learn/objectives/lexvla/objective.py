"""LexVLA (arXiv 2407.17827): pictures and texts as sparse vectors over one vocabulary of words, from two frozen models.

    s_a = normalize(elu1p(max_p <h_p, Z_a>)),   s_b = normalize(elu1p(max_l <h_l, Z_b>)),   both ``[N, V]``
    loss = (InfoNCE(a -> b) + InfoNCE(b -> a)) / 2 + lam(t) (overuse(s_a) + overuse(s_b))

Both codebooks ``[V, D]`` start as the words' rows of a language model; that of the texts stays frozen, that of the pictures
learns. Training is dense; for search, entries up to ``1 / sqrt(V)`` become 0 and the score is the plain inner product.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.blocks.lexical import best_products, elu1p, lexical, lexical_tokens, sparsify, unit
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce
from chiasm.learn.held_out import Direction, Encoded
from chiasm.learn.objectives.lexvla.overuse import Weight, flops, overuse

Penalty = Literal["overuse", "flops", "none"]
PENALTIES = ("overuse", "flops", "none")


class LexVLA(nn.Module):
    """The objective, and the lexical heads of both sides.

    The towers give token vectors; a side without tokens counts as one token an item. `PatchAdapter` is the tower of the
    paper's picture side.

    Args:
        codebook: ``[V, D]``, of `codebook_of`; None draws unit vectors, for ``words`` and ``dim``.
        words, dim: V and D without a codebook. 256 and 64 suit the small towers of `chiasm.learn.towers`; the paper has
            17,149 and 4,096.
        width, width_b: length of the token vectors of ``a`` and ``b`` where it is not D; a linear map is then learned. Default:
            D, no map.
        text: ``"encoder"``, or ``"bag"``: the vectors of ``b`` are over the words already (`bag_of_words`), the paper's
            ablation.
        penalty: ``"overuse"``, its baseline ``"flops"``, or ``"none"``.
        weight: lam; 1 from our pilot [inferred].
        warmup: share of the training over which lam rises quadratically (a third [inferred]).
        target: mean active words an item that lam is steered to; None keeps lam.
        stop_gradient: as in `overuse`.
        temperature: start of the learned temperature; 0.07.
        max_scale: bound of its inverse; 100 [inferred, as in CLIP].
        threshold, top: how vectors are made sparse, see `sparsify`; the default threshold is ``1 / sqrt(V)``.
        renormalize: scale sparse vectors to length 1 again (the paper does not).
        chunk: words at a time in the heads.
        seed: of the drawn codebook.

    Raises:
        BadInput: sizes below 1, a codebook that is no matrix, a negative weight, or a temperature that is not positive.
        UnknownName: a penalty or a text mode that does not exist.
    """

    text_codebook: Tensor

    def __init__(
        self,
        codebook: Tensor | None = None,
        *,
        words: int = 256,
        dim: int = 64,
        width: int | None = None,
        width_b: int | None = None,
        text: Literal["encoder", "bag"] = "encoder",
        penalty: Penalty = "overuse",
        weight: float = 1.0,
        warmup: float = 1 / 3,
        target: float | None = None,
        stop_gradient: bool = False,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        threshold: float | None = None,
        top: int | None = None,
        renormalize: bool = False,
        chunk: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if penalty not in PENALTIES:
            raise unknown_name("penalty", penalty, PENALTIES)
        if text not in ("encoder", "bag"):
            raise unknown_name("text mode", text, ("encoder", "bag"))
        if codebook is None:
            if min(words, dim) < 1:
                raise BadInput(f"words {words}, dim {dim}", where="LexVLA", fix="Both must be at least 1")
            codebook = unit(torch.randn(words, dim, generator=torch.Generator().manual_seed(seed)))
        if codebook.ndim != 2 or not codebook.numel():
            raise BadInput(f"a codebook of shape {tuple(codebook.shape)}", where="LexVLA", fix="Give [V, D]")
        if weight < 0 or temperature <= 0 or not 0 <= warmup <= 1:
            raise BadInput(f"weight {weight}, temperature {temperature}, warmup {warmup}", where="LexVLA")
        start = codebook.detach().float().clone()
        self.size, self.dim = start.shape
        self.register_buffer("text_codebook", start)
        self.image_codebook = nn.Parameter(start.clone())
        self.map_a: nn.Module = nn.Identity() if width in (None, self.dim) else nn.Linear(width, self.dim)
        self.map_b: nn.Module = nn.Identity() if width_b in (None, self.dim) else nn.Linear(width_b, self.dim)
        self.text, self.penalty, self.stop_gradient = text, penalty, stop_gradient
        self.threshold, self.top, self.renormalize, self.chunk = threshold, top, renormalize, chunk
        self.weight = Weight(weight, warmup=warmup, target=target)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.max_scale = max_scale
        # For the collapse detector of the training: how far apart the pictures' lexical vectors lie.
        self.spread: float | None = None

    @property
    def scale(self) -> Tensor:
        """The inverse temperature in use."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def no_decay(self) -> list[nn.Parameter]:
        """Parameters that get no weight decay: the codebook, which would lose its words [inferred]."""
        return [self.image_codebook]

    def codebook(self, side: Direction) -> Tensor:
        """The words ``[V, D]`` of a side."""
        return self.image_codebook if side == "a" else self.text_codebook

    def mapped(self, tokens: Tensor, side: Direction) -> Tensor:
        """Token vectors ``[N, L, width]`` (or ``[N, width]``) as ``[N, L, D]``."""
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        return (self.map_a if side == "a" else self.map_b)(tokens)

    def represent(self, tokens: Tensor, mask: Tensor | None, side: Direction) -> Tensor:
        """Dense unit vectors ``[N, V]`` over the words.

        Args:
            tokens: ``[N, L, width]``, or ``[N, width]`` as one token an item.
            mask: bool ``[N, L]``; None if all tokens are there.
            side: ``"a"`` or ``"b"``.
        """
        if side == "b" and self.text == "bag":
            if tokens.shape[1:] != (self.size,):
                raise BadInput(
                    f"bags of words of shape {tuple(tokens.shape)}", where="LexVLA", fix=f"Give [N, {self.size}]"
                )
            return unit(tokens)
        mask = None if tokens.ndim == 2 else mask
        return lexical(self.mapped(tokens, side), mask, self.codebook(side), chunk=self.chunk)

    def patches(self, tokens: Tensor, side: Direction = "a") -> Tensor:
        """Dense unit vectors ``[N, L, V]`` of every single token: what a patch shows, in words."""
        return lexical_tokens(self.mapped(tokens, side), self.codebook(side))

    @torch.no_grad()
    def says(self, tokens: Tensor, mask: Tensor | None, side: Direction = "a") -> tuple[Tensor, Tensor]:
        """For every word the token that says it best, int64 ``[N, V]``, and how strongly, before the length: ``[N, V]``."""
        best, token = best_products(self.mapped(tokens, side), mask, self.codebook(side), chunk=self.chunk)
        return token, elu1p(best)

    def sparse(self, vectors: Tensor) -> Tensor:
        """Vectors ``[..., V]`` as they are searched: small entries 0."""
        kept = sparsify(vectors, threshold=self.threshold, top=self.top)
        return unit(kept) if self.renormalize else kept

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
        groups: Any = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a: ``[N, width]``, one token an item, if there are no tokens; otherwise not used.
            b: ``[M, width_b]`` likewise, or bags of words ``[M, V]``.
            a_tokens: ``[N, L, width]``.
            a_mask: bool ``[N, L]``; padding and prompt positions are False.
            b_tokens: ``[M, L', width_b]``.
            b_mask: bool ``[M, L']``.
            groups: ids of `info_nce`.

        Returns:
            ``a_to_b``, ``b_to_a``, and ``overuse_a``, ``overuse_b`` (or ``flops_a``, ``flops_b``).
        """
        bag = self.text == "bag"
        vectors = {
            "a": self.represent(a if a_tokens is None else a_tokens, a_mask, "a"),
            "b": self.represent(b if b_tokens is None or bag else b_tokens, b_mask, "b"),
        }
        losses = info_nce(vectors["a"], vectors["b"], scale=self.scale, groups=groups)
        if self.penalty != "none":
            lam = self.weight.now
            for side, found in vectors.items():
                cost = flops(found) if self.penalty == "flops" else overuse(found, stop_gradient=self.stop_gradient)
                losses[f"{self.penalty}_{side}"] = lam * cost
        if self.training:
            with torch.no_grad():
                means = unit(vectors["a"] - vectors["a"].mean(-1, keepdim=True)).mean(0)
                self.spread = float(1 - means.square().sum())
                self.weight.observe(float(self.active(vectors["a"])))
        return losses

    @torch.no_grad()
    def active(self, vectors: Tensor) -> Tensor:
        """Mean number of words that are left of dense vectors ``[N, V]``."""
        return (self.sparse(vectors) > 0).sum(-1).float().mean()

    def on_progress(self, step: int, steps: int) -> None:
        """Lets the penalty's weight rise; called before each training step."""
        self.weight.on_progress(step, steps)

    @torch.no_grad()
    def transform_query(self, items: Encoded, side: Direction, *, dense: bool = False, chunk: int = 256) -> Tensor:
        """Vectors ``[N, V]`` of encoded items of a side; inner products of them are the scores.

        Args:
            items: what the model gives.
            side: ``"a"`` or ``"b"``.
            dense: leave small entries in.
            chunk: items at a time.
        """
        bag = side == "b" and self.text == "bag"
        tokens, mask = (items.vectors, None) if items.tokens is None or bag else (items.tokens, items.mask)
        parts = []
        for start in range(0, len(tokens), chunk):
            part = slice(start, start + chunk)
            device = self.text_codebook.device
            found = self.represent(tokens[part].to(device), None if mask is None else mask[part].to(device), side)
            parts.append((found if dense else self.sparse(found)).to(tokens.device))
        return torch.cat(parts) if parts else tokens.new_zeros((0, self.size))

    def similarity(
        self, a: Encoded, b: Encoded, direction: Direction = "a", *, dense: bool = False, chunk: int = 256
    ) -> Tensor:
        """Scores ``[N, M]`` of the sparse vectors; the same in both directions.

        Args:
            a: encoded items of side ``a``.
            b: of side ``b``.
            direction: for the contract; it changes nothing.
            dense: score with all entries.
            chunk: items at a time.
        """
        return (
            self.transform_query(a, "a", dense=dense, chunk=chunk)
            @ self.transform_query(b, "b", dense=dense, chunk=chunk).T
        )

"""FILIP (Yao and others, ICLR 2022, arXiv 2111.07783): contrast by token-wise maximum similarity, two separate encoders.

    loss = ( CE(to_b / tau) + CE(to_a^T / tau) ) / 2

with the two matrices of `chiasm.learn.objectives.filip.interaction`. They differ: each direction has its own.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import InfoNCE, info_nce
from chiasm.learn.held_out import Direction, Encoded
from chiasm.learn.objectives.filip.interaction import Wanted, late_interaction, unit_tokens
from chiasm.learn.objectives.filip.selection import select_locally

Score = Literal["own", "i2t", "t2i", "mean"]
Product = Literal["float32", "float16", "bfloat16"]


class Filip(nn.Module):
    """Late interaction between the tokens of ``a`` (pictures: patches) and of ``b`` (texts: words).

    The towers end in the projection that the paper puts on every token (d = 256 there): `Tower(..., out=256)`, or
    ``layers=0`` over frozen tokens. Tokens are scaled to length 1 here.

    Args:
        temperature: start of the learned temperature; 0.07 (card). Its inverse stays below 100.
        learn_temperature: learn its logarithm.
        keep: share of the tokens kept on the far side of each product while training, chosen by `select_locally`; the
            paper keeps 0.25 to fit large batches. 1 keeps all (the default: on one machine nothing has to be sent).
        local: pairs that choose tokens together; default the batch of one process.
        product: what token similarities are multiplied in; the paper uses float16. Maxima and means are float32.
        class_token: the first token of ``a`` is a class token, which takes no part.
        drop_special: the first and the last token of ``b`` (BOS, EOS) take no part; an item with nothing else keeps them.
            The paper does not say; they are no padding, so by default they stay.
        score: which matrix ranks in `similarity`: ``"own"``, each direction its own (the paper); ``"i2t"``, the mean over
            the tokens of ``a``; ``"t2i"``, over those of ``b``; ``"mean"`` of both. Background patches blur ``"i2t"``.
        chunk: items of ``b`` a block of token similarities; see `late_interaction`.

    Raises:
        BadInput: values out of range; `UnknownName` for an unknown score or product.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learn_temperature: bool = True,
        keep: float = 1.0,
        local: int | None = None,
        product: Product = "float32",
        class_token: bool = False,
        drop_special: bool = False,
        score: Score = "own",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise BadInput(f"keep={keep} is no share in (0, 1]", where="Filip")
        for name, value, known in (("score", score, get_args(Score)), ("product", product, get_args(Product))):
            if value not in known:
                raise unknown_name(name, str(value), known)
        for name, value in (("local", local), ("chunk", chunk)):
            if value is not None and value < 1:
                raise BadInput(f"{name} {value} is not positive", where="Filip")
        self.contrast = InfoNCE(temperature, learn_temperature=learn_temperature)
        self.keep, self.local, self.product, self.chunk = keep, local, product, chunk
        self.class_token, self.drop_special = class_token, drop_special
        self.score: Score = score
        # How far the tokens of b lie apart; the collapse detector watches it.
        self.spread = float("nan")

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        a_tokens: Tensor | None = None,
        b_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_mask: Tensor | None = None,
        groups: Any = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a: vectors ``[N, D]``; used as single tokens where there are no ``a_tokens``.
            b: vectors ``[M, D]``.
            a_tokens: ``[N, n1, D]``.
            b_tokens: ``[M, n2, D]``.
            a_mask: bool ``[N, n1]``, True where there is a token; default everywhere.
            b_mask: bool ``[M, n2]``.
            groups: ids of positives, as of `chiasm.learn.info_nce`; each of n positives has the target 1 / n.

        Returns:
            ``a_to_b`` and ``b_to_a``; the loss is their sum.
        """
        left = self.tokens_of_a(a if a_tokens is None else a_tokens, a_mask if a_tokens is not None else None)
        right = self.tokens_of_b(b if b_tokens is None else b_tokens, b_mask if b_tokens is not None else None)
        to_b, to_a = self._scores(left, right)
        with torch.no_grad():
            self.spread = float(1 - right[0][right[1]].float().mean(0).square().sum()) if bool(right[1].any()) else 0.0
        here, there = groups if isinstance(groups, (tuple, list)) else (groups, groups)
        return {
            "a_to_b": self._cross_entropy(to_b, (here, there)) / 2,
            "b_to_a": self._cross_entropy(to_a.T, (there, here)) / 2,
        }

    def tokens_of_a(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit tokens of ``a`` that take part, and their mask."""
        tokens, mask = unit_tokens(tokens, mask)
        if self.class_token and tokens.shape[1] > 1:
            tokens, mask = tokens[:, 1:], mask[:, 1:]
        return tokens, mask

    def tokens_of_b(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit tokens of ``b`` that take part, and their mask."""
        tokens, mask = unit_tokens(tokens, mask)
        if self.drop_special:
            place = mask.cumsum(1)
            inner = mask & (place > 1) & (place < place[:, -1:])
            mask = torch.where(inner.any(1, keepdim=True), inner, mask)
        return tokens, mask

    @torch.no_grad()
    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a", *, score: Score | None = None) -> Tensor:
        """Scores ``[N, M]`` of two sets of items, in blocks.

        Args:
            a: N items; those without tokens are single tokens.
            b: M items.
            direction: ``"a"`` ranks ``b`` for each item of ``a``, ``"b"`` the other way round.
            score: another choice than the constructor's.
        """
        score = self.score if score is None else score
        if score not in get_args(Score):
            raise unknown_name("score", str(score), get_args(Score))
        left = self.tokens_of_a(a.vectors if a.tokens is None else a.tokens, a.mask)
        right = self.tokens_of_b(b.vectors if b.tokens is None else b.tokens, b.mask)
        if score == "own":
            score = "i2t" if direction == "a" else "t2i"
        wanted: Wanted = {"i2t": "b", "t2i": "a", "mean": "both"}[score]  # pyright: ignore[reportAssignmentType]
        to_b, to_a = self._interact(left, right, wanted)
        return {"b": to_b, "a": to_a, "both": (to_b + to_a) / 2 if wanted == "both" else to_b}[wanted]

    def _scores(self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if not self.training or self.keep == 1:
            return self._interact(left, right, "both")
        processes = get_world_size()
        local = self.local or (len(left[0]) // processes if processes > 1 else None)
        far_left, far_right = select_locally(left[0], right[0], left[1], right[1], self.keep, local)
        # Each matrix has its mean over all tokens of the near side, and its maximum over those kept of the far side.
        return self._interact(left, far_right, "b")[0], self._interact(far_left, right, "a")[1]

    def _interact(
        self, left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], wanted: Wanted
    ) -> tuple[Tensor, Tensor]:
        a, b = left[0], right[0]
        if self.product != "float32":
            kind = getattr(torch, self.product)
            a, b = a.to(kind), b.to(kind)
        return late_interaction(a, b, left[1], right[1], wanted=wanted, chunk=self.chunk)

    def _cross_entropy(self, scores: Tensor, groups: tuple[Any, Any]) -> Tensor:
        # Scores are the inner products of their own rows with the axes, so the one InfoNCE core takes them as they are.
        axes = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
        pairs = None if groups[0] is None else groups
        return info_nce(scores, axes, scale=self.contrast.scale, groups=pairs, directions="a")["a_to_b"]

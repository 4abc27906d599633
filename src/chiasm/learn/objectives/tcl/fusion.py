"""The other half of TCL: a fusion encoder with image-text matching (ITM) and masked language modeling (MLM), and re-ranking.

The text's tokens read the picture's tokens by cross-attention (the last 6 layers of BERT in the paper):

    ITM   matched pairs, and for each item one hard negative drawn by the contrastive scores: cross-entropy over 3 B pairs
    MLM   15% of the words are hidden (80% mask, 10% another word, 10% left) and told from the rest of the text and the picture;
          the targets are mixed with what the momentum encoder and the momentum fusion say
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from chiasm.blocks.cross_attention import FusionEncoder
from chiasm.errors import BadInput
from chiasm.learn.held_out import Direction, Encoded, cosine
from chiasm.learn.momentum import Momentum
from chiasm.learn.objectives.tcl.objective import TripleContrast
from chiasm.learn.words import MASK, UNKNOWN

_Encode = Callable[[dict[str, Any]], dict[str, Any]]


class FusedTripleContrast(TripleContrast):
    """All losses of TCL: those of `TripleContrast`, ITM and MLM; retrieval re-ranks the best candidates by ITM.

    ``a`` are pictures (or whatever has tokens), ``b`` texts as word ids. The towers must give ``token_embeddings`` as long as
    their vectors (`chiasm.learn.towers.Tower` does).

    Args:
        vocabulary: number of word ids.
        width: length of the tokens; 64.
        layers: layers of the fusion encoder; 2 (the paper has 6 of width 768).
        heads: attention heads; 4.
        w_itm, w_mlm: weights of the two losses once they have begun; 1 as in the paper, which leaves MLM out when it tunes for
            retrieval.
        mask_rate: share of the words that MLM hides; 0.15.
        rerank: how many candidates of each query ITM orders again; 128 (the paper: 256 on COCO, 128 on Flickr30K).
        pairs_at_once: pairs a step of re-ranking.
        **options: of `TripleContrast`; ``aux_start`` holds for ITM and MLM, too.

    Raises:
        BadInput: numbers outside their range.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        w_itm: float = 1.0,
        w_mlm: float = 1.0,
        mask_rate: float = 0.15,
        rerank: int = 128,
        pairs_at_once: int = 2048,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if vocabulary <= MASK or min(w_itm, w_mlm) < 0 or not 0 <= mask_rate <= 1 or rerank < 1 or pairs_at_once < 1:
            raise BadInput(
                f"vocabulary {vocabulary}, w_itm {w_itm}, w_mlm {w_mlm}, mask_rate {mask_rate}, rerank {rerank}",
                where="FusedTripleContrast",
            )
        self.vocabulary, self.w_itm, self.w_mlm, self.mask_rate = vocabulary, w_itm, w_mlm, mask_rate
        self.rerank, self.pairs_at_once = rerank, pairs_at_once
        self.fusion = FusionEncoder(width, layers, heads)
        self.match = nn.Linear(width, 2)
        self.word = nn.Linear(width, vocabulary)
        self.fusion_hat = Momentum(self.fusion, self.momentum)
        self.word_hat = Momentum(self.word, self.momentum)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        a_tokens: Tensor | None = None,
        b_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_mask: Tensor | None = None,
        b_inputs: dict[str, Any] | None = None,
        encode: _Encode | None = None,
        encode_momentum: _Encode | None = None,
        a_momentum: Tensor | None = None,
        b_momentum: Tensor | None = None,
        a_momentum_tokens: Tensor | None = None,
        b_momentum_tokens: Tensor | None = None,
        a2_momentum: Tensor | None = None,
        b2_momentum: Tensor | None = None,
        a2_momentum_tokens: Tensor | None = None,
        b2_momentum_tokens: Tensor | None = None,
        a2_mask: Tensor | None = None,
        b2_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a, b, groups, ...: as in `TripleContrast.forward`.
            a_tokens, b_tokens: online tokens ``[n, L, D]``; without them there is neither ITM nor MLM.
            b_inputs: what the text encoder read, with ``input_ids``; without it, or without ``encode``, there is no MLM.
            encode: runs the online text encoder on the hidden text.
            encode_momentum: the same of the momentum encoder; without it the targets of MLM are the words alone.

        Returns:
            Those of `TripleContrast`, ``itm`` and ``mlm``.
        """
        if self.training:
            for hat, student in ((self.fusion_hat, self.fusion), (self.word_hat, self.word)):
                hat.update(student, self.momentum)
        found = super().forward(
            a,
            b,
            groups=groups,
            a_momentum=a_momentum,
            b_momentum=b_momentum,
            a_momentum_tokens=a_momentum_tokens,
            b_momentum_tokens=b_momentum_tokens,
            a_mask=a_mask,
            b_mask=b_mask,
            a2_momentum=a2_momentum,
            b2_momentum=b2_momentum,
            a2_momentum_tokens=a2_momentum_tokens,
            b2_momentum_tokens=b2_momentum_tokens,
            a2_mask=a2_mask,
            b2_mask=b2_mask,
        )
        if a_tokens is None or b_tokens is None or float(self.progress) < self.aux_start:
            return found
        if self.w_itm:
            pictures = Encoded(a, a_tokens, a_mask)
            found["itm"] = self.w_itm * self.matching(pictures, Encoded(b, b_tokens, b_mask), groups)
        if self.w_mlm and b_inputs is not None and encode is not None:
            # Tokens come from all processes, what the model read does not.
            n = len(b_inputs["input_ids"])
            start = torch.distributed.get_rank() * n if len(a_tokens) > n else 0
            own = slice(start, start + n)
            pictures = Encoded(a[own], a_tokens[own], None if a_mask is None else a_mask[own])
            found["mlm"] = self.w_mlm * self.hidden_words(pictures, b_inputs, encode, encode_momentum)
        return found

    def matching(self, a: Encoded, b: Encoded, groups: Tensor | None = None) -> Tensor:
        """The ITM loss: matched pairs, a wrong picture for every text and a wrong text for every picture.

        Wrong ones are drawn by the softmax of the contrastive scores, never of the same group; outside of training the most
        likely one is taken. Items for which the batch has no wrong one add no pair.
        """
        n = len(a)
        ids = torch.arange(n, device=a.vectors.device) if groups is None else groups
        scores = (cosine(a, b) * self.scale).detach()
        scores = scores.masked_fill(ids[:, None] == ids[None, :], -torch.inf)
        own = torch.arange(n, device=scores.device)
        text, has_text = self._wrong(scores)
        picture, has_picture = self._wrong(scores.T)
        left = torch.cat([own, own[has_text], picture])
        right = torch.cat([own, text, own[has_picture]])
        labels = (torch.arange(len(left), device=scores.device) < n).long()
        return nn.functional.cross_entropy(self._logits(a, b, left, right), labels)

    def _wrong(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """One wrong candidate for each row that has any, and which rows have."""
        has = ~scores.isneginf().all(1)
        shares = scores[has].softmax(1)
        if not len(shares):
            return has.nonzero()[:, 0], has
        return (torch.multinomial(shares, 1)[:, 0] if self.training else shares.argmax(1)), has

    def _logits(self, a: Encoded, b: Encoded, left: Tensor, right: Tensor) -> Tensor:
        """ITM logits ``[P, 2]`` of the pairs (picture ``left``, text ``right``)."""
        assert a.tokens is not None
        assert b.tokens is not None
        mask = None if b.mask is None else b.mask[right]
        fused = self.fusion(
            b.tokens[right], a.tokens[left], mask=mask, context_mask=None if a.mask is None else a.mask[left]
        )
        if mask is None:
            return self.match(fused.mean(1))
        weight = mask.unsqueeze(-1).to(fused.dtype)
        return self.match((fused.masked_fill(weight == 0, 0)).sum(1) / weight.sum(1).clamp_min(1))

    def hidden_words(
        self,
        a: Encoded,
        inputs: dict[str, Any],
        encode: _Encode,
        encode_momentum: _Encode | None = None,
    ) -> Tensor:
        """The MLM loss; 0 for a batch in which no word was drawn."""
        assert a.tokens is not None
        ids = inputs["input_ids"]
        there = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        shown, hidden = masked_words(ids, there, self.vocabulary, self.mask_rate)
        seen = {**inputs, "input_ids": shown}
        fused = self.fusion(encode(seen)["token_embeddings"], a.tokens, mask=there, context_mask=a.mask)
        if not bool(hidden.any()):
            return fused.sum() * 0
        told = self.word(fused[hidden]).log_softmax(-1)
        loss = nn.functional.nll_loss(told, ids[hidden])
        alpha = self.current_alpha
        if not alpha or encode_momentum is None:
            return loss
        with torch.no_grad():
            tokens = encode_momentum(seen)["token_embeddings"]
            opinion = self.word_hat(self.fusion_hat(tokens, a.tokens, mask=there, context_mask=a.mask)[hidden])
        return (1 - alpha) * loss - alpha * (opinion.softmax(-1) * told).sum(-1).mean()

    @torch.no_grad()
    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a") -> Tensor:
        """Scores ``[N, M]``: each query's ``rerank`` best candidates by cosine are ordered by ITM, the others come after them.

        Args:
            a: N pictures with tokens.
            b: M texts with tokens.
            direction: which side asks; ``"a"``: each row's candidates are texts.

        Returns:
            The log-odds of a match for the candidates; all others lie below the lowest of them, in the order of the cosine.
        """
        if a.tokens is None or b.tokens is None:
            raise BadInput("re-ranking needs tokens", where="FusedTripleContrast.similarity")
        device = self.match.weight.device
        a, b = (
            Encoded(*(None if x is None else x.to(device) for x in (e.vectors, e.tokens, e.mask)))  # pyright: ignore
            for e in (a, b)
        )
        scores = cosine(a, b) if direction == "a" else cosine(a, b).T
        k = min(self.rerank, scores.shape[1])
        best = scores.topk(k, dim=1).indices
        query = torch.arange(len(scores), device=device).repeat_interleave(k)
        left, right = (query, best.flatten()) if direction == "a" else (best.flatten(), query)
        parts = []
        for start in range(0, len(query), self.pairs_at_once):
            part = slice(start, start + self.pairs_at_once)
            logits = self._logits(a, b, left[part], right[part])
            parts.append(logits[:, 1] - logits[:, 0])
        odds = torch.cat(parts).view(len(scores), k)
        # A cosine lies in [-1, 1]: two below the lowest candidate is below all of them.
        out = (scores - 2 + odds.amin(1, keepdim=True)).scatter(1, best, odds)
        return out if direction == "a" else out.T


def masked_words(
    ids: Tensor, there: Tensor, vocabulary: int, rate: float = 0.15, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hides words as BERT does (arXiv 1810.04805): of those drawn 80% become the mask, 10% another word, 10% stay.

    Args:
        ids: int64 ``[n, L]``.
        there: bool ``[n, L]``, True where a word is; ids that stand for no word are never drawn.
        vocabulary: number of word ids.
        rate: share of the words.
        generator: of the draws; default torch's own.

    Returns:
        What is shown ``[n, L]``, and bool ``[n, L]``, True where a word was drawn.
    """
    draw, kind = (torch.rand(ids.shape, generator=generator, device=ids.device) for _ in range(2))
    hidden = (draw < rate) & there & (ids > max(UNKNOWN, MASK))
    first = max(UNKNOWN, MASK) + 1
    other = torch.randint(min(first, vocabulary - 1), vocabulary, ids.shape, generator=generator, device=ids.device)
    shown = ids.masked_fill(hidden & (kind < 0.8), MASK)
    return torch.where(hidden & (kind >= 0.9), other, shown), hidden

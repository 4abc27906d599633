"""How important each visual token is: to the other visual tokens (VisionDrop), to the last word (FastV), or to nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from chiasm.blocks.attention import attention_probabilities
from chiasm.blocks.merging import contextual

Correction = Literal["none", "causal", "length"]
CORRECTIONS = ("none", "causal", "length")
SCORERS = ("visual", "text", "random", "uniform", "norm")

# Attention weights that exist at a time (4 bytes each): 64 MB.
_WEIGHTS = 1 << 24


def encoder_scores(query: Tensor, key: Tensor, scaling: float, has_class: bool) -> Tensor:
    """Importance of the patches in one layer of the vision encoder, float32 ``[I, N]``.

    With a class token: the attention that it pays to each patch, summed over the heads. Without: the attention that a patch
    gets from all patches, mean over heads and patches.

    Args:
        query, key: ``[I, H, T, dh]`` with the class token first, if there is one.
        scaling: factor of the logits.
        has_class: see above.
    """
    if has_class:
        return attention_probabilities(query[:, :, :1], key, scaling)[:, :, 0, 1:].sum(dim=1)
    return attention_probabilities(query, key, scaling).mean(dim=(1, 2))


def visual_scores(
    query: Tensor,
    key: Tensor,
    valid: Tensor,
    rows: Tensor,
    columns: Tensor,
    scaling: float,
    correction: Correction = "none",
    *,
    bidirectional: bool = False,
) -> Tensor:
    """Importance of the visual tokens to each other in a layer of the language model, float32 ``[I, M]``.

    ``A = softmax(Q_v K^T * scaling)`` over the whole sequence, mean over the heads; the score of i is the mean over the M
    visual queries of ``A[q, i]``. Under a causal mask early tokens are seen by more queries and win; ``"causal"`` divides
    by the number of queries that see i instead of M, ``"length"`` multiplies ``A[q, .]`` by the number of keys that q sees
    before that, which is 1 everywhere under uniform attention.

    Args:
        query: ``[B, H, T, dh]``.
        key: ``[B, Hk, T, dh]``.
        valid: bool ``[B, T]``, False at padding.
        rows: int64 ``[I]``, the item in which each picture is.
        columns: int64 ``[I, M]``, where its visual tokens stand.
        scaling: factor of the logits.
        correction: see above; ``"none"`` is the published score.
        bidirectional: visual queries see up to the last visual token of their picture (never the text behind it).
    """
    places = torch.arange(valid.shape[1], device=valid.device)
    step = max(1, _WEIGHTS // max(1, query.shape[1] * columns.shape[1] * valid.shape[1]))
    parts = [query.new_zeros(0, columns.shape[1], dtype=torch.float32)]
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        until = column[:, -1:].expand_as(column) if bidirectional else column
        visible = valid[row][:, None] & (places <= until[:, :, None])
        asked = query.transpose(1, 2)[row[:, None], column].transpose(1, 2)
        seen = attention_probabilities(asked, key[row], scaling, visible[:, None]).mean(dim=1)
        own = column[:, None].expand(-1, column.shape[1], -1)
        pays, allowed = seen.gather(2, own), visible.gather(2, own)
        if correction == "length":
            pays = pays * visible.sum(dim=2, keepdim=True)
        watchers = allowed.sum(dim=1).clamp_min(1) if correction != "none" else pays.shape[1]
        parts.append(pays.sum(dim=1) / watchers)
    return torch.cat(parts)


def text_scores(query: Tensor, key: Tensor, valid: Tensor, rows: Tensor, columns: Tensor, scaling: float) -> Tensor:
    """FastV's and PyramidDrop's importance: what the last word of the instruction pays, mean over heads, float32 ``[I, M]``.

    Arguments as of `visual_scores`.
    """
    places = torch.arange(valid.shape[1], device=valid.device)
    last = (valid * (places + 1)).argmax(dim=1)
    asked = query.gather(2, last[:, None, None, None].expand(-1, query.shape[1], 1, query.shape[3]))
    seen = attention_probabilities(asked, key, scaling, (valid & (places <= last[:, None]))[:, None, None])
    return seen.mean(dim=1)[:, 0][rows].gather(1, columns)


def blind_scores(kind: str, hidden: Tensor, seed: int) -> Tensor:
    """Importance by nothing but the seed, the place, or the length of the vector, float32 ``[I, M]``.

    ``"random"`` is the same order for every picture, so that a picture's result does not depend on its batch; ``"uniform"``
    spreads what is kept evenly (van der Corput order); ``"norm"`` is the length of the hidden state.

    Args:
        kind: see above.
        hidden: ``[I, M, D]``.
        seed: of the random order.
    """
    images, count = hidden.shape[:2]
    if kind == "norm":
        return hidden.float().norm(dim=-1)
    if kind == "random":
        score = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    else:
        # The bits of the place in reverse: any number of first places lies evenly over the picture.
        place, score = torch.arange(count), torch.zeros(count)
        for bit in range(max(1, (count - 1).bit_length())):
            score -= ((place >> bit) & 1) * 0.5 ** (bit + 1)
    return score.to(hidden.device).expand(images, -1)


@dataclass(frozen=True)
class Scorer:
    """One of the scores with its settings; the arguments are those of `VisionDrop`."""

    kind: str
    correction: Correction = "none"
    bidirectional: bool = False
    seed: int = 0

    def patches(self, query: Tensor, key: Tensor, patches: Tensor, has_class: bool) -> Tensor:
        """Behind the encoder, float32 ``[I, N]``: there is no text yet, so ``"text"`` scores as ``"visual"``.

        Args:
            query, key, has_class: as of `encoder_scores`.
            patches: ``[I, N, D]``.
        """
        if self.kind in ("visual", "text"):
            return encoder_scores(query, key, query.shape[-1] ** -0.5, has_class)
        return blind_scores(self.kind, patches, self.seed)

    def tokens(
        self, query: Tensor, key: Tensor, tokens: Tensor, valid: Tensor, rows: Tensor, columns: Tensor, scaling: float
    ) -> Tensor:
        """Inside the language model, float32 ``[I, M]``.

        Args:
            query, key, valid, rows, columns, scaling: as of `visual_scores`.
            tokens: the visual tokens' states ``[I, M, D]``.
        """
        spans = (valid, rows, columns)
        if self.kind == "text":
            return text_scores(query, key, *spans, scaling)
        if self.kind == "visual":
            return visual_scores(query, key, *spans, scaling, self.correction, bidirectional=self.bidirectional)
        return blind_scores(self.kind, tokens, self.seed)


def choose(scores: Tensor, keep: int) -> Tensor:
    """The places of the ``keep`` best scores in their order in the sequence: int64 ``[I, keep]``; ties go to the earlier."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :keep].sort(dim=1).values


def others(chosen: Tensor, count: int) -> Tensor:
    """The places that were not chosen, rising: int64 ``[I, count - keep]``."""
    free = torch.ones(len(chosen), count, dtype=torch.bool, device=chosen.device)
    free.scatter_(1, chosen, False)
    return free.nonzero()[:, 1].view(len(chosen), count - chosen.shape[1])


def select(
    tokens: Tensor, metric: Tensor, scores: Tensor, dominant: int, merged: int, how: Literal["sum", "mean"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The best tokens in their order, and behind them the contextual tokens into which the others are merged.

    Args:
        tokens: ``[I, M, D]``.
        metric: ``[I, M, d]``, what the similarity of tokens is measured on.
        scores: ``[I, M]``.
        dominant, merged: how many of each kind.
        how: see `contextual`.

    Returns:
        Tokens ``[I, dominant + merged, D]``; which of the M tokens each was (a contextual one: its target), int64
        ``[I, dominant + merged]``; the best ones' places, int64 ``[I, dominant]``.
    """
    best = choose(scores, dominant)
    rest = others(best, tokens.shape[1])
    left, kind, chosen = (
        x.gather(1, at[:, :, None].expand(-1, -1, x.shape[2]))
        for x, at in ((tokens, rest), (metric, rest), (tokens, best))
    )
    made, targets, _ = contextual(left, kind, merged, how)
    return torch.cat([chosen, made], dim=1), torch.cat([best, rest[:, targets]], dim=1), best

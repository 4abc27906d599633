"""`CrossMatcher`: reads an input's tokens in the light of each label's description (CrossTune, arXiv 2403.12468).

    X' = LN(Wx X),  G' = LN(Wg G_c)
    A_c = attention(X' -> G'_c),  H_c = LN(X' * A_c + X'),  H_c = LN(H_c + FFN(H_c)),  z_c = attention pooling of H_c
    s_c = v . tanh(Wz z_c) + beta cos(mean X', mean G'_c)

v begins at zero and Wg as a copy of the orthogonal Wx, so before the first step s is the cosine between input and description.
Weights are shared by all classes: their number may change after training.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chiasm.blocks.cross_attention import MaskedAttention
from chiasm.errors import BadInput, unknown_name

# Cells [pairs x tokens x width] that are held at once: 64 MB.
_CELLS = 1 << 24


class CrossMatcher(nn.Module):
    """The trainable part of CrossTune.

    Args:
        dim: length d of the encoder's vectors.
        width: h; default ``min(d, 256)``.
        heads: attention heads; 4.
        interaction: how what was read joins the input: ``"product"`` (``LN(X' * A + X')``) or ``"sum"`` (``LN(X' + A)``).
        dropout: of the attention weights, 0.3.
        ffn_dropout: after the perceptron's activation, 0.1.
        beta: first weight of the cosine, 10. Trainable.

    Raises:
        BadInput: a width that the heads do not divide.
        UnknownName: an interaction that does not exist.
    """

    def __init__(
        self,
        dim: int,
        width: int | None = None,
        *,
        heads: int = 4,
        interaction: Literal["product", "sum"] = "product",
        dropout: float = 0.3,
        ffn_dropout: float = 0.1,
        beta: float = 10.0,
    ) -> None:
        super().__init__()
        width = min(dim, 256) if width is None else width
        if interaction not in ("product", "sum"):
            raise unknown_name("interaction", interaction, ("product", "sum"))
        if dim < 1 or width < 1:
            raise BadInput(f"vectors of {dim} numbers, width {width}", where="CrossMatcher", fix="Both are at least 1")
        self.interaction = interaction
        self.input, self.label = nn.Linear(dim, width), nn.Linear(dim, width)
        nn.init.orthogonal_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        self.label.load_state_dict(self.input.state_dict())
        self.norm_input, self.norm_label = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads, dropout=dropout)
        self.norm_read, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(ffn_dropout), nn.Linear(2 * width, width)
        )
        self.pool = nn.Linear(width, 1, bias=False)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(
        self, tokens: Tensor, mask: Tensor, labels: Tensor, labels_mask: Tensor, *, shortlist: int | None = None
    ) -> Tensor:
        """Scores of all classes.

        Args:
            tokens: ``[B, T, d]``; mask: bool ``[B, T]``, True where a token is.
            labels: ``[C, Tc, d]`` of the descriptions; labels_mask: bool ``[C, Tc]``.
            shortlist: score only so many classes an input, the nearest by cosine; the others get -inf. None for all.

        Returns:
            ``[B, C]``.
        """
        x, g = self._project(tokens, mask, labels, labels_mask)
        scores = self.beta * _cosine(x, mask, g, labels_mask)
        rows, classes = scores.shape
        if shortlist is None or shortlist >= classes:
            near = torch.arange(classes, device=x.device).expand(rows, classes)
        else:
            near = scores.detach().topk(shortlist, dim=1).indices
        row, name = torch.arange(rows, device=x.device).repeat_interleave(near.shape[1]), near.reshape(-1)
        step = max(1, _CELLS // max(1, x.shape[1] * x.shape[2]))
        parts = list(zip(row.split(step), name.split(step), strict=True))

        def learned_of(i: Tensor, c: Tensor) -> Tensor:
            return self._learned(x[i], mask[i], g[c], labels_mask[c])

        if torch.is_grad_enabled() and len(parts) > 1:  # many classes: keep no activation, compute them again
            found = [checkpoint(learned_of, i, c, use_reentrant=False) for i, c in parts]
        else:
            found = [learned_of(i, c) for i, c in parts]
        learned = torch.cat(found).reshape(near.shape)
        if near.shape[1] == classes:
            return scores + learned
        return torch.full_like(scores, -torch.inf).scatter(1, near, scores.gather(1, near) + learned)

    def cosine(self, tokens: Tensor, mask: Tensor, labels: Tensor, labels_mask: Tensor) -> Tensor:
        """The part of the scores that needs no training, ``beta cos``, ``[B, C]``; a shortlist among many classes."""
        x, g = self._project(tokens, mask, labels, labels_mask)
        return self.beta * _cosine(x, mask, g, labels_mask)

    def _project(self, tokens: Tensor, mask: Tensor, labels: Tensor, labels_mask: Tensor) -> tuple[Tensor, Tensor]:
        if tokens.ndim != 3 or labels.ndim != 3 or tokens.shape[2] != labels.shape[2]:
            raise BadInput(
                f"inputs {tuple(tokens.shape)} and descriptions {tuple(labels.shape)}",
                where="CrossMatcher",
                fix="Give [B, T, d] and [C, Tc, d]",
            )
        if mask.shape != tokens.shape[:2] or labels_mask.shape != labels.shape[:2]:
            raise BadInput(
                f"masks {tuple(mask.shape)} and {tuple(labels_mask.shape)} for tokens {tuple(tokens.shape[:2])} and "
                f"{tuple(labels.shape[:2])}",
                where="CrossMatcher",
            )
        if tokens.shape[2] != self.input.in_features:
            raise BadInput(
                f"{tokens.shape[2]}-d vectors for a head of {self.input.in_features}-d", where="CrossMatcher"
            )
        return self.norm_input(self.input(tokens)), self.norm_label(self.label(labels))

    def _learned(self, x: Tensor, mask: Tensor, g: Tensor, labels_mask: Tensor) -> Tensor:
        """``v . tanh(Wz z)`` of P pairs of an input ``[P, T, h]`` and a description ``[P, Tc, h]``: ``[P]``."""
        read = self.attention(x, g, labels_mask)
        joined = x * read + x if self.interaction == "product" else x + read
        h = self.norm_read(joined)
        h = self.norm_perceptron(h + self.perceptron(h))
        weight = self.pool(h)[..., 0].masked_fill(~mask, -torch.inf)
        # An input without any token is read as a whole: a softmax over nothing would be NaN.
        weight = torch.where(mask.any(1, keepdim=True), weight, torch.zeros_like(weight)).softmax(dim=1)
        z = (weight[..., None] * h).sum(dim=1)
        return self.out(torch.tanh(self.hidden(z)))[:, 0]


def _cosine(x: Tensor, mask: Tensor, g: Tensor, labels_mask: Tensor) -> Tensor:
    a, b = (nn.functional.normalize(_mean(v, m), dim=-1) for v, m in ((x, mask), (g, labels_mask)))
    return a @ b.T


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    kept = values.masked_fill(~mask[..., None], 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)

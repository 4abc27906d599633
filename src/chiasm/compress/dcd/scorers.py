"""Pair scorers: ``scorer(a, b) -> [n]`` logits of n aligned pairs, from what the towers give for each side.

`DualEncoder` compares two vectors (any index can serve it); `ProductFusion` and `CrossFusion` read both sides together, rank
better, and must look at every pair. Each can be the teacher or the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from chiasm.blocks.cross_attention import FusionEncoder
from chiasm.errors import BadInput
from chiasm.learn.held_out import Encoded

Scorer = Callable[[Encoded, Encoded], Tensor]

# Pairs that are scored at a time: 16,384 pairs of 128 floats are 8 MB.
PAIRS = 1 << 14


def taken(items: Encoded, index: Tensor) -> Encoded:
    """Some items, in this order; ``index`` int ``[k]`` may repeat."""
    tokens = None if items.tokens is None else items.tokens[index]
    return Encoded(items.vectors[index], tokens, None if items.mask is None else items.mask[index])


def listed(scorer: Scorer, a: Encoded, b: Encoded, index: Tensor, *, swap: bool = False) -> Tensor:
    """Logits of each query with its own candidates: the only pairs that are scored.

    Args:
        scorer: of aligned pairs.
        a: n queries.
        b: items.
        index: int ``[n, C]``, rows of ``b``.
        swap: the queries are the scorer's second side.

    Returns:
        ``[n, C]``.
    """
    n, c = index.shape
    query = taken(a, torch.arange(n, device=index.device).repeat_interleave(c))
    item = taken(b, index.flatten())
    return (scorer(item, query) if swap else scorer(query, item)).view(n, c)


def grid(scorer: Scorer, a: Encoded, b: Encoded, *, chunk: int = PAIRS) -> Tensor:
    """Logits of all pairs ``[N, M]``, block by block of ``chunk`` pairs; a scorer with a ``grid`` of its own is asked that."""
    own = getattr(scorer, "grid", None)
    if own is not None:
        return own(a, b)
    n, m = len(a), len(b)
    rows = max(1, chunk // max(1, m))
    every = torch.arange(m, device=b.vectors.device)
    parts = [
        listed(scorer, taken(a, torch.arange(s, min(n, s + rows), device=a.vectors.device)), b, index)
        for s in range(0, n, rows)
        for index in [every.expand(min(n, s + rows) - s, m)]
    ]
    return torch.cat(parts) if parts else a.vectors.new_zeros((0, m))


class DualEncoder(nn.Module):
    """``scale * cos(a, b) + bias``: the student that an index can serve, since only the cosine ranks.

    Args:
        scale: first scale; 10 as in SigLIP (arXiv 2303.15343). Learned.
        bias: first bias; 0. Learned. It gives a sigmoid of the score its threshold; nearly all pairs are negatives.

    Raises:
        BadInput: a scale that is not positive.
    """

    def __init__(self, scale: float = 10.0, bias: float = 0.0) -> None:
        super().__init__()
        if scale <= 0:
            raise BadInput(f"scale {scale} is not positive", where="DualEncoder")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, a: Encoded, b: Encoded) -> Tensor:
        """``[n]`` logits of aligned pairs."""
        return self.log_scale.exp() * nn.functional.cosine_similarity(a.vectors, b.vectors, dim=-1) + self.bias

    def grid(self, a: Encoded, b: Encoded) -> Tensor:
        """``[N, M]`` logits of all pairs: one matrix product."""
        x, y = (nn.functional.normalize(side.vectors, dim=-1) for side in (a, b))
        return self.log_scale.exp() * (x @ y.T) + self.bias


class ProductFusion(nn.Module):
    """A perceptron over the product of two vectors.

    Args:
        width: length D of the vectors.
        layers: hidden layers of the same width; 0 is a weighted inner product.

    Raises:
        BadInput: a number of layers below 0.
    """

    def __init__(self, width: int, layers: int = 3) -> None:
        super().__init__()
        if layers < 0:
            raise BadInput(f"{layers} layers", where="ProductFusion")
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, a: Encoded, b: Encoded) -> Tensor:
        """``[n]`` logits of aligned pairs."""
        x = a.vectors * b.vectors
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x).squeeze(-1)


class CrossFusion(nn.Module):
    """Cross-attention: the tokens of ``b`` (words) read those of ``a`` (patches), are pooled, and give one logit.

    Args:
        width: length of a token, the same on both sides.
        layers: blocks of `chiasm.blocks.cross_attention.FusionEncoder`.
        heads: attention heads; default ``width / 64``.
        dropout: of the blocks.
        cosine: adds ``scale * cos`` of the vectors and begins with a head of zeros, so that on top of aligned towers it
            begins with what they know.
    """

    def __init__(
        self, width: int, layers: int = 2, *, heads: int | None = None, dropout: float = 0.0, cosine: bool = False
    ) -> None:
        super().__init__()
        self.fusion = FusionEncoder(width, layers, heads, dropout=dropout)
        self.head = nn.Linear(width, 1)
        self.dual = DualEncoder() if cosine else None
        if cosine:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, a: Encoded, b: Encoded) -> Tensor:
        """``[n]`` logits of aligned pairs.

        Raises:
            BadInput: a side without tokens.
        """
        if a.tokens is None or b.tokens is None:
            raise BadInput("cross-attention needs tokens of both sides", where="CrossFusion", fix="Use a `Tower`")
        read = self.fusion(b.tokens, a.tokens, mask=b.mask, context_mask=a.mask)
        if b.mask is None:
            pooled = read.mean(dim=1)
        else:
            read = read.masked_fill(~b.mask.unsqueeze(-1), 0.0)
            pooled = read.sum(dim=1) / b.mask.sum(dim=1, keepdim=True).clamp_min(1)
        logits = self.head(pooled).squeeze(-1)
        return logits if self.dual is None else logits + self.dual(a, b)

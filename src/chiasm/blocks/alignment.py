"""What places the tokens of a frozen encoder in a space: a small perceptron a token, and pooling over the tokens that are there.

>>> layer = AlignmentLayer(768, 256)                  # OneEncoder, arXiv 2409.11059: 263,168 parameters
>>> pooled(layer(tokens), mask)                       # [N, L, 768] -> [N, L, 256] -> [N, 256]
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name

Pooling = Literal["mean", "first"]
POOLINGS: tuple[Pooling, ...] = ("mean", "first")


class AlignmentLayer(nn.Sequential):
    """``Linear(features, width) - GELU - Linear(width, width) - Dropout - LayerNorm`` on every token; no residual.

    Args:
        features: length of a token of the frozen encoder.
        width: length D of the joint space; 256 in the paper.
        dropout: 0.1 in the paper.
        hidden: length between the two linear layers; default ``width``, as in the paper.

    Raises:
        BadInput: a length below 1.
    """

    def __init__(self, features: int, width: int = 256, *, dropout: float = 0.1, hidden: int | None = None) -> None:
        hidden = width if hidden is None else hidden
        if min(features, width, hidden) < 1:
            raise BadInput(f"cannot make a layer {features} -> {hidden} -> {width}", where="AlignmentLayer")
        super().__init__(
            nn.Linear(features, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
            nn.LayerNorm(width),
        )


def filled(mask: Tensor | None, tokens: Tensor) -> Tensor:
    """A mask bool ``[N, L]``, True where a token is; all True where none is given."""
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        raise BadInput(f"a mask {tuple(mask.shape)} does not fit tokens {tuple(tokens.shape)}", where="mask")
    return mask.bool()


def pooled(tokens: Tensor, mask: Tensor | None = None, pooling: Pooling = "mean") -> Tensor:
    """One vector an item.

    Args:
        tokens: ``[N, L, D]``.
        mask: bool ``[N, L]``, True where a token is.
        pooling: ``"mean"`` over the tokens that are there, or the ``"first"`` of them.

    Returns:
        ``[N, D]``; zeros for an item without a token.

    Raises:
        UnknownName: another pooling.
    """
    if pooling not in POOLINGS:
        raise unknown_name("pooling", pooling, POOLINGS)
    mask = filled(mask, tokens)
    # Filling before the sum, because 0 * NaN in a padded place would be NaN.
    tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
    if pooling == "first":
        first = mask.float().argmax(1) if mask.shape[1] else mask.sum(1)
        return tokens[torch.arange(len(tokens), device=tokens.device), first] if mask.shape[1] else tokens.sum(1)
    return tokens.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)

"""Token-wise maximum similarity in both directions, streamed: no ``[N, M, L, K]`` tensor, exact gradients through the argmax.

For unit tokens ``v`` of N items and ``t`` of M items (Yao and others 2022, arXiv 2111.07783, section 3.1):

    to_b[i, j] = mean over the tokens k of i of max over the tokens r of j of <v_ik, t_jr>
    to_a[i, j] = mean over the tokens r of j of max over the tokens k of i of <v_ik, t_jr>

A block of items x items exists at a time, in the forward and, computed once more, in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chiasm.errors import BadInput

Wanted = Literal["both", "b", "a"]

# Token similarities a block (4 bytes each): 16 MB.
_BLOCK = 1 << 22
# What an item without any token scores: the lowest cosine there is, so that it comes last and nothing is infinite.
LOWEST = -1.0


def unit_tokens(tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens scaled to length 1, zero where there is none.

    Args:
        tokens: ``[N, L, D]``; vectors ``[N, D]`` count as one token each.
        mask: bool ``[N, L]``, True where there is a token; default everywhere.

    Returns:
        ``[N, L, D]`` and the mask ``[N, L]``.

    Raises:
        BadInput: shapes that do not fit together.
    """
    tokens = tokens.unsqueeze(1) if tokens.ndim == 2 else tokens
    if tokens.ndim != 3 or not tokens.shape[1]:
        raise BadInput(f"tokens have shape {tuple(tokens.shape)}, expected [N, L, D] with L >= 1", where="filip")
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        raise BadInput(f"a mask {tuple(mask.shape)} for tokens {tuple(tokens.shape)}", where="filip")
    # Padding goes first: normalizing NaN that stands there would spoil the gradient of the rest.
    kept = tokens.masked_fill(~mask.bool().unsqueeze(-1), 0)
    return nn.functional.normalize(kept, dim=-1), mask.bool()


def late_interaction(
    a: Tensor,
    b: Tensor,
    a_mask: Tensor | None = None,
    b_mask: Tensor | None = None,
    *,
    wanted: Wanted = "both",
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Both score matrices of two sets of tokens.

    Args:
        a: unit tokens ``[N, n1, D]`` (images); float16 and bfloat16 are multiplied as they are and reduced in float32.
        b: unit tokens ``[M, n2, D]`` (texts).
        a_mask: bool ``[N, n1]``, True where there is a token.
        b_mask: bool ``[M, n2]``.
        wanted: ``"b"`` for ``to_b`` alone, ``"a"`` for ``to_a`` alone; the other matrix is then empty ``[0, 0]``.
        chunk: items of ``b`` a block (all of ``a`` at once); by default blocks of both have 2**22 token similarities.

    Returns:
        ``to_b`` and ``to_a``, each ``[N, M]`` (rows: ``a``), float32 or wider. An item without tokens scores -1.

    Raises:
        BadInput: token lengths that differ, a chunk below 1, or an unknown ``wanted``.
    """
    if a.ndim != 3 or b.ndim != 3 or a.shape[2] != b.shape[2]:
        raise BadInput(f"tokens {tuple(a.shape)} and {tuple(b.shape)} cannot be compared", where="late_interaction")
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk {chunk} is not positive", where="late_interaction")
    if wanted not in ("both", "b", "a"):
        raise BadInput(f"wanted={wanted!r} does not exist", where="late_interaction", fix="Use 'both', 'b' or 'a'")
    masks = [
        torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if m is None else m.bool()
        for x, m in ((a, a_mask), (b, b_mask))
    ]
    there = masks[0].any(1)[:, None] & masks[1].any(1)[None, :]
    # An item without tokens lends its padding (zeros) to the maxima, and its scores are replaced at the end.
    masks = [m | ~m.any(1, keepdim=True) for m in masks]
    to_b, to_a = _Interaction.apply(a, b, *masks, wanted, chunk)
    return tuple(s.masked_fill(~there, LOWEST) if s.numel() else s for s in (to_b, to_a))  # pyright: ignore


def token_strength(
    a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor, *, block: int = _BLOCK
) -> tuple[Tensor, Tensor]:
    """The largest similarity of each token with any token of the other side; no gradient.

    Args:
        a: unit tokens ``[N, n1, D]``.
        b: unit tokens ``[M, n2, D]``.
        a_mask: bool ``[N, n1]``.
        b_mask: bool ``[M, n2]``.
        block: similarities that are held at once.

    Returns:
        ``[N, n1]`` and ``[M, n2]``, -inf where there is no token (or none on the other side).
    """
    with torch.no_grad():
        left, right = a.flatten(0, 1), b[b_mask]
        hidden = ~a_mask.flatten()
        strong_a = left.new_full((len(left),), -torch.inf, dtype=_wide(left))
        strong_b = torch.full(b_mask.shape, -torch.inf, dtype=_wide(left), device=b.device)
        found = []
        for part in right.split(max(1, block // max(1, len(left)))):
            scores = (left @ part.T).to(_wide(left)).masked_fill_(hidden[:, None], -torch.inf)
            strong_a = torch.maximum(strong_a, scores.amax(1))
            found.append(scores.amax(0))
        if found:
            strong_b[b_mask] = torch.cat(found)
        return strong_a.view(a_mask.shape), strong_b


class _Interaction(torch.autograd.Function):
    """Masks are such that every item has a token."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor, wanted: Wanted, chunk: int | None
    ) -> tuple[Tensor, Tensor]:
        n, m = len(a), len(b)
        to_b, to_a = (a.new_empty((n, m) if wanted in ("both", w) else (0, 0), dtype=_wide(a)) for w in ("b", "a"))
        shares = _shares(a_mask, a), _shares(b_mask, b)
        for rows, columns in _blocks(a, b, chunk):
            scores = _block(a[rows], b[columns])
            if wanted != "a":
                best = _hidden(scores, b_mask[columns][None, None]).amax(3)
                to_b[rows, columns] = torch.einsum("ikj,ik->ij", best, shares[0][rows])
            if wanted != "b":
                best = _hidden(scores, a_mask[rows][:, :, None, None]).amax(1)
                to_a[rows, columns] = torch.einsum("ijr,jr->ij", best, shares[1][columns])
        ctx.wanted, ctx.chunk = wanted, chunk
        ctx.save_for_backward(a, b, a_mask, b_mask)
        return to_b, to_a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_b: Tensor, grad_a: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, a_mask, b_mask = ctx.saved_tensors
        left, right = torch.zeros_like(a, dtype=_wide(a)), torch.zeros_like(b, dtype=_wide(b))
        shares = _shares(a_mask, a), _shares(b_mask, b)
        for rows, columns in _blocks(a, b, ctx.chunk):
            scores = _block(a[rows], b[columns])
            slope = torch.zeros_like(scores)
            if ctx.wanted != "a":
                best = _hidden(scores, b_mask[columns][None, None]).argmax(3, keepdim=True)
                pull = grad_b[rows, columns][:, None, :] * shares[0][rows][:, :, None]
                slope.scatter_(3, best, pull.unsqueeze(3))
            if ctx.wanted != "b":
                best = _hidden(scores, a_mask[rows][:, :, None, None]).argmax(1, keepdim=True)
                pull = grad_a[rows, columns][:, :, None] * shares[1][columns][None]
                slope.scatter_add_(1, best, pull.unsqueeze(1))
            slope = slope.flatten(2).flatten(0, 1)
            left[rows] += (slope @ b[columns].flatten(0, 1).to(slope.dtype)).view_as(left[rows])
            right[columns] += (slope.T @ a[rows].flatten(0, 1).to(slope.dtype)).view_as(right[columns])
        return left.to(a.dtype), right.to(b.dtype), None, None, None, None


def _wide(x: Tensor) -> torch.dtype:
    """What maxima and means are computed in: float32, or float64 where the tokens are."""
    return torch.promote_types(x.dtype, torch.float32)


def _shares(mask: Tensor, like: Tensor) -> Tensor:
    """The weight of each token in its item's mean."""
    return mask.to(_wide(like)) / mask.sum(1, keepdim=True)


def _block(a: Tensor, b: Tensor) -> Tensor:
    """Token similarities ``[n, n1, m, n2]``."""
    scores = (a.flatten(0, 1) @ b.flatten(0, 1).T).to(_wide(a))
    return scores.view(*a.shape[:2], *b.shape[:2])


def _hidden(scores: Tensor, mask: Tensor) -> Tensor:
    """-inf where there is no token; the same tensor where all of them are real."""
    return scores if bool(mask.all()) else scores.masked_fill(~mask, -torch.inf)


def _blocks(a: Tensor, b: Tensor, chunk: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of items of both sides."""
    n, m = len(a), len(b)
    each = a.shape[1] * b.shape[1]
    if chunk is not None:
        height, width = max(1, n), chunk
    elif n * m * each <= _BLOCK:
        height, width = max(1, n), max(1, m)
    else:
        height = max(1, min(n, math.isqrt(_BLOCK // each)))
        width = max(1, _BLOCK // (height * each))
    for row in range(0, n, height):
        for column in range(0, m, width):
            yield slice(row, min(n, row + height)), slice(column, min(m, column + width))

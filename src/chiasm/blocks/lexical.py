"""The lexical head: token vectors against a codebook of words, the best token for each word, a unit vector over the vocabulary.

    s = normalize(elu1p(max_l <h_l, Z_v>)),    elu1p(x) = x + 1 if x >= 0 else e^x

with tokens h ``[N, L, D]`` and words Z ``[V, D]``. elu1p rises everywhere, so it is applied after the maximum: to V numbers an
item instead of L V. The products of all tokens with all words never exist at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chiasm.errors import BadInput

# Products of a block of words: 2**24 floats are 64 MB.
_PRODUCTS = 1 << 24


def elu1p(x: Tensor) -> Tensor:
    """``x + 1`` from 0 up, ``e^x`` below: smooth, never negative, 0 only at -inf."""
    return nn.functional.elu(x) + 1


def best_products(
    tokens: Tensor, mask: Tensor | None, words: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The largest inner product of an item's tokens with each word, and the token it comes from.

    Args:
        tokens: ``[N, L, D]``.
        mask: bool ``[N, L]``, True where a token is there; None if all are.
        words: ``[V, D]``.
        chunk: words at a time; by default so many that a block has 2**24 products.

    Returns:
        ``[N, V]``, and int64 ``[N, V]``, the token (the first of equal ones, which gets the gradient). An item without tokens
        has -inf and -1.

    Raises:
        BadInput: shapes that do not fit together.
    """
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
    if tokens.ndim != 3 or words.ndim != 2 or mask.shape != tokens.shape[:2] or tokens.shape[2] != words.shape[1]:
        raise BadInput(
            f"tokens {tuple(tokens.shape)}, mask {tuple(mask.shape)} and words {tuple(words.shape)} do not fit",
            where="best_products",
        )
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk {chunk} is not positive", where="best_products")
    best, token = _Best.apply(tokens, mask, words, chunk or max(1, _PRODUCTS // max(1, mask.numel())))
    return best, token


class _Best(torch.autograd.Function):
    """The backward pass knows which token won, so no product is computed again."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, mask: Tensor, words: Tensor, chunk: int) -> Any:
        n, length, _ = tokens.shape
        best = tokens.new_full((n, len(words)), -torch.inf)
        token = torch.full((n, len(words)), -1, dtype=torch.long, device=tokens.device)
        hidden = ~mask[..., None]
        for start in range(0, len(words) if length else 0, chunk):
            part = slice(start, start + chunk)
            products = (tokens @ words[part].T).masked_fill_(hidden, -torch.inf)
            best[:, part], token[:, part] = products.max(dim=1)
        token.masked_fill_(~mask.any(dim=1, keepdim=True), -1)
        ctx.chunk = chunk
        ctx.save_for_backward(tokens, words, token)
        ctx.mark_non_differentiable(token)
        return best, token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens, words, token = ctx.saved_tensors
        to_tokens, to_words = torch.zeros_like(tokens), torch.zeros_like(words)
        if not tokens.numel():
            return to_tokens, None, to_words, None
        there = token >= 0
        grad, token = grad.masked_fill(~there, 0.0), token.clamp_min(0)
        for start in range(0, len(words), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            spread = tokens.new_zeros((*tokens.shape[:2], words[part].shape[0]))
            spread.scatter_(1, token[:, None, part], grad[:, None, part])
            to_tokens += spread @ words[part]
            to_words[part] = spread.flatten(0, 1).T @ tokens.flatten(0, 1)
        return to_tokens, None, to_words, None


def lexical(tokens: Tensor, mask: Tensor | None, words: Tensor, *, chunk: int | None = None) -> Tensor:
    """Unit vectors ``[N, V]`` over the vocabulary, all entries positive; zero for an item without tokens.

    Args:
        tokens, mask, words, chunk: as in `best_products`.
    """
    best, _ = best_products(tokens, mask, words, chunk=chunk)
    return unit(elu1p(best))


def lexical_tokens(tokens: Tensor, words: Tensor) -> Tensor:
    """The same for each token on its own: ``[N, L, D]`` -> unit vectors ``[N, L, V]``. Large: choose tokens first."""
    return unit(elu1p(tokens @ words.T))


def sparsify(vectors: Tensor, *, threshold: float | None = None, top: int | None = None) -> Tensor:
    """Small entries become 0; nothing is scaled again.

    Args:
        vectors: ``[..., V]``, non-negative.
        threshold: entries must be larger; None takes ``1 / sqrt(V)``, the value of a uniform unit vector.
        top: keep the so many largest entries instead (those above 0; of equal ones the first).

    Raises:
        BadInput: both ways asked for, or ``top`` below 1.
    """
    size = vectors.shape[-1]
    if top is None:
        return vectors.masked_fill(vectors <= (size**-0.5 if threshold is None else threshold), 0.0)
    if top < 1 or threshold is not None:
        raise BadInput(f"top={top}, threshold={threshold}", where="sparsify", fix="Give one of them, top from 1 up")
    place = vectors.sort(dim=-1, descending=True, stable=True).indices[..., :top]
    return torch.zeros_like(vectors).scatter(-1, place, vectors.gather(-1, place))


def unit(vectors: Tensor) -> Tensor:
    """Rows of length 1; lengths are summed in float32 at least. A row of zeros stays one."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return nn.functional.normalize(wide, dim=-1).to(vectors.dtype)

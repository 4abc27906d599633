"""How well an item matches each code: inner products of its tokens with the codes, pooled over the tokens.

    r[b, c] = pool_n <q_bn, C_c> / sqrt(d)

The products of all tokens with all codes (411 MB at 128 items, 49 patches and 16,384 codes) never exist at once: sum and mean
commute with the product, and the maximum is taken for some codes at a time and computed again in the backward pass.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chiasm.errors import BadInput, unknown_name

Pool = Literal["max", "mean", "sum"]

# Products of a block of codes: 2**24 floats are 64 MB.
_PRODUCTS = 1 << 24


def ground(
    queries: Tensor,
    mask: Tensor,
    codes: Tensor,
    *,
    pool: Pool = "max",
    chunk: int | None = None,
    pads_count: bool = False,
) -> Tensor:
    """Match of items and codes.

    Args:
        queries: ``[N, L, D]``, the query vectors of the tokens.
        mask: bool ``[N, L]``, True where a token is there. An item without any matches all codes equally (0).
        codes: ``[K, D]``.
        pool: over the tokens: ``"max"`` (the paper's best), ``"mean"`` or ``"sum"``.
        chunk: codes at a time for the maximum; by default so many that a block has 2**24 products.
        pads_count: missing tokens match every code with 0 instead of -inf, as in the released code: a floor under the
            maximum of every padded text, and a diluted mean.

    Returns:
        ``[N, K]``.

    Raises:
        BadInput: shapes that do not fit together.
        UnknownName: a pooling that does not exist.
    """
    if queries.ndim != 3 or mask.shape != queries.shape[:2] or queries.shape[2] != codes.shape[1]:
        raise BadInput(
            f"queries {tuple(queries.shape)}, mask {tuple(mask.shape)} and codes {tuple(codes.shape)} do not fit",
            where="ground",
        )
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk {chunk} is not positive", where="ground")
    mask = mask.bool()
    queries = queries / codes.shape[1] ** 0.5
    if pool == "max":
        step = chunk or max(1, _PRODUCTS // max(1, mask.numel()))
        empty = ~mask.any(dim=1, keepdim=True)
        hidden, filler = ~(mask | empty), 0.0 if pads_count else -torch.inf
        blocks = codes.split(step)
        if len(blocks) == 1:
            best = _largest(queries, hidden, codes, filler)
        else:
            parts = [checkpoint(_largest, queries, hidden, block, filler, use_reentrant=False) for block in blocks]
            best = torch.cat([part for part in parts if isinstance(part, Tensor)], dim=1)
        return best.masked_fill(empty, 0.0)
    total = queries.masked_fill(~mask[..., None], 0.0).sum(1)
    if pool == "mean":
        count = torch.full_like(mask[:, 0], mask.shape[1], dtype=torch.long) if pads_count else mask.sum(1)
        total = total / count.clamp_min(1)[:, None]
    elif pool != "sum":
        raise unknown_name("pooling", pool, get_args(Pool))
    return total @ codes.T


def _largest(queries: Tensor, hidden: Tensor, codes: Tensor, filler: float) -> Tensor:
    return (queries @ codes.T).masked_fill(hidden[..., None], filler).amax(dim=1)

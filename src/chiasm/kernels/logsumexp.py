"""Streamed log-sum-exp of inner products: ``log sum_m exp(scale * bank_m . item_j)`` for every item, without the matrix."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, is_torch_array

from chiasm.errors import BadInput

# 2048 x 4096 float32 is 32 MB: large enough for the matrix product to run at full speed, small enough to stay out of the way.
BANK_CHUNK = 2048
ITEM_CHUNK = 4096


def logsumexp_inner(
    bank: Any,
    items: Any,
    scale: float,
    *,
    chunk: int = BANK_CHUNK,
    item_chunk: int = ITEM_CHUNK,
    groups: int | None = None,
) -> Any:
    """``out_j = log sum_m exp(scale * <bank_m, items_j>)``, streamed over both sides.

    Memory is O(M + chunk * item_chunk). The exponent is shifted by an upper bound of it (Cauchy-Schwarz) when that bound is
    tight enough for float32, which is always so for unit vectors and ``|scale| <= 40``; else by the block's own maximum.

    Args:
        bank: ``[B, D]`` with B >= 1.
        items: ``[M, D]`` of the same kind.
        scale: inverse temperature; may be 0 (then the result is ``log B``) or negative.
        chunk: rows of the bank a block.
        item_chunk: items a block.
        groups: cut the bank into that many consecutive parts of equal size, and sum over each; must divide B.

    Returns:
        ``[M]`` of the kind and device of ``items``; with groups ``[groups, M]``.

    Raises:
        BadInput: groups that do not divide the bank.
    """
    xp = array_namespace(bank, items)
    if groups is not None and (groups < 1 or bank.shape[0] % groups):
        raise BadInput(f"{groups} groups do not divide {bank.shape[0]} rows", where="logsumexp_inner")
    out = []
    longest = float(xp.max(xp.sum(bank * bank, axis=1))) ** 0.5 if bank.shape[0] else 0.0
    for start in range(0, items.shape[0], item_chunk):
        block = items[start : start + item_chunk]
        widest = float(xp.max(xp.sum(block * block, axis=1))) ** 0.5
        bound = abs(scale) * longest * widest
        # exp(-2 * bound) must stay a normal float32, or sums of small terms would be lost.
        reduce = _with_fixed_shift if bound <= 40.0 else _with_running_maximum
        scaled = block * scale
        if groups is None:
            out.append(reduce(xp, bank, scaled, bound, chunk))
        else:
            each = bank.shape[0] // groups
            parts = (bank[g * each : (g + 1) * each] for g in range(groups))
            out.append(xp.stack([reduce(xp, part, scaled, bound, chunk) for part in parts]))
    if not out:
        return items[:0, 0] if groups is None else xp.zeros((groups, 0), dtype=items.dtype, device=_device(items))
    return xp.concat(out, axis=-1)


def _with_fixed_shift(xp: Any, bank: Any, scaled: Any, bound: float, chunk: int) -> Any:
    total = xp.zeros(scaled.shape[0], dtype=scaled.dtype, device=_device(scaled))
    for start in range(0, bank.shape[0], chunk):
        block = bank[start : start + chunk] @ scaled.T
        block -= bound
        total = total + xp.sum(_exp_in_place(xp, block), axis=0)
    return xp.log(total) + bound


def _with_running_maximum(xp: Any, bank: Any, scaled: Any, bound: float, chunk: int) -> Any:
    top = xp.full(scaled.shape[0], -xp.inf, dtype=scaled.dtype, device=_device(scaled))
    total = xp.zeros(scaled.shape[0], dtype=scaled.dtype, device=_device(scaled))
    for start in range(0, bank.shape[0], chunk):
        block = bank[start : start + chunk] @ scaled.T
        new = xp.maximum(top, xp.max(block, axis=0))
        block -= new
        total = total * xp.exp(top - new) + xp.sum(_exp_in_place(xp, block), axis=0)
        top = new
    return xp.log(total) + top


def _exp_in_place(xp: Any, block: Any) -> Any:
    """The block is ours, so no second one is needed."""
    if is_torch_array(block):
        return block.exp_()
    return xp.exp(block, out=block)


def _device(array: Any) -> Any:
    return array.device if is_torch_array(array) else None

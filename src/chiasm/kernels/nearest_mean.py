"""Mean similarity to the k nearest rows of a bank, streamed: selection without sorting and without the rows' numbers."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, is_torch_array

# Scores held at once (4 bytes each): 64 MB.
_SCORES = 1 << 24


def nearest_mean(items: Any, bank: Any, k: int, *, chunk: int | None = None) -> Any:
    """``mean of the k largest <item_j, bank_m> over m`` for every item.

    Faster than a top-k where only the mean is wanted: numpy's partition is vectorized, and nothing is sorted.

    Args:
        items: ``[M, D]``, numpy or torch.
        bank: ``[B, D]`` of the same kind, B >= 1.
        k: neighbors; at most B are used.
        chunk: items a block; by default so many that a block of scores has 2**24 values.

    Returns:
        ``[M]`` of the kind and device of ``items``.
    """
    xp = array_namespace(items, bank)
    size = bank.shape[0]
    k = min(k, size)
    step = chunk or max(1, _SCORES // size)
    means = []
    for start in range(0, items.shape[0], step):
        block = items[start : start + step] @ bank.T
        if is_torch_array(block):
            nearest = block.topk(k, dim=1, sorted=False).values
        else:
            block.partition(size - k, axis=1)
            nearest = block[:, size - k :]
        means.append(xp.mean(nearest, axis=1))
    return xp.concat(means) if means else items[:0, 0]

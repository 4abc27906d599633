"""Multiply-adds of transformer blocks, twice: what a reduction of tokens should save, to hold its wall time against."""

from __future__ import annotations

from collections.abc import Sequence

from chiasm.errors import BadInput


def block_flops(queries: int, width: int, inner: int, *, keys: int | None = None, gated: bool = False) -> int:
    """FLOPs of one block on one sequence: projections, attention, perceptron (norms and biases are left out).

    Args:
        queries: tokens T that pass the block's attention.
        width: D.
        inner: width of the perceptron.
        keys: tokens that are attended to; default T.
        gated: the perceptron has three matrices (Llama) instead of two.
    """
    keys = queries if keys is None else keys
    return 2 * (
        4 * queries * width * width + 2 * queries * keys * width + (3 if gated else 2) * queries * width * inner
    )


def stack_flops(before: Sequence[int], after: Sequence[int], width: int, inner: int, *, gated: bool = False) -> int:
    """FLOPs of a stack whose blocks see fewer and fewer tokens.

    Args:
        before: tokens in the attention of each block.
        after: tokens in its perceptron (the same, unless tokens are merged inside the block).
        width, inner, gated: see `block_flops`.

    Raises:
        BadInput: lists of different lengths.
    """
    if len(before) != len(after):
        raise BadInput(
            f"{len(before)} and {len(after)} layers", where="stack_flops", fix="Give both with one number a layer"
        )
    perceptron = (3 if gated else 2) * width * inner
    return sum(2 * (4 * t * width**2 + 2 * t * t * width + rest * perceptron) for t, rest in zip(before, after))


def matching_flops(tokens: int, width: int, *, bipartite: bool = False) -> int:
    """FLOPs of the similarities that a matching needs: all pairs, or a quarter of them."""
    return 2 * tokens * tokens * width // (4 if bipartite else 1)

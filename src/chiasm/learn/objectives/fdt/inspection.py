"""What the codes have come to mean: the items and tokens that match a code best, and whether pairs share their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.held_out import Direction, Encoded

if TYPE_CHECKING:
    from chiasm.learn.objectives.fdt.codebook import FDT


@torch.no_grad()
def item_weights(objective: FDT, items: Encoded, side: Direction, *, chunk: int = 1024) -> Tensor:
    """Weights over the codes of encoded items, ``[N, K]``."""
    return _by_item(objective, items, side, chunk, objective.weights)


@torch.no_grad()
def top_items(
    objective: FDT, items: Encoded, side: Direction, *, k: int = 5, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """The items that match each code best: what the code means.

    Args:
        objective: the trained objective.
        items: N encoded items of a corpus.
        side: their side.
        k: how many.
        chunk: items at a time.

    Returns:
        Matches (before the temperature) and item numbers, ``[K, k]`` each, the best first.
    """
    match = _by_item(objective, items, side, chunk, objective.match)
    best = match.T.topk(min(k, len(match)), dim=1)
    return best.values, best.indices


@torch.no_grad()
def grounded_tokens(objective: FDT, items: Encoded, side: Direction, code: int, *, k: int = 5) -> tuple[Tensor, Tensor]:
    """Which tokens (patches, words) of each item match a code best.

    Args:
        objective: the trained objective.
        items: N encoded items with tokens.
        side: their side.
        code: the code's number.
        k: tokens an item.

    Returns:
        Inner products with the code and token numbers, ``[N, k]`` each; -inf where an item has fewer tokens.

    Raises:
        BadInput: a code that is not there, or items without tokens.
    """
    if items.tokens is None or not 0 <= code < objective.codes.shape[1]:
        raise BadInput(
            f"code {code} of {objective.codes.shape[1]}", where="grounded_tokens", fix="Give tokens and a code below K"
        )
    tokens = items.tokens.to(objective.codes.device)
    products = objective.queries(tokens, side) @ objective.book(side)[code]
    if items.mask is not None:
        products = products.masked_fill(~items.mask.to(products.device).bool(), -torch.inf)
    best = products.topk(min(k, products.shape[1]), dim=1)
    return best.values, best.indices


@dataclass(frozen=True)
class CodeUse:
    """How a corpus uses the codes.

    Args:
        count: int ``[K]``, the items in whose support each code is.
        active: mean share of the codes that are active in an item.
        used: share of the codes that are active in any item.
    """

    count: Tensor
    active: float
    used: float


def code_use(weights: Tensor) -> CodeUse:
    """How the codes are used, from the weights ``[N, K]`` of a corpus."""
    on = weights > 0
    count = on.sum(0)
    return CodeUse(count, float(on.float().mean()), float((count > 0).float().mean()))


def support_iou(a: Tensor, b: Tensor) -> Tensor:
    """Overlap of the active codes of pairs, ``[N]``: size of the intersection by size of the union.

    Args:
        a: weights ``[N, K]``.
        b: weights ``[N, K]``; row i belongs to row i of ``a``.

    Raises:
        BadInput: shapes that differ.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise BadInput(f"weights {tuple(a.shape)} and {tuple(b.shape)} are not pairs", where="support_iou")
    on_a, on_b = a > 0, b > 0
    return (on_a & on_b).sum(1) / (on_a | on_b).sum(1).clamp_min(1)


def _by_item(objective: FDT, items: Encoded, side: Direction, chunk: int, what: object) -> Tensor:
    tokens, mask = (items.vectors, None) if items.tokens is None else (items.tokens, items.mask)
    device = objective.codes.device
    parts = [
        what(  # pyright: ignore[reportCallIssue]
            tokens[at : at + chunk].to(device), None if mask is None else mask[at : at + chunk].to(device), side
        ).cpu()
        for at in range(0, len(tokens), chunk)
    ]
    return torch.cat(parts)

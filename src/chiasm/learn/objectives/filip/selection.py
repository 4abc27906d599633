"""Which tokens take part: the strongest of a batch while training, and which are kept when tokens are stored.

Section 3.1 of FILIP keeps, in training, 25 % of each sample's tokens: those whose maximum similarity with the other
side of the local batch is largest. For storage (not in the paper): the strongest tokens by a measure of your choice, or
similar tokens merged into few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.filip.interaction import token_strength, unit_tokens


def strongest(tokens: Tensor, mask: Tensor, strength: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """The strongest tokens of each item, ``ceil(keep * n)`` of its n tokens, in falling strength.

    Args:
        tokens: ``[N, L, D]``; gradients flow through what is kept, not through the choice.
        mask: bool ``[N, L]``.
        strength: ``[N, L]``.
        keep: share in (0, 1]; the paper keeps 0.25.

    Returns:
        ``[N, K, D]`` and the mask ``[N, K]``, K the most that any item keeps; an item with tokens keeps at least one.

    Raises:
        BadInput: a share outside (0, 1].
    """
    _check_share(keep)
    # Rounded first: 0.3 * 10 is 3.0000000000000004 in floating point.
    counts = (keep * mask.sum(1).double()).mul(1e9).round().div(1e9).ceil().long()
    width = max(1, int(counts.max())) if len(counts) else 1
    order = strength.masked_fill(~mask, -torch.inf).topk(width, dim=1).indices
    inside = torch.arange(width, device=tokens.device)[None, :] < counts[:, None]
    picked = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
    return picked.masked_fill(~inside[:, :, None], 0), inside


def select_locally(
    a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor, keep: float, local: int | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """FILIP's choice of tokens in training: each local batch judges its own tokens.

    Args:
        a: unit tokens ``[N, n1, D]``.
        b: unit tokens ``[N, n2, D]``; row i belongs to row i of ``a``.
        a_mask: bool ``[N, n1]``.
        b_mask: bool ``[N, n2]``.
        keep: share in (0, 1].
        local: pairs that judge together: the batch of one process, whose pairs stand together; default all.

    Returns:
        Tokens and mask of ``a``, and those of ``b``, as `strongest` gives them.
    """
    step = max(1, local or max(len(a), len(b)))
    found = [
        token_strength(a[i : i + step], b[i : i + step], a_mask[i : i + step], b_mask[i : i + step])
        for i in range(0, max(len(a), len(b)), step)
    ]
    strong_a, strong_b = (torch.cat(side) for side in zip(*found))
    return strongest(a, a_mask, strong_a, keep), strongest(b, b_mask, strong_b, keep)


def keep_tokens(items: Encoded, keep: float = 0.25, *, by: Tensor | str = "norm", bank: Any = None) -> Encoded:
    """Fewer tokens for storage: the strongest of each item.

    Args:
        items: what a model gives, with tokens.
        keep: share in (0, 1]; default 0.25, the share that the paper keeps in training.
        by: ``"norm"``: the token's length before it is scaled to 1; ``"bank"``: its largest similarity with the tokens of
            ``bank`` (typical queries); or strengths ``[N, L]`` of your own, such as the attention that a token receives.
        bank: `Encoded` with tokens, for ``by="bank"``.

    Returns:
        The same vectors with ``[N, K, D]`` tokens, not scaled.

    Raises:
        BadInput: no tokens, a share outside (0, 1], an unknown ``by``, or a missing bank.
    """
    tokens, mask = _tokens_of(items)
    if isinstance(by, Tensor):
        strength = by
    elif by == "norm":
        strength = tokens.norm(dim=-1)
    elif by == "bank":
        if bank is None:
            raise BadInput("by='bank' needs a bank", where="keep_tokens", fix="Give the encoded queries as bank=...")
        strength = token_strength(*_sides(unit_tokens(tokens, mask), unit_tokens(*_tokens_of(bank))))[0]
    else:
        raise BadInput(f"by={by!r} does not exist", where="keep_tokens", fix="Use 'norm', 'bank' or a tensor [N, L]")
    if strength.shape != mask.shape:
        raise BadInput(f"strengths {tuple(strength.shape)} for tokens {tuple(mask.shape)}", where="keep_tokens")
    return Encoded(items.vectors, *strongest(tokens, mask, strength, keep))


@torch.no_grad()
def merge_tokens(items: Encoded, most: int = 12, *, rounds: int = 10) -> Encoded:
    """Fewer tokens for storage: similar tokens of an item are replaced by the direction of their mean (k-means on the sphere).

    Starts from the token nearest the item's mean, then always the token farthest from all centers; all items at once.

    Args:
        items: what a model gives, with tokens.
        most: tokens an item keeps at most; 12 as in the card. An item with fewer keeps its own.
        rounds: rounds of k-means.

    Returns:
        The same vectors with ``[N, min(most, L), D]`` unit tokens.

    Raises:
        BadInput: no tokens, or ``most`` below 1.
    """
    if most < 1:
        raise BadInput(f"most={most} keeps no token", where="merge_tokens")
    tokens, mask = unit_tokens(*_tokens_of(items))
    n, length, dim = tokens.shape
    width = min(most, length)
    centers = tokens.new_zeros((n, width, dim))
    nearness = torch.einsum("nld,nd->nl", tokens, tokens.sum(1)).masked_fill(~mask, -torch.inf)
    at, rows = nearness.argmax(1), torch.arange(n)
    closest = tokens.new_full((n, length), -torch.inf)
    for k in range(width):
        centers[:, k] = tokens[rows, at]
        closest = torch.maximum(closest, torch.einsum("nld,nd->nl", tokens, centers[:, k]))
        # The next center is the token that all centers are farthest from.
        at = closest.masked_fill(~mask, torch.inf).argmin(1)
    used = torch.arange(width)[None, :] < mask.sum(1, keepdim=True)
    for _ in range(rounds):
        scores = torch.einsum("nld,nkd->nlk", tokens, centers).masked_fill(~used[:, None], -torch.inf)
        nearest = nn.functional.one_hot(scores.argmax(2), width).to(tokens.dtype) * mask.unsqueeze(-1)
        sums = torch.einsum("nlk,nld->nkd", nearest, tokens)
        moved = nn.functional.normalize(sums, dim=-1)
        # A center that lost all its tokens (or whose tokens cancel out) stays where it is.
        centers = torch.where(sums.norm(dim=-1, keepdim=True) > 1e-6, moved, centers)
    return Encoded(items.vectors, centers.masked_fill(~used.unsqueeze(-1), 0), used)


def _sides(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return a[0], b[0], a[1], b[1]


def _tokens_of(items: Encoded) -> tuple[Tensor, Tensor]:
    if items.tokens is None:
        raise BadInput("these items have no tokens", where="filip", fix="Encode them with a model that gives tokens")
    mask = torch.ones(items.tokens.shape[:2], dtype=torch.bool) if items.mask is None else items.mask.bool()
    return items.tokens, mask


def _check_share(keep: float) -> None:
    if not 0 < keep <= 1:
        raise BadInput(f"keep={keep} is no share in (0, 1]", where="filip")

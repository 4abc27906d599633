"""Which text and which negatives the multilingual matching loss looks at: drawn by how hard they are, without a gradient."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from chiasm.errors import unknown_name

Choice = Literal["uniform", "worst", "worst-similarity"]

# No weight is exactly zero unless it must be, as in the released code.
_LEAST = 1e-5


@torch.no_grad()
def choose_languages(scores: Tensor, present: Tensor, generator: torch.Generator, choice: Choice = "worst") -> Tensor:
    """One language for each item.

    Args:
        scores: ``[N, N K]``, tempered, of all items and all texts, item by item (column ``j K + k``).
        present: bool ``[N, K]``.
        generator: of the CPU.
        choice: ``"uniform"``; ``"worst"`` (the default of the released code): with weight ``max p - p_ik`` for the
            probability p of the item's own text k among all texts, so languages that match worst are drawn more; or
            ``"worst-similarity"``: the same on the scores themselves.

    Returns:
        Language numbers ``[N]``; -1 for an item without a text.

    Raises:
        UnknownName: a choice that does not exist.
    """
    n, k = present.shape
    if choice == "uniform":
        weight = torch.ones_like(present, dtype=torch.float32)
    elif choice in get_args(Choice):
        scores = scores.float().masked_fill(~present.flatten(), -torch.inf)
        value = torch.softmax(scores, dim=1).nan_to_num(0.0) + _LEAST if choice == "worst" else scores
        own = value.view(n, n, k)[torch.arange(n), torch.arange(n)]
        top = value[value.isfinite()].max() if bool(value.isfinite().any()) else value.new_zeros(())
        weight = (top + _LEAST - own).clamp_min(0)
    else:
        raise unknown_name("way to choose a language", choice, get_args(Choice))
    return _draw(weight.masked_fill(~present, 0.0), generator)


@torch.no_grad()
def choose_negatives(
    scores: Tensor, present: Tensor, chosen: Tensor, groups: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Hard negatives: a text for each item, and an item for each chosen text, drawn by their probability.

    Args:
        scores: ``[N, N K]``, as in `choose_languages`.
        present: bool ``[N, K]``.
        chosen: languages ``[N]`` of `choose_languages`.
        groups: ids ``[N]``; members of a group are no negatives of each other.
        generator: of the CPU.

    Returns:
        Text numbers ``j K + k`` ``[N]`` and item numbers ``[N]``; -1 where there is no negative.
    """
    n, k = present.shape
    same = groups[:, None] == groups[None, :]
    # An item without a text has no positive, so nothing is drawn for it.
    there = chosen >= 0
    texts = scores.float().masked_fill(~present.flatten(), -torch.inf)
    weight = torch.softmax(texts, dim=1).nan_to_num(0.0) + _LEAST
    hidden = same.repeat_interleave(k, dim=1) | ~present.flatten() | ~there[:, None]
    text = _draw(weight.masked_fill(hidden, 0.0), generator)
    column = scores.float()[:, torch.arange(n, device=scores.device) * k + chosen.clamp_min(0)].T
    weight = torch.softmax(column, dim=1) + _LEAST
    item = _draw(weight.masked_fill(same | ~there[:, None], 0.0), generator)
    return text, item


def _draw(weight: Tensor, generator: torch.Generator) -> Tensor:
    """One column a row with probability proportional to its weight; -1 for rows of zeros."""
    possible = weight.sum(dim=1) > 0
    safe = torch.where(possible[:, None], weight, torch.ones_like(weight)).cpu()
    found = torch.multinomial(safe, 1, generator=generator)[:, 0].to(weight.device)
    return found.masked_fill(~possible, -1)

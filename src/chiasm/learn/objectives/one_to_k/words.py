"""Which words the cross-modal masked language modelling hides: single words and short spans."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.errors import BadInput


def mask_spans(
    ids: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    *,
    mask_id: int = 2,
    vocabulary: int | None = None,
    share: float = 0.4,
    most: int = 12,
    longest: int = 40,
    span_chance: float = 0.2,
    span: int = 3,
    first_word: int = 3,
) -> tuple[Tensor, Tensor]:
    """Hides words of sentences.

    Every word gets a random rank; with probability ``span_chance`` it takes the one or two words behind it along (skip-gram
    spans of 2 to ``span`` words). The words of the best rank are hidden, ``share`` of a sentence but at least one and at most
    ``most``. Of the hidden ones 80 % become the mask, 10 % a random word, 10 % stay [as in BERT; the card does not say].

    Args:
        ids: int64 ``[N, L]``.
        mask: bool ``[N, L]``, True where a word is.
        generator: of the CPU.
        mask_id: id of the mask; 2 as in `chiasm.learn.words`.
        vocabulary: number of ids, for the random words; None puts the mask in their place.
        share, most, longest: 0.4, 12 masks, 40 words, as in the paper's code; words behind the first ``longest`` are never hidden.
        span_chance, span: 0.2 and 3, as in the paper's code.
        first_word: smallest id of a word (those below are special).

    Returns:
        The sentences with words hidden, and bool ``[N, L]``, True at hidden words. Inputs are not changed.

    Raises:
        BadInput: shapes that differ, or shares outside 0..1.
    """
    if ids.shape != mask.shape or ids.ndim != 2:
        raise BadInput(f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)}", where="mask_spans")
    if not 0 <= share <= 1 or not 0 <= span_chance <= 1 or most < 1 or span < 1:
        raise BadInput(f"share {share}, span_chance {span_chance}, most {most}, span {span}", where="mask_spans")
    n, length = ids.shape
    free = mask.bool() & (torch.arange(length, device=ids.device) < longest)
    draw = torch.rand(4, n, length, generator=generator).to(ids.device)
    rank = draw[0].masked_fill(~free, torch.inf)
    size = torch.where(draw[1] < span_chance, 2 + (draw[2] * (span - 1)).long().clamp(max=max(0, span - 2)), 1)
    reached = rank.clone()
    for behind in range(1, min(span, length)):  # a span's words take over the rank of its first word
        before = rank[:, :-behind].masked_fill(size[:, :-behind] <= behind, torch.inf)
        reached[:, behind:] = torch.minimum(reached[:, behind:], before)
    reached = reached.masked_fill(~free, torch.inf)
    words = free.sum(dim=1)
    count = (words * share).round().long().clamp(1, most).minimum(words)
    place = reached.argsort(dim=1, stable=True).argsort(dim=1)
    hidden = (place < count[:, None]) & free
    what = draw[3]
    new = torch.full_like(ids, mask_id)
    if vocabulary is not None and vocabulary > first_word:
        drawn = torch.randint(first_word, vocabulary, (n, length), generator=generator).to(ids)
        new = torch.where(what < 0.1, drawn, new)
    new = torch.where(what >= 0.9, ids, new)
    return torch.where(hidden, new, ids), hidden

"""Reading lexical vectors: top words, what a score consists of, which patches answer a query, how words are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.objectives.lexvla.vocabulary import Vocabulary

Names = Vocabulary | Sequence[str]


def top_words(vectors: Tensor, words: Names, k: int = 5) -> list[list[tuple[str, float]]]:
    """The strongest words of each vector (of an item, a patch or a token).

    Args:
        vectors: ``[N, V]``.
        words: their names.
        k: at most so many; words that are 0 are left out.
    """
    names = _names(words, vectors)
    best = vectors.detach().topk(min(k, vectors.shape[-1]), dim=-1)
    return [
        [(str(names[int(i)]), float(x)) for x, i in zip(values, places) if x > 0]
        for values, places in zip(best.values.tolist(), best.indices.tolist())
    ]


def explain(a: Tensor, b: Tensor, words: Names, k: int | None = None) -> list[tuple[str, float]]:
    """What the score of two items consists of: ``a_v * b_v`` of each word both have, the largest first.

    All parts together are the score. Of items in an index, `chiasm.search.word_index.WordIndex.explain` says the same.

    Args:
        a, b: ``[V]``.
        words: their names.
        k: only the so many largest.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise BadInput(f"vectors {tuple(a.shape)} and {tuple(b.shape)}", where="explain", fix="Give two vectors [V]")
    parts = (a * b).detach()
    return top_words(parts[None], words, len(parts) if k is None else k)[0]


def best_patches(patches: Tensor, query: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """The patches that answer a query best.

    Args:
        patches: ``[L, V]``, of `LexVLA.patches`.
        query: ``[V]``.
        k: how many.

    Returns:
        Scores ``[k]``, falling, and places.
    """
    best = (patches @ query).topk(min(k, len(patches)))
    return best.values, best.indices


@dataclass(frozen=True)
class WordUse:
    """How the words are used by N items.

    Args:
        active: mean number of words of an item.
        busiest: share of the items that have a word, mean over the ten words that most have: how long the longest lists are.
        weight: share of all weight that lies on the ten weightiest words.
        dead: share of words that no item uses.
    """

    active: float
    busiest: float
    weight: float
    dead: float


def word_use(vectors: Tensor, most: int = 10) -> WordUse:
    """Use of the words in sparse vectors ``[N, V]``; ``most``: how many words count as the busiest."""
    on = vectors > 0
    share, weight = on.float().mean(0), vectors.float().sum(0)
    most = min(most, len(weight))
    return WordUse(
        active=float(on.sum(1).float().mean()),
        busiest=float(share.topk(most).values.mean()),
        weight=float(weight.topk(most).values.sum() / weight.sum().clamp_min(1e-12)),
        dead=float((share == 0).float().mean()),
    )


def word_recall(vectors: Tensor, truth: Tensor) -> Tensor:
    """Share of each item's true words that are active, ``[N]``; NaN for an item without any.

    Args:
        vectors: sparse ``[N, V]``.
        truth: bool ``[N, V]``.
    """
    return ((vectors > 0) & truth).sum(1) / truth.sum(1)


def word_precision(vectors: Tensor, truth: Tensor) -> Tensor:
    """Share of each item's active words that are true, ``[N]``; NaN for an item without active words."""
    on = vectors > 0
    return (on & truth).sum(1) / on.sum(1)


def _names(words: Names, vectors: Tensor) -> Sequence[str]:
    names: Sequence[str] = words.words if isinstance(words, Vocabulary) else words
    if len(names) != vectors.shape[-1]:
        raise BadInput(f"{len(names)} names for vectors of length {vectors.shape[-1]}", where="top_words")
    return names

"""The 1-to-K loss (KDD 2024, arXiv 2406.18254) and what it is compared with. All of them are InfoNCE; they differ in who
competes with whom.

With unit vectors v ``[N, D]`` and t ``[N, K, D]`` (K languages), and S = v t / temperature:

    1-to-K         every v against all N K texts, its K own ones each with target 1/K; every text against the N items
    pivot          v and the pivot language; the pivot language and each other one
    1-to-1         v and one language, drawn anew for each item
    per language   v and language k for each k on its own: N instead of N K texts compete

A missing text is neither positive nor negative anywhere; an item with K_i texts has targets 1/K_i.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from chiasm.learn.contrastive import info_nce

Mode = Literal["1-to-k", "pivot", "1-to-1", "per-language"]
Weight = Literal["paper", "reference"]
Losses = dict[str, Tensor]


def one_to_k(
    v: Tensor,
    t: Tensor,
    present: Tensor,
    *,
    scale: Tensor | float,
    groups: Tensor,
    t2i_weight: Weight = "paper",
    chunk: int | None = None,
) -> Losses:
    """Every item against all texts of all languages, and back.

    Args:
        v: unit rows ``[N, D]``.
        t: unit rows ``[N, K, D]``.
        present: bool ``[N, K]``, False where a text is missing.
        scale: inverse temperature.
        groups: ids ``[N]``; texts of the same group are positives too.
        t2i_weight: ``"paper"`` weights both directions alike; ``"reference"`` weights text to item by 1/K, which is what the
            released arithmetic comes to.
        chunk: of `info_nce`.

    Returns:
        ``a_to_b`` (half the mean over items) and ``b_to_a`` (half the mean over texts); 0 if no text is there.
    """
    if not bool(present.any()):
        return _nothing(v, t)
    of = groups[:, None].expand_as(present)[present]
    losses = info_nce(v, t[present], scale=scale, groups=(groups, of), chunk=chunk)
    if t2i_weight == "reference":
        losses["b_to_a"] = losses["b_to_a"] / t.shape[1]
    return losses


def pivot(
    v: Tensor,
    t: Tensor,
    present: Tensor,
    *,
    scale: Tensor | float,
    groups: Tensor,
    language: int = 0,
    chunk: int | None = None,
) -> Losses:
    """Items and the pivot language, and the pivot language and each other one (mean over these), as cross-lingual models do.

    Args:
        v, t, present, scale, groups, chunk: as in `one_to_k`.
        language: number of the pivot language.

    Returns:
        ``a_to_b``, ``b_to_a`` with the pivot, and ``pivot_to_others``.
    """
    losses = _between(v, t[:, language], present[:, language], scale, groups, chunk)
    others = [k for k in range(t.shape[1]) if k != language]
    total = v.new_zeros(())
    for k in others:
        both = present[:, language] & present[:, k]
        parts = _between(t[:, language], t[:, k], both, scale, groups, chunk)
        total = total + (parts["a_to_b"] + parts["b_to_a"]) / len(others)
    return {**losses, "pivot_to_others": total} if others else losses


def one_to_one(
    v: Tensor,
    t: Tensor,
    present: Tensor,
    *,
    scale: Tensor | float,
    groups: Tensor,
    generator: torch.Generator,
    chunk: int | None = None,
) -> Losses:
    """Items and one of their texts, drawn uniformly, as cross-modal models do.

    Args:
        v, t, present, scale, groups, chunk: as in `one_to_k`.
        generator: of the CPU; decides the languages.
    """
    draw = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, -1)
    some = draw.argmax(dim=1)
    rows = torch.arange(len(v), device=v.device)
    return _between(v, t[rows, some], present.any(dim=1), scale, groups, chunk)


def per_language(
    v: Tensor, t: Tensor, present: Tensor, *, scale: Tensor | float, groups: Tensor, chunk: int | None = None
) -> Losses:
    """The mean over K separate InfoNCE losses, one a language, so that its size compares with `one_to_k`.

    Args:
        v, t, present, scale, groups, chunk: as in `one_to_k`.
    """
    parts = [_between(v, t[:, k], present[:, k], scale, groups, chunk) for k in range(t.shape[1])]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in ("a_to_b", "b_to_a")}


def _between(x: Tensor, y: Tensor, there: Tensor, scale: Any, groups: Tensor, chunk: int | None) -> Losses:
    """InfoNCE between the rows that are there on both sides."""
    if not bool(there.any()):
        return _nothing(x, y)
    return info_nce(x[there], y[there], scale=scale, groups=groups[there], chunk=chunk)


def _nothing(x: Tensor, y: Tensor) -> Losses:
    """Zeros that have a gradient, so that a batch without texts does not stop a training."""
    zero = 0.0 * (x.sum() + y.sum())
    return {"a_to_b": zero, "b_to_a": zero}

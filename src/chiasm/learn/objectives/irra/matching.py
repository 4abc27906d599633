"""Similarity distribution matching (SDM) and its ancestor CMPM: reverse KL between the batch's softmax and who matches whom.

    p_ij = softmax_j(S_ij),    q_ij = match_ij / sum_k match_ik,    loss = mean_i sum_j p_ij (log p_ij - log(q_ij + eps))

in both directions, added. KL(p || q) seeks modes: mass on a wrong item costs log(1 / eps) = 18.4 nats, mass on any one of
several right items is nearly free, whereas cross-entropy (the forward KL) asks for equal mass on all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput

# 1e-8 as in the paper and its code.
EPS = 1e-8


def match_targets(groups: Tensor, images: Tensor | None = None, factor: float = 0.3) -> Tensor:
    """Who matches whom: the distribution q.

    Args:
        groups: int ``[N]``; equal numbers are one identity.
        images: int ``[N]``, the picture of each pair; default: all matches of an identity count alike.
        factor: weight of a pair of the same identity with another picture; 0.3 as in the released code.

    Returns:
        float32 ``[N, N]``, rows of sum 1.

    Raises:
        BadInput: arrays that are not ``[N]``, or a factor outside 0..1.
    """
    if groups.ndim != 1 or (images is not None and images.shape != groups.shape):
        shapes = tuple(groups.shape), None if images is None else tuple(images.shape)
        raise BadInput(f"groups and images of shapes {shapes[0]} and {shapes[1]}", where="match_targets")
    if not 0 <= factor <= 1:
        raise BadInput(f"factor {factor} is outside 0..1", where="match_targets")
    match = (groups[:, None] == groups[None, :]).float()
    if images is not None:
        match = torch.where(images[:, None] == images[None, :], match, factor * match)
    return match / match.sum(dim=1, keepdim=True)


def sdm(a: Tensor, b: Tensor, targets: Tensor | None = None, *, scale: float = 50.0, eps: float = EPS) -> Tensor:
    """Similarity distribution matching.

    Args:
        a, b: ``[N, D]``; scores are cosines. Memory is O(N^2).
        targets: ``[N, N]``, rows of sum 1, of a symmetric match (`match_targets`); default: row i matches row i.
        scale: inverse temperature; 50 (temperature 0.02, fixed) as in the paper.
        eps: what a wrong item's target is; 1e-8.

    Returns:
        The loss of both directions added, a scalar; not below ``-2 eps N``.
    """
    a, b = nn.functional.normalize(a.float(), dim=-1), nn.functional.normalize(b.float(), dim=-1)
    scores = scale * (a @ b.T)
    return _reverse_kl(scores, _or_pairs(targets, scores), eps) + _reverse_kl(scores.T, _or_pairs(targets, scores), eps)


def cmpm(a: Tensor, b: Tensor, targets: Tensor | None = None, *, eps: float = EPS) -> Tensor:
    """Cross-modal projection matching (Zhang and Lu 2018, ECCV), the baseline: no temperature, only the candidates unit.

    Args:
        a, b: ``[N, D]``; a query is projected on the unit vectors of the other side.
        targets, eps: as in `sdm`.
    """
    a, b = a.float(), b.float()
    forth = a @ nn.functional.normalize(b, dim=-1).T
    back = b @ nn.functional.normalize(a, dim=-1).T
    return _reverse_kl(forth, _or_pairs(targets, forth), eps) + _reverse_kl(back, _or_pairs(targets, back), eps)


def _or_pairs(targets: Tensor | None, scores: Tensor) -> Tensor:
    if scores.shape[0] != scores.shape[1] or not len(scores):
        raise BadInput(f"{scores.shape[0]} and {scores.shape[1]} rows are not pairs", where="sdm")
    if targets is None:
        return torch.eye(len(scores), device=scores.device)
    if targets.shape != scores.shape:
        raise BadInput(f"targets {tuple(targets.shape)} for {len(scores)} pairs", where="sdm")
    return targets.to(scores)


def _reverse_kl(scores: Tensor, targets: Tensor, eps: float) -> Tensor:
    log_p = torch.log_softmax(scores, dim=1)
    return (log_p.exp() * (log_p - (targets + eps).log())).sum(dim=1).mean()

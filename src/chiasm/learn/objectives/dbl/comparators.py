"""What boosting is compared with: ways to learn from an anchor's score matrix by imitating it, and a softmax form of boosting.

All take the scores of the target and of the anchor, ``[B, B]`` with matched pairs on the diagonal; the anchor gets no gradient.
``same`` (bool ``[B, B]``) marks pairs of one group: off the diagonal they do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.learn.contrastive import info_nce
from chiasm.learn.objectives.dbl.boosting import _checked


def distillation(scores: Tensor, anchor: Tensor, *, scale: float = 10.0, same: Tensor | None = None) -> Tensor:
    """KL(softmax(scale S) || softmax(scale A)) over rows and over columns, mean over the batch (KD, arXiv 1503.02531).

    In both branches at once it is mutual learning (DML, arXiv 1706.00384).
    """
    hidden = _hidden(scores, anchor, same)
    total = scores.new_zeros(())
    for s, a, mask in ((scores, anchor, hidden), (scores.T, anchor.T, hidden.T)):
        ours = (s * scale).masked_fill(mask, -torch.inf).log_softmax(1)
        theirs = (a.detach() * scale).masked_fill(mask, -torch.inf).log_softmax(1)
        # At a hidden pair both are -inf, and -inf - -inf would be NaN.
        ratio = ours.masked_fill(mask, 0) - theirs.masked_fill(mask, 0)
        total = total + (ours.exp() * ratio).sum(1).mean()
    return total


def relational(scores: Tensor, anchor: Tensor, *, scale: float = 10.0, same: Tensor | None = None) -> Tensor:
    """Smooth L1 between scaled scores, mean over all pairs (after RKD, arXiv 1904.05068)."""
    seen = ~_hidden(scores, anchor, same)
    return torch.nn.functional.smooth_l1_loss(scores[seen] * scale, anchor.detach()[seen] * scale)


def similarity_preserving(scores: Tensor, anchor: Tensor, *, scale: float = 10.0, same: Tensor | None = None) -> Tensor:
    """Squared difference of score rows of unit length, mean over rows, times ``scale`` (after SP, arXiv 1907.09682)."""
    hidden = _hidden(scores, anchor, same)
    ours, theirs = (torch.nn.functional.normalize(x.masked_fill(hidden, 0), dim=1) for x in (scores, anchor.detach()))
    return scale * (ours - theirs).square().sum(1).mean()


def dark_rank(
    scores: Tensor,
    anchor: Tensor,
    *,
    alpha: float = 3.0,
    beta: float = 3.0,
    length: int = 4,
    same: Tensor | None = None,
) -> Tensor:
    """Likelihood, under the target, of the order of the anchor's ``length`` best candidates (DarkRank, arXiv 1707.01220).

    Candidates are worth ``-alpha * d^beta`` with d the distance of the unit vectors, ``d^2 = 2 - 2 S``; 3, 3 and 4 as in the
    comparison of the paper. Mean over rows.
    """
    hidden = _hidden(scores, anchor, same)
    worth = -alpha * (2 - 2 * scores).clamp_min(0).pow(beta / 2)
    length = min(length, scores.shape[1])
    order = anchor.detach().masked_fill(hidden, -torch.inf).topk(length, dim=1).indices
    ranked, gone = worth.gather(1, order), hidden.gather(1, order)
    ranked = ranked.masked_fill(gone, -torch.inf)
    # Plackett-Luce: each candidate against itself and those after it.
    rest = ranked.flip(1).logcumsumexp(1).flip(1)
    return (rest.masked_fill(gone, 0) - ranked.masked_fill(gone, 0)).sum(1).mean()


def softmax_boost(scores: Tensor, anchor: Tensor, *, scale: float = 10.0, same: Tensor | None = None) -> Tensor:
    """Cross-entropy of softmax(scale (S - A)) against the matched pairs, rows and columns: relative boosting in softmax form.

    The reference calls it "boostpro". It suits models that were trained with InfoNCE.
    """
    hidden = _hidden(scores, anchor, same)
    gained = scores - anchor.detach()
    # The matrix itself as vectors against unit vectors: the inner products are its entries.
    unit = torch.eye(len(gained), dtype=gained.dtype, device=gained.device)
    return 2 * torch.stack(list(info_nce(gained, unit, scale=scale, ignore=hidden).values())).sum()


def _hidden(scores: Tensor, anchor: Tensor, same: Tensor | None) -> Tensor:
    """Pairs of one group off the diagonal."""
    same = _checked(scores, anchor, same, "max", "sum")
    return same & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)

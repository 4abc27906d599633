"""The hinge losses of DBL on score matrices (Diao and others 2024, arXiv 2404.18114).

S are the scores of the target branch, A those of the anchor branch on the same batch, both ``[B, B]`` with the matched pairs
on the diagonal; A never gets a gradient. [x]+ = max(x, 0), m the margin; every sum over rows has its twin over columns:

    triplet    sum_i max_j [ m + S_ij - S_ii ]+
    relative   sum_i max_j [ m + (A_ii - A_ij) - (S_ii - S_ij) ]+         the gap must exceed the anchor's gap
    absolute   2 sum_i [ g m + A_ii - S_ii ]+  +  sum_i max_j [ (1 - g) m + S_ij - A_ij ]+
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from chiasm.errors import BadInput, unknown_name

Negatives = Literal["max", "sum", "mean"]
Reduction = Literal["sum", "mean"]
Margin = Literal["fixed", "hard", "soft"]

NEGATIVES = ("max", "sum", "mean")
REDUCTIONS = ("sum", "mean")
MARGINS = ("fixed", "hard", "soft")


def triplet(
    scores: Tensor,
    margin: float = 0.2,
    *,
    same: Tensor | None = None,
    negatives: Negatives = "max",
    reduction: Reduction = "sum",
) -> Tensor:
    """The ranking loss of every branch; with ``negatives="max"`` that of VSE++ (arXiv 1707.05612).

    Args:
        scores: ``[B, B]``, matched pairs on the diagonal.
        margin: least distance between right and wrong; 0.2 as in the paper.
        same: bool ``[B, B]``, True for pairs that are no negatives (of one group); default the diagonal.
        negatives: the hardest (``"max"``), the ``"sum"`` or the ``"mean"`` over all.
        reduction: over the rows: ``"sum"`` as in the paper, or ``"mean"``. The sum grows with the batch, so a rate or a
            weight that was chosen with it holds for that batch size only.

    Returns:
        A scalar; 0 for a batch without negatives.

    Raises:
        BadInput: scores that are not square.
        UnknownName: an option that does not exist.
    """
    same = _checked(scores, None, same, negatives, reduction)
    own = scores.diagonal()
    rows, columns = margin + scores - own[:, None], margin + scores - own[None, :]
    return _both(rows, columns, same, negatives, reduction)


def relative(
    scores: Tensor,
    anchor: Tensor,
    margin: float = 0.2,
    *,
    same: Tensor | None = None,
    negatives: Negatives = "max",
    reduction: Reduction = "sum",
    adapt: Margin = "fixed",
) -> Tensor:
    """Relative boosting: the gap between a matched pair and a wrong one must exceed the anchor's gap by a margin.

    The hardest wrong pair is the one with the largest violation, not the one with the largest score.

    Args:
        scores: ``[B, B]`` of the target.
        anchor: ``[B, B]`` of the anchor; gets no gradient.
        margin: m (in the paper m * beta).
        same, negatives, reduction: as in `triplet`.
        adapt: the margin's form, see `adaptive_margin`; gaps of cosines end at 2.
    """
    same = _checked(scores, anchor, same, negatives, reduction)
    anchor = anchor.detach()
    parts = []
    for s, a in ((scores, anchor), (scores.T, anchor.T)):
        gap, reached = s.diagonal()[:, None] - s, a.diagonal()[:, None] - a
        parts.append(adaptive_margin(reached, 2.0, margin, adapt) + reached - gap)
    return _both(parts[0], parts[1].T, same, negatives, reduction)


def absolute(
    scores: Tensor,
    anchor: Tensor,
    margin: float = 0.2,
    *,
    share: float = 0.5,
    same: Tensor | None = None,
    negatives: Negatives = "max",
    reduction: Reduction = "sum",
    adapt: Margin = "fixed",
) -> Tensor:
    """Absolute boosting: matched pairs above the anchor's score, wrong pairs below it.

    Args:
        scores, anchor, same, negatives, reduction: as in `relative`.
        margin: m (in the paper m * beta), split between both demands.
        share: the matched pairs' part of it; gamma = 0.5 as in the paper.
        adapt: the margin's form; cosines end at 1 and -1.
    """
    if not 0 <= share <= 1:
        raise BadInput(f"share {share} is outside 0..1", where="absolute")
    same = _checked(scores, anchor, same, negatives, reduction)
    anchor = anchor.detach()
    own, reached = scores.diagonal(), anchor.diagonal()
    raised = (adaptive_margin(reached, 1.0, margin * share, adapt) + reached - own).clamp_min(0)
    lowered = adaptive_margin(-anchor, 1.0, margin * (1 - share), adapt) + scores - anchor
    count = len(scores) if reduction == "mean" else 1
    return 2 * raised.sum() / count + _both(lowered, lowered, same, negatives, reduction)


def adaptive_margin(reached: Tensor, limit: float, margin: float, adapt: Margin = "soft") -> Tensor:
    """A margin that vanishes where the anchor is already at the limit of what scores can be ("soft adaptation").

    With r what the anchor reached and e the limit: ``"hard"``: min(m, e - r); ``"soft"``: 2 m / (1 + exp((2 / m) (r - e))) - m,
    which is m far below the limit, and 0 with slope -1 at the limit; ``"fixed"``: m.

    Args:
        reached: any shape; gets no gradient.
        limit: e, in the unit of the scores.
        margin: m.
        adapt: the form.

    Returns:
        The shape of ``reached``.
    """
    if adapt not in MARGINS:
        raise unknown_name("margin", adapt, MARGINS)
    reached = reached.detach()
    if adapt == "fixed" or margin == 0:
        return torch.full_like(reached, margin)
    if adapt == "hard":
        return (limit - reached).clamp_max(margin)
    return 2 * margin * torch.sigmoid((limit - reached) * (2 / margin)) - margin


def positive_gap(scores: Tensor, same: Tensor | None = None) -> Tensor:
    """How far each matched pair lies above its hardest wrong one, ``S_ii - max_j S_ij``: what boosting widens.

    Args:
        scores: ``[B, B]``.
        same: as in `triplet`.

    Returns:
        ``[B]``; infinite for a row without negatives.
    """
    same = _checked(scores, None, same, "max", "sum")
    return scores.diagonal() - scores.masked_fill(same, -torch.inf).amax(1)


def _both(rows: Tensor, columns: Tensor, same: Tensor, negatives: Negatives, reduction: Reduction) -> Tensor:
    """Hinges over the negatives of each row and of each column."""
    total = rows.new_zeros(())
    for violation, mask in ((rows, same), (columns.T, same.T)):
        # amax of a row without negatives is -inf, and its hinge 0.
        violation = violation.masked_fill(mask, -torch.inf)
        if negatives == "max":
            total = total + violation.amax(1).clamp_min(0).sum()
        else:
            hinges = violation.clamp_min(0).sum(1)
            total = total + (hinges / (~mask).sum(1).clamp_min(1) if negatives == "mean" else hinges).sum()
    return total / len(rows) if reduction == "mean" else total


def _checked(scores: Tensor, anchor: Tensor | None, same: Tensor | None, negatives: str, reduction: str) -> Tensor:
    """The mask of pairs that are no negatives; the diagonal always is part of it."""
    n = len(scores)
    if scores.ndim != 2 or scores.shape != (n, n) or not n:
        raise BadInput(
            f"scores of shape {tuple(scores.shape)}", where="dbl", fix="Give [B, B], matched on the diagonal"
        )
    for name, other in (("anchor", anchor), ("same", same)):
        if other is not None and other.shape != (n, n):
            raise BadInput(f"{name} has shape {tuple(other.shape)}, the scores {(n, n)}", where="dbl")
    if negatives not in NEGATIVES:
        raise unknown_name("negatives", negatives, NEGATIVES)
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    diagonal = torch.eye(n, dtype=torch.bool, device=scores.device)
    return diagonal if same is None else same | diagonal

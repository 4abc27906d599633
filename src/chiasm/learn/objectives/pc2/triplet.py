"""The hinge on score matrices, with a margin for each pair: L = sum_i max_j [m_i + s_ij - s_ii]+ + sum_j max_i [m_j + s_ij - s_jj]+."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from chiasm.errors import BadInput, unknown_name

Negatives = Literal["hard", "mean"]
Form = Literal["exponential", "linear", "sine"]
FORMS = ("exponential", "linear", "sine")


def soft_margin(correspondence: Tensor, margin: float = 0.2, form: Form = "exponential") -> Tensor:
    """The margin of each pair from how far it is believed: 0 for a mismatched pair, ``margin`` for a clean one.

    Args:
        correspondence: y in [0, 1], any shape.
        margin: m = 0.2 of the paper.
        form: ``"exponential"`` m (10^y - 1) / 9, ``"linear"`` m y, or ``"sine"`` m (sin(pi y - pi/2) + 1) / 2.

    Raises:
        UnknownName: another form.
    """
    if form == "exponential":
        return margin * (10.0**correspondence - 1) / 9
    if form == "linear":
        return margin * correspondence
    if form == "sine":
        return margin * (torch.sin(math.pi * correspondence - math.pi / 2) + 1) / 2
    raise unknown_name("soft margin", str(form), FORMS)


def triplet(
    scores: Tensor, margins: Tensor | float, *, groups: Tensor | None = None, negatives: Negatives = "hard"
) -> Tensor:
    """Hinge losses of the pairs of a batch in both directions, ``[N]``; their sum is the loss.

    Args:
        scores: ``[N, N]``, pair i on the diagonal.
        margins: ``[N]`` or one number; the margin of the anchor's pair counts on both sides.
        groups: int64 ``[N]``; pairs of one group are no negatives of each other.
        negatives: the hardest one, or the mean over the batch (the positives in it count as zero, as in the paper's
            per-sample loss).

    Raises:
        BadInput: scores that are not square.
        UnknownName: an unknown kind of negatives.
    """
    n = len(scores)
    if scores.shape != (n, n) or not n:
        raise BadInput(f"scores of shape {tuple(scores.shape)}", where="triplet", fix="Give [N, N] with N >= 1")
    if negatives not in ("hard", "mean"):
        raise unknown_name("kind of negatives", str(negatives), ("hard", "mean"))
    own = scores.diagonal()
    margins = torch.as_tensor(margins, dtype=scores.dtype, device=scores.device).expand(n)
    same = torch.eye(n, dtype=torch.bool, device=scores.device)
    if groups is not None:
        same = same | (groups[:, None] == groups[None, :])
    rows = (margins - own)[:, None] + scores
    columns = (margins - own)[None, :] + scores
    if negatives == "mean":
        return sum(
            (
                side.masked_fill(same, 0).clamp_min(0).masked_fill(same, 0).mean(dim)
                for side, dim in ((rows, 1), (columns, 0))
            ),
            scores.new_zeros(n),
        )
    # A row without any negative has -inf, which the hinge turns into 0.
    return sum(
        (side.masked_fill(same, -torch.inf).amax(dim).clamp_min(0) for side, dim in ((rows, 1), (columns, 0))),
        scores.new_zeros(n),
    )

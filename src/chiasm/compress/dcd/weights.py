"""Dynamic weights: how much a sample imitates the teacher, and how much it trusts its label.

With the teacher's logits z over the candidates of a sample, ``p_i = softmax(z_i)`` and entropy ``H_i``:

    h_i = H_i / sum_b H_b                  trust in the label: large where the teacher is unsure
    a_i = softmax_i((1 - h_i)^2)           imitation: large where the teacher is sure

Both sum to 1 over the batch, so the loss does not grow with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput

# Keeps the shares defined where the teacher is sure of everything; they are then equal.
EPS = 1e-7


def entropies(z: Tensor, valid: Tensor | None = None) -> Tensor:
    """Entropy of ``softmax(z_i)`` in nats.

    Args:
        z: ``[n, C]``, finite where valid.
        valid: bool ``[n, C]``, True where there is a candidate; default everywhere. Each row has at least one.

    Returns:
        ``[n]``, in 0 .. log C.
    """
    log_p = torch.log_softmax(z if valid is None else z.masked_fill(~valid, -torch.inf), dim=1)
    p = log_p.exp()
    # 0 * -inf is NaN where there is no candidate; an underflow to p = 0 has a finite logarithm.
    return -(p * (log_p if valid is None else log_p.masked_fill(~valid, 0.0))).sum(dim=1)


@torch.no_grad()
def entropy_weights(z: Tensor, valid: Tensor | None = None, *, sharpness: float | None = None) -> tuple[Tensor, Tensor]:
    """Weights from the teacher's uncertainty, without a gradient.

    Args:
        z: ``[n, C]``, the teacher's logits.
        valid: as in `entropies`.
        sharpness: None for the paper's form, whose imitation weights are nearly equal in large batches, because every h_i is
            about 1 / n. A number kappa takes ``a = softmax(kappa * (1 - H_i / log C_i)^2)`` instead, with C_i candidates in
            row i, which does not depend on the size of the batch (our addition).

    Returns:
        Imitation a ``[n]`` and self-learning h ``[n]``; each sums to 1.

    Raises:
        BadInput: a sharpness below 0.
    """
    if sharpness is not None and sharpness < 0:
        raise BadInput(f"sharpness {sharpness} is negative", where="entropy_weights")
    found = entropies(z, valid) + EPS
    h = found / found.sum()
    if sharpness is None:
        return torch.softmax((1 - h) ** 2, dim=0), h
    count = torch.full_like(h, z.shape[1]) if valid is None else valid.sum(dim=1).to(h)
    unsure = (found / count.clamp_min(2).log()).clamp(max=1.0)
    return torch.softmax(sharpness * (1 - unsure) ** 2, dim=0), h


@torch.no_grad()
def mastery_weights(y: Tensor, z: Tensor, valid: Tensor | None = None) -> Tensor:
    """Weights of the released code's second rule (``wsl``): samples that the student has not mastered yet count more.

        w_i = 1 - exp(-CE_student(i) / (CE_teacher(i) + 1e-7))

    Args:
        y, z: ``[n, C]``, logits of student and teacher; the positive is column 0.
        valid: as in `entropies`.

    Returns:
        ``[n]`` in 0 .. 1, without a gradient.
    """
    if valid is not None:
        y, z = (x.masked_fill(~valid, -torch.inf) for x in (y, z))
    first = torch.zeros(len(y), dtype=torch.long, device=y.device)
    student, teacher = (nn.functional.cross_entropy(x, first, reduction="none") for x in (y, z))
    return (1 - (-student / (teacher + EPS)).exp()).clamp_min(0)

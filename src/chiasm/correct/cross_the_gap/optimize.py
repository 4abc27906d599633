"""The optimization of Cross the Gap (ICLR 2025, arXiv 2502.04263), for any differentiable encoder.

    minimize over x:   sum_b (1 - cos(encode(x)_b, f_b))          with AdamW on x alone

The sum (not the mean) and elementwise AdamW keep every item's path independent of the items beside it in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from chiasm.errors import BadInput

# Early stop, as the method's card suggests: loss improves by less than 1e-4 over 10 steps.
WINDOW, IMPROVEMENT = 10, 1e-4


@dataclass(frozen=True, slots=True)
class Optimized:
    """What `invert` found for B items.

    Args:
        features: ``[B, D]`` encoder outputs of unit length.
        inputs: ``[B, ...]`` what was optimized.
        start: ``[B]`` loss before the first step, 0 to 2.
        loss: ``[B]`` loss at the end.
        steps: int ``[B]`` steps taken.
    """

    features: Tensor
    inputs: Tensor
    start: Tensor
    loss: Tensor
    steps: Tensor


def invert(
    encode: Callable[[Tensor], Tensor],
    targets: Tensor,
    start: Tensor,
    *,
    steps: int = 150,
    lr: float = 2e-2,
    weight_decay: float = 0.01,
    early_stop: bool = False,
    on_step: Callable[[], None] | None = None,
) -> Optimized:
    """Finds inputs whose encodings point where the targets point.

    Args:
        encode: inputs ``[b, ...]`` -> features ``[b, D]``; must treat its rows independently of each other.
        targets: ``[B, D]``, of any length but zero.
        start: ``[B, ...]``, the first inputs; not changed.
        steps: AdamW steps; 150 for text, 1000 for pictures in the paper.
        lr: learning rate; the paper's 2e-2.
        weight_decay: the paper's 0.01.
        early_stop: each item stops when its loss improved by less than 1e-4 over 10 steps.
        on_step: called after every step.

    Raises:
        BadInput: the encoder's features have another width than the targets, or ``steps`` is negative.
    """
    if steps < 0:
        raise BadInput(f"steps {steps} is negative", where="invert")
    goal = normalize(targets.detach(), dim=-1)
    found, first = start.detach().clone(), goal.new_zeros(len(goal))
    taken = torch.full((len(goal),), steps, device=goal.device)
    rows = torch.arange(len(goal), device=goal.device)  # the items that still run
    running, optimizer = _optimizer(found.clone(), lr, weight_decay)
    before = goal.new_full((len(goal),), torch.inf)
    with torch.enable_grad():
        for step in range(steps):
            loss = cosine_loss(encode(running), goal[rows])
            if step == 0:
                first = loss.detach().clone()
            (running.grad,) = torch.autograd.grad(loss.sum(), running)
            if early_stop and step % WINDOW == 0:
                now = loss.detach()
                done = before - now < IMPROVEMENT
                if done.any():
                    found[rows[done]], taken[rows[done]] = running.detach()[done], step
                    rows, before, now = rows[~done], before[~done], now[~done]
                    if not len(rows):
                        break
                    running, optimizer = _keep(running, optimizer, ~done)
                before = now
            optimizer.step()
            if on_step:
                on_step()
    found[rows] = running.detach()
    with torch.no_grad():
        features = encode(found)
        last = cosine_loss(features, goal)
    return Optimized(normalize(features, dim=-1), found, first if steps else last, last, taken)


def cosine_loss(features: Tensor, goal: Tensor) -> Tensor:
    """``1 - cos`` of each row ``[B]``, between 0 and 2; ``goal`` has unit rows.

    Raises:
        BadInput: the widths differ.
    """
    if features.shape != goal.shape:
        raise BadInput(
            f"features {list(goal.shape)} cannot be reached by an encoder with outputs {list(features.shape)}",
            where="features",
            fix="Give features of the same model",
        )
    return 1 - (normalize(features, dim=-1) * goal).sum(dim=-1)


def _optimizer(values: Tensor, lr: float, weight_decay: float) -> tuple[Tensor, torch.optim.AdamW]:
    running = values.requires_grad_()
    return running, torch.optim.AdamW([running], lr=lr, weight_decay=weight_decay)


def _keep(running: Tensor, optimizer: torch.optim.AdamW, keep: Tensor) -> tuple[Tensor, torch.optim.AdamW]:
    """The optimization of some of the items, going on as if nothing had happened."""
    group, state = optimizer.param_groups[0], optimizer.state[running]
    kept, smaller = _optimizer(running.detach()[keep].clone(), group["lr"], group["weight_decay"])
    kept.grad = running.grad[keep] if running.grad is not None else None
    smaller.state[kept] = {
        name: value[keep] if value.shape == running.shape else value.clone() for name, value in state.items()
    }
    return kept, smaller

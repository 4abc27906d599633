"""What keeps the representation sparse: the overuse penalty, its baseline FLOPs, and the weight's schedule.

    a_v = mean over the batch of s_v,    q_v = a_v / sum_u a_u
    FLOPs   = sum_v a_v^2                     (Paria and others 2020, arXiv 2004.05665)
    overuse = V sum_v q_v a_v^2               (words used more than average pay more than quadratically)

Equal usage of all words gives overuse = FLOPs; all usage on one word gives V times FLOPs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def usage(vectors: Tensor) -> Tensor:
    """Mean activation of each word, ``[N, V]`` -> ``[V]``, in float32 at least."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return wide.mean(dim=0)


def flops(vectors: Tensor) -> Tensor:
    """The FLOPs penalty of vectors ``[N, V]``: expected multiplications of two random items over the lists."""
    return usage(vectors).square().sum()


def overuse(vectors: Tensor, *, stop_gradient: bool = False) -> Tensor:
    """The overuse penalty of non-negative vectors ``[N, V]``; 0 where nothing is used.

    Args:
        vectors: the batch.
        stop_gradient: take q as a constant [inferred option].
    """
    mean = usage(vectors)
    share = mean / mean.sum().clamp_min(1e-12)
    if stop_gradient:
        share = share.detach()
    return len(mean) * (share * mean.square()).sum()


class Weight(nn.Module):
    """The weight of the penalty: it rises quadratically, and can follow a target of active words.

    Args:
        start: its value after the rise.
        warmup: share of the training over which it rises from 0 (a third [inferred]).
        target: active words an item that are wanted; each observed batch multiplies the weight by ``step`` if there are more
            and divides it otherwise. None keeps it constant.
        step: 1.05 [inferred].
    """

    value: Tensor
    rise: Tensor

    def __init__(self, start: float, *, warmup: float = 1 / 3, target: float | None = None, step: float = 1.05) -> None:
        super().__init__()
        self.warmup, self.target, self.step = warmup, target, step
        # Buffers, so that a resumed training goes on with what the controller had found.
        self.register_buffer("value", torch.tensor(float(start)))
        self.register_buffer("rise", torch.tensor(0.0 if warmup else 1.0))

    @property
    def now(self) -> Tensor:
        """The weight in use."""
        return self.value * self.rise

    def on_progress(self, step: int, steps: int) -> None:
        """Sets the rise: ``min(1, progress / warmup)^2``."""
        done = step / max(1, steps)
        self.rise.fill_(min(1.0, done / self.warmup) ** 2 if self.warmup else 1.0)

    @torch.no_grad()
    def observe(self, active: float) -> None:
        """Moves the weight by one step towards the target; without a target nothing happens."""
        if self.target is not None:
            self.value.mul_(self.step if active > self.target else 1 / self.step)

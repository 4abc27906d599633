"""Momentum encoders and feature queues (MoCo, He and others 2020, arXiv 1911.05722; ALBEF, Li and others 2021, arXiv 2107.07651)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput


class Momentum(nn.Module):
    """An exponential moving average of a module: ``teacher = m * teacher + (1 - m) * student``.

    The teacher is in eval mode, needs no gradient, and is no child of the student: it is not trained, and it is not
    saved with the student.

    Args:
        student: the module to follow.
        momentum: m in [0, 1]; 0.995 as in ALBEF and TCL. 1 never changes the teacher, 0 copies the student.

    Raises:
        BadInput: a momentum outside [0, 1].
    """

    def __init__(self, student: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise BadInput(f"momentum {momentum} is outside 0..1", where="Momentum")
        self.momentum = momentum
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Momentum:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float | None = None) -> None:
        """One step towards the student; floating-point buffers follow likewise, other buffers are copied.

        Args:
            student: the module the teacher follows (of the same structure).
            momentum: m of this step instead of the usual one.
        """
        m = self.momentum if momentum is None else momentum
        pairs = [
            *zip(self.teacher.parameters(), student.parameters(), strict=True),
            *zip(self.teacher.buffers(), student.buffers(), strict=True),
        ]
        floats = [(t, s.detach()) for t, s in pairs if t.is_floating_point()]
        if floats:
            old, new = ([*side] for side in zip(*floats))
            torch._foreach_lerp_(old, new, 1.0 - m)
        for t, s in pairs:
            if not t.is_floating_point():
                t.copy_(s)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher gives, without a gradient."""
        with torch.no_grad():
            return self.teacher(*args, **kwargs)


def cosine_momentum(step: int, steps: int, start: float = 0.9995, end: float = 1.0) -> float:
    """A momentum that rises from ``start`` to ``end`` along a half cosine (BYOL, arXiv 2006.07733)."""
    return end - (end - start) * (math.cos(math.pi * min(1.0, step / max(1, steps))) + 1) / 2


class FeatureQueue(nn.Module):
    """The last ``size`` vectors of earlier batches with their ids: a ring buffer that is saved with the model.

    Args:
        size: number of vectors; any batch size fits.
        dim: length of a vector.
    """

    vectors: Tensor
    ids: Tensor
    place: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise BadInput(f"a queue of {size} vectors of length {dim}", where="FeatureQueue")
        self.size = size
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return int(self.filled)

    def get(self) -> tuple[Tensor, Tensor]:
        """The vectors ``[n, D]`` and ids ``[n]`` that are in it; later `push` calls do not change them."""
        n = int(self.filled)
        return self.vectors[:n].clone(), self.ids[:n].clone()

    @torch.no_grad()
    def push(self, vectors: Tensor, ids: Tensor | None = None) -> None:
        """Puts in a batch; the oldest make room.

        Args:
            vectors: ``[n, D]``.
            ids: int64 ``[n]``; -1 where there is none.
        """
        vectors = vectors.detach()[-self.size :]
        n = len(vectors)
        where = (self.place + torch.arange(n, device=self.vectors.device)) % self.size
        self.vectors[where] = vectors.to(self.vectors)
        self.ids[where] = -1 if ids is None else ids[-n:].to(self.ids)
        self.place.copy_((self.place + n) % self.size)
        self.filled.copy_((self.filled + n).clamp_max(self.size))

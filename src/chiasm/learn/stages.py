"""Stages of training: what learns, what is frozen, how fast; frozen parts stay in eval mode and are checked by hash.

>>> stages = [Stage("heads", train=["*.head.*"], steps=200), Stage("all", steps=100, rate=1e-5)]
>>> for stage in stages:
...     report = train(model, pairs, objective, stage=stage)
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from chiasm.errors import BadInput, ChiasmError


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Args:
        name: how reports call it.
        train: patterns (as of `fnmatch`) of the parameters that learn; all others are frozen.
        steps: optimizer steps; None takes ``epochs``.
        epochs: passes over the pairs, if ``steps`` is None.
        rate: learning rate after the warm-up.
        warmup: share of the steps over which the rate rises from 0; every stage warms up again.
        average: coefficient of an exponential moving average of the trained weights, put in place at the end; None for none.
    """

    name: str = "all"
    train: Sequence[str] = ("*",)
    steps: int | None = None
    epochs: float = 5
    rate: float = 1e-3
    warmup: float = 0.1
    average: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.epochs <= 0:
            raise BadInput(f"{self.steps} steps, {self.epochs} epochs", where=f"stage {self.name}")
        if not 0 <= self.warmup <= 1:
            raise BadInput(f"warmup {self.warmup} is a share of the steps", where=f"stage {self.name}")


@contextmanager
def frozen_but(model: nn.Module, patterns: Sequence[str]) -> Iterator[list[str]]:
    """Freezes all parameters but those that match; afterwards everything is as it was, and nothing frozen has changed.

    Modules all of whose parameters are frozen, or that have none, keep eval mode whenever the model is put into train
    mode, so that batch statistics and dropout stay out of them.

    Args:
        model: the model.
        patterns: of `fnmatch`, matched against parameter names.

    Yields:
        The names of the parameters that learn.

    Raises:
        BadInput: a pattern matches nothing.
        ChiasmError: a frozen parameter or buffer has changed in the meantime.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise BadInput(
                f"no parameter matches {pattern!r}", where="stage", fix=f"For example {', '.join(names[:5])}"
            )
    chosen = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    resting = [m for m in model.modules() if _owned(m) and not any(p.requires_grad for p in m.parameters())]
    handles = [_keep_eval(module) for module in resting]
    digest = frozen_digest(model)
    try:
        yield sorted(chosen)
        if frozen_digest(model) != digest:
            raise ChiasmError("a frozen part has changed during training", where="stage")
    finally:
        for module in handles:
            del module.train
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def _owned(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _keep_eval(module: nn.Module) -> nn.Module:
    module.eval()

    def train(mode: bool = True) -> nn.Module:
        return nn.Module.train(module, False)

    # An instance attribute shadows the method until it is deleted.
    module.train = train  # pyright: ignore[reportAttributeAccessIssue]
    return module


def frozen_digest(model: nn.Module) -> str:
    """Hash over all frozen parameters, and over the buffers of modules without a trained parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode() + _bytes(parameter))
    for name, module in model.named_modules():
        if not any(p.requires_grad for p in module.parameters()):
            for key, buffer in module.named_buffers(recurse=False):
                digest.update(f"{name}.{key}".encode() + _bytes(buffer))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

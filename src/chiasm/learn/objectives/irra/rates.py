"""Learning rates of the paper: new parts learn faster than pretrained encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def faster_heads(
    model: nn.Module,
    objective: nn.Module,
    *,
    heads: float = 5.0,
    biases: float = 2.0,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    **options: Any,
) -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    """An ``optimizer`` for `chiasm.learn.train` in which the objective's heads and the model's biases learn faster.

    Args:
        model: the model that is trained.
        objective: `IRRA`, or any other objective with parameters.
        heads: factor for the objective's parameters; 5 as in the paper (users report that a slow ID head stays near
            ``log(identities)``).
        biases: factor for the biases of the model; 2.
        make: the optimizer; the paper has Adam. In half precision give ``eps=1e-3``, or the step becomes NaN.
        **options: of ``make``.
    """
    new = {id(p) for p in objective.parameters()}
    shift = {id(p) for name, p in model.named_parameters() if name.endswith("bias") and id(p) not in new}

    def optimizer(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        split = []
        for group in groups:
            for factor, belongs in ((heads, new), (biases, shift), (1.0, None)):
                members = [
                    p
                    for p in group["params"]
                    if (id(p) in belongs if belongs is not None else id(p) not in new and id(p) not in shift)
                ]
                if members:
                    split.append({**group, "params": members, "lr": rate * factor})
        return make(split, lr=rate, **options)

    return optimizer

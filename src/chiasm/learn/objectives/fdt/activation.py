"""From how well an item matches each code to weights over the codes: sparsemax, softmax or sigmoid, at a temperature.

Sparsemax (Martins and Astudillo 2016, arXiv 1602.02068) is the Euclidean projection on the simplex, so most weights are
exactly zero. With z sorted downwards:

    k* = max{k : 1 + k z_(k) > sum_{j<=k} z_(j)},   theta = (sum_{j<=k*} z_(j) - 1) / k*,   w = max(z - theta, 0)
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chiasm.errors import BadInput, unknown_name

Activation = Literal["sparsemax", "softmax", "sigmoid"]


def sparsemax(z: Tensor, *, most: int | None = 256) -> Tensor:
    """Euclidean projection of each row on the simplex.

    Computed in float32 at least: in float16 the count of the support is not exact above 2,048.

    Args:
        z: ``[..., K]``, finite.
        most: sort only this many of the largest entries first; rows whose support is not smaller than that are done again
            with all of them, so the result is exact. None sorts everything at once.

    Returns:
        Weights ``[..., K]``, non-negative, rows sum to 1. The gradient is ``g - mean of g over the support`` on the support
        and 0 outside.

    Raises:
        BadInput: no code at all, or ``most`` below 1.
    """
    if not z.shape[-1] or (most is not None and most < 1):
        raise BadInput(f"{z.shape[-1]} codes, most={most}", where="sparsemax")
    rows = z.reshape(-1, z.shape[-1])
    exact = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return _Sparsemax.apply(exact, most).to(z.dtype).view_as(z)


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, most: int | None) -> Tensor:
        # Shifting a row changes nothing, and keeps the cumulative sum small.
        z = z - z.amax(dim=1, keepdim=True)
        codes = z.shape[1]
        few = codes if most is None else min(most, codes)
        theta, support = _threshold(torch.topk(z, few, dim=1).values)
        if few < codes:
            wide = (support >= few).nonzero()[:, 0]
            if len(wide):
                theta[wide] = _threshold(z[wide].sort(dim=1, descending=True).values)[0]
        w = (z - theta[:, None]).clamp_min_(0)
        ctx.save_for_backward(w)
        return w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        on = w > 0
        mean = grad.masked_fill(~on, 0).sum(1, keepdim=True) / on.sum(1, keepdim=True)
        return (grad - mean).masked_fill(~on, 0), None


def _threshold(z: Tensor) -> tuple[Tensor, Tensor]:
    """theta ``[N]`` and the size of the support ``[N]`` of rows that are sorted downwards."""
    total = z.cumsum(1)
    k = torch.arange(1, z.shape[1] + 1, device=z.device, dtype=z.dtype)
    support = (1 + k * z > total).sum(1)
    return (total.gather(1, support[:, None] - 1)[:, 0] - 1) / support, support


def activate(z: Tensor, kind: Activation = "sparsemax") -> Tensor:
    """Weights over the codes, rows sum to 1.

    Args:
        z: ``[..., K]``, match divided by the temperature.
        kind: ``"sparsemax"`` (exact zeros, the method), ``"softmax"`` (the dense baseline) or ``"sigmoid"`` (each code on
            its own, then divided by the sum).

    Raises:
        UnknownName: a kind that does not exist.
    """
    if kind == "sparsemax":
        return sparsemax(z)
    if kind == "softmax":
        return torch.softmax(z, dim=-1)
    if kind == "sigmoid":
        # exp(log sigmoid) normalized in the log domain: the sum may underflow where all codes are off.
        return torch.softmax(torch.nn.functional.logsigmoid(z), dim=-1)
    raise unknown_name("activation", kind, get_args(Activation))


@torch.no_grad()
def starting_temperature(match: Tensor, share: float = 0.95, *, steps: int = 40) -> float:
    """The temperature at which sparsemax leaves on average this share of the codes active, by bisection.

    The support grows with the temperature: sparsemax stops to add codes once ``sum_{j<=k} (z_(j) - z_(k)) >= 1``.

    Args:
        match: ``[N, K]``, untempered.
        share: in (0, 1]; 0.95 from a pilot of ours: a training that starts sparse never finds common codes.
        steps: halvings of an interval of 24 powers of e.

    Raises:
        BadInput: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise BadInput(f"share {share} is outside (0, 1]", where="starting_temperature")
    ordered = match.sort(dim=1, descending=True).values.double()
    ordered = ordered - ordered[:, :1]
    k = torch.arange(1, match.shape[1] + 1, device=match.device)
    # Code k is active at temperature T exactly if sum_{j<=k} (r_(j) - r_(k)) < T: so the support at any T is a count.
    needed = ordered.cumsum(1) - k * ordered
    low, high = -12.0, 12.0
    for _ in range(steps):
        middle = (low + high) / 2
        active = (needed < torch.tensor(middle).exp()).double().mean()
        low, high = (low, middle) if active >= share else (middle, high)
    return float(torch.tensor(high).exp())

"""Which channels share a block: found once from the cross-correlation of the two sides on a calibration set."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.errors import BadInput


@torch.no_grad()
def channel_order(a: Tensor, b: Tensor, block: int = 8) -> Tensor:
    """A permutation of the channels after which those that depend on each other stand together.

    Channels m and n belong together if the squared correlations of a_m with b_n and of a_n with b_m are large. Groups of
    ``block`` grow one after the other: the channel with the strongest bonds begins, and takes in what is bound to the
    group most.

    Args:
        a: calibration vectors ``[N, D]``.
        b: their partners ``[N, D]``.
        block: channels a group.

    Returns:
        int64 ``[D]`` for `StructuralMetric.group_channels`.

    Raises:
        BadInput: sides of different shapes, or fewer than two rows.
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
        raise BadInput(f"shapes {tuple(a.shape)} and {tuple(b.shape)}", where="channel_order", fix="Give [N, D] twice")
    x, y = (_standard(side) for side in (a, b))
    bond = (x.T @ y / len(x)).square()
    bond = bond + bond.T
    bond.fill_diagonal_(0.0)
    free = torch.ones(len(bond), dtype=torch.bool)
    order: list[int] = []
    while free.any():
        pull = (bond * free).sum(dim=1)
        for _ in range(min(block, int(free.sum()))):
            chosen = int(pull.masked_fill(~free, -torch.inf).argmax())
            free[chosen] = False
            # From the second on, only the bonds to the group count.
            members = [*order[len(order) - len(order) % block :], chosen]
            order.append(chosen)
            pull = bond[:, members].sum(dim=1)
    return torch.tensor(order)


def _standard(x: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1; a constant channel is 0 and so bound to nothing."""
    x = x.double().cpu()
    x = x - x.mean(dim=0)
    return x / x.square().mean(dim=0).sqrt().clamp_min(1e-12)

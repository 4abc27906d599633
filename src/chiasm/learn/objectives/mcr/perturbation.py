"""How far the fused answer moves when one modality is shuffled within the batch (MIPD), and who gets its gradient.

J_i = mean over rows of JSD( softmax f(Z), softmax f(.., Z_i[sigma], ..) ),   in [0, ln 2]
J_{i|e}: the same with the latents of every encoder but e detached, in both passes

greedy         sum_e ( -J_{e|e} + sum_{j != e} J_{j|e} )        each encoder raises its own share and lowers the others'
independent    sum_e ( -J_{e|e} )
collaborative  sum_j ( -J_j ), nothing detached
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Game = Literal["greedy", "independent", "collaborative"]
GAMES = ("greedy", "independent", "collaborative")
PERMUTATIONS = ("rand", "rsi", "rsl", "all")
# Probabilities below this count as this, as in the card.
TINY = 1e-20

# Gives the fused output ``[R, C]`` of latents ``[R, d_i]``.
Head = Callable[[Sequence[Tensor]], Tensor]
# Row-wise distance of two fused outputs, ``[R, C], [R, C] -> [R]``.
Distance = Callable[[Tensor, Tensor], Tensor]


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions, natural logarithm: 0 for equal ones, ln 2 for disjoint ones.

    Args:
        p: probabilities ``[..., C]``.
        q: likewise.

    Returns:
        ``[...]``.
    """
    p, q = p.clamp_min(TINY), q.clamp_min(TINY)
    middle = ((p + q) / 2).log()
    return 0.5 * (p * (p.log() - middle) + q * (q.log() - middle)).sum(dim=-1)


def class_distance(first: Tensor, second: Tensor) -> Tensor:
    """`jensen_shannon` of the softmax of two sets of logits."""
    return jensen_shannon(first.softmax(dim=-1), second.softmax(dim=-1))


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of regression outputs, in place of the divergence."""
    return (first - second).square().mean(dim=-1)


def absolute_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of regression outputs, in place of the divergence."""
    return (first - second).abs().mean(dim=-1)


def permutations(
    n: int, kind: str = "rand", count: int = 6, labels: Tensor | None = None, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Which row each row gets its perturbed latent from, and which rows count.

    Args:
        n: rows of the batch.
        kind: ``"rand"``: any permutation; ``"rsi"``: without fixed points; ``"rsl"``: only rows whose label changes;
            ``"all"``: every other row in turn (n - 1 cyclic shifts), the exact mean and so free of chance.
        count: number of permutations; 6 as in the published configuration. ``"all"`` has n - 1.
        labels: ``[n]``; without them ``"rsl"`` is ``"rsi"``.
        device: where to.

    Returns:
        int64 ``[P, n]`` and bool ``[P, n]``. Nothing counts where no partner is allowed (one row, one label).
    """
    if kind == "all" or n == 1:
        shifts = torch.arange(1, n, device=device)
        index = (torch.arange(n, device=device) + shifts[:, None]) % n
        return index, torch.ones_like(index, dtype=torch.bool)
    index = torch.rand(count, n, device=device).argsort(dim=1)
    if kind == "rand":
        return index, torch.ones_like(index, dtype=torch.bool)
    if kind == "rsl" and labels is not None:
        return index, labels[index] != labels
    # A cycle through a random order has no fixed point, and needs no second try as rejection would.
    partner = torch.empty_like(index).scatter_(1, index, index.roll(-1, dims=1))
    return partner, torch.ones_like(partner, dtype=torch.bool)


def divergence(
    head: Head, latents: Sequence[Tensor], which: int, index: Tensor, counts: Tensor, distance: Distance, clean: Tensor
) -> Tensor:
    """J of one modality: the mean distance between the fused output and that with its latents permuted.

    The permuted batches go through the head as one.

    Args:
        head: the fusion head.
        latents: M tensors ``[B, d_i]``.
        which: the modality that is perturbed.
        index: int64 ``[P, B]``, see `permutations`.
        counts: bool ``[P, B]``.
        distance: row-wise distance of two outputs.
        clean: ``[B, C]``, the fused output of ``latents``.

    Returns:
        A scalar; 0 if no row counts.
    """
    rows = index.flatten()
    if not len(rows):
        return clean.sum() * 0.0
    repeated = torch.arange(index.shape[1], device=index.device).repeat(index.shape[0])
    moved = [z[rows] if i == which else z[repeated] for i, z in enumerate(latents)]
    far = distance(clean[repeated], head(moved)).masked_fill(~counts.flatten(), 0.0)
    return far.sum() / counts.sum().clamp_min(1)


def play(
    head: Head,
    latents: Sequence[Tensor],
    game: Game,
    index: Tensor,
    counts: Tensor,
    distance: Distance = class_distance,
    *,
    rivals: Literal["sum", "mean"] = "sum",
    shared_clean: bool = False,
) -> tuple[Tensor, Tensor]:
    """The game's term to be minimized, and the divergences.

    Args:
        head, latents, index, counts, distance: as in `divergence`.
        game: who gets which gradient, see above.
        rivals: with more than two modalities, the divergences of the others are summed or averaged. With ``"mean"`` the
            greedy term is 0 as a number and leaves the fusion head alone for any M; with ``"sum"`` only for M = 2.
        shared_clean: use one clean pass for all encoders, so that in the greedy game its gradients cancel and encoders
            are pushed through the perturbed pass only. Default False: the paper's equation, where encoder e gets the whole
            gradient of its own terms and of nothing else.

    Returns:
        A scalar, and J of each modality ``[M]`` without a gradient.
    """
    count = len(latents)

    def j(which: int, seen: Sequence[Tensor], clean: Tensor) -> Tensor:
        return divergence(head, seen, which, index, counts, distance, clean)

    if game == "collaborative":
        clean = head(latents)
        each = torch.stack([j(i, latents, clean) for i in range(count)])
        return -each.sum(), each.detach()
    term = latents[0].new_zeros(())
    own = []
    common = head(latents) if shared_clean else None
    for e in range(count):
        seen = [z if i == e else z.detach() for i, z in enumerate(latents)]
        clean = head(seen) if common is None else common
        own.append(j(e, seen, clean))
        term = term - own[-1]
        if game == "greedy" and count > 1:
            others = torch.stack([j(i, seen, clean) for i in range(count) if i != e])
            term = term + (others.sum() if rivals == "sum" else others.mean())
    return term, torch.stack(own).detach()

"""Visual prototypes: a mask is split into regions of equal area, and the features of every region are averaged (M-Splitting).

>>> weights = to_grid(mask, (30, 30))                          # soft: a thin object keeps its share of every cell
>>> prototypes = visual_prototypes(features, weights, regions=5)        # [5, D]
>>> prototypes.mean(dim=0)                                     # about what masked average pooling gives

Multi-modal prototypes, arXiv 2307.02003. No code was published; the rule is ours: recursively cut at the weighted
quantile along the principal axis of [x, y, lambda * first principal feature]. Deterministic, O(n log n) a mask.
"""

from __future__ import annotations

from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from chiasm.errors import BadInput, unknown_name

Rule = Literal["median", "kmeans", "farthest"]

# Weights below this are rounding, no pixels.
_TINY = 1e-6


def to_grid(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask on the grid of the features: the share of every cell that it covers.

    Resizing and then cutting at one half would lose thin objects; soft weights keep them.

    Args:
        mask: bool or float ``[..., h, w]``, in [0, 1].
        size: height and width of the grid.

    Returns:
        float32 ``[..., H, W]`` in [0, 1]; the mean is that of the mask where the grid divides it.

    Raises:
        BadInput: a mask without pixels, or with values outside [0, 1].
    """
    if mask.ndim < 2 or not mask.numel() or min(size) < 1:
        raise BadInput(f"a mask {tuple(mask.shape)} for a grid {size}", where="to_grid", fix="Give [..., h, w]")
    mask = mask.float()
    if not bool(torch.isfinite(mask).all()) or float(mask.min()) < 0 or float(mask.max()) > 1:
        raise BadInput("the mask has values outside [0, 1]", where="to_grid", fix="Give bool, or shares of the pixels")
    if mask.shape[-2:] == tuple(size):
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    if mask.shape[-2] >= size[0] and mask.shape[-1] >= size[1]:
        small = functional.adaptive_avg_pool2d(flat, size)
    else:
        small = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return small.reshape(*mask.shape[:-2], *size)


def masked_average(features: Tensor, mask: Tensor) -> Tensor:
    """Masked average pooling: features ``[D, H, W]``, weights ``[H, W]`` -> ``[D]``.

    Raises:
        BadInput: shapes that do not fit, or a mask without a pixel.
    """
    mask = _checked(features, mask, "masked_average")
    return (features * mask).sum(dim=(1, 2)) / mask.sum()


def split_mask(
    mask: Tensor,
    features: Tensor | None = None,
    regions: int = 5,
    *,
    rule: Rule = "median",
    feature_weight: float = 1.0,
    rounds: int = 10,
) -> Tensor:
    """Splits a mask into regions.

    Args:
        mask: weights ``[H, W]`` in [0, 1]; pixels above 0 are split.
        features: ``[D, H, W]``; needed unless the rule is ``"median"`` with ``feature_weight=0``.
        regions: M; 5 [inferred].
        rule: ``"median"``: recursive cuts at equal area (M-Splitting); ``"kmeans"`` on the features, from farthest-point
            seeds; ``"farthest"``: every pixel goes to the nearest farthest-point seed.
        feature_weight: lambda [inferred]; positions and the first principal feature are both scaled to variance 1, so 1
            means that they weigh alike. 0 is pure geometry.
        rounds: of k-means.

    Returns:
        int64 ``[H, W]``: the region of every pixel, -1 outside of the mask. With fewer pixels than regions every pixel is
        a region of its own.

    Raises:
        BadInput: no region, an empty mask, or shapes that do not fit.
        UnknownName: a rule that does not exist.
    """
    if rule not in get_args(Rule):
        raise unknown_name("rule", rule, get_args(Rule))
    if not isinstance(regions, Integral) or regions < 1:
        raise BadInput(f"{regions} regions", where="split_mask", fix="Give at least one, and whole ones")
    if features is None and (rule != "median" or feature_weight):
        raise BadInput("no features", where="split_mask", fix="Give them, or rule='median' with feature_weight=0")
    mask = _checked(features, mask, "split_mask")
    inside = mask > _TINY
    weight = mask[inside]
    place = inside.nonzero().to(weight.dtype)
    values = None if features is None else features[:, inside].T.to(weight.dtype).detach()
    count = len(weight)
    if count <= regions:
        owner = torch.arange(count, device=mask.device)
    elif rule == "median":
        owner = _cut(_coordinates(place, values, weight, feature_weight), weight, regions)
    else:
        assert values is not None
        owner = _clusters(values, weight, regions, rounds if rule == "kmeans" else 0)
    found = torch.full(mask.shape, -1, dtype=torch.long, device=mask.device)
    found[inside] = owner
    return found


def visual_prototypes(
    features: Tensor,
    mask: Tensor,
    regions: int = 5,
    *,
    rule: Rule = "median",
    feature_weight: float = 1.0,
) -> Tensor:
    """Prototypes of one support picture: the mean features of the regions of its mask.

    Args:
        features: ``[D, H, W]``; a gradient flows into them.
        mask: weights ``[H, W]``; see `to_grid`.
        regions, rule, feature_weight: of `split_mask`. One region is masked average pooling.

    Returns:
        ``[M, D]``. With fewer pixels than regions all rows are the mean; k-means may leave regions empty, which get the
        mean as well.

    Raises:
        BadInput: as `split_mask`.
    """
    mean = masked_average(features, mask)
    if regions == 1 or int((mask > _TINY).sum()) < regions:
        return mean.expand(regions, -1).clone()
    owner = split_mask(mask, features, regions, rule=rule, feature_weight=feature_weight)
    inside = owner >= 0
    weight = mask[inside].to(features.dtype)
    rows = features[:, inside].T * weight[:, None]
    sums = rows.new_zeros(regions, rows.shape[1]).index_add(0, owner[inside], rows)
    total = weight.new_zeros(regions).index_add(0, owner[inside], weight)
    return torch.where(total[:, None] > 0, sums / total.clamp(min=_TINY)[:, None], mean)


def k_medoids(vectors: Tensor, count: int, *, rounds: int = 20) -> Tensor:
    """Rows that stand for all others: farthest-first, then swaps to the best row of each cluster. Deterministic.

    Args:
        vectors: ``[N, D]``; compared by cosine.
        count: at most so many rows.
        rounds: most rounds.

    Returns:
        int64, sorted row numbers, ``min(count, N)`` of them.

    Raises:
        BadInput: no vectors, or no row wanted.
    """
    if vectors.ndim != 2 or not len(vectors) or count < 1:
        raise BadInput(
            f"{count} of vectors {tuple(vectors.shape)}", where="k_medoids", fix="Give [N, D] and count >= 1"
        )
    if count >= len(vectors):
        return torch.arange(len(vectors), device=vectors.device)
    unit = functional.normalize(vectors.detach().float(), dim=1)
    distance = 1 - unit @ unit.T
    chosen = _farthest(unit, torch.ones(len(unit), device=unit.device), count)
    for _ in range(rounds):
        owner = distance[:, chosen].argmin(dim=1)
        owner[chosen] = torch.arange(count, device=unit.device)  # copies of a medoid stay with it
        member = functional.one_hot(owner, count).to(distance.dtype)
        cost = (distance @ member).masked_fill(member == 0, torch.inf)
        better = cost.argmin(dim=0)
        if torch.equal(better, chosen):
            break
        chosen = better
    return chosen.sort().values


def _checked(features: Tensor | None, mask: Tensor, where: str) -> Tensor:
    if mask.ndim != 2 or (features is not None and (features.ndim != 3 or features.shape[1:] != mask.shape)):
        raise BadInput(
            f"a mask {tuple(mask.shape)} for features {None if features is None else tuple(features.shape)}",
            where=where,
            fix="Give [H, W] and [D, H, W]; `to_grid` resizes a mask",
        )
    if not bool(torch.isfinite(mask).all()) or bool((mask < 0).any()):
        raise BadInput("the mask has values below 0, or NaN", where=where, fix="Give bool, or shares of the pixels")
    if features is not None and not bool(torch.isfinite(features).all()):
        raise BadInput("the features hold NaN or infinite values", where=where, fix="Look for them in the picture")
    mask = mask.to(torch.float32 if features is None else features.dtype)
    if not bool((mask > _TINY).any()):
        raise BadInput("the mask is empty", where=where, fix="Leave this support picture out")
    return mask


def _coordinates(place: Tensor, values: Tensor | None, weight: Tensor, feature_weight: float) -> Tensor:
    """[x, y, lambda * first principal feature], position and feature of variance 1 over the mask: ``[n, 2 or 3]``."""
    place = place - _mean(place, weight)
    place = place / ((place.square() * weight[:, None]).sum() / weight.sum() / 2).sqrt().clamp(min=_TINY)
    if values is None or not feature_weight:
        return place
    centered = values - _mean(values, weight)
    first = centered @ _main_axis(centered, weight)
    spread = (_mean(first[:, None].square(), weight)).sqrt()
    # All pixels alike: rounding must not be blown up to variance 1.
    scale = torch.where(
        spread > 1e-4 * values.norm(dim=1).mean(), 1 / spread.clamp(min=1e-30), torch.zeros_like(spread)
    )
    return torch.cat([place, feature_weight * first[:, None] * scale], dim=1)


def _mean(rows: Tensor, weight: Tensor) -> Tensor:
    return (rows * weight[:, None]).sum(dim=0) / weight.sum()


def _main_axis(centered: Tensor, weight: Tensor) -> Tensor:
    """First principal axis ``[d]``; its largest entry is positive, so that the same mask is always split alike."""
    axis = torch.linalg.eigh((centered * weight[:, None]).T @ centered).eigenvectors[:, -1]
    return axis * axis[axis.abs().argmax()].sign()


def _cut(points: Tensor, weight: Tensor, parts: int) -> Tensor:
    """Region ``[n]`` of every pixel: halves a set of ``parts`` regions until every set is one region.

    A set that becomes an odd number of regions is cut where it leaves them equal areas, not at one half.
    """
    owner = torch.zeros(len(points), dtype=torch.long, device=points.device)
    stack = [(torch.arange(len(points), device=points.device), parts, 0)]
    while stack:
        rows, several, first = stack.pop()
        if several == 1:
            owner[rows] = first
            continue
        own, mass = points[rows], weight[rows]
        centered = own - _mean(own, mass)
        # Rounded, so that equal positions along the axis are ordered by their place and not by rounding errors.
        along = ((centered @ _main_axis(centered, mass)) * 1e4).round()
        order = along.argsort(stable=True)
        left = several // 2
        share = mass.sum() * left / several
        middle = mass[order].cumsum(0) - mass[order] / 2
        count = int((middle <= share + 1e-4).sum())
        count = min(max(count, left), len(rows) - (several - left))
        stack.append((rows[order[:count]], left, first))
        stack.append((rows[order[count:]], several - left, first + left))
    return owner


def _farthest(rows: Tensor, weight: Tensor, count: int) -> Tensor:
    """Farthest-point seeds: the row nearest to the mean, then always the row farthest from all chosen."""
    chosen = [int((rows - _mean(rows, weight)).square().sum(dim=1).argmin())]
    nearest = (rows - rows[chosen[0]]).square().sum(dim=1)
    for _ in range(count - 1):
        nearest[chosen[-1]] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = torch.where(nearest < 0, nearest, torch.minimum(nearest, (rows - rows[chosen[-1]]).square().sum(1)))
    return torch.tensor(chosen, device=rows.device)


def _clusters(values: Tensor, weight: Tensor, regions: int, rounds: int) -> Tensor:
    """Nearest of farthest-point seeds, and so many rounds of Lloyd's iteration (weighted); features of unit length."""
    values = functional.normalize(values, dim=1)
    centers = values[_farthest(values, weight, regions)]
    owner = torch.cdist(values, centers).argmin(dim=1)
    for _ in range(rounds):
        mass = weight.new_zeros(regions).index_add(0, owner, weight)
        sums = torch.zeros_like(centers).index_add(0, owner, values * weight[:, None])
        centers = torch.where(mass[:, None] > 0, sums / mass.clamp(min=_TINY)[:, None], centers)
        new = torch.cdist(values, centers).argmin(dim=1)
        if torch.equal(new, owner):
            break
        owner = new
    return owner

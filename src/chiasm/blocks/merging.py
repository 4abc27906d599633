"""Which tokens are alike, and how several become one: matchings, merges and the map back to the tokens that came in.

    >>> found = complete_graph(unit_keys(key), r=16, importance=score, protected=protected)
    >>> keep = kept(found, T)                                        # [B, T - r], in order
    >>> tokens, size = merge(tokens, size, found, keep)              # [B, T - r, D], [B, T - r]
    >>> owner = follow(owner, found, keep, T)                        # the token in which each input token now is

A token's size is the number of input tokens it stands for; padding has size 0, so it weighs nothing in a merge and, through
``log size`` in the attention, nothing there. Functions are pure and work on a batch without a loop over items. Nothing of
the matching gets a gradient; merges do.

Papers: ToMe (arXiv 2210.09461) for `bipartite` and the size-weighted mean, CrossGET (arXiv 2305.17455) for
`complete_graph` and the guided mean, VisionDrop (arXiv 2506.22283) for `contextual`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name

Keys = Literal["full", "mean"]
KEYS: tuple[Keys, ...] = ("full", "mean")
Precedence = Literal["published", "receive_best"]


@dataclass(frozen=True, slots=True)
class Matching:
    """R tokens of each item that go, and where.

    Args:
        source: int64 ``[B, R]``; each at most once.
        target: int64 ``[B, R]``; never a source.
        similarity: float32 ``[B, R]`` of the pairs.
        valid: bool ``[B, R]``, False where an item merges fewer than R; None if all count.
    """

    source: Tensor
    target: Tensor
    similarity: Tensor
    valid: Tensor | None = None

    @property
    def count(self) -> int:
        """R."""
        return self.source.shape[1]


def unit_keys(key: Tensor, how: Keys = "mean") -> Tensor:
    """Keys of all heads ``[B, H, T, dh]`` as one unit vector a token, float32.

    Args:
        key: keys of an attention call.
        how: ``"mean"`` over the heads (``[B, T, dh]``, as ToMe), or ``"full"``: heads side by side (``[B, T, H dh]``).
    """
    if how not in KEYS:
        raise unknown_name("width of keys", how, KEYS)
    key = key.detach()
    flat = key.mean(dim=1) if how == "mean" else key.transpose(1, 2).flatten(2)
    return nn.functional.normalize(flat.float(), dim=-1)


# ---- matchings


@torch.no_grad()
def bipartite(keys: Tensor, r: int, protected: Tensor | None = None, counts: Tensor | None = None) -> Matching:
    """ToMe: tokens 0, 2, 4, ... look for their most similar one among 1, 3, 5, ...; the r best pairs merge.

    Protected tokens may leave an item with fewer than r pairs to form; those that are missing are not ``valid``.

    Args:
        keys: unit vectors ``[B, T, d]``.
        r: pairs.
        protected: bool ``[B, T]``, True for tokens that neither go nor receive (class token, padding).
        counts: int ``[B]`` at most r, pairs of each item; default r for all.

    Raises:
        BadInput: r is negative or more than half of an item's free tokens.
    """
    _check_r(r, keys.shape[1], protected, counts)
    scores = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
    if protected is not None:
        scores = scores.masked_fill(protected[:, ::2, None] | protected[:, None, 1::2], -torch.inf)
    best, partner = scores.max(dim=-1)
    value, row = best.topk(r, dim=-1)
    valid, there = _valid(counts, r), value > -torch.inf
    if not bool(there.all()):
        valid = there if valid is None else valid & there
    return Matching(2 * row, 2 * partner.gather(1, row) + 1, value, valid)


@torch.no_grad()
def complete_graph(
    keys: Tensor,
    r: int,
    importance: Tensor | None = None,
    protected: Tensor | None = None,
    counts: Tensor | None = None,
    *,
    precedence: Precedence = "published",
) -> Matching:
    """CrossGET's complete-graph soft matching: any token may go to any other; unimportant, redundant ones go first.

    Tokens are ranked by ``max_j S_ij``, falling; i may only look at tokens of a larger rank number, which breaks every
    cycle without iteration. The r tokens with the smallest ``importance_i - max_{allowed j} S_ij`` go, each to its most
    similar token among those that stay (there the rank does not matter, and several may share one).

    Args:
        keys: unit vectors ``[B, T, d]``.
        r: tokens that go.
        importance: finite ``[B, T]``; None for all equal.
        protected: bool ``[B, T]``, True for tokens that neither go nor receive.
        counts: int ``[B]`` at most r, how many go of each item; default r for all.
        precedence: ``"published"``, or ``"receive_best"`` for the opposite rule (only to tokens of a smaller rank number),
            which merged more similar pairs in trials.

    Raises:
        BadInput: r is negative or more than half of an item's free tokens.
    """
    if precedence not in ("published", "receive_best"):
        raise unknown_name("precedence", precedence, ("published", "receive_best"))
    batch, tokens, _ = keys.shape
    _check_r(r, tokens, protected, counts)
    if protected is None:
        scores = keys @ keys.transpose(1, 2)
    else:
        hidden = keys.new_zeros(batch, 1, tokens).masked_fill(protected[:, None], -torch.inf)
        scores = torch.baddbmm(hidden, keys, keys.transpose(1, 2))
        scores[protected] = -torch.inf
    scores.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    # Mutual nearest neighbors tie: with both directions looked at, rounding does not decide which is ranked first.
    best = torch.maximum(scores.amax(dim=2), scores.amax(dim=1))
    order = best.argsort(dim=-1, descending=True, stable=True)
    # rank[i] = place of i when sorted by its best similarity; small numbers compare faster.
    rank = torch.empty(batch, tokens, dtype=torch.int32, device=keys.device)
    rank.scatter_(1, order, torch.arange(tokens, dtype=torch.int32, device=keys.device).expand(batch, -1))
    mine, theirs = rank[:, :, None], rank[:, None, :]
    barred = theirs < mine if precedence == "published" else theirs > mine
    # A token that may look at nobody, as protected ones, has the cost +inf.
    allowed = scores.masked_fill(barred, -torch.inf).amax(dim=-1)
    cost = -allowed if importance is None else importance.detach().float() - allowed
    source = cost.argsort(dim=-1, stable=True)[:, :r]
    valid = _valid(counts, r)
    going = torch.zeros(batch, tokens, dtype=torch.bool, device=keys.device)
    going.scatter_(1, source, True if valid is None else valid)
    similarity, target = take(scores, source).masked_fill(going[:, None, :], -torch.inf).max(dim=-1)
    return Matching(source, target, similarity, valid)


@torch.no_grad()
def random_pairs(
    keys: Tensor, r: int, protected: Tensor | None = None, counts: Tensor | None = None, *, seed: int = 0
) -> Matching:
    """r pairs drawn without looking at the tokens: the baseline that every matching must beat.

    Args:
        keys: unit vectors ``[B, T, d]``; only their number (and the reported similarities) come from them.
        r: tokens that go.
        protected: bool ``[B, T]``, True for tokens that neither go nor receive.
        counts: int ``[B]`` at most r, pairs of each item; default r for all.
        seed: of the draw, which is the same for all items with the same free tokens.

    Raises:
        BadInput: r is negative or more than half of an item's free tokens.
    """
    batch, tokens, _ = keys.shape
    _check_r(r, tokens, protected, counts)
    lots = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)).to(keys.device).expand(batch, -1)
    if protected is not None:
        lots = lots.masked_fill(protected, torch.inf)
    order = lots.argsort(dim=1)
    behind = torch.full((batch,), r, device=keys.device) if counts is None else counts
    source = order[:, :r]
    target = order.gather(1, behind[:, None] + torch.arange(r, device=keys.device))
    similarity = (take(keys, source) * take(keys, target)).sum(-1)
    return Matching(source, target, similarity, _valid(counts, r))


def _check_r(r: int, tokens: int, protected: Tensor | None, counts: Tensor | None) -> None:
    """Each pair needs two free tokens of its own, in every item."""
    free = tokens
    if protected is not None and len(protected):
        left = tokens - protected.sum(dim=1)
        if counts is not None:
            # Items that lose fewer than r need less room.
            left = left + 2 * (r - counts)
        free = int(left.min())
    most = min(tokens, free) // 2
    if not 0 <= r <= most:
        raise BadInput(
            f"{r} of {tokens} tokens cannot be merged", where="matching", fix=f"Take r from 0 to {max(0, most)}"
        )


def _valid(counts: Tensor | None, r: int) -> Tensor | None:
    return None if counts is None else torch.arange(r, device=counts.device)[None] < counts[:, None]


# ---- merging


def kept(matching: Matching, tokens: int, padding: Tensor | None = None) -> Tensor:
    """The tokens that stay, rising: int64 ``[B, K]``.

    Args:
        matching: what goes.
        tokens: T.
        padding: bool ``[B, T]``; padding goes as well where the longest item allows it. Items with fewer tokens than the
            longest begin with tokens that have gone, whose size is 0 after `merge`.
    """
    batch = matching.source.shape[0]
    gone = torch.zeros(batch, tokens, dtype=torch.bool, device=matching.source.device)
    gone.scatter_(1, matching.source, True if matching.valid is None else matching.valid)
    if padding is None and matching.valid is None:
        return (~gone).nonzero()[:, 1].view(batch, tokens - matching.count)
    if padding is not None:
        gone |= padding
    most = int((~gone).sum(dim=1).max())
    return (~gone).to(torch.int8).argsort(dim=1, stable=True)[:, tokens - most :]


def merge(
    tokens: Tensor,
    size: Tensor,
    matching: Matching,
    keep: Tensor,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds the tokens that go to their targets, weighted by size, and by importance where it is given.

    Without importance: ``x_b <- (s_b x_b + sum_a s_a x_a) / (s_b + sum_a s_a)``. With it, each pair (a, b) has weights
    ``(w_a, w_b) = 2 softmax([I_a, I_b])`` and ``x_b <- (s_b x_b + sum_a [w_a s_a x_a + (w_b - 1) s_b x_b]) / (s_b +
    sum_a s_a)``; equal importance is the mean again. Tokens to which nothing is added keep their value exactly.

    Args:
        tokens: ``[B, T, D]``.
        size: ``[B, T]``, at least 0.
        matching: the pairs.
        keep: ``[B, K]`` of `kept`.
        importance: ``[B, T]`` or None.

    Returns:
        Tokens ``[B, K, D]`` and their sizes ``[B, K]``.
    """
    source, target = matching.source, matching.target
    gone = size.gather(1, source)
    weight = gone if matching.valid is None else gone.masked_fill(~matching.valid, 0.0)
    total = size.scatter_add(1, target, weight)
    here = total.gather(1, target)
    # Written as what each pair adds to its target, only the targets are touched: of the other tokens there is one copy.
    theirs, own = weight, -weight
    if importance is not None:
        pair = 2 * torch.stack([importance.gather(1, source), importance.gather(1, target)]).float().softmax(dim=0)
        # A source without weight (padding, or not valid) leaves its target as it was.
        extra = (pair[1] - 1).masked_fill(weight == 0, 0.0)
        theirs, own = weight * pair[0], extra * size.gather(1, target) - weight
    here = here.masked_fill(here == 0, 1.0)
    added = take(tokens, source) * (theirs / here)[:, :, None].to(tokens.dtype)
    added += take(tokens, target) * (own / here)[:, :, None].to(tokens.dtype)
    out = take(tokens, keep)
    place = _places(keep, tokens.shape[1]).gather(1, target)
    out.flatten(0, 1).index_add_(0, _flat(place, keep.shape[1]), added.flatten(0, 1))
    return out, total.scatter_add(1, source, -weight).gather(1, keep)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """``tokens[b, index[b, k]]``: ``[B, T, D]`` and ``[B, K]`` -> ``[B, K, D]``, whole rows at a time."""
    batch, count, width = tokens.shape
    return tokens.reshape(batch * count, width).index_select(0, _flat(index, count)).view(batch, index.shape[1], width)


def _flat(index: Tensor, count: int) -> Tensor:
    """Row numbers ``[B * K]`` in B blocks of ``count`` rows."""
    return (index + count * torch.arange(len(index), device=index.device)[:, None]).flatten()


def follow(owner: Tensor, matching: Matching, keep: Tensor, tokens: int) -> Tensor:
    """The source map after a merge.

    Args:
        owner: int64 ``[B, T0]``: for each input token, the token in which it is now (-1: dropped).
        matching: the pairs.
        keep: ``[B, K]`` of `kept`.
        tokens: T, the number of tokens before this merge.

    Returns:
        int64 ``[B, T0]`` with values below K.
    """
    place = _places(keep, tokens)
    target = place.gather(1, matching.target)
    if matching.valid is not None:
        target = torch.where(matching.valid, target, place.gather(1, matching.source))
    place = place.scatter(1, matching.source, target)
    return torch.where(owner >= 0, place.gather(1, owner.clamp_min(0)), owner)


def _places(keep: Tensor, tokens: int) -> Tensor:
    """For each of T tokens its place among the kept ones, 0 for the others: ``[B, T]``."""
    place = torch.zeros(keep.shape[0], tokens, dtype=torch.int64, device=keep.device)
    return place.scatter_(1, keep, torch.arange(keep.shape[1], device=keep.device).expand_as(keep))


def spread(tokens: Tensor, owner: Tensor) -> Tensor:
    """Un-merges: ``[B, K, D]`` -> ``[B, T0, D]``; every input token takes the value of the token it is in, dropped ones 0."""
    return take(tokens, owner.clamp_min(0)).masked_fill((owner < 0)[:, :, None], 0.0)


def source_matrix(owner: Tensor, tokens: int) -> Tensor:
    """The source map as bool ``[B, K, T0]``: which input tokens are in which output token."""
    return owner[:, None, :] == torch.arange(tokens, device=owner.device)[None, :, None]


# ---- contextual tokens


def contextual(
    tokens: Tensor, metric: Tensor, count: int, how: Literal["sum", "mean"] = "sum"
) -> tuple[Tensor, Tensor, Tensor]:
    """VisionDrop's and VisionZip's contextual tokens: evenly spaced targets, to which all others are added.

    Targets are the tokens 0, step, 2 step, ... with ``step = max(1, R // count)``; every other token goes to the target
    with the largest cosine of the metric. ``"sum"`` is the target plus the mean of its cluster (an empty one adds 0),
    ``"mean"`` the mean of all of them.

    Args:
        tokens: ``[B, R, D]``, what is left over.
        metric: ``[B, R, d]``, what similarity is measured on.
        count: number of contextual tokens, from 0 to R.
        how: see above.

    Returns:
        Contextual tokens ``[B, count, D]``; the targets int64 ``[count]``; for each of the R tokens the contextual token
        it is in, int64 ``[B, R]`` (-1 where ``count`` is 0).

    Raises:
        BadInput: ``count`` outside 0..R.
        UnknownName: another ``how``.
    """
    batch, rest, width = tokens.shape
    if how not in ("sum", "mean"):
        raise unknown_name("merge", how, ("sum", "mean"))
    if not 0 <= count <= rest:
        raise BadInput(f"{count} contextual tokens out of {rest}", where="contextual", fix=f"Take 0 to {rest}")
    if not count:
        none = torch.full((batch, rest), -1, dtype=torch.int64, device=tokens.device)
        return tokens[:, :0], none.new_zeros(0), none
    targets = torch.arange(count, device=tokens.device) * max(1, rest // count)
    with torch.no_grad():
        unit = nn.functional.normalize(metric.float(), dim=-1)
        cluster = (unit @ unit[:, targets].transpose(1, 2)).argmax(dim=-1)
        cluster[:, targets] = torch.arange(count, device=tokens.device)
        is_target = torch.zeros(rest, dtype=torch.bool, device=tokens.device)
        is_target[targets] = True
        number = torch.zeros(batch, count, device=tokens.device)
        number.scatter_add_(1, cluster, (~is_target).float().expand(batch, -1))
    others = tokens.masked_fill(is_target[None, :, None], 0.0)
    summed = tokens.new_zeros(batch, count, width).scatter_add(1, cluster[:, :, None].expand(-1, -1, width), others)
    heads, number = tokens[:, targets], number[:, :, None].to(tokens.dtype)
    out = heads + summed / number.clamp_min(1) if how == "sum" else (heads + summed) / (1 + number)
    return out, targets, cluster

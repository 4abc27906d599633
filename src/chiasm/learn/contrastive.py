"""The one InfoNCE core (van den Oord et al. 2018, arXiv 1807.03748), streamed: memory O(B D) instead of O(B^2), exact gradients.

For scores ``S_ij = scale * <a_i, b_j>`` and positives ``P_i`` (rows of the same group, or soft targets ``T_i`` that sum to 1):

    a to b:  mean_i [ log sum_j exp(S_ij) - sum_j T_ij S_ij ]                      (several="mean": T_ij = 1 / |P_i|)
             mean_i [ log sum_j exp(S_ij) - log sum_{j in P_i} exp(S_ij) ]         (several="sum")

and the same from b to a on the columns. A block of rows of S exists at a time, in the forward and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chiasm.errors import BadInput

Directions = Literal["both", "a", "b"]
Several = Literal["mean", "sum"]

# Scores of a block (4 bytes each): 8 MB.
_SCORES = 1 << 21
# exp(-2 * bound) must stay a normal float32 for one shift to serve rows and columns alike.
_FIXED_SHIFT = 40.0


def info_nce(
    a: Tensor,
    b: Tensor,
    *,
    scale: Tensor | float = 20.0,
    groups: tuple[Tensor, Tensor] | Tensor | None = None,
    targets: Tensor | None = None,
    ignore: Tensor | None = None,
    extra_a: Tensor | None = None,
    extra_b: Tensor | None = None,
    directions: Directions = "both",
    stop_gradient: Literal["a", "b"] | None = None,
    several: Several = "mean",
    weights: tuple[Tensor, Tensor] | Tensor | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """InfoNCE between two sets of vectors, streamed over blocks of rows.

    Args:
        a: ``[N, D]``; scores are inner products, so give unit rows for cosine.
        b: ``[M, D]``.
        scale: inverse temperature; 20 is the default of sentence-transformers, CLIP starts at 1 / 0.07. A tensor that
            requires a gradient gets one.
        groups: integer ids ``([N], [M])``, or one ``[N]`` for both sides; equal ids are positives. Default: row i of ``a``
            belongs to row i of ``b``.
        targets: soft targets ``[N, M]``, non-negative, instead of groups; rows (for the other direction: columns) are
            scaled to sum 1.
        ignore: bool ``[N, M]``, True where a pair is neither positive nor negative (a known false negative). Positives are
            never ignored.
        extra_a: further candidates ``[E, D]`` of ``a``'s kind: negatives for the rows of ``b`` only.
        extra_b: further candidates of ``b``'s kind: negatives for the rows of ``a`` only.
        directions: ``"both"`` (the mean of the two), ``"a"`` (rows of ``a`` look for ``b``) or ``"b"``.
        stop_gradient: the side that gets no gradient.
        several: how several positives count: ``"mean"`` of their log-probabilities (SupCon's outer form,
            arXiv 2004.11362) or the log of the ``"sum"`` of their probabilities.
        weights: non-negative weights ``([N], [M])`` of the rows as queries, or one ``[N]`` for both sides; each direction
            is then a weighted mean. They get no gradient.
        chunk: rows of ``a`` a block; by default so many that a block has 2**21 scores.

    Returns:
        ``{"a_to_b": ..., "b_to_a": ...}`` (or one of them): scalars whose sum is the loss. Rows without a positive do not
        count; a direction in which no row has one is 0.

    Raises:
        BadInput: shapes that do not fit together, a batch without rows, or options that do not exist.
    """
    _check(a, b, ignore, extra_a, extra_b, directions, stop_gradient, several, chunk)
    plan = _Plan(
        *_positives(a, b, groups, targets, several),
        ignore,
        several,
        {"both": 0.5, "a": 1.0, "b": 0.0}[directions],
        {"both": 0.5, "a": 0.0, "b": 1.0}[directions],
        chunk or max(1, _SCORES // max(1, b.shape[0])),
        *_weights(a, b, weights),
    )
    a, b = (a.detach() if stop_gradient == "a" else a), (b.detach() if stop_gradient == "b" else b)
    none = a.new_zeros((0, a.shape[1]))
    factor = torch.as_tensor(scale, dtype=a.dtype, device=a.device)
    forth, back = _Streamed.apply(
        a, b, factor, none if extra_a is None else extra_a, none if extra_b is None else extra_b, plan
    )
    return {"both": {"a_to_b": forth, "b_to_a": back}, "a": {"a_to_b": forth}, "b": {"b_to_a": back}}[directions]


class InfoNCE(nn.Module):
    """`info_nce` as an objective, with a fixed or learned temperature.

    Args:
        temperature: the temperature; 0.05 (scale 20) as in sentence-transformers. CLIP uses 0.07, learned.
        learn_temperature: make its logarithm a parameter.
        max_scale: bound of the learned scale; 100 as in CLIP.
        directions, several, chunk: as in `info_nce`.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        learn_temperature: bool = False,
        max_scale: float = 100.0,
        directions: Directions = "both",
        several: Several = "mean",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise BadInput(f"temperature {temperature} is not positive", where="InfoNCE")
        log_scale = torch.tensor(float(temperature)).log().neg()
        self.log_scale = nn.Parameter(log_scale) if learn_temperature else nn.Buffer(log_scale)
        self.max_scale = max_scale
        self.directions: Directions = directions
        self.several: Several = several
        self.chunk = chunk

    @property
    def scale(self) -> Tensor:
        """The inverse temperature in use."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def forward(self, a: Tensor, b: Tensor, *, groups: Any = None, **options: Any) -> dict[str, Tensor]:
        """Loss parts of a batch; rows are scaled to unit length first. Options as in `info_nce`.

        Args:
            a: ``[N, D]``.
            b: ``[M, D]``.
            groups: ids of `info_nce`.
        """
        a, b = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        for name in ("extra_a", "extra_b"):
            if options.get(name) is not None:
                options[name] = nn.functional.normalize(options[name], dim=-1)
        settings = {"directions": self.directions, "several": self.several, "chunk": self.chunk, **options}
        return info_nce(a, b, scale=self.scale, groups=groups, **settings)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What does not take part in differentiation. Positives are a list of (row, column, weight), sorted by row."""

    row: Tensor
    column: Tensor
    weight: Tensor
    ignore: Tensor | None
    several: Several
    weight_a: float
    weight_b: float
    step: int
    row_weights: Tensor | None = None
    column_weights: Tensor | None = None

    def blocks(self, n: int) -> Iterator[tuple[slice, slice]]:
        """Blocks of rows, each with the part of the positives that lies in it."""
        starts = list(range(0, n, self.step))
        edges = torch.searchsorted(self.row, torch.tensor([*starts, n], device=self.row.device)).tolist()
        for i, start in enumerate(starts):
            yield slice(start, min(n, start + self.step)), slice(edges[i], edges[i + 1])


class _Streamed(torch.autograd.Function):
    """Both directions at once; scores are computed again block by block in the backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, extra_a: Tensor, extra_b: Tensor, plan: _Plan) -> Any:
        n, m = a.shape[0], b.shape[0]
        own = a.new_empty(len(plan.row))
        rows, columns = _Mass.of(n, a, b, scale, extra_a, extra_b), _Mass.of(m, a, b, scale, extra_a, extra_b)
        for block, part in plan.blocks(n):
            scores = _scores(a, b, scale, plan, block, part)[1]
            own[part] = scores[plan.row[part] - block.start, plan.column[part]]
            _absorb(rows, columns, block, scores, plan)
        if plan.weight_a and extra_b.shape[0]:
            for block, _ in plan.blocks(n):
                rows.add(block, (a[block] @ extra_b.T).mul_(scale), dim=1)
        if plan.weight_b and extra_a.shape[0]:
            columns.add(slice(None), (extra_a @ b.T).mul_(scale), dim=0)
        row_goal, row_in = _goal(own, plan.row, plan.weight, n, plan.several)
        column_goal, column_in = _goal(own, plan.column, plan.weight, m, plan.several)
        # A row that does not count gets an infinite mass: all its probabilities, and so its gradients, are zero.
        row_mass, column_mass = (
            rows.log().masked_fill(~row_in, torch.inf),
            columns.log().masked_fill(~column_in, torch.inf),
        )
        ctx.plan = plan
        ctx.save_for_backward(
            a, b, scale, extra_a, extra_b, row_mass, row_goal, row_in, column_mass, column_goal, column_in
        )
        none, (wa, wb) = a.new_zeros(()), (plan.weight_a, plan.weight_b)
        forth = _mean_over(row_mass - row_goal, row_in, plan.row_weights) * wa if wa else none
        back = _mean_over(column_mass - column_goal, column_in, plan.column_weights) * wb if wb else none.clone()
        return forth, back

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_forth: Tensor, grad_back: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b, scale, extra_a, extra_b, row_mass, row_goal, row_in, column_mass, column_goal, column_in = (
            ctx.saved_tensors
        )
        plan: _Plan = ctx.plan
        wa = grad_forth * plan.weight_a * _counted(row_in, plan.row_weights, a.dtype)
        wb = grad_back * plan.weight_b * _counted(column_in, plan.column_weights, a.dtype)
        grads = [torch.zeros_like(x) for x in (a, b, extra_a, extra_b)]
        grad_scale = torch.zeros_like(scale)
        row_share, column_share = (
            _share(plan.weight, index, size) for index, size in ((plan.row, a.shape[0]), (plan.column, b.shape[0]))
        )

        def spread(slope: Tensor, raw: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
            """Sends d loss / d scores on to both vectors (and the scale)."""
            if ctx.needs_input_grad[2]:
                grad_scale.add_(torch.dot(slope.flatten(), raw.nan_to_num(posinf=0, neginf=0).flatten()))
            slope = slope.mul_(scale)
            return slope @ right, slope.T @ left

        for block, part in plan.blocks(a.shape[0]):
            raw, scores = _scores(a, b, scale, plan, block, part)
            at, column = plan.row[part] - block.start, plan.column[part]
            own = scores[at, column]
            pull = torch.zeros_like(own)
            slope = None
            if plan.weight_a:
                slope = (scores - row_mass[block, None]).exp_().mul_(wa[block, None])
                share = row_share[part] if plan.several == "mean" else (own - row_goal[plan.row[part]]).exp()
                pull = pull + wa[plan.row[part]] * share
            if plan.weight_b:
                columns = (scores - column_mass).exp_().mul_(wb)
                slope = columns if slope is None else slope.add_(columns)
                share = column_share[part] if plan.several == "mean" else (own - column_goal[column]).exp()
                pull = pull + wb[column] * share
            assert slope is not None
            slope.index_put_((at, column), -pull, accumulate=True)
            to_a, to_b = spread(slope, raw, a[block], b)
            grads[0][block] += to_a
            grads[1] += to_b
            if plan.weight_a and extra_b.shape[0]:
                raw = a[block] @ extra_b.T
                slope = (raw * scale - row_mass[block, None]).exp_().mul_(wa[block, None])
                to_a, to_extra = spread(slope, raw, a[block], extra_b)
                grads[0][block] += to_a
                grads[3] += to_extra
        if plan.weight_b and extra_a.shape[0]:
            raw = extra_a @ b.T
            slope = (raw * scale - column_mass).exp_().mul_(wb)
            to_extra, to_b = spread(slope, raw, extra_a, b)
            grads[2] += to_extra
            grads[1] += to_b
        return grads[0], grads[1], grad_scale, grads[2], grads[3], None


class _Mass:
    """Log-sum-exp that grows: ``shift`` and ``total`` for each row or column."""

    def __init__(self, shift: Tensor, total: Tensor, fixed: bool) -> None:
        self.shift, self.total, self.fixed = shift, total, fixed

    @classmethod
    def of(cls, size: int, a: Tensor, b: Tensor, scale: Tensor, extra_a: Tensor, extra_b: Tensor) -> _Mass:
        """An empty sum; its shift is fixed where an upper bound of all scores (Cauchy-Schwarz) is small enough."""
        longest = [
            max((float(x.norm(dim=1).max()) for x in side if x.shape[0]), default=0.0)
            for side in ((a, extra_a), (b, extra_b))
        ]
        bound = abs(float(scale)) * longest[0] * longest[1]
        fixed = bound <= _FIXED_SHIFT
        return cls(a.new_full((size,), bound if fixed else -torch.inf), a.new_zeros(size), fixed)

    def add(self, part: slice, scores: Tensor, dim: int) -> None:
        """Adds ``scores`` summed over ``dim``."""
        if self.fixed:
            self.total[part] += (scores - self.shift[0]).exp_().sum(dim)
            return
        old = self.shift[part]
        new = torch.maximum(old, scores.amax(dim))
        # Everything ignored so far: keep the shift finite, so that -inf - -inf never appears.
        safe = torch.where(new.isneginf(), torch.zeros_like(new), new)
        self.total[part] = self.total[part] * (old - safe).exp() + (scores - safe.unsqueeze(dim)).exp_().sum(dim)
        self.shift[part] = new

    def log(self) -> Tensor:
        return self.shift + self.total.log()


def _absorb(rows: _Mass, columns: _Mass, block: slice, scores: Tensor, plan: _Plan) -> None:
    """Adds a block to the sums of its rows and of all columns; one exponential serves both where the shift is fixed."""
    if rows.fixed and plan.weight_a and plan.weight_b:
        exponentials = scores.sub_(rows.shift[0]).exp_()
        rows.total[block] += exponentials.sum(1)
        columns.total += exponentials.sum(0)
        return
    if plan.weight_a:
        rows.add(block, scores, dim=1)
    if plan.weight_b:
        columns.add(slice(None), scores, dim=0)


def _scores(a: Tensor, b: Tensor, scale: Tensor, plan: _Plan, block: slice, part: slice) -> tuple[Tensor, Tensor]:
    """Inner products and scores of a block of rows; scores are -inf where pairs are ignored."""
    raw = a[block] @ b.T
    scores = raw * scale
    if plan.ignore is not None:
        at = plan.row[part] - block.start, plan.column[part]
        own = scores[at]
        scores = scores.masked_fill_(plan.ignore[block], -torch.inf)
        scores[at] = own
    return raw, scores


def _share(weight: Tensor, index: Tensor, size: int) -> Tensor:
    """Weights scaled to sum 1 within each row (or column)."""
    total = weight.new_zeros(size).index_add_(0, index, weight)
    return weight / total[index]


def _goal(own: Tensor, index: Tensor, weight: Tensor, size: int, several: Several) -> tuple[Tensor, Tensor]:
    """What the positives of each row (or column) reach, and which rows have any."""
    inside = weight.new_zeros(size).index_add_(0, index, weight) > 0
    if several == "mean":
        return own.new_zeros(size).index_add_(0, index, own * _share(weight, index, size)), inside
    top = own.new_full((size,), -torch.inf).scatter_reduce_(0, index, own, "amax")
    total = own.new_zeros(size).index_add_(0, index, (own - top[index]).exp())
    return torch.where(inside, top + total.log(), torch.zeros_like(top)), inside


def _counted(inside: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The share of each row in the mean; rows without a positive have none."""
    share = inside.to(dtype) if weights is None else inside * weights
    total = share.sum()
    return share / torch.where(total > 0, total, torch.ones_like(total))


def _mean_over(values: Tensor, inside: Tensor, weights: Tensor | None) -> Tensor:
    share = _counted(inside, weights, values.dtype)
    return torch.where(share > 0, values * share, torch.zeros_like(values)).sum()


def _weights(a: Tensor, b: Tensor, weights: Any) -> tuple[Tensor | None, Tensor | None]:
    """The weights of rows and columns, checked."""
    if weights is None:
        return None, None
    pair = weights if isinstance(weights, (tuple, list)) else (weights, weights)
    left, right = (torch.as_tensor(w, device=a.device).detach().to(a.dtype) for w in pair)
    if left.shape != (a.shape[0],) or right.shape != (b.shape[0],):
        raise BadInput(
            f"weights of shapes {tuple(left.shape)} and {tuple(right.shape)} for {a.shape[0]} and {b.shape[0]} rows",
            where="info_nce",
        )
    if not all(bool((w >= 0).all()) and bool(w.isfinite().all()) for w in (left, right)):
        raise BadInput("weights must be finite and not negative", where="info_nce")
    return left, right


def _positives(
    a: Tensor, b: Tensor, groups: Any, targets: Tensor | None, several: Several
) -> tuple[Tensor, Tensor, Tensor]:
    """The positives as (row, column, weight), sorted by row."""
    n, m = a.shape[0], b.shape[0]
    if targets is not None:
        if groups is not None or several != "mean":
            raise BadInput("soft targets go with neither groups nor several='sum'", where="info_nce")
        if targets.shape != (n, m) or bool((targets < 0).any()) or not bool(targets.isfinite().all()):
            raise BadInput(
                f"targets must be finite, non-negative and [{n}, {m}], got {tuple(targets.shape)}", where="info_nce"
            )
        row, column = targets.nonzero(as_tuple=True)
        return row, column, targets[row, column].to(a.dtype)
    if groups is None:
        if n != m:
            raise BadInput(f"{n} and {m} rows are not pairs", where="info_nce", fix="Give groups=(ids of a, ids of b)")
        row = torch.arange(n, device=a.device)
        return row, row, torch.ones(n, dtype=a.dtype, device=a.device)
    left, right = groups if isinstance(groups, (tuple, list)) else (groups, groups)
    left, right = (torch.as_tensor(ids, device=a.device) for ids in (left, right))
    if left.shape != (n,) or right.shape != (m,):
        raise BadInput(
            f"groups of shapes {tuple(left.shape)} and {tuple(right.shape)} for {n} and {m} rows", where="info_nce"
        )
    # Members of each group on the right stand together, so a row's positives are one run of the sorted order.
    order = torch.argsort(right, stable=True)
    first, last = (torch.searchsorted(right[order], left, right=side) for side in (False, True))
    counts = last - first
    row = torch.repeat_interleave(torch.arange(n, device=a.device), counts)
    place = torch.arange(len(row), device=a.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    column = order[torch.repeat_interleave(first, counts) + place]
    return row, column, torch.ones(len(row), dtype=a.dtype, device=a.device)


def _check(
    a: Tensor, b: Tensor, ignore: Any, extra_a: Any, extra_b: Any, directions: str, stop: Any, several: str, chunk: Any
) -> None:
    for name, rows in (("a", a), ("b", b), ("extra_a", extra_a), ("extra_b", extra_b)):
        if rows is not None and (rows.ndim != 2 or rows.shape[1] != a.shape[-1]):
            raise BadInput(f"{name} has shape {tuple(rows.shape)}, expected [rows, {a.shape[-1]}]", where="info_nce")
    if not a.shape[0] or not b.shape[0]:
        raise BadInput(f"a batch of {a.shape[0]} and {b.shape[0]} rows has no pairs", where="info_nce")
    if ignore is not None and (ignore.shape != (a.shape[0], b.shape[0]) or ignore.dtype != torch.bool):
        raise BadInput(
            f"ignore must be bool [{a.shape[0]}, {b.shape[0]}], got {ignore.dtype} {tuple(ignore.shape)}",
            where="info_nce",
        )
    for name, value, known in (("directions", directions, ("both", "a", "b")), ("several", several, ("mean", "sum"))):
        if value not in known:
            raise BadInput(f"{name}={value!r} does not exist", where="info_nce", fix=f"Use one of {', '.join(known)}")
    if stop not in (None, "a", "b"):
        raise BadInput(f"stop_gradient={stop!r} does not exist", where="info_nce", fix="Use 'a', 'b' or None")
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk {chunk} is not positive", where="info_nce")

"""FDT (Chen and others, CVPR 2023, arXiv 2303.14865): both sides as sparse mixtures over one learned codebook.

Patches and words live at different granularity. Here each side says how well its best token matches each code, a sparse
weighting of the codes follows, and the item is the weighted sum of the same codes whichever side it came from:

    r_c = max_n <q(t_n), C_c> / sqrt(d),    w = sparsemax(r / T),    f = w C / |w C|,    loss = InfoNCE(f_a, f_b)

with token vectors t_n ``[N, L, width]``, codes C ``[K, d]``, and one query map q a side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce
from chiasm.learn.held_out import Direction, Encoded
from chiasm.learn.momentum import FeatureQueue
from chiasm.learn.objectives.fdt.activation import Activation, activate, starting_temperature
from chiasm.learn.objectives.fdt.grounding import Pool, ground

# Bounds of the logarithm of the learned scale, and of the scale itself, as in the released code.
_LOG_SCALE = (3.0, 6.0)
_LARGEST_SCALE = 100.0
_COLDEST = 0.01
# Query vectors of one side of a batch that are kept for new codes.
_SAMPLE = 32


class QueryMap(nn.Sequential):
    """From token vectors ``[..., width]`` to queries ``[..., dim]``: norm, linear, GELU, norm, linear; one for each side."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, dim))


class FDT(nn.Module):
    """Shared sparse codes with InfoNCE between them.

    Asks for the tokens of both sides; a side without tokens counts as one token an item. The temperature T starts where 95 %
    of the codes are active (found by bisection on the first batch) and is annealed: a training that starts sparse finds no
    common codes and collapses.

    Args:
        width: length of the token vectors of ``a`` (64, as of `chiasm.learn.towers.Tower`).
        width_b: the same of ``b``; default ``width``.
        codes: K. 256 suits thousands of pairs (our pilot); the paper takes 16,384 for millions.
        dim: length d of the codes; 64 likewise, 512 in the paper.
        activation: ``"sparsemax"``, ``"softmax"`` or ``"sigmoid"``.
        pool: over the tokens: ``"max"``, ``"mean"`` or ``"sum"``.
        shared: one codebook for both sides. False is a control: nothing makes the two agree.
        temperature: T at the start; None finds it. The released configuration has 1000 at K = 16,384 (and ``decay=1``).
        start: share of the codes that is active at the start, if ``temperature`` is None.
        decay: T becomes ``T * decay`` every ``every`` steps, smoothly, but not below 0.01; 1 keeps it constant.
        every: steps; None takes a tenth of the training (ten epochs in the pilot). The released code has 2,700.
        least: annealing stops for good once the mean share of active codes is below this; 0.15 from the pilot.
        orthogonality: weight of ``|norm(C) norm(C)^T - I|^2 / K^2``; 0, as the paper does not use it.
        warmup: share of the training in which that weight rises from 0.
        revive_after: steps after which a code that no item has used is set to a recent query; 0 never does [inferred].
        chunk: codes at a time in `ground`.
        parity: missing tokens match every code with 0, as in the released code.

    Raises:
        BadInput: sizes below 1, shares outside their range, a temperature that is not positive.
        UnknownName: an activation or pooling that does not exist.
    """

    start_temperature: Tensor
    cooling: Tensor
    share: Tensor
    ready: Tensor
    progress: Tensor
    step: Tensor
    idle: Tensor

    def __init__(
        self,
        width: int = 64,
        *,
        width_b: int | None = None,
        codes: int = 256,
        dim: int = 64,
        activation: Activation = "sparsemax",
        pool: Pool = "max",
        shared: bool = True,
        temperature: float | None = None,
        start: float = 0.95,
        decay: float = 0.8,
        every: float | None = None,
        least: float = 0.15,
        orthogonality: float = 0.0,
        warmup: float = 0.1,
        revive_after: int = 100,
        chunk: int | None = None,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if min(width, codes, dim, 1 if width_b is None else width_b) < 1:
            raise BadInput(f"width {width}, codes {codes}, dim {dim}", where="FDT", fix="All must be at least 1")
        if temperature is not None and temperature <= 0:
            raise BadInput(f"temperature {temperature} is not positive", where="FDT")
        if not 0 < start <= 1 or not 0 < decay <= 1 or not 0 <= least <= 1 or (every is not None and every <= 0):
            raise BadInput(f"start {start}, decay {decay}, least {least}, every {every}", where="FDT")
        if activation not in ("sparsemax", "softmax", "sigmoid"):
            raise unknown_name("activation", activation, ("sparsemax", "softmax", "sigmoid"))
        if pool not in ("max", "mean", "sum"):
            raise unknown_name("pooling", pool, ("max", "mean", "sum"))
        self.activation: Activation = activation
        self.pool: Pool = pool
        self.start_share, self.decay, self.every, self.least = start, decay, every, least
        self.orthogonality, self.warmup, self.revive_after = orthogonality, warmup, revive_after
        self.chunk, self.parity = chunk, parity
        self.query_a = QueryMap(width, dim)
        self.query_b = QueryMap(width if width_b is None else width_b, dim)
        self.codes = nn.Parameter(torch.randn(1 if shared else 2, codes, dim))
        self.log_scale = nn.Parameter(torch.tensor(max(math.log(1 / 0.07), _LOG_SCALE[0])))
        # Buffers, so that a checkpoint knows the temperature it was trained at.
        self.register_buffer("start_temperature", torch.tensor(1000.0 if temperature is None else float(temperature)))
        self.register_buffer("ready", torch.tensor(temperature is not None or activation != "sparsemax"))
        if temperature is None and activation != "sparsemax":
            self.start_temperature.fill_(1.0)
        self.register_buffer("cooling", torch.tensor(1.0))
        self.register_buffer("share", torch.tensor(1.0))
        self.register_buffer("progress", torch.tensor(0.0))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("idle", torch.zeros(len(self.codes), codes, dtype=torch.long))
        self.recent = FeatureQueue(8 * _SAMPLE, dim)
        # For the collapse detector: how far apart the representations of the last batch lie.
        self.spread: float | None = None

    @property
    def temperature(self) -> Tensor:
        """T in use."""
        return (self.start_temperature * self.cooling).clamp(min=_COLDEST)

    @property
    def scale(self) -> Tensor:
        """The inverse temperature of the contrast, learned from 1 / 0.07 on; between e^3 and 100."""
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE)

    def no_decay(self) -> list[nn.Parameter]:
        """Parameters that get no weight decay: the codes [inferred]."""
        return [self.codes]

    def book(self, side: Direction) -> Tensor:
        """The codes ``[K, dim]`` of a side; the same for both if they are shared."""
        return self.codes[0 if side == "a" else -1]

    def queries(self, tokens: Tensor, side: Direction) -> Tensor:
        """Query vectors ``[N, L, dim]`` of tokens ``[N, L, width]``."""
        return (self.query_a if side == "a" else self.query_b)(tokens)

    def match(self, tokens: Tensor, mask: Tensor | None, side: Direction) -> Tensor:
        """How well items match each code, before the temperature: ``[N, K]``."""
        tokens, mask = _as_tokens(tokens, mask)
        queries = self.queries(tokens, side)
        return ground(queries, mask, self.book(side), pool=self.pool, chunk=self.chunk, pads_count=self.parity)

    def weights(self, tokens: Tensor, mask: Tensor | None, side: Direction) -> Tensor:
        """Weights over the codes, ``[N, K]``; mostly zeros. With `book` they are all that an index needs."""
        return activate(self.match(tokens, mask, side) / self.temperature, self.activation)

    def represent(self, tokens: Tensor, mask: Tensor | None, side: Direction) -> Tensor:
        """Unit vectors ``[N, dim]``; inner products of them are the scores."""
        return _unit(self.weights(tokens, mask, side) @ self.book(side))

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
        groups: Any = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a: ``[N, width]``, one token an item, if there are no tokens; otherwise not used.
            b: ``[M, width_b]``, likewise.
            a_tokens: ``[N, L, width]``, without a summary token.
            a_mask: bool ``[N, L]``; None if all tokens are there.
            b_tokens: ``[M, L', width_b]``.
            b_mask: bool ``[M, L']``.
            groups: ids of `info_nce`.

        Returns:
            ``a_to_b``, ``b_to_a`` and, with that weight, ``orthogonality``.
        """
        sides: tuple[tuple[Direction, Tensor, Tensor | None], ...] = (
            ("a", a if a_tokens is None else a_tokens, None if a_tokens is None else a_mask),
            ("b", b if b_tokens is None else b_tokens, None if b_tokens is None else b_mask),
        )
        matches = [self.match(tokens, mask, side) for side, tokens, mask in sides]
        if self.training and not bool(self.ready):
            found = [starting_temperature(match.detach(), self.start_share) for match in matches]
            self.start_temperature.fill_(sum(found) / len(found))
            self.ready.fill_(True)
        weights = [activate(match / self.temperature, self.activation) for match in matches]
        vectors = [_unit(w @ self.book(side)) for w, (side, *_) in zip(weights, sides)]
        if self.training:
            self._watch(weights, vectors, sides)
        losses = info_nce(*vectors, scale=self.scale, groups=groups)
        if self.orthogonality:
            rise = min(1.0, float(self.progress) / self.warmup) if self.warmup else 1.0
            losses["orthogonality"] = self.orthogonality * rise * code_overlap(self.codes)
        return losses

    @torch.no_grad()
    def _watch(self, weights: list[Tensor], vectors: list[Tensor], sides: Any) -> None:
        """Notes which codes are in use, some queries, and how far apart the representations lie."""
        self.share.fill_(float(torch.stack([(w > 0).float().mean() for w in weights]).mean()))
        self.spread = min(float(1 - v.mean(0).square().sum()) for v in vectors)
        self.idle += 1
        for w, (side, tokens, mask) in zip(weights, sides):
            self.idle[0 if side == "a" else -1].masked_fill_((w > 0).any(0), 0)
            tokens, mask = _as_tokens(tokens, mask)
            there = tokens[mask.bool()]
            if len(there) and self.revive_after:
                some = torch.linspace(0, len(there) - 1, min(_SAMPLE, len(there)), device=there.device).long()
                queries = self.queries(there[some], side)
                self.recent.push(queries, torch.full((len(queries),), 0 if side == "a" else len(self.codes) - 1))

    @torch.no_grad()
    def on_progress(self, step: int, steps: int) -> None:
        """Cools the temperature, keeps the scale in its bounds, revives codes; called before each training step.

        Args:
            step: steps made so far.
            steps: steps of the whole training.
        """
        self.progress.fill_(step / max(1, steps))
        self.step.fill_(step)
        self.log_scale.clamp_(*_LOG_SCALE)
        if float(self.share) > self.least:
            self.cooling.fill_(self.decay ** (step / (self.every or max(1, steps) / 10)))
        if self.revive_after:
            self.revive()

    @torch.no_grad()
    def revive(self) -> int:
        """Sets codes that no item has used for ``revive_after`` steps to recent queries, as long as the living codes are.

        Frequent queries are drawn often, as they stand in the queue often.

        Returns:
            How many codes.
        """
        count = 0
        for number, (codes, idle) in enumerate(zip(self.codes, self.idle)):
            dead = idle >= self.revive_after
            queries, side = self.recent.get()
            queries = queries[side == number]
            n = int(dead.sum())
            if not n or not len(queries):
                continue
            # Seeded by the step, so that all processes and a resumed training draw the same.
            generator = torch.Generator().manual_seed(int(self.step))
            drawn = queries[torch.randint(len(queries), (n,), generator=generator).to(queries.device)]
            length = codes.norm(dim=1).mean()
            codes[dead] = (nn.functional.normalize(drawn, dim=1) * length).to(codes.dtype)
            idle[dead] = 0
            count += n
        return count

    @torch.no_grad()
    def transform_query(self, items: Encoded, side: Direction, *, chunk: int = 1024) -> Tensor:
        """Unit vectors ``[N, dim]`` of encoded items of a side, for any index of inner products.

        Args:
            items: what the model gives.
            side: ``"a"`` or ``"b"``.
            chunk: items at a time.
        """
        tokens, mask = (items.vectors, None) if items.tokens is None else (items.tokens, items.mask)
        device = self.codes.device
        parts = []
        for start in range(0, len(tokens), chunk):
            part = slice(start, start + chunk)
            found = self.represent(tokens[part].to(device), None if mask is None else mask[part].to(device), side)
            parts.append(found.to(tokens.device))
        return torch.cat(parts) if parts else tokens.new_zeros((0, self.codes.shape[-1]))

    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a", *, chunk: int = 1024) -> Tensor:
        """Cosine of the representations, ``[N, M]``; the same in both directions.

        Args:
            a: encoded items of side ``a``.
            b: of side ``b``.
            direction: for the contract; it changes nothing.
            chunk: items at a time.
        """
        return self.transform_query(a, "a", chunk=chunk) @ self.transform_query(b, "b", chunk=chunk).T


def code_overlap(codes: Tensor) -> Tensor:
    """``|norm(C) norm(C)^T - I|_F^2 / K^2``: 0 if the codes ``[..., K, d]`` of a book are orthogonal; books are summed."""
    k, d = codes.shape[-2:]
    unit = nn.functional.normalize(codes, dim=-1)
    # |U U^T|^2 = |U^T U|^2: the smaller of the two products is enough.
    gram = unit @ unit.mT if k <= d else unit.mT @ unit
    diagonal = unit.square().sum(-1).sum(-1)
    return ((gram.square().sum((-1, -2)) - 2 * diagonal + k) / k**2).sum()


def _as_tokens(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Vectors ``[N, width]`` as one token an item, and a mask where there is none."""
    tokens = tokens[:, None] if tokens.ndim == 2 else tokens
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask


def _unit(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors, dim=-1, eps=1e-10)

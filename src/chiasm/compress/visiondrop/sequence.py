"""The sequence of a prompt while its visual tokens become fewer: where they stand, what is padding, which place each has."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from chiasm.compress.visiondrop.schedule import Stage
from chiasm.errors import BadInput

Positions = Literal["repack", "keep"]


@dataclass
class Segment:
    """What later tokens must know of the layers from one stage to the next.

    Args:
        layer: its first layer.
        valid: bool ``[B, T']``, keys that are no padding.
        dropped: int64 ``[B]``, tokens of each item that are gone.
    """

    layer: int
    valid: Tensor
    dropped: Tensor


@dataclass
class Sequence:
    """The prompt in one segment. All methods return a new one or fill in this one's later fields; tensors are not changed.

    Args:
        valid: bool ``[B, T]``, False at padding.
        position: int64 ``[B, T]``, position ids.
        origin: int64 ``[B, T]``, place in the prompt as it was given; -1 for contextual tokens and fillers.
        rows: int64 ``[I]``, the item in which each picture is.
        columns: int64 ``[I, M]``, where its visual tokens stand.
        grid: int64 ``[I, M]``, which visual token of the picture each is (the target's for contextual ones).
        dropped: int64 ``[B]``.
    """

    valid: Tensor
    position: Tensor
    origin: Tensor
    rows: Tensor
    columns: Tensor
    grid: Tensor
    dropped: Tensor
    mask: Tensor | None = field(default=None)
    rotary: tuple[Tensor, Tensor] | None = field(default=None)

    def shrink(
        self, hidden: Tensor, new: Tensor, source: Tensor, contextual: int, positions: Positions
    ) -> tuple[Tensor, Sequence]:
        """Puts fewer visual tokens in the place of those of each picture, and closes the gaps.

        Args:
            hidden: ``[B, T, D]``.
            new: ``[I, m, D]``, the tokens that are left, in their new order.
            source: int64 ``[I, m]``, which of the M tokens each was (for a contextual one: its target).
            contextual: how many of the m, at the end, are contextual.
            positions: ``"repack"``: position ids without gaps; ``"keep"``: each token keeps that of its source.

        Returns:
            The hidden states ``[B, T', D]`` and the sequence. Where items lose different numbers of tokens, the shorter
            ones are filled up in front, with fillers that count as padding.
        """
        left = new.shape[1]
        rows, slots = self.rows[:, None], self.columns[:, :left]
        hidden, position, origin = hidden.clone(), self.position.clone(), self.origin.clone()
        hidden[rows, slots] = new
        stays = torch.ones_like(self.valid)
        stays[rows, self.columns[:, left:]] = False
        was = self.columns.gather(1, source)
        came = self.origin[rows, was]
        came[:, left - contextual :] = -1
        origin[rows, slots] = came
        if positions == "keep":
            position[rows, slots] = self.position[rows, was]
        else:
            position = position - (~stays).long().cumsum(dim=1)
        most = int(stays.sum(dim=1).max())
        order = stays.to(torch.int8).argsort(dim=1, stable=True)[:, stays.shape[1] - most :]
        there = stays.gather(1, order)
        place = torch.zeros_like(self.position)
        place.scatter_(1, order, torch.arange(most, device=order.device).expand_as(order))
        made = Sequence(
            self.valid.gather(1, order) & there,
            position.gather(1, order).clamp_min(0),
            origin.gather(1, order).masked_fill(~there, -1),
            self.rows,
            place[rows, slots],
            self.grid.gather(1, source),
            self.dropped + (~stays).sum(dim=1),
        )
        return hidden.gather(1, order[:, :, None].expand(-1, -1, hidden.shape[2])), made

    def cut(self, values: Tensor, fill: int = -100) -> Tensor:
        """What belongs to each token that is left, out of ``values`` ``[B, T0]`` for the prompt as given (labels, ids).

        Contextual tokens and fillers get ``fill``.

        Raises:
            BadInput: values of another number of items, or too few of each.
        """
        if values.ndim != 2 or len(values) != len(self.origin) or int(self.origin.amax()) >= values.shape[1]:
            raise BadInput(
                f"values {tuple(values.shape)} for a prompt of {len(self.origin)} items",
                where="VisionDrop.cut",
                fix="Give one value a token of the prompt as it was given, [B, T]",
            )
        return values.gather(1, self.origin.clamp_min(0)).masked_fill(self.origin < 0, fill)


def causal_mask(valid: Tensor, queries: int, *, explicit: bool = False) -> Tensor | None:
    """What the last ``queries`` tokens see: bool ``[B, 1, queries, T]``, or None if plain causality says it all.

    Args:
        valid: bool ``[B, T]``, False at padding; a padding query sees itself, so that no row is empty.
        queries: number of queries, at the end of the sequence.
        explicit: the attention function knows no causality of its own (eager).
    """
    total = valid.shape[1]
    if bool(valid.all()) and (queries == 1 or (queries == total and not explicit)):
        return None
    places = torch.arange(total, device=valid.device)
    queried = places[total - queries :, None]
    return ((places <= queried) & valid[:, None, :] | (places == queried))[:, None]


# ---- what is remembered


@dataclass(frozen=True)
class Cut:
    """What one stage did, for inspection.

    Args:
        stage: its numbers.
        scores: float32 ``[I, M]`` of the tokens that came, in the order in which they came.
        kept: int64 ``[I, d]``, the dominant tokens by their number in the picture's full row of patches (-1: class token).
        grid: int64 ``[I, M]``, that number of each token that came.
    """

    stage: Stage
    scores: Tensor
    kept: Tensor
    grid: Tensor


@dataclass
class Memory:
    """What decoding must know of a pruned prompt; belongs to its cache."""

    length: int
    following: Tensor
    segments: list[Segment] = field(default_factory=list)

    def past(self, cache: Any) -> int:
        """Tokens that were added to the cache behind the prompt."""
        return cache.get_seq_length() - self.segments[0].valid.shape[1]

    def added(self, cache: Any, new: Tensor, mask: Tensor | None, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Validity bool ``[B, past + n]`` of all tokens behind the prompt and position ids ``[B, n]`` of the new ones.

        Args:
            cache: what was read so far.
            new: ids ``[B, n]`` or embeddings ``[B, n, D]``.
            mask: bool or 0 / 1 ``[B, T + past + n]`` with T tokens in the prompt as given; another one is taken as all valid.
            position: ``[B, n]`` as for the prompt as given; default right behind it.
        """
        past, (batch, count) = self.past(cache), new.shape[:2]
        fresh = torch.ones(batch, past + count, dtype=torch.bool, device=new.device)
        if mask is not None and mask.ndim == 2 and mask.shape[1] == self.length + past + count:
            fresh = mask[:, self.length :].bool()
        if position is None:
            position = self.following[:, None] + past + torch.arange(count, device=new.device)
        return fresh, position.expand(batch, -1)

    def forget(self, cache: Any, count: int) -> Memory:
        """Takes the last ``count`` tokens out of the cache, and returns what is to be remembered of the rest.

        Raises:
            BadInput: a negative count, or one that leaves nothing of a segment.
        """
        past = self.past(cache)
        if not 0 <= count < past + min(segment.valid.shape[1] for segment in self.segments):
            raise BadInput(f"drop_last={count}", where="VisionDrop.fork", fix="Drop no more than follows the picture")
        for layer in cache.layers if count else ():
            layer.keys, layer.values = layer.keys[..., :-count, :], layer.values[..., :-count, :]
        gone = max(0, count - past)
        segments = [Segment(s.layer, s.valid[:, : s.valid.shape[1] - gone], s.dropped) for s in self.segments]
        return Memory(self.length - gone, self.following - gone, segments)


def copied(cache: Any) -> Any:
    """A copy of a cache without the graph that its tensors belong to where no `torch.no_grad` was open."""
    states = [x for layer in cache.layers for x in (layer.keys, layer.values) if torch.is_tensor(x)]
    return copy.deepcopy(cache, {id(x): x.detach().clone() for x in states})


@dataclass
class Run:
    """One call of the model on one thread."""

    sequence: Sequence | None = None
    memory: Memory | None = None
    cuts: list[Cut] = field(default_factory=list)
    # While decoding: validity and position ids of the new tokens, and what was made of them for the current segment.
    fresh: Tensor | None = None
    position: Tensor | None = None
    segment: Segment | None = None
    mask: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None

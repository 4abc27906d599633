"""`TokenReducer`: score, match, merge, by a schedule, with a source map; all state is explicit, so it is re-entrant.

    >>> reducer = TokenReducer(Schedule(16), match="complete_graph", score="cross", merge="guided")
    >>> state = TokenState.start(tokens, protected=[0, -1])
    >>> with listen(state.log_size) as calls:                          # proportional attention
    ...     tokens = tokens + attention(norm(tokens))
    >>> state = reducer(state.holding(tokens), layer, calls[0])        # r tokens fewer
    >>> spread(state.tokens, state.owner)                              # back to one vector an input token

A reducer is a frozen description: it holds no tensor and changes nothing. Methods differ in three functions. A score says
how important a token is, a match says who goes where, a merge says how much of whom remains; each is a name or a callable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.blocks.attention import Attended
from chiasm.blocks.merging import (
    KEYS,
    Keys,
    Matching,
    bipartite,
    complete_graph,
    follow,
    kept,
    merge,
    random_pairs,
    source_matrix,
    unit_keys,
)
from chiasm.errors import BadInput, unknown_name


@dataclass(frozen=True)
class Schedule:
    """How many tokens go in each layer.

    Args:
        r: tokens a layer; or a list with one number a layer.
        inflection: 0 for the same in every layer (ToMe and CrossGET); towards 1 few go at first and more later, towards -1
            the other way round: from ``int(r (1 - inflection))`` to twice r minus that, linearly.
        cap: where the sequence is too short for r, take as many as there are (the released codes do so silently) instead of
            raising an error. Texts, whose length varies, need it.

    Raises:
        BadInput: a negative number, one that is not whole, or an inflection outside -1..1.
    """

    r: int | Sequence[int] = 8
    inflection: float = 0.0
    cap: bool = False

    def __post_init__(self) -> None:
        numbers = list(self.r) if isinstance(self.r, Sequence) else [self.r]
        if any(not isinstance(number, Integral) or number < 0 for number in numbers):
            raise BadInput(
                f"r={self.r!r} is negative, or no whole number",
                where="Schedule",
                fix="Give a whole number from 0, or a list with one a layer",
            )
        if not -1 <= self.inflection <= 1:
            raise BadInput(f"inflection={self.inflection} is outside -1..1", where="Schedule", fix="0 is constant")

    def counts(self, layers: int) -> list[int]:
        """What is wished for each of some layers.

        Raises:
            BadInput: a list of another length.
        """
        if not isinstance(self.r, int):
            if len(self.r) != layers:
                raise BadInput(
                    f"{len(self.r)} numbers for {layers} layers",
                    where="Schedule",
                    fix="Give one a layer, or one for all",
                )
            return list(self.r)
        least = int(self.r * (1 - self.inflection))
        step = (2 * self.r - 2 * least) / max(1, layers - 1)
        return [self.r] * layers if not self.inflection else [int(least + at * step) for at in range(layers)]

    @property
    def nothing(self) -> bool:
        """True if no token ever goes."""
        return not (self.r if isinstance(self.r, int) else any(self.r))

    def plan(self, tokens: int, layers: int, protected: int = 0) -> list[int]:
        """What goes in each layer from a sequence of some length; at most half of the free tokens a layer.

        Args:
            tokens: length of the sequence, protected tokens included.
            layers: number of layers.
            protected: tokens that never go.

        Raises:
            BadInput: more than can be merged, without ``cap``.
        """
        made = []
        for layer, wish in enumerate(self.counts(layers)):
            most = max(0, (tokens - protected) // 2)
            if wish > most and not self.cap:
                raise BadInput(
                    f"r={wish} in layer {layer}, where {tokens} tokens are left and {protected} of them are protected",
                    where="Schedule",
                    fix=f"At most {most} can go there: take a smaller r, or cap=True",
                )
            made.append(min(wish, most))
            tokens -= made[-1]
        return made


@dataclass(frozen=True)
class TokenState:
    """Everything that is known about the tokens of a batch between two layers.

    Args:
        tokens: ``[B, T, D]``.
        size: float32 ``[B, T]``, input tokens in each; 0 for padding.
        owner: int64 ``[B, T0]``, the token in which each input token now is: the source map.
        position: int64 ``[B, T]``, the place in the input of the token that received the others.
        protected: bool ``[B, T]``, tokens that never go and never receive.
        whole: False once an item of the batch may have padding.
    """

    tokens: Tensor
    size: Tensor
    owner: Tensor
    position: Tensor
    protected: Tensor
    whole: bool = True

    @classmethod
    def start(cls, tokens: Tensor, protected: Sequence[int] | Tensor = (), padding: Tensor | None = None) -> TokenState:
        """The state before the first layer.

        Args:
            tokens: ``[B, T, D]``.
            protected: places (negative ones count from the end), or bool ``[B, T]``.
            padding: bool ``[B, T]``, True where there is no token.

        Raises:
            BadInput: masks of the wrong size, or places outside the sequence.
        """
        if tokens.ndim != 3:
            raise BadInput(f"tokens {tuple(tokens.shape)}", where="TokenState.start", fix="Give [B, T, D]")
        batch, length = tokens.shape[:2]
        if not isinstance(protected, Tensor):
            places = list(protected)
            if any(not -length <= place < length for place in places):
                raise BadInput(
                    f"protected={places} for {length} tokens",
                    where="TokenState.start",
                    fix="Give places in the sequence",
                )
            mask = torch.zeros(batch, length, dtype=torch.bool, device=tokens.device)
            mask[:, places] = True
        else:
            mask = protected
        for name, given in (("protected", mask), ("padding", padding)):
            if given is not None and tuple(given.shape) != (batch, length):
                raise BadInput(
                    f"{name} has shape {tuple(given.shape)}, the tokens are {batch} x {length}",
                    where="TokenState.start",
                    fix="Give bool [B, T]",
                )
        places = torch.arange(length, device=tokens.device).expand(batch, -1)
        size = torch.ones(batch, length, device=tokens.device)
        if padding is not None:
            size = size.masked_fill(padding, 0.0)
        return cls(tokens, size, places, places, mask, padding is None)

    @property
    def log_size(self) -> Tensor | None:
        """Bias of proportional attention ``[B, 1, 1, T]``, -inf at padding; None while every token is one token."""
        if self.whole and self.size.shape[1] == self.owner.shape[1]:
            return None
        return self.size.log()[:, None, None, :]

    @property
    def padding(self) -> Tensor | None:
        """bool ``[B, T]`` where there is no token, or None."""
        return None if self.whole else self.size == 0

    def holding(self, tokens: Tensor) -> TokenState:
        """The same with other values of the tokens."""
        return replace(self, tokens=tokens)

    def matrix(self) -> Tensor:
        """The source map as bool ``[B, T, T0]``."""
        return source_matrix(self.owner, self.tokens.shape[1])


# ---- scores


def cross_score(call: Attended) -> Tensor:
    """CrossGET on modality-independent models: cosine of each key with the query of the last (cross) token, heads side by side.

    Returns:
        float32 ``[B, T]``.
    """
    # Heads side by side, as the projections left them: a view.
    key = call.key.detach().transpose(1, 2).flatten(2).float()
    cross = nn.functional.normalize(call.query[:, :, -1].detach().flatten(1).float(), dim=-1)
    product = (cross[:, None] @ key.transpose(1, 2))[:, 0]
    return product / torch.linalg.vector_norm(key, dim=-1).clamp_min(1e-12)


def attention_score(call: Attended) -> Tensor:
    """CrossGET in LLaVA: mean attention that a token gets from the other queries, plus what the last (cross) token gives it.

    Returns:
        float32 ``[B, T]``.
    """
    with torch.no_grad():
        seen = call.probabilities()
        looks = torch.ones(len(seen), seen.shape[-1], device=seen.device)
        if call.bias is not None:
            # Padding (bias -inf) looks around too, but its view does not count; the last token sees all there are.
            looks = looks * (call.bias[:, 0, -1] > -torch.inf)
        looks[:, -1] = 0
        cross, own = seen[:, :, -1].mean(dim=1), seen.diagonal(dim1=2, dim2=3).mean(dim=1)
        received = (looks[:, None, None] @ seen)[:, :, 0].mean(dim=1)
        others = (looks.sum(dim=1, keepdim=True) - 1).clamp_min(1)
        return (received - looks * own) / others + cross


Score = Callable[[Attended], Tensor]
Match = Callable[[Tensor, int, Tensor | None, Tensor | None, Tensor | None], Matching]


def _match_bipartite(keys: Tensor, r: int, importance: Any, protected: Any, counts: Any) -> Matching:
    return bipartite(keys, r, protected, counts)


def _match_complete(keys: Tensor, r: int, importance: Any, protected: Any, counts: Any) -> Matching:
    return complete_graph(keys, r, importance, protected, counts)


def _match_receive_best(keys: Tensor, r: int, importance: Any, protected: Any, counts: Any) -> Matching:
    return complete_graph(keys, r, importance, protected, counts, precedence="receive_best")


def _match_random(keys: Tensor, r: int, importance: Any, protected: Any, counts: Any) -> Matching:
    return random_pairs(keys, r, protected, counts)


SCORES: dict[str, Score | None] = {"none": None, "cross": cross_score, "attention": attention_score}
MATCHES: dict[str, Match] = {
    "bipartite": _match_bipartite,
    "complete_graph": _match_complete,
    "receive_best": _match_receive_best,
    "random": _match_random,
}
MERGES = ("mean", "guided")


@dataclass(frozen=True)
class TokenReducer:
    """Merges the tokens of one layer.

    Args:
        schedule: how many go in each layer, or r for all.
        match: ``"complete_graph"`` (CrossGET), ``"receive_best"`` (the same with the opposite precedence), ``"bipartite"``
            (ToMe), ``"random"``; or ``match(keys, r, importance, protected, counts) -> Matching``.
        score: ``"cross"``, ``"attention"`` or ``"none"``; or ``score(call) -> [B, T]``.
        match_by_score: whether the match sees the score (cross-guided matching).
        merge: ``"guided"`` (softmax weights of the score) or ``"mean"`` (by size).
        keys: ``"full"`` (heads side by side) or ``"mean"`` over the heads.
        keep_order: False puts what `bipartite` leaves in ToMe's order: unmerged even tokens, then the odd ones.

    Raises:
        UnknownName: a name that does not exist.
        BadInput: a guided merge without a score.
    """

    schedule: Schedule | int = field(default_factory=Schedule)
    match: str | Match = "complete_graph"
    score: str | Score = "none"
    match_by_score: bool = True
    merge: str = "mean"
    keys: Keys = "full"
    keep_order: bool = True

    def __post_init__(self) -> None:
        for kind, name, known in (("match", self.match, MATCHES), ("score", self.score, SCORES)):
            if isinstance(name, str) and name not in known:
                raise unknown_name(kind, name, known)
        if self.merge not in MERGES:
            raise unknown_name("merge", self.merge, MERGES)
        if self.keys not in KEYS:
            raise unknown_name("width of keys", self.keys, KEYS)
        if self.merge == "guided" and self.score == "none":
            raise BadInput(
                "a guided merge needs a score", where="TokenReducer", fix="Give score='cross' or 'attention'"
            )
        if isinstance(self.schedule, int):
            object.__setattr__(self, "schedule", Schedule(self.schedule))

    def __call__(self, state: TokenState, r: int, call: Attended) -> TokenState:
        """The state after up to r tokens of each item have been merged.

        Args:
            state: the state, whose tokens are those after the attention.
            r: tokens that go, see `Schedule.plan`. Items with padding lose as many as they would alone: at most half of
                their own free tokens; padding itself goes besides.
            call: the attention call of this layer.

        Raises:
            BadInput: r is more than can be merged.
        """
        if not r:
            return state
        tokens = state.tokens
        barred, counts, padding = state.protected, None, state.padding
        if padding is not None:
            counts = ((~(padding | barred)).sum(dim=1) // 2).clamp(max=r)
            r = int(counts.max())
            barred = barred | padding
        made = SCORES[self.score] if isinstance(self.score, str) else self.score
        importance = None if made is None else made(call).detach()
        match = MATCHES[self.match] if isinstance(self.match, str) else self.match
        found = match(unit_keys(call.key, self.keys), r, importance if self.match_by_score else None, barred, counts)
        keep = kept(found, tokens.shape[1], padding)
        if not self.keep_order:
            # Places with the same parity keep their order; protected tokens of even place stay in front.
            keep = keep.gather(1, (keep % 2).argsort(dim=1, stable=True))
        guide = importance if self.merge == "guided" else None
        merged, size = merge(tokens, state.size, found, keep, guide)
        return TokenState(
            merged,
            size,
            follow(state.owner, found, keep, tokens.shape[1]),
            state.position.gather(1, keep),
            state.protected.gather(1, keep),
            state.whole and found.valid is None,
        )

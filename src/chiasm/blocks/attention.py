"""Attention inside Hugging Face models, listened to and biased through transformers' registry of attention functions.

    >>> tap = AttentionTap(model).attach()                   # outputs stay what they were
    >>> with listen(bias=log_size) as calls:                 # [B, 1, 1, Tk], added to the logits
    ...     out = layer.self_attn(x, attention_mask=mask)
    >>> calls[0].key, calls[0].probabilities()               # [B, Hk, Tk, dh], [B, H, Tq, Tk]
    >>> query, key = queries_and_keys(layer.self_attn, x)    # stops before the attention itself is computed

Every attention module of transformers 5 asks ``ALL_ATTENTION_FUNCTIONS`` for the function that its config names. A tap puts
a function of ours under a name of its own (``chiasm|sdpa`` in front of ``sdpa``) and that name into the model's configs; no
class and no forward is exchanged. Outside of `listen` the function only passes on, so outputs are bit-identical. What is
heard belongs to the thread that listens, so a model that serves searches meanwhile is left alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput

_PREFIX = "chiasm|"


@dataclass(frozen=True, slots=True)
class Attended:
    """What one attention call was given.

    Args:
        query: ``[B, H, Tq, dh]``, after norms and rotary positions.
        key: ``[B, Hk, Tk, dh]``; fewer heads than the queries in grouped-query attention.
        mask: what the model masks with (bool, True = seen, or additive), broadcastable to ``[B, H, Tq, Tk]``; or None.
        scaling: factor of the logits.
        causal: without a mask, queries see no later keys.
        bias: what `listen` added to the logits, or None.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    causal: bool
    bias: Tensor | None = None

    def probabilities(self, rows: Any = slice(None)) -> Tensor:
        """Attention float32 ``[B, H, rows, Tk]`` of some queries (index of the query axis; default all)."""
        mask = additive(self.mask, self.bias, self.query, self.key, self.causal)
        if mask is not None:
            mask = mask[..., rows, :] if mask.shape[-2] > 1 else mask
        return attention_probabilities(self.query[..., rows, :], self.key, self.scaling, mask)


def attention_probabilities(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """``softmax(q k^T * scaling + mask)`` in float32, ``[B, H, Tq, Tk]``; rows that see nothing are zero.

    Args:
        query: ``[B, H, Tq, dh]``.
        key: ``[B, Hk, Tk, dh]``; H is a multiple of Hk.
        scaling: factor of the logits.
        mask: bool (True = seen) or additive, broadcastable to ``[B, H, Tq, Tk]``.
    """
    logits = (query.float() * scaling) @ per_query_head(key, query.shape[1]).float().transpose(-1, -2)
    if mask is None:
        return logits.softmax(-1)
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
    nothing = logits.amax(-1, keepdim=True) == -torch.inf
    return logits.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)


def per_query_head(key: Tensor, heads: int) -> Tensor:
    """Keys (or values) ``[B, Hk, T, dh]`` repeated to one head a query head, ``[B, heads, T, dh]``."""
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], dim=1)


def additive(
    mask: Tensor | None, bias: Tensor | None, query: Tensor, key: Tensor, causal: bool = False
) -> Tensor | None:
    """One additive mask of the queries' dtype out of a mask, a bias and causality; None if there is nothing to add.

    Args:
        mask: bool (True = seen) or additive, broadcastable to ``[B, H, Tq, Tk]``.
        bias: added to the logits, broadcastable likewise.
        query, key: ``[B, H, Tq, dh]`` and ``[B, Hk, Tk, dh]``, for sizes, dtype and device.
        causal: used only where there is no mask, as in transformers.
    """
    total = None
    if mask is None and causal and query.shape[-2] > 1:
        q, k = query.shape[-2], key.shape[-2]
        mask = torch.ones(q, k, dtype=torch.bool, device=query.device).tril(k - q)[None, None]
    if mask is not None:
        hidden = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        total = hidden.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask.to(query.dtype)
    if bias is not None:
        bias = bias.to(query.dtype)
        total = bias if total is None else total + bias
    return total


# ---- listening


class _Enough(Exception):
    """Queries and keys are known; the rest of the attention is not needed."""


@dataclass(slots=True)
class _Scope:
    bias: Tensor | None = None
    stop: bool = False
    calls: list[Attended] = field(default_factory=list)


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Scope] = []


_scopes = _Scopes()


@contextmanager
def listen(bias: Tensor | None = None) -> Iterator[list[Attended]]:
    """While it is open, attention calls of tapped models on this thread are recorded, and biased.

    Args:
        bias: added to the logits of every call, broadcastable to ``[B, H, Tq, Tk]``; -inf hides a key.

    Yields:
        The calls so far, in order.

    Raises:
        BadInput: (in the call) a bias, and the model's attention function is one that cannot take it.
    """
    scope = _Scope(bias)
    _scopes.stack.append(scope)
    try:
        yield scope.calls
    finally:
        _scopes.stack.remove(scope)


def queries_and_keys(attention: nn.Module, hidden: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Queries ``[B, H, T, dh]`` and keys ``[B, Hk, T, dh]`` that an attention module of a tapped model makes of some states.

    The model's own code makes them (norms of queries and keys, rotary positions, grouped heads); the attention itself is
    not computed.

    Args:
        attention: the attention module, for example ``layer.self_attn``.
        hidden: ``[B, T, D]``, already normed as the module expects it.
        **kwargs: what the module needs besides, for example ``position_embeddings``. Give no cache: it would be filled.

    Raises:
        BadInput: the module is not tapped, or does not use transformers' registry.
    """
    scope = _Scope(stop=True)
    _scopes.stack.append(scope)
    try:
        attention(hidden, **kwargs)
    except _Enough:
        return scope.calls[0].query, scope.calls[0].key
    finally:
        _scopes.stack.remove(scope)
    raise BadInput(
        "computes attention outside of transformers' registry, or is not tapped",
        where=type(attention).__name__,
        fix="Attach an AttentionTap to the model first",
    )


# ---- the tap

_lock = threading.Lock()
# id(config) -> [config, its own function, how many taps are open]; the config is held so that its id stays its own.
_switched: dict[int, list[Any]] = {}


class AttentionTap:
    """Lets `listen` and `queries_and_keys` hear a model. Several taps on one model do not disturb each other.

    Args:
        *models: transformers models or parts of them.
    """

    def __init__(self, *models: nn.Module) -> None:
        self._models = models
        self._configs: list[Any] = []

    def attach(self) -> AttentionTap:
        """Puts our function before the models' own.

        Raises:
            BadInput: it is attached already, or nothing in the models has a transformers config.
        """
        if self._configs:
            raise BadInput("is attached already", where="AttentionTap", fix="Call detach() first")
        found: dict[int, Any] = {}
        for model in self._models:
            for module in model.modules():
                config = getattr(module, "config", None)
                if hasattr(config, "_attn_implementation"):
                    found[id(config)] = config
        if not found:
            raise BadInput(
                "has no transformers config",
                where=", ".join(type(m).__name__ for m in self._models),
                fix="Give models of transformers",
            )
        self._configs = list(found.values())
        with _lock:
            for config in self._configs:
                entry = _switched.setdefault(id(config), [config, config._attn_implementation, 0])
                entry[2] += 1
                if entry[2] == 1:
                    _name(config, _register(entry[1]))
        return self

    def detach(self) -> None:
        """Gives the models their own function back; without effect if it is not attached."""
        with _lock:
            for config in self._configs:
                entry = _switched[id(config)]
                entry[2] -= 1
                if not entry[2]:
                    _name(config, entry[1])
                    del _switched[id(config)]
        self._configs = []


def _name(config: Any, implementation: str | None) -> None:
    # The dict form leaves the sub-configs alone; a plain name would be passed on to all of them.
    config._attn_implementation = {"": implementation}


def own_implementation(config: Any) -> str:
    """The name of the attention function of a config, whether it is tapped or not; ``"eager"`` if it names none."""
    return (config._attn_implementation or "eager").removeprefix(_PREFIX)


def _register(base: str | None) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    base = base or "eager"
    name = _PREFIX + base
    AttentionInterface.register(name, _function(base))
    if base in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _function(base: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        own = _own_function(base, module)
        scope = _scopes.stack[-1] if _scopes.stack else None
        if scope is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        causal = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        scope.calls.append(Attended(query, key, attention_mask, scaling, causal, scope.bias))
        if scope.stop:
            raise _Enough
        if scope.bias is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        if base not in ("sdpa", "eager"):
            raise BadInput(
                f"the attention function {base!r} takes no bias",
                where=type(module).__name__,
                fix="Load the model with attn_implementation='sdpa' or 'eager'",
            )
        mask = additive(attention_mask, scope.bias, query, key, causal)
        return own(module, query, key, value, mask, **kwargs | {"is_causal": False})

    return attend


def _own_function(base: str, module: nn.Module) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if base != "eager":
        return ALL_ATTENTION_FUNCTIONS[base]
    # The eager function is no part of the registry: each modeling file brings its own.
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise BadInput("has no eager attention", where=type(module).__name__, fix="Load with attn_implementation='sdpa'")

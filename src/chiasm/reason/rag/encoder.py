"""Texts to vectors, whatever makes them: a space, a store's space, or a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chiasm.embeddings import check_finite, unit
from chiasm.errors import BadInput
from chiasm.space import Role, Space

# (texts, "query" or "document") -> float32 [N, D] of unit length
TextEncoder = Callable[[Sequence[str], Role], np.ndarray]


def text_encoder(thing: Any) -> TextEncoder:
    """An encoder of texts.

    Args:
        thing: a `chiasm.Space`, or a function of ``texts`` or of ``(texts, role)`` that returns ``[N, D]``.

    Raises:
        BadInput: it is neither, or (when called) returns something else.
    """
    if isinstance(thing, Space):
        if "text" not in thing.modalities:
            raise BadInput(f"the space {thing.name} does not encode text", where="text_encoder")

        def by_space(texts: Sequence[str], role: Role) -> np.ndarray:
            prepared = [thing.prepare(item) for item in _items(texts)]
            return np.asarray(thing.embed(prepared, "text", role=role), np.float32)

        return by_space
    if not callable(thing):
        raise BadInput(f"cannot encode texts with a {type(thing).__name__}", where="text_encoder")
    takes_role = _parameters(thing) >= 2

    def by_function(texts: Sequence[str], role: Role) -> np.ndarray:
        vectors = np.asarray(thing(texts, role) if takes_role else thing(texts), np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise BadInput(f"{len(texts)} texts gave vectors of shape {vectors.shape}", where="text_encoder")
        check_finite(vectors, "text_encoder")
        return unit(vectors)

    return by_function


def _items(texts: Sequence[str]) -> list[Any]:
    from chiasm.items import Item

    return [Item("text", text, text=text) for text in texts]


def _parameters(function: Callable) -> int:
    import inspect

    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)

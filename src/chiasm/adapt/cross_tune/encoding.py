"""`BlackBox`: an encoder that can only be called. Each text is encoded once and kept by its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from chiasm.encode.cache import FeatureCache
from chiasm.errors import BadInput
from chiasm.items import content_hash
from chiasm.learn.features import Features

# Texts of one call.
_BATCH = 64


class BlackBox:
    """Token vectors of texts from anything that can be called; nothing else of the encoder is used, and no gradient.

        >>> box = BlackBox(chiasm.load("pocket"))
        >>> box = BlackBox(my_api, name="my-api-v3")        # list of texts -> list of [T_i, d], [N, T, d] or [N, d]

    Args:
        encoder: a space of `chiasm.load`, or a callable that takes a list of texts. It returns vectors ``[N, d]`` (one
            token a text), tokens ``[N, T, d]``, N arrays ``[T_i, d]``, or a pair of tokens and bool mask ``[N, T]``.
        name: names the encoder in the cache on disk; without a name only this object remembers. A space has its
            fingerprint.
        cache: the cache on disk; default the user's.
        most: tokens kept of a text; longer ones are averaged over windows of equal length. 64.

    Attributes:
        calls: texts that went through the encoder.
    """

    def __init__(
        self,
        encoder: Callable[[list[str]], Any] | Any,
        *,
        name: str = "",
        cache: FeatureCache | None = None,
        most: int = 64,
    ) -> None:
        if not callable(encoder) and not hasattr(encoder, "encode"):
            raise BadInput(
                f"a {type(encoder).__name__} encodes nothing", where="BlackBox", fix="Give a callable or a space"
            )
        if most < 1:
            raise BadInput(f"most is {most}", where="BlackBox", fix="Keep at least one token")
        self.encoder, self.most, self.calls = encoder, most, 0
        fingerprint = getattr(encoder, "fingerprint", None)
        self.name = name or (fingerprint.digest if fingerprint is not None else "")
        self.cache = (cache or FeatureCache()) if self.name else None
        self._kept: dict[str, np.ndarray] = {}

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """float32 ``[T_i, d]`` of each text.

        Raises:
            BadInput: something else than texts, or an encoder that returns something else than vectors.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise BadInput("not a list of texts", where="BlackBox", fix="Give a list of strings")
        keys = [content_hash(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._kept}
        if self.cache is not None:
            for key in list(missing):
                entry = self.cache.get(key, self.name, f"tokens {self.most}")
                if entry is not None:
                    self._kept[key] = entry.vectors
                    del missing[key]
        names = list(missing)
        for begin in range(0, len(names), _BATCH):
            part = names[begin : begin + _BATCH]
            for key, tokens in zip(part, self._call([missing[key] for key in part]), strict=True):
                self._kept[key] = windows(tokens, self.most)
                if self.cache is not None:
                    self.cache.put(key, self.name, [], self._kept[key], f"tokens {self.most}")
        return [self._kept[key] for key in keys]

    def features(self, texts: Sequence[str]) -> Features:
        """The same as a source of batches, ``input_features``."""
        return Features.ragged("input_features", self.tokens(texts))

    def means(self, texts: Sequence[str]) -> np.ndarray:
        """The mean token of each text, ``[N, d]``."""
        return np.stack([tokens.mean(axis=0) for tokens in self.tokens(texts)])

    def _call(self, texts: list[str]) -> list[np.ndarray]:
        self.calls += len(texts)
        with torch.no_grad():
            if hasattr(self.encoder, "encode"):
                found = self.encoder.encode(texts, tokens=True)
                found = (found.tokens, found.mask)
            else:
                found = self.encoder(texts)
        return as_tokens(found, len(texts))


def as_tokens(found: Any, count: int) -> list[np.ndarray]:
    """What an encoder returned as ``count`` arrays float32 ``[T_i, d]``."""
    mask = None
    if isinstance(found, tuple) and len(found) == 2:
        found, mask = found
        mask = np.asarray(_host(mask)).astype(bool)
    if isinstance(found, (list, tuple)):
        if any(isinstance(one, str) for one in found):
            raise BadInput("returned texts", where="the encoder", fix="Return vectors [N, d] or [N, T, d]")
        rows = [np.atleast_2d(np.asarray(_host(one), dtype=np.float32)) for one in found]
        if any(row.ndim != 2 for row in rows):
            raise BadInput("returned items that are no [T_i, d]", where="the encoder", fix="Return [N, d] or [N, T, d]")
    else:
        array = np.asarray(_host(found), dtype=np.float32)
        if array.ndim not in (2, 3):
            raise BadInput(f"returned shape {array.shape}", where="the encoder", fix="Return [N, d] or [N, T, d]")
        rows = list(array[:, None] if array.ndim == 2 else array)
    if mask is not None:
        if mask.shape != (len(rows), len(rows[0]) if rows else 0):
            raise BadInput(f"returned a mask of shape {mask.shape}", where="the encoder", fix="Return one [N, T]")
        rows = [row[keep] for row, keep in zip(rows, mask, strict=True)]
    if len(rows) != count or len({row.shape[1] for row in rows}) > 1:
        raise BadInput(
            f"returned {len(rows)} results for {count} texts, or of several widths",
            where="the encoder",
            fix="Return one result a text, all of one width",
        )
    for number, row in enumerate(rows):
        if not len(row) or not np.isfinite(row).all():
            raise BadInput(
                f"item {number} has no tokens, or NaN or infinite values",
                where="the encoder, or the vectors given",
                fix="Remove or repair it",
            )
    return rows


def windows(tokens: np.ndarray, most: int) -> np.ndarray:
    """``[T, d]`` as at most ``most`` means over neighboring tokens."""
    if len(tokens) <= most:
        return tokens
    cuts = np.linspace(0, len(tokens), most + 1).astype(np.int64)
    return np.add.reduceat(tokens, cuts[:-1], axis=0) / np.diff(cuts)[:, None].astype(np.float32)


def _host(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value

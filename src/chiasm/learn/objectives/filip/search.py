"""Two-stage search: candidates by the mean of the tokens (any nearest-neighbor index), then exact late interaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput, unknown_name
from chiasm.kernels.maxsim import maxsim_of
from chiasm.kernels.topk import topk_inner

Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Side = Literal["query", "document", "mean"]
_SIDES = ("query", "document", "mean")


class TwoStage:
    """An index of items with several tokens each.

    Memory: the tokens (float16 by default) and one float32 vector an item.

    Args:
        tokens: ``[N, L, D]``, numpy or torch; scaled to length 1 here.
        mask: bool ``[N, L]``; default all tokens.
        candidates: how many go to the exact stage; 200 (the card: 200 to 1000).
        side: whose tokens the mean runs over: the ``"query"``'s (the paper: each direction its own matrix), the
            ``"document"``'s, or the ``"mean"`` of both scores.
        kind: type that tokens are kept in; half precision halves the memory, scores are computed in float32.
        nearest: ``nearest(vectors [Q, D], k) -> (scores, rows [Q, k])`` of an index over `pooled`, with -1 for no result;
            default an exact scan.

    Raises:
        BadInput: shapes that do not fit, an item without tokens, or an unknown side.
    """

    def __init__(
        self,
        tokens: Any,
        mask: Any = None,
        *,
        candidates: int = 200,
        side: Side = "query",
        kind: Any = np.float16,
        nearest: Nearest | None = None,
    ) -> None:
        if candidates < 1:
            raise BadInput(f"candidates {candidates}", where="TwoStage", fix="Give at least one")
        if side not in _SIDES:
            raise unknown_name("side", side, _SIDES)
        values, real = _arrays(tokens, mask)
        if not real.any(axis=1).all():
            raise BadInput(f"item {int(np.flatnonzero(~real.any(axis=1))[0])} has no token", where="TwoStage")
        self.candidates, self.side = candidates, side
        self.pooled = pooled(values, real)
        self.tokens = unit(values[real]).astype(kind)
        self.offsets = np.concatenate([[0], np.cumsum(real.sum(axis=1))]).astype(np.int64)
        self._nearest = nearest or (lambda queries, k: topk_inner(queries, self.pooled, k))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def search(self, tokens: Any, mask: Any = None, *, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The best items for each query.

        Args:
            tokens: ``[Q, L, D]``.
            mask: bool ``[Q, L]``.
            k: results a query.

        Returns:
            Scores ``[Q, k]`` in falling order and int64 rows; at most as many as there are candidates. Ties go to the lower
            row, and places that stay empty hold row -1 and score -inf.
        """
        if k < 1:
            raise BadInput(f"k must be at least 1, got {k}", where="TwoStage.search")
        values, real = _arrays(tokens, mask)
        if values.shape[2] != self.tokens.shape[1]:
            raise BadInput(
                f"queries have {values.shape[2]} numbers a token, the index {self.tokens.shape[1]}", where="TwoStage"
            )
        _, rows = self._nearest(pooled(values, real), min(len(self), max(k, self.candidates)))
        rows = np.asarray(rows)
        queries = unit(values.reshape(-1, values.shape[2])).reshape(values.shape)
        found = [
            maxsim_of(queries, self.tokens, self.offsets, rows, mask=real, mean=True, reverse=reverse)
            for reverse, sides in ((False, ("query", "mean")), (True, ("document", "mean")))
            if self.side in sides
        ]
        scores = np.mean(found, axis=0) if len(found) > 1 else found[0]
        order = np.lexsort((np.where(rows < 0, len(self), rows), -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def pooled(tokens: Any, mask: Any = None) -> np.ndarray:
    """The vectors of the first stage, float32 ``[N, D]``: the mean of the unit tokens, scaled to length 1.

    Args:
        tokens: ``[N, L, D]``.
        mask: bool ``[N, L]``.
    """
    values, real = _arrays(tokens, mask)
    rows = unit(values.reshape(-1, values.shape[2])).reshape(values.shape)
    return unit(np.where(real[:, :, None], rows, 0).sum(axis=1))


def _arrays(tokens: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(tokens, dtype=np.float32)
    if values.ndim != 3:
        raise BadInput(f"tokens have shape {values.shape}, expected [N, L, D]", where="TwoStage")
    real = np.ones(values.shape[:2], dtype=bool) if mask is None else np.asarray(mask).astype(bool)
    if real.shape != values.shape[:2]:
        raise BadInput(f"a mask {real.shape} for tokens {values.shape}", where="TwoStage")
    return values, real

"""The cheapest cure: move both sides by one vector each, learned on banks.

Liang et al. 2022, *Mind the Gap*: shifting the two modalities changes the gap, and with it rankings and fairness.
"""

from __future__ import annotations

from typing import Any, Literal

from array_api_compat import array_namespace

from chiasm.correct.bias import Correction
from chiasm.errors import BadInput
from chiasm.kernels.topk import topk_inner
from chiasm.measure.vectors import as_rows


class MeanShift(Correction):
    """Queries and items less one vector each, then scaled to unit length.

    ``q' = norm(q - s_q), v' = norm(v - s_v)`` with s from the means m of the banks.

    Args:
        target: ``"common"`` moves both sides to their common center (``s_q = (m_q - m_v) / 2 = -s_v``: closes the gap,
            keeps a cone), ``"origin"`` centers each side (``s = m``: removes gap and cone).

    After ``fit``: ``vectors_ [M, D]`` to be stored, ``query_shift_`` and ``item_shift_`` ``[D]``.
    """

    needs = ("queries", "items")

    def __init__(self, target: Literal["common", "origin"] = "common") -> None:
        self.target = target

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        if self.target not in ("common", "origin"):
            raise BadInput(f"target={self.target!r} does not exist", where="MeanShift", fix="Use 'common' or 'origin'")
        xp = array_namespace(gallery)
        q, v = xp.mean(queries, axis=0), xp.mean(items, axis=0)
        self.query_shift_, self.item_shift_ = ((q - v) / 2, (v - q) / 2) if self.target == "common" else (q, v)
        self.vectors_ = self.transform(gallery)

    def transform(self, gallery: Any) -> Any:
        """The vectors to store for ``[m, D]`` items."""
        return as_rows(gallery - self.item_shift_, "gallery")

    def transform_queries(self, queries: Any) -> Any:
        """The vectors to search with for ``[Q, D]`` queries."""
        return as_rows(self._check_queries(queries) - self.query_shift_, "queries")

    def scores(self, queries: Any) -> Any:
        return self.transform_queries(queries) @ self.vectors_.T

    def topk(self, queries: Any, k: int) -> tuple[Any, Any]:
        return topk_inner(self.transform_queries(queries), self.vectors_, k)

"""DBNorm (Wang et al., EMNLP 2023, arXiv 2310.11612): demote hubs with a query bank and an item bank.

A few items ("hubs") show up in almost every result list. Hubs are similar to everything: to old queries and to old items. Both
banks are therefore evidence against them. With similarity S, bank similarities Q (query bank x items) and G (item bank x items),

    S'_ij = exp(b1 S_ij) / sum_m exp(b1 Q_mj)  *  exp(b2 S_ij) / sum_m exp(b2 G_mj)              (dual inverted softmax, DualIS)

whose logarithm is ``(b1 + b2) S_ij - LQ_j - LG_j``: one number an item, so it folds into any index.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from chiasm.correct.bias import Correction, ItemBias, centered
from chiasm.errors import BadInput
from chiasm.kernels.logsumexp import logsumexp_inner
from chiasm.kernels.topk import topk_inner
from chiasm.measure.vectors import like, to_numpy


class DualBankNorm(ItemBias):
    """DualIS: dual inverted softmax with a query bank and an item bank; one bank alone works too.

    Args:
        beta_queries: inverse temperature b1 of the query bank; 20 for unit vectors (QB-Norm's value for cosine models).
        beta_items: inverse temperature b2 of the item bank; keep it small, since an item bank holds near-duplicates whose
            cosine is close to 1. Default 3 (the reference's value).
        chunk: rows of a bank that are compared at once.

    After ``fit``: ``bias_ [M]`` (centered), ``log_queries_ [M]`` = LQ, ``log_items_ [M]`` = LG (None without that bank).

    Raises:
        BadInput: no bank at all, a negative inverse temperature, or both zero.
    """

    def __init__(self, beta_queries: float = 20.0, beta_items: float = 3.0, chunk: int = 2048) -> None:
        self.beta_queries = beta_queries
        self.beta_items = beta_items
        self.chunk = chunk

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        if queries is None and items is None:
            raise BadInput(
                "needs a bank",
                where=type(self).__name__,
                fix="Give fit(gallery, queries=..., items=...), or one of them",
            )
        for name in ("beta_queries", "beta_items"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} {getattr(self, name)} is negative", where=type(self).__name__)
        self.log_queries_ = None if queries is None else self._log_mass(queries, gallery, self.beta_queries)
        self.log_items_ = None if items is None else self._log_mass(items, gallery, self.beta_items)
        self._finish()

    def _log_mass(self, bank: Any, gallery: Any, beta: float) -> Any:
        return logsumexp_inner(bank, gallery, beta, chunk=self.chunk)

    def _finish(self) -> None:
        parts = [(self.beta_queries, self.log_queries_), (self.beta_items, self.log_items_)]
        used = [(beta, mass) for beta, mass in parts if mass is not None]
        total = sum(beta for beta, _ in used)
        if total == 0:  # constant scores in the paper's form; as a bias: no correction
            self.bias_ = used[0][1] * 0
            return
        self.bias_ = centered(-sum(mass for _, mass in used) / total)

    def partial_fit(self, *, queries: Any = None, items: Any = None) -> DualBankNorm:
        """Adds rows to the banks; the result equals a fit on the whole banks (up to float32 rounding).

        Args:
            queries: new rows ``[b, D]`` of the query bank.
            items: new rows ``[b, D]`` of the item bank.
        """
        if not hasattr(self, "gallery_"):
            raise BadInput("not fitted yet", where=type(self).__name__, fix="Call fit(gallery, ...) first")
        for name, bank, beta in (("queries", queries, self.beta_queries), ("items", items, self.beta_items)):
            bank = self._check_bank(name, bank, self.gallery_) if bank is not None else None
            if bank is None:
                continue
            new = self._log_mass(bank, self.gallery_, beta)
            old = getattr(self, f"log_{name}_")
            xp = array_namespace(new)
            setattr(self, f"log_{name}_", new if old is None else xp.logaddexp(old, new))
        self._finish()
        return self

    def extend(self, gallery: Any, *, queries: Any = None, items: Any = None) -> DualBankNorm:
        """Adds items to the gallery: one pass over the banks that ``fit`` had, for the new items only.

        Args:
            gallery: new items ``[m, D]``.
            queries: the whole query bank.
            items: the whole item bank.
        """
        new = type(self)(**self.get_params()).fit(gallery, queries=queries, items=items)
        xp = array_namespace(self.gallery_)
        for name in ("log_queries_", "log_items_"):
            if (getattr(self, name) is None) != (getattr(new, name) is None):
                raise BadInput("give the same banks as fit had", where=f"{type(self).__name__}.extend")
            if getattr(new, name) is not None:
                setattr(self, name, xp.concat([getattr(self, name), getattr(new, name)]))
        self.gallery_ = xp.concat([self.gallery_, new.gallery_])
        self._finish()
        return self


class DynamicDualBankNorm(Correction):
    """DualDIS: each bank's factor is used only for queries whose best raw item is *active* in that bank.

    An item is active if it is among the ``k_active`` best of some row of the bank (QB-Norm's activation set, k = 1).

    Args:
        beta_queries, beta_items, chunk: as in `DualBankNorm`.
        k_active: how deep into each bank row the activation set reaches; 1 in both papers.
        inactive: what stands for a factor that is switched off: ``"exp"`` (``exp(b S)``: the described method, keeps the
            order and has no sign trouble) or ``"raw"`` (``S`` itself, as in the released code).

    After ``fit``: ``active_queries_ [M]``, ``active_items_ [M]`` (bool; None without that bank).
    """

    def __init__(
        self,
        beta_queries: float = 20.0,
        beta_items: float = 3.0,
        k_active: int = 1,
        inactive: Literal["exp", "raw"] = "exp",
        chunk: int = 2048,
    ) -> None:
        self.beta_queries = beta_queries
        self.beta_items = beta_items
        self.k_active = k_active
        self.inactive = inactive
        self.chunk = chunk

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        if self.inactive not in ("exp", "raw"):
            raise BadInput(
                f"inactive={self.inactive!r} does not exist", where=type(self).__name__, fix="Use 'exp' or 'raw'"
            )
        dual = DualBankNorm(self.beta_queries, self.beta_items, self.chunk)
        dual._fit(gallery, queries, items)
        self.log_queries_, self.log_items_ = dual.log_queries_, dual.log_items_
        self.active_queries_ = None if queries is None else self._active(queries, gallery)
        self.active_items_ = None if items is None else self._active(items, gallery)

    def _active(self, bank: Any, gallery: Any) -> Any:
        _, rows = topk_inner(bank, gallery, self.k_active)
        active = np.zeros(gallery.shape[0], dtype=bool)
        active[np.unique(to_numpy(rows))] = True
        return like(active, gallery)

    def _factors(self) -> list[tuple[float, Any, np.ndarray]]:
        """The banks that were given: inverse temperature, log mass, activity."""
        banks = (
            (self.beta_queries, self.log_queries_, self.active_queries_),
            (self.beta_items, self.log_items_, self.active_items_),
        )
        return [(beta, mass, to_numpy(active)) for beta, mass, active in banks if mass is not None]

    def _groups(self, queries: Any) -> list[tuple[np.ndarray, tuple[bool, ...]]]:
        """Query rows by which factors are on for them (at most four groups)."""
        _, best = topk_inner(queries, self.gallery_, 1)
        top = to_numpy(best)[:, 0]
        state = np.stack([active[top] for _, _, active in self._factors()], axis=1)
        patterns = np.unique(state, axis=0) if len(state) else state
        return [(np.flatnonzero((state == p).all(axis=1)), tuple(bool(x) for x in p)) for p in patterns]

    def _log_scores(self, raw: Any, pattern: tuple[bool, ...]) -> Any:
        """Log of the product of factors for queries of one pattern (or the product itself where ``raw`` is in it)."""
        xp = array_namespace(raw)
        log = xp.zeros_like(raw)
        plain = None
        for on, (beta, mass, _) in zip(pattern, self._factors(), strict=True):
            if on:
                log = log + beta * raw - mass
            elif self.inactive == "exp":
                log = log + beta * raw
            else:
                plain = raw if plain is None else plain * raw
        if plain is None:
            return log
        # A raw factor may be negative: sign(x) exp(log|x| + log) without leaving the log domain, squashed to keep the order.
        return _signed_order(xp, plain, log)

    def scores(self, queries: Any) -> Any:
        queries = self._check_queries(queries)
        raw = queries @ self.gallery_.T
        out = np.empty(tuple(raw.shape), dtype=np.float32)
        for rows, pattern in self._groups(queries):
            out[rows] = to_numpy(self._log_scores(raw[like(rows, queries)], pattern))
        return like(out, queries)

    def topk(self, queries: Any, k: int) -> tuple[Any, Any]:
        """As `Correction.topk`: one raw search, then one search with the bias of each activity pattern."""
        queries = self._check_queries(queries)
        n, k = queries.shape[0], min(k, self.gallery_.shape[0])
        scores, rows = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
        for group, pattern in self._groups(queries):
            part = queries[like(group, queries)]
            if self.inactive == "exp" or all(pattern):
                factors = self._factors()
                total = sum(beta for beta, _, _ in factors)
                on = [mass for use, (_, mass, _) in zip(pattern, factors, strict=True) if use]
                bias = -sum(on) / total if on and total else None
                found = topk_inner(part, self.gallery_, k, bias=bias)
                scores[group], rows[group] = to_numpy(found[0]) * total, to_numpy(found[1])
            else:
                scores[group], rows[group] = self._topk_dense(part, pattern, k)
        return like(scores, queries), like(rows, queries)

    def _topk_dense(self, queries: Any, pattern: tuple[bool, ...], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Products with a raw factor are no additive bias: score blocks of queries, keep their best."""
        step = max(1, (1 << 24) // max(1, self.gallery_.shape[0]))
        scores, rows = [], []
        for start in range(0, queries.shape[0], step):
            block = to_numpy(self._log_scores(queries[start : start + step] @ self.gallery_.T, pattern))
            best = np.argsort(-block, axis=1, kind="stable")[:, :k]
            scores.append(np.take_along_axis(block, best, axis=1))
            rows.append(best)
        return np.concatenate(scores), np.concatenate(rows)


def _signed_order(xp: Any, factor: Any, log: Any) -> Any:
    """Values in the order of ``factor * exp(log)``, row by row, without overflow or underflow.

    Positive products become ``c + log(product)``, negative ones ``-c - log|product|`` with one c a row that keeps the two
    apart; a product of zero becomes 0.
    """
    magnitude = xp.log(xp.where(factor == 0, xp.ones_like(factor), xp.abs(factor))) + log
    low = xp.min(magnitude, axis=1, keepdims=True)
    shifted = magnitude - low + 1.0
    return xp.where(factor == 0, xp.zeros_like(factor), xp.where(factor > 0, shifted, -shifted))

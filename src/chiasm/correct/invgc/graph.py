"""InvGC (Jian & Wang, Findings of EMNLP 2023, arXiv 2310.13276): spread a crowded gallery by inverse graph convolution.

Embeddings of a frozen retriever crowd into a narrow cone. Graph convolution averages a node with its neighbors; here what the
neighbors share is subtracted, once, from the gallery vectors:

    C_B(V) = rownorm( V - (r / n) (W - mean W) B ),   W = V B^T                        (full graph, bank B of size n)
    C_B(V) = rownorm( V - (r / k) top_k(W) B ),       k = max(1, floor(rho n))          (LocalAdj)
    V'     = rownorm( C_items(V; r_items) / 2 + C_queries(V; r_queries) / 2 )           (two banks)

Queries stay as they are, so every index serves the result at no cost. Since W B = V (B^T B), the full graph needs one D x D matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from chiasm.correct.bias import Correction
from chiasm.errors import BadInput
from chiasm.kernels.topk import topk_inner


@dataclass(frozen=True, slots=True)
class BankMoments:
    """What the full graph keeps of a bank: ``second = B^T B / n [D, D]``, ``mean = mean of rows [D]``, its largest eigenvalue."""

    second: Any
    mean: Any
    top_eigenvalue: float

    @classmethod
    def of(cls, bank: Any, chunk: int) -> BankMoments:
        """Streams a bank ``[n, D]`` once."""
        xp = array_namespace(bank)
        n, d = bank.shape
        second = xp.zeros((d, d), dtype=bank.dtype, device=getattr(bank, "device", None))
        for start in range(0, n, chunk):
            block = bank[start : start + chunk]
            second = second + block.T @ block
        second = second / n
        return cls(second, xp.mean(bank, axis=0), float(xp.linalg.eigvalsh(second)[-1]))


class InverseGraphConvolution(Correction):
    """InvGC with the full graph or LocalAdj.

    The step sizes have no good default (the paper searches them on validation data): use `chiasm.correct.choose` with the
    candidates of `grid`. With both at 0 the gallery is returned unchanged.

    Args:
        step_items: r of the item bank.
        step_queries: r of the query bank.
        pool_rate: rho; None is the full graph, else the share of the bank that counts as neighbors (the reference's
            wrapper uses 0.01).
        joint: subtract both banks' terms from V at once and normalize once (the paper's text) instead of pooling two
            normalized halves (the released code).
        center: subtract the mean of W (a scalar). None: as in the reference, True for the full graph, False for LocalAdj.
        safe: clamp r to ``1 / largest eigenvalue`` of the bank's second moment, beyond which the full graph flips the sign
            of the dominant direction.
        clip: LocalAdj: ignore negative similarities, which would *add* the neighbor.
        chunk: items that are transformed at once.

    After ``fit``: ``vectors_ [M, D]``, the transformed gallery.

    Raises:
        BadInput: a step without its bank, a negative step, or a pool rate outside (0, 1].
    """

    def __init__(
        self,
        step_items: float = 0.0,
        step_queries: float = 0.0,
        pool_rate: float | None = None,
        joint: bool = False,
        center: bool | None = None,
        safe: bool = True,
        clip: bool = False,
        chunk: int = 4096,
    ) -> None:
        self.step_items = step_items
        self.step_queries = step_queries
        self.pool_rate = pool_rate
        self.joint = joint
        self.center = center
        self.safe = safe
        self.clip = clip
        self.chunk = chunk

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        name = type(self).__name__
        if self.pool_rate is not None and not 0 < self.pool_rate <= 1:
            raise BadInput(
                f"pool_rate {self.pool_rate} is outside (0, 1]", where=name, fix="Use None for the full graph"
            )
        self.banks_: list[tuple[float, Any]] = []
        for label, step, bank in (("items", self.step_items, items), ("queries", self.step_queries, queries)):
            if step < 0:
                raise BadInput(f"step_{label} {step} is negative", where=name)
            if step > 0 and bank is None:
                raise BadInput(
                    f"step_{label} is {step} but there is no bank of {label}",
                    where=name,
                    fix=f"Give fit(..., {label}=vectors)",
                )
            if step > 0:
                self.banks_.append((step, bank if self.pool_rate is not None else BankMoments.of(bank, self.chunk)))
        self.vectors_ = self.transform(gallery)

    def transform(self, gallery: Any) -> Any:
        """The vectors to store for ``[m, D]`` items; an item is transformed on its own, so new items need no refit."""
        if not self.banks_:
            return gallery
        xp = array_namespace(gallery)
        out = xp.empty_like(gallery)
        mean = [self._mean_similarity(gallery, bank) for _, bank in self.banks_]
        for start in range(0, gallery.shape[0], self.chunk):
            block = gallery[start : start + self.chunk]
            out[start : start + self.chunk] = self._transform_block(block, mean)
        return out

    def _transform_block(self, block: Any, mean: list[Any]) -> Any:
        shifts = [self._shift(block, step, bank, m) for (step, bank), m in zip(self.banks_, mean, strict=True)]
        if self.joint or len(shifts) == 1:
            return _unit_or(block, block - sum(shifts[1:], start=shifts[0]))
        halves = [_unit_or(block, block - shift) for shift in shifts]
        return _unit_or(block, sum(halves[1:], start=halves[0]) / len(halves))

    def _mean_similarity(self, gallery: Any, bank: Any) -> Any:
        """The scalar mean of W over the whole gallery, or None without centering."""
        full = isinstance(bank, BankMoments)
        if not (full if self.center is None else self.center):
            return None
        xp = array_namespace(gallery)
        return xp.mean(gallery, axis=0) @ (bank.mean if full else xp.mean(bank, axis=0))

    def _shift(self, block: Any, step: float, bank: Any, mean: Any) -> Any:
        """What is subtracted from a block of items ``[m, D]``."""
        if isinstance(bank, BankMoments):
            if self.safe:
                step = min(step, 1.0 / bank.top_eigenvalue) if bank.top_eigenvalue > 0 else step
            aggregate = block @ bank.second
            if mean is not None:
                aggregate -= mean * bank.mean
            aggregate *= step
            return aggregate
        return step * self._local(block, bank, mean)

    def _local(self, block: Any, bank: Any, mean: Any) -> Any:
        """``top_k(W) B / k`` as a gather-weighted sum, never an m x n matrix."""
        xp = array_namespace(block)
        k = max(1, int(np.floor((self.pool_rate or 1.0) * bank.shape[0])))
        weights, rows = topk_inner(block, bank, k)
        if mean is not None:
            weights = weights - mean
        if self.clip:
            weights = xp.where(weights < 0, xp.zeros_like(weights), weights)
        total = xp.zeros_like(block)
        # Gathering neighbors rank by rank keeps the temporary at [m, D] a step; groups of ranks keep the loop short.
        group = max(1, (1 << 24) // max(1, block.shape[0] * block.shape[1]))
        for start in range(0, k, group):
            part = bank[rows[:, start : start + group]]
            total = total + (weights[:, None, start : start + group] @ part)[:, 0, :]
        return total / k

    def scores(self, queries: Any) -> Any:
        return self._check_queries(queries) @ self.vectors_.T

    def topk(self, queries: Any, k: int) -> tuple[Any, Any]:
        return topk_inner(self._check_queries(queries), self.vectors_, k)


def grid(*, local: bool = False, pool_rate: float = 0.01) -> list[InverseGraphConvolution]:
    """Candidates for `chiasm.correct.choose`, weakest first: the useful ranges of the two forms on the item bank, the query
    bank and both.

    Args:
        local: LocalAdj (steps 0.1 to 2) instead of the full graph (steps 1 to 10).
        pool_rate: rho of LocalAdj.
    """
    steps = (0.1, 0.3, 0.6, 1.0, 2.0) if local else (1.0, 2.0, 5.0, 10.0)
    rate = pool_rate if local else None
    pairs = [pair for r in steps for pair in ((r, 0.0), (0.0, r), (r, r))]
    return [InverseGraphConvolution(step_items=i, step_queries=q, pool_rate=rate, safe=not local) for i, q in pairs]


def _unit_or(fallback: Any, rows: Any) -> Any:
    """Rows (which are ours) scaled to unit length in place; a row that vanished is replaced by the item as it was."""
    xp = array_namespace(rows)
    norm = xp.sqrt(xp.vecdot(rows, rows))[:, None]
    gone = norm < 1e-6
    rows /= xp.where(gone, xp.ones_like(norm), norm)
    return xp.where(gone, fallback, rows) if bool(xp.any(gone)) else rows

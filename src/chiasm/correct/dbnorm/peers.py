"""The corrections that DBNorm is compared with, under the same contract: IS, DIS, CSLS, GC, NNN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from chiasm.correct.bias import Correction, ItemBias, centered
from chiasm.correct.dbnorm.dual import DualBankNorm, DynamicDualBankNorm
from chiasm.errors import BadInput
from chiasm.kernels.nearest_mean import nearest_mean
from chiasm.measure.vectors import like, to_numpy


class InvertedSoftmax(DualBankNorm):
    """IS (Smith et al. 2017, arXiv 1702.03859): ``exp(b S_ij) / sum_m exp(b Q_mj)``; DualIS with the query bank only.

    Args:
        beta: inverse temperature; 20 for unit vectors.
        chunk: rows of the bank that are compared at once.
    """

    needs = ("queries",)

    def __init__(self, beta: float = 20.0, chunk: int = 2048) -> None:
        self.beta = beta
        self.chunk = chunk

    @property
    def beta_queries(self) -> float:  # type: ignore[override]
        return self.beta

    beta_items = 0.0

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        super()._fit(gallery, queries, None)


class DynamicInvertedSoftmax(DynamicDualBankNorm):
    """DIS, known as QB-Norm (Bogolin et al., CVPR 2022, arXiv 2112.12777): IS only for queries whose best item is active.

    Args:
        beta: inverse temperature; 20 for unit vectors.
        k_active: depth of the activation set; 1 in the paper.
        chunk: rows of the bank that are compared at once.
    """

    needs = ("queries",)
    beta_items = 0.0
    inactive = "exp"

    def __init__(self, beta: float = 20.0, k_active: int = 1, chunk: int = 2048) -> None:
        self.beta = beta
        self.k_active = k_active
        self.chunk = chunk

    @property
    def beta_queries(self) -> float:  # type: ignore[override]
        return self.beta

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        super()._fit(gallery, queries, None)


class NearestNeighborMean(ItemBias):
    """Base of CSLS and NNN: an item pays for its mean similarity to the k nearest rows of the query bank."""

    needs = ("queries",)
    k: int

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        if self.k < 1:
            raise BadInput(f"k {self.k} is not positive", where=type(self).__name__)
        self.nearness_ = nearest_mean(gallery, queries, self.k)
        self.bias_ = centered(self._weight() * self.nearness_)

    def _weight(self) -> float:
        raise TypeError(f"{type(self).__name__} does not define _weight")


class CSLS(NearestNeighborMean):
    """Cross-domain similarity local scaling (Conneau et al., ICLR 2018): ``2 S_ij - rQ_j``, here as ``S_ij - rQ_j / 2``.

    The query's own term is constant within a row and left out.

    Args:
        k: neighbors in the bank; 10 in the paper.
    """

    def __init__(self, k: int = 10) -> None:
        self.k = k

    def _weight(self) -> float:
        return -0.5


class NearestNeighborNormalization(NearestNeighborMean):
    """NNN (Chowdhury et al., EMNLP 2024, arXiv 2410.24114): ``S_ij - alpha * mean of the k largest Q_mj``.

    Args:
        k: neighbors in the bank; 128 in the paper.
        alpha: strength; 0.75 in the paper.
    """

    def __init__(self, k: int = 128, alpha: float = 0.75) -> None:
        self.k = k
        self.alpha = alpha

    def _weight(self) -> float:
        return -self.alpha


class GloballyCorrected(Correction):
    """GC (Dinu et al. 2015, arXiv 1412.6568): rank items by how few bank queries like them better than this query does.

    ``S'_ij = -(1 + #{m : Q_mj > S_ij})``, ties broken by ``S_ij``. It is no bias, and needs the bank at query time: a baseline.

    Args:
        chunk: items that are compared at once.
    """

    needs = ("queries",)

    def __init__(self, chunk: int = 1024) -> None:
        self.chunk = chunk

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        self.bank_ = queries

    def scores(self, queries: Any) -> Any:
        queries = self._check_queries(queries)
        blocks = [block for _, block in self._blocks(queries)]
        return like(np.concatenate(blocks, axis=1) if blocks else np.empty((queries.shape[0], 0)), queries)

    def topk(self, queries: Any, k: int) -> tuple[Any, Any]:
        queries = self._check_queries(queries)
        best = np.empty((queries.shape[0], 0))
        rows = np.empty((queries.shape[0], 0), np.int64)
        for start, block in self._blocks(queries):
            best = np.concatenate([best, block], axis=1)
            rows = np.concatenate(
                [rows, np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)], axis=1
            )
            order = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return like(best, queries), like(rows, queries)

    def _blocks(self, queries: Any) -> Iterator[tuple[int, np.ndarray]]:
        """Scores ``[Q, m]`` of consecutive blocks of items."""
        for start in range(0, self.gallery_.shape[0], self.chunk):
            items = self.gallery_[start : start + self.chunk]
            bank = np.sort(to_numpy(items @ self.bank_.T), axis=1)
            raw = to_numpy(queries @ items.T)
            above = np.empty(raw.shape)
            for j in range(bank.shape[0]):  # searchsorted takes one sorted row at a time
                above[:, j] = bank.shape[1] - np.searchsorted(bank[j], raw[:, j], side="right")
            # The tie-breaker's spread stays below one rank; float64, since large ranks would swallow it in float32.
            yield start, -(1 + above) + 0.49 * np.tanh(raw.astype(np.float64))

"""The contract of a correction, and `ItemBias`: a correction that is one number an item, so that any index can serve it.

A correction is fitted once on the gallery and on banks (old queries, old items). Those that end in ``bias_ [M]`` rank by
``<q, v_j> + bias_j``: store ``[v_j ; bias_j]``, search with ``[q ; 1]``, and the correction costs nothing at query time.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from sklearn.base import BaseEstimator

from chiasm.errors import BadInput
from chiasm.kernels.topk import topk_inner
from chiasm.measure.vectors import as_rows, same_dim, to_numpy


class Correction(BaseEstimator):
    """Base of the corrections: input checks, top-k, and the warning about banks that hold the test queries."""

    #: Which banks ``fit`` needs: a subset of ("queries", "items").
    needs: tuple[str, ...] = ()

    def fit(self, gallery: Any, *, queries: Any = None, items: Any = None) -> Correction:
        """Fits the correction of a gallery to banks.

        Args:
            gallery: ``[M, D]`` vectors to be served, in the space where scores are inner products.
            queries: query bank ``[Bq, D]``: old queries, never the ones to be answered.
            items: item bank ``[Bg, D]``: old items of the gallery's modality.

        Raises:
            BadInput: a bank that is needed is missing or empty, dimensions differ, NaN or infinite values.
        """
        gallery = as_rows(gallery, "gallery", normalize=False)
        queries = self._check_bank("queries", queries, gallery)
        items = self._check_bank("items", items, gallery)
        self.gallery_ = gallery
        self.bank_digests_ = row_digests(queries) if queries is not None else None
        self._fit(gallery, queries, items)
        return self

    def _check_bank(self, name: str, bank: Any, gallery: Any) -> Any:
        where = f"{type(self).__name__}, bank of {name}"
        if bank is None:
            if name in self.needs:
                raise BadInput("is missing", where=where, fix=f"Give fit(gallery, {name}=vectors)")
            return None
        bank = as_rows(bank, where, normalize=False)
        if bank.shape[0] == 0:
            raise BadInput("is empty", where=where)
        same_dim(bank, gallery, where)
        return bank

    def _fit(self, gallery: Any, queries: Any, items: Any) -> None:
        """The method itself; subclasses set their learned state here."""
        raise TypeError(f"{type(self).__name__} does not define _fit")

    def scores(self, queries: Any) -> Any:
        """Corrected scores ``[Q, M]``; only their order within a row has a meaning. For many queries use `topk`."""
        raise TypeError(f"{type(self).__name__} does not define scores")

    def topk(self, queries: Any, k: int) -> tuple[Any, Any]:
        """The best items of each query: ``(scores [Q, k], rows [Q, k])``, best first, streamed."""
        raise TypeError(f"{type(self).__name__} does not define topk")

    def _check_queries(self, queries: Any) -> Any:
        if not hasattr(self, "gallery_"):
            raise BadInput("not fitted yet", where=type(self).__name__, fix="Call fit(gallery, ...) first")
        queries = as_rows(queries, "queries", normalize=False)
        same_dim(queries, self.gallery_, type(self).__name__)
        if self.bank_digests_ is not None:
            shared = int(np.isin(row_digests(queries), self.bank_digests_).sum())
            # One old query asked again is life; many are a test set inside its own bank.
            if shared > max(1, 0.01 * queries.shape[0]):
                warnings.warn(
                    f"{shared} of {queries.shape[0]} queries are in the query bank: figures measured on them are too good",
                    stacklevel=3,
                )
        return queries


class ItemBias(Correction):
    """A correction that adds one number to each item's score. Subclasses compute ``bias_ [M]`` in ``_fit``.

    ``bias_`` is centered, so that an item that came later and has no bias yet counts as an average one.
    """

    bias_: Any

    def scores(self, queries: Any) -> Any:
        return self._check_queries(queries) @ self.gallery_.T + self.bias_

    def topk(self, queries: Any, k: int) -> tuple[Any, Any]:
        return topk_inner(self._check_queries(queries), self.gallery_, k, bias=self.bias_)

    def save(self, path: str | Path) -> None:
        """Writes the bias (float32, bit-equal on `load_bias`) and the parameters as one safetensors file."""
        from safetensors.numpy import save_file

        header = {"class": type(self).__name__, "params": self.get_params()}
        save_file(
            {"bias": np.ascontiguousarray(to_numpy(self.bias_), dtype=np.float32)},
            str(path),
            metadata={"chiasm": json.dumps(header)},
        )


def load_bias(path: str | Path) -> np.ndarray:
    """The bias ``[M]`` that `ItemBias.save` wrote.

    Raises:
        BadInput: the file is not one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(str(path))["bias"]
    except (OSError, SafetensorError, KeyError) as error:
        raise BadInput(f"not a saved correction ({error})", where=str(path)) from error


def centered(bias: Any) -> Any:
    """The bias less its mean; accumulates in float64."""
    xp = array_namespace(bias)
    if bias.shape[0] == 0:
        return bias
    return bias - xp.astype(xp.mean(xp.astype(bias, xp.float64)), bias.dtype)


def fold_gallery(gallery: Any, bias: Any) -> Any:
    """``[v_j ; bias_j]``: ``[M, D + 1]``, to be stored in any inner-product index (faiss, Qdrant, pgvector, ...)."""
    xp = array_namespace(gallery, bias)
    return xp.concat([gallery, bias[:, None]], axis=1)


def fold_queries(queries: Any) -> Any:
    """``[q ; 1]``: ``[Q, D + 1]``, to search an index of `fold_gallery`."""
    xp = array_namespace(queries)
    return xp.concat([queries, xp.ones_like(queries[:, :1])], axis=1)


def row_digests(rows: Any) -> np.ndarray:
    """One 64-bit digest a row (uint64 ``[N]``); equal rows have equal digests.

    A multilinear hash of the float32 bit patterns with fixed odd multipliers: vectorized, and collisions do not matter
    here (2^-64 a pair).
    """
    bits = np.ascontiguousarray(to_numpy(rows), dtype=np.float32).view(np.uint32)
    odd = np.random.default_rng(0).integers(1, 2**63, size=bits.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    step = max(1, (1 << 22) // max(1, bits.shape[1]))
    parts = [
        (bits[i : i + step].astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64) for i in range(0, len(bits), step)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)

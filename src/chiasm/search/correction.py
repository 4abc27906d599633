"""Folding a correction into the store: one additive bias per item, written to the table in one commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.search.header import CorrectionRecord, check_dim

if TYPE_CHECKING:
    from chiasm.search.store import Store


def apply(store: Store, correction: Any, queries: Any = None, items: Any = None) -> None:
    """See `Store.correct`.

    The header says "not applied yet" from before the commit until after it, so that a crash between the two shows in
    `Store.stats` and is cured by running the same again.
    """
    if not len(store):
        raise BadInput("is empty, there is nothing to correct", where=str(store.path))
    bank = None if queries is None else query_vectors(store, queries)
    with store.writing() as writer:
        if correction is not None and store.header.upgrade is not None and store.header.upgrade.under_way:
            raise BadInput(
                "an upgrade is under way, and a correction fitted now would fit neither its old nor its new vectors",
                where=str(store.path),
                fix="Apply it when chiasm upgrade has finished, or go back with chiasm upgrade --rollback",
            )
        snapshot = store.snapshot(dense=True)
        assert snapshot is not None
        if correction is None:
            name, bias = "", np.zeros(len(snapshot.seq), np.float32)
        else:
            name = type(correction).__name__
            correction.fit(snapshot.vectors, queries=bank, items=items)
            bias = _checked_bias(correction, len(snapshot.seq))
        neutral = float(bias.mean())
        store.set_header(CorrectionRecord(name, False, neutral))
        writer.set_bias(snapshot.column("id"), bias)
        store.set_header(CorrectionRecord(name, True, neutral) if name else None)
        writer.tidy()
    store.snapshot()


def query_vectors(store: Store, queries: Any) -> np.ndarray:
    """Vectors ``[Q, D]`` of past queries, given as strings or vectors."""
    if isinstance(queries, str):
        raise BadInput("queries must be a list of strings or vectors [Q, D]", where="Store.correct")
    listed = queries if hasattr(queries, "ndim") else list(getattr(queries, "vectors", queries))
    if not len(listed):
        raise BadInput("the list of queries is empty", where="Store.correct")
    if isinstance(listed[0], str):
        return store.space.encode(listed, role="query").vectors
    vectors = np.asarray(listed, np.float32)
    if vectors.ndim != 2:
        raise BadInput(f"queries must be [Q, D], got shape {vectors.shape}", where="Store.correct")
    if not np.isfinite(vectors).all():
        raise BadInput("the queries hold NaN or infinite values", where="Store.correct")
    if store.header.space is not None:
        check_dim(store.header.space.dim, vectors.shape[1], "Store.correct")
    return vectors


def _checked_bias(correction: Any, rows: int) -> np.ndarray:
    bias = getattr(correction, "bias_", None)
    if bias is None:
        raise BadInput(
            f"{type(correction).__name__} has no bias_ after fit",
            where="Store.correct",
            fix="Use a correction that folds into one bias per item",
        )
    bias = np.asarray(bias, np.float32).reshape(-1)
    if len(bias) != rows:
        raise BadInput(f"{type(correction).__name__} made {len(bias)} biases for {rows} items", where="Store.correct")
    if not np.isfinite(bias).all():
        raise BadInput(f"{type(correction).__name__} made NaN or infinite biases", where="Store.correct")
    return bias

"""Approximate search for stores too large to scan: an inverted-file index of the table, then exact scores.

A text query does not come from the distribution of the pictures it is compared with: it lies in no cluster of the
gallery, and its neighbors are spread over many. An index tuned on gallery vectors as queries therefore probes far too
few clusters. The share of clusters probed here was chosen on such cross-modal queries (``benchmarks/ann_recall.py``).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chiasm.search.exact import Snapshot

# Up to here a scan of memory-mapped vectors takes tens of milliseconds on two cores, and is exact.
EXACT_ROWS = 200_000
# Candidates per result asked for, before they are scored exactly.
OVERSAMPLE = 4
# A correction moves scores after the index has chosen its candidates, so more of them are needed.
OVERSAMPLE_BIASED = 20
# Share of the clusters that a query visits: recall@10 of 0.96 on cross-modal queries, 1.00 within a modality, where
# 0.02 would already do (220,000 x 256, ``benchmarks/ann_recall.py``).
PROBED = 0.5
INDEX = "vector_idx"


def has_index(table: Any) -> bool:
    return any("vector" in index.columns for index in table.list_indices())


def has_text_index(table: Any) -> bool:
    return any("text" in index.columns for index in table.list_indices())


def clusters(rows: int) -> int:
    """Number of clusters: about the square root of the rows, the usual balance of coarse and fine search."""
    return max(1, round(math.sqrt(rows)))


def build(table: Any, rows: int) -> None:
    """Trains the index (inner product; vectors kept as they are, so that candidates are ranked without loss)."""
    table.create_index(
        metric="dot",
        vector_column_name="vector",
        index_type="IVF_FLAT",
        num_partitions=clusters(rows),
        replace=True,
        name=INDEX,
    )


def candidates(snapshot: Snapshot, query: np.ndarray, k: int, *, probed: float = PROBED) -> np.ndarray:
    """Rows of the snapshot that the index finds near a query ``[D]``; rows newer than the index are scanned too.

    Args:
        snapshot: its table must have the index.
        query: float32 ``[D]``.
        k: results wanted; several times as many candidates are returned.
        probed: share of clusters to visit.
    """
    wanted = k * (OVERSAMPLE_BIASED if snapshot.biased else OVERSAMPLE)
    probes = max(8, round(probed * clusters(snapshot.count)))
    search = snapshot.table.search(query, vector_column_name="vector").distance_type("dot").nprobes(probes)
    found = search.limit(min(wanted, snapshot.count)).select(["seq", "_distance"]).to_arrow()
    return np.sort(snapshot.rows_of_seq(np.asarray(found["seq"])))

"""Full-text search over the ``text`` column, and its fusion with vector search."""

from __future__ import annotations

from typing import Any

import numpy as np
from lancedb.query import MatchQuery

from chiasm.search.exact import Snapshot

# Cormack, Clarke, Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods".
RRF_K = 60
_DEPTH = 200


def build(table: Any) -> None:
    table.create_fts_index("text", replace=True)


def text_ranks(snapshot: Snapshot, words: str, allowed: np.ndarray | None) -> np.ndarray:
    """Rows by falling BM25 score of the words, at most 200; ``allowed`` (bool ``[R]``) drops rows first."""
    # Filters are applied here, after the engine's search, so a filtered search must look deeper.
    limit = _DEPTH if allowed is None else max(_DEPTH, snapshot.count)
    asked = MatchQuery(words, "text")  # type: ignore[call-issue]  # its defaults are those of a pydantic dataclass
    search = snapshot.table.search(asked, query_type="fts")
    found = search.limit(limit).select(["seq", "_score"]).to_arrow()
    rows = snapshot.rows_of_seq(np.asarray(found["seq"]))
    # Equal scores come in no order that the engine promises.
    rows = rows[np.lexsort((rows, -np.asarray(found["_score"])))]
    return (rows if allowed is None else rows[allowed[rows]])[:_DEPTH]


def fuse(by_vector: np.ndarray, by_text: np.ndarray) -> np.ndarray:
    """Rows of both rankings, best first, by the sum of ``1 / (60 + rank)``; ties go to the better vector rank."""
    score: dict[int, float] = {}
    for ranking in (by_vector, by_text):
        for rank, row in enumerate(ranking.tolist(), start=1):
            score[row] = score.get(row, 0.0) + 1.0 / (RRF_K + rank)
    return np.array(sorted(score, key=lambda row: -score[row]), np.int64)

"""Search over sparse vectors beside `bm25s` with numba: 200,000 documents, queries of 8 active words, one thread each.

Both engines hold the same matrix (BM25 weights of documents of 40 words, drawn from 20,000 by Zipf's law), so the results
must agree. Queries are drawn from the same law (frequent words, long lists) and evenly over the vocabulary (short ones).
Target: at least the speed of bm25s (ratio <= 1). 8-bit weights are in the table too.
"""

from __future__ import annotations

import sys
from typing import Any

import bm25s
import numpy as np
from bm25s.numba.retrieve_utils import _retrieve_numba_functional
from compare import alternate, median, publish, ratio
from scipy.sparse import csc_array, csr_array

from chiasm.search.word_index import WordIndex

N = 20_000 if "--small" in sys.argv else 200_000
VOCABULARY, LENGTH, ACTIVE, QUERIES, K = 20_000, 40, 8, 64, 10
TARGET = 1.0


def main() -> None:
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, VOCABULARY + 1)
    share /= share.sum()
    documents = rng.choice(VOCABULARY, (N, LENGTH), p=share)
    peer = bm25s.BM25(backend="numba")
    peer.index((documents.tolist(), {str(i): i for i in range(VOCABULARY)}), show_progress=False)
    held: Any = peer.scores
    starts, items = held["indptr"], held["indices"]
    matrix: Any = csc_array((held["data"], items, starts), shape=(N, len(starts) - 1))
    index, small = WordIndex(matrix), WordIndex(matrix, int8=True)
    table = []
    for law, p in (("Zipf", share), ("even", None)):
        words = np.stack([rng.choice(VOCABULARY, ACTIVE, replace=False, p=p) for _ in range(QUERIES)])
        asked = csr_array(
            (np.ones(words.size, np.float32), words.ravel(), np.arange(0, words.size + 1, ACTIVE)),
            shape=(QUERIES, matrix.shape[1]),
        )
        table += _compared(law, words.tolist(), asked, index, small, held)
    publish("Lexical search beside bm25s (numba)", table)


def _compared(
    law: str, words: list[list[int]], asked: csr_array, index: WordIndex, small: WordIndex, held: dict
) -> list:
    def theirs() -> Any:
        return _retrieve_numba_functional(words, held, k=K, dtype="float32", int_dtype="int32", n_threads=1)

    want = theirs()[1]
    got = index.search(asked, K)[0]
    difference = float(np.abs(np.where(np.isneginf(got), 0, got) - want).max())
    assert difference < 1e-3, difference
    arms = {
        "word index": lambda: index.search(asked, K),
        "word index, int8": lambda: small.search(asked, K),
        "bm25s": theirs,
    }
    seconds = alternate(arms, rounds=9)
    return [
        {
            "what": f"{law} queries: {arm}",
            "ms a query": 1e3 * median(seconds[arm]) / QUERIES,
            "bm25s ms": 1e3 * median(seconds["bm25s"]) / QUERIES,
            "ratio": (share := ratio(seconds, arm, "bm25s")),
            "times faster": 1 / share,
            "target": TARGET if arm == "word index" else None,
            "held": share <= TARGET,
            "largest difference": difference if arm == "word index" else None,
            "MB": (small if arm.endswith("int8") else index).nbytes / 1e6,
        }
        for arm in arms
        if arm != "bm25s"
    ]


if __name__ == "__main__":
    main()

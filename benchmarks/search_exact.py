"""Exact search beside faiss: one query and 1,000 queries over 200k x 512, and the store's whole search.

Targets: single query <= 1.5 x faiss.IndexFlatIP.search, batch of 1,000 <= 1.2 x faiss.knn.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
from compare import alternate, median, publish, ratio

from chiasm.embeddings import Embeddings, unit
from chiasm.kernels.topk import topk_inner
from chiasm.search import Store

SMALL = "--small" in sys.argv
M, Q, D, K = (20_000, 100, 512, 10) if SMALL else (200_000, 1_000, 512, 10)


def main() -> None:
    rng = np.random.default_rng(0)
    gallery = unit(rng.standard_normal((M, D), dtype=np.float32))
    queries = unit(rng.standard_normal((Q, D), dtype=np.float32))
    bias = (rng.standard_normal(M) * 0.01).astype(np.float32)
    index = faiss.IndexFlatIP(D)
    index.add(gallery)
    rows = []

    def row(what: str, seconds: dict[str, list[float]], target: float, agreement: float | None = None) -> None:
        ours, peer = list(seconds)
        rows.append(
            {
                "what": what,
                "seconds": median(seconds[ours]),
                "peer": peer,
                "peer seconds": median(seconds[peer]),
                "ratio": (r := ratio(seconds, ours, peer)),
                "target": target,
                "held": r <= target,
                "same rows": agreement,
            }
        )

    one = queries[:1]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "s.chiasm")
        store.add(Embeddings(gallery, [str(i) for i in range(M)], ["image"] * M))
        snapshot = store.snapshot()
        assert snapshot is not None
        mapped = snapshot.vectors
        same = float((topk_inner(one, mapped, K)[1] == index.search(one, K)[1]).mean())
        arms = {"chiasm": lambda: topk_inner(one, mapped, K), "faiss.IndexFlatIP": lambda: index.search(one, K)}
        row("1 query, memory-mapped kernel", alternate(arms, rounds=15), 1.5, same)
        arms = {"chiasm": lambda: store.search(one[0], k=K), "faiss.IndexFlatIP": lambda: index.search(one, K)}
        row("1 query, Store.search with hits", alternate(arms, rounds=15), 1.5)
        arms = {"bias": lambda: topk_inner(one, mapped, K, bias=bias), "no bias": lambda: topk_inner(one, mapped, K)}
        row("1 query, folded bias beside none", alternate(arms, rounds=15), 1.02)

        def knn() -> tuple[np.ndarray, np.ndarray]:
            return faiss.knn(queries, gallery, K, metric=faiss.METRIC_INNER_PRODUCT)

        same = float((topk_inner(queries, mapped, K)[1] == knn()[1]).mean())
        arms = {"chiasm": lambda: topk_inner(queries, mapped, K), "faiss.knn": knn}
        row(f"{Q} queries", alternate(arms, rounds=3, warmup=0), 1.2, same)
    publish(f"Exact top-{K} over {M} x {D}", rows)


if __name__ == "__main__":
    main()

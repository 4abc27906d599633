"""Approximate search on cross-modal queries: recall@10 against exact search, and its time, by share of clusters probed.

Gallery and queries come from different distributions, as pictures and texts do: clusters with a shared offset for the
gallery, and queries that are noisy mixtures of gallery vectors moved by another offset (the modality gap). Queries from
the gallery's own distribution stand beside them: an index tuned on those looks far better than it is.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from compare import median, publish

from chiasm.embeddings import Embeddings, unit
from chiasm.search import Store, ann
from chiasm.search import query as asking

SMALL = "--small" in sys.argv
M, D, QUERIES = (20_000, 128, 50) if SMALL else (220_000, 256, 100)


def world(seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gallery ``[M, D]`` and two sets of queries."""
    rng = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / np.sqrt(D, dtype=np.float32)

    centers = noise(1000, D)
    cone, gap = noise(D), noise(D)
    gallery = unit(centers[rng.integers(0, 1000, M)] + 0.7 * noise(M, D) + cone)
    picks = rng.integers(0, M, (QUERIES, 2))
    mixed = unit(gallery[picks].mean(axis=1) + 0.6 * noise(QUERIES, D) - cone + gap)
    return gallery, {"cross-modal": mixed, "same modality": unit(gallery[picks[:, 0]] + 0.3 * noise(QUERIES, D))}


def main() -> None:
    gallery, sets = world()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "s.chiasm")
        ann.EXACT_ROWS = min(ann.EXACT_ROWS, M - 1)
        store.add(Embeddings(gallery, [str(i) for i in range(M)], ["image"] * M))
        snapshot = store.snapshot()
        assert snapshot is not None
        for name, queries in sets.items():
            truth, exact_seconds = [], []
            for q in queries:
                start = time.perf_counter()
                truth.append(set(asking.find(snapshot, q, 10, exact=True)[0].tolist()))
                exact_seconds.append(time.perf_counter() - start)
            for probed in sorted({0.02, 0.1, 0.3, ann.PROBED}):
                hit, seconds = 0, []
                for q, right in zip(queries, truth, strict=True):
                    start = time.perf_counter()
                    found = ann.candidates(snapshot, q, 10, probed=probed)
                    seconds.append(time.perf_counter() - start)
                    hit += len(right & set(found.tolist()))
                rows.append(
                    {
                        "queries": name,
                        "clusters probed": probed,
                        "recall@10": hit / (10 * len(queries)),
                        "seconds": median(seconds),
                        "exact seconds": median(exact_seconds),
                    }
                )
    publish(f"Approximate search over {M} x {D}", rows)


if __name__ == "__main__":
    main()

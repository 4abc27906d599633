"""Durable ingest: vectors per second of `Store.add` at 512-d, until the last commit and the vector file are on disk.

Target: >= 20,000 vectors/s on an idle machine.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from compare import median, publish

from chiasm.embeddings import Embeddings, unit
from chiasm.search import Store

SMALL = "--small" in sys.argv
N, D, ROUNDS = (20_000, 512, 1) if SMALL else (200_000, 512, 3)


def main() -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((N, D), dtype=np.float32))
    embeddings = Embeddings(vectors, [f"item-{i}" for i in range(N)], ["image"] * N)
    fresh, again = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder) / "s.chiasm")
            start = time.perf_counter()
            store.add(embeddings)
            fresh.append(N / (time.perf_counter() - start))
            start = time.perf_counter()
            report = store.add(embeddings)
            again.append(N / (time.perf_counter() - start))
            assert report.unchanged == N
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [
        {
            "what": "new",
            "vectors/s": median(fresh),
            "target": 20_000,
            "held": median(fresh) >= 20_000,
            "peak GiB": memory,
        },
        {"what": "all known already", "vectors/s": median(again)},
    ]
    publish(f"Store.add of {N} x {D}", rows)


if __name__ == "__main__":
    main()

"""DBNorm beside the dense textbook formula: fit on 25k x 25k banks and top-10 of 5k queries, 512-d. Time and peak memory.

Targets: <= 0.7 x the time and <= 1/20 of the peak memory of the dense formula; not slower than nnn-retrieval on its own method.
"""

from __future__ import annotations

import sys

import numpy as np
from compare import alternate, median, peak_bytes, publish, ratio

from chiasm.correct.dbnorm import DualBankNorm, NearestNeighborNormalization
from chiasm.embeddings import unit

SMALL = "--small" in sys.argv
M, B, Q, D = (4000, 4000, 1000, 512) if SMALL else (25_000, 25_000, 5_000, 512)


def main() -> None:
    rng = np.random.default_rng(0)
    cone = rng.standard_normal(D).astype(np.float32)
    gallery, queries, query_bank, item_bank = (
        unit(rng.standard_normal((n, D), dtype=np.float32) + cone * 0.5) for n in (M, Q, B, B)
    )

    def dense() -> np.ndarray:
        """The formula as it is written: three similarity matrices, two sums, one product, one sort."""
        s, q, g = queries @ gallery.T, query_bank @ gallery.T, item_bank @ gallery.T
        first = np.exp(20.0 * s) / np.exp(20.0 * q).sum(axis=0)
        second = np.exp(3.0 * s) / np.exp(3.0 * g).sum(axis=0)
        product = first * second
        best = np.argpartition(-product, 10, axis=1)[:, :10]
        return np.take_along_axis(best, np.argsort(-np.take_along_axis(product, best, 1), axis=1), 1)

    def ours() -> np.ndarray:
        return DualBankNorm(20.0, 3.0).fit(gallery, queries=query_bank, items=item_bank).topk(queries, 10)[1]

    agreement = float((dense() == ours()).mean())
    seconds = alternate({"chiasm": ours, "dense": dense}, rounds=3, warmup=0)
    memory = {"chiasm": peak_bytes(ours), "dense": peak_bytes(dense)}
    rows = [
        {
            "what": f"DualIS fit + top-10, gallery {M}, banks {B}, queries {Q}, {D}-d",
            "seconds": median(seconds["chiasm"]),
            "peer": "dense formula (numpy)",
            "peer seconds": median(seconds["dense"]),
            "ratio": ratio(seconds, "chiasm", "dense"),
            "target": "<= 0.7",
            "memory ratio": memory["chiasm"] / memory["dense"],
            "memory target": "<= 0.05",
            "same top-10": agreement,
        }
    ]
    rows += nnn(gallery, queries, query_bank)
    publish("dualis", rows)


def nnn(gallery: np.ndarray, queries: np.ndarray, bank: np.ndarray) -> list[dict]:
    """nnn-retrieval on its own method: fit on the bank, search top-10."""
    try:
        from nnn import NNNRanker, NNNRetriever
    except ImportError:
        return [{"what": "NNN fit + top-10", "peer": "nnn-retrieval is not installed"}]

    def ours() -> None:
        NearestNeighborNormalization(k=128, alpha=0.75).fit(gallery, queries=bank).topk(queries, 10)

    def peer() -> None:
        retriever = NNNRetriever(gallery.shape[1], use_gpu=False)
        ranker = NNNRanker(
            retriever, gallery, bank, alternate_ks=128, alternate_weight=0.75, batch_size=256, use_gpu=False
        )
        ranker.search(queries, 10)

    seconds = alternate({"chiasm": ours, "nnn": peer}, rounds=3, warmup=0)
    return [
        {
            "what": "NNN fit + top-10, same sizes",
            "seconds": median(seconds["chiasm"]),
            "peer": "nnn-retrieval",
            "peer seconds": median(seconds["nnn"]),
            "ratio": ratio(seconds, "chiasm", "nnn"),
            "target": "<= 1",
        }
    ]


if __name__ == "__main__":
    main()

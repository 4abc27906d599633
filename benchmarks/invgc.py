"""InvGC's full graph beside the two matrix products that it cannot do without: 100k items, 100k bank rows, 512-d.

Target: <= 1.5 x the time of ``bank.T @ bank`` and ``gallery @ second_moment``.
"""

from __future__ import annotations

import sys

import numpy as np
from compare import alternate, median, peak_bytes, publish, ratio

from chiasm.correct.invgc import InverseGraphConvolution
from chiasm.embeddings import unit

M, D = (10_000 if "--small" in sys.argv else 100_000), 512


def main() -> None:
    rng = np.random.default_rng(0)
    gallery, bank = (unit(rng.standard_normal((M, D), dtype=np.float32) + 0.5) for _ in range(2))

    def ours() -> None:
        InverseGraphConvolution(step_items=1.0).fit(gallery, items=bank)

    def products() -> None:
        gallery @ (bank.T @ bank)

    seconds = alternate({"chiasm": ours, "products": products}, rounds=5)
    row = {
        "what": f"InvGC full graph, {M} items, {M} bank rows, {D}-d",
        "seconds": median(seconds["chiasm"]),
        "peer": "the two matrix products alone",
        "peer seconds": median(seconds["products"]),
        "ratio": ratio(seconds, "chiasm", "products"),
        "target": "<= 1.5",
        "peak MB": peak_bytes(ours) / 1e6,
    }
    publish("invgc", [row])


if __name__ == "__main__":
    main()

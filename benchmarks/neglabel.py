"""NegLabel scoring of 50,000 images against 11,000 labels, beside the bare matrix product of the same vectors.

The product is made in blocks of the same size, so that neither side pays for 2.2 GB of scores. ``peak MB`` is what the score
allocates at its peak beside its inputs; it is not known for torch, whose allocator Python does not see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from compare import alternate, median, peak_bytes, publish, ratio

from chiasm.adapt.mm_ood.scores import mcm, neglabel

SMALL = "--small" in sys.argv
N, K, M, D = (4_000, 100, 1_000, 512) if SMALL else (50_000, 1_000, 10_000, 512)
BLOCK = 2048
TARGET = 1.5  # times the bare product


def product(images: np.ndarray, labels: np.ndarray) -> float:
    """The bare product, block by block."""
    return float(sum((images[i : i + BLOCK] @ labels.T)[0, 0] for i in range(0, len(images), BLOCK)))


def unit(rows: int, seed: int) -> np.ndarray:
    """Random unit rows with CLIP's spread: cosines between images and texts around 0.2."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, D), dtype=np.float32)
    x[:, 0] += 0.5 * np.sqrt(D)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main() -> None:
    images, texts, negatives = unit(N, 0), unit(K, 1), unit(M, 2)
    labels = np.concatenate([texts, negatives])
    pictures, known, others = (torch.from_numpy(x) for x in (images, texts, negatives))
    arms: dict[str, Callable[[], object]] = {
        "bare product": lambda: product(images, labels),
        "NegLabel, numpy": lambda: neglabel(images, texts, negatives),
        "NegLabel, torch": lambda: neglabel(pictures, known, others),
        "NegLabel, 100 groups": lambda: neglabel(images, texts, negatives, groups=100),
        "MCM": lambda: mcm(images, texts),
    }
    seconds = alternate(arms, rounds=3)
    rows = [
        {
            "what": name,
            "images": N,
            "labels": K if name == "MCM" else K + M,
            "seconds": median(seconds[name]),
            "times the product": (times := ratio(seconds, name, "bare product")),
            "peak MB": None if name == "NegLabel, torch" else peak_bytes(run) / 1e6,
            "holds": name == "bare product" or times <= TARGET,
        }
        for name, run in arms.items()
    ]
    publish(f"NegLabel scores of {N} images x {K + M} labels, {D}-d", rows)


if __name__ == "__main__":
    main()

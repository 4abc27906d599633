"""Step k of OneEncoder at the paper's size on cached pooled features: a new 768-d modality is aligned with the texts of a space.

The alignment layer, token and token perceptron learn (305,283 numbers); each pair goes through the frozen Universal Projection,
and the texts' embeddings were computed once. Peer: the same training loop written by hand for a plain perceptron 768-256-256
against the same embeddings, with PyTorch's AdamW, which is the least that any step can cost. Target: >= 5,000 pairs a second on
one core, with the whole of `next_step` timed (the trainer's start included).
"""

from __future__ import annotations

import copy
import sys

import numpy as np
import torch
from compare import alternate, median, publish, ratio
from torch import nn

from chiasm.learn import Features, Pairs, Stage
from chiasm.learn.alignment.one_encoder import OneEncoder, as_model, next_step
from chiasm.learn.contrastive import info_nce

SMALL = "--small" in sys.argv
N, STEPS, BATCH, WIDTH = (2_000, 20, 256, 768) if SMALL else (20_000, 400, 256, 768)
SCALE = float(np.exp(2.5))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sounds, texts = (rng.standard_normal((N, WIDTH), dtype=np.float32) for _ in range(2))
    pairs = Pairs({"a": Features({"input_features": sounds}), "b": Features({"input_features": texts})})
    model = as_model(OneEncoder({"image": WIDTH, "text": WIDTH}), device="cpu")
    targets = nn.functional.normalize(torch.from_numpy(rng.standard_normal((N, 256), dtype=np.float32)), dim=1)
    inputs = torch.from_numpy(sounds)

    def ours() -> None:
        next_step(
            copy.deepcopy(model),
            "audio",
            WIDTH,
            pairs,
            stage=Stage("bench", steps=STEPS, rate=1e-3),
            batch_size=BATCH,
            log_every=STEPS,
            device="cpu",
        )

    def plain() -> None:
        layer = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 256), nn.LayerNorm(256))
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-3)
        for _ in range(STEPS):
            rows = torch.randint(N, (BATCH,))
            e = nn.functional.normalize(layer(inputs[rows]), dim=1)
            loss = torch.stack(list(info_nce(e, targets[rows], scale=SCALE, stop_gradient="b").values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    seconds = alternate({"step k": ours, "plain perceptron": plain}, rounds=3)
    speed = STEPS * BATCH / median(seconds["step k"])
    publish(
        f"OneEncoder: {STEPS} steps of {BATCH} pairs, {WIDTH}-d pooled features, one core",
        [
            {
                "what": "step k (next_step)",
                "pairs/s": speed,
                "peer": "plain perceptron, no projection",
                "peer pairs/s": STEPS * BATCH / median(seconds["plain perceptron"]),
                "ratio": ratio(seconds, "step k", "plain perceptron"),
                "target pairs/s": 5_000,
                "held": speed >= 5_000,
            }
        ],
    )


if __name__ == "__main__":
    main()

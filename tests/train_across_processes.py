"""Run by `test_distributed.py`, alone or under torchrun: trains two towers and writes the loss curve of rank 0."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from chiasm.learn import Features, InfoNCE, Pairs, Stage, train
from chiasm.learn.towers import Perceptron, dual_tower

GLOBAL_BATCH = 64


def main(out: Path, processes: int) -> None:
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((512, 16)).astype(np.float32)
    maps = rng.standard_normal((2, 16, 24)).astype(np.float32)
    noise = rng.standard_normal((2, 512, 24)).astype(np.float32)
    sources = {side: Features({"input_features": latent @ maps[i] + noise[i]}) for i, side in enumerate("ab")}
    pairs = Pairs(sources, groups=np.arange(512) // 2)
    torch.manual_seed(0)
    model = dual_tower(Perceptron([24, 32, 16]), Perceptron([24, 32, 16]), device="cpu")
    report = train(
        model,
        pairs,
        InfoNCE(0.07, learn_temperature=True),
        Stage(epochs=4, rate=3e-3),
        batch_size=GLOBAL_BATCH // processes,
        log_every=1,
        device="cpu",
    )
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    out.write_text(json.dumps({"losses": report.losses, "weights": weights[:200].tolist()}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

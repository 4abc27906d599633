"""The InfoNCE core beside pytorch-metric-learning's NTXentLoss: 256 pairs of 512-d vectors, the same loss value and gradient.

Target: >= 20 x faster. NTXentLoss takes the rows of one side as anchors, so both directions are two calls of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from compare import alternate, median, publish, ratio
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn import functional as F

from chiasm.learn.contrastive import InfoNCE

N, D, TEMPERATURE, ROUNDS = 256, 512, 0.07, 7


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a = torch.randn(N, D)
    return a.requires_grad_(), (a.detach() + torch.randn(N, D)).requires_grad_()


def no_grad(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            loss()

    return run


def main() -> None:
    torch.set_num_threads(1)
    a, b = batch()
    # Two objects: the peer takes a row for its own copy, and drops it, where both sides share one tensor of labels.
    labels, others = torch.arange(N), torch.arange(N)
    peer = NTXentLoss(TEMPERATURE)
    one, two = InfoNCE(TEMPERATURE, directions="a"), InfoNCE(TEMPERATURE)

    def peer_one() -> torch.Tensor:
        return peer(a, labels, ref_emb=b, ref_labels=others)

    def peer_two() -> torch.Tensor:
        return (peer_one() + peer(b, others, ref_emb=a, ref_labels=labels)) / 2

    def plain_two() -> torch.Tensor:
        scores = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / TEMPERATURE
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2

    def plain_one() -> torch.Tensor:
        return F.cross_entropy(F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / TEMPERATURE, labels)

    cases = {
        "one direction": (lambda: one(a, b)["a_to_b"], peer_one, plain_one),
        "both directions": (lambda: torch.stack(list(two(a, b).values())).sum(), peer_two, plain_two),
    }
    rows = []
    for directions, losses in cases.items():
        values = [float(loss().detach()) for loss in losses]
        grads = [torch.cat(torch.autograd.grad(loss(), (a, b))) for loss in losses]
        if max(values) - min(values) > 1e-4 or not all(torch.allclose(g, grads[0], atol=1e-6) for g in grads):
            raise SystemExit(f"not the same loss: {values}")
        for what in ("forward", "forward + backward"):
            arms = {
                name: no_grad(loss) if what == "forward" else (lambda loss=loss: loss().backward())
                for name, loss in zip(("chiasm", "peer", "plain"), losses)
            }
            seconds = alternate(arms, rounds=ROUNDS, warmup=2)
            rows.append(
                {
                    "what": f"InfoNCE {what}, {directions}, {N} x {D}",
                    "loss": values[0],
                    "peer loss": values[1],
                    "ms": 1e3 * median(seconds["chiasm"]),
                    "peer": "NTXentLoss",
                    "peer ms": 1e3 * median(seconds["peer"]),
                    "times faster": 1 / ratio(seconds, "chiasm", "peer"),
                    "target": ">= 20",
                    "plain cross-entropy ms": 1e3 * median(seconds["plain"]),
                }
            )
    publish("contrastive peers", rows)


if __name__ == "__main__":
    main()

"""The streamed InfoNCE core beside the plain full-matrix loss: forward and backward at batch 8,192 x 512.

Targets: <= 1.35 x the time and <= 1/8 of the peak memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from compare import alternate, median, publish, ratio
from torch.nn import functional as F

from chiasm.learn.contrastive import info_nce

N, D = (1024 if "--small" in sys.argv else 8192), 512


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    a, b = (F.normalize(torch.randn(N, D), dim=1).requires_grad_() for _ in range(2))
    return a, b


def plain(a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    scores, labels = scale * a @ b.T, torch.arange(N)
    ((F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2).backward()


def ours(a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    torch.stack(list(info_nce(a, b, scale=scale).values())).sum().backward()


def peak_megabytes(arm: str) -> float:
    """Resident memory that the arm adds, in a process of its own (torch's allocator is invisible to tracemalloc)."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", arm, *sys.argv[1:]], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def report_memory(arm: str) -> None:
    a, b = batch()
    (a[:256] @ b[:256].T).sum().backward()  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    {"plain": plain, "chiasm": ours}[arm](a, b, 20.0)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    a, b = batch()
    memory = {arm: peak_megabytes(arm) for arm in ("chiasm", "plain")}
    rows = []
    for scale in (20.0, 100.0):
        arms = {"chiasm": lambda s=scale: ours(a, b, s), "plain": lambda s=scale: plain(a, b, s)}
        seconds = alternate(arms, rounds=5)
        rows.append(
            {
                "what": f"InfoNCE forward + backward, {N} x {D}, scale {scale:g}",
                "seconds": median(seconds["chiasm"]),
                "peer": "full-matrix cross-entropy",
                "peer seconds": median(seconds["plain"]),
                "ratio": ratio(seconds, "chiasm", "plain"),
                "target": "<= 1.35",
                "memory ratio": memory["chiasm"] / memory["plain"],
                "memory target": "<= 0.125",
            }
        )
    publish("contrastive", rows)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        report_memory(sys.argv[sys.argv.index("--memory") + 1])
    else:
        main()

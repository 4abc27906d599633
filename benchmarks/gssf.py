"""Structural scores folded into the queries beside the naive form that holds an N x M x D tensor.

    ours:   (x T) y^T, block by block          naive:  sum over d of (x.view(N, 1, G, b) W) * y.view(1, M, G, b)

Ours runs on N = M = 4,096 (``--small``: 1,024), D = 512, b = 16. The naive form would need 32 GB there, so the two are
timed against each other on 256 x 256, and its memory is measured there too. Targets: peak memory beside the scores at
most 1/8 of what the naive form needs for its tensor; scoring at most 1.5 x the time of the plain cosine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from compare import alternate, median, publish, ratio

from chiasm.learn.objectives.gssf import StructuralMetric

N = 1024 if "--small" in sys.argv else 4096
FEW, D, B = 256, 512, 16


def metric() -> StructuralMetric:
    made = StructuralMetric(D, block=B)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) / 10)
    return made.eval()


def sides(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, D), dim=1) for _ in range(2))
    return x, y


@torch.no_grad()
def ours(made: StructuralMetric, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return made.scores(x, y, chunk=512)


@torch.no_grad()
def search(made: StructuralMetric, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return made.topk(x, y, 10)[0]


@torch.no_grad()
def naive(made: StructuralMetric, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert made.weight is not None
    groups = D // B
    left = torch.einsum("ngi,gij->ngj", x.view(len(x), groups, B), made.weights())
    left = left + (x * made.weight).view(len(x), groups, B)
    return (left.unsqueeze(1) * y.view(1, len(y), groups, B)).sum(dim=(2, 3))


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    normalize = torch.nn.functional.normalize
    return normalize(x, dim=1) @ normalize(y, dim=1).T


ARMS = {"scores": (ours, N), "topk": (search, N), "naive": (naive, FEW), "ours at 256": (ours, FEW)}


def peak_megabytes(arm: str) -> float:
    """Resident memory that the arm adds, in a process of its own (torch's allocator is invisible to tracemalloc)."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", arm, *sys.argv[1:]], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def report_memory(arm: str) -> None:
    run, n = ARMS[arm]
    made, (x, y) = metric(), sides(n)
    run(made, x[:32], y[:32])  # the libraries' own buffers
    # Importing the libraries takes more than scoring does, so the mark must be set back first (Linux).
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    run(made, x, y)
    print((high_water() - before) / 1024)


def high_water() -> float:
    """Largest resident memory since the mark was set, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main() -> None:
    made = metric()
    x, y = sides(N)
    few = x[:FEW], y[:FEW]
    torch.testing.assert_close(ours(made, *few), naive(made, *few), rtol=1e-4, atol=1e-5)
    memory = {arm: peak_megabytes(arm) for arm in ARMS}
    tensor, scores = N * N * D * 4 / 2**20, N * N * 4 / 2**20
    against = alternate({"chiasm": lambda: ours(made, *few), "naive": lambda: naive(made, *few)}, rounds=5)
    plain = alternate({"chiasm": lambda: ours(made, x, y), "cosine": lambda: cosine(x, y)}, rounds=5)
    rows = [
        {
            "what": f"scores, {FEW} x {FEW} x {D}, b={B}",
            "seconds": median(against["chiasm"]),
            "peer": "naive N x M x D",
            "peer seconds": median(against["naive"]),
            "ratio": ratio(against, "chiasm", "naive"),
            "target": "<= 0.1",
            "MB": memory["ours at 256"],
            "peer MB": memory["naive"],
        },
        {
            "what": f"scores, {N} x {N} x {D}, b={B}",
            "seconds": median(plain["chiasm"]),
            "peer": "cosine",
            "peer seconds": median(plain["cosine"]),
            "ratio": ratio(plain, "chiasm", "cosine"),
            "target": "<= 1.5",
            "MB": memory["scores"],
            "peer MB": scores,
            "note": f"the scores alone are {scores:.0f} MB; the naive tensor would be {tensor:.0f} MB",
        },
        {
            "what": f"top 10, {N} x {N} x {D}, b={B}",
            "MB": memory["topk"],
            "peer": "naive N x M x D",
            "peer MB": tensor,
            "target": "MB <= 1/8 of the peer's",
        },
    ]
    publish("gssf", rows)


if __name__ == "__main__":
    if "--memory" in sys.argv:
        report_memory(sys.argv[sys.argv.index("--memory") + 1])
    else:
        main()

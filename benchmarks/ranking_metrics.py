"""Ranking metrics beside ranx: the same lists, the same figures, alternating in one process.

End to end means: from arrays of item numbers, scores and positives, as a search returns them, to the figures. ranx takes
dictionaries of strings, so building them is part of its time; its time on ready-made ``Qrels`` and ``Run`` is shown too.

    pip install ranx
    python benchmarks/ranking_metrics.py --json results/ranking_metrics.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.measure import evaluate_lists

# ours -> ranx
METRICS = {
    "recall@10": "recall@10",
    "hit@10": "hit_rate@10",
    "precision@10": "precision@10",
    "mrr": "mrr",
    "map": "map",
    "ndcg@10": "ndcg@10",
}


def lists(queries: int, results: int, gallery: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Ids and scores ``[Q, K]`` and one to five positives a query, about half of them in the list."""
    rng = np.random.default_rng(seed)
    # Steps of at least one keep a query's ids distinct.
    ids = rng.permutation(gallery)[np.cumsum(rng.integers(1, gallery // results, size=(queries, results)), axis=1) - 1]
    ids = rng.permuted(ids, axis=1)
    scores = -np.sort(-rng.random((queries, results)), axis=1)
    positives = []
    for row in range(queries):
        count = rng.integers(1, 6)
        inside = rng.choice(ids[row], count, replace=False)
        positives.append(np.unique(np.where(rng.random(count) < 0.5, inside, rng.integers(gallery, size=count))))
    return ids, scores, positives


def to_ranx(ids: np.ndarray, scores: np.ndarray, positives: list[np.ndarray]) -> tuple[Any, Any]:
    from ranx import Qrels, Run

    names = ids.astype(str).tolist()
    run = {str(q): dict(zip(row, values)) for q, (row, values) in enumerate(zip(names, scores.tolist()))}
    qrels = {str(q): dict.fromkeys(map(str, row.tolist()), 1) for q, row in enumerate(positives)}
    return Qrels(qrels), Run(run)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = function()
    return time.perf_counter() - start, out


def measure(queries: int, results: int, gallery: int, repeats: int, seed: int) -> dict[str, Any]:
    from ranx import evaluate

    ids, scores, positives = lists(queries, results, gallery, seed)

    def ours() -> dict[str, float]:
        return evaluate_lists(ids, positives, scores=scores, metrics=list(METRICS)).means

    def theirs() -> Any:
        return evaluate(*to_ranx(ids, scores, positives), list(METRICS.values()))

    ready = to_ranx(ids, scores, positives)

    def theirs_ready() -> Any:
        return evaluate(*ready, list(METRICS.values()))

    # One untimed round: ranx compiles on first use.
    mine, peer = ours(), theirs()
    theirs_ready()
    worst = max(abs(mine[a] - float(peer[b])) for a, b in METRICS.items())
    if worst > 1e-6:
        raise SystemExit(f"the figures differ by {worst}: {mine} {peer}")
    times: dict[str, list[float]] = {"chiasm": [], "ranx": [], "ranx_ready": []}
    for _ in range(repeats):
        for name, function in (("chiasm", ours), ("ranx", theirs), ("ranx_ready", theirs_ready)):
            times[name].append(seconds(function)[0])
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "queries": queries,
        "results": results,
        "repeats": repeats,
        "seed": seed,
        "median_seconds": medians,
        "all_seconds": times,
        "ratio": medians["ranx"] / medians["chiasm"],
        "ratio_ready": medians["ranx_ready"] / medians["chiasm"],
        "largest_difference": worst,
        "versions": {name: version(name) for name in ("chiasm", "ranx", "numpy")},
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranking metrics beside ranx.")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--results", type=int, default=100)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    found = measure(args.queries, args.results, args.gallery, args.repeats, args.seed)
    for name, value in found["median_seconds"].items():
        print(f"{name:12s} {value:8.3f} s")
    print(f"end to end {found['ratio']:.1f} x, on ready-made Qrels and Run {found['ratio_ready']:.1f} x")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

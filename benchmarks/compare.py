"""Times two or more pieces of code in turn (A B A B ...) in one process, and prints medians and ratios.

Alternating makes a comparison hold when the machine's speed drifts; medians make it hold when something else runs for a moment.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any


def alternate(arms: Mapping[str, Callable[[], Any]], *, rounds: int = 7, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each arm, ``rounds`` times each, in turn; the order within a round alternates too."""
    for _ in range(warmup):
        for run in arms.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        names = list(arms) if turn % 2 == 0 else list(reversed(arms))
        for name in names:
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(seconds: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """Median over the rounds of ``ours / peer``, pair by pair."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True))


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak of what Python and numpy allocate during a call (torch's own allocator is not seen)."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def publish(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table, or as JSON with ``--json`` on the command line; every row says whether its target holds."""
    if "--json" in sys.argv:
        print(json.dumps({"benchmark": title, "cores": os.cpu_count(), "rows": rows}, indent=1))
        return
    print(f"\n{title}  ({os.cpu_count()} cores)")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = [[_show(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in text)) for i, c in enumerate(columns)]
    for line in [columns, ["-" * w for w in widths], *text]:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

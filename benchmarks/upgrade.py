"""A query of a store under upgrade beside a query of the same store before. Target: <= 1.1 x the time.

Both encode the words with the pocket text model, search the same vectors and judge the relevance; the upgraded one also
applies the map (an MLP of four times the width, the largest of the forms, with adapters).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import alternate, median, publish, ratio

import chiasm
from chiasm.embeddings import Embeddings, unit
from chiasm.learn.alignment.xbt import XBT, LowRank, Projection
from chiasm.learn.alignment.xbt.mapping import SpaceMap
from chiasm.search import Store
from chiasm.search.upgrade import Plan, UpgradeReport, begin

N, ROUNDS = (2_000, 11) if "--small" in sys.argv else (50_000, 41)
WORDS = ("a dog on a beach", "two people at a table", "an old red car", "snow on a mountain", "a city at night")


def main() -> None:
    old = chiasm.load("pocket")
    new: Any = _Other(old)
    vectors = unit(np.random.default_rng(0).standard_normal((N, old.dim), dtype=np.float32))
    ids = [str(i) for i in range(N)]
    with tempfile.TemporaryDirectory() as folder:
        plain = Store(Path(folder) / "plain.chiasm", old)
        plain.add(Embeddings(vectors, ids, ["image"] * N, space=old.fingerprint.digest))
        plain.search(WORDS[0])
        plain.close()
        shutil.copytree(Path(folder) / "plain.chiasm", Path(folder) / "upgraded.chiasm")
        plain, upgraded = Store(plain.path, old), Store(Path(folder) / "upgraded.chiasm", old)
        begin(upgraded, Plan(_map(old, new), _report(), new))
        plain.search(WORDS[0])
        upgraded.search(WORDS[0])
        turn = {"plain": 0, "upgraded": 0}

        def ask(name: str, store: Store) -> None:
            turn[name] += 1
            store.search(WORDS[turn[name] % len(WORDS)], 10)

        arms = {"plain": lambda: ask("plain", plain), "upgraded": lambda: ask("upgraded", upgraded)}
        seconds = alternate(arms, rounds=ROUNDS, warmup=3)
        times = ratio(seconds, "upgraded", "plain")
        rows = [
            {"what": "plain query", "seconds": median(seconds["plain"])},
            {
                "what": "upgraded query",
                "seconds": median(seconds["upgraded"]),
                "times": times,
                "target": 1.1,
                "held": times <= 1.1,
            },
        ]
        publish(f"Query under upgrade, {N} x {old.dim}", rows)


class _Other:
    """The same encoders under another fingerprint, so that only the map makes the difference."""

    def __init__(self, space: Any) -> None:
        self._space = space
        own = space.fingerprint
        self.fingerprint = replace(own, model="other", weights=own.weights[::-1])
        self.name = "other"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)


def _map(old: Any, new: Any) -> SpaceMap:
    torch.manual_seed(0)
    xbt = XBT()
    xbt.projection = Projection(old.dim, old.dim)
    xbt.adapters = {side: LowRank(old.dim) for side in ("image", "text")}
    return replace(xbt.map, new_space=new.fingerprint.digest, old_space=old.fingerprint.digest)


def _report() -> UpgradeReport:
    return UpgradeReport("pocket", "other", 0, 0, (0, 0), 0.0, 0.0, 0.0, 0)


if __name__ == "__main__":
    main()

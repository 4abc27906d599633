"""Retrieval figures of a space on pairs: recall in both directions with intervals, hubness, and the gap.

An item is right for a query if the two are a pair anywhere in the table; equal sentences are one item, so a sentence that
several pictures have is right for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from chiasm.errors import BadInput, ChiasmError
from chiasm.measure.gap import modality_gap
from chiasm.measure.hubness import hubness
from chiasm.measure.intervals import Interval
from chiasm.measure.positives import Positives
from chiasm.measure.ranking import RankingReport, evaluate

# Named as in image-text papers: R@k is the share of queries with a right item among the first k.
RECALL = {"R@1": "hit@1", "R@5": "hit@5", "R@10": "hit@10"}
METRICS = (*RECALL.values(), "map", "median_rank")


@dataclass
class Retrieval:
    """What one direction gave.

    Args:
        queries, items: what they are called.
        ranking: per-query figures.
        groups: ``[N]``; queries of one group (captions of a picture) are resampled together.
        hubs: skewness of N_10 and the share of items in no list of ten, where there are enough items.
        candidates: number of items.
    """

    queries: str
    items: str
    ranking: RankingReport
    groups: np.ndarray
    hubs: dict[str, float] = field(default_factory=dict)
    candidates: int = 0

    @property
    def name(self) -> str:
        return f"{self.queries} to {self.items}"

    def interval(self, name: str, seed: int = 0) -> Interval:
        """``"R@10"`` or ``"map"`` with its bootstrap interval, in [0, 1]."""
        return self.ranking.interval(RECALL.get(name, name), groups=self.groups, seed=seed)

    def gain(self, before: Retrieval, name: str, seed: int = 0) -> Interval:
        """Paired interval of this minus another one of the same queries."""
        return self.ranking.compare(before.ranking, RECALL.get(name, name), groups=self.groups, seed=seed)

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        shown: dict[str, Any] = {name: self.interval(name, seed).to_json() for name in (*RECALL, "map")}
        return {
            "queries": self.queries,
            "items": self.items,
            "n_queries": len(self.ranking),
            "n_items": self.candidates,
            **shown,
            "median_rank": self.ranking["median_rank"],
            **self.hubs,
        }


@dataclass
class RetrievalReport:
    """Both directions, and the gap between the two sides (NaN where there are too few items)."""

    directions: list[Retrieval]
    gap: dict[str, float]

    def __getitem__(self, name: str) -> Retrieval:
        """``"text to image"`` and the other one."""
        return next(d for d in self.directions if d.name == name)

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        return {"directions": {d.name: d.to_json(seed) for d in self.directions}, "gap": self.gap}


def retrieval(
    a: np.ndarray, b: np.ndarray, pairs: np.ndarray, names: tuple[str, str] = ("image", "text"), *, seed: int = 0
) -> RetrievalReport:
    """Evaluates a search in both directions among the items of some pairs.

    Args:
        a: ``[N, D]`` vectors of all items of the first side.
        b: ``[M, D]``.
        pairs: int ``[P, 2]``, rows of ``a`` and ``b``; their items are queries and candidates.
        names: what the sides are called.
        seed: of the gap's classifier.

    Raises:
        BadInput: no pairs.
    """
    if not len(pairs):
        raise BadInput("no pairs to evaluate", where="retrieval")
    items, rows = zip(*(np.unique(pairs[:, side], return_inverse=True) for side in (0, 1)))
    ones = np.ones(len(pairs), np.float32)
    right = csr_matrix((ones, (rows[0], rows[1])), (len(items[0]), len(items[1])))
    sides = [np.asarray(values[index], np.float32) for values, index in zip((a, b), items)]
    forth = _direction(sides[0], sides[1], right, names)
    back = _direction(sides[1], sides[0], right.T.tocsr(), (names[1], names[0]))
    try:
        gap = modality_gap(*sides, seed=seed).to_json()
    except ChiasmError:  # fewer than four items
        gap = {}
    return RetrievalReport([back, forth], gap)


def _direction(queries: np.ndarray, gallery: np.ndarray, right: Any, names: Sequence[str]) -> Retrieval:
    positives = Positives.of(right, *right.shape)
    ranking = evaluate(queries, gallery, positives, metrics=METRICS)
    hubs = {}
    if len(gallery) >= 20:
        found = hubness(queries, gallery, 10)
        hubs = {"skewness": found.skewness, "anti_hub_share": found.anti_hub_share}
    groups = positives.items[positives.indptr[:-1]]
    return Retrieval(names[0], names[1], ranking, groups, hubs, len(gallery))


@dataclass
class Measured:
    """What `measure_space` found: the figures, and what they are of."""

    space: str
    split: str
    pairs: int
    report: RetrievalReport
    notes: list[str]
    skipped: list[Any]
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "split": self.split,
            "pairs": self.pairs,
            **self.report.to_json(self.seed),
            "notes": self.notes,
            "skipped": [one.to_json() for one in self.skipped],
        }


def measure_space(
    space: Any,
    pairs: Any,
    *,
    split: str = "test",
    seed: int = 0,
    cache: Any = None,
    progress: Any = False,
    **reading: Any,
) -> Measured:
    """Retrieval figures of a space on a file of pairs.

    Args:
        space: a space or its name.
        pairs: a file or folder, a table, or ``[(picture, caption), ...]``.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"all"``; a file that names no splits is measured whole.
        seed: of intervals.
        cache, progress: see `chiasm.learn.frozen.frozen`.
        **reading: arguments of `chiasm.learn.readers.read_pairs`.

    Raises:
        BadInput: no pairs in this split.
        UnknownName: a space, split or column that does not exist.
    """
    from pathlib import Path

    from chiasm.encode import load
    from chiasm.learn.frozen import frozen, modality_of
    from chiasm.learn.pair_table import PairTable
    from chiasm.learn.readers import read_pairs, table_of

    reading = {"held_out": {}, "seed": seed, **reading}
    if isinstance(pairs, (str, Path)):
        pairs = read_pairs(pairs, **reading)
    table = pairs if isinstance(pairs, PairTable) else table_of(pairs, **reading)
    notes = []
    if split in ("val", "test") and not len(table.rows("val")) and not len(table.rows("test")):
        split, notes = "all", ["The pairs name no val or test split: all of them were measured."]
    rows = table.rows(split)
    if not len(rows):
        raise BadInput(f"there are no {split} pairs ({table.counts()})", where="evaluate", fix="Name another --split")
    if isinstance(space, str):
        space = load(space)
    # Only the items of this split are encoded.
    index = [np.unique(table.pairs[rows, side]) for side in (0, 1)]
    vectors, failed, names = [], [], []
    for entries, chosen in zip((table.a, table.b), index):
        these = [entries[i] for i in chosen]
        names.append(modality_of(these))
        found = frozen(space, these, cache=cache, modality=names[-1], progress=progress)
        full = np.zeros((len(entries), space.dim), np.float32)
        if "vector" in found.arrays:
            full[chosen] = found.arrays["vector"]
        vectors.append(full)
        failed.append({int(chosen[i]): why for i, why in found.failed.items()})
    table = table.without(failed[0], failed[1])
    kept = table.rows(split)
    if not len(kept):
        raise BadInput(f"no {split} pair can be read; first {table.skipped[0]}", where="evaluate")
    sides = (names[0], names[1]) if names[0] != names[1] else (f"{names[0]} a", f"{names[1]} b")
    report = retrieval(vectors[0], vectors[1], table.pairs[kept], sides, seed=seed)
    return Measured(space.name, split, len(kept), report, [*table.notes, *notes], table.skipped, seed)

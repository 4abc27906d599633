"""`AlignReport`: what `chiasm.align` did and what it gained, as data and JSON; `chiasm.doctor.alignment` draws the page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.errors import ChiasmError
from chiasm.learn.pair_table import Entry, PairTable, Skipped
from chiasm.learn.retrieval import RECALL, RetrievalReport
from chiasm.measure.pairs import NoisyPairs, noisy_pairs

# Pairs that are listed, the least fitting first; their probability says whether they are suspicious.
LISTED = 24


@dataclass(frozen=True, slots=True)
class Suspect:
    """One of the least fitting pairs.

    Args:
        where: its place in the file.
        a, b: the two items.
        probability: that it is mismatched.
        cosine: of the aligned vectors.
        split: where it was used.
    """

    where: str
    a: Entry
    b: Entry
    probability: float
    cosine: float
    split: str

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "a": self.a.name,
            "b": self.b.name,
            "probability": self.probability,
            "cosine": self.cosine,
            "split": self.split,
        }


@dataclass
class AlignReport:
    """What happened.

    Args:
        facts: space, objective, settings, sizes.
        history: one dict a log of the training: ``step``, ``epoch``, ``loss`` and parts, or figures of the val pictures.
        start: mean recall@10 on the val pictures before training; None without val pictures.
        best: the best one.
        before, after: figures of the unaligned and of the aligned space on the reported pairs.
        noisy: estimated share of mismatched pairs; None for fewer than 20 pairs.
        suspects: the least fitting pairs, the worst first.
        skipped: what gave no pair.
        notes: what limits the figures.
        collapsed: True if all vectors came to point one way.
        seconds: ``read``, ``encode``, ``train``, ``measure``, ``total``.
        seed: of everything.
    """

    facts: dict[str, Any]
    history: list[dict[str, float]]
    start: float | None
    best: float | None
    before: RetrievalReport
    after: RetrievalReport
    noisy: NoisyPairs | None
    suspects: list[Suspect]
    skipped: list[Skipped]
    notes: list[str]
    collapsed: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    seed: int = 0

    def gains(self) -> dict[str, dict[str, Any]]:
        """Direction -> figure -> paired interval of the gain, in [-1, 1]."""
        return {
            one.name: {name: one.gain(self.before[one.name], name, self.seed) for name in RECALL}
            for one in self.after.directions
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "facts": self.facts,
            "before": self.before.to_json(self.seed),
            "after": self.after.to_json(self.seed),
            "gain": {
                way: {name: interval.to_json() for name, interval in gains.items()}
                for way, gains in self.gains().items()
            },
            "val_recall_at_10": {"start": self.start, "best": self.best},
            "history": self.history,
            "noisy_pairs": None if self.noisy is None else self.noisy.to_json(),
            "suspects": [suspect.to_json() for suspect in self.suspects],
            "skipped": [skipped.to_json() for skipped in self.skipped],
            "notes": self.notes,
            "collapsed": self.collapsed,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def save(self, path: str | Path) -> None:
        """Writes the JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1, allow_nan=False, default=float), encoding="utf-8")


def noisy_list(
    a: np.ndarray, b: np.ndarray, table: PairTable, *, seed: int = 0
) -> tuple[NoisyPairs | None, list[Suspect]]:
    """The share of mismatched pairs, and the least fitting ones (one a first item), the worst first.

    Args:
        a: ``[N, D]`` vectors of all first items.
        b: ``[M, D]``.
        table: the pairs.
        seed: of the mismatched pairs they are compared with.
    """
    rows = table.pairs
    left, right = a[rows[:, 0]], b[rows[:, 1]]
    cosine = np.einsum("nd,nd->n", left, right)
    try:
        found = noisy_pairs(left, right, seed=seed)
        probability = np.asarray(found.probability, dtype=np.float64)
        p_values = np.asarray(found.p_values)
    except ChiasmError:  # fewer than 20 pairs, or all vectors equal
        return None, []
    suspects: list[Suspect] = []
    seen: set[int] = set()
    for i in map(int, np.lexsort((cosine, -p_values))):
        if len(suspects) == LISTED:
            break
        first, second = rows[i].tolist()
        if first not in seen:
            seen.add(first)
            suspects.append(
                Suspect(
                    table.where[i],
                    table.a[first],
                    table.b[second],
                    float(probability[i]),
                    float(cosine[i]),
                    str(table.split[i]) or "unused",
                )
            )
    return found, suspects

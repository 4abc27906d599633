"""The result of an examination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chiasm.doctor.cures import Trial, Verdict
from chiasm.doctor.figures import Figure
from chiasm.doctor.symptoms import RULES, Symptom
from chiasm.measure.intervals import Interval


@dataclass(slots=True)
class Pictures:
    """What the report's charts show.

    Args:
        counts: title -> N_10 of every sampled item ``[M]``.
        similarities: name -> sampled cosines ``[n]``, for example matched and mismatched pairs.
        points: part -> its rows on the two main axes of all parts together ``[n, 2]``.
        explained: share of variance on the two axes.
    """

    counts: dict[str, np.ndarray] = field(default_factory=dict)
    similarities: dict[str, np.ndarray] = field(default_factory=dict)
    points: dict[str, np.ndarray] = field(default_factory=dict)
    explained: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, found, tried and recommended.

    Args:
        facts: sizes, dimension, sample and seed.
        figures: everything that was measured.
        symptoms: what was found, in the order of `chiasm.doctor.symptoms.RULES`.
        trials: the cures that were tried, in the order of their cost; empty without pairs.
        verdict: what to do.
        raw: hit@1 without a correction on the checking slice.
        notes: what limits the figures.
        pictures: data of the charts.
        seconds: of the examination.
    """

    facts: dict[str, Any]
    figures: Sequence[Figure]
    symptoms: Sequence[Symptom]
    trials: Sequence[Trial]
    verdict: Verdict
    raw: Interval | None
    notes: list[str]
    pictures: Pictures
    seconds: float

    def figure(self, name: str, part: str | None = None) -> Figure:
        """The figure of this name (and part; else the first).

        Raises:
            UnknownName: it was not measured.
        """
        for found in self.figures:
            if found.name == name and part in (None, found.part):
                return found
        from chiasm.errors import unknown_name

        raise unknown_name("figure of this report", name, {f.name for f in self.figures})

    def to_json(self) -> dict[str, Any]:
        return {
            "facts": self.facts,
            "symptoms": [symptom.to_json() for symptom in self.symptoms],
            "verdict": self.verdict.to_json(),
            "raw_hit_at_1": None if self.raw is None else self.raw.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "figures": [figure.to_json() for figure in self.figures],
            "thresholds": {rule.symptom: {"figure": rule.figure, "threshold": rule.threshold} for rule in RULES},
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

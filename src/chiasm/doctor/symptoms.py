"""From figures to symptoms: one table of thresholds, each with its reason, and the methods that treat what is found.

The thresholds were set on the paired-embedding worlds of `chiasm.worlds` with seeds 100 and 101: each lies between the
largest value without the fault and the smallest value with it. Other seeds then check them. A symptom is reported only
if the lower end of the figure's interval is above its threshold, so a small sample is no evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chiasm import catalog
from chiasm.doctor.figures import Figure


@dataclass(frozen=True, slots=True)
class Rule:
    """When a figure is a symptom.

    Args:
        symptom: the symptom's name.
        figure: name of the figure.
        threshold: it is a symptom above this.
        reason: why this threshold.
        meaning: what the symptom does to a search, for the report.
        words: what to look for in the catalogue's symptoms; any of them.
        parts: only for parts of this kind: ``"items"`` (the gallery, or its modalities), ``"across"`` (two sides),
            ``"common"`` (all of these parts must show it), ``"any"``.
        besides: name and threshold of a second figure of the same part that must also be above it.
        below: a symptom lies below the threshold instead.
    """

    symptom: str
    figure: str
    threshold: float
    reason: str
    meaning: str
    words: tuple[str, ...]
    parts: str = "any"
    besides: tuple[str, float] | None = None
    below: bool = False


RULES: tuple[Rule, ...] = (
    Rule(
        "collapse",
        "effective rank",
        2.0,
        "Fewer than two dimensions are in use: nearly all vectors are the same up to sign and length.",
        "The vectors hardly differ, so no search over them can work. Look for a broken encoder, missing preprocessing or "
        "an untrained head before anything else.",
        ("collapse",),
        parts="items",
        below=True,
    ),
    Rule(
        "hubness",
        "skewness of N_10",
        1.0,
        "Ten places drawn at random give 1/sqrt(10) = 0.32, clean worlds up to 0.4, planted hubs 2.3 to 8.",
        "A few items stand in very many result lists and others in none. Right answers are pushed down by items that are "
        "near to every query.",
        ("hubness",),
    ),
    Rule(
        "cone",
        "mean cosine",
        0.02,
        "Mismatched vectors of a clean space have mean cosine 0; clean worlds stay below 0.001, clusters below 0.01, the "
        "planted cone lies at 0.045, CLIP models between 0.1 and 0.3.",
        "All vectors share a common direction. It uses up the range of scores and, where items differ along it, it makes "
        "hubs.",
        ("cone",),
        parts="common",
    ),
    Rule(
        "local crowding",
        "local crowding",
        0.02,
        "MeanSim@10 above a Gaussian of the same mean and covariance: clean worlds 0.001, cones 0.004, planted clusters "
        "0.044 and more. Real galleries have clusters too; whether spreading them helps is for the cures to show.",
        "Items crowd in groups: the nearest neighbors of an item are much nearer than the overall shape of the space "
        "explains, so items of one group compete for the same queries.",
        ("crowding",),
        parts="items",
    ),
    Rule(
        "modality gap",
        "relative gap",
        0.5,
        "Distance of the two means over the spread around them: clean worlds 0.02, cones 0.16, popularity 0.31, the "
        "planted gap 0.70, CLIP models about 1.",
        "The two sides lie in different regions. Rankings between the sides need not suffer, but scores across and within "
        "a modality cannot be compared, and mixed result lists favor one modality.",
        ("modality gap", "gap"),
        parts="across",
        besides=("separability", 0.9),
    ),
    Rule(
        "noisy pairs",
        "rate of noisy pairs",
        0.05,
        "Worlds without wrong pairs give below 0.001, those with 20 % give 0.19 to 0.21. Below 5 % the estimate also "
        "answers to pairs that are merely hard.",
        "A share of the given pairs does not belong together. Training on them teaches wrong matches, and recall measured "
        "on them is too low by about that share.",
        ("noisy",),
        besides=("separation of matched pairs", 0.75),
    ),
    Rule(
        "intra-modal misalignment",
        "intra-modal misalignment",
        0.02,
        "Two points of mAP: smaller differences do not justify a change even where they are significant.",
        "Items find their own kind less well than their partners of the other modality do: distances inside this modality "
        "were never trained.",
        ("intra-modal",),
        parts="any",
    ),
)


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something that was found.

    Args:
        name: as in `RULES`.
        part: the vectors concerned.
        figure: the figure that shows it.
        rule: the rule that was met.
        methods: methods of the catalogue that treat it, ``(slug, title, room)``.
        also: further parts that show it.
    """

    name: str
    part: str
    figure: Figure
    rule: Rule
    methods: tuple[tuple[str, str, str], ...]
    also: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "part": self.part,
            "also": list(self.also),
            "figure": self.figure.to_json(),
            "threshold": self.rule.threshold,
            "reason": self.rule.reason,
            "meaning": self.rule.meaning,
            "methods": [{"slug": slug, "title": title, "room": room} for slug, title, room in self.methods],
        }


def find(
    figures: Sequence[Figure], *, items: Iterable[str], common: Iterable[str], across: Iterable[str]
) -> list[Symptom]:
    """The symptoms that the figures show, in the order of `RULES`; each once, for the first part that shows it.

    Args:
        figures: all figures of an examination, the gallery's before others.
        items: the gallery, or its modalities if it has several: a mixture of two is no crowd.
        common: parts that must all show a shared direction: every two sides if there are two, since the ends of a gap
            are each a cone of their own; else the items.
        across: parts that are two sides.
    """
    kinds = {"items": set(items), "common": set(common), "across": set(across)}
    of = {(figure.name, figure.part): figure for figure in figures}
    found: list[Symptom] = []
    for rule in RULES:
        met = [
            figure
            for figure in figures
            if figure.name == rule.figure
            and (rule.parts == "any" or figure.part in kinds[rule.parts])
            and _meets(rule, figure, of)
        ]
        if rule.parts == "common" and {figure.part for figure in met} != kinds["common"]:
            continue  # what only some share is not common to all
        if met:
            also = tuple(figure.part for figure in met[1:])
            found.append(Symptom(rule.symptom, met[0].part, met[0], rule, treating(rule.words), also))
        if found and found[0].name == "collapse":
            break  # what else is measured on a collapsed space only says so again
    return found


def treating(words: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """Methods of the catalogue whose symptoms hold one of the words."""
    found = {m.slug: (m.slug, m.title, m.room) for word in words for m in catalog.methods() if _names(m, word)}
    return tuple(found.values())


def _names(method: catalog.Method, word: str) -> bool:
    return any(word in symptom.lower() for symptom in method.symptoms)


def _meets(rule: Rule, figure: Figure, of: dict[tuple[str, str], Figure]) -> bool:
    if rule.below:
        return figure.value < rule.threshold
    low = figure.value if figure.interval is None else figure.interval.low
    if not low > rule.threshold:
        return False
    if rule.besides is None:
        return True
    other = of.get((rule.besides[0], figure.part))
    return other is not None and other.value > rule.besides[1]

"""The figures of an examination: each measured once on a sample, with an interval, and named by the part it concerns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput
from chiasm.measure.degeneration import effective_rank
from chiasm.measure.gap import ModalityGap, intra_modal_misalignment, modality_gap
from chiasm.measure.hubness import hubness_of_lists, nearest, skewness
from chiasm.measure.intervals import Interval, mean_interval
from chiasm.measure.pairs import NoisyPairs, noisy_pairs
from chiasm.measure.positives import same_label
from chiasm.measure.uniformity import alignment, uniformity

# Depth of the neighbor lists, as in the hubness literature and InvGC.
K = 10
# Rows of one part whose neighbors are compared; the standard error of a mean over them is below 0.01 standard deviations.
NEIGHBORED = 4000
# Rows for figures that need all pairs of rows.
ALL_PAIRS = 2000


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Args:
        name: for example ``"skewness of N_10"``.
        part: which vectors it concerns, for example ``"items"`` or ``"queries and items"``.
        value: the number.
        interval: its 95 % interval over sampled rows (bootstrap; jackknife for hubness), where one makes sense.
    """

    name: str
    part: str
    value: float
    interval: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "part": self.part,
            "value": self.value if np.isfinite(self.value) else None,
            "interval": None if self.interval is None else self.interval.to_json(),
        }

    @classmethod
    def of(cls, name: str, part: str, interval: Interval) -> Figure:
        return cls(name, part, interval.mean, interval)


def shape_figures(part: str, rows: np.ndarray, seed: int) -> list[Figure]:
    """How one part fills the sphere: cone, rank, crowding.

    Args:
        part: its name.
        rows: unit rows ``[n, D]``, n >= 4.
        seed: of sample, surrogate and intervals.
    """
    chosen = subsample(rows, NEIGHBORED, seed)
    near = nearest(chosen, None, K)[0]
    out = [
        Figure.of("mean cosine", part, within_cosine(rows, seed)),
        Figure("effective rank", part, effective_rank(rows)),
        Figure.of("DeltaDeg", part, mean_interval(near[:, 0], seed=seed)),
        Figure.of("MeanSim@10", part, mean_interval(near.mean(axis=1), seed=seed)),
        Figure("uniformity", part, uniformity(rows, sample=min(ALL_PAIRS, len(rows)), seed=seed)),
    ]
    # More neighbors than a quarter of the rows are no neighborhood.
    if len(chosen) >= 4 * K:
        out.append(Figure.of("local crowding", part, crowding(chosen, near.mean(axis=1), seed)))
    return out


def within_cosine(rows: np.ndarray, seed: int) -> Interval:
    """Mean cosine over all pairs of different rows, through the mean row.

    The figure is a U-statistic: a row enters on both sides, so its influence counts twice.
    """
    n, center = len(rows), rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    own = (rows * rows).sum(axis=1)
    each = (n * (rows @ center) - own) / (n - 1)
    return mean_interval(2 * each - each.mean(), seed=seed)


def across_cosine(queries: np.ndarray, items: np.ndarray, seed: int) -> Interval:
    """Mean cosine of mismatched pairs (matched ones are a negligible share of all)."""
    n = min(len(queries), len(items))
    queries, items = subsample(queries, n, seed), subsample(items, n, seed)
    q, g = queries.mean(axis=0), items.mean(axis=0)
    return mean_interval(queries @ g + items @ q - q @ g, seed=seed)


def crowding(rows: np.ndarray, nearness: np.ndarray, seed: int) -> Interval:
    """MeanSim@10 above that of a Gaussian with the same mean and covariance.

    A cone or a flat spectrum is in mean and covariance, so the surrogate has it too; what exceeds it is local: clusters.

    Args:
        rows: unit rows ``[n, D]``.
        nearness: mean cosine of each row to its ten nearest ``[n]``.
        seed: of the surrogate and the interval.
    """
    from sklearn.covariance import ledoit_wolf

    # Shrinkage (Ledoit & Wolf 2004): with fewer rows than dimensions the sample covariance would fold the surrogate flat.
    covariance = ledoit_wolf(rows)[0]
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal(rows.shape, dtype=np.float32)
    surrogate = unit(rows.mean(axis=0) + noise @ root.T)
    expected = nearest(surrogate, None, K)[0].mean()
    return mean_interval(nearness - expected, seed=seed)


def hub_figures(part: str, lists: np.ndarray, n_items: int, seed: int) -> tuple[list[Figure], np.ndarray]:
    """Hubness of result lists ``[n, 10]``, and N_10 of every item ``[M]``."""
    found = hubness_of_lists(lists, n_items)
    figures = [
        Figure.of("skewness of N_10", part, _skewness_interval(lists, found.counts, seed)),
        Figure("Robin Hood index", part, found.robin_hood),
        Figure("share of places of the top 1 %", part, found.hub_share),
        Figure("share of items never found", part, found.anti_hub_share),
    ]
    return figures, found.counts


def _skewness_interval(lists: np.ndarray, counts: np.ndarray, seed: int, *, blocks: int = 20) -> Interval:
    """Jackknife over blocks of queries: drawing queries twice, as the bootstrap does, would itself make hubs."""
    value, n = skewness(counts), len(lists)
    if n < 2 * blocks:
        return Interval(value, -np.inf, np.inf, n=n, method="jackknife")
    parts = np.array_split(np.random.default_rng(seed).permutation(n), blocks)
    without = [skewness(counts - np.bincount(lists[rows].ravel(), minlength=len(counts))) for rows in parts]
    error = np.sqrt((blocks - 1) * np.var(without))
    return Interval(value, float(value - 1.96 * error), float(value + 1.96 * error), n=n, method="jackknife")


def gap_figures(part: str, a: np.ndarray, b: np.ndarray, seed: int) -> tuple[list[Figure], ModalityGap]:
    """The gap between two parts, which need not be pairs."""
    gap = modality_gap(a, b, seed=seed)
    relative = gap.relative if np.isfinite(gap.relative) else 1e6  # two points: as far apart as it gets
    figures = [
        Figure.of("mean cosine", part, across_cosine(a, b, seed)),
        Figure("gap distance", part, gap.distance),
        Figure("relative gap", part, relative),
        Figure("separability", part, gap.separability),
    ]
    return figures, gap


def pair_figures(part: str, a: np.ndarray, b: np.ndarray, seed: int) -> tuple[list[Figure], NoisyPairs | None]:
    """Figures of matched rows: alignment, and how many do not belong together."""
    figures = [Figure("alignment", part, alignment(a, b))]
    if len(a) < 20:  # noisy_pairs needs them
        return figures, None
    try:
        noise = noisy_pairs(a, b, seed=seed)
    except BadInput:  # constant vectors: every pair looks alike, there is no rate
        return figures, None
    figures.append(Figure.of("rate of noisy pairs", part, noise.rate))
    figures.append(Figure("separation of matched pairs", part, noise.separation))
    return figures, noise


def label_figures(part: str, items: np.ndarray, partners: np.ndarray, labels: np.ndarray, seed: int) -> list[Figure]:
    """Intra-modal misalignment of items, where their kinds are known."""
    rows = np.arange(len(items))
    if len(rows) > ALL_PAIRS:
        rows = np.sort(np.random.default_rng(seed).choice(len(items), ALL_PAIRS, replace=False))
    kinds = np.asarray(labels)[rows]
    try:
        found = intra_modal_misalignment(items[rows], partners[rows], same_label(kinds, kinds), seed=seed)
    except BadInput:  # every label stands alone: nothing to find
        return []
    return [
        Figure("mAP of items among items", part, found.native),
        Figure.of("intra-modal misalignment", part, found.misalignment),
        Figure("agreement of neighbors", part, found.agreement),
    ]


def subsample(rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """At most n of the rows, in their order."""
    if len(rows) <= n:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))]

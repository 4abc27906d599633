"""Cures, tried in the order of their cost: strengths are chosen on one slice, the gain is measured on another.

Bank, choosing slice and checking slice are disjoint, in queries and in items. Each slice's gallery holds its own items
only: with the bank's answers in the gallery, the bank would know which items cannot be right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.correct.bias import Correction, ItemBias, row_digests
from chiasm.correct.dbnorm import CSLS, DualBankNorm, InvertedSoftmax, NearestNeighborNormalization
from chiasm.correct.invgc import grid
from chiasm.doctor.mean_shift import MeanShift
from chiasm.kernels.topk import topk_inner
from chiasm.measure.intervals import Interval, difference_interval, mean_interval
from chiasm.measure.positives import Positives
from chiasm.measure.ranking import evaluate_lists

# Shares of the items that become bank, choosing slice and checking slice.
SHARES = (0.4, 0.3, 0.3)
# Checking queries below which no gain is judged.
LEAST_QUERIES = 20
# The least mean gain of hit@1 for which a change of a running index is worth its trouble.
LEAST_GAIN = 0.005


@dataclass(frozen=True, slots=True)
class Cure:
    """A family of corrections.

    Args:
        name: what the report calls it.
        slug: the method's slug in the catalogue, empty if it has none.
        cost: what it costs to serve.
        candidates: makes the unfitted candidates, weakest first.
    """

    name: str
    slug: str
    cost: str
    candidates: Callable[[], Sequence[Correction]]


_BIAS = "one number an item, vectors stay; nothing per query"

# In the order of cost: first what adds one vector, then what adds one number an item (one bank, then two), last what
# writes all vectors anew through the bank's D x D moments or neighbors.
CURES: tuple[Cure, ...] = (
    Cure("mean shift", "", "one vector subtracted per side", lambda: [MeanShift("common"), MeanShift("origin")]),
    Cure("CSLS", "dbnorm", _BIAS, lambda: [CSLS(10)]),
    Cure("IS", "dbnorm", _BIAS, lambda: [InvertedSoftmax(beta) for beta in (10.0, 20.0, 50.0)]),
    Cure(
        "NNN",
        "dbnorm",
        _BIAS,
        lambda: [NearestNeighborNormalization(k, alpha) for k in (16, 128) for alpha in (0.25, 0.5, 0.75)],
    ),
    Cure(
        "DualIS",
        "dbnorm",
        _BIAS + "; needs old items too",
        lambda: [DualBankNorm(b1, b2) for b1 in (10.0, 20.0, 50.0) for b2 in (0.5, 3.0)],
    ),
    Cure("InvGC, full graph", "invgc", "all vectors written anew; nothing per query", grid),
    Cure(
        "InvGC, LocalAdj",
        "invgc",
        "all vectors written anew, each compared with the bank; nothing per query",
        # Every second step of the grid: each candidate searches the whole bank, and neighbors in the grid differ little.
        lambda: [c for c in grid(local=True) if max(c.step_items, c.step_queries) in (0.1, 0.6, 2.0)],
    ),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """Queries, their gallery and the right answers, as sampled rows.

    Args:
        queries: unit rows ``[n, D]``.
        gallery: unit rows ``[m, D]``.
        right: the items that answer each query.
        groups: int ``[n]``: queries of one item are not independent.
    """

    queries: np.ndarray
    gallery: np.ndarray
    right: Positives
    groups: np.ndarray


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts of a sample: the bank's queries and items, the choosing and the checking slice."""

    bank_queries: np.ndarray
    bank_items: np.ndarray
    choosing: Slice
    checking: Slice

    def to_json(self) -> dict[str, int]:
        return {
            "bank_queries": len(self.bank_queries),
            "bank_items": len(self.bank_items),
            "choosing_queries": len(self.choosing.queries),
            "checking_queries": len(self.checking.queries),
            "checking_items": len(self.checking.gallery),
        }


@dataclass(frozen=True, slots=True)
class Trial:
    """One family on the checking slice, with the strength that was best on the choosing slice.

    Args:
        cure: its name.
        slug, cost: as in `Cure`.
        correction: class and parameters of the chosen candidate.
        chosen_at: hit@1 on the choosing slice, which picked the strength.
        gain: paired difference of hit@1 to raw scores on the checking slice.
        gain_at_10: the same of hit@10.
        certain: whether the gain of hit@1 is worth having and beyond chance, see `is_certain`.
        is_bias: whether it is one number an item, which any store or index serves.
        seconds: of all its fits and searches.
    """

    cure: str
    slug: str
    cost: str
    correction: str
    chosen_at: float
    gain: Interval
    gain_at_10: Interval
    certain: bool
    is_bias: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        names = ("cure", "slug", "cost", "correction", "chosen_at", "certain", "is_bias", "seconds")
        return {n: getattr(self, n) for n in names} | {
            "gain": self.gain.to_json(),
            "gain_at_10": self.gain_at_10.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do.

    Args:
        cure: name of the recommended family, or None: leave it alone, or it cannot be said.
        judged: whether gains could be measured at all.
        text: the recommendation in one or two sentences.
        gain: gain of the recommended cure on the checking slice.
        bias: name of the cheapest good cure that is one number an item, for stores; it may be ``cure`` itself.
        apply: lines that apply it, empty without a cure.
    """

    cure: str | None
    judged: bool
    text: str
    gain: Interval | None = None
    bias: str | None = None
    apply: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "cure": self.cure,
            "judged": self.judged,
            "text": self.text,
            "gain": None if self.gain is None else self.gain.to_json(),
            "bias": self.bias,
            "apply": list(self.apply),
        }


def split(queries: np.ndarray, items: np.ndarray, right: Any, seed: int) -> Split | None:
    """Splits a sample by items; a query goes where its first right item goes, one without any into the bank.

    Args:
        queries: unit rows ``[n, D]``.
        items: unit rows ``[m, D]``.
        right: scipy sparse ``[n, m]``.
        seed: of the split.

    Returns:
        None if the checking slice would have fewer than `LEAST_QUERIES` queries.
    """
    first = first_item(right)
    rng = np.random.default_rng(seed)
    answered = np.zeros(len(items), bool)
    answered[first[first >= 0]] = True
    place = np.empty(len(items), np.int8)
    for rows in (np.flatnonzero(answered), np.flatnonzero(~answered)):  # so that every part gets its share of both
        rows = rng.permutation(rows)
        cuts = np.round(np.cumsum(SHARES)[:-1] * len(rows)).astype(int)
        for part, chosen in enumerate(np.split(rows, cuts)):
            place[chosen] = part
    home = np.where(first >= 0, place[first], 0)
    choosing, checking = (_slice(queries, items, right, home == part, place == part, first) for part in (1, 2))
    # A sentence that is asked twice must not be in the bank and in a slice.
    asked = row_digests(np.concatenate([choosing.queries, checking.queries]))
    bank = queries[home == 0]
    bank = bank[~np.isin(row_digests(bank), asked)]
    items_bank = items[place == 0]
    if min(len(choosing.queries), len(checking.queries)) < LEAST_QUERIES or min(len(bank), len(items_bank)) < 2:
        return None
    return Split(bank, items_bank, choosing, checking)


def first_item(right: Any) -> np.ndarray:
    """The first right item of each query ``[n]``, -1 where there is none."""
    counts = np.diff(right.indptr)
    first = np.full(len(counts), -1)
    first[counts > 0] = right.indices[right.indptr[:-1][counts > 0]]
    return first


def _slice(
    queries: np.ndarray, items: np.ndarray, right: Any, asks: np.ndarray, has: np.ndarray, first: np.ndarray
) -> Slice:
    block = right[np.flatnonzero(asks)][:, np.flatnonzero(has)]
    return Slice(queries[asks], items[has], Positives.of(block, *block.shape), first[asks])


def attempt(parts: Split, cures: Sequence[Cure] = CURES, *, seed: int = 0) -> tuple[list[Trial], Verdict, Interval]:
    """Tries the cures in their order.

    Returns:
        The trials, the verdict, and raw hit@1 on the checking slice.
    """
    raw = _hits(topk_inner(parts.checking.queries, parts.checking.gallery, 10)[1], parts.checking)
    trials: list[Trial] = []
    outcomes: list[np.ndarray] = []
    groups = parts.checking.groups
    for cure in cures:
        start = time.perf_counter()
        score, winner = max(
            ((_score(parts, candidate), candidate) for candidate in cure.candidates()), key=lambda pair: pair[0]
        )  # max keeps the first of equals: the weaker candidate
        hits = _hits(_run(parts, winner, parts.checking, 10), parts.checking)
        gains = [difference_interval(hits[k], raw[k], groups=groups, seed=seed) for k in (1, 10)]
        trials.append(
            Trial(
                cure.name,
                cure.slug,
                cure.cost,
                _named(winner),
                score,
                gains[0],
                gains[1],
                is_certain(gains[0], hits[1] - raw[1], groups),
                isinstance(winner, ItemBias),
                time.perf_counter() - start,
            )
        )
        outcomes.append(hits[1])
    return trials, judge(trials, outcomes, groups, seed), mean_interval(raw[1], groups=groups, seed=seed)


def judge(trials: Sequence[Trial], outcomes: Sequence[np.ndarray], groups: np.ndarray, seed: int) -> Verdict:
    """The cheapest cure that gains for certain and is not certainly worse than the best one.

    The best one is the family with the best hit@1 on the choosing slice, so that the checking slice tests one
    hypothesis, not as many as there are families.

    Args:
        trials: in the order of cost.
        outcomes: hit@1 of each trial's checking queries ``[n]``.
        groups: int ``[n]``.
        seed: of the intervals.
    """
    best = max(range(len(trials)), key=lambda i: trials[i].chosen_at)
    top = trials[best].gain
    if not trials[best].certain:
        text = (
            f"Leave it alone. The most promising cure, {trials[best].cure}, changes hit@1 by {points(top)} on "
            f"{len(groups):,} queries that did not choose it: no gain that is certain. "
            f"With so many queries a gain below about {100 * max((top.high - top.low) / 2, LEAST_GAIN):.1f} points cannot be seen."
        )
        return Verdict(None, True, text, top)
    good = [
        trial
        for trial, hits in zip(trials, outcomes, strict=True)
        if trial.certain and difference_interval(hits, outcomes[best], groups=groups, seed=seed).high >= 0
    ]  # never empty: the best one's difference to itself is 0
    cheapest, bias = good[0], next((trial for trial in good if trial.is_bias), None)
    text = f"{cheapest.cure}: {points(cheapest.gain)} of hit@1 on {len(groups):,} queries that did not choose it."
    if cheapest is not trials[best]:
        text += (
            f" It is the cheapest that is not certainly below the first choice, {trials[best].cure} ({points(top)})."
        )
    if bias is not None and bias is not cheapest:
        text += f" In a store, which serves one number an item: {bias.cure} ({points(bias.gain)})."
    return Verdict(cheapest.cure, True, text, cheapest.gain, None if bias is None else bias.cure, _how(cheapest, bias))


def is_certain(gain: Interval, change: np.ndarray, groups: np.ndarray) -> bool:
    """Whether a gain is at least `LEAST_GAIN`, its interval above zero, and more items won than lost beyond chance.

    A bootstrap of three wins and no loss never sees a loss; the exact sign test (one-sided, 2.5 %) does not trust it.

    Args:
        gain: of the checking queries.
        change: +1, 0 or -1 of each of them ``[n]``.
        groups: int ``[n]``; the queries of an item vote once.
    """
    from scipy.stats import binomtest

    _, index = np.unique(groups, return_inverse=True)
    votes = np.sign(np.bincount(index, change))
    won, lost = int((votes > 0).sum()), int((votes < 0).sum())
    if gain.low <= 0 or gain.mean < LEAST_GAIN or not won:
        return False
    return bool(binomtest(won, won + lost, alternative="greater").pvalue <= 0.025)


def points(gain: Interval) -> str:
    """``+5.3 [+4.1, +6.6] points``."""
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] points"


def _how(cheapest: Trial, bias: Trial | None) -> tuple[str, ...]:
    lines = []
    if not cheapest.is_bias:
        search = ", search with c.transform_queries(queries)" if cheapest.cure == "mean shift" else ""
        fitted = f"c = {cheapest.correction}.fit(gallery, queries=past_queries, items=past_items)"
        lines.append(f"any index: {fitted}; store c.vectors_{search}")
    if bias is not None:
        lines.append(f"a store: store.correct({bias.correction}, queries=past_queries)")
    return tuple(lines)


def _named(correction: Correction) -> str:
    """Class and the parameters that differ from the class's defaults, as Python."""
    default = type(correction)().get_params()
    given = {k: v for k, v in correction.get_params().items() if v != default[k]}
    return f"{type(correction).__name__}({', '.join(f'{k}={v!r}' for k, v in given.items())})"


def _score(parts: Split, candidate: Correction) -> float:
    return float(_hits(_run(parts, candidate, parts.choosing, 1), parts.choosing)[1].mean())


def _run(parts: Split, correction: Correction, where: Slice, k: int) -> np.ndarray:
    correction.fit(where.gallery, queries=parts.bank_queries, items=parts.bank_items)
    return correction.topk(where.queries, k)[1]


def _hits(rows: np.ndarray, where: Slice) -> dict[int, np.ndarray]:
    """hit@1 and hit@10 of each query."""
    report = evaluate_lists(rows, where.right, n_items=len(where.gallery), metrics=("hit@1", "hit@10"))
    return {1: report.values["hit@1"], 10: report.values["hit@10"]}

"""Calibrated relevance: is a hit an answer, and is there an answer at all? Measured in ``docs/relevance.md``.

A cosine alone cannot tell: items differ in how high everything scores on them, queries in how high they score on
everything, and the best of many items is high by chance. So a bank of B everyday words and phrases, chosen without
looking at the store, is scored against it once. For a query q and an item i with score ``s``:

1. item: ``x_i(q) = (z + 3 g + s / d) / 3`` with ``z = (s - mu_i) / sigma_i`` (mean and deviation of the bank's scores on
   this item), ``g = (s - mu_i) / (t_i - mu_i)`` (``t_i``: mean of the five phrases that fit the item best, so ``g`` says
   whether the query describes the item as well as they do) and ``d`` the deviation of the bank's own similarities.
   This is ``x = intercept_i + slope_i s``: two numbers per item.
2. query: the best item's ``T(q) = max_i x_i(q)`` is compared with what a phrase like q reaches, ``e(q)``: a robust
   regression of the bank's ``T`` on (the mean of x over the other items, the mean similarity to the bank). Long sentences
   and single words score lower everywhere than "a dog"; without this step their thresholds would differ by two sigma.
   Some phrases do have an answer in the store and must not raise the bar. A phrase that is the best description of some
   item may be one; the share of such phrases is how many of the highest residuals are left out (least trimmed squares,
   Rousseeuw 1984, on one side).
3. decision: ``u = (T - e) / scale`` and ``p = 1 - Phi(u)``, with the scale of the residuals that remain.

Modalities have separate statistics, as the scores of text chunks and of pictures are not comparable; their p-values
meet by a weighted Bonferroni bound. Standardizing scores by impostors is from speaker verification (Auckenthaler and
others, "Score Normalization for Text-Independent Speaker Verification Systems", DSP 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from scipy.special import expit, ndtr, ndtri

from chiasm.embeddings import check_finite, unit
from chiasm.errors import BadInput
from chiasm.space import Space

LEAST_BANK = 20
BEST_PHRASES = 5
KEPT = 16  # best items kept per phrase, so that the maxima survive deletions
SAMPLE = 512  # items per modality whose vectors are kept for the mean over the store
MOST_TRIMMED = 0.7
LEAST_SCALE = 0.25  # of x; a store of one item explains its own bank scores too well
# Relevance is a logistic curve through the share of right first hits at u in training data (docs/relevance.md).
STEEPNESS, MIDDLE = 0.9, 1.7
USUAL_RATE = 0.05


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the calibration says about one query.

    Args:
        relevance: float ``[k]`` in [0, 1], one per judged row, rising with the score within a modality and item.
        p_value: how often a query without an answer looks at least as good as this one's best hit.
        nothing_here: ``p_value`` is above the accepted rate.
    """

    relevance: np.ndarray
    p_value: float
    nothing_here: bool


@dataclass(frozen=True, slots=True)
class _Null:
    """What phrases without an answer reach in one modality: a linear fit and the scale of its residuals."""

    low: np.ndarray  # [2] range in which the two predictors are believed
    high: np.ndarray
    weights: np.ndarray  # [3]
    scale: float
    sample: np.ndarray  # rows of the calibrator's sample
    whole: bool  # the sample is the whole modality

    def expected(self, predictors: np.ndarray) -> np.ndarray:
        clipped = np.clip(predictors, self.low, self.high)
        return self.weights[0] + clipped @ self.weights[1:]


class Calibrator:
    """Relevance of search results, and whether there is an answer at all, from the scores of a null bank.

    The state is O(M) in the number of items: two numbers, a modality and a phrase per item, the 16 best items of each phrase, and
    the vectors of at most 512 items per modality. Adding in pieces gives the same state as fitting at once.

    Args:
        bank_vectors: float ``[B, D]`` of unit length, B >= 20, of phrases chosen without looking at the store; see
            `null_bank`.
        chunk: items scored at a time while fitting.

    Raises:
        BadInput: the bank is too small, not a matrix, or holds NaN.

    Example:
        >>> calibrator = Calibrator(null_bank(space)).fit(vectors, modality)
        >>> judgement = calibrator.judge(query, rows, scores, rate=0.05)
        >>> judgement.nothing_here, judgement.relevance
    """

    def __init__(self, bank_vectors: np.ndarray, *, chunk: int = 4096) -> None:
        bank = np.asarray(bank_vectors, dtype=np.float32)
        if bank.ndim != 2 or len(bank) < LEAST_BANK:
            raise BadInput(
                f"the bank has shape {bank.shape}",
                where="Calibrator",
                fix=f"Give at least {LEAST_BANK} rows of phrases",
            )
        check_finite(bank, "Calibrator bank")
        self.bank = bank
        self.chunk = chunk
        among = bank @ bank.T
        np.fill_diagonal(among, 0)
        self._bank_mean = among.sum(1) / (len(bank) - 1)
        self._bank_spread = max(float(among[~np.eye(len(bank), dtype=bool)].std()), 1e-3)
        self._clear()

    def _clear(self) -> None:
        bank, dim = self.bank.shape
        self.names: list[str] = []
        self._group = np.empty(0, np.int16)
        self._intercept, self._slope = np.empty(0, np.float32), np.empty(0, np.float32)
        self._phrase = np.empty(0, np.int32)
        self._best = np.empty((0, bank, KEPT), np.float32)
        self._best_row = np.empty((0, bank, KEPT), np.int64)
        self._sample_row, self._sample_key = np.empty(0, np.int64), np.empty(0, np.uint64)
        self._sample = np.empty((0, dim), np.float32)
        self._seen = 0
        self._nulls: dict[int, _Null] = {}

    def __len__(self) -> int:
        return len(self._group)

    @property
    def stale(self) -> bool:
        """True if deletions have taken so much of the kept state that fitting anew is worth its time."""
        for group in np.unique(self._group):
            lost = np.isneginf(self._best[group, :, 0]).mean()
            wanted = min(SAMPLE, int((self._group == group).sum()))
            if lost > 0.25 or (self._group[self._sample_row] == group).sum() < wanted / 2:
                return True
        return False

    def fit(self, vectors: np.ndarray, modality: Sequence[str] | np.ndarray | str) -> Calibrator:
        """Learns the store's items anew.

        Args:
            vectors: float ``[M, D]`` of unit length.
            modality: M modalities, or one for all.

        Raises:
            BadInput: shapes that do not fit, NaN or infinity.
        """
        self._clear()
        return self.partial_fit(vectors, modality)

    def partial_fit(self, vectors: np.ndarray, modality: Sequence[str] | np.ndarray | str) -> Calibrator:
        """Adds items behind the present ones; arguments as in `fit`."""
        if getattr(vectors, "ndim", 0) != 2 or vectors.shape[1] != self.bank.shape[1]:
            raise BadInput(
                f"vectors must be [M, {self.bank.shape[1]}], got {np.shape(vectors)}", where="Calibrator.fit"
            )
        names = np.full(len(vectors), modality) if isinstance(modality, str) else np.asarray(modality)
        if len(names) != len(vectors):
            raise BadInput(f"{len(vectors)} vectors and {len(names)} modalities", where="Calibrator.fit")
        groups = self._groups_of(names)
        for start in range(0, len(vectors), self.chunk):
            part = np.asarray(vectors[start : start + self.chunk], dtype=np.float32)
            check_finite(part, "Calibrator.fit")
            self._add(part, groups[start : start + self.chunk])
        self._nulls = {}
        return self

    def _groups_of(self, names: np.ndarray) -> np.ndarray:
        """The number of each modality; new ones get a place."""
        found, inverse = np.unique(names, return_inverse=True)
        for name in found.tolist():
            if str(name) not in self.names:
                self.names.append(str(name))
                shape = (1, len(self.bank), KEPT)
                self._best = np.concatenate([self._best, np.full(shape, -np.inf, np.float32)])
                self._best_row = np.concatenate([self._best_row, np.full(shape, -1, np.int64)])
        numbers = np.array([self.names.index(str(name)) for name in found], np.int16)
        return numbers[inverse.ravel()] if len(names) else np.empty(0, np.int16)

    def _add(self, vectors: np.ndarray, groups: np.ndarray) -> None:
        """Step 1 for a chunk of items, and what the bank reaches on them."""
        scores = vectors @ self.bank.T
        mean, spread = scores.mean(1), np.maximum(scores.std(1), 1e-3)
        best = np.argpartition(scores, len(self.bank) - BEST_PHRASES - 1, axis=1)[:, -BEST_PHRASES - 1 :]
        tops = np.take_along_axis(scores, best, 1)  # the five best and the sixth, in any order
        slope, intercept = self._line(mean, spread, (tops.sum(1) - tops.min(1)) / BEST_PHRASES)
        first = len(self._group)
        rows = np.arange(first, first + len(vectors))
        x = slope[:, None] * scores + intercept[:, None]
        # A phrase among an item's five best is judged without itself, as a query that is not in the bank would be.
        others = (tops.sum(1, keepdims=True) - tops) / BEST_PHRASES
        own_slope, own_intercept = self._line(mean[:, None], spread[:, None], others)
        np.put_along_axis(x, best, own_slope * tops + own_intercept, 1)
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            self._keep_best(int(group), x[own], rows[own])
        self._group = np.concatenate([self._group, groups])
        self._slope = np.concatenate([self._slope, slope.astype(np.float32)])
        self._intercept = np.concatenate([self._intercept, intercept.astype(np.float32)])
        self._phrase = np.concatenate([self._phrase, scores.argmax(1).astype(np.int32)])
        self._keep_sample(vectors, rows)

    def _line(self, mean: np.ndarray, spread: np.ndarray, top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slope and intercept of x in the score."""
        reach = np.maximum(top - mean, 1e-3)
        return (1 / spread + 3 / reach + 1 / self._bank_spread) / 3, -mean * (1 / spread + 3 / reach) / 3

    def _keep_best(self, group: int, x: np.ndarray, rows: np.ndarray) -> None:
        count = min(KEPT, len(x))
        best = np.argpartition(-x, count - 1, axis=0)[:count].T  # [B, count]
        values = np.concatenate([self._best[group], np.take_along_axis(x.T, best, 1)], axis=1)
        places = np.concatenate([self._best_row[group], rows[best]], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :KEPT]
        self._best[group] = np.take_along_axis(values, order, 1)
        self._best_row[group] = np.take_along_axis(places, order, 1)

    def _keep_sample(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """A uniform sample per modality: the items with the smallest hash of their running number."""
        keys = _mixed(np.arange(self._seen, self._seen + len(rows), dtype=np.uint64))
        self._seen += len(rows)
        all_rows = np.concatenate([self._sample_row, rows])
        all_keys = np.concatenate([self._sample_key, keys])
        groups = self._group[all_rows]
        chosen = [np.flatnonzero(groups == g) for g in np.unique(groups)]
        chosen = [own[np.argsort(all_keys[own], kind="stable")[:SAMPLE]] for own in chosen]
        keep = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
        old = keep[keep < len(self._sample)]
        self._sample = np.concatenate([self._sample[old], vectors[keep[keep >= len(self._sample)] - len(self._sample)]])
        self._sample_row, self._sample_key = all_rows[keep], all_keys[keep]

    def remove(self, rows: Sequence[int] | np.ndarray) -> Calibrator:
        """Takes items away; the rows behind them move up, as in ``np.delete``.

        Raises:
            BadInput: a row that does not exist.
        """
        gone = np.unique(np.asarray(rows, dtype=np.int64))
        if len(gone) and not 0 <= gone[0] <= gone[-1] < len(self):
            raise BadInput(f"row {gone[-1] if gone[0] >= 0 else gone[0]} of {len(self)}", where="Calibrator.remove")
        keep = np.ones(len(self), bool)
        keep[gone] = False
        moved = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)  # the last entry serves row -1
        self._best_row = moved[self._best_row]
        self._best = np.where(self._best_row >= 0, self._best, -np.inf).astype(np.float32)
        order = np.argsort(-self._best, axis=2, kind="stable")
        self._best = np.take_along_axis(self._best, order, 2)
        self._best_row = np.take_along_axis(self._best_row, order, 2)
        held = keep[self._sample_row]
        self._sample, self._sample_key = self._sample[held], self._sample_key[held]
        self._sample_row = moved[self._sample_row[held]]
        self._group, self._phrase = self._group[keep], self._phrase[keep]
        self._slope, self._intercept = self._slope[keep], self._intercept[keep]
        self._nulls = {}
        return self

    def judge(
        self,
        query: np.ndarray,
        rows: Sequence[int] | np.ndarray,
        scores: Sequence[float] | np.ndarray,
        *,
        modality: Sequence[str] | np.ndarray | str | None = None,
        rate: float = USUAL_RATE,
    ) -> Judgement:
        """Relevance of the best rows of a query.

        Args:
            query: float ``[D]`` of unit length.
            rows: k rows of the fitted items, the best by raw score (100 to 200 are enough).
            scores: float ``[k]``, their inner products with the query.
            modality: one name if the search was limited to this modality; by default the answer may be in any.
            rate: accepted share of queries without an answer that get one anyway, in (0, 1).

        Raises:
            BadInput: shapes that do not fit, a row that does not exist, NaN, or a rate out of range.
        """
        q = np.asarray(query, dtype=np.float32)
        places, s = np.asarray(rows, dtype=np.int64), np.asarray(scores, dtype=np.float32)
        if q.shape != self.bank.shape[1:] or places.shape != s.shape or places.ndim != 1:
            raise BadInput(
                f"query {q.shape}, rows {places.shape} and scores {s.shape} do not fit", where="Calibrator.judge"
            )
        if not 0 < rate < 1:
            raise BadInput(f"rate is {rate}", where="Calibrator.judge", fix="Use a value between 0 and 1, such as 0.05")
        if not (np.isfinite(q).all() and np.isfinite(s).all()):
            raise BadInput("the query or a score is NaN or infinite", where="Calibrator.judge")
        if not len(places):
            return Judgement(np.empty(0, np.float32), 1.0, True)
        if places.min() < 0 or places.max() >= len(self):
            raise BadInput(f"row {places.max()} of {len(self)}", where="Calibrator.judge")
        groups = self._group[places]
        shares = self._shares(modality if isinstance(modality, str) else None, np.unique(groups))
        level = np.empty(len(places), np.float64)
        p_value = 1.0
        for group in np.unique(groups):
            own, share = np.flatnonzero(groups == group), shares[int(group)]
            u = self._standardized(q, int(group), places[own], s[own])
            p_value = min(p_value, float(ndtr(-u.max())) / share)
            # A modality that gets a part of the rate must reach further; its relevance is shifted by as much.
            level[own] = u + ndtri(USUAL_RATE * share) - ndtri(USUAL_RATE)
        return Judgement(expit(STEEPNESS * (level - MIDDLE)).astype(np.float32), p_value, p_value > rate)

    def _shares(self, only: str | None, present: np.ndarray) -> dict[int, float]:
        """How the accepted rate is divided among modalities: by the root of their numbers of items."""
        if only is not None:
            return {int(group): 1.0 for group in present}
        root = np.sqrt(np.bincount(self._group, minlength=len(self.names)))
        return dict(enumerate(root / root.sum()))

    def _standardized(self, q: np.ndarray, group: int, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """``u`` of each row: how far its x lies above what a query like q reaches without an answer."""
        null = self._null(group)
        x = self._intercept[rows] + self._slope[rows] * scores
        elsewhere = self._elsewhere(self._sample[null.sample] @ q, x.max(), null)
        expected = null.expected(np.array([elsewhere, float((self.bank @ q).mean())]))
        return (x - expected) / null.scale

    def _elsewhere(self, scores: np.ndarray, best: np.ndarray | float, null: _Null) -> np.ndarray:
        """Mean of x over the modality's sample ``[n]`` (or ``[n, B]``) without the best item itself."""
        rows = self._sample_row[null.sample]
        n = len(rows)
        if n == 0 or (null.whole and n == 1):
            return np.zeros(np.shape(best))
        x = (self._intercept[rows] + self._slope[rows] * scores.T).sum(-1)
        return (x - best) / (n - 1) if null.whole else x / n

    def _null(self, group: int) -> _Null:
        """Step 2 for the bank's phrases themselves, made when first asked for after a change."""
        if group in self._nulls:
            return self._nulls[group]
        sample = np.flatnonzero(self._group[self._sample_row] == group)
        whole = len(sample) == int((self._group == group).sum())
        known = np.isfinite(self._best[group, :, 0])
        nothing = np.zeros(2)
        blank = _Null(nothing, nothing, np.zeros(3), 1.0, sample, whole)
        if known.sum() < LEAST_BANK:
            self._nulls[group] = blank
            return blank
        reached = self._best[group, known, 0].astype(np.float64)
        elsewhere = self._elsewhere(self._sample[sample] @ self.bank[known].T, reached, blank)
        predictors = np.stack([elsewhere, self._bank_mean[known]], axis=1)
        # In a store of one subject a phrase about it scores high on every item; beyond what nine of ten phrases do,
        # the mean over the store is evidence for an answer, not a trait of the query.
        low, high = np.quantile(predictors, [0.02, 0.9], axis=0)
        described = len(np.unique(self._phrase[self._group == group])) / len(self.bank)
        weights, scale = _trimmed_fit(np.clip(predictors, low, high), reached, min(described, MOST_TRIMMED))
        self._nulls[group] = _Null(low, high, weights, max(scale, LEAST_SCALE), sample, whole)
        return self._nulls[group]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything but the bank, as arrays for safetensors."""
        return {
            "names": np.frombuffer("\n".join(self.names).encode(), np.uint8).copy(),
            "group": self._group,
            "intercept": self._intercept,
            "slope": self._slope,
            "phrase": self._phrase,
            "best": self._best,
            "best_row": self._best_row,
            "sample": self._sample,
            "sample_row": self._sample_row,
            "sample_key": self._sample_key,
            "seen": np.array([self._seen], np.int64),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Takes over what `state_dict` gave; judgements are then bit-equal.

        Raises:
            BadInput: the state is of another bank, or a part is missing.
        """
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise BadInput(f"the state lacks {sorted(missing)[0]!r}", where="Calibrator.load_state_dict")
        if state["best"].shape[1:] != (len(self.bank), KEPT) or state["sample"].shape[1] != self.bank.shape[1]:
            raise BadInput("the state was made with another bank", where="Calibrator.load_state_dict", fix="Fit anew")
        text = bytes(state["names"]).decode()
        self.names = text.split("\n") if len(state["best"]) else []
        self._group, self._phrase = state["group"], state["phrase"]
        self._intercept, self._slope = state["intercept"], state["slope"]
        # Copies, because adding items writes into these two.
        self._best, self._best_row = state["best"].copy(), state["best_row"].copy()
        self._sample, self._sample_row, self._sample_key = state["sample"], state["sample_row"], state["sample_key"]
        self._seen = int(state["seen"][0])
        self._nulls = {}


def _trimmed_fit(predictors: np.ndarray, values: np.ndarray, trim: float) -> tuple[np.ndarray, float]:
    """Weights ``[1 + P]`` of a linear fit to all but the share ``trim`` of highest residuals, and their scale.

    The scale is the half width from the 10 % to the 90 % quantile of the residuals that remain, as that of a normal
    distribution. A ridge of 0.1 % of each predictor's variance keeps the fit defined when a predictor is constant.
    """
    center, spread = predictors.mean(0), np.maximum(predictors.std(0), 1e-6)
    design = np.column_stack([np.ones(len(values)), (predictors - center) / spread])
    ridge = len(values) * np.diag(np.r_[1e-9, np.full(predictors.shape[1], 1e-3)])
    count = max(LEAST_BANK, round((1 - trim) * len(values)))
    keep = np.arange(len(values))
    weights, residual = np.zeros(design.shape[1]), values
    for _ in range(10):
        weights = np.linalg.solve(design[keep].T @ design[keep] + ridge, design[keep].T @ values[keep])
        residual = values - design @ weights
        keep = np.argsort(residual, kind="stable")[:count]
    low, middle, high = np.quantile(residual[keep], [0.1, 0.5, 0.9])
    slopes = weights[1:] / spread
    return np.r_[weights[0] + middle - slopes @ center, slopes], float(high - low) / (2 * ndtri(0.9))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Splitmix64: a fixed pseudo-random key per number, so that a sample does not depend on how items were added."""
    with np.errstate(over="ignore"):
        z = numbers + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=1)
def null_phrases() -> tuple[str, ...]:
    """The everyday words and phrases of ``null_bank.txt``."""
    text = resources.files("chiasm.search").joinpath("null_bank.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


def null_bank(space: Space) -> np.ndarray:
    """The phrases of ``null_bank.txt`` as queries of a space, float32 ``[B, D]`` of unit length.

    Raises:
        UnsupportedModality: the space cannot encode text.
    """
    return unit(space.encode(list(dict.fromkeys(null_phrases())), role="query", batch_size=128).vectors)

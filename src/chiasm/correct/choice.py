"""Choosing the strength of a correction on a validation slice; "leave it alone" is a possible outcome."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.correct.bias import Correction
from chiasm.errors import BadInput
from chiasm.kernels.topk import topk_inner
from chiasm.measure.intervals import Interval, difference_interval
from chiasm.measure.vectors import to_numpy


@dataclass(frozen=True, slots=True)
class Choice:
    """The outcome of `choose`.

    Args:
        correction: the fitted winner, or None: leave it alone.
        gain: paired difference of hit@k between the winner and raw scores, on validation queries that did not choose it.
        tried: every candidate with its hit@k on the choosing half, in the order given.
    """

    correction: Correction | None
    gain: Interval | None
    tried: list[tuple[Correction, float]]


def choose(
    candidates: Iterable[Correction],
    gallery: Any,
    *,
    validation: tuple[Any, Any],
    queries: Any = None,
    items: Any = None,
    k: int = 1,
    least_gain: float = 0.0,
    seed: int = 0,
) -> Choice:
    """Picks the candidate with the best hit@k on one half of the validation queries and checks its gain on the other half.

    Args:
        candidates: unfitted corrections; ties go to the earlier one, so give weak ones first.
        gallery: ``[M, D]``.
        validation: queries ``[N, D]`` (not in the bank) and the row of the right item of each, int ``[N]``.
        queries: query bank.
        items: item bank.
        k: depth of the hit; 1 as in the papers.
        least_gain: the least mean gain for which a correction is worth having.
        seed: of the split in halves.

    Returns:
        A `Choice`; its ``correction`` is None unless the gain's interval excludes zero.

    Raises:
        BadInput: fewer than 4 validation queries, no candidates, or as ``fit``.
    """
    vectors, positives = validation
    positives = to_numpy(positives)
    n = vectors.shape[0]
    if n < 4 or positives.shape != (n,):
        raise BadInput(
            f"{n} validation queries and positives of shape {positives.shape}",
            where="choose",
            fix="Give at least 4 pairs",
        )
    order = np.random.default_rng(seed).permutation(n)
    choosing, checking = order[: n // 2], order[n // 2 :]
    raw = _hits(topk_inner(vectors, gallery, k)[1], positives)
    tried: list[tuple[Correction, float]] = []
    best: tuple[float, Correction, np.ndarray] | None = None
    for candidate in candidates:
        candidate.fit(gallery, queries=queries, items=items)
        hits = _hits(candidate.topk(vectors, k)[1], positives)
        score = float(hits[choosing].mean())
        tried.append((candidate, score))
        if best is None or score > best[0]:
            best = (score, candidate, hits)
    if best is None:
        raise BadInput("no candidates", where="choose")
    _, winner, hits = best
    gain = difference_interval(hits[checking], raw[checking], seed=seed)
    worth_it = gain.low > 0 and gain.mean >= least_gain
    return Choice(winner if worth_it else None, gain, tried)


def _hits(rows: Any, positives: np.ndarray) -> np.ndarray:
    return (to_numpy(rows) == positives[:, None]).any(axis=1).astype(np.float64)

"""Recall in both directions: sampled queries search the whole other side."""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.doctor.figures import Figure
from chiasm.doctor.vectors import rows_of, unit_rows
from chiasm.kernels.topk import topk_inner
from chiasm.measure.positives import Positives
from chiasm.measure.ranking import evaluate_lists

# Queries that are asked: the standard error of a recall is then at most 1.1 points.
ASKED = 2000
# Items that are searched; a larger gallery is sampled so that time stays bounded.
SEARCHED = 200_000
METRICS = ("hit@1", "hit@5", "hit@10")


def recall_figures(
    queries: np.ndarray, gallery: np.ndarray, right: Any, names: tuple[str, str], seed: int
) -> list[Figure]:
    """hit@1, 5 and 10 of queries among items and of items among queries.

    Args:
        queries: ``[N, D]``.
        gallery: ``[M, D]``.
        right: scipy sparse ``[N, M]``.
        names: of queries and items.
        seed: of sample and intervals.
    """
    unit_queries, unit_items = unit_rows(queries), unit_rows(gallery)
    return [
        *_one_way(f"{names[0]} to {names[1]}", unit_queries, unit_items, right, seed),
        *_one_way(f"{names[1]} to {names[0]}", unit_items, unit_queries, right.T.tocsr(), seed),
    ]


def _one_way(part: str, queries: np.ndarray, items: np.ndarray, right: Any, seed: int) -> list[Figure]:
    rng = np.random.default_rng(seed)
    asked = rng.permutation(np.flatnonzero(np.diff(right.indptr)))[:ASKED]
    block = right[asked]
    if len(items) > SEARCHED:
        answers = np.unique(block.indices)
        others = np.setdiff1d(np.arange(len(items)), answers, assume_unique=True)
        pool = np.sort(np.concatenate([answers, rng.permutation(others)[: SEARCHED - len(answers)]]))
        items, block = rows_of(items, pool), block[:, pool]
    scores, rows = topk_inner(np.ascontiguousarray(queries[asked]), items, 10)
    found = Positives.of(block, *block.shape)
    report = evaluate_lists(rows, found, scores=scores, n_items=len(items), metrics=METRICS)
    # Five captions of one picture are not five independent queries.
    groups = found.items[found.indptr[:-1]]
    return [Figure.of(name, part, report.interval(name, groups=groups, seed=seed)) for name in METRICS]

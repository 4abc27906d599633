"""Held-out recall of a model on pairs, while it trains and afterwards.

>>> held_out = HeldOut(validation_pairs, objective)
>>> train(model, pairs, objective, evaluator=held_out, patience=3)
>>> held_out.reports(model)["b_to_a"].interval("hit@10")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor, nn

from chiasm.errors import unknown_name
from chiasm.learn.pairs import Pairs, Source
from chiasm.measure.positives import Positives
from chiasm.measure.ranking import RankingReport, evaluate_scores

Direction = Literal["a", "b"]
METRICS = ("hit@1", "hit@5", "hit@10", "median_rank", "map")


@dataclass(frozen=True)
class Encoded:
    """What a model gives for N items: ``vectors`` ``[N, D]``; where it has tokens, ``tokens`` ``[N, L, D]`` and ``mask`` ``[N, L]``."""

    vectors: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)


@torch.no_grad()
def encode(
    model: Any, source: Source, route: str, rows: Sequence[int] | np.ndarray | None = None, *, batch_size: int = 256
) -> Encoded:
    """Runs a model over rows of a source, in eval mode, which is put back.

    Args:
        model: the model.
        source: where the items come from.
        route: the model's route for them.
        rows: which; default all.
        batch_size: rows a step.
    """
    rows = np.arange(len(source)) if rows is None else np.asarray(rows)
    was_training = model.training
    model.eval()
    vectors, tokens, masks = [], [], []
    try:
        for start in range(0, len(rows), batch_size):
            batch = source.batch(rows[start : start + batch_size].tolist())
            batch = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            out = model({**batch, "task": route})
            vectors.append(out["sentence_embedding"].float().cpu())
            if "token_embeddings" in out:
                tokens.append(out["token_embeddings"].float().cpu())
                mask = out.get("attention_mask")  # image networks give cells without one
                masks.append(torch.ones(tokens[-1].shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu())
    finally:
        model.train(was_training)
    if not tokens:
        return Encoded(torch.cat(vectors))
    longest = max(t.shape[1] for t in tokens)
    tokens = [nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])) for t in tokens]
    masks = [nn.functional.pad(m, (0, longest - m.shape[1])) for m in masks]
    return Encoded(torch.cat(vectors), torch.cat(tokens), torch.cat(masks))


def cosine(a: Encoded, b: Encoded, direction: Direction = "a") -> Tensor:
    """Cosine of the vectors, ``[N, M]``; the same in both directions."""
    return nn.functional.normalize(a.vectors, dim=-1) @ nn.functional.normalize(b.vectors, dim=-1).T


class HeldOut(BaseEvaluator):
    """Recall between the items of two columns, in both directions.

    All distinct items of ``a`` and of ``b`` compete; an item is right if it shares a group with the query. Recall@k is
    the share of queries with a right item among the first k (``hit@k``), ties counted against the model.

    Args:
        pairs: the held-out pairs.
        objective: its ``similarity(a, b, direction)`` scores the items, if it has one; else the cosine does. Direction
            ``"a"``: rows of ``a`` are the queries.
        routes: column -> route of the model; default the column's own name.
        columns: the two columns.
        primary: what training selects by: the mean of this figure over both directions.
        batch_size: items a step.

    Raises:
        UnknownName: a figure to select by that is not one of `METRICS`.
    """

    def __init__(
        self,
        pairs: Pairs,
        objective: Any = None,
        *,
        routes: Mapping[str, str] | None = None,
        columns: tuple[str, str] = ("a", "b"),
        primary: str = "hit@10",
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        if primary not in METRICS:
            raise unknown_name("figure", primary, METRICS)
        self.pairs, self.columns, self.figure, self.batch_size = pairs, columns, primary, batch_size
        self.routes = dict(routes or {})
        self.similarity = getattr(objective, "similarity", cosine)
        self.primary_metric = f"mean_{primary}"
        self.greater_is_better = True
        rows = [pairs.rows[column] for column in columns]
        groups, group = np.unique(pairs.groups, return_inverse=True)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.items, incidence = [], []
        for values in rows:
            present = values >= 0
            items, item = np.unique(values[present], return_inverse=True)
            self.items.append(items)
            ones = np.ones(len(item), dtype=np.float32)
            incidence.append(csr_matrix((ones, (item, group[present])), (len(items), len(groups))))
        right = (incidence[0] @ incidence[1].T).tocsr()
        self.positives = {
            "a_to_b": Positives.of(right, *right.shape),
            "b_to_a": Positives.of(right.T.tocsr(), *right.shape[::-1]),
        }

    def encoded(self, model: Any) -> tuple[Encoded, Encoded]:
        """Both columns' distinct items as the model gives them."""
        a, b = (
            encode(
                model,
                self.pairs.source(column),
                self.routes.get(column, self.routes.get(column.split("/")[0], column.split("/")[0])),
                items,
                batch_size=self.batch_size,
            )
            for column, items in zip(self.columns, self.items)
        )
        return a, b

    @torch.no_grad()
    def reports(self, model: Any) -> dict[str, RankingReport]:
        """Full rankings: ``a_to_b`` and ``b_to_a``."""
        a, b = self.encoded(model)
        forth = self.similarity(a, b, "a").float().cpu().numpy()
        back = forth if self.similarity is cosine else self.similarity(a, b, "b").float().cpu().numpy()
        return {
            "a_to_b": evaluate_scores(forth, self.positives["a_to_b"], metrics=METRICS),
            "b_to_a": evaluate_scores(np.ascontiguousarray(back.T), self.positives["b_to_a"], metrics=METRICS),
        }

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Figures by name, in [0, 1]: those of each direction, and the means over both."""
        reports = self.reports(model)
        out = {f"{way}_{name}": report[name] for way, report in reports.items() for name in METRICS}
        out |= {f"mean_{name}": float(np.mean([r[name] for r in reports.values()])) for name in METRICS}
        return out

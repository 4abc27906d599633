"""Post hoc: the metric over cached embeddings in seconds, and the folded model that plain sentence-transformers loads."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import Tensor

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.features import Features
from chiasm.learn.objectives.gssf.grouping import channel_order
from chiasm.learn.objectives.gssf.objective import GSSF
from chiasm.learn.objectives.gssf.structure import Direction, StructuralMetric
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import train

GROUPINGS = ("contiguous", "correlation")


def fit(
    a: np.ndarray | Tensor,
    b: np.ndarray | Tensor,
    *,
    groups: np.ndarray | None = None,
    grouping: str = "contiguous",
    epochs: float = 8,
    rate: float = 1e-2,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> GSSF:
    """Learns the metric on cached paired embeddings with in-batch InfoNCE; encoders and index stay as they are.

    Args:
        a: ``[N, D]``.
        b: ``[N, D]``, row i belongs to row i of ``a``.
        groups: int ``[N]``; pairs of one group are positives of each other. Default: all differ.
        grouping: ``"contiguous"`` blocks, or blocks by ``"correlation"`` of the channels on these pairs.
        epochs: passes over the pairs; 8 for thousands of pairs; more for hundreds.
        rate: learning rate of Adam. 1e-2 falling along a cosine came nearest to the published pattern on a generated
            world with 4,000 pairs; take 1e-3 for large sets and for vectors of good encoders.
        batch_size: pairs a step.
        seed: decides the order of the pairs.
        progress: show a bar.
        **options: of `GSSF`.

    Returns:
        The trained objective: ``similarity``, ``transform_query``, ``metric.topk``.

    Raises:
        BadInput: shapes that make no pairs, vectors that are not finite.
        UnknownName: a grouping that does not exist.
    """
    if grouping not in GROUPINGS:
        raise unknown_name("grouping", grouping, GROUPINGS)
    left, right = (np.asarray(torch.as_tensor(side).detach().cpu(), dtype=np.float32) for side in (a, b))
    if left.ndim != 2 or left.shape != right.shape:
        raise BadInput(f"shapes {left.shape} and {right.shape}", where="gssf.fit", fix="Give [N, D] twice")
    for name, side in (("a", left), ("b", right)):
        bad = np.flatnonzero(~np.isfinite(side).all(axis=1))
        if len(bad):
            raise BadInput(f"row {bad[0]} of {name} is not finite ({len(bad)} such rows)", where="gssf.fit")
    objective = GSSF(left.shape[1], **options)
    if grouping == "correlation":
        objective.metric.group_channels(
            channel_order(torch.from_numpy(left), torch.from_numpy(right), objective.metric.block)
        )
    sources = {name: Features({"sentence_embedding": side}) for name, side in (("a", left), ("b", right))}
    # Nothing of the model learns: the vectors pass through, and all trained parameters are the objective's.
    through = SentenceTransformer(modules=[_through()], device="cpu", similarity_fn_name="dot")
    train(
        through,
        Pairs(sources, groups=np.arange(len(left)) if groups is None else groups),
        objective,
        Stage("metric", train=(), epochs=epochs, rate=rate),
        batch_size=min(batch_size, len(left)),
        seed=seed,
        weight_decay=0.0,
        progress=progress,
        device="cpu",
    )
    return objective.eval()


def folded(model: Any, metric: StructuralMetric, direction: Direction = "a") -> SentenceTransformer:
    """The model with T behind the route of the queries: plain inner products are the learned scores.

    What it saves loads with plain ``SentenceTransformer(path)``; the gallery's vectors do not change, so nothing has to be
    indexed again.

    Args:
        model: a `SentenceTransformer` over a `Router` with the routes ``"a"`` and ``"b"`` (`dual_tower`).
        metric: the trained metric, without ``renorm``.
        direction: which side asks.

    Raises:
        BadInput: the metric is renormalized or has seen no vectors, or the model has no such routes.
    """
    router = model[0]
    if metric.renorm:
        raise BadInput("a renormalized metric is no linear map", where="folded", fix="Use transform_query instead")
    if not isinstance(router, Router) or not {"a", "b"} <= set(router.sub_modules):
        raise BadInput("the model has no routes 'a' and 'b'", where="folded")
    with torch.no_grad():
        matrix = metric.matrix()
    dense = Dense(
        len(matrix),
        len(matrix),
        bias=False,
        activation_function=torch.nn.Identity(),
        # Dense computes x W^T.
        init_weight=(matrix.T if direction == "a" else matrix).contiguous().clone(),
    )
    routes = {
        side: [*copy.deepcopy(list(router.sub_modules[side])), Normalize(), *([dense] if side == direction else [])]  # pyright: ignore[reportArgumentType]
        for side in ("a", "b")
    }
    whole = Router(routes, default_route="a", allow_empty_key=False)  # pyright: ignore[reportArgumentType]
    return SentenceTransformer(modules=[whole], device=str(model.device), similarity_fn_name="dot")


def _through() -> Router:
    return Router({"a": [Normalize()], "b": [Normalize()]}, default_route="a", allow_empty_key=False)  # pyright: ignore[reportArgumentType]

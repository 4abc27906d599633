"""Several branches in one model, and the schedules in which they learn: online (OSS) and offline (OAS).

    >>> models = [make_towers(seed=0), make_towers(seed=1)]
    >>> online(models, pairs, DeepBoosting(), Stage(epochs=25))
    >>> models[-1].save_pretrained("target")           # the branch that is kept; inference costs what it did

The momentum schedule (MSS) needs none of this: `train` with `MomentumBoosting`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import nn

from chiasm.errors import BadInput
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.dbl.objective import DeepBoosting
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.towers import SIDES
from chiasm.learn.training import TrainReport, train

# The rate of an offline target, in units of the anchor's.
OFFLINE_RATE = 0.1


def cohort(models: Sequence[Any]) -> SentenceTransformer:
    """One model of several branches; the modules are shared, so training it trains the models that were given.

    Routes ``a`` and ``b`` are those of the last model, the target: evaluated as it is, the cohort is the target. Earlier
    branches have the routes ``a1``, ``b1``, ``a2``, ...

    Args:
        models: `dual_tower` models with the routes ``a`` and ``b``, the anchor first; their vectors are equally long.

    Raises:
        BadInput: no model, one twice, or one without these routes.
    """
    if not models or len({id(m) for m in models}) < len(models):
        raise BadInput(f"{len(models)} models, some of them the same", where="cohort")
    routes: dict[str, list[nn.Module]] = {}
    for k, model in enumerate(models):
        router, *tail = list(model.children())
        if not isinstance(router, Router) or not set(SIDES) <= set(router.sub_modules):
            raise BadInput(f"model {k} has no routes 'a' and 'b'", where="cohort", fix="Make it with dual_tower")
        for side in SIDES:
            name = side if k == len(models) - 1 else f"{side}{k + 1}"
            routes[name] = [*router.sub_modules[side].children(), *tail]  # pyright: ignore[reportIndexIssue]
    device = str(next(models[0].parameters()).device)
    router = Router(routes, default_route="a", allow_empty_key=False)  # pyright: ignore[reportArgumentType]
    return SentenceTransformer(modules=[router], device=device, similarity_fn_name="cosine")


def branch_routes(count: int) -> dict[str, str]:
    """Column -> route for `branched` pairs and a cohort of ``count`` branches."""
    return {f"{side}/{k + 1}": side if k == count - 1 else f"{side}{k + 1}" for side in SIDES for k in range(count)}


def branched(pairs: Pairs, count: int) -> Pairs:
    """The same pairs with one column a side and branch, all of which read the same items.

    Raises:
        BadInput: a side of the pairs has views already.
    """
    if not set(SIDES) <= set(pairs.rows):
        raise BadInput("these pairs have views already", where="branched", fix="Give pairs with columns 'a' and 'b'")
    rows = {f"{side}/{k + 1}": pairs.rows[side] for side in SIDES for k in range(count)}
    others = {name: values for name, values in pairs.rows.items() if name not in SIDES}
    return replace(pairs, rows={**rows, **others})


def branch_optimizer(
    model: SentenceTransformer, clip: float = 2.0
) -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    """AdamW for `train` that clips the gradient of each branch by itself, so that no branch feels another one's gradient.

    Give ``clip=0`` to `train` with it. AdamW treats every parameter alone, so one optimizer is as good as one a branch.

    Args:
        model: a `cohort`.
        clip: largest norm of a branch's gradient; 2 as in the paper, 0 for none.
    """
    router = next(model.children())
    assert isinstance(router, Router)
    ends = sorted({name[1:] for name in router.sub_modules})
    branches = [
        [p for side in SIDES for p in router.sub_modules[side + end].parameters()]  # pyright: ignore[reportIndexIssue]
        for end in ends
    ]

    def hook(*_: Any) -> None:
        for parameters in branches:
            nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], clip)

    def make(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(groups, lr=rate)
        if clip:
            optimizer.register_step_pre_hook(hook)
        return optimizer

    return make


def online(
    models: Sequence[Any],
    pairs: Pairs,
    objective: DeepBoosting,
    stage: Stage | None = None,
    *,
    clip: float = 2.0,
    **options: Any,
) -> TrainReport:
    """OSS: all branches learn on the same batches, each boosts over the current scores of the earlier ones.

    Args:
        models: two or more, independently initialized; trained in place. The last is the one to keep.
        pairs: with columns ``a`` and ``b``.
        objective: `DeepBoosting`.
        stage, **options: of `train`. An ``evaluator`` sees the last branch.
        clip: as in `branch_optimizer`.
    """
    model = cohort(models)
    settings: dict[str, Any] = {"optimizer": branch_optimizer(model, clip), "clip": 0.0, **options}
    return train(model, branched(pairs, len(models)), objective, stage, routes=branch_routes(len(models)), **settings)


def offline(
    anchor: Any,
    pairs: Pairs,
    objective: DeepBoosting,
    stage: Stage | None = None,
    **options: Any,
) -> tuple[Any, TrainReport]:
    """OAS: a copy of a trained anchor is tuned to beat it; the anchor is frozen, in eval mode, and stays as it is.

    Args:
        anchor: a trained model with routes ``a`` and ``b``.
        pairs: with columns ``a`` and ``b``.
        objective: `DeepBoosting`; it needs no warm-up here.
        stage: default 20 epochs at a tenth of the usual rate (the released command divides by zero at this point).
        **options: of `online`.

    Returns:
        The target, and what happened.
    """
    stage = stage or Stage("offline", epochs=20, rate=OFFLINE_RATE * Stage().rate)
    target = copy.deepcopy(anchor)
    patterns = [f"0.sub_modules.{side}.*" for side in SIDES]
    report = online([anchor, target], pairs, objective, replace(stage, train=patterns), **options)
    return target, report


def ensemble(branches: Sequence[Encoded]) -> Encoded:
    """Vectors whose cosine is the mean of the branches' cosines: their unit vectors one after the other.

    Args:
        branches: what each branch gives for the same N items.

    Returns:
        ``[N, sum of D_k]``; any index serves them.
    """
    if not branches or len({len(e) for e in branches}) > 1:
        raise BadInput(f"branches of {[len(e) for e in branches]} items", where="ensemble")
    return Encoded(torch.cat([nn.functional.normalize(e.vectors, dim=-1) for e in branches], dim=1))

"""`co_teach`: two networks that split the pairs for each other, trained in two phases; their mean is the model.

    >>> result = co_teach(lambda: dual_tower(Tower(256), Tower(vocabulary=900)), pairs, epochs=30, rate=1e-3)
    >>> result.model.save_pretrained("space")            # an ordinary SentenceTransformer
    >>> result.clean, result.correspondence              # bool [N], y [N]: which pairs belong together

The networks are `Twins` in one `SentenceTransformer` and one optimizer; they share no parameter, so each learns as it would
alone. Before a split both read all pairs once in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.held_out import Encoded, HeldOut, encode
from chiasm.learn.objectives.pc2.head import class_usage
from chiasm.learn.objectives.pc2.objective import PC2
from chiasm.learn.objectives.pc2.split import pair_losses
from chiasm.learn.objectives.pc2.twins import twins
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train


@dataclass
class CoTaught:
    """What came out.

    Args:
        model: the mean of both networks, a `SentenceTransformer`.
        objective: the trained `PC2` with its memory.
        reports: one a phase.
        splits: one dict a split: ``progress``, ``clean`` (share of the pairs), ``usage`` (of the classes).
    """

    model: Any
    objective: PC2
    reports: list[TrainReport] = field(default_factory=list)
    splits: list[dict[str, float]] = field(default_factory=list)

    @property
    def clean(self) -> np.ndarray:
        """bool ``[N]``: the pairs that at least half of the networks call clean."""
        return (~self.objective.memory.noisy).float().mean(0).ge(0.5).cpu().numpy()

    @property
    def correspondence(self) -> np.ndarray:
        """float32 ``[N]``: mean over the networks of the corrected correspondence; the lowest are the worst pairs."""
        memory = self.objective.memory
        ids = torch.arange(len(memory), device=memory.losses.device)
        beliefs = [memory.belief(n, ids, correct=self.objective.correct)[1] for n in range(memory.networks)]
        return torch.stack(beliefs).mean(0).cpu().numpy()


def co_teach(
    make: Callable[[], Any],
    pairs: Pairs,
    objective: PC2 | None = None,
    *,
    epochs: float = 50,
    steps: int | None = None,
    rate: float = 2e-4,
    batch_size: int = 128,
    seed: int = 0,
    clip: float = 2.0,
    decay: float = 0.1,
    decay_at: float | None = 0.6,
    validation: Pairs | None = None,
    routes: Mapping[str, str] | None = None,
    networks: int = 2,
    **options: Any,
) -> CoTaught:
    """Trains two networks on pairs of which an unknown share does not belong together.

    Args:
        make: makes an untrained model; called once a network, each time after another seed.
        pairs: the pairs; ``a`` are the images, which borrow captions from ``b``.
        objective: a `PC2` for as many networks; default one with the paper's settings, that splits once an epoch.
        epochs: passes over the pairs, 50.
        steps: optimizer steps instead of epochs.
        rate: of Adam, 2e-4.
        batch_size: 128.
        seed: decides weights, batches and splits.
        clip: largest norm of the gradient of both networks, 2.
        decay: the rate is multiplied by this ...
        decay_at: ... after this share of the training; 30 of 50 epochs. None for a constant rate.
        validation: clean pairs that select the model by rSum: the best of each phase is kept, the count begins anew when
            captions begin to be lent.
        routes: column -> route of the models.
        networks: how many; 1 trains a network that splits for itself.
        **options: of `chiasm.learn.train` (``sampler``, ``device``, ``progress``, ``log_every``, ...).

    Raises:
        BadInput: an objective for another number of networks, or what `chiasm.learn.train` refuses.
    """
    models = []
    for number in range(networks):
        torch.manual_seed(seed + 10_007 * number)
        models.append(make())
    model = twins(models, device=options.get("device")) if networks > 1 else models[0]
    if objective is None:
        objective = PC2(networks=networks, pairs=len(pairs), splits=max(1, round(epochs)), seed=seed)
    if objective.networks != networks:
        raise BadInput(f"an objective for {objective.networks} networks, and {networks} of them", where="co_teach")
    sampler = options.get("sampler")
    each = len(sampler) if sampler is not None else -(-len(pairs) // batch_size)
    total = steps or max(1, round(epochs * each))
    result = CoTaught(model, objective)
    objective.memory.grow(len(pairs))
    objective.measure = _Measure(result, pairs, dict(routes or {}), batch_size, seed)
    evaluator = None if validation is None else RecallSum(validation, objective, routes=routes)
    cut = round(objective.reuse_from * total) if validation is not None and objective.reuse else 0
    spans = [(0, cut), (cut, total)] if 0 < cut < total else [(0, total)]
    optimizer = _KeptAdam()
    try:
        for start, end in spans:
            objective.span = start / total, end / total
            steady = _Decay(start, total, decay, decay_at)
            report = train(
                model,
                pairs,
                objective,
                Stage("reuse" if start else "clean", steps=end - start, rate=rate, warmup=0.0),
                **{
                    "batch_size": batch_size,
                    "seed": seed + start,
                    "routes": routes,
                    "clip": clip,
                    "schedule": "constant_with_warmup",
                    "weight_decay": 0.0,
                    "optimizer": optimizer,
                    "evaluator": evaluator,
                    "evaluate_every": each if evaluator is not None else None,
                    **options,
                    "callbacks": [steady.callback(), *options.get("callbacks", ())],
                },
            )
            result.reports.append(report)
    finally:
        objective.measure = None
        objective.span = (0.0, 1.0)
    return result


class RecallSum(HeldOut):
    """`HeldOut` that selects by rSum: the sum of R@1, R@5 and R@10 in both directions, in percent (at most 600)."""

    def __init__(self, pairs: Pairs, objective: Any = None, **options: Any) -> None:
        super().__init__(pairs, objective, **options)
        self.primary_metric = "rsum"

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        figures = super().__call__(*args, **kwargs)
        return figures | {"rsum": 200 * sum(figures[f"mean_hit@{k}"] for k in (1, 5, 10))}


@dataclass
class _Measure:
    """Reads all pairs once in eval mode and notes their losses and pseudo-predictions: what a split is made of."""

    result: CoTaught
    pairs: Pairs
    routes: dict[str, str]
    batch_size: int
    seed: int

    @torch.no_grad()
    def __call__(self) -> None:
        model, objective = self.result.model, self.result.objective
        a, b = (self._side(model, column) for column in ("a", "b"))
        ids, device = torch.arange(len(self.pairs)), objective.progress.device
        groups = torch.from_numpy(self.pairs.groups)
        # Other batches at every split: a pair that met hard company once shall not be called noisy for ever.
        seed = self.seed + 1 + int(objective.memory.splits)
        used = []
        for network, (image, caption) in enumerate(
            zip(objective.per_network(a.vectors), objective.per_network(b.vectors))
        ):
            losses = pair_losses(
                image, caption, margin=objective.margin, batch=self.batch_size, groups=groups, seed=seed
            )
            predicted = self._predicted(network, image, a, device)
            objective.memory.measured(network, ids.to(device), losses, predicted)
            used.append(float(class_usage(predicted)))
        objective.memory.split(threshold=objective.threshold, seed=objective.seed)
        noisy = objective.memory.noisy.float().mean()
        self.result.splits.append(
            {"progress": float(objective.progress), "clean": 1 - float(noisy), "usage": float(np.mean(used))}
        )

    def _side(self, model: Any, column: str) -> Encoded:
        """A column of all pairs; an item that several pairs share is read once."""
        rows, place = np.unique(self.pairs.rows[column], return_inverse=True)
        found = encode(model, self.pairs.source(column), self.routes.get(column, column), rows)
        needs_tokens = self.result.objective.heads[0].tokens is not None
        some = (found.tokens, found.mask) if needs_tokens and column == "a" else (None, None)
        return Encoded(found.vectors[place], *(None if x is None else x[place] for x in some))

    def _predicted(self, network: int, vectors: Tensor, side: Encoded, device: torch.device) -> Tensor:
        tokens = None if side.tokens is None else side.tokens.chunk(self.result.objective.networks, dim=-1)[network]
        parts = torch.arange(len(vectors)).split(4096)
        return torch.cat(
            [
                self.result.objective.predictions(
                    network,
                    vectors[part].to(device),
                    *(None if x is None else x[part].to(device) for x in (tokens, side.mask)),
                )
                for part in parts
            ]
        )


class _KeptAdam:
    """One Adam for all phases: the second goes on with the moments of the first."""

    def __init__(self) -> None:
        self.made: torch.optim.Optimizer | None = None

    def __call__(self, groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        if self.made is None:
            self.made = torch.optim.Adam([g for g in groups if g["params"]], lr=rate)
        for group in self.made.param_groups:
            group["lr"] = group["initial_lr"] = rate
        return self.made


@dataclass
class _Decay:
    """Multiplies the learning rate once, at a share of the whole training."""

    start: int
    total: int
    factor: float
    at: float | None

    def callback(self) -> Any:
        from transformers import TrainerCallback

        decay = self

        class Decay(TrainerCallback):
            done = False

            def on_step_begin(
                self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any
            ) -> None:
                if self.done or decay.at is None or decay.start + state.global_step < decay.at * decay.total:
                    return
                self.done = True
                lr_scheduler.base_lrs = [rate * decay.factor for rate in lr_scheduler.base_lrs]
                for group in lr_scheduler.optimizer.param_groups:
                    group["lr"] *= decay.factor

        return Decay()

"""The protocol: every modality alone first, then all together under the regularizer; and what is measured meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor
from transformers import TrainerCallback

from chiasm.errors import BadInput
from chiasm.learn.held_out import encode
from chiasm.learn.objectives.mcr.objective import MCR, MODALITIES, Unimodal
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train


class Answers(BaseEvaluator):
    """How often an `MCR` is right on labelled pairs: fused, each modality alone, and their ensemble.

    In a regression all figures are negative mean squared errors, so that more is better either way.

    Args:
        pairs: with ``per_pair["labels"]``.
        mcr: the classifier.
        routes: column -> route of the model; default the column's own name.
        batch_size: items a step.

    Raises:
        BadInput: the pairs have no labels.
    """

    def __init__(
        self, pairs: Pairs, mcr: MCR, *, routes: Mapping[str, str] | None = None, batch_size: int = 256
    ) -> None:
        super().__init__()
        if "labels" not in pairs.per_pair:
            raise BadInput("the pairs have no labels", where="Answers", fix='Give per_pair={"labels": ...}')
        self.pairs, self.mcr, self.routes, self.batch_size = pairs, mcr, dict(routes or {}), batch_size
        self.columns = MODALITIES[: len(mcr.dims)]
        self.labels = torch.from_numpy(pairs.per_pair["labels"])
        self.primary_metric = "fused"
        self.greater_is_better = True

    @torch.no_grad()
    def latents(self, model: Any) -> list[Tensor]:
        """What the model gives for each modality of the pairs, ``[N, d_i]``."""
        return [
            encode(
                model,
                self.pairs.source(column),
                self.routes.get(column, column),
                self.pairs.rows[column],
                batch_size=self.batch_size,
            ).vectors
            for column in self.columns
        ]

    @torch.no_grad()
    def right(self, model: Any) -> dict[str, np.ndarray]:
        """Per pair: 1 where the answer is right (in a regression: the negative squared error), ``[N]`` each."""
        was_training = self.mcr.training
        device = self.mcr.divergences.device
        self.mcr.eval()
        try:
            latents = [z.to(device) for z in self.latents(model)]
            outputs = {"fused": self.mcr.predict(latents), "ensemble": self.mcr.ensemble(latents)}
            outputs |= {f"alone_{c}": out for c, out in zip(self.columns, self.mcr.predict_alone(latents))}
        finally:
            self.mcr.train(was_training)
        return {name: self._judge(out.cpu()) for name, out in outputs.items()}

    def _judge(self, out: Tensor) -> np.ndarray:
        if self.mcr.regression:
            return -(out - self.labels.to(out.dtype).reshape(out.shape)).square().mean(dim=-1).numpy()
        return (out.argmax(dim=-1) == self.labels).double().numpy()

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Means by name: ``fused``, ``ensemble``, ``alone_a``, ``alone_b``, ..."""
        return {name: float(values.mean()) for name, values in self.right(model).items()}


class DivergenceLog(TrainerCallback):
    """Keeps J of every modality while training goes on: one dict a log, ``step``, ``a``, ``b``, ...

    Args:
        mcr: the objective that is trained. Give the log to `train` as one of the ``callbacks``.
    """

    def __init__(self, mcr: MCR) -> None:
        self.mcr = mcr
        self.rows: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        values = dict(zip(MODALITIES, self.mcr.divergences.tolist()))
        self.rows.append({"step": float(state.global_step), **values})


def fit(
    model: Any,
    pairs: Pairs,
    mcr: MCR,
    *,
    alone: Stage | None = None,
    together: Stage | None = None,
    validation: Pairs | None = None,
    patience: int = 25,
    batch_size: int = 32,
    weight_decay: float = 1e-5,
    **options: Any,
) -> tuple[TrainReport, TrainReport]:
    """Trains each modality alone, then all together from there, in place.

    Args:
        model: encoders with one route a modality.
        pairs: with ``per_pair["labels"]``.
        mcr: the objective.
        alone: the first stage; 5 epochs at 1e-3 by default (the protocol does not fix it).
        together: the second; by default 5 epochs at 1e-5, the rate of the published protocol for pretrained encoders.
        validation: pairs by whose fused accuracy the second stage is stopped, and its best state chosen; the first is
            judged by the ensemble.
        patience: evaluations without a better figure before a stage stops; 25 as published.
        batch_size: 32 as published.
        weight_decay: 1e-5 as published.
        **options: of `chiasm.learn.train`, for both stages.

    Returns:
        The reports of both stages.
    """
    reports = []
    for stage, objective, figure in (
        (alone or Stage("alone"), Unimodal(mcr), "ensemble"),
        (together or Stage("together", rate=1e-5), mcr, "fused"),
    ):
        settings = {"clip": 0.0, **options} if objective is not mcr else options
        if validation is not None:
            judge = Answers(validation, mcr, routes=options.get("routes"))
            judge.primary_metric = figure
            settings = {"evaluator": judge, "patience": patience, **settings}
        reports.append(
            train(model, pairs, objective, stage, batch_size=batch_size, weight_decay=weight_decay, **settings)
        )
    return reports[0], reports[1]

"""`Trial`: one data set, one pair of towers, one budget, so that objectives can be compared side by side.

A room of `chiasm.learn.objectives` whose method needs more than a loss (a second network, other columns, a schedule of its
own) has a module ``trial.py`` with ``run(trial) -> (model, objective)``; all others train as `Trial.fit` does.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from chiasm.learn.held_out import HeldOut
from chiasm.learn.pairs import OnePerGroup, Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train


@dataclass(frozen=True)
class Trial:
    """What every objective gets alike.

    Args:
        name: the data's name.
        pairs: training pairs; ``a`` are pictures as patch vectors, ``b`` captions as word ids (`chiasm.learn.words`).
            ``per_pair["labels"]`` holds class numbers where the set has classes.
        test: pairs whose recall is reported; nothing is chosen on them.
        towers: makes the two towers, untrained; called after the seed is set.
        texts: the sentence of each row of the source of ``b`` (training and test share the source).
        seed: decides weights and batches.
        steps, batch_size, rate: the budget, the same for every objective.
    """

    name: str
    pairs: Pairs
    test: Pairs
    towers: Callable[[], Any]
    texts: Sequence[str] = ()
    seed: int = 0
    steps: int = 300
    batch_size: int = 64
    rate: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """The untrained towers: the same weights for the same seed."""
        torch.manual_seed(self.seed)
        return self.towers()

    def fit(
        self, model: Any, objective: nn.Module, *, pairs: Pairs | None = None, steps: int | None = None, **options: Any
    ) -> TrainReport:
        """Trains in place with this trial's budget; one caption of a picture a batch.

        Args:
            model: from `model`.
            objective: what to train with.
            pairs: other pairs than the trial's (cleaned, with further columns).
            steps: a part of the budget, for methods with several stages.
            **options: of `chiasm.learn.train`.
        """
        pairs = self.pairs if pairs is None else pairs
        assert pairs.groups is not None
        sampler = options.pop("sampler", None) or OnePerGroup(pairs.groups, self.batch_size, self.seed)
        stage = options.pop("stage", None) or Stage(self.name, steps=steps or self.steps, rate=self.rate)
        settings: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed, "log_every": 50, **options}
        return train(model, pairs, objective, stage, sampler=sampler, **settings)

    def run(self, name: str) -> dict[str, Any]:
        """Trains with an objective by name; per-query figures of the test pairs.

        Returns:
            ``a_to_b`` and ``b_to_a``: `RankingReport` each.

        Raises:
            UnknownName: an objective that does not exist.
        """
        from chiasm.learn.objectives import objective, objective_class

        room = objective_class(name).__module__.rpartition(".")[0]
        own = importlib.util.find_spec(f"{room}.trial") if room != "chiasm.learn" else None
        if own is not None:
            model, trained = importlib.import_module(f"{room}.trial").run(self)
        else:
            model, trained = self.model(), objective(name, **self.options)
            self.fit(model, trained)
        return HeldOut(self.test, trained).reports(model)

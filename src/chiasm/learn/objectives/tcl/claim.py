"""The claim of TCL: intra-modal and local contrast keep a modality's own structure, and help most where pairs are wrong.

Scenes of two objects as patch vectors with captions; two small transformers. As in the card's pilot all arms share a first half
with CMA alone, since from random weights the other terms starve the alignment; then each goes on with its own terms. Sizes and
rates were chosen on seeds 1000 and 1001.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.learn.features import Features
from chiasm.learn.held_out import HeldOut, cosine, encode
from chiasm.learn.objectives.tcl import VIEW_ROUTES, Augmented, TripleContrast, two_views
from chiasm.learn.pairs import Pairs
from chiasm.learn.sentence_loss import SentenceLoss
from chiasm.learn.stages import Stage
from chiasm.learn.towers import Tower, dual_tower
from chiasm.learn.training import train
from chiasm.measure.ranking import evaluate_scores
from chiasm.worlds.patches import patch_scenes

CLEAN, NOISY = "scenes", "scenes, 30% of the captions permuted"
CMA, IMC, TCL = "CMA", "CMA + IMC", "TCL (CMA + IMC + LMI)"
ONE_VIEW, ONE_VIEW_IMC, SHUFFLED = "CMA, one view", "CMA + IMC, one view", "TCL, local features shuffled"
R1, R5, INTRA = "R@1", "R@5", "intra-modal R@1"

# Weights of IMC and LMI in the second half.
WEIGHTS = {CMA: (0.0, 0.0), IMC: (0.3, 0.0), TCL: (0.3, 0.3), SHUFFLED: (0.3, 0.3)}
WEIGHTS |= {ONE_VIEW: WEIGHTS[CMA], ONE_VIEW_IMC: WEIGHTS[IMC]}
# How far the two views lie apart between which intra-modal recall is measured.
NOISE, MASKED = 0.35, 0.2


class ShuffledLocals(TripleContrast):
    """Every sample is compared with the local features of its neighbor in the batch."""

    def _local(self, x: Tensor, tokens: Tensor, mask: Tensor | None, same: Tensor, patches: bool) -> Tensor:
        return super()._local(x, tokens.roll(1, 0), None if mask is None else mask.roll(1, 0), same, patches)


@dataclass(frozen=True)
class Scenes:
    """Training and test pairs of one seed."""

    pairs: Pairs
    test: Pairs
    vocabulary: int
    epochs: float
    seed: int

    @classmethod
    def of(cls, seed: int, smoke: bool) -> Scenes:
        count, test = (128, 64) if smoke else (1500, 500)
        world = patch_scenes(count + test, seed=seed, objects=2)
        words = world.captions[0]
        texts = Features({"input_ids": words, "attention_mask": np.ones_like(words, dtype=bool)})
        pairs = Pairs({"a": Features({"input_features": world.patches}), "b": texts})
        return cls(pairs[:count], pairs[count:], world.vocabulary, 1 if smoke else 8, seed)

    def towers(self) -> Any:
        torch.manual_seed(self.seed)
        return dual_tower(Tower(32), Tower(vocabulary=self.vocabulary), device="cpu")

    def train(self, loss: SentenceLoss, pairs: Pairs, half: int) -> None:
        """One half of the training; the other half sees other batches."""
        train(
            loss.model,
            pairs,
            loss.objective,
            Stage(f"half {half}", epochs=self.epochs, rate=1e-3, warmup=0.0),
            loss=loss,
            batch_size=64,
            seed=self.seed + 10_000 * half,
            schedule="constant",
            routes=VIEW_ROUTES,
            log_every=10_000,
            device="cpu",
        )

    def first_half(self, pairs: Pairs) -> SentenceLoss:
        model = self.towers()
        loss = SentenceLoss(model, TripleContrast(w_imc=0, w_lmi=0, momentum=0.99, queue=512), pairs)
        self.train(loss, pairs, 0)
        return loss

    def second_half(self, first: SentenceLoss, pairs: Pairs, arm: str) -> Any:
        """Goes on from a copy of model, momentum encoder and queues; the model."""
        loss = copy.deepcopy(first)
        objective = loss.objective
        assert isinstance(objective, TripleContrast)
        objective.w_imc, objective.w_lmi = WEIGHTS[arm]
        objective.aux_start = objective.alpha_ramp = 0.0
        if arm == SHUFFLED:
            objective.__class__ = ShuffledLocals
        # What the loss asks for depends on whether the pairs have second views.
        fresh = SentenceLoss(loss.model, objective, pairs)
        fresh._teacher = loss._teacher
        self.train(fresh, pairs, 1)
        return fresh.model

    def rows(self, setting: str, arm: str, model: Any, seconds: float) -> Iterator[Row]:
        """Recall between pictures and captions (mean of both directions), and between two views of the same item."""
        reports = HeldOut(self.test).reports(model)
        for name, metric in ((R1, "hit@1"), (R5, "hit@5")):
            hits = 50 * (reports["a_to_b"].values[metric] + reports["b_to_a"].values[metric])
            yield Row.of(setting, arm, name, hits, seconds=seconds)
        found = []
        for side in ("a", "b"):
            views = Augmented(self.test.source(side), noise=NOISE, mask_rate=MASKED, seed=self.seed)
            left, right = (encode(model, views, side, self.test.rows[side]) for _ in range(2))
            found.append(evaluate_scores(cosine(left, right).numpy(), metrics=("hit@1",)).values["hit@1"])
        yield Row.of(setting, arm, INTRA, 50 * (found[0] + found[1]))
        yield Row.of(setting, arm, "picture to picture R@1", 100 * found[0])
        yield Row.of(setting, arm, "caption to caption R@1", 100 * found[1])


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed."""
    scenes = Scenes.of(seed, data.smoke)
    noisy, _ = scenes.pairs.shuffled(0.3, seed)
    for setting, pairs, arms in (
        (NOISY, noisy, (CMA, IMC, TCL, SHUFFLED)),
        (CLEAN, scenes.pairs, (CMA, TCL, SHUFFLED)),
    ):
        views = two_views(pairs, seed=seed)
        first = scenes.first_half(views)
        for arm in arms:
            start = time.process_time()
            model = scenes.second_half(first, views, arm)
            yield from scenes.rows(setting, arm, model, time.process_time() - start)
        if setting == CLEAN:
            for arm in (ONE_VIEW, ONE_VIEW_IMC):
                model = scenes.second_half(first, pairs, arm)
                yield from scenes.rows(setting, arm, model, 0.0)


CLAIM = Claim(
    statement="Intra-modal and local contrast beside the cross-modal one keep each modality's structure and help with wrong pairs.",
    run=run,
    gates=(
        Gate(NOISY, IMC, CMA, R5, "gain", 3.0),
        Gate(NOISY, TCL, CMA, R5, "at least", 0.0),
        Gate(NOISY, TCL, CMA, INTRA, "gain", 8.0),
        Gate(CLEAN, TCL, CMA, R5, "at least", -1.0),
        Gate(CLEAN, ONE_VIEW_IMC, ONE_VIEW, R5, "within", 2.0, control=True),
        Gate(CLEAN, SHUFFLED, TCL, INTRA, "at most", 0.0, control=True),
        Gate(NOISY, SHUFFLED, TCL, R5, "at most", 0.0),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=300,
    note="Intra-modal recall is the mean over pictures and captions, each between two augmented views of 500 test items. The "
    "control with shuffled local features is judged by it, on clean pairs, as decided on seeds 1000 and 1001: across modalities "
    "shuffled ones raised recall there, since any term that keeps so small a model from learning pairs by heart does. That the "
    "local terms help recall by what they say is therefore not confirmed (the last gate).",
)

"""The claim of MCR: a classifier over an easy and a hard modality stops leaning on the easy one.

World, gates and controls are those of the method's card; settings (lam_M 0.1, lam_c 0.5, rates) are the card's, and the
world's one free size was set on seed 1000. Real data, reported only: halves of handwritten digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.learn.features import Features
from chiasm.learn.objectives.mcr.objective import MCR, Unimodal
from chiasm.learn.objectives.mcr.protocol import Answers
from chiasm.learn.objectives.mcr.protocol import fit as in_two_stages
from chiasm.learn.objectives.mcr.world import bits, routed
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.learn.training import train

BITS, BROKEN = "easy and hard modality", "easy modality replaced by noise"
ROUTED, TWINS, DIGITS = "told by one modality or both", "two identical modalities", "digits, left and right halves"
TOO_STRONG = "MCR collaborative, lam_M 1"
JOINT, MULTI, ALONE, MCR_GREEDY, MCR_CON = "joint", "multi-loss", "ensemble", "MCR", "MCR + L_con"

# What makes each arm; all else is equal. "ensemble" is made from encoders that were trained alone.
ARMS: dict[str, dict[str, Any]] = {
    JOINT: {"unimodal": 0.0, "competition": 0.0},
    MULTI: {"competition": 0.0},
    MCR_GREEDY: {},
    MCR_CON: {"contrast": 0.5},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "multi-loss + L_con": {"competition": 0.0, "contrast": 0.5},
    "MCR independent": {"game": "independent"},
    "MCR collaborative": {"game": "collaborative"},
    TOO_STRONG: {"game": "collaborative", "competition": 1.0},
    "the same, capped": {"game": "collaborative", "competition": 1.0, "cap": 0.3},
    "MCR + L_ceb": {"bottleneck": 0.1},
}
TWO_STAGES = "MCR + L_con, unimodal start"
EPOCHS, RATE, BATCH = 20, 1e-3, 64


@dataclass(frozen=True)
class Sample:
    """Training pairs, test pairs by setting, and sizes."""

    train: Pairs
    tests: dict[str, Pairs]
    inputs: tuple[int, int]
    classes: int
    twins: bool = False


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed; nothing is read from disk."""
    epochs = 3 if data.smoke else EPOCHS
    n, test = (200, 200) if data.smoke else (1000, 4000)
    arms = ARMS | ({TOO_STRONG: ABLATIONS[TOO_STRONG]} if data.smoke else ABLATIONS)
    yield from _measure(_bits(n, test, seed), seed, epochs, arms, two_stages=not data.smoke)
    yield from _measure(_bits(n, test, seed, twins=True), seed, epochs, {k: ARMS[k] for k in (MULTI, MCR_GREEDY)})
    if not data.smoke:
        few = {k: ARMS[k] for k in (JOINT, MULTI, MCR_CON)}
        yield from _measure(_routed(n, test, seed), seed, epochs, few)
        yield from _measure(_digits(seed), seed, epochs, few)


def _measure(
    sample: Sample, seed: int, epochs: float, arms: dict[str, dict[str, Any]], *, two_stages: bool = False
) -> Iterator[Row]:
    yield from _rows(ALONE, sample, *_trained(sample, seed, epochs, {}, alone=True), figure="ensemble")
    for arm, options in arms.items():
        yield from _rows(arm, sample, *_trained(sample, seed, epochs, options))
    if two_stages:
        model, mcr = _fresh(sample, seed, {"contrast": 0.5})
        half: dict[str, Any] = {"epochs": epochs / 2, "rate": RATE}
        in_two_stages(
            model,
            sample.train,
            mcr,
            alone=Stage("alone", **half),
            together=Stage("together", **half),
            **_settings(seed),
        )
        yield from _rows(TWO_STAGES, sample, model, mcr)


def _rows(arm: str, sample: Sample, model: Any, mcr: MCR, figure: str = "fused") -> Iterator[Row]:
    """Accuracy on every test setting, and what influence each modality has on the answer."""
    for setting, pairs in sample.tests.items():
        judge = Answers(pairs, mcr)
        yield Row.of(setting, arm, "accuracy", 100 * judge.right(model)[figure])
        if setting != BROKEN and figure == "fused":
            yield Row(setting, arm, "J of the first", _influence(judge, model)[0])
            yield Row(setting, arm, "J of the second", _influence(judge, model)[1])


@torch.no_grad()
def _influence(judge: Answers, model: Any, rows: int = 256) -> list[float]:
    """J of each modality, over all exchanges within some test rows."""
    probe = MCR(judge.mcr.classes, judge.mcr.dims, head=judge.mcr.head).eval()
    probe.losses([z[:rows] for z in judge.latents(model)])
    return probe.divergences.tolist()


def _settings(seed: int) -> dict[str, Any]:
    # The card's trial: Adam at a constant rate, no decay.
    return {"batch_size": BATCH, "seed": seed, "weight_decay": 0.0, "schedule": "constant", "device": "cpu"}


def _fresh(sample: Sample, seed: int, options: dict[str, Any]) -> tuple[Any, MCR]:
    torch.manual_seed(seed)
    encoders = [Perceptron([size, 128, 64]) for size in sample.inputs]
    model = dual_tower(encoders[0], encoders[0] if sample.twins else encoders[1], device="cpu")
    return model, MCR(sample.classes, (64, 64), count=1, **options)


def _trained(
    sample: Sample, seed: int, epochs: float, options: dict[str, Any], *, alone: bool = False
) -> tuple[Any, MCR]:
    model, mcr = _fresh(sample, seed, options)
    objective = Unimodal(mcr) if alone else mcr
    train(model, sample.train, objective, Stage(epochs=epochs, rate=RATE), **_settings(seed))
    return model, mcr.eval()


def _pairs(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Pairs:
    sources = {"a": Features({"input_features": first}), "b": Features({"input_features": second})}
    return Pairs(sources, groups=np.arange(len(labels)), per_pair={"labels": labels})


def _bits(n: int, test: int, seed: int, *, twins: bool = False) -> Sample:
    world = bits(n + test, seed=seed)
    if twins:
        world = replace(world, second=world.first)
    pairs = _pairs(world.first, world.second, world.labels)
    sizes = (world.first.shape[1], world.second.shape[1])
    if twins:
        return Sample(pairs[:n], {TWINS: pairs[n:]}, sizes, 4, twins=True)
    broken = _pairs(world.noise(seed), world.second, world.labels)
    return Sample(pairs[:n], {BITS: pairs[n:], BROKEN: broken[n:]}, sizes, 4)


def _routed(n: int, test: int, seed: int) -> Sample:
    world = routed(n + test, seed=seed)
    pairs = _pairs(world.first, world.second, world.labels)
    return Sample(pairs[:n], {ROUTED: pairs[n:]}, (world.first.shape[1], world.second.shape[1]), 5)


def _digits(seed: int) -> Sample:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images = np.asarray(images)[order].reshape(-1, 8, 8).astype(np.float32) / 16
    halves = images[:, :, :4].reshape(-1, 32), images[:, :, 4:].reshape(-1, 32)
    pairs = _pairs(*halves, np.asarray(labels)[order].astype(np.int64))
    return Sample(pairs[:600], {DIGITS: pairs[600:]}, (32, 32), 10)


CLAIM = Claim(
    statement="Unimodal losses, the competition game and the supervised contrast keep a joint classifier from leaning on its easy modality.",
    run=run,
    gates=(
        Gate(BITS, MCR_CON, JOINT, "accuracy", "gain", 1.0),
        Gate(BROKEN, MCR_CON, JOINT, "accuracy", "gain", 10.0),
        Gate(BROKEN, MCR_GREEDY, JOINT, "accuracy", "gain", 10.0),
        Gate(BITS, MCR_GREEDY, JOINT, "accuracy", "gain", 0.0),
        Gate(BITS, MCR_CON, MULTI, "accuracy", "at least", -1.0),
        Gate(TWINS, MCR_GREEDY, MULTI, "accuracy", "within", 1.0, control=True),
        Gate(BROKEN, TOO_STRONG, MULTI, "accuracy", "at most", 0.0, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=300,
    note="Most of the gain comes from the unimodal losses and the contrast; the game itself does not beat multi-loss here.",
)

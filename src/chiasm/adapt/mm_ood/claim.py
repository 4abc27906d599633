"""The claim of CMA: one more term in fine-tuning closes the modality gap on the known classes at no cost in accuracy; scores
against negative labels reject unknown inputs better than the known labels alone, where the negative labels know them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from chiasm.adapt.mm_ood.alignment import CrossModalAlignment, alignment_report
from chiasm.adapt.mm_ood.mining import mine_negatives
from chiasm.adapt.mm_ood.scores import energy, max_logit, maximum_softmax, mcm, neglabel
from chiasm.adapt.mm_ood.tuning import encode_pictures, encode_texts, fine_tune
from chiasm.claims import Claim, Data, Gate, Row
from chiasm.claims.photographs import flickr, pocket_photographs, pocket_words
from chiasm.embeddings import unit
from chiasm.learn.contrastive import InfoNCE
from chiasm.learn.features import Features
from chiasm.learn.held_out import encode
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.learn.training import train
from chiasm.measure import detection
from chiasm.worlds.shifted_shapes import encoder
from chiasm.worlds.unknown_classes import KNOWN, NEGATIVE, Detecting, compositions, directions, latent, sentence_model

TOWERS, SCENES, PLANTED, UNFORESEEN = "two small towers", "scenes", "unknown near the negatives", "unknown unforeseen"
SAME, REPEATED = "held-out known inputs as unknown", "known labels as negatives"
FLICKR, CLOTHES = "Flickr8k photographs (CLIP)", "clothing photographs (pocket)"
LAMBDAS, SCENE_LAMBDAS = (0.0, 0.01, 0.03, 0.1, 0.5), (0.0, 1e-3, 1e-2, 5e-2)
TEMPERATURE = 0.05  # of the small towers


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed: the worlds always, the real sets where they are."""
    yield from _directions(seed)
    yield from _towers(seed, small=data.smoke)
    yield from _scenes(seed, small=data.smoke)
    yield from _flickr(seed, data)
    yield from _clothes(seed, data)


def _figures(setting: str, arm: str, inside: np.ndarray, outside: np.ndarray, name: str = "") -> Iterator[Row]:
    """AUROC, FPR95, AUPR in percent.

    AUROC is the mean over known inputs of the share of unknown ones below them (ties count half): figures that two scores
    of the same inputs can be compared by in pairs.
    """
    found, below = detection(inside, outside), np.sort(outside)
    places = np.searchsorted(below, inside, "left") + np.searchsorted(below, inside, "right")
    yield Row.of(setting, arm, f"AUROC{name}", 100 * places / (2 * len(below)))
    for metric, value in (
        ("FPR95", found.fpr95),
        ("AUPR in", found.aupr_in),
        ("AUPR out", found.aupr_out),
    ):
        yield Row(setting, arm, f"{metric}{name}", 100 * value)


def _scores(task: Detecting, temperature: float = 0.01, groups: int = 1) -> dict[str, Any]:
    return {
        "MCM": lambda u: mcm(u, task.texts, log=True),
        "NegLabel": lambda u: neglabel(u, task.texts, task.negatives, temperature=temperature, log_odds=True),
        f"NegLabel, {groups} groups": lambda u: neglabel(
            u, task.texts, task.negatives, temperature=temperature, groups=groups, log_odds=True
        ),
        "energy": lambda u: energy(u, task.texts, temperature=temperature),
        "max-logit": lambda u: max_logit(u, task.texts),
        "MSP": lambda u: maximum_softmax(u, task.texts, temperature=temperature, log=True),
    }


def _directions(seed: int) -> Iterator[Row]:
    task = directions(seed, each=150)
    for setting, name in ((PLANTED, "near the negatives"), (UNFORESEEN, "unforeseen"), (SAME, "known")):
        for arm, score in _scores(task, temperature=0.1, groups=5).items():
            yield from _figures(setting, arm, score(task.inside), score(task.outside[name]))
        yield Row(setting, "chance", "AUROC", 50.0)
    repeated = np.tile(task.texts, (3, 1))
    # All scores are 1 / 4; rounding takes away what float32 leaves of the sums.
    tied = [
        np.round(neglabel(u, task.texts, repeated, log_odds=True), 3) for u in (task.inside, task.outside["unforeseen"])
    ]
    yield from _figures(REPEATED, "NegLabel", *tied)
    yield Row(REPEATED, "chance", "AUROC", 50.0)


# ---- two small towers


def _towers(seed: int, *, small: bool) -> Iterator[Row]:
    world = latent(seed, each=8 if small else 24)
    torch.manual_seed(seed)
    model = dual_tower(Perceptron([48, 96, 32]), Perceptron([48, 96, 32]), device="cpu")
    texts = Features({"input_features": world.texts})
    pairs = Pairs({"a": Features({"input_features": world.pictures}), "b": texts}, {"b": world.owners}, world.owners)
    train(model, pairs, InfoNCE(TEMPERATURE), Stage(epochs=2 if small else 10, rate=2e-3), batch_size=128, seed=seed)
    known = Pairs(
        {"a": Features({"input_features": world.tuning}), "b": texts}, {"b": world.tuning_labels}, world.tuning_labels
    )
    yield from _tower_rows("pre-trained", model, world)
    gaps = []
    for lam, terms in [*((lam, "both") for lam in LAMBDAS), (0.03, "image"), (0.03, "text")]:
        tuned = copy.deepcopy(model)
        loss = CrossModalAlignment(lam, scale=1 / TEMPERATURE, learn_scale=False, terms=terms)
        train(tuned, known, loss, Stage(epochs=3 if small else 30, rate=1e-3), batch_size=64, seed=seed)
        arm = f"lambda {lam:g}" if terms == "both" else f"lambda {lam:g}, {terms} term only"
        found = list(_tower_rows(arm, tuned, world))
        gaps.append(next(row.value for row in found if row.metric == "gap"))
        yield from found
    falls = all(later < earlier for earlier, later in pairwise(gaps[: LAMBDAS.index(0.1) + 1]))
    yield Row(TOWERS, "lambda 0 to 0.1", "gap falls at every step", float(falls))


def _tower_rows(arm: str, model: Any, world: Any) -> Iterator[Row]:
    def seen(values: np.ndarray, route: str) -> np.ndarray:
        return unit(encode(model, Features({"input_features": values}), route).vectors.numpy())

    tests, strangers, words = seen(world.tests, "a"), seen(world.strangers, "a"), seen(world.texts, "b")
    task = Detecting(words[KNOWN], words[NEGATIVE], tests, world.test_labels, {"unknown": strangers})
    yield from _figures_of(TOWERS, arm, task, TEMPERATURE)


def _figures_of(setting: str, arm: str, task: Detecting, temperature: float) -> Iterator[Row]:
    """Accuracy, gap, cosine, separation, and the figures of NegLabel and MCM against each unknown kind."""
    found = alignment_report(task.inside, task.labels, task.texts, task.negatives)
    yield Row.of(setting, arm, "accuracy", 100.0 * ((task.inside @ task.texts.T).argmax(axis=1) == task.labels))
    for metric, value in found.to_json().items():
        yield Row(setting, arm, metric, value)
    for name, outside in task.outside.items():
        for score in ("NegLabel", "MCM"):
            of = _scores(task, temperature)[score]
            yield from _figures(setting, arm, of(task.inside), of(outside), f" {score}, {name}")


# ---- scenes and the mini dual encoder


def _scenes(seed: int, *, small: bool) -> Iterator[Row]:
    mini = encoder(seed, small)
    size = {"each": 4, "tests": 4, "scenes": 1024} if small else {}
    world, model = compositions(mini, seed, **size), sentence_model(mini)
    yield from _scene_rows("zero-shot", model, world)
    for lam in SCENE_LAMBDAS:
        tuned = copy.deepcopy(model)
        fine_tune(
            tuned,
            *world.tuning,
            world.classes,
            lam=lam,
            template="a {}",
            epochs=1 if small else 6,
            batch_size=64,
            rate=2e-4,
            seed=seed,
        )
        yield from _scene_rows(f"lambda {lam:g}", tuned, world)


def _scene_rows(arm: str, model: Any, world: Any) -> Iterator[Row]:
    words = {
        name: encode_texts(model, getattr(world, name), template="a {}") for name in ("classes", "negatives", "near")
    }
    outside = {name: encode_pictures(model, pixels) for name, pixels in world.outside.items()}
    task = Detecting(
        words["classes"], words["negatives"], encode_pictures(model, world.tests[0]), world.tests[1], outside
    )
    yield from _figures_of(SCENES, arm, task, 0.02)
    # The names of the unknown compositions among the negatives: what nobody knows in advance.
    oracle = np.concatenate([words["negatives"], words["near"]])
    inside, near = (
        neglabel(u, task.texts, oracle, temperature=0.02, log_odds=True) for u in (task.inside, outside["near"])
    )
    yield Row(SCENES, arm, "AUROC NegLabel with an oracle, near", 100 * detection(inside, near).auroc)


# ---- real data


def _flickr(seed: int, data: Data) -> Iterator[Row]:
    task = flickr(data)
    if task is None:
        return
    rng = np.random.default_rng(seed)
    half = [rng.permutation(len(x))[: len(x) // 2] for x in (task.inside, task.outside["other photographs"])]
    inside, outside = task.inside[half[0]], task.outside["other photographs"][half[1]]
    right = (inside @ task.texts.T).argmax(axis=1) == task.labels[half[0]]
    yield Row.of(FLICKR, "zero-shot", "accuracy", 100.0 * right)
    for arm, score in _scores(task, groups=10).items():
        yield from _figures(FLICKR, arm, score(inside), score(outside))


def _clothes(seed: int, data: Data) -> Iterator[Row]:
    """The pocket space, and linear maps on it that are fine-tuned on few photographs of eight of the ten classes."""
    training = pocket_photographs(data, "clothing_photos", 600, "train")
    tests = pocket_photographs(data, "clothing_photos", 400, "test")
    others = {
        name: pocket_photographs(data, name, 200, "test")
        for name in ("aerial_captions_en", "cue_conflict_images", "omniglot_strokes")
    }
    if training is None or tests is None:
        return
    from chiasm.encode import load

    space, names = load("pocket"), np.unique(training[1])
    known = np.sort(np.random.default_rng(seed).permutation(names)[:8])
    said, words = [f"a photo of a {name}" for name in known], pocket_words()
    texts, candidates = space.encode(said).vectors, space.encode([f"a photo of a {w}" for w in words]).vectors
    negatives = candidates[mine_negatives(candidates, texts, words=words, classes=list(known))]
    inside, stranger = np.isin(tests[1], known), ~np.isin(tests[1], known)
    outside = {"other clothes": tests[0][stranger]} | {
        k.split("_")[0]: v[0] for k, v in others.items() if v is not None
    }
    labels = np.searchsorted(known, tests[1][inside])
    task = Detecting(texts, negatives, tests[0][inside], labels, outside)
    yield from _figures_of(CLOTHES, "zero-shot", task, 0.05)
    use = np.isin(training[1], known)
    for lam in (0.0, 0.01, 0.1):
        model = _linear(texts.shape[1], seed)
        pairs = Pairs(
            {"a": Features({"input_features": training[0][use]}), "b": Features({"input_features": texts})},
            {"b": np.searchsorted(known, training[1][use])},
            np.searchsorted(known, training[1][use]),
        )
        loss = CrossModalAlignment(lam, scale=20.0, learn_scale=False)
        train(model, pairs, loss, Stage(epochs=10, rate=3e-4), batch_size=64, seed=seed)

        def mapped(x: np.ndarray, route: str, model: Any = model) -> np.ndarray:
            return unit(encode(model, Features({"input_features": x}), route).vectors.numpy())

        moved = {name: mapped(x, "a") for name, x in outside.items()}
        tuned = Detecting(mapped(texts, "b"), mapped(negatives, "b"), mapped(task.inside, "a"), labels, moved)
        yield from _figures_of(CLOTHES, f"lambda {lam:g}", tuned, 0.05)


def _linear(dim: int, seed: int) -> Any:
    """Two linear maps that begin as the identity."""
    torch.manual_seed(seed)
    model = dual_tower(Perceptron([dim, dim]), Perceptron([dim, dim]), device="cpu")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(torch.eye(dim))
                module.bias.zero_()
    return model


CLAIM = Claim(
    statement="An alignment term in fine-tuning closes the modality gap at no cost in accuracy, and negative labels reject unknown inputs that they know.",
    run=run,
    gates=(
        Gate(TOWERS, "lambda 0 to 0.1", None, "gap falls at every step", "at least", 1.0),
        *(
            Gate(TOWERS, arm, "lambda 0", metric, "at least", bound)
            for arm in ("lambda 0.01", "lambda 0.03")
            for metric, bound in (("accuracy", -1.0), ("AUROC NegLabel, unknown", -1.5), ("AUROC MCM, unknown", -1.5))
        ),
        Gate(TOWERS, "lambda 0.5", "lambda 0", "AUROC NegLabel, unknown", "at most", -3.0),
        Gate(SCENES, "lambda 0.05", "lambda 0", "gap", "gain", 0.1, lower_is_better=True),
        Gate(SCENES, "lambda 0.05", "lambda 0", "separation", "gain", 0.0),
        Gate(SCENES, "lambda 0.001", "lambda 0", "accuracy", "at least", -1.0),
        Gate(PLANTED, "NegLabel", "MCM", "AUROC", "gain", 3.0),
        Gate(FLICKR, "NegLabel", "MCM", "AUROC", "gain", 0.0),
        Gate(CLOTHES, "lambda 0.1", "lambda 0", "gap", "gain", 0.1, lower_is_better=True),
        Gate(CLOTHES, "lambda 0.1", "lambda 0", "accuracy", "at least", -1.0),
        Gate(CLOTHES, "lambda 0.1", "lambda 0", "FPR95 NegLabel, cue", "gain", 0.0, lower_is_better=True),
        Gate(REPEATED, "NegLabel", "chance", "AUROC", "within", 0.5, control=True),
        Gate(SAME, "NegLabel", "chance", "AUROC", "within", 3.0, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=360,
    data=("clip_real_features", "clothing_photos", "aerial_captions_en", "cue_conflict_images", "omniglot_strokes"),
    note="A seed takes 40 CPU seconds, and 80 more for its mini dual encoder the first time (hicropl uses the same one).",
)

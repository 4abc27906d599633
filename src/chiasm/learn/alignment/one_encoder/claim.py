"""The claim of OneEncoder: a modality that was aligned with one other finds all of them, and nothing that was there moves.

Sixty generated concepts in four views; real spoken and handwritten digits that are paired through words alone; and the pocket
space, which learns the sounds of ``esc10_sounds``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.learn.alignment.one_encoder.comparisons import (
    Settings,
    aligned,
    fresh,
    joint,
    operators,
    questions,
)
from chiasm.learn.alignment.one_encoder.digits import digit_views
from chiasm.learn.alignment.one_encoder.pocket_sound import Material, Recipe, teach, vectors
from chiasm.learn.alignment.one_encoder.protocol import next_step
from chiasm.learn.alignment.one_encoder.sound_report import nearest, search
from chiasm.learn.alignment.one_encoder.views import Views, concept_views
from chiasm.learn.held_out import encode

WORLD, DIGITS = "concepts in four views", "digits: spoken, written, named"
OPERATORS, QUESTIONS, SOUNDS = "operators, shorter training", "questions about pictures", "esc10_sounds, pocket space"
ONE, SHUFFLED, FRESH = "one-encoder", "one-encoder, sounds paired with random words", "dual encoder, 200 pairs"
FEW, TEXT, VIDEO, JOINT = "one-encoder, 200 pairs", "text to image", "one-encoder, video", "joint training"
BY_LABEL, BY_WORDS, RANDOM = "asked by label", "asked by other words", "taught random words"
R10, RATIO, OVER, MOVED, SHARE = "R@10", "R@10 / text to image", "R@10 / chance", "largest change", "share trained"
ACCURACY, NEAREST = "accuracy", "nearest label right"
# Chosen on seed 1000 (1001 confirmed it): width 64 as in the protocol for a small machine, longer later steps than the first.
WIDTH, FEEDFORWARD, RATE, FIRST, NEXT, BRIEF, ASKED = 64, 512, 2e-3, 300, 500, 100, 200


def _settings(seed: int, smoke: bool) -> Settings:
    return Settings(*((5, 5) if smoke else (FIRST, NEXT)), WIDTH, FEEDFORWARD, RATE, seed)


def _protocol(views: Views, settings: Settings) -> Iterator[Row]:
    """Step 1, the later steps, and what they are compared with."""
    begin = time.perf_counter()
    model = aligned(views, settings)
    texts = views.recall(model, "text", "image")
    yield Row.of(views.name, TEXT, R10, texts, seconds=time.perf_counter() - begin)
    before = {view: encode(model, views.views[view][2], view).vectors for view in ("image", "text")}
    for arm, modality, count, shuffled in (
        (ONE, "audio", None, False),
        (FEW, "audio", 200, False),
        (SHUFFLED, "audio", None, True),
        (VIDEO, "video", None, False),
    ):
        if modality not in views.views:
            continue
        begin = time.perf_counter()
        grown = copy.deepcopy(model)
        pairs = views.pairs(modality, "text", count, shuffled=shuffled)
        next_step(grown, modality, views.widths[modality], pairs, stage=settings.stages[1], **settings.options)
        found = views.recall(grown, modality, "image")
        yield Row.of(views.name, arm, R10, found, seconds=time.perf_counter() - begin)
        yield Row(views.name, arm, OVER, float(found.mean() / views.chance))
        yield Row(views.name, arm, RATIO, float(found.mean() / max(texts.mean(), 1e-9)))
        moved = [(encode(grown, views.views[view][2], view).vectors - old).abs().max() for view, old in before.items()]
        yield Row(views.name, arm, MOVED, float(max(moved)))
        if arm == ONE:
            yield Row(views.name, arm, SHARE, 1 - _size(model) / _size(grown))
    for arm, made in ((FRESH, fresh(views, settings, 200)), (JOINT, joint(views, settings))):
        yield Row.of(views.name, arm, R10, views.recall(made, "audio", "image"))


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _sounds(data: Data, seed: int) -> Iterator[Row]:
    """The pocket space learns the training recordings; the test recordings are asked for."""
    from chiasm.encode import load

    folder = data.folder("esc10_sounds")
    if folder is None:
        return
    data.folder("audio_captions_texts")
    material = Material(folder.parent, load("pocket", device="cpu"), digits=0, each=2 if data.smoke else None)
    recipe = replace(Recipe(), steps=5) if data.smoke else Recipe()
    trained, tested = (material.sounds.where(split={part}) for part in ("train", "test"))
    labels = material.kinds_of_sounds()
    named = [replace(one, kind=kind) for one, kind in zip(trained.recordings, _mixed(trained.kinds, seed))]
    for arm, heard in ((BY_LABEL, trained), (RANDOM, replace(trained, recordings=named))):
        found = vectors(teach(heard, material.texts, material.other_texts, recipe, seed), tested)
        asked = {arm: labels} | ({BY_WORDS: material.words} if arm == BY_LABEL else {})
        for name, queries in asked.items():
            values = search(found, tested.kinds, queries).values
            for metric, column in (("R@1", "hit@1"), ("R@5", "hit@5"), ("mAP", "map")):
                yield Row.of(SOUNDS, name, metric, values[column])
        yield Row.of(SOUNDS, arm, NEAREST, nearest(found, tested.kinds, labels).values["hit@1"])


def _mixed(kinds: np.ndarray, seed: int) -> list[str]:
    return np.random.default_rng(seed).permutation(kinds).tolist()


def _run(seed: int, data: Data) -> Iterator[Row]:
    settings = _settings(seed, data.smoke)
    world = concept_views(WORLD, seed, smoke=data.smoke)
    yield from _protocol(world, settings)
    brief = settings if data.smoke else replace(settings, first=BRIEF, next=BRIEF)
    for fusion, found in operators(world, brief):
        yield Row.of(OPERATORS, fusion, R10, found)
        yield Row(OPERATORS, fusion, OVER, float(found.mean() / world.chance))
    asked = settings if data.smoke else replace(settings, first=ASKED)
    for arm, right in questions(seed, 100 if data.smoke else 1500, asked):
        yield Row.of(QUESTIONS, arm, ACCURACY, right)
    folder = data.folder("digits_audio_image")
    if folder is not None:
        yield from _protocol(Views(DIGITS, digit_views(folder, seed, smoke=data.smoke), 10, seed), settings)
    yield from _sounds(data, seed)


CLAIM = Claim(
    statement="A modality that OneEncoder aligned with texts alone finds pictures it was never paired with, at least five times as "
    "well as by chance and 70% as well as texts do, while the embeddings that were there stay bit for bit.",
    run=_run,
    gates=[
        Gate(WORLD, ONE, None, OVER, "at least", 5.0),
        Gate(WORLD, ONE, None, RATIO, "at least", 0.7),
        Gate(WORLD, ONE, None, MOVED, "at most", 0.0),
        Gate(WORLD, ONE, None, SHARE, "at most", 0.2),
        Gate(WORLD, FEW, FRESH, R10),
        Gate(WORLD, VIDEO, None, OVER, "at least", 5.0),
        Gate(QUESTIONS, "concatenation", "questions alone", ACCURACY, "gain", 0.1),
        Gate(QUESTIONS, "attention", "questions alone", ACCURACY, "gain", 0.1),
        Gate(DIGITS, ONE, None, OVER, "at least", 5.0),
        Gate(DIGITS, ONE, None, RATIO, "at least", 0.7),
        Gate(DIGITS, ONE, None, MOVED, "at most", 0.0),
        Gate(SOUNDS, BY_LABEL, None, NEAREST, "at least", 0.5),
        Gate(SOUNDS, BY_LABEL, RANDOM, "mAP", "gain", 0.3),
        Gate(WORLD, SHUFFLED, None, OVER, "at most", 2.0, control=True),
        Gate(WORLD, SHUFFLED, None, MOVED, "at most", 0.0, control=True),
        Gate(DIGITS, SHUFFLED, None, OVER, "at most", 2.0, control=True),
        Gate(SOUNDS, RANDOM, None, NEAREST, "at most", 0.3, control=True),
    ],
    seeds=(0, 1, 2),
    cpu_seconds=800,
    data=("digits_audio_image", "esc10_sounds", "audio_captions_texts"),
    note="R@10 is the share of right items among the first ten. The pictures and sounds of a set are never paired. Chance is 0.10 for "
    "the nearest label and 0.14 for mAP in esc10_sounds.",
)

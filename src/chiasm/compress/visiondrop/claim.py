"""The claim of VisionDrop: visual scores keep the objects and the answers where random ones lose them, and any question can follow.

A mini LLaVA answers questions about scenes. Every arm has the same schedule; only the scorer differs. Accuracy of a toy hardly
moves when tokens go late (it has read the picture by then), so most of the reduction is behind the encoder and before
layer 1, and the share of object patches that are kept stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.compress.visiondrop import Stage, VisionDrop, schedule
from chiasm.worlds.mini import MiniSettings
from chiasm.worlds.mini_llava import MiniLlava, MiniLlavaSettings, mini_llava, shown, untrained
from chiasm.worlds.questions import Question
from chiasm.worlds.scenes import SceneWorld

AT_16, AT_8, AT_4 = "scenes, 16 of 64 tokens", "scenes, 8 of 64 tokens", "scenes, 4 of 64 tokens"
INSIDE = "scenes, 16 of 64 tokens before layer 1 of the language model"
EARLY = "scenes, all but one image token dropped before a layer"
CACHED = "one picture cut to 8 of 64 tokens before layer 1, questions 2-4"
CROWDED, BLIND = "nine objects, 4 of 64 tokens", "untrained encoder"
CUTS = (1, 3)
TURNS = 4
# Chosen on seed 1000: every arm keeps patches only and their own positions; the visual score is corrected for the causal mask.
COMMON: dict[str, Any] = {"keep_class": False, "positions": "keep"}
VISUAL: dict[str, Any] = COMMON | {"correction": "causal"}
SMOKE = MiniLlavaSettings(
    width=32,
    layers=4,
    heads=2,
    inner=48,
    scenes=64,
    align=2,
    steps=4,
    batch=8,
    eyes=MiniSettings(single=64, scenes=64, single_epochs=1, epochs=1),
)


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed."""
    settings = SMOKE if data.smoke else MiniLlavaSettings()
    mini, n = mini_llava(seed=seed, settings=settings), 12 if data.smoke else 200
    world = settings.world(n, 6_000_000 + seed)
    yield from _single(mini, settings, world)
    yield from _inside(mini, settings, world)
    yield from _reads(mini, settings, world)
    yield from _several(mini, settings, world)
    yield from _crowded(mini, settings, settings.world(n, 7_000_000 + seed, objects=(9, 9)))
    yield from _untrained_eyes(settings, seed, world)


def _arms(layers: int, tokens: int) -> dict[str, VisionDrop | None]:
    stages = schedule(tokens, layers, CUTS, available=64)
    bare = [Stage(stage.layer, stage.count) for stage in stages]
    return {
        "full": None,
        "visual": VisionDrop(stages=stages, **VISUAL),
        "random": VisionDrop(stages=stages, scorer="random", **COMMON),
        "text": VisionDrop(stages=stages, scorer="text", **COMMON),
        "visual, no merging": VisionDrop(stages=bare, **VISUAL),
        "visual, merged by mean": VisionDrop(stages=stages, merge="mean", **VISUAL),
        "visual, as published": VisionDrop(stages=stages),
        "visual, uncorrected": VisionDrop(stages=stages, **COMMON),
        "visual, packed positions": _changed(stages, positions="repack"),
        "visual, with the class token": _changed(stages, keep_class=True),
        "uniform": VisionDrop(stages=stages, scorer="uniform", **COMMON),
        "encoder only": VisionDrop(stages=schedule(tokens, layers, [], available=64), **COMMON),
    }


def _changed(stages: list[Stage], **changes: Any) -> VisionDrop:
    """The method with other settings."""
    options: dict[str, Any] = VISUAL | changes
    return VisionDrop(stages=stages, **options)


def _single(mini: MiniLlava, settings: MiniLlavaSettings, world: SceneWorld) -> Iterator[Row]:
    """Each question alone behind its picture; all ablations at 8 tokens."""
    objects, flat = shown(world) >= 0, _flat(world, settings)
    whole = _answer(mini, world, flat, None, objects)
    for setting, tokens, arms in ((AT_16, 16, 7), (AT_8, 8, 12), (AT_4, 4, 7)):
        for arm, pruner in list(_arms(settings.layers, tokens).items())[:arms]:
            right, recall, seconds = whole if pruner is None else _answer(mini, world, flat, pruner, objects)
            yield Row.of(setting, arm, "accuracy", 100.0 * right, seconds=seconds)
            if pruner is None:
                continue
            yield Row.of(setting, arm, "object recall", 100.0 * recall)
            pruner.attach(mini.model)
            full, less = pruner.flops(8)
            pruner.detach()
            yield Row(setting, arm, "share of FLOPs", less / full)


def _reads(mini: MiniLlava, settings: MiniLlavaSettings, world: SceneWorld) -> Iterator[Row]:
    """Until which layer the picture is still read: only before such layers does it mean anything to drop tokens."""
    flat = _flat(world, settings)
    for layer in range(1, min(4, settings.layers)):
        pruner = VisionDrop(stages=[Stage(layer, 1)], scorer="uniform", **COMMON)
        right = _answer(mini, world, flat, pruner, shown(world) >= 0)[0]
        yield Row.of(EARLY, f"layer {layer}", "accuracy", 100.0 * right)


def _flat(world: SceneWorld, settings: MiniLlavaSettings) -> list[tuple[int, str, str]]:
    """Row of the picture, question and answer; ``TURNS`` a picture."""
    asked = settings.questions(world)
    return [(row, question.text, question.answer) for row, known in enumerate(asked) for question in known[:TURNS]]


def _answer(
    mini: MiniLlava,
    world: SceneWorld,
    flat: list[tuple[int, str, str]],
    pruner: VisionDrop | None,
    objects: np.ndarray,
    batch: int = 64,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Right answers ``[Q]``, share of object patches that the first stage keeps ``[Q]``, and seconds."""
    pictures, right, recall = world.pictures(), [], []
    if pruner is not None:
        pruner.attach(mini.model)
    start = time.perf_counter()
    try:
        for at in range(0, len(flat), batch):
            part = flat[at : at + batch]
            rows = [row for row, _, _ in part]
            given = mini.answers(mini.inputs(pictures[rows], [text for _, text, _ in part]))
            right += [answer == wanted for answer, (_, _, wanted) in zip(given, part)]
            if pruner is not None:
                recall.append(_recall(objects[rows], pruner.cuts_made[0].kept.numpy()))
    finally:
        seconds = time.perf_counter() - start
        if pruner is not None:
            pruner.detach()
    return np.array(right, dtype=float), np.concatenate(recall) if recall else np.ones(len(flat)), seconds


def _recall(objects: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Of the object patches for which there is room among the kept ones, the share that is there."""
    inside = np.take_along_axis(objects, kept.clip(0), axis=1) & (kept >= 0)
    room = np.minimum(objects.sum(axis=1), (kept >= 0).sum(axis=1)).clip(1)
    return inside.sum(axis=1) / room


def _several(mini: MiniLlava, settings: MiniLlavaSettings, world: SceneWorld, batch: int = 32) -> Iterator[Row]:
    """The picture is read and pruned with the first question behind it; the others are asked on its cache."""
    asked = settings.questions(world)
    rows = [row for row, known in enumerate(asked) if len(known) >= TURNS]
    pictures = world.pictures()
    stages = [Stage(1, 8)]  # behind the encoder there is no text, and the scorers would not differ
    arms: dict[str, dict[str, Any]]
    arms = {"visual": VISUAL, "text": COMMON | {"scorer": "text"}, "random": COMMON | {"scorer": "random"}}
    for arm, options in arms.items():
        pruner, right = VisionDrop(stages=stages, **options).attach(mini.model), []
        try:
            for at in range(0, len(rows), batch):
                part = rows[at : at + batch]
                right.append(_conversations(mini, pruner, pictures[part], [asked[row][:TURNS] for row in part]))
        finally:
            pruner.detach()
        values = np.concatenate(right) if right else np.zeros(1)
        yield Row.of(CACHED, arm, "accuracy", 100.0 * values)


@torch.no_grad()
def _conversations(
    mini: MiniLlava, pruner: VisionDrop, pictures: np.ndarray, asked: list[list[Question]]
) -> np.ndarray:
    """Right answers to all questions but the first, ``[pictures * (questions - 1)]``."""
    first = mini.inputs(pictures, [known[0].text for known in asked])
    words = first["input_ids"].shape[1]
    place = (first["attention_mask"].cumsum(1) - 1).clamp_min(0)
    read = mini.model(**first, position_ids=place, use_cache=True)
    names = {number: word for word, number in mini.words.items()}
    hits = []
    for turn in range(1, len(asked[0])):
        rows = [mini.ids(known[turn].text) for known in asked]
        longest = max(map(len, rows))
        new = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.cat([first["attention_mask"], (new != 0).long()], dim=1)
        cache = pruner.fork(read.past_key_values)
        out = mini.model(
            input_ids=new,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0)[:, words:],
            past_key_values=cache,
        )
        best = out.logits[:, -1].argmax(dim=-1)
        hits.append([names[int(i)] == known[turn].answer for i, known in zip(best, asked)])
    return np.array(hits, dtype=float).T.reshape(-1)


def _crowded(mini: MiniLlava, settings: MiniLlavaSettings, world: SceneWorld) -> Iterator[Row]:
    """Nine things on 64 patches: four tokens cannot show them all, whoever chooses."""
    flat = _flat(world, settings)
    objects = shown(world) >= 0
    for arm, pruner in _arms(settings.layers, 4).items():
        if arm in ("full", "visual", "random"):
            right, recall, _ = _answer(mini, world, flat, pruner, objects)
            yield Row.of(CROWDED, arm, "accuracy", 100.0 * right)
            if pruner is not None:
                yield Row.of(CROWDED, arm, "object recall", 100.0 * recall)


def _untrained_eyes(settings: MiniLlavaSettings, seed: int, world: SceneWorld) -> Iterator[Row]:
    """The class token of a random encoder looks nowhere: what stage 0 keeps is no better than chance.

    The ground is made of patches of other objects; on a plain one even random weights tell objects from it.
    """
    blind, objects = untrained(settings, seed), shown(world) >= 0
    rng = np.random.default_rng(seed)
    n, pictures = len(world), world.pictures()
    cells = pictures.reshape(n, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, 64, 8, 8, 3).copy()
    pool = cells[objects]
    cells[~objects] = pool[rng.integers(0, len(pool), int((~objects).sum()))]
    pictures = cells.reshape(n, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(pictures.shape)
    inputs = blind.inputs(pictures, ["is there"] * n)
    for arm in ("visual", "random"):
        pruner = VisionDrop(stages=[Stage(None, 12)], scorer=arm, keep_class=False).attach(blind.model)
        blind.answers(inputs)
        kept = pruner.cuts_made[0].kept.numpy()
        pruner.detach()
        yield Row.of(BLIND, arm, "object recall", 100.0 * _recall(objects, kept))


def _inside(mini: MiniLlava, settings: MiniLlavaSettings, world: SceneWorld) -> Iterator[Row]:
    """What the scorers find inside the language model, where nothing was dropped before (16 of 64 before layer 1)."""
    objects, asked = shown(world) >= 0, settings.questions(world)
    inputs = mini.inputs(world.pictures(), [known[0].text for known in asked])
    arms: dict[str, dict[str, Any]] = {
        "visual": VISUAL,
        "visual, as published": {},
        "visual, length-corrected": {"correction": "length"},
        "visual, bidirectional": {"bidirectional": True},
        "text": {"scorer": "text"},
        "norm": {"scorer": "norm"},
        "random": {"scorer": "random"},
    }
    for arm, options in arms.items():
        pruner = VisionDrop(stages=[Stage(1, 16)], **options).attach(mini.model)
        mini.answers(inputs)
        kept = pruner.cuts_made[0].kept.numpy()
        pruner.detach()
        yield Row.of(INSIDE, arm, "object recall", 100.0 * _recall(objects, kept))
        yield Row(INSIDE, arm, "mean kept place", float(kept.mean()))


CLAIM = Claim(
    statement="Image tokens chosen by what they mean to each other keep the objects and the answers at a fraction of the cost, "
    "for any question.",
    run=run,
    gates=(
        Gate(AT_8, "visual", "random", "object recall", "gain", 15.0),
        Gate(INSIDE, "visual", "random", "object recall", "gain", 15.0),
        Gate(AT_8, "visual", "random", "accuracy", "gain", 5.0),
        Gate(AT_16, "visual", "full", "accuracy", "at least", -5.0),
        Gate(AT_4, "visual", "visual, no merging", "accuracy", "at least", 0.0),
        Gate(AT_16, "visual", None, "share of FLOPs", "at most", 0.5),
        Gate(CACHED, "visual", "text", "accuracy", "gain", 5.0),
        Gate(CROWDED, "visual", "full", "accuracy", "at most", -2.0, control=True),
        Gate(BLIND, "visual", "random", "object recall", "within", 10.0, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=600,
    note="The mini vision-language models are trained by the claim where they are not cached yet (about 160 s each, 65 of them "
    "for their eyes). Object recall is of the first cut. A model this small reads the picture in its first layer (see the rows "
    "where everything is dropped before a layer), so what is dropped inside the language model, and by whose score, hardly moves "
    "an answer.",
)

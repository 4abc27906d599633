"""Real captions without pixels: what the claim measures on ``caption_tests``.

Another caption of the same photograph stands for the picture. The text encoder is frozen MiniLM; small towers over its token
states learn from captions of photographs that the test does not contain.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chiasm.claims import Data, Row
from chiasm.learn.features import Features
from chiasm.learn.held_out import Encoded, encode
from chiasm.learn.objectives.structure_clip.columns import Structure, with_others, with_structure, with_triples
from chiasm.learn.objectives.structure_clip.evaluation import pair_accuracy
from chiasm.learn.objectives.structure_clip.knowledge import KnowledgeEncoder, KnowledgeTower
from chiasm.learn.objectives.structure_clip.objective import StructureCLIP
from chiasm.learn.pairs import OnePerGroup, Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.towers import Tower, dual_tower
from chiasm.learn.training import train
from chiasm.learn.words import Words

KINDS = {"swap_obj": "swapped objects", "swap_att": "swapped attributes"}
STEPS, RATE, WIDTH = 100, 1e-3, 64
_PHOTOGRAPHS = 700  # to train with; two pairs of captions each
_HELD_OUT = 400  # photographs of the retrieval test


@dataclass(frozen=True)
class Item:
    """A test: which of two sentences fits the other captions of the photograph."""

    kind: str
    references: tuple[str, ...]
    true: str
    false: str


@dataclass(frozen=True)
class Captions:
    """Pairs of captions of one photograph (first, second, photograph) to train and to search, and the tests."""

    trained: list[tuple[str, str, int]]
    searched: list[tuple[str, str, int]]
    items: list[Item]


def load(data: Data) -> Captions | None:
    """The captions, or None where the set is not on this machine. No photograph of a test is trained with."""
    folder = data.folder("caption_tests")
    return (
        None if folder is None else _read(folder, 40 if data.smoke else _PHOTOGRAPHS, 40 if data.smoke else _HELD_OUT)
    )


@lru_cache(maxsize=1)
def _read(folder: Path, photographs: int, held_out: int) -> Captions:
    captions = {line["image"]: line["captions"] for line in _lines(folder / "coco_val2017_captions.jsonl.gz")}
    tests = [t for t in _lines(folder / "sugarcrepe.jsonl.gz") if t["image"] in captions]
    tested = {t["image"] for t in tests}
    free = [image for image in sorted(captions) if image not in tested]
    chosen = np.random.default_rng(0).permutation(len(free))[: photographs + held_out]
    pairs = [[(captions[free[i]][k], captions[free[i]][k + 1], int(i)) for k in (0, 2)] for i in chosen]
    items = []
    for test in tests:
        others = tuple(c for c in captions[test["image"]] if _plain(c) != _plain(test["caption"]))[:2]
        if test["kind"] in KINDS and others:
            items.append(Item(test["kind"], others, test["caption"], test["negative"]))
    trained = [pair for two in pairs[:photographs] for pair in two]
    return Captions(trained, [two[0] for two in pairs[photographs:]], items if photographs > 100 else items[-60:])


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


class Tokens:
    """Frozen MiniLM: token states of sentences, each computed once."""

    def __init__(self) -> None:
        from chiasm.encode.pocket import build

        self.model = build("cpu").eval()
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> Features:
        """Features ``input_features`` of lower-case sentences, at most 32 tokens."""
        texts = [text.lower() for text in texts]
        new = sorted({t for t in texts if t not in self.known}, key=len)
        for start in range(0, len(new), 128):
            part = new[start : start + 128]
            with torch.inference_mode():
                out = self.model({**self.model.preprocess(part), "task": "text"})
            states, mask = out["token_embeddings"][:, :32].half().numpy(), out["attention_mask"][:, :32].bool().numpy()
            self.known |= {text: state[seen] for text, state, seen in zip(part, states, mask)}
        return Features.ragged("input_features", [self.known[text] for text in texts])


@lru_cache(maxsize=1)
def tokens() -> Tokens:
    """One encoder for all seeds and arms."""
    return Tokens()


def rows(seed: int, found: Captions, setting: str, arms: tuple[str, ...]) -> Iterator[Row]:
    """Rows of plain, random, semantic negatives and (with a fourth name) knowledge besides; and of MiniLM itself."""
    first, second, photograph = (list(part) for part in zip(*found.trained))
    pairs = Pairs({"a": tokens()(first), "b": tokens()(second)}, groups=np.array(photograph))
    structure = Structure.of(second)
    # Two negatives a caption at most: each costs a pass through the frozen encoder once.
    structure = replace(structure, negatives=[n[:1] + n[-1:] if len(n) > 1 else n for n in structure.negatives])
    words = Words.of(second, least=2)
    nothing = Structure(structure.graphs, [[] for _ in second])
    made = (
        lambda: with_structure(pairs, second, tokens(), structure=nothing),
        lambda: with_others(pairs, seed),
        lambda: with_structure(pairs, second, tokens(), structure=structure, seed=seed),
        lambda: with_structure(pairs, second, tokens(), words=words, structure=structure, seed=seed),
    )
    for place, (arm, make) in enumerate(zip(arms, made)):
        known, trained = place == 3, make()
        model, objective = _fit(trained, words, known, seed, STEPS if len(second) > 200 else 10)
        yield from _judge(model, objective, found, words if known else None, setting, arm)
    yield from _judge(None, StructureCLIP(), found, None, setting, "MiniLM, nothing trained")


def _fit(pairs: Pairs, words: Words, known: bool, seed: int, steps: int) -> tuple[Any, StructureCLIP]:
    torch.manual_seed(seed)
    tower: Any = Tower(384, width=WIDTH, layers=1, positions=32, position_std=0.5)
    second = KnowledgeTower([tower], KnowledgeEncoder(len(words), width=WIDTH), words=words) if known else tower
    model, objective = dual_tower(tower, second), StructureCLIP(fused=known)
    assert pairs.groups is not None
    train(
        model,
        pairs,
        objective,
        Stage(steps=steps, rate=RATE),
        batch_size=64,
        seed=seed,
        sampler=OnePerGroup(pairs.groups, 64, seed),
        routes={"negative": "b"},
    )
    return model, objective


def _encoded(model: Any, texts: Sequence[str], route: str, words: Words | None) -> Encoded:
    source = tokens()(texts)
    if model is None:  # MiniLM's own vectors: the mean of the token states
        batch = source.batch(range(len(source)))
        seen = batch["attention_mask"].unsqueeze(-1)
        return Encoded((batch["input_features"] * seen).sum(1) / seen.sum(1))
    if words is not None and route == "b":
        source = with_triples(source, Structure.of(texts, ()).graphs, words)
    return encode(model, source, route)


def _judge(
    model: Any, objective: StructureCLIP, found: Captions, words: Words | None, setting: str, arm: str
) -> Iterator[Row]:
    for kind, metric in KINDS.items():
        items = [item for item in found.items if item.kind == kind]
        if not items:
            continue
        item_of = np.repeat(np.arange(len(items)), [len(item.references) for item in items])
        a = _encoded(model, [text for item in items for text in item.references], "a", words)
        scores = []
        for texts in ([item.true for item in items], [item.false for item in items]):
            b = _encoded(model, texts, "b", words)
            each = objective.paired(a, replace(b, vectors=b.vectors[item_of], tokens=None, mask=None)).numpy()
            scores.append(np.bincount(item_of, each) / np.bincount(item_of))
        yield Row.of(setting, arm, metric, 100.0 * pair_accuracy(*scores).hits)
    first, second, _ = (list(part) for part in zip(*found.searched))
    a, b = _encoded(model, first, "a", words), _encoded(model, second, "b", words)
    ranks = objective.similarity(a, b).numpy()
    own = ranks[np.arange(len(ranks)), np.arange(len(ranks))][:, None]
    yield Row.of(setting, arm, "R@1", 100.0 * ((ranks >= own).sum(1) == 1))

"""The claim of HiCroPL: prompts in both towers that inform each other raise the accuracy on the classes they were tuned on, and
do not cost it on classes never seen.

A mini dual encoder is trained on plain scenes and then frozen; the downstream domain has colors drawn toward their inverse and
cluttered grounds. 20 base classes with 8 pictures each, 20 novel ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from chiasm.adapt.hicropl.adapter import HiCroPL
from chiasm.adapt.hicropl.classifier import PromptedClassifier
from chiasm.adapt.hicropl.protocol import BaseToNovel, base_to_novel
from chiasm.adapt.hicropl.tuning import tune
from chiasm.claims import Claim, Data, Gate, Row
from chiasm.worlds.mini import MiniClip
from chiasm.worlds.shifted_shapes import Domain, encoder, make_domain

SHIFTED, PLAIN = "shifted domain", "no shift"
ZERO, METHOD, COOP, PERMUTED = "zero-shot", "hicropl", "text prompts only (CoOp)", "base labels permuted"
INDEPENDENT = "independent prompts"

# Sentences of the scenes the encoder was trained on; it knows no full stop and few other words.
SENTENCES = ("a {}", "there is a {}", "a large {}", "a small {}", "a medium plain {}")
# Chosen on seeds 1000 and 1001: of 4 and 8 tokens, lambda 0, 0.3, 1 and 12, rates 1e-3 to 6e-3, k = 1 to 3, all with 20 epochs;
# 10 epochs, which save half of the time, were tried there at rates 2.5e-3 and 4e-3.
TOKENS, EPOCHS, RATE, DISTILL = 8, 10, 2.5e-3, 1.0

# Arm -> settings of the adapter, and of the classifier.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    METHOD: ({}, {}),
    COOP: ({"depth": 1, "towers": ("text",)}, {"mix": False, "distill": 0.0}),
    INDEPENDENT: ({"flow": "none"}, {}),
    "text to vision only": ({"flow": "text_to_vision"}, {}),
    "vision to text only": ({"flow": "vision_to_text"}, {}),
    "no proxies": ({"proxies": False}, {}),
    "same layer only": ({"every_layer": False}, {}),
    "lambda 0": ({}, {"distill": 0.0}),
    "lambda 12": ({}, {"distill": 12.0}),
    "no mixing": ({}, {"mix": False}),
    "k = 0": ({"cross_layer": 0}, {}),
    "k = 4": ({"cross_layer": 4}, {}),
}


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed; a seed has its own encoder, classes, pictures and first values."""
    small = data.smoke
    mini = encoder(seed, small)
    size = {"classes": 12, "shots": 2, "tests": 4, "scenes": 1024} if small else {}
    epochs = 1 if small else EPOCHS
    shifts: dict[str, dict[str, Any]] = {SHIFTED: {}, PLAIN: {"invert": 0.0, "clutter": 0}}
    for setting, shift in shifts.items():
        task = Task.of(mini, make_domain(mini, seed, **shift, **size))
        yield from rows(setting, ZERO, *measured(task, {"tokens": 0}, {}, epochs=0, seed=seed))
        for arm in ARMS if setting == SHIFTED else (METHOD,):
            yield from rows(setting, arm, *measured(task, *ARMS[arm], epochs=epochs, seed=seed))
        yield from rows(setting, PERMUTED, *measured(task, *ARMS[METHOD], epochs=epochs, seed=seed, permute=True))


@dataclass(frozen=True)
class Task:
    """A domain, with the frozen vectors of its test pictures, which all arms share."""

    mini: MiniClip
    domain: Domain
    frozen: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, mini: MiniClip, domain: Domain) -> Task:
        plain = PromptedClassifier(HiCroPL(tokens=0), mini.model, mini.tokenizer, domain.base)
        return cls(mini, domain, (plain.frozen_images(domain.base_test[0]), plain.frozen_images(domain.novel_test[0])))


def measured(
    task: Task,
    adapter: dict[str, Any],
    options: dict[str, Any],
    *,
    epochs: int,
    seed: int,
    rate: float = RATE,
    permute: bool = False,
) -> tuple[BaseToNovel, float]:
    """Tunes one arm on the base shots; accuracies, and the seconds of tuning."""
    domain, model, tokenizer = task.domain, task.mini.model, task.mini.tokenizer
    prompts = HiCroPL(**{"tokens": TOKENS, "seed": seed, **adapter})
    options = {"sentence": "a {}", "distill": DISTILL, **options}
    classifier = PromptedClassifier(prompts, model, tokenizer, domain.base, _described, **options)
    pictures, labels = domain.shots
    if permute:
        labels = np.random.default_rng(seed).permutation(labels)
    start = time.perf_counter()
    if epochs:
        tune(classifier, pictures, labels, epochs=epochs, rate=rate, seed=seed)
    seconds = time.perf_counter() - start
    classifier.eval()
    novel = classifier.with_classes(domain.novel, _described)
    found = base_to_novel(classifier, novel, *domain.base_test, *domain.novel_test, frozen_images=task.frozen)
    return found, seconds


def _described(name: str) -> list[str]:
    return [sentence.replace("{}", name) for sentence in SENTENCES]


def rows(setting: str, arm: str, found: BaseToNovel, seconds: float) -> Iterator[Row]:
    """Accuracies, and which share of the pictures of novel classes gets the most frequent answer (5 % if all 20 are as frequent)."""
    yield Row.of(setting, arm, "base", 100.0 * found.base_hits, seconds=seconds)
    yield Row.of(setting, arm, "novel", 100.0 * found.novel_hits)
    yield Row(setting, arm, "harmonic mean", found.harmonic)
    yield Row(
        setting, arm, "most frequent answer", 100.0 * float(found.novel_answers.max() / found.novel_answers.sum())
    )


CLAIM = Claim(
    statement="Prompts in both towers that inform each other raise the accuracy on the few-shot classes and keep it on classes never seen.",
    run=run,
    gates=(
        Gate(SHIFTED, METHOD, ZERO, "base", "gain", 5.0),
        Gate(SHIFTED, METHOD, COOP, "harmonic mean", "gain", 2.0),
        Gate(SHIFTED, METHOD, ZERO, "novel", "at least", -2.0),
        Gate(SHIFTED, METHOD, INDEPENDENT, "harmonic mean", "at least", 0.0),
        Gate(SHIFTED, METHOD, PERMUTED, "novel", "gain", 2.0),
        Gate(SHIFTED, PERMUTED, ZERO, "novel", "at most", 1.0),
        Gate(PLAIN, METHOD, ZERO, "novel", "at least", -2.0),
        Gate(PLAIN, METHOD, ZERO, "novel", "at most", 2.0, control=True),
        Gate(PLAIN, PERMUTED, ZERO, "novel", "at most", 1.0, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=500,
    note="The control that permuted labels gain nothing over zero-shot does not hold under the shift (seen on seeds 1000 and 1001): the "
    "pictures of the domain teach something whatever they are called. Part of it may be that zero-shot gives one answer to many of them, "
    "which tuning breaks up (row 'most frequent answer'), though not on every seed. It stays as an ordinary gate, and the control on wrong "
    "labels is the one without a shift. That the method is as good as independent prompts, and costs nothing on novel classes without a "
    "shift, are gates of our own. Of the CPU seconds 80 a seed are the training of its mini dual encoder, which other claims share. No "
    "pre-trained CLIP is at hand offline, so there is no row on photographs.",
)

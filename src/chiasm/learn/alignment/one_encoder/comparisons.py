"""What the claim sets beside the progressive protocol: a fresh encoder, joint training, the six operators, questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.learn.alignment.one_encoder.encoder import OneEncoder, as_model
from chiasm.learn.alignment.one_encoder.fusion import FUSIONS
from chiasm.learn.alignment.one_encoder.objective import OneEncoderLoss
from chiasm.learn.alignment.one_encoder.protocol import first_step, next_step
from chiasm.learn.alignment.one_encoder.questions import FUSIONS as READINGS
from chiasm.learn.alignment.one_encoder.questions import AnswerHead, Reading
from chiasm.learn.alignment.one_encoder.views import Views
from chiasm.learn.alignment.one_encoder.world import KINDS, concept_view, question_view
from chiasm.learn.features import Features
from chiasm.learn.held_out import encode
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import train


@dataclass(frozen=True)
class Settings:
    """Sizes and times of one run.

    Args:
        first, next: training steps of step 1 and of the later steps.
        width, feedforward: of the encoder.
        rate: peak learning rate.
        seed: of the training.
    """

    first: int
    next: int
    width: int
    feedforward: int
    rate: float
    seed: int

    def model(self, views: Views, *modalities: str, **options: Any) -> Any:
        """A new model of some modalities of a set."""
        torch.manual_seed(self.seed)
        widths = {modality: views.widths[modality] for modality in modalities}
        return as_model(OneEncoder(widths, width=self.width, feedforward=self.feedforward, **options), device="cpu")

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """Of step 1 and of the later steps."""
        return Stage("step 1", steps=self.first, rate=self.rate), Stage("step k", steps=self.next, rate=self.rate)

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of `chiasm.learn.train`."""
        return {"seed": self.seed, "device": "cpu", "log_every": 10_000}


def aligned(views: Views, settings: Settings, **options: Any) -> Any:
    """A model after step 1. Batches are random: equal kinds in one are positives of each other, not false negatives."""
    model = settings.model(views, "image", "text", **options)
    first_step(model, views.pairs("image", "text"), stage=settings.stages[0], sampler=None, **settings.options)
    return model


def fresh(views: Views, settings: Settings, count: int) -> Any:
    """The baseline: a new encoder with a projection of its own, trained on a few pairs of sound and text alone; its pictures come
    to the texts as in a later step, with all pairs of picture and text.
    """
    model = settings.model(views, "audio", "text")
    routes = {"a": "audio", "b": "text"}
    heard = views.pairs("audio", "text", count)
    train(model, heard, OneEncoderLoss(), settings.stages[1], routes=routes, batch_size=64, **settings.options)
    stage = settings.stages[0]
    next_step(model, "image", views.widths["image"], views.pairs("image", "text"), stage=stage, **settings.options)
    return model


class Together(nn.Module):
    """Both losses at once: column ``a`` and column ``c`` each against the texts of column ``b``."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = OneEncoderLoss()

    def forward(self, a: Tensor, b: Tensor, c: Tensor, *, groups: Any = None) -> dict[str, Tensor]:
        """Loss parts of both, each ``[N, D]``."""
        seen, heard = self.loss(a, b, groups=groups), self.loss(c, b, groups=groups)
        return {f"a_{name}": part for name, part in seen.items()} | {f"c_{name}": part for name, part in heard.items()}


def joint(views: Views, settings: Settings) -> Any:
    """Not progressive: pictures, texts and sounds at once, with the steps of step 1; sound and picture are never compared."""
    model = settings.model(views, "image", "text", "audio")
    pairs = views.pairs("image", "text", also=("audio",))
    routes = {"a": "image", "b": "text", "c": "audio"}
    train(model, pairs, Together(), settings.stages[0], routes=routes, batch_size=64, **settings.options)
    return model


def operators(views: Views, settings: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """Each of the six operators, and what sound to picture finds with it after shorter training."""
    for fusion in FUSIONS:
        model = aligned(views, settings, fusion=fusion)
        heard = views.pairs("audio", "text")
        next_step(model, "audio", views.widths["audio"], heard, stage=settings.stages[1], **settings.options)
        yield fusion, views.recall(model, "audio", "image")


def questions(seed: int, count: int, settings: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """Whether answers about pictures are right, bool, with both heads; and where the pictures belong to other questions."""
    trained = _asked(seed, count)
    tested = _asked(seed + 50_000, max(count // 4, 60))
    other = np.random.default_rng(seed).permutation(count)
    blind = replace(trained, rows={**trained.rows, "b": trained.rows["b"][other]})
    arms: list[tuple[str, Pairs, Reading]] = [(name, trained, name) for name in READINGS]
    arms.append(("questions alone", blind, "concatenation"))
    for arm, pairs, reading in arms:
        torch.manual_seed(seed)
        widths = {view: _width(pairs.source(column)) for column, view in (("a", "text"), ("b", "image"))}
        # As in the paper's network, two layers; the width is that of the other rows.
        encoder = OneEncoder(widths, width=settings.width, feedforward=settings.feedforward, layers=2)
        model, head = as_model(encoder, device="cpu"), AnswerHead(12, settings.width, fusion=reading)
        train(
            model,
            pairs,
            head,
            settings.stages[0],
            routes={"a": "text", "b": "image"},
            batch_size=64,
            weight_decay=1e-3,
            **settings.options,
        )
        a, b = encode(model, tested.source("a"), "text"), encode(model, tested.source("b"), "image")
        with torch.no_grad():
            guess = head.eval().scores(a.vectors, b.vectors, a.tokens, a.mask, b.tokens, b.mask).argmax(1).numpy()
        yield arm, guess == tested.per_pair["answers"]


def _width(source: Any) -> int:
    return source.dense["input_features"].shape[-1]


def _asked(seed: int, count: int) -> Pairs:
    """Questions (``a``) about pictures (``b``), and the number of the right answer of each."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(KINDS, size=count)
    asked, answers = question_view(kinds, rng)
    image: Features = concept_view("image", kinds, seed)
    return Pairs({"a": asked, "b": image}, per_pair={"answers": answers})

"""`TextBridge`: class scores of a picture -> a vector in the space of a text encoder, without any paired data.

A picture becomes the probability-weighted mean of the *text* embeddings of its most probable classes, as ConSE does
with word vectors (Norouzi and others, "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014,
arXiv:1312.5650): ``v = normalize(sum_{c in top k} p_c t_c)`` with ``p = softmax(logits / temperature)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.blocks.saved import Saved
from chiasm.embeddings import unit
from chiasm.errors import BadInput

# Chosen on the training parts of photo_captions_en_mini and clothing_photos; see docs/relevance.md.
TOP = 30
TEMPERATURE = 1.25
PLAIN_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class ClassName:
    """One ImageNet class: its ``name`` and ``plain`` everyday words for what it is, from near to wide."""

    name: str
    plain: tuple[str, ...]


@lru_cache(maxsize=1)
def class_names() -> tuple[ClassName, ...]:
    """The 1000 classes in the order of the network's outputs, from ``classes.txt``."""
    text = resources.files("chiasm.encode.pocket").joinpath("classes.txt").read_text(encoding="utf-8")
    lines = (line.split("|") for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(ClassName(name.strip(), tuple(w.strip() for w in plain.split(","))) for name, plain in lines)


def with_article(name: str) -> str:
    """``"cat"`` -> ``"a cat"``."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


# A name is embedded in several sentences and averaged; one sentence alone leaves its own words in the vector.
PROMPTS: tuple[Callable[[str], str], ...] = (lambda name: f"a photo of {with_article(name)}", with_article)


def class_texts(encode: Callable[[Sequence[str]], np.ndarray], plain_weight: float = PLAIN_WEIGHT) -> np.ndarray:
    """The text vector of each class, float32 ``[1000, D]`` of unit length.

    Args:
        encode: texts -> unit vectors ``[N, D]``.
        plain_weight: weight of the mean over the plain words beside the name (0 = the name alone).
    """
    classes = class_names()
    names = _average([c.name for c in classes], encode)
    words = sorted({word for c in classes for word in c.plain})
    vectors = dict(zip(words, _average(words, encode)))
    plain = unit(np.stack([np.mean([vectors[word] for word in c.plain], axis=0) for c in classes]))
    return unit((1 - plain_weight) * names + plain_weight * plain)


def _average(names: Sequence[str], encode: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    return unit(np.mean([unit(encode([prompt(name) for name in names])) for prompt in PROMPTS], axis=0))


def shipped_class_texts() -> np.ndarray:
    """What `class_texts` gives with all-MiniLM-L6-v2, float32 ``[1000, 384]``, read from ``class_texts.safetensors``.

    The file holds float16 values of our own computing, so that building the space does not encode 1,800 texts.
    """
    from safetensors.numpy import load

    blob = resources.files("chiasm.encode.pocket").joinpath("class_texts.safetensors").read_bytes()
    return unit(load(blob)["texts"])


class TextBridge(Saved):
    """Features in: ``class_logits`` ``[N, C]``. Features out: ``sentence_embedding`` float32 ``[N, D]``, unit length.

    Args:
        classes: number of classes C.
        dim: length of a text vector D.
        top: how many of the best classes are mixed.
        temperature: divides the logits; below 1 the best class dominates.

    Raises:
        BadInput: ``top`` or ``temperature`` is out of range.
    """

    config_keys: list[str] = ["classes", "dim", "top", "temperature"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, classes: int = 1000, dim: int = 384, top: int = TOP, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        if not 1 <= top <= classes:
            raise BadInput(f"top is {top}", where="TextBridge", fix=f"Use a value in 1 .. {classes}")
        if temperature <= 0:
            raise BadInput(f"temperature is {temperature}", where="TextBridge", fix="Use a value above 0")
        self.classes, self.dim, self.top, self.temperature = classes, dim, top, temperature
        self.texts: Tensor
        self.register_buffer("texts", torch.zeros(classes, dim))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        best = (features["class_logits"].float() / self.temperature).topk(self.top, dim=1)
        weights = best.values.softmax(dim=1)
        mixed = torch.einsum("nk,nkd->nd", weights, self.texts[best.indices])
        features["sentence_embedding"] = torch.nn.functional.normalize(mixed, dim=1)
        return features

    def get_embedding_dimension(self) -> int:
        return self.dim

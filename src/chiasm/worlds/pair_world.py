"""`PairWorld`: paired vectors and the truth about them, and the steps from which the generators in `pairs` are made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput

VERSION = 1


@dataclass(frozen=True)
class PairWorld:
    """Paired vectors and what is wrong with them.

    Args:
        kind: the generator's name.
        fault: ``"none"``, ``"cone"``, ``"popularity"``, ``"clusters"``, ``"gap"``, ``"noise"``, ``"image_only"`` or
            ``"channels"``.
        text, image: float32 ``[N, Dt]`` and ``[N, Di]``, the test pairs.
        bank_text, bank_image: float32 ``[B, Dt]`` and ``[B, Di]``, further pairs of the same kind (train or validation).
        partner: int ``[N]``: the row of ``image`` that truly belongs to each text, -1 if that image is not in the world.
        bank_partner: int ``[B]``, likewise for the bank.
        noisy: bool ``[N]``, True where row i of text and image do not belong together.
        bank_noisy: bool ``[B]``, likewise for the bank.
        comparable: True if text and image vectors lie in one space.
        truth: further arrays per row, such as ``cluster``, ``popularity`` or ``labels``; those of the bank begin with
            ``bank_``.
        seed, parameters, version: what makes this world again.
    """

    kind: str
    fault: str
    text: np.ndarray
    image: np.ndarray
    bank_text: np.ndarray
    bank_image: np.ndarray
    partner: np.ndarray
    bank_partner: np.ndarray
    noisy: np.ndarray
    bank_noisy: np.ndarray
    comparable: bool
    seed: int
    parameters: dict[str, Any]
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    version: int = VERSION

    def __len__(self) -> int:
        return len(self.text)

    def to_json(self) -> dict[str, Any]:
        """What makes this world again, and its sizes."""
        sizes = {
            "n": len(self),
            "bank": len(self.bank_text),
            "text_dim": self.text.shape[1],
            "image_dim": self.image.shape[1],
        }
        return {
            "kind": self.kind,
            "fault": self.fault,
            "version": self.version,
            "seed": self.seed,
            "parameters": self.parameters,
            **sizes,
            "comparable": self.comparable,
            "noisy_pairs": int(self.noisy.sum()),
            "noisy_bank_pairs": int(self.bank_noisy.sum()),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, as they are written to disk."""
        names = ("text", "image", "bank_text", "bank_image", "partner", "bank_partner", "noisy", "bank_noisy")
        return {name: getattr(self, name) for name in names} | self.truth


def generator(seed: int, n: int, bank: int) -> np.random.Generator:
    """The random generator of a world; refuses sizes that make no world."""
    if n < 1 or bank < 0:
        raise BadInput(f"n={n} and bank={bank}", where="pairs", fix="Take at least one pair and no negative bank")
    return np.random.Generator(np.random.PCG64(seed))


def axis_of(rng: np.random.Generator, dim: int) -> np.ndarray:
    """A random direction ``[dim]`` of unit length."""
    axis = rng.standard_normal(dim)
    return axis / np.linalg.norm(axis)


def views(rng: np.random.Generator, n: int, dim: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Two noisy views of a common latent z ~ N(0, I), float64 ``[n, dim]`` each."""
    z = rng.standard_normal((n, dim))
    return z + noise * rng.standard_normal((n, dim)), z + noise * rng.standard_normal((n, dim))


def build(
    kind: str,
    fault: str,
    text: np.ndarray,
    image: np.ndarray,
    n: int,
    seed: int,
    parameters: dict[str, Any],
    *,
    comparable: bool = True,
) -> PairWorld:
    """Splits rows into test and bank; comparable views are scaled to unit length."""
    text, image = (
        unit(view) if comparable or kind == "channels" else view.astype(np.float32) for view in (text, image)
    )
    own, bank_own = np.arange(n), np.arange(len(text) - n)
    none, bank_none = np.zeros(n, dtype=bool), np.zeros(len(text) - n, dtype=bool)
    return PairWorld(
        kind,
        fault,
        text[:n],
        image[:n],
        text[n:],
        image[n:],
        own,
        bank_own,
        none,
        bank_none,
        comparable,
        seed,
        parameters,
    )


def with_truth(world: PairWorld, n: int, fixed: dict[str, np.ndarray] | None = None, **rows: np.ndarray) -> PairWorld:
    """The world with further truth: ``rows`` are split like the pairs, ``fixed`` is kept whole."""
    truth = {**world.truth, **(fixed or {})}
    for name, values in rows.items():
        truth |= {name: values[:n], f"bank_{name}": values[n:]}
    return replace(world, truth=truth)


def shuffled(world: PairWorld, rate: float, rng: np.random.Generator, *, test: bool = True) -> PairWorld:
    """Permutes the images of a share of the pairs among themselves, in the bank and (``test``) among the test pairs.

    Per-row truth belongs to the texts' rows and stays where it is.
    """
    if not 0 <= rate <= 1:
        raise BadInput(f"rate={rate} is outside 0..1", where="pairs")
    changes: dict[str, Any] = {}
    for image, partner, noise in (("image", "partner", "noisy"), ("bank_image", "bank_partner", "bank_noisy")):
        vectors = getattr(world, image)
        rows = rng.permutation(len(vectors))[: round(rate * len(vectors))]
        source = np.arange(len(vectors))
        source[rows] = rng.permutation(rows)
        if image == "image" and not test:
            continue
        changes |= {image: vectors[source], partner: np.argsort(source), noise: source != np.arange(len(vectors))}
    return replace(world, **changes)

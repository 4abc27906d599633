"""Generated samples in which one modality is easy and the other hard, with the truth about both.

`bits` is the trial world of our own; `routed` is the paper's: every sample is told by both modalities, or by one alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput


@dataclass(frozen=True)
class TwoModalities:
    """N samples.

    Args:
        first: float32 ``[N, D]``, the easy modality.
        second: float32 ``[N, D]``, the hard one.
        labels: int64 ``[N]``.
        told_by: int ``[N]``: 0 both modalities tell the label, 1 only the first, 2 only the second.
    """

    first: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    told_by: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def noise(self, seed: int) -> np.ndarray:
        """Rows like ``first`` in mean and spread, but without content: what a broken sensor sends."""
        rng = np.random.default_rng([seed, 1])
        spread = self.first.std(axis=0) * rng.standard_normal(self.first.shape) + self.first.mean(axis=0)
        return spread.astype(np.float32)


def bits(
    n: int,
    *,
    seed: int = 0,
    easy: float = 0.95,
    signal: float = 0.6,
    noise: float = 0.7,
    copies: int = 3,
    inner: int = 40,
    dim: int = 100,
) -> TwoModalities:
    """Four classes of two bits each; the first modality shows them linearly, the second as products of signs.

    Args:
        n: samples.
        seed: decides them and the mixing.
        easy: share of the samples in which the first modality is informative, 0.95.
        signal: size of the first modality's class means beside unit noise, 0.6.
        noise: standard deviation of the noise on the second modality's signs, 0.7.
        copies: entries of the second modality that hold each of the four signs; the others are noise.
        inner: length before mixing, 40.
        dim: length after mixing, 100.
    """
    if n < 1 or not 4 <= 4 * copies <= inner:
        raise BadInput(f"n={n}, copies={copies}, inner={inner}", where="bits")
    mixing = np.random.default_rng([seed, 0])
    means, mix = mixing.standard_normal((4, inner)), mixing.standard_normal((2, inner, dim)) / np.sqrt(inner)
    rng = np.random.default_rng([seed, 2])
    bit = rng.integers(0, 2, (n, 2))
    labels = 2 * bit[:, 0] + bit[:, 1]
    told = rng.random(n) < easy
    first = signal * means[labels] * told[:, None] + rng.standard_normal((n, inner))
    # Each bit is the product of two signs, of which one is drawn and the other follows.
    sign = 2.0 * rng.integers(0, 2, (n, 2)) - 1
    signs = np.stack([sign, sign * (2.0 * bit - 1)], axis=2).reshape(n, 4)
    second = noise * rng.standard_normal((n, inner))
    second[:, : 4 * copies] += np.repeat(signs, copies, axis=1)
    mixed = [(x @ m).astype(np.float32) for x, m in zip((first, second), mix)]
    return TwoModalities(mixed[0], mixed[1], labels.astype(np.int64), np.where(told, 0, 2))


def routed(
    n: int,
    *,
    seed: int = 0,
    shared: float = 0.4,
    only_first: float = 0.4,
    classes: int = 5,
    signal: float = 0.35,
    dim: int = 100,
) -> TwoModalities:
    """The paper's generator: X_i = N_i + T_i(Y), where a sample is told by both modalities, by the first, or by the second.

    Args:
        n: samples.
        seed: decides them and the class means.
        shared: share told by both.
        only_first: share told by the first alone; the rest is told by the second alone.
        classes: 5 as in the paper.
        signal: size of the class means beside unit noise.
        dim: length.
    """
    if n < 1 or min(shared, only_first) < 0 or shared + only_first > 1:
        raise BadInput(f"n={n}, shared={shared}, only_first={only_first}", where="routed")
    means = np.random.default_rng([seed, 0]).standard_normal((2, classes, dim))
    rng = np.random.default_rng([seed, 2])
    labels = rng.integers(0, classes, n)
    told_by = rng.choice(3, n, p=[shared, only_first, 1 - shared - only_first])
    first, second = (
        (signal * m[labels] * (told_by != hidden)[:, None] + rng.standard_normal((n, dim))).astype(np.float32)
        for m, hidden in zip(means, (2, 1))
    )
    return TwoModalities(first, second, labels.astype(np.int64), told_by)

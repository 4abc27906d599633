"""Which pairs belong together: the split by losses, the oscillation of pseudo-predictions, the corrected correspondence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.objectives.pc2.triplet import triplet

# One outlier must not press all other values together before the mixture is fitted.
_CLIP = 0.995
# More values do not change the fit of six numbers.
_MOST = 1_000_000
# Probabilities below this count as this in a divergence; half precision keeps no smaller ones.
_TINY = 1e-6


def pair_losses(
    a: Tensor, b: Tensor, *, margin: float = 0.2, batch: int = 128, groups: Tensor | None = None, seed: int = 0
) -> Tensor:
    """l_i = mean_j [m + s_ij - s_ii]+ + mean_j [m + s_ji - s_ii]+ within random batches, ``[N]``.

    Args:
        a, b: ``[N, D]`` unit rows, pair by pair.
        margin: m.
        batch: pairs a batch; negatives are averaged over it, so its size sets the noise of the losses, not their level.
        groups: int64 ``[N]``; pairs of one group are no negatives of each other.
        seed: decides the batches.
    """
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed)).to(a.device)
    # Parts of nearly equal size: a rest of two pairs would have other losses than the rest.
    parts = torch.tensor_split(order, max(1, round(len(a) / batch)))
    losses = a.new_zeros(len(a))
    for part in parts:
        within = None if groups is None else groups[part]
        losses[part] = triplet(a[part] @ b[part].T, margin, groups=within, negatives="mean")
    return losses


def low_posterior(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Probability of the component with the lower mean in a mixture of two normal distributions, ``[N]``.

    The values are brought to [0, 1] first (the highest 0.5 % are cut off). Beyond the means the probability is made
    monotonic: a wide second component would otherwise turn it around on the far side. Equal values all get 1.

    Args:
        values: ``[N]``, finite.
        seed: of the start of the fit.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise BadInput(f"values of shape {values.shape}, finite ones are needed", where="low_posterior")
    low, high = values.min(), np.quantile(values, _CLIP)
    high = high if high > low else values.max()
    if high - low < 1e-12:
        return np.ones(len(values))
    x = np.clip((values - low) / (high - low), 0, 1)[:, None]
    some = x if len(x) <= _MOST else np.random.default_rng(seed).choice(x, _MOST, replace=False)
    mixture: Any = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    import warnings

    with warnings.catch_warnings():
        # Ten iterations are the method's own choice; values that fill only two points are no fault either.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(some)
    first, second = np.argsort(mixture.means_.ravel())
    posterior = mixture.predict_proba(x)[:, first]
    left, right = mixture.means_[first, 0], mixture.means_[second, 0]
    posterior[x[:, 0] <= left] = np.maximum(posterior[x[:, 0] <= left], _at(mixture, left, first))
    posterior[x[:, 0] >= right] = np.minimum(posterior[x[:, 0] >= right], _at(mixture, right, first))
    return posterior


def _at(mixture: GaussianMixture, place: float, component: int) -> float:
    return float(mixture.predict_proba(np.array([[place]]))[0, component])


def clean_pairs(posterior: np.ndarray, *, threshold: float = 0.5, least: float = 0.01) -> np.ndarray:
    """True where a pair counts as clean, bool ``[N]``.

    Args:
        posterior: w ``[N]``.
        threshold: clean above it.
        least: if all were clean, this share with the lowest w is called noisy all the same.
    """
    clean = posterior > threshold
    if clean.all() and least > 0:
        clean[np.argsort(posterior, kind="stable")[: max(1, round(least * len(clean)))]] = False
    return clean


def oscillation(now: Tensor, before: Tensor) -> Tensor:
    """KL(now || before) of each row, ``[N]``; 0 where ``before`` is all zero (never stored).

    Args:
        now, before: probabilities ``[N, K]``.
    """
    stored = before.sum(-1) > 0
    ratio = now.clamp_min(_TINY).log() - before.to(now.dtype).clamp_min(_TINY).log()
    return (now * ratio).sum(-1).clamp_min(0).masked_fill(~stored, 0)


def corrected(clean: Tensor, stable: Tensor) -> Tensor:
    """y = w + (1 - w) u [u > 0.5]: a pair of high loss is believed as far as its pseudo-prediction is stable.

    Args:
        clean: w ``[N]``, posterior of the low losses.
        stable: u ``[N]``, posterior of the low oscillations.
    """
    return (clean + (1 - clean) * stable * (stable > 0.5)).clamp(0, 1)


def lend_captions(noisy: Tensor, clean: Tensor, *, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """For each noisy image the clean pair whose image is predicted most alike: c* = argmax_c cos(p_i, p_c).

    Args:
        noisy: pseudo-predictions ``[N, K]`` of the images that need a caption.
        clean: ``[C, K]`` of the images whose captions are lent, C >= 1.
        threshold: below this cosine the correspondence is 0.

    Returns:
        int64 ``[N]``, rows of ``clean``; and y ``[N]``, the cosine or 0. Neither has a gradient.
    """
    if not len(clean):
        raise BadInput("no clean pair can lend its caption", where="lend_captions")
    rows = [torch.nn.functional.normalize(p.detach(), dim=-1) for p in (noisy, clean)]
    found = [(part @ rows[1].T).max(1) for part in rows[0].split(4096)]
    if not found:
        return torch.zeros(0, dtype=torch.long, device=noisy.device), noisy.new_zeros(0)
    cosine, index = (torch.cat(values) for values in zip(*((f.values, f.indices) for f in found)))
    cosine = cosine.clamp(0, 1)
    return index, cosine.masked_fill(cosine < threshold, 0)


@dataclass(frozen=True)
class SplitFigures:
    """How well a split found the noise that was put in.

    Args:
        precision: share of the pairs called clean that are clean.
        recall: share of the clean pairs that are called clean.
        clean: share of all pairs that are called clean.
    """

    precision: float
    recall: float
    clean: float

    @classmethod
    def of(cls, clean: np.ndarray, noisy: np.ndarray) -> SplitFigures:
        """Compares a split with the truth.

        Args:
            clean: bool ``[N]``, what the split says.
            noisy: bool ``[N]``, the truth.
        """
        clean, good = np.asarray(clean, dtype=bool), ~np.asarray(noisy, dtype=bool)
        if clean.shape != good.shape or not clean.size:
            raise BadInput(f"{clean.shape} and {good.shape} pairs", where="SplitFigures")
        both = float((clean & good).sum())
        return cls(both / max(1, int(clean.sum())), both / max(1, int(good.sum())), float(clean.mean()))

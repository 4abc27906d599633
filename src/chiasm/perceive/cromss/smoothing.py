"""Softened noisy labels: what neighbors in space and other dates at the same place say about a pixel.

    F = mean_t onehot(y_t)                              how often each class was seen here
    temporal = G(F),  spatial = G(onehot(y))            G: Gaussian filter of each class map, then shares again
    y~ = (1 - a - b) onehot(y) + a prior + b / K        prior: the mean of both, a = 0.15, b = 0.05

CromSS (cromss, arXiv 2405.01217).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from chiasm.errors import BadInput, unknown_name
from chiasm.measure.vectors import to_numpy

Prior = Literal["both", "temporal", "spatial", "none"]
PRIORS: tuple[Prior, ...] = ("both", "temporal", "spatial", "none")


class LabelSmoothing:
    """Softens noisy labels ``[N, T, ...]`` of N places at T dates; pictures, volumes, or single labels.

    Args:
        labels: whole numbers ``[N, T, H, W]`` (or ``[N, T]``); negative ones are ignored: they tell nothing, and where they are
            themselves softened the prior takes their place.
        classes: K.
        prior: which of the two count; ``"none"`` is uniform smoothing (a = 0).
        prior_share: a, 0.15 (the paper's).
        uniform_share: b, 0.05 (the paper's).
        sigma: of the Gaussian filter in pixels, 3.
        truncate: where the filter is cut off, in sigmas; 4.
        cache: keep the priors of all places and dates (2 bytes x N x (T + 1) x K x H x W) instead of computing them when asked.

    Raises:
        BadInput: labels outside the classes, shares that leave less than nothing for the label.
        UnknownName: another prior.
    """

    def __init__(
        self,
        labels: Any,
        classes: int,
        *,
        prior: Prior = "both",
        prior_share: float = 0.15,
        uniform_share: float = 0.05,
        sigma: float = 3.0,
        truncate: float = 4.0,
        cache: bool = False,
    ) -> None:
        if prior not in PRIORS:
            raise unknown_name("prior", prior, PRIORS)
        shares = prior_share >= 0 and uniform_share >= 0 and prior_share + uniform_share <= 1
        if not shares or not sigma >= 0 or not truncate > 0:
            raise BadInput(
                f"prior_share {prior_share}, uniform_share {uniform_share}, sigma {sigma}, truncate {truncate}",
                where="LabelSmoothing",
                fix="Give shares of at least 0 that sum to at most 1, and a filter of some width",
            )
        self.labels = to_numpy(labels)
        if self.labels.ndim < 2 or not np.issubdtype(self.labels.dtype, np.integer):
            raise BadInput(
                f"labels {self.labels.shape} of type {self.labels.dtype}",
                where="LabelSmoothing",
                fix="Give class numbers [N, T, ...]",
            )
        if classes < 2 or (self.labels.size and int(self.labels.max()) >= classes):
            raise BadInput(
                f"label {self.labels.max(initial=-1)} for {classes} classes",
                where="LabelSmoothing",
                fix=f"Give 0 to {max(classes, 2) - 1}, and -1 for ignored pixels",
            )
        self.classes, self.prior = classes, prior
        self.prior_share = 0.0 if prior == "none" else prior_share
        self.uniform_share, self.sigma, self.truncate = uniform_share, sigma, truncate
        self._kept: np.ndarray | None = None
        if cache and prior != "none":
            places, dates = (x.reshape(-1) for x in np.indices(self.labels.shape[:2]))
            parts = np.array_split(np.arange(len(places)), max(1, len(places) // 64))
            maps = np.concatenate([self.priors(places[p], dates[p]).astype(np.float16) for p in parts])
            self._kept = maps.reshape(*self.labels.shape[:2], *maps.shape[1:])

    def priors(self, places: Any, dates: Any) -> np.ndarray:
        """What space and time say, float32 ``[B, K, ...]``, shares.

        Args:
            places, dates: int ``[B]``, rows of the first two axes of the labels.
        """
        places, dates = np.asarray(places), np.asarray(dates)
        if self._kept is not None:
            return self._kept[places, dates].astype(np.float32)
        found = []
        if self.prior in ("temporal", "both"):
            found.append(self._filtered(frequencies(self.labels[places], self.classes)))
        if self.prior in ("spatial", "both"):
            found.append(self._filtered(_hot(self.labels[places, dates], self.classes)))
        if not found:
            shape = (len(places), self.classes, *self.labels.shape[2:])
            return np.full(shape, 1 / self.classes, dtype=np.float32)
        return np.stack(found).mean(axis=0, dtype=np.float32)

    def targets(self, places: Any, dates: Any) -> np.ndarray:
        """y~, float32 ``[B, K, ...]``; sums to 1 over the classes in every pixel.

        Args:
            places, dates: int ``[B]``.
        """
        places, dates = np.asarray(places), np.asarray(dates)
        labels = self.labels[places, dates]
        hot, a, b = _hot(labels, self.classes), self.prior_share, self.uniform_share
        prior = self.priors(places, dates) if a or bool((labels < 0).any()) else np.zeros_like(hot)
        own = np.where((labels >= 0)[:, None], hot, prior)
        return ((1 - a - b) * own + a * prior + b / self.classes).astype(np.float32)

    def _filtered(self, maps: np.ndarray) -> np.ndarray:
        """Gaussian filter over space, then shares over classes; uniform where nothing is known near by."""
        sigma = (0.0, 0.0, *(self.sigma for _ in maps.shape[2:]))
        smooth = gaussian_filter(maps, sigma, truncate=self.truncate) if len(sigma) > 2 and self.sigma else maps
        total = smooth.sum(axis=1, keepdims=True)
        return np.where(total > 1e-6, smooth / np.maximum(total, 1e-6), 1 / self.classes).astype(np.float32)


def frequencies(labels: Any, classes: int) -> np.ndarray:
    """How often each class was seen at each pixel, float32 ``[N, K, ...]``; zeros where all dates are ignored.

    Args:
        labels: ``[N, T, ...]``.
        classes: K.
    """
    labels = np.asarray(labels)
    counts = np.stack([(labels == c).sum(axis=1) for c in range(classes)], axis=1).astype(np.float32)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """``[B, ...] -> [B, K, ...]``; zeros where a label is negative."""
    return np.stack([labels == c for c in range(classes)], axis=1).astype(np.float32)

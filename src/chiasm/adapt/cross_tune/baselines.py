"""What CrossTune is compared with, on the same frozen features: zero-shot cosine, a linear probe, and a search without gradients.

All take vectors ``[N, d]`` (an input's mean token) and follow scikit-learn's contract. `ZeroShot` without descriptions is the nearest centroid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from chiasm.errors import BadInput


class ZeroShot(ClassifierMixin, BaseEstimator):
    """The class whose description is nearest by cosine; learns nothing but the class names.

    Args:
        labels: vectors of the descriptions ``[C, d]``, in the order of the sorted classes.
        scale: of the cosine before the softmax.
    """

    def __init__(self, labels: Any = None, scale: float = 10.0) -> None:
        self.labels = labels
        self.scale = scale

    def fit(self, X: Any, y: Any) -> ZeroShot:
        """Notes the classes of ``y``; raises `BadInput` if there are not as many as descriptions."""
        _check_labels(X, y)
        self.classes_ = np.unique(y)
        self.labels_ = _unit(class_means(X, y) if self.labels is None else _rows(self.labels))
        if len(self.labels_) != len(self.classes_):
            raise BadInput(
                f"{len(self.labels_)} descriptions for {len(self.classes_)} classes",
                where="ZeroShot",
                fix="Give one a class, in the order of the sorted classes",
            )
        _rows(X, self.labels_.shape[1])
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return softmax(self.scale * _unit(_rows(X, self.labels_.shape[1])) @ self.labels_.T, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression on unit vectors.

    Args:
        C: inverse strength of the penalty; scikit-learn's.
    """

    def __init__(self, C: float = 10.0) -> None:
        self.C = C

    def fit(self, X: Any, y: Any) -> LinearProbe:
        _check_labels(X, y)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 1:
            self.regression_ = LogisticRegression(C=self.C, max_iter=1000).fit(_unit(_rows(X)), y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = _unit(_rows(X))
        return self.regression_.predict_proba(X) if len(self.classes_) > 1 else np.ones((len(X), 1))

    def predict(self, X: Any) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class VerbalizerSearch(ZeroShot):
    """A tuner without gradients: a (mu, lambda) evolution of one shift a class of the description vectors, in a random subspace.

    Stands for the black-box prompt tuners of the literature, which search a soft prompt through a random projection by the
    training loss alone (Sun and others 2022, arXiv 2201.03514).

    Args:
        labels, scale: as of `ZeroShot`.
        subspace: dimensions of the random projection.
        offspring, parents, generations: lambda, mu, and rounds; each offspring costs one call on the training set.
        step: first standard deviation of the mutations; a success rule of 1/5 changes it.
        random_state: seed.
    """

    def __init__(
        self,
        labels: Any = None,
        scale: float = 10.0,
        subspace: int = 16,
        offspring: int = 20,
        parents: int = 5,
        generations: int = 40,
        step: float = 0.3,
        random_state: int = 0,
    ) -> None:
        super().__init__(labels, scale)
        self.subspace = subspace
        self.offspring = offspring
        self.parents = parents
        self.generations = generations
        self.step = step
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> VerbalizerSearch:
        """Searches shifts that lower the cross-entropy on the training vectors."""
        super().fit(X, y)
        rng = np.random.default_rng(self.random_state)
        rows, start = _unit(_rows(X)), self.labels_
        target = np.searchsorted(self.classes_, y)
        project = rng.normal(size=(self.subspace, rows.shape[1])) / np.sqrt(rows.shape[1])

        def loss(shift: np.ndarray) -> float:
            logs = log_softmax(self.scale * rows @ _unit(start + shift @ project).T, axis=1)
            return -float(logs[np.arange(len(target)), target].mean())

        best = np.zeros((len(start), self.subspace))
        lowest, step = loss(best), self.step
        for _ in range(self.generations):
            tried = best + step * rng.normal(size=(self.offspring, *best.shape))
            losses = np.array([loss(one) for one in tried])
            order = losses.argsort()[: self.parents]
            mean = tried[order].mean(axis=0)
            found, value = min(((mean, loss(mean)), (tried[order[0]], losses[order[0]])), key=lambda pair: pair[1])
            step *= 1.2 if (losses < lowest).mean() > 0.2 else 0.85
            if value < lowest:
                best, lowest = found, float(value)
        self.labels_ = _unit(start + best @ project)
        return self


def class_means(X: Any, y: Any) -> np.ndarray:
    """The mean vector of each class ``[C, d]``, classes sorted."""
    classes, numbers = np.unique(y, return_inverse=True)
    sums = np.zeros((len(classes), np.asarray(X).shape[1]))
    np.add.at(sums, numbers, np.asarray(X, dtype=np.float64))
    return sums / np.bincount(numbers)[:, None]


def _rows(X: Any, dim: int | None = None) -> np.ndarray:
    """float64 ``[N, d]``, as it was given."""
    rows = np.asarray(X, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all() or (dim is not None and rows.shape[1] != dim):
        wanted = "d" if dim is None else dim
        raise BadInput(
            f"vectors of shape {rows.shape}, or NaN among them", where="X", fix=f"Give finite numbers [N, {wanted}]"
        )
    return rows


def _check_labels(X: Any, y: Any) -> None:
    if not len(X) or np.shape(y) != (len(X),):
        raise BadInput(f"{len(X)} vectors and labels {np.shape(y)}", where="fit", fix="Give one label a vector, N >= 1")
    _rows(X)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

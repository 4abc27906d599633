"""`OODClassifier`: names the class of an embedding, or says that it belongs to none; a scikit-learn estimator.

    >>> detector = OODClassifier(texts, negatives).fit(validation_images, validation_labels)
    >>> detector.predict(images), detector.score_samples(images), detector.known(images)

CMA (arXiv 2503.18817) for its inference: NegLabel or MCM scores over text vectors, threshold at 95 % true positives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from chiasm.adapt.mm_ood.scores import SCORES, energy, max_logit, maximum_softmax, mcm, neglabel
from chiasm.errors import BadInput, unknown_name
from chiasm.measure.vectors import as_rows, to_numpy

# Temperature of each score if none is given: 1 for MCM, CLIP's 0.01 for the others.
TEMPERATURES = {"neglabel": 0.01, "mcm": 1.0, "energy": 0.01, "max_logit": 1.0, "msp": 0.01}
# Probabilities of the classes are a softmax at CLIP's temperature.
PROBABILITY_TEMPERATURE = 0.01


class OODClassifier(ClassifierMixin, BaseEstimator):
    """Classifies embeddings by the nearest class text, and scores whether they belong to any class.

    Args:
        texts: ``[K, D]`` vectors of the class names; None: the mean direction of each class's training vectors.
        negatives: ``[M, D]`` vectors of negative labels, or None.
        classes: the K classes in the order of ``texts``; default the sorted labels of `fit`.
        ood_score: ``"neglabel"``, ``"mcm"``, ``"energy"``, ``"max_logit"``, ``"msp"`` or ``"auto"`` (NegLabel if there are
            negatives, else MCM).
        temperature: of the score; default 0.01, for MCM 1.
        groups: groups of negative labels, see `neglabel`.
        tpr: share of the known inputs that must be accepted; sets ``threshold_``.
        seed: of the groups.

    Attributes:
        classes_: the classes.
        texts_: float32 ``[K, D]``, unit length.
        threshold_: the score from which on an input counts as known: the lower ``1 - tpr`` quantile on what `fit` (or
            `calibrate`) was given, which should be data that nothing was trained on.
    """

    def __init__(
        self,
        texts: Any = None,
        negatives: Any = None,
        *,
        classes: Any = None,
        ood_score: str = "auto",
        temperature: float | None = None,
        groups: int = 1,
        tpr: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.texts = texts
        self.negatives = negatives
        self.classes = classes
        self.ood_score = ood_score
        self.temperature = temperature
        self.groups = groups
        self.tpr = tpr
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> OODClassifier:
        """Sets the classes and the threshold.

        Args:
            X: ``[N, D]`` embeddings of known inputs (validation data).
            y: labels ``[N]``; may be left out where ``texts`` are given.

        Raises:
            BadInput: neither texts nor labels, another number of classes than texts, a label that is no class.
            UnknownName: a score that does not exist.
        """
        if self.ood_score not in (*SCORES, "auto"):
            raise unknown_name("score", str(self.ood_score), (*SCORES, "auto"))
        if not 0 < self.tpr <= 1:
            raise BadInput(f"tpr {self.tpr} is not a share", where="OODClassifier")
        if self.ood_score == "neglabel" and not self._has_negatives():
            raise BadInput(
                "NegLabel needs negative labels", where="OODClassifier", fix="Give negatives, or ood_score='mcm'"
            )
        rows = self._rows(X, reset=True, y=y)
        labels = None if y is None else np.asarray(y)
        seen = None if labels is None else np.unique(labels)
        if self.texts is None:
            if labels is None or seen is None:
                raise BadInput("neither texts nor labels", where="OODClassifier.fit", fix="Give texts=..., or y")
            self.classes_ = seen
            means = np.stack([rows[labels == name].mean(axis=0) for name in seen])
            self.texts_ = to_numpy(as_rows(means, "class means"))
        else:
            self.texts_ = to_numpy(as_rows(self.texts, "texts"))
            self.classes_ = self._named(seen, len(self.texts_))
            if seen is not None and not np.isin(seen, self.classes_).all():
                stranger = seen[~np.isin(seen, self.classes_)][0]
                raise BadInput(
                    f"label {stranger} is no class",
                    where="OODClassifier.fit",
                    fix=f"The classes are {', '.join(str(name) for name in self.classes_[:20])}",
                )
        if self.texts_.shape[1] != rows.shape[1]:
            raise BadInput(
                f"{rows.shape[1]}-d embeddings and {self.texts_.shape[1]}-d texts", where="OODClassifier.fit"
            )
        return self.calibrate(rows)

    def calibrate(self, X: Any) -> OODClassifier:
        """Sets the threshold anew from known inputs ``[N, D]``."""
        self.threshold_ = float(np.quantile(self.score_samples(X), 1 - self.tpr, method="lower"))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """How well each input belongs to the known classes, float ``[N]``; higher is more known.

        NegLabel gives its log-odds, MCM and MSP the logarithm of the share: the same ranking without saturation.
        """
        rows = self._rows(X)
        name = self._score()
        temperature = TEMPERATURES[name] if self.temperature is None else self.temperature
        if name == "neglabel":
            options = {"temperature": temperature, "groups": self.groups, "seed": self.seed, "log_odds": True}
            return neglabel(rows, self.texts_, to_numpy(as_rows(self.negatives, "negatives")), **options)
        if name == "max_logit":
            return max_logit(rows, self.texts_)
        if name == "energy":
            return energy(rows, self.texts_, temperature=temperature)
        return (mcm if name == "mcm" else maximum_softmax)(rows, self.texts_, temperature=temperature, log=True)

    def known(self, X: Any) -> np.ndarray:
        """Bool ``[N]``: True where the score reaches the threshold."""
        return self.score_samples(X) >= self.threshold_

    def predict(self, X: Any) -> np.ndarray:
        """The class of the nearest text, ``[N]``, known or not."""
        rows = self._rows(X)
        return self.classes_[(rows @ self.texts_.T).argmax(axis=1)]

    def predict_open(self, X: Any, unknown: Any = None) -> np.ndarray:
        """The class, or ``unknown`` where the score stays below the threshold; object ``[N]``."""
        found = self.predict(X).astype(object)
        found[~self.known(X)] = unknown
        return found

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares ``[N, K]`` among the classes at CLIP's temperature 0.01, in the order of ``classes_``."""
        rows = self._rows(X)
        return softmax(rows @ self.texts_.T / PROBABILITY_TEMPERATURE, axis=1)

    def _score(self) -> str:
        if self.ood_score != "auto":
            return self.ood_score
        return "neglabel" if self._has_negatives() else "mcm"

    def _has_negatives(self) -> bool:
        # An empty list is none: NegLabel would then accept every input.
        return self.negatives is not None and len(self.negatives) > 0

    def _named(self, seen: np.ndarray | None, count: int) -> np.ndarray:
        if self.classes is not None:
            names = np.asarray(self.classes)
        else:
            names = np.arange(count) if seen is None else seen
        if len(names) != count or len(np.unique(names)) != count:
            raise BadInput(
                f"{len(names)} classes for {count} texts" if len(names) != count else "a class is named twice",
                where="OODClassifier.fit",
                fix="Give classes=... in the order of texts",
            )
        return names

    def _rows(self, X: Any, *, reset: bool = False, y: Any = None) -> np.ndarray:
        """Unit rows float32 ``[N, D]``, as scikit-learn checks them."""
        if not reset:
            check_is_fitted(self, "texts_")
        try:
            if y is not None:
                X, _ = validate_data(self, X, y, dtype=np.float32)
            else:
                X = validate_data(self, X, dtype=np.float32, reset=reset)
        except ValueError as error:  # scikit-learn's contract wants its TypeErrors as they are
            raise BadInput(str(error), where="OODClassifier", fix="Give embeddings [N, D], N >= 1") from error
        return to_numpy(as_rows(X, "X"))

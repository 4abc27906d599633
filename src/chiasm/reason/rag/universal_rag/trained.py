"""`TrainedRouter`: tf-idf of words and pairs of words, multinomial logistic regression; learns in a second, saves as numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.reason.rag.universal_rag.routers import QuestionRouter, first_line

_FILE = "router.safetensors"


class TrainedRouter(QuestionRouter):
    """A classifier of questions.

        >>> router = TrainedRouter().fit(questions, targets)
        >>> router.route("Who founded the town of Orla?", 2)

    Care (the card): if the training questions of each target come from one benchmark, the router learns the benchmark's
    style. Test it on questions of another style and on such that are the same in style for all targets.

    Args:
        strength: inverse regularization ``C`` of scikit-learn's `LogisticRegression`.
        ngrams: longest run of words that is a feature.
    """

    def __init__(self, *, strength: float = 10.0, ngrams: int = 2) -> None:
        if strength <= 0 or ngrams < 1:
            raise BadInput(f"strength={strength}, ngrams={ngrams}", where="TrainedRouter")
        self.strength, self.ngrams = strength, ngrams
        self.names: tuple[str, ...] = ()
        self.vocabulary: list[str] = []
        self.idf = np.empty(0)
        self.weights = np.empty((0, 0))
        self.bias = np.empty(0)

    def fit(self, questions: Sequence[str], targets: Sequence[str]) -> TrainedRouter:
        """Learns from questions and the names of their targets.

        Raises:
            BadInput: different numbers of both, or fewer than two targets.
        """
        if len(questions) != len(targets):
            raise BadInput(f"{len(questions)} questions and {len(targets)} targets", where="TrainedRouter.fit")
        if len(set(targets)) < 2:
            raise BadInput("needs questions of at least two targets", where="TrainedRouter.fit")
        from sklearn.linear_model import LogisticRegression

        vectorizer = self._vectorizer()
        features: Any = vectorizer.fit_transform([first_line(question) for question in questions])
        # lbfgs from zero weights: the same questions give the same router.
        model = LogisticRegression(C=self.strength, max_iter=1000).fit(features, list(targets))
        self.names = tuple(str(name) for name in model.classes_)
        words = vectorizer.get_feature_names_out().tolist()
        self.vocabulary, self.idf = words, np.asarray(vectorizer.idf_, np.float64)
        weights, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
        if len(self.names) == 2:  # scikit-learn keeps one row for two classes
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        self.weights, self.bias = weights, bias
        self._fitted: Any = None
        return self

    def shares(self, text: str) -> np.ndarray:
        """The softmax of the classifier.

        Raises:
            BadInput: it was not fitted.
        """
        if not self.names:
            raise BadInput("the router was not fitted", where="TrainedRouter", fix="Call fit(questions, targets)")
        if getattr(self, "_fitted", None) is None:
            self._fitted = self._vectorizer(vocabulary=self.vocabulary)
            self._fitted.idf_ = self.idf
        logits = np.asarray(self._fitted.transform([text]) @ self.weights.T).ravel() + self.bias
        return np.exp(logits - logits.max())

    def _vectorizer(self, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(ngram_range=(1, self.ngrams), token_pattern=r"(?u)\b\w+\b", **options)

    def save(self, folder: str | Path) -> None:
        """Writes ``router.safetensors`` into a folder: weights, with the words and names as JSON beside them."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"names": self.names, "vocabulary": self.vocabulary, "strength": self.strength, "ngrams": self.ngrams}
        arrays = {"idf": self.idf, "weights": np.ascontiguousarray(self.weights), "bias": self.bias}
        save_file(arrays, str(folder / _FILE), metadata={"chiasm": json.dumps(facts)})

    @classmethod
    def load(cls, folder: str | Path) -> TrainedRouter:
        """Reads what `save` wrote; its routes are bit-equal.

        Raises:
            BadInput: there is no router.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder) / _FILE
        try:
            with safe_open(str(path), "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                facts = json.loads((file.metadata() or {})["chiasm"])
            router = cls(strength=facts["strength"], ngrams=facts["ngrams"])
            router.names, router.vocabulary = tuple(facts["names"]), facts["vocabulary"]
            router.idf, router.weights, router.bias = arrays["idf"], arrays["weights"], arrays["bias"]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadInput(f"not a saved router ({error})", where=str(path)) from error
        return router

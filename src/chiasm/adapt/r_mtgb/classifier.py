"""`RMTGBClassifier`: softmax cross-entropy over two or more classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import check_classification_targets

from chiasm.adapt.r_mtgb.estimator import MultiTaskBoosting
from chiasm.adapt.r_mtgb.growing import Engine
from chiasm.adapt.r_mtgb.losses import CrossEntropy, Loss
from chiasm.errors import BadInput


class RMTGBClassifier(ClassifierMixin, MultiTaskBoosting):
    """`RMTGBRegressor` for classes: the same three blocks, softmax cross-entropy, K trees where the regressor has one.

        >>> model = RMTGBClassifier(random_state=0).fit(X, y, task=hospital)
        >>> model.predict_proba(X_new, task=hospital_new)

    Args:
        newton: leaves are ``sum(g) / (sum(h) + l2)`` instead of the mean residual (the paper's).
        from_zero: start at equal shares, as in the paper; default: at the shares of the training rows.
        others: as of `RMTGBRegressor`.

    After ``fit``: ``classes_ [K]`` and what the regressor has.
    """

    def __init__(
        self,
        n_shared: int = 20,
        n_robust: int = 50,
        n_task: int = 30,
        learning_rate: float = 0.1,
        max_depth: int = 3,
        max_bins: int = 64,
        l2: float = 0.0,
        theta_lr: float | None = None,
        theta_l2: float = 0.0,
        theta_clip: float = 8.0,
        theta_init_std: float = 0.1,
        min_samples_leaf: int = 5,
        task_min_samples_leaf: int | None = None,
        subsample: float = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        from_zero: bool = False,
        newton: bool = False,
        unseen: Literal["warn", "error"] = "warn",
        engine: Engine = "auto",
        random_state: Any = None,
    ) -> None:
        super().__init__(
            n_shared=n_shared,
            n_robust=n_robust,
            n_task=n_task,
            learning_rate=learning_rate,
            max_depth=max_depth,
            max_bins=max_bins,
            l2=l2,
            theta_lr=theta_lr,
            theta_l2=theta_l2,
            theta_clip=theta_clip,
            theta_init_std=theta_init_std,
            min_samples_leaf=min_samples_leaf,
            task_min_samples_leaf=task_min_samples_leaf,
            subsample=subsample,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            from_zero=from_zero,
            unseen=unseen,
            engine=engine,
            random_state=random_state,
        )
        self.newton = newton

    def fit(self, X: Any, y: Any, task: Any = None) -> RMTGBClassifier:
        super().fit(X, y, task)
        return self

    fit.__doc__ = MultiTaskBoosting.fit.__doc__

    def predict_proba(self, X: Any, task: Any = None) -> np.ndarray:
        """Shares of the classes ``[n, K]`` in the order of ``classes_``; arguments as of `predict`."""
        codes, task = self._codes(X, task)
        return self._loss().shares(self.boosted_.raw(codes, task))

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """Accuracy of the predictions."""
        return float(accuracy_score(y, self.predict(X, task), sample_weight=sample_weight))

    def _loss(self) -> CrossEntropy:
        return CrossEntropy(len(self.classes_))

    def _targets(self, y: np.ndarray) -> tuple[np.ndarray, Loss, np.ndarray]:
        try:
            check_classification_targets(y)
        except ValueError as error:
            raise BadInput(str(error), where="RMTGBClassifier.fit") from error
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise BadInput(
                f"y holds one class only ({self.classes_.tolist()[0]!r})",
                where="RMTGBClassifier.fit",
                fix="Give rows of at least two classes",
            )
        loss = self._loss()
        return numbers, loss, np.zeros(loss.columns) if self.from_zero else loss.start(numbers)

    def _answer(self, raw: np.ndarray) -> np.ndarray:
        return self.classes_[self._loss().shares(raw).argmax(axis=1)]

    def _newton(self) -> bool:
        return self.newton

    def _more_state(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist()}

    def _set_more_state(self, header: dict[str, Any]) -> None:
        self.classes_ = np.array(header["classes"])

"""What the regressor and the classifier share: parameters, task labels, checks, prediction, saving."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from chiasm.adapt.r_mtgb.binning import Bins
from chiasm.adapt.r_mtgb.boosting import Boosted, Settings, boost
from chiasm.adapt.r_mtgb.forest import Forest
from chiasm.adapt.r_mtgb.growing import Engine, Shape, choose
from chiasm.adapt.r_mtgb.losses import Loss
from chiasm.errors import BadInput, unknown_name

_FORESTS = ("shared", "usual", "odd", "own")


class MultiTaskBoosting(BaseEstimator):
    """Base of `RMTGBRegressor` and `RMTGBClassifier`; the arguments are documented there."""

    boosted_: Boosted
    bins_: Bins
    tasks_: np.ndarray
    task_column_: int | str | None
    n_features_in_: int
    feature_names_in_: np.ndarray

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
        unseen: Literal["warn", "error"] = "warn",
        engine: Engine = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_shared = n_shared
        self.n_robust = n_robust
        self.n_task = n_task
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.max_bins = max_bins
        self.l2 = l2
        self.theta_lr = theta_lr
        self.theta_l2 = theta_l2
        self.theta_clip = theta_clip
        self.theta_init_std = theta_init_std
        self.min_samples_leaf = min_samples_leaf
        self.task_min_samples_leaf = task_min_samples_leaf
        self.subsample = subsample
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.from_zero = from_zero
        self.unseen = unseen
        self.engine: Engine = engine
        self.random_state = random_state

    # ---- what the two kinds define

    def _targets(self, y: np.ndarray) -> tuple[np.ndarray, Loss, np.ndarray]:
        """Targets as the loss wants them, the loss, and the first raw score."""
        raise TypeError(f"{type(self).__name__} does not define _targets")

    def _answer(self, raw: np.ndarray) -> np.ndarray:
        """What `predict` returns for raw scores ``[n, K]``."""
        raise TypeError(f"{type(self).__name__} does not define _answer")

    def _newton(self) -> bool:
        return False

    # ---- fit

    def fit(self, X: Any, y: Any, task: Any = None) -> MultiTaskBoosting:
        """Fits the three blocks.

        Args:
            X: ``[n, d]`` numbers; NaN is a missing value. An array, or a data frame.
            y: ``[n]``.
            task: labels of the tasks ``[n]`` (whole numbers or strings), or the column of ``X`` that holds them (a name
                for a data frame, a number for an array; it is then no feature). None: all rows are one task.

        Raises:
            BadInput: sizes that do not fit, infinite values, labels that are missing, or an argument out of its range.
            UnknownName: a column, engine or option that does not exist.
        """
        self._check_settings()
        number = isinstance(task, Integral) and not isinstance(task, bool) and np.ndim(X) == 2
        column: Any = task if isinstance(task, str) or number else None
        X, task = self._split(X, task, column)
        X, y = self._checked(X, y)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        self.task_column_ = column
        self.tasks_, codes_of_task, given = self._task_labels(task, len(X))
        if given and len(self.tasks_) == 1 and self.n_robust:
            warnings.warn("there is only one task: outlier scores have nothing to compare", UserWarning, stacklevel=2)
        targets, loss, start = self._targets(y)
        fit = self._rows_to_fit(codes_of_task, rng)
        self.bins_ = Bins.of(X if fit.all() else X[fit], self.max_bins, rng)
        self.boosted_ = boost(
            self.bins_.codes(X),
            self.bins_.used,
            self.bins_.missing,
            targets,
            codes_of_task,
            start,
            loss,
            self._settings(),
            fit,
            rng,
        )
        self._publish()
        return self

    def _checked(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        try:
            checked: Any = validate_data(
                self,
                X,
                y,
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan",
                multi_output=False,
                y_numeric=self.__sklearn_tags__().estimator_type == "regressor",
                ensure_min_samples=2 if self.__sklearn_tags__().estimator_type == "classifier" else 1,
            )
        except ValueError as error:
            raise BadInput(
                str(error), where=f"{type(self).__name__}.fit", fix="Give numbers X [n, d] and y [n]"
            ) from error
        return checked

    def _split(self, X: Any, task: Any, column: int | str | None) -> tuple[Any, Any]:
        """Takes the column of tasks out of ``X``, if there is one."""
        if column is None:
            return X, task
        where = type(self).__name__
        if isinstance(column, str):
            if not hasattr(X, "columns"):
                raise BadInput(f"task={column!r}, but X has no named columns", where=where, fix="Give the labels [n]")
            names = list(X.columns)
            if column not in names:
                raise unknown_name("column", column, [str(name) for name in names])
            return X[[name for name in names if name != column]], np.asarray(X[column])
        if hasattr(X, "columns"):
            raise BadInput(f"task={column}, but the columns of X have names", where=where, fix="Give the column's name")
        X = np.asarray(X)
        if X.ndim != 2 or not 0 <= column < X.shape[1]:
            raise BadInput(
                f"task={column} is no column of X of shape {X.shape}",
                where=where,
                fix="Give a column of X, or labels [n]",
            )
        return np.delete(X, column, axis=1), X[:, column]

    def _task_labels(self, task: Any, n: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Distinct labels, the number of each row's label, and whether there were labels."""
        if task is None:
            return np.zeros(1, dtype=np.int64), np.zeros(n, dtype=np.int64), False
        labels, numbers = np.unique(_labels(task, n), return_inverse=True)
        return labels, numbers, True

    def _rows_to_fit(self, task: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """True for rows to learn from; a part of each task is held out for early stopping."""
        fit = np.ones(len(task), dtype=bool)
        if not self.early_stopping:
            return fit
        order = rng.permutation(len(task))
        order = order[np.argsort(task[order], kind="stable")]
        sizes = np.bincount(task)
        place = np.arange(len(task)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # Rounded, so that tasks of a few rows give none; the last row of a task is never held out.
        held = np.minimum(np.round(self.validation_fraction * sizes), sizes - 1)
        fit[order[place < held[task[order]]]] = False
        if fit.all():
            raise BadInput(
                f"no task has enough rows to hold out {self.validation_fraction:g} of them",
                where="early_stopping",
                fix="Use early_stopping=False or a larger validation_fraction",
            )
        return fit

    def _settings(self) -> Settings:
        least = self.min_samples_leaf if self.task_min_samples_leaf is None else self.task_min_samples_leaf
        return Settings(
            (self.n_shared, self.n_robust, self.n_task),
            self.learning_rate,
            self.learning_rate if self.theta_lr is None else self.theta_lr,
            self.theta_l2,
            self.theta_clip,
            self.theta_init_std,
            Shape(self.max_depth, self.min_samples_leaf, self.l2),
            Shape(self.max_depth, least, self.l2),
            self._newton(),
            self.subsample,
            self.n_iter_no_change if self.early_stopping else None,
            self.engine,
        )

    def _check_settings(self) -> None:
        where = type(self).__name__
        whole = {
            "n_shared": 0,
            "n_robust": 0,
            "n_task": 0,
            "max_depth": 1,
            "min_samples_leaf": 1,
            "n_iter_no_change": 1,
        }
        for name, least in whole.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise BadInput(f"{name} is {value!r}", where=where, fix=f"Give a whole number of at least {least}")
        least = self.task_min_samples_leaf
        if least is not None and (not isinstance(least, Integral) or least < 1):
            raise BadInput(
                f"task_min_samples_leaf is {least!r}", where=where, fix="Give a whole number of at least 1, or None"
            )
        if not isinstance(self.max_bins, Integral) or not 2 <= self.max_bins <= 255:
            raise BadInput(f"max_bins is {self.max_bins!r}", where=where, fix="Give 2 to 255")
        for name in ("learning_rate", "l2", "theta_l2", "theta_clip", "theta_init_std"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < np.inf:
                raise BadInput(f"{name} is {value!r}", where=where, fix="Give a finite number of at least 0")
        if self.theta_lr is not None and not (isinstance(self.theta_lr, Real) and 0 <= float(self.theta_lr) < np.inf):
            raise BadInput(f"theta_lr is {self.theta_lr!r}", where=where, fix="Give a finite number of at least 0")
        if not isinstance(self.subsample, Real) or not 0 < float(self.subsample) <= 1:
            raise BadInput(f"subsample is {self.subsample!r}", where=where, fix="Give more than 0, at most 1")
        if not isinstance(self.validation_fraction, Real) or not 0 < float(self.validation_fraction) < 1:
            raise BadInput(f"validation_fraction is {self.validation_fraction!r}", where=where, fix="Give 0 to 1")
        if self.unseen not in ("warn", "error"):
            raise unknown_name("value of unseen", str(self.unseen), ("warn", "error"))
        choose(self.engine)

    # ---- predict

    def _codes(self, X: Any, task: Any) -> tuple[np.ndarray, np.ndarray]:
        """Codes ``[d, n]`` and the number of each row's task; -1 for tasks that were not in the training rows."""
        check_is_fitted(self)
        where = f"{type(self).__name__}.predict"
        column = task if isinstance(task, str) else self.task_column_ if task is None else None
        X, task = self._split(X, task, column)
        try:
            X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", reset=False)
        except ValueError as error:
            raise BadInput(str(error), where=where, fix="Give X [n, d] with the columns of fit") from error
        if task is None:
            if len(self.tasks_) > 1:
                raise BadInput(
                    f"no task given, but {len(self.tasks_)} were fitted",
                    where=where,
                    fix="Give predict(X, task=labels)",
                )
            return self.bins_.codes(X), np.zeros(len(X), dtype=np.int64)
        labels = _labels(task, len(X))
        if labels.dtype.kind != self.tasks_.dtype.kind and "U" in (labels.dtype.kind, self.tasks_.dtype.kind):
            raise BadInput(
                f"task labels such as {labels[0].item()!r}, fitted ones such as {self.tasks_[0].item()!r}",
                where=where,
                fix="Give labels of the same type as to fit",
            )
        place = np.minimum(np.searchsorted(self.tasks_, labels), len(self.tasks_) - 1)
        unseen = self.tasks_[place] != labels
        if unseen.any():
            names = np.unique(labels[unseen]).tolist()
            what = f"{len(names)} unseen tasks ({', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''})"
            if self.unseen == "error":
                raise BadInput(what, where=where, fix="Fit with their rows, or use unseen='warn'")
            warnings.warn(f"{what} are treated as an average ordinary task", UserWarning, stacklevel=3)
        return self.bins_.codes(X), np.where(unseen, -1, place)

    def predict(self, X: Any, task: Any = None) -> np.ndarray:
        """Predictions ``[n]``.

        Args:
            X: ``[n, d]`` as in `fit`.
            task: labels ``[n]``; None if one task was fitted, or if `fit` was told the column.

        Raises:
            BadInput: no labels, labels of another type, other columns than in `fit`; unseen tasks with ``unseen="error"``.
        """
        codes, task = self._codes(X, task)
        return self._answer(self.boosted_.raw(codes, task))

    def staged_predict(self, X: Any, task: Any = None) -> Iterator[np.ndarray]:
        """Predictions ``[n]`` after each round, block after block; theta as it was after that round."""
        codes, task = self._codes(X, task)
        for raw in self.boosted_.staged(codes, task):
            yield self._answer(raw)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # ---- state as safetensors and JSON

    def save(self, path: str | Path) -> None:
        """Writes everything that was learned as one safetensors file; `load` gives bit-equal predictions."""
        from safetensors.numpy import save_file

        check_is_fitted(self)
        arrays = {"thetas": self.boosted_.thetas, "start": self.boosted_.start}
        arrays |= {"train_score": self.train_score_, "validation_score": self.validation_score_}
        for name in _FORESTS:
            forest = getattr(self.boosted_, name)
            arrays |= {f"{name}.{f.name}": getattr(forest, f.name) for f in fields(Forest)[:-2]}
        arrays |= {f"edges.{f}": edges for f, edges in enumerate(self.bins_.edges)}
        # Settings may be numpy numbers, which JSON does not know.
        params = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in self.get_params().items()
        }
        if not isinstance(params["random_state"], (int, type(None))):
            params["random_state"] = None  # a generator has no value that could be written down
        header = {
            "class": type(self).__name__,
            "params": params,
            "tasks": self.tasks_.tolist(),
            "task_column": self.task_column_,
            "missing": self.bins_.missing,
            "depths": [getattr(self.boosted_, name).depth for name in _FORESTS],
            "features": self.n_features_in_,
            "names": list(getattr(self, "feature_names_in_", [])),
            **self._more_state(),
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, str(path), metadata={"chiasm": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path) -> MultiTaskBoosting:
        """A model that `save` wrote.

        Raises:
            BadInput: the file is not one of this class.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "numpy") as file:
                header = json.loads((file.metadata() or {})["chiasm"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if header["class"] != cls.__name__:
                raise KeyError(f"it holds a {header['class']}")
            self = cls(**header["params"])
            missing, depths = header["missing"], header["depths"]
            forests = {
                name: Forest(
                    **{f.name: arrays[f"{name}.{f.name}"] for f in fields(Forest)[:-2]}, depth=depth, missing=missing
                )
                for name, depth in zip(_FORESTS, depths, strict=True)
            }
            self.bins_ = Bins([arrays[f"edges.{f}"] for f in range(header["features"])], missing)
            self.tasks_ = np.array(header["tasks"])
            self.boosted_ = Boosted(
                **forests,
                thetas=arrays["thetas"],
                start=arrays["start"],
                tasks=len(self.tasks_),
                train_score=arrays["train_score"],
                validation_score=arrays["validation_score"],
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise BadInput(f"not a saved {cls.__name__} ({error})", where=str(path)) from error
        self.task_column_ = header["task_column"]
        self.n_features_in_ = header["features"]
        if header["names"]:
            self.feature_names_in_ = np.array(header["names"], dtype=object)
        self._set_more_state(header)
        self._publish()
        return self

    def _more_state(self) -> dict[str, Any]:
        return {}

    def _set_more_state(self, header: dict[str, Any]) -> None:
        """Takes from the header what `_more_state` put there."""

    def _publish(self) -> None:
        """The learned attributes that users read."""
        self.train_score_ = self.boosted_.train_score
        self.validation_score_ = self.boosted_.validation_score
        self.n_rounds_ = self.boosted_.rounds
        scores = self.boosted_.weights()
        self.task_outlier_score_ = {label: float(s) for label, s in zip(self.tasks_.tolist(), scores, strict=True)}
        self.outlier_tasks_ = self.tasks_[scores > 0.5]


def _labels(task: Any, n: int) -> np.ndarray:
    """Task labels as whole numbers or strings ``[n]``."""
    labels = np.asarray(task)
    if labels.shape != (n,):
        raise BadInput(f"task has shape {labels.shape}, X has {n} rows", where="task", fix="Give one label a row")
    if labels.dtype.kind == "O":
        kinds = {type(label) for label in labels.tolist()}
        if kinds == {str}:
            return labels.astype(str)
        if not kinds or not all(issubclass(kind, Integral) for kind in kinds):
            raise BadInput(
                f"task labels of types {', '.join(sorted(kind.__name__ for kind in kinds))}",
                where="task",
                fix="Give whole numbers, or strings; no missing ones",
            )
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        if not (np.abs(labels) < 2**53).all() or (labels != np.round(labels)).any():
            raise BadInput("task labels are missing or not whole", where="task", fix="Give whole numbers, or strings")
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iubU":
        raise BadInput(f"task labels of type {labels.dtype}", where="task", fix="Give whole numbers, or strings")
    return labels

"""`RMTGBRegressor`: squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from chiasm.adapt.r_mtgb.estimator import MultiTaskBoosting
from chiasm.adapt.r_mtgb.losses import Loss, SquaredError
from chiasm.errors import BadInput


class RMTGBRegressor(RegressorMixin, MultiTaskBoosting):
    """Gradient boosting over many tasks that shares what is shared, finds the odd tasks and fine-tunes each (R-MTGB).

        >>> model = RMTGBRegressor(random_state=0).fit(X, y, task=shop)
        >>> model.predict(X_new, task=shop_new)
        >>> model.task_outlier_score_            # {shop: s}, above 0.5 for odd ones

    ``(n_shared, 0, n_task)`` is MT-GB, ``(0, 0, n_task)`` one model a task, ``(n_shared, 0, 0)`` one pooled model.

    Args:
        n_shared: rounds of block 1, one tree on all rows. Defaults of the three: from the paper's grids.
        n_robust: rounds of block 2, two trees on all rows, weighted by how much each task is an outlier. Its steps are half
            as long as those of block 1 until the tasks have parted, so give it about twice the rounds.
        n_task: rounds of block 3, one tree a task.
        learning_rate: eta, 0.1 (paper, real data).
        max_depth: depth of the trees; the released code has stumps (1).
        max_bins: codes a column, 2 to 255.
        l2: lambda in gain and leaf values.
        theta_lr: step of theta; None for ``learning_rate`` (paper). Gradients are sums over the rows of a task.
        theta_l2: tau, shrinks theta by ``theta_lr tau theta`` a round; 0.
        theta_clip: theta stays within plus and minus this; 8.
        theta_init_std: standard deviation of the first thetas; 0.1 (paper). With 0 no task ever parts from the others.
        min_samples_leaf: least rows a leaf.
        task_min_samples_leaf: the same in block 3; None for ``min_samples_leaf``.
        subsample: share of rows that a tree sees, drawn anew each round.
        early_stopping: hold out rows of each task; each block stops on its own and goes back to its best round.
        validation_fraction: the share held out, 0.1.
        n_iter_no_change: rounds without a better held-out loss after which a block stops.
        from_zero: start at 0 in the unit of y, as in the paper. Default: fit ``(y - mean) / std``, so that no round is
            spent on the mean, and theta's steps do not depend on the unit.
        unseen: tasks that come up in `predict` only: ``"warn"`` (an average ordinary task) or ``"error"``.
        engine: ``"auto"``: trees from scikit-learn's histogram grower where it works, else ``"numpy"``.
        random_state: of the first thetas, subsamples and held-out rows.

    After ``fit``: ``tasks_ [T]``, ``task_outlier_score_ {label: s}`` (the majority lies below 0.5), ``outlier_tasks_``,
    ``train_score_ [rounds]``, ``validation_score_``, ``n_rounds_`` of each block.

    Raises:
        BadInput: see `fit` and `predict`.
    """

    def fit(self, X: Any, y: Any, task: Any = None) -> RMTGBRegressor:
        super().fit(X, y, task)
        return self

    fit.__doc__ = MultiTaskBoosting.fit.__doc__

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """R^2 of the predictions."""
        return float(r2_score(y, self.predict(X, task), sample_weight=sample_weight))

    def _targets(self, y: np.ndarray) -> tuple[np.ndarray, Loss, np.ndarray]:
        try:
            y = np.asarray(y, dtype=np.float64)
        except ValueError as error:
            raise BadInput(str(error), where="RMTGBRegressor.fit", fix="Give numbers as y") from error
        self.center_, self.scale_ = (0.0, 1.0) if self.from_zero else (float(y.mean()), float(y.std()) or 1.0)
        return (y - self.center_) / self.scale_, SquaredError(), np.zeros(1)

    def _answer(self, raw: np.ndarray) -> np.ndarray:
        return self.center_ + self.scale_ * raw[:, 0]

    def _more_state(self) -> dict[str, Any]:
        return {"center": self.center_, "scale": self.scale_}

    def _set_more_state(self, header: dict[str, Any]) -> None:
        self.center_, self.scale_ = header["center"], header["scale"]

"""What is minimized: squared error, or softmax cross-entropy. Residuals are negative gradients in the raw score H ``[n, K]``."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax


class SquaredError:
    """``0.5 (y - H)^2``, one column."""

    columns, copies = 1, 1

    def start(self, y: np.ndarray) -> np.ndarray:
        """The best constant raw score ``[K]``."""
        return np.array([y.mean()])

    def residual(self, y: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """``y - H``, ``[n, K]``."""
        return y[:, None] - raw

    def curvature(self, y: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Second derivative in H, ``[n, K]``."""
        return np.ones_like(raw)

    def loss(self, y: np.ndarray, raw: np.ndarray) -> float:
        """Mean over the rows."""
        return float(0.5 * np.mean((y - raw[:, 0]) ** 2))


class CrossEntropy:
    """Softmax cross-entropy over K classes; ``y`` holds class numbers.

    With two classes the residuals of the columns are each other's negative, and so are all trees: one column z is kept, which
    stands for the raw scores (-z, z).

    Args:
        classes: K >= 2.
    """

    def __init__(self, classes: int) -> None:
        self.columns = 1 if classes == 2 else classes
        self.copies = 2 if classes == 2 else 1  # how often a column counts in sums over the raw scores

    def start(self, y: np.ndarray) -> np.ndarray:
        """Raw scores whose softmax are the shares of the classes."""
        if self.copies == 2:
            share = y.mean()
            return np.array([0.5 * np.log(share / (1 - share))])
        logs = np.log(np.bincount(y, minlength=self.columns) / len(y))
        return logs - logs.mean()

    def shares(self, raw: np.ndarray) -> np.ndarray:
        """Probabilities ``[n, K]``."""
        if self.copies == 2:
            return np.column_stack([expit(-2 * raw[:, 0]), expit(2 * raw[:, 0])])
        return softmax(raw, axis=1)

    def residual(self, y: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """``onehot(y) - softmax(H)``, ``[n, columns]``."""
        if self.copies == 2:
            return y[:, None] - expit(2 * raw)
        out = -softmax(raw, axis=1)
        out[np.arange(len(y)), y] += 1
        return out

    def curvature(self, y: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """``p (1 - p)``, ``[n, columns]``."""
        p = expit(2 * raw) if self.copies == 2 else softmax(raw, axis=1)
        return p * (1 - p)

    def loss(self, y: np.ndarray, raw: np.ndarray) -> float:
        """Mean over the rows, in nats."""
        if self.copies == 2:
            return float(-np.mean(log_expit(np.where(y == 1, 2, -2) * raw[:, 0])))
        return float(-np.mean(log_softmax(raw, axis=1)[np.arange(len(y)), y]))


Loss = SquaredError | CrossEntropy

"""Tables from many tasks of which a few follow another function: the fourth scenario of R-MTGB (arXiv 2507.11411).

Functions are random features of a Gaussian process, ``f(x) = sqrt(2/N) sum_k a_k cos(w_k x / l + b_k)``, x uniform in (-1, 1)^d.
An ordinary task is ``0.9 f_common + 0.1 f_own``; the odd tasks share another common function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput

_FEATURES = 500  # N, as in the paper


@dataclass(frozen=True)
class TaskTable:
    """A table with the truth about its tasks.

    Args:
        x: ``[n, d]``.
        y: ``[n]`` float targets, or classes 0 and 1.
        task: int ``[n]`` in 0..T-1.
        train: bool ``[n]``.
        odd: bool ``[T]``: which tasks follow the other function.
    """

    x: np.ndarray
    y: np.ndarray
    task: np.ndarray
    train: np.ndarray
    odd: np.ndarray


def task_table(
    tasks: int = 10,
    odd: int = 2,
    *,
    rows: int = 100,
    test_rows: int = 700,
    dim: int = 5,
    own: float = 0.1,
    classes: bool = False,
    seed: int = 0,
) -> TaskTable:
    """Draws a table.

    Args:
        tasks: T.
        odd: how many of them share the other function (the last ones).
        rows, test_rows: training and test rows of each task.
        dim: d; the length scale is d / 4.
        own: share of a task's own function.
        classes: y is the sign of the function, as 0 and 1.
        seed: decides everything.

    Raises:
        BadInput: more odd tasks than tasks, or no rows.
    """
    if not 0 <= odd <= tasks or tasks < 1 or rows < 1:
        raise BadInput(f"{odd} odd ones among {tasks} tasks of {rows} rows", where="task_table")
    rng = np.random.default_rng(seed)
    each = rows + test_rows
    x = rng.uniform(-1, 1, (tasks * each, dim))
    task = np.repeat(np.arange(tasks), each)
    common, other = _function(dim, rng), _function(dim, rng)
    is_odd = np.arange(tasks) >= tasks - odd
    y = (1 - own) * np.where(is_odd[task], other(x), common(x))
    for r in range(tasks):
        mine = task == r
        y[mine] += own * _function(dim, rng)(x[mine])
    train = np.tile(np.arange(each) < rows, tasks)
    return TaskTable(x, (y > 0).astype(np.int64) if classes else y, task, train, is_odd)


def _function(dim: int, rng: np.random.Generator):
    a, w, b = rng.normal(size=_FEATURES), rng.normal(size=(dim, _FEATURES)), rng.uniform(0, 2 * np.pi, _FEATURES)
    return lambda x: np.sqrt(2 / _FEATURES) * np.cos(x @ w / (0.25 * dim) + b) @ a

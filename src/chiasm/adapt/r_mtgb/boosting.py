"""R-MTGB (arXiv 2507.11411): gradient boosting over many tasks that finds the odd ones.

    H(x, r) = F_sh(x) + (1 - s_r) F_no(x) + s_r F_out(x) + h_r(x),        s_r = sigmoid(theta_r)

Three blocks of rounds: (1) trees on all rows, shared; (2) two trees a round, weighted by how much each task is an outlier, and
a gradient step on theta; (3) one tree a task. All parts are sums of ``eta x`` regression trees on the residual R.
Codes are ``[d, n]`` (see `binning`), tasks int ``[n]``, raw scores ``[n, K]``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from chiasm.adapt.r_mtgb.forest import Forest
from chiasm.adapt.r_mtgb.growing import Engine, Grower, Shape
from chiasm.adapt.r_mtgb.losses import Loss


@dataclass(frozen=True)
class Settings:
    """What `boost` follows; names and defaults as in `chiasm.adapt.r_mtgb.RMTGBRegressor`."""

    rounds: tuple[int, int, int]
    rate: float
    theta_rate: float
    theta_l2: float
    theta_clip: float
    theta_init_std: float
    shape: Shape
    task_shape: Shape
    newton: bool
    subsample: float
    patience: int | None
    engine: Engine


@dataclass
class Boosted:
    """A fitted model. Trees lie round by round, within a round column by column, in block 3 then task by task.

    Args:
        shared, usual, odd, own: the trees of F_sh, F_no, F_out and of all h_r.
        thetas: ``[rounds of block 2 + 1, T]``, theta before the first and after each round.
        start: raw score before the first tree ``[K]``.
        tasks: T.
        train_score, validation_score: loss after each round; the second is empty without early stopping.
    """

    shared: Forest
    usual: Forest
    odd: Forest
    own: Forest
    thetas: np.ndarray
    start: np.ndarray
    tasks: int
    train_score: np.ndarray
    validation_score: np.ndarray

    @property
    def rounds(self) -> tuple[int, int, int]:
        """Rounds that each block kept."""
        k = len(self.start)
        return len(self.shared.roots) // k, len(self.usual.roots) // k, len(self.own.roots) // (k * self.tasks)

    def weights(self, done: int | None = None) -> np.ndarray:
        """``s_r [T]`` after ``done`` rounds of block 2; default all."""
        return expit(self.thetas[-1 if done is None else done])

    def raw(self, codes: np.ndarray, task: np.ndarray) -> np.ndarray:
        """H ``[n, K]``; a row of task -1 has none of the tasks seen: mean s of the majority, and no part of its own."""
        odd = with_unseen(self.weights())[task][:, None]
        usual = with_unseen(expit(-self.thetas[-1]))[task][:, None]
        out = np.repeat(self.start[None], codes.shape[1], axis=0)
        for k in range(len(self.start)):
            out[:, k] += self._column(self.shared, codes, k)
            out[:, k] += usual[:, 0] * self._column(self.usual, codes, k)
            out[:, k] += odd[:, 0] * self._column(self.odd, codes, k)
        for r in np.unique(task[task >= 0]):
            rows = np.flatnonzero(task == r)
            mine = np.ascontiguousarray(codes[:, rows])
            for k in range(len(self.start)):
                out[rows, k] += self._column(self.own, mine, k * self.tasks + r, len(self.start) * self.tasks)
        return out

    def _column(self, forest: Forest, codes: np.ndarray, first: int, step: int | None = None) -> np.ndarray:
        return forest.sums(codes, np.arange(first, len(forest.roots), step or len(self.start)))

    def staged(self, codes: np.ndarray, task: np.ndarray):
        """H ``[n, K]`` after each round, block after block."""
        columns = len(self.start)
        first, second, third = self.rounds
        out = np.repeat(self.start[None], codes.shape[1], axis=0)
        for i in range(first):
            out += self._round(self.shared, codes, i)
            yield out.copy()
        usual, odd = np.zeros_like(out), np.zeros_like(out)
        base = out.copy()
        for i in range(second):
            usual += self._round(self.usual, codes, i)
            odd += self._round(self.odd, codes, i)
            s = with_unseen(self.weights(i + 1))[task][:, None]
            rest = with_unseen(expit(-self.thetas[i + 1]))[task][:, None]
            out = base + rest * usual + s * odd
            yield out.copy()
        known = np.flatnonzero(task >= 0)
        mine = np.ascontiguousarray(codes[:, known])
        for i in range(third):
            for k in range(columns):
                tree = (i * columns + k) * self.tasks + task[known]
                out[known, k] += self.own.value[self.own.walk(mine, self.own.roots[tree])]
            yield out.copy()

    def _round(self, forest: Forest, codes: np.ndarray, i: int) -> np.ndarray:
        columns = len(self.start)
        return np.column_stack([forest.sums(codes, np.array([i * columns + k])) for k in range(columns)])

    def oriented(self, sizes: np.ndarray) -> Boosted:
        """The same function with the majority of tasks at s < 0.5: F_no and F_out change places, theta its sign.

        Args:
            sizes: rows of each task ``[T]``; they decide where as many tasks lie on either side.
        """
        beyond = self.thetas[-1] > 0
        more = beyond.sum() - (~beyond).sum()
        if more < 0 or (more == 0 and sizes[beyond].sum() <= sizes[~beyond].sum()):
            return self
        return replace(self, usual=self.odd, odd=self.usual, thetas=-self.thetas)


def with_unseen(s: np.ndarray) -> np.ndarray:
    """``s [T]`` and, as the last entry, what an unseen task gets: the mean of the larger group."""
    small = s < 0.5
    group = s[small] if 2 * small.sum() >= len(s) else s[~small]
    return np.append(s, group.mean())


def theta_gradient(
    residual: np.ndarray, usual: np.ndarray, odd: np.ndarray, theta: np.ndarray, task: np.ndarray, copies: int = 1
) -> np.ndarray:
    """Gradient of the summed loss in theta: ``g_r = - sum_i R_i s_r (1 - s_r) (F_out(x_i) - F_no(x_i))``, ``[T]``.

    Args:
        residual, usual, odd: ``[n, K]``.
        theta: ``[T]``.
        task: int ``[n]``.
        copies: how often a column counts (2 for the one column of two classes).
    """
    pull = (residual * (odd - usual)).sum(axis=1)
    return -copies * np.bincount(task, pull, len(theta)) * expit(theta) * expit(-theta)


def boost(
    codes: np.ndarray,
    used: np.ndarray,
    missing: int,
    y: np.ndarray,
    task: np.ndarray,
    start: np.ndarray,
    loss: Loss,
    settings: Settings,
    fit: np.ndarray,
    rng: np.random.Generator,
) -> Boosted:
    """Fits the three blocks.

    Args:
        codes: uint8 ``[d, n]``.
        used: codes of each column without the missing one.
        missing: the code of missing values.
        y: ``[n]`` targets, or class numbers.
        task: int ``[n]`` in 0..T-1; each occurs.
        start: raw score before the first tree ``[K]``.
        loss: what is minimized.
        settings: rounds, rates, limits.
        fit: bool ``[n]``: rows to learn from; the others are for early stopping.
        rng: first thetas and subsamples.
    """
    return _Run(codes, used, missing, y, task, start, loss, settings, fit, rng).all()


class _Run:
    """One fit: the parts of H on the training rows, and the trees so far."""

    def __init__(self, codes, used, missing, y, task, start, loss, settings, fit, rng) -> None:
        self.y, self.task, self.loss, self.settings, self.fit, self.rng = y, task, loss, settings, fit, rng
        self.codes, self.missing, self.start, self.tasks = codes, missing, start, int(task.max()) + 1
        self.whole = bool(fit.all())
        # Every task's theta is drawn, whatever block 2 does, so that settings can be compared with the same draws.
        self.theta = settings.theta_init_std * rng.standard_normal(self.tasks)
        self.first_theta = self.theta
        self.grower_for = lambda groups, count, shape: Grower(
            codes, used, missing, groups, count, fit, shape, settings.engine
        )
        self.raw = np.repeat(start[None], len(y), axis=0)
        self.train_score: list[float] = []
        self.validation_score: list[float] = []

    def all(self) -> Boosted:
        first, second, third = self.settings.rounds
        everyone = np.zeros(len(self.y), dtype=np.int64)
        pooled: Any = self.grower_for(everyone, 1, self.settings.shape) if first + second else None
        shared = [trees for (trees,) in self._block(first, lambda: self._shared(pooled))]
        self.usual, self.odd, self.base = np.zeros_like(self.raw), np.zeros_like(self.raw), self.raw.copy()
        robust = self._block(second, lambda: self._robust(pooled))
        per_task: Any = self.grower_for(self.task, self.tasks, self.settings.task_shape) if third else None
        own = [trees for (trees,) in self._block(third, lambda: self._own(per_task))]
        boosted = Boosted(
            Forest.join(shared, self.missing),
            Forest.join([usual for usual, _, _ in robust], self.missing),
            Forest.join([odd for _, odd, _ in robust], self.missing),
            Forest.join(own, self.missing),
            np.array([self.first_theta, *(theta for _, _, theta in robust)]),
            self.start,
            self.tasks,
            np.array(self.train_score),
            np.array(self.validation_score),
        )
        return boosted.oriented(np.bincount(self.task, minlength=self.tasks))

    def _block(self, rounds: int, one_round) -> list:
        """Runs a block; with early stopping it ends ``patience`` rounds after its best one, to which it returns."""
        done, patience = [], self.settings.patience
        best, kept, state = np.inf, 0, (self.raw.copy(), self.theta)
        if patience:
            best = self._held_out()
        for i in range(rounds):
            done.append(one_round())
            inside = (self.y, self.raw) if self.whole else (self.y[self.fit], self.raw[self.fit])
            self.train_score.append(self.loss.loss(*inside))
            if not patience:
                continue
            self.validation_score.append(self._held_out())
            if self.validation_score[-1] < best:
                best, kept, state = self.validation_score[-1], i + 1, (self.raw.copy(), self.theta)
            elif i + 1 - kept >= patience:
                break
        if patience:
            dropped = len(done) - kept
            if dropped:
                del self.train_score[-dropped:], self.validation_score[-dropped:]
            done = done[:kept]
            self.raw, self.theta = state
        return done

    def _held_out(self) -> float:
        return self.loss.loss(self.y[~self.fit], self.raw[~self.fit])

    def _residual(self) -> np.ndarray:
        return self.loss.residual(self.y, self.raw)

    def _drawn(self) -> np.ndarray | None:
        """The rows of this round, or None for all."""
        return None if self.settings.subsample >= 1 else self.rng.random(len(self.y)) < self.settings.subsample

    def _tree(
        self, grower: Grower, targets: np.ndarray, curvature: np.ndarray, drawn: np.ndarray | None
    ) -> tuple[Forest, np.ndarray]:
        """Trees by least squares with their leaves' values (times eta), and what they add to each row."""
        forest, leaves, sizes = grower.grow(targets, drawn)
        taking: Any = self.fit if drawn is None else self.fit & drawn
        if drawn is None and self.whole:
            taking = slice(None)
        n = len(forest.value)
        top = np.bincount(leaves[taking], targets[taking], n)
        below = np.bincount(leaves[taking], curvature[taking], n) if self.settings.newton else sizes
        below = below + grower.shape.l2
        forest.value = self.settings.rate * np.divide(top, below, out=np.zeros(n), where=below > 0)
        return forest, forest.value.take(leaves)

    def _columns(self, grower: Grower, targets: np.ndarray, curvature: np.ndarray, drawn) -> tuple[Forest, np.ndarray]:
        found = [self._tree(grower, targets[:, k], curvature[:, k], drawn) for k in range(targets.shape[1])]
        if len(found) == 1:
            return found[0][0], found[0][1][:, None]
        return Forest.join([f for f, _ in found], self.missing), np.column_stack([added for _, added in found])

    def _curvature(self) -> np.ndarray:
        # Only a Newton step looks at it.
        return self.loss.curvature(self.y, self.raw) if self.settings.newton else self.raw

    def _shared(self, grower: Grower) -> tuple[Forest]:
        forest, added = self._columns(grower, self._residual(), self._curvature(), self._drawn())
        self.raw += added
        return (forest,)

    def _robust(self, grower: Grower) -> tuple[Forest, Forest, np.ndarray]:
        residual, curvature, drawn, settings = self._residual(), self._curvature(), self._drawn(), self.settings
        s, rest = expit(self.theta)[self.task][:, None], expit(-self.theta)[self.task][:, None]
        odd_trees, odd = self._columns(grower, s * residual, s**2 * curvature, drawn)
        usual_trees, usual = self._columns(grower, rest * residual, rest**2 * curvature, drawn)
        fit = slice(None) if self.whole else self.fit
        gradient = theta_gradient(
            residual[fit], self.usual[fit], self.odd[fit], self.theta, self.task[fit], self.loss.copies
        )
        theta = self.theta - settings.theta_rate * (gradient + settings.theta_l2 * self.theta)
        # Sums over many rows drive theta far out, where s(1 - s) is so small that it never comes back.
        self.theta = np.clip(theta, -settings.theta_clip, settings.theta_clip)
        self.odd += odd
        self.usual += usual
        s, rest = expit(self.theta)[self.task][:, None], expit(-self.theta)[self.task][:, None]
        self.raw = self.base + rest * self.usual + s * self.odd
        return usual_trees, odd_trees, self.theta

    def _own(self, grower: Grower) -> tuple[Forest]:
        forest, added = self._columns(grower, self._residual(), self._curvature(), self._drawn())
        self.raw += added
        return (forest,)

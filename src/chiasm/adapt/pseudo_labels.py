"""Which guessed labels to believe: confidence, hard selection, soft weights, and what a selection costs and holds.

    >>> chosen = select(teacher_shares, requested=labels, threshold=0.7)
    >>> chosen.keep, chosen.labels, chosen.weights
    >>> print(chosen.report(true_labels))        # coverage and precision, overall and by class

Functions take numpy arrays or torch tensors and return the kind they were given; classes are the last axis. Nothing here has a
gradient: selections are decisions. Used by CrossTune (cross-tune) and CromSS (cromss).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, device

from chiasm.errors import BadInput, unknown_name
from chiasm.measure.vectors import to_numpy

Certainty = Literal["max", "margin", "entropy", "gini"]


def certainty(shares: Any, kind: Certainty = "max") -> Any:
    """How sure a prediction is, whatever it says: 1 for one-hot shares; uniform ones give 0 (``"max"``, ``"gini"``: 1/K).

    Args:
        shares: ``[..., K]`` probabilities.
        kind: the largest share; its lead over the second; ``1 - H(p) / ln K`` (CromSS's ``ce``); ``sum p^2``.

    Returns:
        ``[...]``.

    Raises:
        UnknownName: a kind that does not exist.
        BadInput: no classes.
    """
    shares = _shares(shares)
    xp, classes = array_namespace(shares), shares.shape[-1]
    if kind == "max":
        return xp.max(shares, axis=-1)
    if kind == "gini":
        return xp.sum(shares * shares, axis=-1)
    if kind == "margin":
        ordered = xp.sort(shares, axis=-1)
        return ordered[..., -1] - (ordered[..., -2] if classes > 1 else 0.0)
    if kind == "entropy":
        if classes == 1:
            return xp.ones_like(shares[..., 0])
        # p ln p is 0 at p = 0; its logarithm alone is not.
        logs = xp.log(xp.where(shares > 0, shares, xp.ones_like(shares)))
        return xp.clip(1 + xp.sum(shares * logs, axis=-1) / float(np.log(classes)), 0, 1)
    raise unknown_name("certainty", kind, ("max", "margin", "entropy", "gini"))


def label_confidence(shares: Any, labels: Any) -> Any:
    """The share that a prediction gives to a label: ``[...]``.

    Args:
        shares: ``[..., K]``.
        labels: whole numbers ``[...]`` in 0..K-1.

    Raises:
        BadInput: labels of another shape or outside the classes.
    """
    shares, labels = _shares(shares), _labels(labels, shares)
    xp = array_namespace(shares)
    at = xp.arange(shares.shape[-1], device=device(shares)) == labels[..., None]
    return xp.sum(xp.where(at, shares, xp.zeros_like(shares)), axis=-1)


@dataclass(frozen=True)
class Selection:
    """Labels that were guessed or asked for, and which of them are believed.

    Args:
        labels: ``[N]``; after relabeling, if there was any.
        keep: bool ``[N]``.
        confidence: ``[N]``, the teacher's share of the label.
        relabeled: bool ``[N]``: labels that are not the requested ones.
        classes: K.
    """

    labels: Any
    keep: Any
    confidence: Any
    relabeled: Any
    classes: int

    @property
    def weights(self) -> Any:
        """1 for what is kept, 0 for the rest, ``[N]``."""
        xp = array_namespace(self.keep)
        return xp.astype(self.keep, self.confidence.dtype)

    def report(self, truth: Any) -> Report:
        """Coverage and precision of this selection.

        Args:
            truth: true labels ``[N]``.
        """
        truth, labels, keep = (to_numpy(x).reshape(-1) for x in (truth, self.labels, self.keep))
        if truth.shape != labels.shape:
            raise BadInput(f"{len(truth)} true labels for {len(labels)}", where="Selection.report")
        right = (labels == truth) & keep
        kept = np.bincount(labels[keep], minlength=self.classes)
        held = np.bincount(labels[right], minlength=self.classes)
        asked = np.bincount(labels, minlength=self.classes)
        with np.errstate(invalid="ignore"):
            return Report(
                len(labels),
                int(keep.sum()),
                int(right.sum()),
                int(to_numpy(self.relabeled).sum()),
                kept / asked,
                held / kept,
            )


@dataclass(frozen=True)
class Report:
    """What a selection costs and holds.

    Args:
        count, kept, right: items, those kept, those kept with the right label.
        relabeled: items whose label was replaced.
        class_coverage, class_precision: by label ``[K]``; NaN where a class has no item, or none that is kept.
    """

    count: int
    kept: int
    right: int
    relabeled: int
    class_coverage: np.ndarray
    class_precision: np.ndarray

    @property
    def coverage(self) -> float:
        """Share of the items that is kept; NaN without items."""
        return self.kept / self.count if self.count else float("nan")

    @property
    def precision(self) -> float:
        """Share of the kept items whose label is right; NaN if none is kept."""
        return self.right / self.kept if self.kept else float("nan")

    def __str__(self) -> str:
        head = f"kept {self.kept} of {self.count}, coverage {self.coverage:.3f}, precision {self.precision:.3f}"
        lines = [
            f"  class {c}: coverage {a:.3f}, precision {b:.3f}"
            for c, (a, b) in enumerate(zip(self.class_coverage, self.class_precision, strict=True))
        ]
        return "\n".join([head + (f", {self.relabeled} relabeled" if self.relabeled else ""), *lines])


def select(
    shares: Any,
    *,
    requested: Any = None,
    threshold: float | Any = 0.7,
    relabel: float | None = None,
    share: float | None = None,
) -> Selection:
    """Keeps labels that a teacher believes.

    Without ``requested`` the labels are the teacher's. With it a label is kept if the teacher's best class is that label, and
    its share is at least the threshold (CrossTune's switch on the level of examples).

    Args:
        shares: teacher's probabilities ``[N, K]``.
        requested: labels ``[N]`` that the items should have, for example of generated texts.
        threshold: least share; one number, or one a class ``[K]``. Above 1 nothing is kept. 0.7 (cross-tune).
        relabel: items whose teacher's share is at least this take the teacher's label instead; 0.9 is usual.
        share: keep at most this share of the items of each label, the most confident ones (ties: the first).

    Raises:
        BadInput: shares that are no probabilities, labels outside the classes, thresholds of a wrong number.
    """
    shares = _shares(shares)
    if shares.ndim != 2:
        raise BadInput(f"shares have shape {tuple(shares.shape)}, not [N, K]", where="select")
    xp, classes = array_namespace(shares), shares.shape[1]
    guess = xp.argmax(shares, axis=1)
    best = xp.max(shares, axis=1)
    labels = guess if requested is None else xp.astype(_labels(requested, shares), guess.dtype)
    relabeled = labels != guess if relabel is not None else xp.zeros_like(guess, dtype=xp.bool)
    if relabel is not None:
        relabeled = relabeled & (best >= relabel)
        labels = xp.where(relabeled, guess, labels)
    limits = to_numpy(threshold).astype(np.float64).reshape(-1)
    if len(limits) not in (1, classes) or np.isnan(limits).any():
        raise BadInput(
            f"{len(limits)} thresholds for {classes} classes, or NaN among them",
            where="select",
            fix="Give one number, or one a class",
        )
    limits = xp.asarray(np.broadcast_to(limits, (classes,)).copy(), dtype=shares.dtype, device=device(shares))
    confidence = label_confidence(shares, labels)
    keep = (labels == guess) & (confidence >= xp.take(limits, labels, axis=0))
    if share is not None:
        keep = keep & _most_confident(confidence, labels, keep, share, classes)
    return Selection(labels, keep, confidence, relabeled, classes)


def _most_confident(confidence: Any, labels: Any, keep: Any, share: float, classes: int) -> Any:
    if not 0 <= share <= 1:
        raise BadInput(f"share {share} is not between 0 and 1", where="select")
    values, names, kept = to_numpy(confidence), to_numpy(labels), to_numpy(keep)
    chosen = np.zeros(len(values), dtype=bool)
    for c in range(classes):
        mine = np.flatnonzero((names == c) & kept)
        most = int(np.floor(share * (names == c).sum()))
        chosen[mine[np.argsort(-values[mine], kind="stable")[:most]]] = True
    return array_namespace(keep).asarray(chosen, device=device(keep))


def soft_weights(confidence: Any, labels: Any, share: float, *, balanced: bool = True) -> Any:
    """Weights of noisy labels: 1 for the most confident ``share`` of each class, less for the rest, never dropped (CromSS).

    With tau_c the confidence at place ``ceil(share x count)`` of class c, weights are ``clip(confidence / tau_c, 0, 1)``; where
    tau_c is 0 they are 1.

    Args:
        confidence: ``[...]``, at least 0.
        labels: whole numbers ``[...]``; negative ones are ignored items and get weight 0.
        share: rho, above 0, at most 1.
        balanced: a tau for each class; otherwise one for all.

    Raises:
        BadInput: shapes that differ, confidences that are negative or NaN, or a share outside its range.
    """
    confidence, labels = (x if hasattr(x, "shape") else np.asarray(x) for x in (confidence, labels))
    if not bool(array_namespace(confidence).all(confidence >= 0)):
        raise BadInput("confidences are negative or NaN", where="soft_weights", fix="Give numbers of at least 0")
    limits = class_thresholds(confidence, labels, share, balanced=balanced)
    return threshold_weights(confidence, labels, limits)


def class_thresholds(
    confidence: Any,
    labels: Any,
    share: float,
    *,
    classes: int | None = None,
    balanced: bool = True,
    bins: int | None = None,
) -> Any:
    """The confidence tau_c that the most confident ``share`` of each class reaches: at place ``ceil(share x count)`` (CromSS).

    Args:
        confidence: ``[...]``, at least 0; with ``bins`` at most 1.
        labels: whole numbers ``[...]``; negative ones do not count.
        share: rho, above 0, at most 1.
        classes: K; default the largest label and one. A label outside is refused.
        balanced: a tau for each class; otherwise one for all, ``[1]``.
        bins: read tau off a histogram of so many bins instead of sorting, for large batches: at most ``1 / bins`` too low,
            never too high.

    Returns:
        ``[K]``; NaN for a class without items.

    Raises:
        BadInput: shapes that differ, a share or a label outside its range.
    """
    if tuple(confidence.shape) != tuple(labels.shape):
        raise BadInput(f"{tuple(confidence.shape)} confidences, {tuple(labels.shape)} labels", where="class_thresholds")
    if not 0 < share <= 1:
        raise BadInput(f"share {share} is not in (0, 1]", where="class_thresholds")
    if bins is not None and bins < 1:
        raise BadInput(f"{bins} bins", where="class_thresholds", fix="Give at least 1, or None to sort")
    xp, where = array_namespace(confidence), device(confidence)
    flat, names = xp.reshape(confidence, (-1,)), xp.astype(xp.reshape(labels, (-1,)), xp.int64)
    used = names >= 0
    flat, names = flat[used], names[used]
    if not balanced:
        names, classes = xp.zeros_like(names), 1
    largest = int(xp.max(names)) if names.shape[0] else -1
    classes = largest + 1 if classes is None else classes
    if largest >= classes:
        raise BadInput(
            f"label {largest} lies outside the {classes} classes",
            where="class_thresholds",
            fix=f"Give 0 to {classes - 1}, and a negative number for ignored items",
        )
    if not names.shape[0]:
        return xp.full((classes,), float("nan"), dtype=flat.dtype, device=where)
    counts = xp.bincount(names, minlength=classes)
    # At least one: a class of a single pixel keeps its weight. A hair less before rounding up, since 0.7 x 10 is 7.000...1.
    places = xp.astype(xp.ceil(share * xp.astype(counts, xp.float64) - 1e-9), xp.int64)
    places = xp.where(places < 1, xp.ones_like(places), places)
    if bins is None:
        order = xp.argsort(flat, descending=True)
        order = order[xp.argsort(names[order], stable=True)]
        at = xp.cumulative_sum(counts) - counts + places - 1
        # A class without items points past its end; it becomes NaN below.
        limits = flat[order][xp.clip(at, 0, flat.shape[0] - 1)]
    else:
        cell = xp.clip(xp.astype(flat * bins, xp.int64), 0, bins - 1)
        tally = xp.reshape(xp.bincount(names * bins + cell, minlength=classes * bins), (classes, bins))
        above = xp.flip(xp.cumulative_sum(xp.flip(tally, axis=1), axis=1), axis=1)
        reached = xp.sum(xp.astype(above >= places[:, None], xp.int64), axis=1)
        limits = xp.astype(reached - 1, flat.dtype) / bins
    return xp.where(counts > 0, limits, xp.full_like(limits, float("nan")))


def threshold_weights(confidence: Any, labels: Any, thresholds: Any) -> Any:
    """``clip(confidence / tau_c, 0, 1)``; 1 where tau_c is 0 or NaN, 0 for ignored items.

    Args:
        confidence: ``[...]``.
        labels: whole numbers ``[...]``; negative ones are ignored items.
        thresholds: ``[K]`` from `class_thresholds`, or ``[1]``: one for all labels, whatever their number.

    Raises:
        BadInput: shapes that differ, or a label without a threshold.
    """
    if tuple(confidence.shape) != tuple(labels.shape):
        raise BadInput(
            f"{tuple(confidence.shape)} confidences, {tuple(labels.shape)} labels", where="threshold_weights"
        )
    xp, known = array_namespace(confidence), thresholds.shape[0]
    largest = int(xp.max(labels)) if math.prod(labels.shape) else -1
    if largest >= known and known != 1:
        raise BadInput(f"label {largest} for {known} thresholds", where="threshold_weights", fix="Give one a class")
    if not known:
        return xp.zeros_like(confidence)
    names = xp.clip(xp.astype(xp.reshape(labels, (-1,)), xp.int64), 0, known - 1)
    limits = xp.reshape(xp.take(thresholds, names, axis=0), tuple(confidence.shape))
    sure = limits > 0
    weights = xp.clip(confidence / xp.where(sure, limits, xp.ones_like(limits)), 0, 1)
    weights = xp.where(sure, weights, xp.ones_like(weights))
    return xp.where(labels >= 0, weights, xp.zeros_like(weights))


def coverage_precision(confidence: Any, right: Any, thresholds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and precision ``[J]`` of ``confidence >= t`` for each threshold: what a threshold buys.

    Args:
        confidence: ``[N]``.
        right: bool ``[N]``.
        thresholds: ``[J]``.

    Returns:
        Share of items kept, and share of right ones among these (NaN where none is kept).
    """
    values, right, limits = (to_numpy(x).reshape(-1) for x in (confidence, right, np.asarray(thresholds)))
    if len(values) != len(right) or not len(values):
        raise BadInput(f"{len(values)} confidences, {len(right)} outcomes", where="coverage_precision")
    order = np.argsort(values, kind="stable")
    kept = len(values) - np.searchsorted(values[order], limits, side="left")
    after = np.concatenate([np.cumsum(right[order][::-1].astype(np.int64))[::-1], [0]])
    with np.errstate(invalid="ignore"):
        return kept / len(values), after[len(values) - kept] / kept


def _shares(shares: Any) -> Any:
    """Probabilities ``[..., K]`` without a gradient."""
    shares = shares.detach() if hasattr(shares, "detach") else shares
    shares = shares if hasattr(shares, "shape") else np.asarray(shares, dtype=np.float64)
    if shares.ndim < 1 or not shares.shape[-1]:
        raise BadInput(f"shares have shape {tuple(shares.shape)}", where="pseudo labels", fix="Give [..., classes]")
    xp = array_namespace(shares)
    if not bool(xp.all((shares >= 0) & (shares <= 1 + 1e-4))):  # NaN fails too
        raise BadInput("shares are no probabilities", where="pseudo labels", fix="Give softmax outputs, not logits")
    return shares


def _labels(labels: Any, shares: Any) -> Any:
    xp = array_namespace(shares)
    labels = xp.asarray(labels, device=device(shares))
    if tuple(labels.shape) != tuple(shares.shape[:-1]):
        raise BadInput(f"{tuple(labels.shape)} labels for shares {tuple(shares.shape)}", where="pseudo labels")
    if not xp.isdtype(labels.dtype, "integral"):
        raise BadInput(f"labels of type {labels.dtype}", where="pseudo labels", fix="Give class numbers")
    if math.prod(labels.shape) and not bool(xp.all((labels >= 0) & (labels < shares.shape[-1]))):
        raise BadInput(
            f"a label lies outside the {shares.shape[-1]} classes",
            where="pseudo labels",
            fix=f"Give 0 to {shares.shape[-1] - 1}",
        )
    return labels

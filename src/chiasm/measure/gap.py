"""The gap between modalities, and what it does to comparisons inside one of them.

Liang et al. 2022, *Mind the Gap* (the gap vector); Cross the Gap (ICLR 2025, arXiv 2502.04263, intra-modal
misalignment); Huh et al. 2024, *The Platonic Representation Hypothesis* (mutual nearest neighbors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from chiasm.errors import BadInput
from chiasm.measure.hubness import nearest
from chiasm.measure.intervals import Interval
from chiasm.measure.positives import Positives
from chiasm.measure.ranking import evaluate
from chiasm.measure.vectors import as_rows, same_dim, to_numpy

# Rows of each modality that the separability classifier sees; more do not change two digits of an accuracy.
_CLASSIFIED = 4000


@dataclass(frozen=True, slots=True)
class ModalityGap:
    """Distance between two modalities on the unit sphere.

    Args:
        vector: mean of ``a`` minus mean of ``b`` ``[D]``, of the kind of the inputs.
        distance: its length, 0 to 2.
        relative: distance divided by the root mean square distance of rows to their own modality's mean; above 1 the
            modalities are further apart than they are wide.
        separability: accuracy of a linear classifier of the modality on rows it has not seen; 0.5 is chance.
    """

    vector: Any
    distance: float
    relative: float
    separability: float

    def to_json(self) -> dict[str, float]:
        return {"distance": self.distance, "relative": self.relative, "separability": self.separability}


def modality_gap(a: Any, b: Any, *, seed: int = 0) -> ModalityGap:
    """The gap between two sets of vectors, which need not be pairs.

    Args:
        a: ``[N, D]``; normalized first.
        b: ``[M, D]``.
        seed: of the classifier's split.

    Raises:
        BadInput: fewer than four rows on a side, other dimensions, NaN.
    """
    a, b = as_rows(a, "a"), as_rows(b, "b")
    same_dim(a, b, "a and b")
    if min(a.shape[0], b.shape[0]) < 4:
        raise BadInput(f"{a.shape[0]} and {b.shape[0]} rows", where="modality_gap", fix="Give at least four of each")
    xp = array_namespace(a, b)
    centers = [xp.mean(rows, axis=0) for rows in (a, b)]
    vector = centers[0] - centers[1]
    distance = float(xp.sqrt(xp.sum(vector * vector)))
    # E|x - mean|^2 = E|x|^2 - |mean|^2
    spread = [float(xp.mean(xp.sum(r * r, axis=1)) - xp.sum(c * c)) for r, c in zip((a, b), centers)]
    width = np.sqrt(max(np.mean(spread), 0.0))
    relative = distance / width if width > 1e-6 else (np.inf if distance > 1e-6 else 0.0)
    return ModalityGap(vector, distance, float(relative), _separability(to_numpy(a), to_numpy(b), seed))


def close_gap(a: Any, b: Any) -> tuple[Any, Any]:
    """Both modalities moved to their common center and scaled back to unit length: the control for gap-based
    explanations.

    Args:
        a: ``[N, D]``.
        b: ``[M, D]``.
    """
    a, b = as_rows(a, "a"), as_rows(b, "b")
    same_dim(a, b, "a and b")
    xp = array_namespace(a, b)
    half = (xp.mean(a, axis=0) - xp.mean(b, axis=0)) / 2
    return as_rows(a - half, "a"), as_rows(b + half, "b")


def neighbor_agreement(a: Any, b: Any, *, k: int = 10, chunk: int | None = None) -> np.ndarray:
    """Share of the k nearest neighbors that paired rows have in common, ``[N]`` (mutual nearest neighbors).

    1 means that both modalities arrange the same things alike; k / (N - 1) is chance.

    Args:
        a: ``[N, D]``.
        b: ``[N, E]``, row by row a pair; the widths may differ, since each side is compared with itself only.
        k: neighbors, default 10.
        chunk: rows at a time.

    Raises:
        BadInput: rows that are not pairs, fewer than two, NaN.
    """
    if a.shape[0] != b.shape[0]:
        raise BadInput(f"{a.shape[0]} and {b.shape[0]} rows are not pairs", where="neighbor_agreement")
    ours, theirs = (to_numpy(nearest(rows, None, k, chunk=chunk)[1]) for rows in (a, b))
    both = np.sort(np.concatenate([ours, theirs], axis=1), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(axis=1) / ours.shape[1]


@dataclass(frozen=True, slots=True)
class IntraModal:
    """Search inside one modality, with the item itself and with its partner in the other modality as the query.

    Args:
        native: mAP of ``a`` searching in ``a``.
        crossed: mAP of ``b`` searching in ``a`` for the same things (the item's own partner is left out in both).
        misalignment: crossed minus native with its paired interval; above 0 the space compares better across modalities
            than inside this one.
        agreement: mean share of common neighbors of paired rows, see `neighbor_agreement`.
    """

    native: float
    crossed: float
    misalignment: Interval
    agreement: float

    def to_json(self) -> dict[str, Any]:
        return {
            "native": self.native,
            "crossed": self.crossed,
            "misalignment": self.misalignment.to_json(),
            "agreement": self.agreement,
        }


def intra_modal_misalignment(
    a: Any, b: Any, relevant: Any, *, k: int = 10, chunk: int | None = None, seed: int = 0
) -> IntraModal:
    """Intra-modal misalignment of modality ``a``, measured without inverting features.

    Contrastive training compares across modalities only, so distances inside one of them are not trained. If the true
    partner of an item finds the item's kind better than the item itself does, they are misaligned.

    Args:
        a: ``[N, D]``, the modality under test.
        b: ``[N, D]``, row by row the partner of ``a``.
        relevant: which other rows are of the same kind: `Positives`, for example ``same_label(labels, labels)``, or
            another form that `Positives.of` takes. The row itself is always left out.
        k: neighbors of the agreement.
        chunk: queries at a time.
        seed: of the interval.

    Raises:
        BadInput: rows that are not pairs, no row with a relevant other row, NaN.
    """
    a, b = as_rows(a, "a"), as_rows(b, "b")
    same_dim(a, b, "a and b", paired=True)
    found = Positives.of(relevant, a.shape[0], a.shape[0])
    native, crossed = (
        evaluate(queries, a, found, exclude_self=True, metrics=("map",), ties="expected", chunk=chunk)
        for queries in (a, b)
    )
    gain = crossed.compare(native, "map", seed=seed)
    return IntraModal(native["map"], crossed["map"], gain, float(neighbor_agreement(a, b, k=k, chunk=chunk).mean()))


def _separability(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(seed)
    n = min(len(a), len(b), _CLASSIFIED)
    # The same rows on both sides where they are pairs, so that no partner of a training row is in the test half.
    rows = rng.permutation(len(a))[:n] if len(a) == len(b) else None
    sides = [x[rows if rows is not None else rng.permutation(len(x))[:n]].astype(np.float64) for x in (a, b)]
    half = n // 2
    train = np.concatenate([x[:half] for x in sides])
    test = np.concatenate([x[half:] for x in sides])
    if max(np.ptp(x, axis=0).max() for x in sides) < 1e-9:  # each modality is one point: no covariance to estimate
        return 1.0 if np.abs(sides[0][0] - sides[1][0]).max() > 1e-6 else 0.5
    # Shrinkage keeps the covariance invertible when there are fewer rows than dimensions (Ledoit & Wolf 2004).
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, np.repeat([0, 1], half))
    return float(np.mean(model.predict(test) == np.repeat([0, 1], n - half)))

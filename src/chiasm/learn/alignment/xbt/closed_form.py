"""Maps without training, and interpolation on the sphere: the baselines, and the companion that asks both models.

procrustes      R = U V^T with X_n^T X_o = U S V^T (R^T R = I where Dn >= Do)
slerp(u, v; a)  = sin((1-a) th) / sin(th) u + sin(a th) / sin(th) v,   th the angle between u and v
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput
from chiasm.measure import evaluate


def _sides(new: np.ndarray, old: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(new, np.float64), np.asarray(old, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or not len(x):
        raise BadInput(f"shapes {x.shape} and {y.shape} are not rows of the same items", where=where)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadInput("NaN or infinite values", where=where)
    return x, y


def procrustes(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The orthogonal R, float32 ``[Dn, Do]``, for which new R is nearest to old.

    Args:
        new: ``[N, Dn]``, rows in the new space.
        old: ``[N, Do]``, the same items in the old space.

    Raises:
        BadInput: shapes that do not fit, NaN.
    """
    x, y = _sides(new, old, "procrustes")
    u, _, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    return (u @ vt).astype(np.float32)


def least_squares(new: np.ndarray, old: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """W, float32 ``[Dn, Do]``, that minimizes |new W - old|^2 + ridge N |W|^2; arguments as in `procrustes`."""
    x, y = _sides(new, old, "least_squares")
    gram = x.T @ x + ridge * len(x) * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ y).astype(np.float32)


def slerp(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    """The point at a share of the arc from u to v.

    Args:
        u, v: ``[N, D]`` or ``[D]``, scaled to unit length here.
        share: 0 gives u, 1 gives v.

    Returns:
        float32, unit length. Opposite vectors have no arc: there the shorter way over no direction is undefined, and u
        (below one half) or v is returned.

    Raises:
        BadInput: a share outside [0, 1], or shapes that differ.
    """
    if not 0 <= share <= 1:
        raise BadInput(f"share {share} is outside 0..1", where="slerp")
    one, two = np.atleast_2d(np.asarray(u, np.float64)), np.atleast_2d(np.asarray(v, np.float64))
    if one.shape != two.shape:
        raise BadInput(f"shapes {one.shape} and {two.shape} differ", where="slerp")
    one, two = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (one, two))
    # From the chord, which stays exact for small angles where the arc cosine does not.
    angle = 2 * np.arctan2(np.linalg.norm(one - two, axis=1), np.linalg.norm(one + two, axis=1))[:, None]
    sine = np.sin(angle)
    arc = sine > 1e-7
    safe = np.where(arc, sine, 1.0)
    left = np.where(arc, np.sin((1 - share) * angle) / safe, float(share < 0.5))
    right = np.where(arc, np.sin(share * angle) / safe, float(share >= 0.5))
    found = unit((left * one + right * two).astype(np.float32))
    return found[0] if np.ndim(u) == 1 else found


class SlerpCompanion:
    """Procrustes, then interpolation between what the old and the new model say about a query.

    It needs the old model at query time. Share 0 is the old system, 1 the aligned new model.

    Args:
        shares: what is tried on the support set; 0, 0.1, ..., 1 (card).
    """

    def __init__(self, shares: Sequence[float] = tuple(i / 10 for i in range(11))) -> None:
        if not shares or min(shares) < 0 or max(shares) > 1:
            raise BadInput(f"shares {list(shares)}", where="SlerpCompanion", fix="Give numbers in 0..1")
        self.shares = tuple(shares)

    def fit(
        self,
        new_query: np.ndarray,
        old_query: np.ndarray,
        old_gallery: np.ndarray,
        *,
        rotation: np.ndarray | None = None,
    ) -> SlerpCompanion:
        """Fits R on the support set (or takes it) and picks the share with the best R@1 there; the first one of equals.

        Args:
            new_query: ``[S, Dn]``; old_query: ``[S, Do]``; old_gallery: ``[S, Do]``: row by row one pair. Equal rows of the
                gallery (a picture with several captions) are one item.
            rotation: R from another support set, for example of texts.
        """
        gallery, right = np.unique(np.asarray(old_gallery, np.float32), axis=0, return_inverse=True)
        self.rotation_ = procrustes(new_query, old_query) if rotation is None else np.asarray(rotation, np.float32)
        figures = [
            evaluate(self._mix(new_query, old_query, share), gallery, right.ravel(), metrics=("hit@1",))["hit@1"]
            for share in self.shares
        ]
        self.share_ = self.shares[int(np.argmax(figures))]
        return self

    def _mix(self, new: np.ndarray, old: np.ndarray, share: float) -> np.ndarray:
        return slerp(old, np.asarray(new, np.float32) @ self.rotation_, share)

    def transform(self, new_query: np.ndarray, old_query: np.ndarray) -> np.ndarray:
        """Queries for the old gallery, float32 ``[N, Do]`` of unit length.

        Raises:
            BadInput: before `fit`.
        """
        if not hasattr(self, "share_"):
            raise BadInput("is not fitted", where="SlerpCompanion", fix="Call fit first")
        return self._mix(new_query, old_query, self.share_)

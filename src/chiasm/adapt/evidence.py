"""Opinions: how much evidence there is for each class, how uncertain that leaves us, and what two sources say together.

Subjective logic (Josang 2016) as in evidential deep learning (Sensoy and others 2018, arXiv 1806.01768) and trusted multi-view
classification (Han and others 2021, arXiv 2102.02051). With evidence ``e_k >= 0`` for K classes, ``alpha = e + 1``, ``S = sum alpha``:

    belief b_k = e_k / S,    uncertainty u = K / S,    expected share p_k = alpha_k / S,    sum_k b_k + u = 1

    >>> both = fuse(from_shares(from_texts, 10.0), from_shares(from_pictures, 2.0))    # worth 10 and 2 observations
    >>> both.shares, both.uncertainty                                                   # [N, K], [N]

A block for classifiers that must say how much they know, and for two of them that disagree (`docs/adapters.md` has an example);
evidential methods train on `evidence` of their scores.

Functions take numpy arrays or torch tensors (gradients pass) and return their kind; classes are the last axis.
u depends on the number of classes: never compare opinions over different label sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from chiasm.errors import BadInput, unknown_name

# exp(10) = 22,026 pieces of evidence: more cannot be told apart in float32.
_LARGEST_EXPONENT = 10.0
# Two sources that exclude each other altogether have no joint opinion.
_CONFLICT = 1e-6


@dataclass(frozen=True)
class Opinion:
    """Beliefs and what is left open.

    Args:
        belief: ``[..., K]``, at least 0.
        uncertainty: ``[...]``; with the beliefs it sums to 1.
    """

    belief: Any
    uncertainty: Any

    @property
    def classes(self) -> int:
        """K."""
        return int(self.belief.shape[-1])

    @property
    def strength(self) -> Any:
        """``S = K / u``, ``[...]``."""
        return self.classes / self.uncertainty

    @property
    def evidence(self) -> Any:
        """``e = b S``, ``[..., K]``."""
        return self.belief * self.strength[..., None]

    @property
    def shares(self) -> Any:
        """Expected probabilities ``(e + 1) / S = b + u / K``, ``[..., K]``."""
        return self.belief + self.uncertainty[..., None] / self.classes


def evidence(scores: Any, kind: Literal["softplus", "exp", "relu", "tanh"] = "softplus", scale: float = 1.0) -> Any:
    """Evidence from scores.

    Args:
        scores: ``[..., K]``.
        kind: ``softplus(s)``; ``exp(s)``; ``max(s, 0)``; or ``exp(tanh(s) / 0.1)``, as in evidential cross-modal matching.
        scale: the scores are multiplied by it first; with very many classes softplus alone leaves u near 1.

    Raises:
        UnknownName: a kind that does not exist.
    """
    scores = scores if hasattr(scores, "shape") else np.asarray(scores, dtype=np.float64)
    xp = array_namespace(scores)
    scores = scores * scale
    if kind == "softplus":
        # log(1 + exp(s)), written so that nothing overflows.
        return xp.clip(scores, 0, None) + xp.log1p(xp.exp(-xp.abs(scores)))
    if kind == "exp":
        return xp.exp(xp.clip(scores, None, _LARGEST_EXPONENT))
    if kind == "relu":
        return xp.clip(scores, 0, None)
    if kind == "tanh":
        return xp.exp(xp.clip(xp.tanh(scores) / 0.1, None, _LARGEST_EXPONENT))
    raise unknown_name("kind of evidence", kind, ("softplus", "exp", "relu", "tanh"))


def opinion(found: Any) -> Opinion:
    """The opinion that evidence gives.

    Args:
        found: evidence ``[..., K]``, at least 0.

    Raises:
        BadInput: no classes, or evidence that is negative, infinite or not a number.
    """
    found = found if hasattr(found, "shape") else np.asarray(found, dtype=np.float64)
    xp = array_namespace(found)
    if found.ndim < 1 or not found.shape[-1]:
        raise BadInput(f"evidence has shape {tuple(found.shape)}", where="opinion", fix="Give [..., classes]")
    if not bool(xp.all((found >= 0) & (found < float("inf")))):
        raise BadInput(
            "evidence is negative or not a finite number", where="opinion", fix="Pass scores through evidence() first"
        )
    strength = xp.sum(found, axis=-1) + found.shape[-1]
    return Opinion(found / strength[..., None], found.shape[-1] / strength)


def from_shares(shares: Any, strength: float | Any) -> Opinion:
    """The opinion of a source that gives probabilities and is worth so many observations.

    Args:
        shares: ``[..., K]``.
        strength: pieces of evidence ``[...]`` or one number, at least 0.

    Raises:
        BadInput: shares above 1, a strength of another shape, or evidence that `opinion` refuses.
    """
    shares = shares if hasattr(shares, "shape") else np.asarray(shares, dtype=np.float64)
    xp = array_namespace(shares)
    if shares.ndim < 1 or not shares.shape[-1] or bool(xp.any(shares > 1 + 1e-4)):
        raise BadInput("shares are no probabilities", where="from_shares", fix="Give softmax outputs [..., classes]")
    if np.ndim(strength) and tuple(np.shape(strength)) != tuple(shares.shape[:-1]):
        raise BadInput(
            f"strength {tuple(np.shape(strength))} for shares {tuple(shares.shape)}",
            where="from_shares",
            fix="Give one number, or one an item",
        )
    weight = xp.zeros_like(shares[..., 0]) + strength
    return opinion(shares * weight[..., None])


def fuse(*opinions: Opinion) -> Opinion:
    """Dempster's rule for independent sources, one after the other.

        C = sum_{i != j} b1_i b2_j,    b_k = (b1_k b2_k + b1_k u2 + b2_k u1) / (1 - C),    u = u1 u2 / (1 - C)

    A source without evidence (u = 1) changes nothing. Where two sources exclude each other (C = 1) their average is taken.

    Raises:
        BadInput: none, or opinions over different items or numbers of classes.
    """
    _check_alike(opinions, "fuse")
    joint = opinions[0]
    for other in opinions[1:]:
        joint = _two(joint, other)
    return joint


def _check_alike(opinions: tuple[Any, ...], where: str) -> None:
    if not opinions:
        raise BadInput("no opinion", where=where, fix="Give at least one")
    strange = [type(one).__name__ for one in opinions if not isinstance(one, Opinion)]
    if strange:
        raise BadInput(f"a {strange[0]} is no opinion", where=where, fix="Make one with opinion() or from_shares()")
    if len({(type(one.belief), tuple(one.belief.shape)) for one in opinions}) > 1:
        shapes = ", ".join(f"{type(one.belief).__name__} {tuple(one.belief.shape)}" for one in opinions)
        raise BadInput(
            f"opinions over different items or classes: {shapes}", where=where, fix="Give beliefs [..., K] of one kind"
        )


def _two(a: Opinion, b: Opinion) -> Opinion:
    xp = array_namespace(a.belief)
    agreed = a.belief * b.belief
    # C in closed form: all products less the equal ones, no K x K table.
    conflict = xp.sum(a.belief, axis=-1) * xp.sum(b.belief, axis=-1) - xp.sum(agreed, axis=-1)
    rest = 1 - conflict
    possible = rest > _CONFLICT
    rest = xp.where(possible, rest, xp.ones_like(rest))
    belief = (agreed + a.belief * b.uncertainty[..., None] + b.belief * a.uncertainty[..., None]) / rest[..., None]
    uncertainty = a.uncertainty * b.uncertainty / rest
    return Opinion(
        xp.where(possible[..., None], belief, (a.belief + b.belief) / 2),
        xp.where(possible, uncertainty, (a.uncertainty + b.uncertainty) / 2),
    )


def average(*opinions: Opinion) -> Any:
    """Expected shares weighed by certainty, ``sum (1 - u_m) p_m / sum (1 - u_m)``, ``[..., K]``: the simple way to fuse.

    Where no source knows anything the shares are uniform.

    Raises:
        BadInput: none, or opinions over different items or numbers of classes.
    """
    _check_alike(opinions, "average")
    xp = array_namespace(opinions[0].belief)
    weight = sum(1 - one.uncertainty for one in opinions)
    some: Any = weight > 0
    safe = xp.where(some, weight, xp.ones_like(weight))
    total = sum((1 - one.uncertainty)[..., None] * one.shares for one in opinions) / safe[..., None]
    return xp.where(some[..., None], total, xp.zeros_like(total) + 1 / opinions[0].classes)

"""Scores that say how well a picture belongs to the known classes; higher is more in-distribution.

For an image u, K known labels t_k and M negative labels n_m (unit vectors), temperature T:

    MCM        max_k softmax_k(u.t / T)                                                       T = 1
    NegLabel   sum_k exp(u.t_k/T) / (sum_k exp(u.t_k/T) + sum_m exp(u.n_m/T))                 T = 0.01
    energy     T log sum_k exp(u.t_k/T)         max-logit   max_k u.t_k         MSP   MCM at T = 0.01

MCM (arXiv 2211.13445), NegLabel (arXiv 2403.20078), energy (arXiv 2010.03759), max-logit (arXiv 1911.11132), MSP (arXiv 1610.02136);
the choice of temperatures is that of CMA (arXiv 2503.18817). Sums are taken in the log domain: in float32 a NegLabel score over
ten thousand labels is exactly 1.0 for most inputs, while its log-odds still rank them.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from chiasm.errors import BadInput
from chiasm.kernels.logsumexp import logsumexp_inner
from chiasm.measure.vectors import as_rows, same_dim

SCORES = ("neglabel", "mcm", "energy", "max_logit", "msp")
# A block of scores of 512 labels x 2048 images is 4 MB: it stays in the cache between product and sum.
LABELS_AT_ONCE, IMAGES_AT_ONCE = 512, 2048


def neglabel(
    images: Any,
    texts: Any,
    negatives: Any,
    *,
    temperature: float = 0.01,
    groups: int = 1,
    seed: int = 0,
    log_odds: bool = False,
    chunk: int = LABELS_AT_ONCE,
    image_chunk: int = IMAGES_AT_ONCE,
) -> Any:
    """NegLabel scores ``[N]``, streamed: O((chunk + groups) * image_chunk) memory beside the inputs.

    Args:
        images: ``[N, D]``, numpy or torch; rows are scaled to unit length.
        texts: ``[K, D]`` vectors of the known labels, K >= 1.
        negatives: ``[M, D]`` vectors of the negative labels; with M = 0 every score is 1.
        temperature: 0.01, the scale of CLIP.
        groups: the mean over g groups of negative labels, which are shuffled once (the remainder is dropped): g = 100 in the
            NegLabel paper, 1 (no groups) in CMA.
        seed: of that shuffle.
        log_odds: return ``log S - log(1 - S)``: the same ranking without saturation at 1.
        chunk, image_chunk: labels and images a block.

    Raises:
        BadInput: no known label, widths that differ, NaN, a temperature that is not positive, or more groups than negatives.
    """
    if negatives is None:
        raise BadInput("no negative labels", where="neglabel", fix="Give vectors [M, D], or use mcm")
    images, texts, negatives = _rows(images, texts, temperature, negatives)
    xp, scale, block = array_namespace(images), 1.0 / temperature, {"chunk": chunk, "item_chunk": image_chunk}
    count = negatives.shape[0]
    if not isinstance(groups, Integral) or groups < 1 or (count and groups > count):
        raise BadInput(
            f"{groups} groups of {count} negative labels",
            where="neglabel",
            fix="Give a whole number from 1 to the number of negative labels",
        )
    if not count:
        return xp.zeros_like(images[:, 0]) + (xp.inf if log_odds else 1.0)
    inside = logsumexp_inner(texts, images, scale, **block)
    if groups == 1:
        odds = inside - logsumexp_inner(negatives, images, scale, **block)
        return odds if log_odds else _sigmoid(xp, odds)
    each = count // groups
    order = np.random.default_rng(seed).permutation(count)[: groups * each]
    shuffled, parts = negatives[_index(order, negatives)], []
    for start in range(0, images.shape[0], image_chunk):
        rows = slice(start, start + image_chunk)
        odds = inside[rows] - logsumexp_inner(shuffled, images[rows], scale, groups=groups, **block)
        # log of the mean of S over the groups, and of the mean of 1 - S; the number of groups cancels out.
        parts.append(_logsumexp(xp, -_softplus(xp, -odds)) - _logsumexp(xp, -_softplus(xp, odds)))
    odds = xp.concat(parts) if parts else inside
    return odds if log_odds else _sigmoid(xp, odds)


def mcm(images: Any, texts: Any, *, temperature: float = 1.0, log: bool = False, chunk: int = IMAGES_AT_ONCE) -> Any:
    """Maximum concept matching ``[N]``: the largest softmax share among the known labels.

    Args:
        images, texts: as of `neglabel`.
        temperature: 1 in units of the cosine (no factor of 100).
        log: return its logarithm.
        chunk: images a block.
    """
    images, texts, _ = _rows(images, texts, temperature)

    def share(logits: Any, xp: Any) -> Any:
        top = xp.max(logits, axis=1)
        return -xp.log(xp.sum(xp.exp(logits - top[:, None]), axis=1))

    found = _blocks(images, texts, temperature, share, chunk)
    return found if log else array_namespace(found).exp(found)


def maximum_softmax(images: Any, texts: Any, *, temperature: float = 0.01, log: bool = False) -> Any:
    """MSP ``[N]``: `mcm` at the temperature that the model was trained with."""
    return mcm(images, texts, temperature=temperature, log=log)


def energy(images: Any, texts: Any, *, temperature: float = 0.01) -> Any:
    """Negative free energy ``[N]``, in units of the cosine: ``T log sum_k exp(u.t_k / T)``."""
    images, texts, _ = _rows(images, texts, temperature)
    return temperature * logsumexp_inner(texts, images, 1.0 / temperature)


def max_logit(images: Any, texts: Any, *, chunk: int = IMAGES_AT_ONCE) -> Any:
    """The largest cosine to a known label ``[N]``."""
    images, texts, _ = _rows(images, texts, 1.0)
    return _blocks(images, texts, 1.0, lambda logits, xp: xp.max(logits, axis=1), chunk)


def _rows(images: Any, texts: Any, temperature: float, negatives: Any = None) -> tuple[Any, Any, Any]:
    if not temperature > 0:
        raise BadInput(f"temperature {temperature} is not positive", where="score", fix="CLIP's is 0.01")
    images, texts = as_rows(images, "images"), as_rows(texts, "texts")
    same_dim(images, texts, "images and texts")
    if not texts.shape[0]:
        raise BadInput("no known label", where="texts", fix="Give the vector of at least one class")
    if negatives is not None:
        negatives = as_rows(negatives, "negatives")
        same_dim(images, negatives, "images and negatives")
    return images, texts, negatives


def _blocks(images: Any, texts: Any, temperature: float, reduce: Callable[[Any, Any], Any], chunk: int) -> Any:
    xp, scaled = array_namespace(images), texts / temperature
    parts = [reduce(images[i : i + chunk] @ scaled.T, xp) for i in range(0, images.shape[0], chunk)]
    return xp.concat(parts) if parts else images[:0, 0]


def _index(rows: np.ndarray, like: Any) -> Any:
    return rows if isinstance(like, np.ndarray) else array_namespace(like).asarray(rows, device=like.device)


def _softplus(xp: Any, x: Any) -> Any:
    """``log(1 + exp(x))`` without overflow."""
    return xp.where(x > 0, x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def _sigmoid(xp: Any, x: Any) -> Any:
    return xp.exp(-_softplus(xp, -x))


def _logsumexp(xp: Any, x: Any) -> Any:
    """Over the first axis."""
    top = xp.max(x, axis=0)
    return top + xp.log(xp.sum(xp.exp(x - top), axis=0))

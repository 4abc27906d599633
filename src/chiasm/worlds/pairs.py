"""Worlds of paired embeddings with one planted fault each, as the method cards state them.

Every generator returns a `PairWorld`: text and image vectors whose rows belong together, a bank of further pairs, and
the truth about the fault. In comparable worlds a text and its image can be compared by cosine at once; the others
(`attributes`, `channels`) are features for heads that are yet to be trained.

    >>> world = cone(seed=0)                     # 1000 test pairs, 4000 bank pairs, 64-d, unit length
    >>> world.text @ world.image.T               # the right answer of row i is column world.partner[i]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput, unknown_name
from chiasm.worlds.pair_world import PairWorld, axis_of, build, generator, shuffled, views, with_truth


def clean(n: int = 1000, bank: int = 4000, dim: int = 64, noise: float = 1.2, *, seed: int = 0) -> PairWorld:
    """No fault: text = norm(z + noise n1), image = norm(z + noise n2); the negative control of dbnorm and invgc."""
    rng = generator(seed, n, bank)
    text, image = views(rng, n + bank, dim, noise)
    return build("clean", "none", text, image, n, seed, {"dim": dim, "noise": noise})


def cone(
    n: int = 1000,
    bank: int = 4000,
    dim: int = 64,
    noise: float = 1.2,
    offset: float = 4.0,
    popularity: tuple[float, float] = (2.0, 2.0),
    *,
    seed: int = 0,
) -> PairWorld:
    """A cone with popularity along it (cards dbnorm and invgc, generator A).

    c a random unit vector, z ~ N(0, I): text = norm(z + noise n1 + offset c), image = norm(z + noise n2 + p c) with
    p ~ N(mean, sd^2) per item. ``popularity=(0, 2)`` is dbnorm's second negative control (a misleading gallery bank).

    Args:
        n, bank: test pairs and bank pairs.
        dim: length of the vectors.
        noise: standard deviation of each view's own part.
        offset: how far texts lie along the cone.
        popularity: mean and standard deviation of p.
        seed: seed.
    """
    rng = generator(seed, n, bank)
    axis = axis_of(rng, dim)
    text, image = views(rng, n + bank, dim, noise)
    p = popularity[0] + popularity[1] * rng.standard_normal(n + bank)
    world = build(
        "cone",
        "cone",
        text + offset * axis,
        image + p[:, None] * axis,
        n,
        seed,
        {"dim": dim, "noise": noise, "offset": offset, "popularity": list(popularity)},
    )
    return with_truth(world, n, {"axis": axis}, popularity=p)


def popularity(
    n: int = 1000,
    bank: int = 4000,
    dim: int = 64,
    noise: float = 1.2,
    offset: float = 4.0,
    hubs: float = 0.02,
    strength: float = 6.0,
    *,
    seed: int = 0,
) -> PairWorld:
    """A few popular items: a share ``hubs`` of the images leans toward the mean query, all others do not.

    text = norm(z + noise n1 + offset c), image = norm(z + noise n2 + strength c [is hub]). ``truth["hub"]`` names them.
    """
    rng = generator(seed, n, bank)
    axis = axis_of(rng, dim)
    text, image = views(rng, n + bank, dim, noise)
    hub = rng.random(n + bank) < hubs
    parameters = {"dim": dim, "noise": noise, "offset": offset, "hubs": hubs, "strength": strength}
    world = build(
        "popularity", "popularity", text + offset * axis, image + strength * hub[:, None] * axis, n, seed, parameters
    )
    return with_truth(world, n, {"axis": axis}, hub=hub)


def clusters(
    n: int = 1000,
    bank: int = 4000,
    dim: int = 64,
    centers: int = 40,
    pull: float = 5.0,
    noise: float = 1.0,
    spread: float = 0.5,
    *,
    seed: int = 0,
) -> PairWorld:
    """Local crowding (card invgc, generator B): clusters that draw some images in more than others.

    text = norm(z + noise n1 + pull e_y), image = norm(z + noise n2 + pull exp(spread xi) e_y), xi ~ N(0, 1), with
    ``centers`` random unit vectors e_y. ``pull=8`` is the card's warning case, ``pull=0`` its negative control.
    """
    rng = generator(seed, n, bank)
    middle = unit(rng.standard_normal((centers, dim)))
    text, image = views(rng, n + bank, dim, noise)
    cluster, crowd = rng.integers(0, centers, size=n + bank), np.exp(spread * rng.standard_normal(n + bank))
    text, image = text + pull * middle[cluster], image + pull * crowd[:, None] * middle[cluster]
    parameters = {"dim": dim, "centers": centers, "pull": pull, "noise": noise, "spread": spread}
    return with_truth(build("clusters", "clusters", text, image, n, seed, parameters), n, cluster=cluster, crowd=crowd)


def gap(
    n: int = 1000, bank: int = 4000, dim: int = 64, noise: float = 0.6, size: float = 0.7, *, seed: int = 0
) -> PairWorld:
    """A modality gap and nothing else: both views are moved apart by ``size`` along a direction that holds no content.

    text = norm(norm(P(z + noise n1)) + size/2 u), image = norm(norm(P(z + noise n2)) - size/2 u), where P removes the
    direction u; 0.7 as in card xbt. Every score loses the same amount, so rankings between the views do not change.
    """
    rng = generator(seed, n, bank)
    axis = axis_of(rng, dim)
    text, image = (unit(view - np.outer(view @ axis, axis)) for view in views(rng, n + bank, dim, noise))
    parameters = {"dim": dim, "noise": noise, "size": size}
    world = build(
        "gap", "gap" if size else "none", text + size / 2 * axis, image - size / 2 * axis, n, seed, parameters
    )
    return with_truth(world, n, {"axis": axis})


def noisy(
    n: int = 1000, bank: int = 4000, dim: int = 64, noise: float = 0.6, rate: float = 0.2, *, seed: int = 0
) -> PairWorld:
    """Noisy correspondence: the images of a share ``rate`` of the pairs are permuted among themselves.

    As in card pc2 a few stay matched by chance; ``noisy`` marks those that really changed. ``partner`` tells where each
    text's own image went.
    """
    rng = generator(seed, n, bank)
    text, image = views(rng, n + bank, dim, noise)
    return shuffled(
        build("noisy", "noise", text, image, n, seed, {"dim": dim, "noise": noise, "rate": rate}), rate, rng
    )


def image_only(
    n: int = 300,
    bank: int = 1000,
    dim: int = 64,
    shared: int = 10,
    classes: int = 20,
    own: float = 0.6,
    *,
    seed: int = 0,
) -> PairWorld:
    """Variation that only pictures have (card cross-the-gap, the linear toy).

    An orthonormal basis splits the space into ``shared`` dimensions S and the rest N. image = S (mu_class + 0.25 n) +
    2 own N n / sqrt(dim - shared); text = S (mu_class + 0.25 n'). ``truth`` has ``labels``, ``shared_basis``
    ``[dim, shared]`` and ``class_text`` ``[classes, dim]``. The bank is the gallery; ``own=0`` is the negative control.
    """
    rng = generator(seed, n, bank)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    both, rest = basis[:, :shared], basis[:, shared:]
    mean = unit(rng.standard_normal((classes, shared))) if shared > 1 else rng.standard_normal((classes, shared))
    labels = rng.integers(0, classes, size=n + bank)
    seen, read = (mean[labels] + 0.25 * rng.standard_normal((n + bank, shared)) for _ in range(2))
    image = seen @ both.T + 2 * own * rng.standard_normal((n + bank, dim - shared)) @ rest.T / np.sqrt(dim - shared)
    parameters = {"dim": dim, "shared": shared, "classes": classes, "own": own}
    world = build("image_only", "image_only" if own else "none", read @ both.T, image, n, seed, parameters)
    return with_truth(world, n, {"shared_basis": both, "class_text": unit(mean @ both.T)}, labels=labels)


def attributes(
    n: int = 500,
    bank: int = 3000,
    bits: int = 24,
    dim: int = 48,
    noise: float = 1.0,
    prototypes: int | None = None,
    on: float = 0.5,
    flip: float = 0.2,
    rate: float = 0.0,
    *,
    seed: int = 0,
) -> PairWorld:
    """Features of binary attributes, one random projection per modality (cards pc2, dbl, dcd); not comparable.

    Attributes a in {0, 1}^bits; text = (2a - 1) A + noise n1, image = (2a - 1) B + noise n2 with A, B ~ N(0, 1).
    The rows are not normalized. The test pairs are always clean; noise is put into the bank, which is the training set.

    Args:
        n, bank: test and training pairs; dbl uses 1000 and 3000, dcd 300 and 3000.
        bits: number of attributes.
        dim: length of the features of each modality.
        noise: 1 in pc2 and dcd, 2.2 in dbl.
        prototypes: pc2 uses 12: items are prototypes with each attribute flipped with probability ``flip``. Without
            prototypes every attribute is on with probability ``on``.
        on: see ``prototypes``.
        flip: see ``prototypes``.
        rate: share of the bank's captions that are permuted (pc2: 0.4 and 0.6).
        seed: seed.
    """
    rng = generator(seed, n, bank)
    truth: dict[str, np.ndarray] = {}
    if prototypes is not None:
        source = rng.random((prototypes, bits)) < 0.5
        labels = rng.integers(0, prototypes, size=n + bank)
        bit = source[labels] ^ (rng.random((n + bank, bits)) < flip)
        truth["labels"] = labels
    else:
        bit = rng.random((n + bank, bits)) < on
    signs = 2.0 * bit - 1
    text, image = (
        signs @ rng.standard_normal((bits, dim)) + noise * rng.standard_normal((n + bank, dim)) for _ in range(2)
    )
    parameters = {
        "bits": bits,
        "dim": dim,
        "noise": noise,
        "prototypes": prototypes,
        "on": on,
        "flip": flip,
        "rate": rate,
    }
    world = build("attributes", "noise" if rate else "none", text, image, n, seed, parameters, comparable=False)
    return shuffled(with_truth(world, n, None, attributes=bit, **truth), rate, rng, test=False)


def identities(
    ids: int = 400,
    views: int = 4,
    bits: int = 24,
    dim: int = 48,
    on: float = 0.3,
    keep: float = 0.8,
    noise: float = 1.0,
    *,
    seed: int = 0,
) -> PairWorld:
    """Several pairs per identity (card irra): every view keeps each attribute of its identity with probability ``keep``.

    The test half has ids // 2 other identities than the bank. ``truth["labels"]`` are the identities. Not comparable.
    """
    test = ids // 2
    rng = generator(seed, test * views, ids * views)
    labels = np.repeat(np.arange(test + ids), views)
    person = rng.random((test + ids, bits)) < on
    text, image = (
        (person[labels] & (rng.random((len(labels), bits)) < keep)) @ rng.standard_normal((bits, dim))
        + noise * rng.standard_normal((len(labels), dim))
        for _ in range(2)
    )
    parameters = {"ids": ids, "views": views, "bits": bits, "dim": dim, "on": on, "keep": keep, "noise": noise}
    return with_truth(
        build("identities", "none", text, image, test * views, seed, parameters, comparable=False),
        test * views,
        labels=labels,
    )


def channels(
    n: int = 1000,
    bank: int = 4000,
    dim: int = 64,
    block: int = 8,
    strong: float = 2.5,
    weak: float = 0.2,
    rotate: bool = True,
    *,
    seed: int = 0,
) -> PairWorld:
    """Channels of unequal worth, turned inside blocks (card gssf).

    z ~ N(0, I); x = z + sd e1, y = z + sd e2 with sd = ``strong`` on a random half of the channels and ``weak`` on the
    others; with ``rotate`` y is turned inside each block of ``block`` channels by a random orthogonal matrix; unit rows.
    ``strong == weak`` without rotation is the negative control.
    """
    if dim % block:
        raise BadInput(f"dim={dim} is no multiple of block={block}", where="channels")
    rng = generator(seed, n, bank)
    sd = np.where(np.argsort(rng.random(dim)) < dim // 2, strong, weak)
    z = rng.standard_normal((n + bank, dim))
    text, image = (z + sd * rng.standard_normal(z.shape) for _ in range(2))
    turns = np.stack([np.linalg.qr(rng.standard_normal((block, block)))[0] for _ in range(dim // block)])
    if rotate:
        image = np.einsum("nbi,bij->nbj", image.reshape(len(image), -1, block), turns).reshape(len(image), dim)
    fault = "channels" if rotate or strong != weak else "none"
    parameters = {"dim": dim, "block": block, "strong": strong, "weak": weak, "rotate": rotate}
    world = build("channels", fault, text, image, n, seed, parameters, comparable=not rotate)
    return with_truth(world, n, {"channel_noise": sd, "turns": turns})


KINDS: dict[str, Callable[..., PairWorld]] = {
    "clean": clean,
    "cone": cone,
    "popularity": popularity,
    "clusters": clusters,
    "gap": gap,
    "noisy": noisy,
    "image_only": image_only,
    "attributes": attributes,
    "identities": identities,
    "channels": channels,
}


def make_pairs(kind: str, *, seed: int = 0, **parameters: Any) -> PairWorld:
    """The world of a kind by name, with the generator's own parameters.

    Raises:
        UnknownName: a kind that does not exist.
    """
    if kind not in KINDS:
        raise unknown_name("pair world", kind, KINDS)
    return KINDS[kind](seed=seed, **parameters)

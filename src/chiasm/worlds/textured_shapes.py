"""Textured shapes of one or two colors on a textured ground, with the class of every pixel: a world to segment in.

    >>> classes = shape_classes(parts=2)                  # 16 combinations of shape, texture and colors; the last 4 are novel
    >>> world = shape_scenes(classes, 200, seed=0, among=range(12))
    >>> world.pictures, world.labels                      # uint8 [200, 64, 64, 3], uint8 [200, 64, 64]
    >>> texts = aspect_texts(classes, seed=0)             # float32 [16, 1 + 4, 48]: the name, then one row an aspect

The two colors of a two-part class complement each other, so the mean color of every such class is the same gray.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput, unknown_name

SIDE = 64
SHAPES = ("disk", "square", "triangle", "ring")
TEXTURES = ("plain", "stripes", "checks", "dots")
# Each color's complement stands three places further.
COLORS = ("red", "green", "blue", "cyan", "magenta", "yellow")
_RGB = np.array([[200, 50, 50], [50, 200, 50], [50, 50, 200], [50, 200, 200], [200, 50, 200], [200, 200, 50]], float)
ASPECTS = ("upper color", "lower color", "texture", "shape")
# Codes of the attributes are the same in all worlds, as words are.
_CODES = 20_260_202


@dataclass(frozen=True)
class ShapeClass:
    """Numbers of its shape, texture, upper and lower color."""

    shape: int
    texture: int
    upper: int
    lower: int

    @property
    def name(self) -> str:
        colors = COLORS[self.upper] if self.upper == self.lower else f"{COLORS[self.upper]} over {COLORS[self.lower]}"
        return f"{colors} {TEXTURES[self.texture]} {SHAPES[self.shape]}"


@dataclass(frozen=True)
class ShapeScenes:
    """N pictures.

    Args:
        pictures: uint8 ``[N, 64, 64, 3]``.
        labels: uint8 ``[N, 64, 64]``: 0 for the ground, 1 + the number of the class.
    """

    pictures: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self) -> np.ndarray:
        """float32 ``[N, 3, 64, 64]`` in [-1, 1]."""
        return (self.pictures.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)


def shape_classes(
    count: int = 16,
    novel: int = 4,
    *,
    parts: int = 2,
    textures: Sequence[str] = TEXTURES,
    seed: int = 0,
) -> list[ShapeClass]:
    """Different classes; every attribute of the last ``novel`` ones occurs among the others.

    Args:
        count: classes in all.
        novel: how many of them are novel.
        parts: 2 for two complementary colors, 1 for a single one.
        textures: those that occur.
        seed: decides them.

    Raises:
        UnknownName: a texture that does not exist.
        BadInput: more classes than there are combinations, or too few base classes to show every attribute.
    """
    for name in textures:
        if name not in TEXTURES:
            raise unknown_name("texture", name, TEXTURES)
    allowed = sorted({TEXTURES.index(name) for name in textures})
    combinations = len(SHAPES) * len(allowed) * len(COLORS)
    if parts not in (1, 2) or not 0 < novel < count <= combinations:
        raise BadInput(
            f"count={count}, novel={novel}, parts={parts} with {combinations} combinations",
            where="shape_classes",
            fix="Give fewer novel classes than classes, as many classes as combinations at most, and 1 or 2 parts",
        )
    for attempt in range(1000):
        rng = np.random.default_rng([seed, attempt])
        shape, rest = np.divmod(rng.permutation(combinations)[:count], len(allowed) * len(COLORS))
        texture, upper = np.divmod(rest, len(COLORS))
        texture = np.array(allowed)[texture]
        lower = (upper + 3) % 6 if parts == 2 else upper
        base = slice(0, count - novel)
        if all(set(x[count - novel :]) <= set(x[base]) for x in (shape, texture, upper, lower)):
            return [ShapeClass(*(int(v) for v in row)) for row in zip(shape, texture, upper, lower, strict=True)]
    raise BadInput(
        f"{count - novel} base classes do not show every attribute of {novel} novel ones",
        where="shape_classes",
        fix="Give more classes, or fewer novel ones",
    )


def shape_scenes(
    classes: Sequence[ShapeClass],
    n: int,
    *,
    seed: int = 0,
    among: Iterable[int] | None = None,
    objects: tuple[int, int] = (2, 4),
    jitter: float = 25.0,
    noise: float = 14.0,
) -> ShapeScenes:
    """Draws pictures with objects in different quarters.

    Args:
        classes: of which labels tell the number.
        n: pictures.
        seed: decides everything.
        among: numbers of the classes that occur; default all.
        objects: least and most objects a picture.
        jitter: standard deviation by which an object's colors differ from its class's, of 255.
        noise: standard deviation of the noise of every pixel.

    Raises:
        BadInput: nothing to draw.
    """
    allowed = np.array(sorted(range(len(classes)) if among is None else set(among)))
    outside = not len(allowed) or allowed[0] < 0 or allowed[-1] >= min(len(classes), 255)
    if n < 1 or outside or not 1 <= objects[0] <= objects[1] <= 4:
        raise BadInput(
            f"n={n}, {len(allowed)} classes, objects={objects}",
            where="shape_scenes",
            fix="Give a picture, a class, and 1 to 4 objects, the fewer first",
        )
    rng = np.random.default_rng([seed, 91])
    pictures = _grounds(n, rng)
    labels = np.zeros((n, SIDE, SIDE), dtype=np.uint8)
    for row in range(n):
        for quarter in rng.permutation(4)[: rng.integers(objects[0], objects[1] + 1)]:
            number = int(rng.choice(allowed))
            inside, colors = _drawn(classes[number], int(quarter), jitter, rng)
            pictures[row][inside] = colors[inside]
            labels[row][inside] = number + 1
    pictures += noise * rng.standard_normal(pictures.shape)
    return ShapeScenes(np.clip(np.round(pictures), 0, 255).astype(np.uint8), labels)


def _grounds(n: int, rng: np.random.Generator) -> np.ndarray:
    """Gray waves of random direction: float ``[n, 64, 64, 3]``."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle, length, phase = rng.uniform(0, np.pi, n), rng.uniform(5, 14, n), rng.uniform(0, 2 * np.pi, n)
    along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    gray = rng.uniform(90, 160, n)[:, None, None] + 22 * np.sin(
        2 * np.pi * along / length[:, None, None] + phase[:, None, None]
    )
    return np.repeat(gray[..., None], 3, axis=3)


def _drawn(kind: ShapeClass, quarter: int, jitter: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One object: bool ``[64, 64]`` and its colors ``[64, 64, 3]``."""
    radius = rng.uniform(9, 13)
    free = SIDE / 4 - radius - 1
    top, left = (SIDE / 4 + SIDE / 2 * np.array(divmod(quarter, 2))) + rng.uniform(-free, free, size=2)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    dy, dx = (y - top) / radius, (x - left) / radius
    distance = np.hypot(dx, dy)
    inside = [
        distance <= 1,
        np.maximum(np.abs(dx), np.abs(dy)) <= 0.9,
        (dy <= 0.85) & (np.abs(dx) <= 0.5 * (dy + 1.0)) & (dy >= -1),
        (distance <= 1) & (distance >= 0.5),
    ][kind.shape]
    colors = np.where((dy < 0)[..., None], _RGB[kind.upper], _RGB[kind.lower]) + jitter * rng.standard_normal(3)
    period, shift = 6, rng.integers(0, 6, size=2)
    across, down = ((x + shift[0]) % period) < period / 2, ((y + shift[1]) % period) < period / 2
    dark = [np.zeros_like(across), across, across ^ down, across & down][kind.texture]
    return inside, np.where(dark[..., None], 0.45 * colors, colors)


def aspect_texts(
    classes: Sequence[ShapeClass],
    *,
    seed: int = 0,
    dim: int = 48,
    noise: float = 0.5,
    name_noise: float = 1.0,
    named: float = 0.5,
) -> np.ndarray:
    """Text vectors: the name in row 0, then one row for each of `ASPECTS`; unit length.

    A name holds the codes of all attributes at once, and something of its own that means nothing. A sentence about an aspect
    is the code of that attribute with noise, and something of the name, as in "a photo of a NAME. It is round".

    Args:
        classes: K classes.
        seed: of the noise; the codes do not depend on it.
        dim: length of a vector.
        noise, name_noise: length of the noise, in units of the length of a code (of all of them together in a name).
        named: weight of the name in a sentence; 0 for sentences that leave it out.

    Returns:
        float32 ``[K, 5, dim]``.
    """
    rng, words = np.random.default_rng([seed, 92]), np.random.default_rng(_CODES)
    colors, places = words.standard_normal((len(COLORS), dim)), words.standard_normal((2, dim))
    textures, shapes = words.standard_normal((len(TEXTURES), dim)), words.standard_normal((len(SHAPES), dim))
    rows = np.array(
        [
            [
                colors[kind.upper] + 0.5 * places[0],
                colors[kind.lower] + 0.5 * places[1],
                textures[kind.texture],
                shapes[kind.shape],
            ]
            for kind in classes
        ]
    )
    names = rows.sum(axis=1, keepdims=True)
    names = names / np.linalg.norm(names, axis=2, keepdims=True)
    rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    names = names + name_noise * rng.standard_normal(names.shape) / np.sqrt(dim)
    rows = rows + named * names + noise * rng.standard_normal(rows.shape) / np.sqrt(dim)
    found = np.concatenate([names, rows], axis=1)
    return (found / np.linalg.norm(found, axis=2, keepdims=True)).astype(np.float32)

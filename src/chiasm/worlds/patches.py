"""Scenes without pixels: colored objects in a raster as patch vectors, and captions as word ids; made in milliseconds.

    >>> world = patch_scenes(3000, seed=0, languages=4)
    >>> world.patches            # float32 [3000, 16, 32]: color + object code of the cell's object, and noise everywhere
    >>> world.captions[0]        # int64 [3000, 5]: "color object relation color object" in the first language
    >>> world.cells[:, 0]        # the cell of the first mentioned object: word-patch alignment can be checked

For objectives that train small towers from scratch; `chiasm.worlds.make_scenes` draws real pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "gray", "brown")
OBJECTS = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
RELATIONS = ("left-of", "right-of", "above", "below")
# Ids of no language: padding, a word that is not known, a masked word.
PAD, UNKNOWN, MASK = 0, 1, 2
FIRST = 3
WORDS = len(COLORS) + len(OBJECTS) + len(RELATIONS)
# The codes of colors and objects are the same in all worlds, as words are.
_CODES = 20_260_101


@dataclass(frozen=True)
class PatchScenes:
    """N scenes.

    Args:
        patches: float32 ``[N, grid * grid, dim]``, row by row of the raster.
        captions: K arrays int64 ``[N, 5]``, one a language: color, object, relation, color, object.
        cells: int ``[N, objects]``, the cell of each object; the first two are those the caption speaks of.
        color, shape: int ``[N, objects]``, indices into `COLORS` and `OBJECTS`.
        relation: int ``[N]``, index into `RELATIONS`: how the first object stands to the second (-1 with one object).
        vocabulary: number of word ids, all languages together.
    """

    patches: np.ndarray
    captions: list[np.ndarray]
    cells: np.ndarray
    color: np.ndarray
    shape: np.ndarray
    relation: np.ndarray
    vocabulary: int

    def __len__(self) -> int:
        return len(self.patches)


def patch_scenes(
    n: int,
    *,
    seed: int = 0,
    objects: int = 3,
    grid: int = 4,
    dim: int = 32,
    noise: float = 0.35,
    languages: int = 1,
) -> PatchScenes:
    """Draws scenes.

    Args:
        n: how many.
        seed: decides them; the codes of colors and objects do not depend on it.
        objects: objects a scene, in different cells; no two have both color and shape in common.
        grid: the raster is ``grid x grid``.
        dim: length of a patch vector.
        noise: standard deviation of the noise on every entry; codes have entries of size 1 / sqrt(2).
        languages: how many lexicons; every language has its own words, and odd ones put the color after the object.

    Raises:
        BadInput: sizes that make no scene.
    """
    if n < 1 or not 1 <= objects <= grid * grid or languages < 1:
        raise BadInput(f"n={n}, objects={objects}, grid={grid}, languages={languages}", where="patch_scenes")
    codes = np.random.default_rng(_CODES).standard_normal((len(COLORS) + len(OBJECTS), dim)) / np.sqrt(2)
    rng = np.random.default_rng(seed)
    cells = rng.random((n, grid * grid)).argsort(axis=1)[:, :objects]
    kinds = len(COLORS) * len(OBJECTS)
    kind = rng.random((n, kinds)).argsort(axis=1)[:, :objects] if objects > 1 else rng.integers(0, kinds, (n, 1))
    color, shape = kind // len(OBJECTS), kind % len(OBJECTS)
    patches = noise * rng.standard_normal((n, grid * grid, dim))
    at = np.arange(n)[:, None]
    patches[at, cells] += codes[color] + codes[len(COLORS) + shape]
    second = min(1, objects - 1)
    relation = _relation(cells[:, 0], cells[:, second], grid, rng) if objects > 1 else np.full(n, -1)
    words = np.stack(
        [
            color[:, 0],
            len(COLORS) + shape[:, 0],
            len(COLORS) + len(OBJECTS) + np.maximum(relation, 0),
            color[:, second],
            len(COLORS) + shape[:, second],
        ],
        axis=1,
    )
    orders = ([0, 1, 2, 3, 4], [1, 0, 2, 4, 3])
    captions = [FIRST + k * WORDS + words[:, orders[k % 2]] for k in range(languages)]
    return PatchScenes(patches.astype(np.float32), captions, cells, color, shape, relation, FIRST + languages * WORDS)


def _relation(first: np.ndarray, second: np.ndarray, grid: int, rng: np.random.Generator) -> np.ndarray:
    """A relation that holds, drawn among those that do: cells differ in column, in row, or in both."""
    across, down = first % grid - second % grid, first // grid - second // grid
    sideways = np.where(across < 0, 0, 1)
    upright = np.where(down < 0, 2, 3)
    choose = (across != 0) & ((down == 0) | (rng.random(len(first)) < 0.5))
    return np.where(choose, sideways, upright)

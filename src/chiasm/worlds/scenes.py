"""Scenes of shapes with full ground truth: attributes, boxes, masks, relations, and everything that is said about them.

    >>> world = make_scenes(1000, seed=0)
    >>> scene = world[0]                      # objects, relations, captions, questions, negatives, tones
    >>> world.draw([0, 1, 2]).pictures        # uint8 [3, 64, 64, 3], with masks and boxes

Scene i depends on the seed, the settings and i alone: a larger world begins with the smaller one, and any rows can be
made without the others. ``VERSION`` changes whenever a seed would give other scenes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.errors import BadInput, unknown_name
from chiasm.worlds.layout import BLOCK, Layout, SceneSettings, draw_layout, sample
from chiasm.worlds.render import Drawing
from chiasm.worlds.vocabulary import COLORS, OPPOSITE, PLACES, SHAPES, SIZES, TEXTURES

VERSION = 1

_MARGIN = 0.45  # of a cell: two centers closer than this along an axis have no relation there


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: attributes, center and radius in pixels, box (left, top, right, bottom; right and bottom exclusive)."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    box: tuple[int, int, int, int]
    place: str

    def fits(self, attributes: dict[str, str]) -> bool:
        """True if it has all these attributes."""
        return all(getattr(self, name) == value for name, value in attributes.items())


@dataclass(frozen=True, slots=True)
class Scene:
    """The scene graph of one picture: its objects, from back to front, and all relations between them.

    ``relations`` holds (i, name, j) in both directions: (0, "left_of", 1) with (1, "right_of", 0). Two objects whose
    centers are about level have no relation along that axis, so every relation that is not there is either its
    opposite or undecided; `undecided` tells which.
    """

    index: int
    objects: tuple[SceneObject, ...]
    relations: frozenset[tuple[int, str, int]]
    seed: int

    def undecided(self, i: int, relation: str, j: int) -> bool:
        """True if neither the relation nor its opposite holds."""
        return (i, relation, j) not in self.relations and (i, OPPOSITE[relation], j) not in self.relations

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "seed": self.seed,
            "objects": [asdict(thing) for thing in self.objects],
            "relations": sorted(map(list, self.relations)),
        }


@dataclass(frozen=True)
class SceneWorld:
    """``n`` scenes; made by `make_scenes`. Pictures and sentences are made when they are asked for."""

    n: int
    seed: int
    settings: SceneSettings
    layout: Layout
    version: int = VERSION
    _boxes: list = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Scene:
        if not -self.n <= index < self.n:
            raise IndexError(index)
        return self._scene(index % self.n)

    def __iter__(self) -> Iterator[Scene]:
        return (self._scene(i) for i in range(self.n))

    def to_json(self) -> dict[str, Any]:
        """What makes this world again: kind, version, seed, n and settings."""
        return {
            "kind": "scenes",
            "version": self.version,
            "seed": self.seed,
            "n": self.n,
            "settings": asdict(self.settings),
        }

    def draw(self, rows: Sequence[int] | np.ndarray | slice | None = None) -> Drawing:
        """Pictures uint8 ``[n, H, H, 3]`` with visible masks, boxes and areas; all scenes without ``rows``."""
        index = np.arange(self.n)[slice(None) if rows is None else rows]
        parts = [self._draw(index[start : start + BLOCK]) for start in range(0, len(index), BLOCK)]
        parts = parts or [self._draw(index)]
        return Drawing(*(np.concatenate([getattr(part, name) for part in parts]) for name in Drawing.__slots__))

    def pictures(self, rows: Sequence[int] | np.ndarray | slice | None = None) -> np.ndarray:
        """Pictures uint8 ``[n, H, H, 3]``."""
        return self.draw(rows).pictures

    def masks(self, index: int) -> np.ndarray:
        """Visible pixels of each object of one scene, bool ``[objects, H, H]``."""
        labels = self._draw(np.array([index])).labels[0]
        return labels[None] == np.arange(1, len(self[index].objects) + 1)[:, None, None]

    def ground(self, rows: np.ndarray) -> np.ndarray:
        """The grounds uint8 ``[n, H, H, 3]`` on which the objects are drawn: a gray with a slope and fine noise."""
        side, noise = self.settings.size, self.settings.noise
        fine = np.zeros((len(rows), side, side), dtype=np.int16)
        for at, row in enumerate(rows if noise else ()):
            rng = np.random.Generator(np.random.PCG64([self.seed, int(row), 1]))
            fine[at] = rng.integers(-noise, noise + 1, size=(side, side), dtype=np.int8)
        gray = self.layout.gray[rows]
        ramp = np.linspace(-0.5, 0.5, side)
        slope = gray[:, 1, None, None] * ramp + gray[:, 2, None, None] * ramp[:, None]
        flat = np.clip(gray[:, 0, None, None] + np.floor(slope + 0.5) + fine, 0, 255).astype(np.uint8)
        return np.repeat(flat[..., None], 3, axis=3)

    def _draw(self, rows: np.ndarray) -> Drawing:
        return draw_layout(self.layout.rows(rows), self.ground(rows))

    def _scene(self, index: int) -> Scene:
        if not self._boxes:
            self._boxes.append(self._all_boxes())
        part, boxes = self.layout, self._boxes[0][index]
        cell = self.settings.size / self.settings.grid
        things = []
        for k in np.flatnonzero(part.shape[index] >= 0):
            x, y = float(part.x[index, k]), float(part.y[index, k])
            column, row = (min(2, int(3 * value / self.settings.size)) for value in (x, y))
            things.append(
                SceneObject(
                    SHAPES[part.shape[index, k]],
                    COLORS[part.color[index, k]],
                    TEXTURES[part.texture[index, k]],
                    SIZES[part.size[index, k]],
                    round(x, 3),
                    round(y, 3),
                    round(float(part.radius[index, k]), 3),
                    (int(boxes[k][0]), int(boxes[k][1]), int(boxes[k][2]), int(boxes[k][3])),
                    PLACES[3 * row + column],
                )
            )
        return Scene(index, tuple(things), relations(things, int(part.stack[index]), _MARGIN * cell), self.seed)

    def _all_boxes(self) -> np.ndarray:
        # Boxes come from the same raster as the masks; the ground does not matter, so none is made.
        parts = []
        for start in range(0, self.n, BLOCK):
            part = self.layout.rows(slice(start, start + BLOCK))
            blank = np.zeros((len(part.shape), self.settings.size, self.settings.size, 3), dtype=np.uint8)
            parts.append(draw_layout(part, blank).boxes)
        return np.concatenate(parts) if parts else np.zeros((0, self.settings.objects[1], 4), dtype=np.int16)


def make_scenes(n: int, *, seed: int = 0, settings: SceneSettings | None = None, **changes: Any) -> SceneWorld:
    """A world of ``n`` scenes.

    Args:
        n: number of scenes, at least 0.
        seed: the same seed gives the same scenes.
        settings: what may occur; by default `SceneSettings()`.
        **changes: fields of `SceneSettings` to change, for example ``objects=(2, 3)`` or ``split="unseen"``.

    Raises:
        BadInput: settings that cannot be met, or a negative ``n``.
        UnknownName: an attribute value, split or setting that does not exist.
    """
    if n < 0:
        raise BadInput(f"n={n} is negative", where="make_scenes")
    settings = settings or SceneSettings()
    known = SceneSettings.__dataclass_fields__
    for name in changes:
        if name not in known:
            raise unknown_name("setting", name, known)
    settings = replace(
        settings, **{name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    )
    layout = Layout.concatenate([sample(settings, seed, block) for block in range(max(1, -(-n // BLOCK)))])
    return SceneWorld(n, seed, settings, layout.rows(slice(n)))


def relations(things: Sequence[SceneObject], stack: int, margin: float) -> frozenset[tuple[int, str, int]]:
    """All relations between objects, in both directions.

    Args:
        things: the objects from back to front.
        stack: 1 if the last one lies in front of the one before it, 2 if inside it, else 0.
        margin: pixels by which two centers must differ along an axis.
    """
    found = set()
    for i, a in enumerate(things):
        for j, b in enumerate(things):
            if b.x - a.x >= margin:
                found |= {(i, "left_of", j), (j, "right_of", i)}
            if b.y - a.y >= margin:
                found |= {(i, "above", j), (j, "below", i)}
    if stack:
        top, under, name = len(things) - 1, len(things) - 2, ("in_front_of", "inside")[stack - 1]
        found |= {(top, name, under), (under, OPPOSITE[name], top)}
    return frozenset(found)

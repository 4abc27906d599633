"""Where things stand in a scene: what may occur, and the sampling of layouts in blocks of columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from chiasm.errors import BadInput, unknown_name
from chiasm.worlds import render
from chiasm.worlds.vocabulary import COLORS, SHAPES, SIZES, TEXTURES

SPLITS = ("all", "train", "unseen")
BLOCK = 256  # scenes are sampled in blocks, so that a prefix never depends on what follows

_RADII = np.array([0.28, 0.37, 0.47])  # of a cell, by size
_CONTAINERS = [SHAPES.index(shape) for shape in ("circle", "square", "ring")]  # in these a small shape has room
_TILTS = np.linspace(-12, 12, 9) * np.pi / 180
_SMALL, _LARGE = SIZES.index("small"), SIZES.index("large")


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """What a world of scenes may contain.

    Args:
        size: side of a picture in pixels, at least 24.
        objects: fewest and most objects in a scene.
        grid: objects stand near the centers of a ``grid`` x ``grid`` raster.
        shapes, colors, textures, sizes: the values that occur.
        repeats: share of scenes with two or more objects in which some of them are alike ("three red circles").
        stacks: share of scenes with two or more objects in which one is laid over or inside another, where there is room.
        split: ``"all"``; ``"train"``: only seen pairs of color and shape; ``"unseen"``: only the held-out ones.
        held_out: share of the color-shape pairs that are held out; each shape loses about the same number of colors.
        jitter: how far objects stray from the middle of their cells, as a share of the room they have there.
        tilts: whether objects are tilted by up to 12 degrees.
        noise: amplitude of the ground's noise in gray levels.
    """

    size: int = 64
    objects: tuple[int, int] = (1, 4)
    grid: int = 3
    shapes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = COLORS
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = SIZES
    repeats: float = 0.25
    stacks: float = 0.3
    split: str = "all"
    held_out: float = 0.125
    jitter: float = 0.9
    tilts: bool = True
    noise: int = 6

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("shape", self.shapes, SHAPES),
            ("color", self.colors, COLORS),
            ("texture", self.textures, TEXTURES),
            ("size", self.sizes, SIZES),
            ("split", (self.split,), SPLITS),
        ):
            for value in given:
                if value not in known:
                    raise unknown_name(kind, value, known)
            if not given or len(set(given)) != len(given):
                raise BadInput(f"{kind}s must be given, each once", where="SceneSettings")
        low, high = self.objects
        if not 1 <= low <= high <= min(9, self.grid**2):
            raise BadInput(
                f"objects={self.objects} does not fit a grid of {self.grid} x {self.grid} (at most 9)",
                where="SceneSettings",
            )
        if self.size < 24 or self.size // self.grid < 8:
            raise BadInput(
                f"size={self.size} is too small for grid={self.grid}",
                where="SceneSettings",
                fix="8 pixels per cell, 24 in all",
            )
        if not 0 <= self.noise <= 60:
            raise BadInput(f"noise={self.noise} is outside 0..60", where="SceneSettings")
        for name in ("repeats", "stacks", "held_out", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name}={getattr(self, name)} is outside 0..1", where="SceneSettings")
        if len(self.pairs()) < high:
            raise BadInput(
                f"{high} different objects need as many pairs of color and shape; split {self.split!r} leaves {len(self.pairs())}",
                where="SceneSettings",
                fix="Allow fewer objects, more colors or shapes, or another share held_out",
            )

    def pairs(self) -> np.ndarray:
        """The allowed (color, shape) pairs, indices into the vocabulary, ``[P, 2]``."""
        # Diagonals are held out one after another: every color and every shape stays in training.
        colors, shapes = np.meshgrid(range(len(self.colors)), range(len(self.shapes)), indexing="ij")
        width = max(len(self.colors), len(self.shapes))
        unseen = (colors + shapes) % width < round(self.held_out * width)
        keep = {"all": np.ones_like(unseen), "train": ~unseen, "unseen": unseen}[self.split]
        color = np.array([COLORS.index(value) for value in self.colors])
        shape = np.array([SHAPES.index(value) for value in self.shapes])
        return np.stack([color[colors[keep]], shape[shapes[keep]]], axis=1)


@dataclass(frozen=True, slots=True)
class Layout:
    """N scenes of up to K objects in columns.

    Args:
        shape, color, texture, size: int ``[N, K]``, indices into the vocabulary; ``shape`` is -1 where there is nothing.
        x, y, radius: float ``[N, K]`` in pixels.
        tilt: int ``[N, K]``, index into nine tilts from -12 to 12 degrees.
        stack: int ``[N]``: 1 if the last object lies in front of the one before it, 2 if inside it, else 0.
        gray: int ``[N, 3]``: gray level of the ground and its slope to the right and downward over the whole picture.
    """

    shape: np.ndarray
    color: np.ndarray
    texture: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    tilt: np.ndarray
    stack: np.ndarray
    gray: np.ndarray

    def rows(self, rows: np.ndarray | slice) -> Layout:
        """Some of the scenes."""
        return Layout(*(getattr(self, column.name)[rows] for column in fields(self)))

    @classmethod
    def concatenate(cls, parts: list[Layout]) -> Layout:
        return cls(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(cls)))


def sample(settings: SceneSettings, seed: int, block: int) -> Layout:
    """Block ``block`` of the layouts of a seed, `BLOCK` scenes.

    All draws have shapes that depend on the settings only, so no scene depends on the outcome of another.
    """
    rng = np.random.Generator(np.random.PCG64([seed, block, 0]))
    n, most, grid = BLOCK, settings.objects[1], settings.grid
    cell, slots = settings.size / grid, np.arange(most)
    count = rng.integers(settings.objects[0], most + 1, size=n)
    pairs = settings.pairs()
    chosen = pairs[np.argsort(rng.random((n, len(pairs))), axis=1)[:, :most]]
    texture = np.array([TEXTURES.index(value) for value in settings.textures])[
        rng.integers(0, len(settings.textures), size=(n, most))
    ]
    size = np.array([SIZES.index(value) for value in settings.sizes])[
        rng.integers(0, len(settings.sizes), size=(n, most))
    ]
    cells = np.argsort(rng.random((n, grid * grid)), axis=1)[:, :most]
    wobble = (rng.random((2, n, most)) * 2 - 1) * settings.jitter
    tilt = rng.integers(0, len(_TILTS), size=(n, most))
    if not settings.tilts:
        tilt[:] = len(_TILTS) // 2
    level, slope = rng.integers(150, 191, size=n), rng.integers(-18, 19, size=(n, 2))
    alike, lots, aside = rng.integers(2, max(3, most + 1), size=n), rng.random((3, n)), rng.integers(0, 8, size=n)

    # The first `alike` objects of a scene share all attributes.
    alike = np.where((lots[0] < settings.repeats) & (count >= 2), np.minimum(alike, count), 1)
    group = np.maximum(slots - (alike[:, None] - 1), 0)
    color, shape, texture, size = (
        np.take_along_axis(values, group, axis=1) for values in (chosen[:, :, 0], chosen[:, :, 1], texture, size)
    )
    radius = _RADII[size] * cell
    room = cell / 2 - radius
    layout = Layout(
        np.where(slots < count[:, None], shape, -1),
        color,
        texture,
        size,
        (cells % grid + 0.5) * cell + wobble[0] * room,
        (cells // grid + 0.5) * cell + wobble[1] * room,
        radius,
        tilt,
        np.zeros(n, dtype=int),
        np.concatenate([level[:, None], slope], axis=1),
    )
    # Two different objects of different color are needed at the end of the list to lay one over the other.
    wanted = np.flatnonzero((lots[1] < settings.stacks) & (count >= np.where(alike > 1, alike + 2, 2)))
    if len(wanted):
        kind = np.where(lots[2] < 0.5, 2, 1)
        for turn in (0, 3, 6, 1, 4):  # eighths of a turn: another side is tried where the first is not free
            rows = wanted[layout.stack[wanted] == 0]
            if len(rows):
                _stack(layout, rows, kind[rows], count[rows], aside[rows] + turn, settings, cell)
    return layout


def _stack(
    layout: Layout,
    rows: np.ndarray,
    kind: np.ndarray,
    count: np.ndarray,
    aside: np.ndarray,
    settings: SceneSettings,
    cell: float,
) -> None:
    """Lays the last object of scenes over (kind 1) or inside (kind 2) the one before it, where that gives a clear picture."""
    top, under = (rows, count - 1), (rows, count - 2)
    sizes_allow = {"small", "large"} <= set(settings.sizes)
    inside = (kind == 2) & np.isin(layout.shape[under], _CONTAINERS) & sizes_allow
    tried = layout.rows(rows)
    each = np.arange(len(rows))
    top_here, under_here = (each, count - 1), (each, count - 2)
    tried.size[top_here] = np.where(inside, _SMALL, tried.size[top_here])
    tried.size[under_here] = np.where(inside, _LARGE, tried.size[under_here])
    tried.radius[:] = _RADII[tried.size] * cell
    # The larger object comes back toward the middle of its cell, so that it stays in the picture.
    for axis, name in enumerate(("x", "y")):
        values = getattr(tried, name)
        center = (np.floor(values[under_here] / cell) + 0.5) * cell
        values[under_here] = np.where(inside, center, values[under_here])
        angle = aside * (np.pi / 4) - (np.pi / 2 if axis else 0)
        shift = np.where(inside, 0, 0.62 * (tried.radius[top_here] + tried.radius[under_here]) * np.cos(angle))
        values[top_here] = values[under_here] + shift
    tried.stack[:] = np.where(inside, 2, 1)
    good = _is_clear(tried, count, settings.size) & (layout.color[top] != layout.color[under])
    for column in fields(Layout):
        getattr(layout, column.name)[rows[good]] = getattr(tried, column.name)[good]


def _is_clear(layout: Layout, count: np.ndarray, side: int) -> np.ndarray:
    """True where the last two objects touch each other but nothing else, stay in the picture, and are both well seen."""
    each = np.arange(len(count))
    top, under = (each, count - 1), (each, count - 2)
    clear = np.ones(len(count), dtype=bool)
    for one in (top, under):
        reach = 0.95 * layout.radius[one]
        for values in (layout.x, layout.y):
            clear &= (values[one] >= reach) & (values[one] <= side - reach)
        apart = (
            np.hypot(layout.x - layout.x[one][:, None], layout.y - layout.y[one][:, None])
            - 1
            - layout.radius
            - layout.radius[one][:, None]
        )
        other = (layout.shape >= 0) & (np.arange(layout.shape.shape[1]) < (count - 2)[:, None])
        clear &= ((apart > 0) | ~other).all(axis=1)
    blank = np.zeros((len(count), side, side, 3), dtype=np.uint8)
    drawing = draw_layout(layout, blank)
    seen = (drawing.labels == count[:, None, None] - 1).sum(axis=(1, 2))
    whole, over = drawing.areas[under], drawing.areas[top]
    hidden = whole - seen
    front = (hidden >= 0.15 * np.minimum(whole, over)) & (seen >= 0.4 * whole)
    within = seen >= 0.25 * whole
    return clear & np.where(layout.stack == 2, within, front)


def draw_layout(layout: Layout, ground: np.ndarray) -> render.Drawing:
    """Draws a layout on grounds uint8 ``[N, H, H, 3]``."""
    turn = np.stack([np.cos(_TILTS), np.sin(_TILTS)], axis=1)[layout.tilt]
    return render.draw(layout.shape, layout.color, layout.texture, layout.x, layout.y, layout.radius, turn, ground)

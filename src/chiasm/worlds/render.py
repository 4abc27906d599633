"""Pictures of scenes: signed distances of the shapes, rasterized in numpy with smooth edges, many objects at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.worlds.vocabulary import COLORS, RGB, SHAPES, TEXTURES

# Nothing of a shape reaches further than this times its radius from its center.
REACH = 1.22
_PALETTE = np.array([RGB[color] for color in COLORS], dtype=np.float32)


def _second_colors(palette: np.ndarray) -> np.ndarray:
    """The color of stripes, dots and checks: the same hue, clearly darker on light colors and lighter on dark ones."""
    light = palette @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    darker, lighter = palette * 0.5, palette + (255 - palette) * 0.55
    return np.where(light[:, None] > 110, darker, lighter).astype(np.float32)


_SECOND = _second_colors(_PALETTE)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Pictures with their ground truth in pixels.

    Args:
        pictures: uint8 ``[N, H, W, 3]``.
        labels: uint8 ``[N, H, W]``: k + 1 where object k is seen, 0 on the ground.
        boxes: int16 ``[N, K, 4]``: left, top, right, bottom (exclusive) of each whole object, also where it is hidden.
        areas: int32 ``[N, K]``: pixels of each whole object, 0 where there is no object.
    """

    pictures: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray


def distance(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a shape of radius 1 around the origin (negative inside); y points down.

    Args:
        shape: index into `SHAPES`.
        x, y: coordinates in radii, any shape.
    """
    name = SHAPES[shape]
    if name == "circle":
        return np.sqrt(x * x + y * y) - 0.93
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8
    if name == "triangle":
        y = y - 0.2
        return np.maximum(y, 0.8660254 * np.abs(x) - 0.5 * y) - 0.55
    if name == "star":
        return _star(x, -y)
    if name == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.maximum(np.minimum(ax, ay) - 0.3, np.maximum(ax, ay) - 0.92)
    if name == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.79) - 0.17
    if name == "heart":
        return _heart(x, y)
    return 0.82 * (np.abs(x) / 0.7 + np.abs(y) - 1) * 0.7


def _star(x: np.ndarray, y: np.ndarray, inner: float = 0.45) -> np.ndarray:
    # Two reflections fold the five points onto one; what is left is the distance to one edge.
    ax, ay = 0.80901699, -0.58778525
    x = np.abs(x)
    for sign in (1, -1):
        fold = 2 * np.maximum(sign * ax * x + ay * y, 0)
        x, y = x - fold * sign * ax, y - fold * ay
    x, y = np.abs(x), y - 1
    bx, by = inner * 0.58778525, inner * 0.80901699 - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, 1)
    dx, dy = x - bx * along, y - by * along
    return np.sqrt(dx * dx + dy * dy) * np.sign(y * bx - x * by)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x) * 0.62, 0.55 - y * 0.62
    lobe = np.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2) - 0.35355339
    half = 0.5 * np.maximum(x + y, 0)
    low = np.minimum(x * x + (y - 1) ** 2, (x - half) ** 2 + (y - half) ** 2)
    return np.where(x + y > 1, lobe, np.sqrt(low) * np.sign(x - y)) / 0.62


def _pattern(texture: np.ndarray, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Share of the second color in [0, 1]; ``texture`` ``[n]``, coordinates in pixels ``[n, h, w]``."""
    share = np.zeros_like(x)
    for name, draw in (("striped", _stripes), ("dotted", _dots), ("checkered", _checks)):
        rows = np.flatnonzero(texture == TEXTURES.index(name))
        if len(rows):
            share[rows] = draw(x[rows], y[rows], period)
    return share


def _stripes(x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    phase = (x + y) * (0.70710678 / period)
    return _step((0.22 - np.abs(phase - np.floor(phase) - 0.5)) * period)


def _dots(x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    dx = x - period * np.floor(x / period + 0.5)
    dy = y - period * np.floor(y / period + 0.5)
    return _step(0.31 * period - np.sqrt(dx * dx + dy * dy))


def _checks(x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    # One check is 0.75 of a period wide, so that it is clearly larger than a dot.
    def side(value: np.ndarray) -> np.ndarray:
        phase = value / (1.5 * period)
        return np.clip((0.25 - np.abs(phase - np.floor(phase) - 0.5)) * 3 * period, -1, 1)

    return 0.5 + 0.5 * side(x) * side(y)


def _step(inside: np.ndarray) -> np.ndarray:
    """Coverage of a pixel whose center lies ``inside`` pixels inside an edge."""
    return np.clip(inside + 0.5, 0, 1)


def _windows(x: np.ndarray, y: np.ndarray, size: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel rows ``[n, w]`` and columns ``[n, w]`` of square windows around centers; may leave the picture."""
    half = int(np.ceil(reach)) + 1
    steps = np.arange(-half, half + 1)
    return np.floor(y).astype(int)[:, None] + steps, np.floor(x).astype(int)[:, None] + steps


def coverage(
    shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, turn: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """How much of each pixel n objects cover, on a window around each.

    Args:
        shape: ``[n]`` indices into `SHAPES`.
        x, y: ``[n]`` centers in pixels.
        radius: ``[n]`` in pixels.
        turn: ``[n, 2]`` cosine and sine of the tilt.
        size: side of the picture; cover is 0 outside.

    Returns:
        cover float32 ``[n, w, w]`` in [0, 1], rows ``[n, w]``, columns ``[n, w]`` and the objects' own coordinates
        in pixels ``[n, w, w]`` twice.
    """
    rows, columns = _windows(x, y, size, REACH * float(radius.max(initial=1)))
    px = (columns + 0.5 - x[:, None]).astype(np.float32)[:, None, :]
    py = (rows + 0.5 - y[:, None]).astype(np.float32)[:, :, None]
    cos, sin = (turn[:, i].astype(np.float32)[:, None, None] for i in (0, 1))
    own_x, own_y = px * cos + py * sin, py * cos - px * sin
    cover = np.zeros_like(own_x)
    for index in np.unique(shape):
        here = np.flatnonzero(shape == index)
        scale = radius[here].astype(np.float32)[:, None, None]
        cover[here] = _step(-distance(int(index), own_x[here] / scale, own_y[here] / scale) * scale)
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    cover *= inside
    return cover, np.clip(rows, 0, size - 1), np.clip(columns, 0, size - 1), own_x, own_y


def draw(
    shape: np.ndarray,
    color: np.ndarray,
    texture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    turn: np.ndarray,
    ground: np.ndarray,
) -> Drawing:
    """Draws N scenes of up to K objects; later objects lie over earlier ones.

    Args:
        shape, color, texture: int ``[N, K]``, indices into the vocabulary; ``shape`` is -1 where there is no object.
        x, y, radius: float ``[N, K]`` in pixels.
        turn: float ``[N, K, 2]`` cosine and sine of the tilt.
        ground: uint8 ``[N, H, H, 3]`` pictures to draw on; not changed.
    """
    n, k = shape.shape
    size = ground.shape[1]
    pictures = ground.copy()
    labels = np.zeros((n, size, size), dtype=np.uint8)
    boxes = np.zeros((n, k, 4), dtype=np.int16)
    areas = np.zeros((n, k), dtype=np.int32)
    for slot in range(k):
        scenes = np.flatnonzero(shape[:, slot] >= 0)
        if not len(scenes):
            continue
        at = (scenes, slot)
        cover, rows, columns, own_x, own_y = coverage(shape[at], x[at], y[at], radius[at], turn[at], size)
        share = _pattern(texture[at], own_x, own_y, size / 13)[..., None]
        first, second = (colors[color[at]][:, None, None, :] for colors in (_PALETTE, _SECOND))
        # Only windows are touched. A window that leaves the picture repeats border pixels there with cover 0, so each
        # such pixel must be written once only: write the covered ones.
        which, row, column = np.nonzero(cover > 0)
        to = (scenes[which], rows[which, row], columns[which, column])
        paint = first[which, 0, 0] + share[which, row, column] * (second - first)[which, 0, 0]
        alpha = cover[which, row, column][:, None]
        pictures[to] = (pictures[to] * (1 - alpha) + paint * alpha + 0.5).astype(np.uint8)
        solid = cover > 0.5
        full = cover[which, row, column] > 0.5
        labels[to[0][full], to[1][full], to[2][full]] = slot + 1
        boxes[scenes, slot] = _boxes(solid, rows, columns)
        areas[scenes, slot] = solid.sum(axis=(1, 2))
    return Drawing(pictures, labels, boxes, areas)


def _boxes(solid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Tight boxes ``[n, 4]`` of masks on windows."""
    some_rows: np.ndarray = np.any(solid, axis=2)
    some_columns: np.ndarray = np.any(solid, axis=1)
    each = np.arange(len(solid))
    top, left = some_rows.argmax(axis=1), some_columns.argmax(axis=1)
    bottom = some_rows.shape[1] - 1 - some_rows[:, ::-1].argmax(axis=1)
    right = some_columns.shape[1] - 1 - some_columns[:, ::-1].argmax(axis=1)
    return np.stack([columns[each, left], rows[each, top], columns[each, right] + 1, rows[each, bottom] + 1], axis=1)

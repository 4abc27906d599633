"""Single shapes in a shifted domain, half of their classes to tune on, half never seen: the world of prompt learning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.worlds.layout import draw_layout
from chiasm.worlds.mini import MiniClip, MiniSettings, mini_clip
from chiasm.worlds.scenes import make_scenes
from chiasm.worlds.vocabulary import COLORS, SHAPES

# As many layers in the text tower as in the vision tower, so that there is something to prompt in each half.
SETTINGS = MiniSettings(text_layers=4)
SMALL = MiniSettings(
    text_layers=4,
    vision_width=32,
    vision_mlp=32,
    text_width=32,
    text_mlp=32,
    dim=16,
    patch=16,
    scenes=128,
    single=128,
    epochs=1,
)


@dataclass(frozen=True)
class Domain:
    """Pictures of a base half and a novel half of the classes.

    Args:
        base, novel: class names ("red circle").
        shots: pixel values ``[base classes x shots, 3, 64, 64]`` of the base classes, and their labels.
        base_test, novel_test: pixel values and labels of other pictures.
    """

    base: list[str]
    novel: list[str]
    shots: tuple[Tensor, np.ndarray]
    base_test: tuple[Tensor, np.ndarray]
    novel_test: tuple[Tensor, np.ndarray]


def encoder(seed: int, small: bool = False) -> MiniClip:
    """The pre-trained mini dual encoder of a seed."""
    return mini_clip(seed=seed, settings=SMALL if small else SETTINGS)


def make_domain(
    mini: MiniClip,
    seed: int,
    *,
    invert: float = 0.3,
    clutter: int = 24,
    classes: int = 40,
    shots: int = 8,
    tests: int = 16,
    scenes: int = 4096,
) -> Domain:
    """A downstream domain.

    Args:
        mini: whose preprocessing is used.
        seed: of the classes, their split, and the pictures.
        invert: how far every color goes toward its inverse, 0 .. 1.
        clutter: gray squares that lie about on the ground, behind the shape.
        classes: pairs of color and shape, half of them base. The split is random: in the order of the alphabet base and
            novel classes would have no color in common.
        shots, tests: pictures of a class for tuning (of base classes) and for testing.
        scenes: pictures are drawn from so many random scenes.

    Raises:
        BadInput: another number of classes than 2 .. 64, or too few scenes to have all pictures of every class.
    """
    if not 2 <= classes <= len(COLORS) * len(SHAPES):
        raise BadInput(f"{classes} classes", where="make_domain", fix=f"Give 2 to {len(COLORS) * len(SHAPES)}")
    rng = np.random.default_rng([seed, 77])
    world = make_scenes(scenes, seed=5_000_000 + seed, objects=(1, 1), grid=4, jitter=0.0)
    kind = world.layout.color[:, 0] * len(SHAPES) + world.layout.shape[:, 0]
    chosen = rng.permutation(len(COLORS) * len(SHAPES))[:classes]
    names = [f"{COLORS[c // len(SHAPES)]} {SHAPES[c % len(SHAPES)]}" for c in chosen]

    def pictures(rows: np.ndarray) -> Tensor:
        ground = _cluttered(world.ground(rows), clutter, rng)
        seen = draw_layout(world.layout.rows(rows), ground).pictures.astype(np.float32)
        return mini.pixels(np.round(seen + invert * (255 - 2 * seen)).astype(np.uint8))

    half = classes // 2
    members = [np.flatnonzero(kind == c) for c in chosen]
    fewest = min(len(rows) for rows in members)
    if fewest < shots + tests:
        raise BadInput(
            f"{scenes} scenes have a class with {fewest} pictures, of which {shots} + {tests} are needed",
            where="make_domain",
            fix="Draw more scenes",
        )

    def part(which: range, start: int, count: int) -> tuple[Tensor, np.ndarray]:
        rows = [members[c][start : start + count] for c in which]
        return pictures(np.concatenate(rows)), np.repeat(np.arange(len(which)), [len(r) for r in rows])

    base, novel = range(half), range(half, classes)
    return Domain(names[:half], names[half:], part(base, 0, shots), part(base, shots, tests), part(novel, shots, tests))


def _cluttered(ground: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Grounds uint8 ``[n, H, H, 3]`` with gray squares of 3 to 6 pixels."""
    ground, side = ground.copy(), ground.shape[1]
    for picture in ground:
        for _ in range(count):
            size, gray = int(rng.integers(3, 7)), int(rng.integers(60, 240))
            top, left = rng.integers(0, side - size, size=2)
            picture[top : top + size, left : left + size] = gray
    return ground

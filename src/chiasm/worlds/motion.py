"""Scenes that move: short clips in which one object does one thing, with the frames of that highlight labeled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput
from chiasm.items import Sound
from chiasm.worlds import render
from chiasm.worlds.language import Mention, noun_phrase
from chiasm.worlds.layout import Layout, draw_layout
from chiasm.worlds.scenes import SceneWorld
from chiasm.worlds.sound import RATE, frequency
from chiasm.worlds.vocabulary import COLORS, SHAPES

EVENTS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks", "blinks")
_WAYS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip with its truth.

    Args:
        frames: uint8 ``[T, H, W, 3]``.
        fps: frames per second.
        labels: uint8 ``[T, H, W]``, k + 1 where object k is seen.
        highlight: bool ``[T]``, True where the event happens; one run.
        event: one of `EVENTS`.
        actor: the object that does it.
        caption: "a red circle moves left".
        sound: soft noise; during the highlight the tones of the actor's shape and color sound together.
    """

    frames: np.ndarray
    fps: int
    labels: np.ndarray
    highlight: np.ndarray
    event: str
    actor: int
    caption: str
    sound: Sound


def clip(world: SceneWorld, index: int, *, frames: int = 24, fps: int = 8) -> Clip:
    """The clip of one scene; the same for the same world and index.

    All objects sway by a pixel or so all the time; only the actor's event is larger than that.

    Args:
        world: where the scene comes from.
        index: which scene, from 0.
        frames: number of frames T, at least 8.
        fps: frames per second.

    Raises:
        BadInput: fewer than 8 frames, fps below 1, or an index outside the world.
    """
    if frames < 8 or fps < 1:
        raise BadInput(
            f"frames={frames} and fps={fps}", where="clip", fix="Take at least 8 frames and 1 frame per second"
        )
    if not 0 <= index < len(world):
        raise BadInput(f"there is no scene {index} in a world of {len(world)}", where="clip")
    rng = np.random.Generator(np.random.PCG64([world.seed, index, 5]))
    scene, side = world.layout.rows(slice(index, index + 1)), world.settings.size
    count = int((scene.shape[0] >= 0).sum())
    actor, event = int(rng.integers(0, count)), EVENTS[int(rng.integers(0, len(EVENTS)))]
    length = int(rng.integers(frames // 4, frames // 2 + 1))
    start = int(rng.integers(1, frames - length))
    highlight = np.zeros(frames, dtype=bool)
    highlight[start : start + length] = True
    many = Layout(*(np.repeat(getattr(scene, name), frames, axis=0) for name in Layout.__slots__))
    phase = rng.random((2, 1, scene.shape.shape[1])) * 2 * np.pi
    beat = 2 * np.pi * np.arange(frames)[:, None] / 16
    sway = side / 128
    many.x[:] += sway * np.sin(beat + phase[0])
    many.y[:] += sway * np.sin(beat + phase[1])
    # How far the event is, 0 .. 1 at its last frame; afterwards it stays where it came to.
    done = np.clip((np.arange(frames) - start + 1) / length, 0, 1)
    if event in _WAYS:
        # Toward the side on which there is room, so that the object never leaves the picture.
        way, x, y = _WAYS[event], float(scene.x[0, actor]), float(scene.y[0, actor])
        if ((x if way[0] else y) * 2 > side and sum(way) > 0) or ((x if way[0] else y) * 2 < side and sum(way) < 0):
            way = (-way[0], -way[1])
            event = next(name for name, other in _WAYS.items() if other == way)
        where = x if way[0] else y
        room = (side - where if sum(way) > 0 else where) - float(scene.radius[0, actor]) - sway
        far = min(0.4 * side, room)
        many.x[:, actor] += way[0] * far * done
        many.y[:, actor] += way[1] * far * done
    elif event in ("grows", "shrinks"):
        many.radius[:, actor] *= 1 + (0.5 if event == "grows" else -0.5) * done
    else:
        many.shape[:, actor] = np.where(highlight & (np.arange(frames) % 2 == start % 2), -1, many.shape[:, actor])
    ground = np.repeat(world.ground(np.array([index])), frames, axis=0)
    drawing: render.Drawing = draw_layout(many, ground)
    color, shape = COLORS[scene.color[0, actor]], SHAPES[scene.shape[0, actor]]
    caption = f"{noun_phrase(Mention(1, shape, color), 'en')} {event}"
    sound = _sound(highlight, fps, (frequency("shape", shape), frequency("color", color)), rng)
    return Clip(drawing.pictures, fps, drawing.labels, highlight, event, actor, caption, sound)


def _sound(highlight: np.ndarray, fps: int, tones: tuple[float, ...], rng: np.random.Generator) -> Sound:
    samples = RATE * len(highlight) // fps
    time = np.arange(samples) / RATE
    loud = highlight[np.minimum((time * fps).astype(int), len(highlight) - 1)]
    tone = sum((np.sin(2 * np.pi * hertz * time) for hertz in tones), np.zeros(samples))
    wave = 0.02 * (rng.random(samples) * 2 - 1) + 0.3 * loud * tone
    return Sound(np.round(wave * 32767).astype(np.float32) / np.float32(32767), RATE)

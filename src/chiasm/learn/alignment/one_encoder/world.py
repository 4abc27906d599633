"""Sixty concepts (shape, color, count) as pictures, sentences, sounds and clips, each through a frozen random encoder.

    >>> view = concept_view("audio", kinds=np.arange(60), seed=0)      # Features: tokens float32 [60, 16, 24]

Two items of one kind differ in places, sizes, loudness and noise. The encoders do not depend on the seed, as pretrained ones
would not.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from chiasm.errors import unknown_name
from chiasm.learn.features import Features

SHAPES = ("circle", "square", "triangle", "ring", "bar")
COLORS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
COUNTS = ("one", "two", "three")
KINDS = len(SHAPES) * len(COLORS) * len(COUNTS)
VIEWS = ("image", "text", "audio", "video")
SIDE, FRAMES, BANDS, STEPS = 32, 8, 24, 16
_ENCODERS = 20_240_911


def parts(kind: int) -> tuple[int, int, int]:
    """Shape, color and count of a kind, as numbers."""
    return kind // (len(COLORS) * len(COUNTS)), kind // len(COUNTS) % len(COLORS), kind % len(COUNTS)


def concept_view(view: str, kinds: np.ndarray, seed: int) -> Features:
    """Token features of one view of each kind.

    Args:
        view: ``"image"`` (16 tokens of a small frozen CNN), ``"text"`` (states of a frozen GRU over a sentence), ``"audio"`` (16
            log-energy frames of a tone sequence) or ``"video"`` (8 frames, one token each).
        kinds: int ``[N]``, 0 .. 59.
        seed: decides what differs between items of one kind.

    Raises:
        UnknownName: another view.
    """
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    rng = np.random.default_rng([seed, VIEWS.index(view)])
    if view == "image":
        tokens = _looked_at(np.stack([_drawn(int(kind), rng) for kind in kinds]))
    elif view == "video":
        clips = np.stack([_clip(int(kind), rng) for kind in kinds])
        seen = _looked_at(clips.reshape(-1, SIDE, SIDE, 3))
        tokens = seen.mean(1).reshape(len(kinds), FRAMES, -1)
    elif view == "audio":
        tokens = np.stack([_tones(int(kind), rng) for kind in kinds])
    else:
        tokens = _read(kinds)
    return Features({"input_features": tokens.astype(np.float32)})


def question_view(kinds: np.ndarray, rng: np.random.Generator) -> tuple[Features, np.ndarray]:
    """A question about each concept, "what shape (color, count) is it", as states of the frozen GRU, and the answer's number.

    Args:
        kinds: int ``[N]``.
        rng: draws what is asked.

    Returns:
        Features ``[N, 5, 32]``, and int ``[N]``: 0-4 a shape, 5-8 a color, 9-11 a count.
    """
    asked = rng.integers(3, size=len(kinds))
    starts = np.array([0, len(SHAPES), len(SHAPES) + len(COLORS)])
    answers = starts[asked] + np.array([parts(int(kind))[what] for kind, what in zip(kinds, asked)])
    states = _states(np.array([(14, 15 + what, 15 + what, 18, 19) for what in asked]))
    return Features({"input_features": states.astype(np.float32)}), answers


def _drawn(kind: int, rng: np.random.Generator, shift: np.ndarray | None = None) -> np.ndarray:
    shape, color, count = parts(kind)
    picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(0, 40, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    corners = rng.permutation(4)[: count + 1] if shift is None else np.arange(count + 1)
    fill = list(COLORS.values())[color]
    for corner in corners:
        size = rng.integers(4, 7)
        x, y = (
            np.array([8 + 16 * (corner % 2), 8 + 16 * (corner // 2)])
            + rng.integers(-1, 2, 2)
            + (0 if shift is None else shift)
        )
        box = (int(x - size), int(y - size), int(x + size), int(y + size))
        if shape == 0:
            pen.ellipse(box, fill=fill)
        elif shape == 1:
            pen.rectangle(box, fill=fill)
        elif shape == 2:
            pen.polygon([(x, y - size), (x - size, y + size), (x + size, y + size)], fill=fill)
        elif shape == 3:
            pen.ellipse(box, outline=fill, width=2)
        else:
            pen.rectangle((box[0], int(y - 1), box[2], int(y + 1)), fill=fill)
    return np.asarray(picture) + rng.normal(0, 10, (SIDE, SIDE, 3))


def _clip(kind: int, rng: np.random.Generator) -> np.ndarray:
    step = rng.normal(0, 0.5, 2)
    return np.stack([_drawn(kind, rng, step * (t - FRAMES / 2)) for t in range(FRAMES)])


@torch.no_grad()
def _looked_at(pixels: np.ndarray) -> np.ndarray:
    """16 tokens of 64 numbers by a frozen random CNN."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_ENCODERS)
        network = nn.Sequential(
            *(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU()),
        )
    x = torch.from_numpy(pixels.astype(np.float32) / 128 - 1).permute(0, 3, 1, 2)
    maps = torch.cat([network(part) for part in x.split(256)])
    tokens = maps.flatten(2).transpose(1, 2).numpy()
    return (tokens - tokens.mean(2, keepdims=True)) / (tokens.std(2, keepdims=True) + 1e-3)


def _read(kinds: np.ndarray) -> np.ndarray:
    """States ``[N, 5, 32]`` of "a picture of COUNT COLOR SHAPE"; sentences of one kind are equal."""
    return _states(np.array([(0, 1, 2 + c, 5 + k, 9 + s) for s, k, c in map(parts, kinds.tolist())]))


@torch.no_grad()
def _states(words: np.ndarray) -> np.ndarray:
    """States ``[N, L, 32]`` of a frozen random GRU over words int ``[N, L]``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_ENCODERS + 1)
        table, reader = nn.Embedding(20, 32), nn.GRU(32, 32, batch_first=True)
    return reader(table(torch.from_numpy(words)))[0].numpy() * 3


def _tones(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Log energies ``[16, 24]``: color is the pitch, shape the overtones, count the number of beeps."""
    shape, color, count = parts(kind)
    power = np.full((STEPS, BANDS), 1e-2)
    start, loud = rng.integers(0, 2), rng.uniform(0.5, 2)
    overtones = [(1,), (1, 2), (1, 3), (1, 2, 3), (1, 4)][shape]
    for beep in range(count + 1):
        for k, times in enumerate(overtones):
            power[start + 5 * beep : start + 5 * beep + 3, min((2 + color) * times, BANDS - 1)] += loud / (k + 1)
    return np.log(power * rng.uniform(0.7, 1.4, power.shape)) + rng.normal(0, 0.2, power.shape)

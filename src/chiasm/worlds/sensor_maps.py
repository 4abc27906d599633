"""Maps of land seen by two sensors at several dates, with labels that are wrong in patches and displaced at borders.

    >>> world = sensor_maps(64, seed=0)
    >>> world.radar, world.optical       # float32 [64, 4, 2, 48, 48] with speckle, [64, 4, 4, 48, 48] with clouds
    >>> world.truth, world.noisy         # int64 [64, 48, 48], [64, 4, 48, 48]

The radar cannot tell classes 0 and 1 apart, the optical sensor not the last two: neither can learn every class alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from chiasm.errors import BadInput, unknown_name

LabelNoise = Literal["patches", "none", "random"]
# What the classes look like is the same in all worlds.
_SIGNATURES = 20_260_102
# Radar looks: the variance of speckle, relative to the mean squared, is 1 / looks.
LOOKS = 3
# Some classes are confused more often than others, by these factors in turn.
UNEVEN = (1.4, 0.6, 1.2, 0.8, 1.0)


@dataclass(frozen=True)
class SensorMaps:
    """N places at T dates.

    Args:
        radar: float32 ``[N, T, 2, H, W]``, logarithms of intensities with speckle.
        optical: float32 ``[N, T, 4, H, W]``, with noise and clouds.
        truth: int64 ``[N, H, W]``.
        noisy: int64 ``[N, T, H, W]``, the labels one has.
        clouds: bool ``[N, T, H, W]``, where the optical sensor sees a cloud.
        classes: K.
    """

    radar: np.ndarray
    optical: np.ndarray
    truth: np.ndarray
    noisy: np.ndarray
    clouds: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.truth)


def sensor_maps(
    n: int,
    *,
    seed: int = 0,
    size: int = 48,
    classes: int = 5,
    cells: int = 14,
    dates: int = 4,
    noise: LabelNoise = "patches",
    flips: float = 0.3,
    blob: float = 3.0,
    shift: int = 2,
    cloud: float = 0.15,
    blur: float = 0.35,
) -> SensorMaps:
    """Draws places.

    Args:
        n: how many.
        seed: decides them; what classes look like does not depend on it.
        size: side of the maps in pixels.
        classes: K, at least 4.
        cells: Voronoi cells a map; each has one class.
        dates: T; truth is the same at all dates, noise and weather are not.
        noise: ``"patches"``: labels wrong in coherent patches, a class taken for one fixed other class, and borders displaced;
            ``"none"``: true labels; ``"random"``: labels that have nothing to do with the place.
        flips: mean share of wrong labels in patches, uneven over classes (`UNEVEN`).
        blob: size of the patches: sigma in pixels of the field that makes them.
        shift: every label map is displaced by up to so many pixels each way.
        cloud: share of the optical pixels under clouds.
        blur: standard deviation of the optical noise; classes differ by about 1 in each band.

    Raises:
        BadInput: sizes that make no map.
        UnknownName: another kind of noise.
    """
    if noise not in ("patches", "none", "random"):
        raise unknown_name("label noise", noise, ("patches", "none", "random"))
    counted = n < 1 or size < 4 or classes < 4 or cells < 1 or dates < 1
    if counted or not 0 <= flips < 0.7 or not 0 <= cloud < 1 or not (blob >= 0 and shift >= 0 and blur >= 0):
        raise BadInput(
            f"n={n}, size={size}, classes={classes}, cells={cells}, dates={dates}, flips={flips}, blob={blob}, "
            f"shift={shift}, cloud={cloud}, blur={blur}",
            where="sensor_maps",
            fix="Give a place, 4 pixels, 4 classes, a cell and a date at least; flips below 0.7, cloud below 1, nothing negative",
        )
    rng = np.random.default_rng([seed, 88])
    truth = _voronoi(rng, n, size, cells, classes)
    signs = np.random.default_rng(_SIGNATURES)
    echoes, bands = np.exp(0.5 * signs.normal(size=(classes, 2))), signs.normal(size=(classes, 4))
    echoes[1], bands[-1] = echoes[0], bands[-2]
    shape = (n, dates, size, size)
    speckle = rng.gamma(LOOKS, 1 / LOOKS, size=(*shape, 2))
    radar = np.log(np.maximum(echoes[truth][:, None] * speckle, 1e-3))
    clouds = _fields(rng, shape, sigma=size / 10) < norm.ppf(cloud) if cloud else np.zeros(shape, dtype=bool)
    optical = bands[truth][:, None] + blur * rng.normal(size=(*shape, 4))
    optical = np.where(clouds[..., None], 2.5 + 0.2 * rng.normal(size=optical.shape), optical)
    if noise == "none":
        noisy = np.repeat(truth[:, None], dates, axis=1)
    elif noise == "random":
        # Other maps of the same kind: as coherent as labels are, and no news about this place.
        noisy = _voronoi(rng, n * dates, size, cells, classes).reshape(shape)
    else:
        noisy = _spoiled(rng, truth, classes, dates, flips, blob, shift)
    return SensorMaps(
        np.ascontiguousarray(np.moveaxis(radar, -1, 2), dtype=np.float32),
        np.ascontiguousarray(np.moveaxis(optical, -1, 2), dtype=np.float32),
        truth,
        noisy,
        clouds,
        classes,
    )


def _voronoi(rng: np.random.Generator, n: int, size: int, cells: int, classes: int) -> np.ndarray:
    """Maps int64 ``[n, size, size]``: each pixel has the class of the nearest of ``cells`` random points."""
    points, owners = rng.random((n, cells, 2)) * size, rng.integers(0, classes, size=(n, cells))
    axis = np.arange(size) + 0.5
    maps = np.empty((n, size, size), dtype=np.int64)
    for part in np.array_split(np.arange(n), max(1, n * cells * size * size >> 22)):
        down = (axis[None, None, :] - points[part, :, 0, None]) ** 2
        across = (axis[None, None, :] - points[part, :, 1, None]) ** 2
        nearest = (down[..., :, None] + across[..., None, :]).argmin(axis=1)
        maps[part] = np.take_along_axis(owners[part], nearest.reshape(len(part), -1), axis=1).reshape(nearest.shape)
    return maps


def _fields(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Smooth random fields ``[N, T, H, W]``, in every pixel a standard normal variable."""
    smooth = gaussian_filter(rng.normal(size=shape), (0, 0, sigma, sigma), mode="wrap")
    return smooth / smooth.std()


def _spoiled(
    rng: np.random.Generator, truth: np.ndarray, classes: int, dates: int, flips: float, blob: float, shift: int
) -> np.ndarray:
    """Labels ``[N, T, H, W]`` displaced, and in patches exchanged for those of the class's double."""
    n, size = truth.shape[0], truth.shape[1]
    places = np.arange(size)
    moves = rng.integers(-shift, shift + 1, size=(2, n, dates, 1))
    down, across = (np.clip(places + move, 0, size - 1) for move in moves)
    moved = truth[np.arange(n)[:, None, None, None], down[..., :, None], across[..., None, :]]
    doubles = (np.arange(classes) + 2) % classes
    rates = np.resize(UNEVEN, classes)
    rates = np.clip(flips * rates / rates.mean(), 0, 0.95)
    # The double of a class is one that at least one sensor tells from it: 0-2, 1-3, 2-4, 3-0, 4-1.
    limits = norm.ppf(np.maximum(rates, 1e-12))[moved]
    return np.where(_fields(rng, moved.shape, blob) < limits, doubles[moved], moved)

"""Two sensors over one land: what each can tell apart, how the labels are wrong."""

import numpy as np
import pytest

from chiasm.errors import BadInput, UnknownName
from chiasm.worlds.sensor_maps import sensor_maps


def test_the_world_is_what_it_says():
    world = sensor_maps(40, seed=3)
    again = sensor_maps(40, seed=3)
    assert np.array_equal(world.noisy, again.noisy)
    assert np.array_equal(world.radar, again.radar)
    assert world.radar.shape == (40, 4, 2, 48, 48)
    assert world.optical.shape == (40, 4, 4, 48, 48)
    truth = world.truth[:, None]
    wrong = world.noisy != truth
    assert 0.25 < wrong.mean() < 0.45
    assert world.clouds.mean() == pytest.approx(0.15, abs=0.04)
    one = [world.radar[:, :, 0][np.broadcast_to(truth == c, wrong.shape)].mean() for c in (0, 1)]
    assert one[0] == pytest.approx(one[1], abs=0.03)  # the radar does not tell them apart
    clear = ~world.clouds
    two = [world.optical[:, :, 0][(truth == c) & clear].mean() for c in (3, 4)]
    assert two[0] == pytest.approx(two[1], abs=0.03)
    assert (sensor_maps(4, noise="none").noisy == sensor_maps(4, noise="none").truth[:, None]).all()
    random = sensor_maps(40, noise="random", seed=3)
    assert (random.noisy == random.truth[:, None]).mean() == pytest.approx(0.2, abs=0.03)
    # A wrong patch is coherent: the neighbor of a wrong pixel is mostly wrong too.
    assert wrong[:, :, :, 1:][wrong[:, :, :, :-1]].mean() > 0.8


def test_bad_worlds():
    with pytest.raises(UnknownName):
        sensor_maps(2, noise="salt")
    for bad in ({"n": 0}, {"size": 3}, {"classes": 3}, {"flips": 0.7}, {"cloud": 1.0}, {"shift": -1}, {"blob": -1.0}):
        with pytest.raises(BadInput, match="sensor_maps"):
            sensor_maps(**({"n": 2} | bad))

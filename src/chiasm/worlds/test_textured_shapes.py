"""The world of textured shapes: every attribute is shown, labels are right, words say what is drawn."""

import numpy as np
import pytest

from chiasm.errors import BadInput, UnknownName
from chiasm.worlds.textured_shapes import _RGB, ASPECTS, aspect_texts, shape_classes, shape_scenes


def test_the_world_shows_every_attribute_and_its_means_are_gray():
    classes = shape_classes(parts=2, seed=3)
    for attribute in ("shape", "texture", "upper", "lower"):
        assert {getattr(c, attribute) for c in classes[12:]} <= {getattr(c, attribute) for c in classes[:12]}
    assert len(set(classes)) == len({c.name for c in classes}) == 16
    assert len({tuple(_RGB[[c.upper, c.lower]].mean(0)) for c in classes}) == 1
    assert all(c.upper == c.lower for c in shape_classes(parts=1))
    assert {c.texture for c in shape_classes(textures=("dots", "plain"))} == {0, 3}


def test_pictures_are_reproducible_and_labels_are_where_the_colors_are():
    classes = shape_classes(parts=2, seed=3)
    world = shape_scenes(classes, 6, seed=0, among=[0, 5])
    assert len(world) == 6
    assert set(np.unique(world.labels)) == {0, 1, 6}
    again = shape_scenes(classes, 6, seed=0, among=[0, 5])
    assert np.array_equal(world.pictures, again.pictures)
    assert not np.array_equal(world.pictures, shape_scenes(classes, 6, seed=1, among=[0, 5]).pictures)
    # Grounds are gray, shapes are not.
    spread = (world.pictures.max(axis=3).astype(int) - world.pictures.min(axis=3)).astype(float)
    assert spread[world.labels > 0].mean() > 2 * spread[world.labels == 0].mean()
    assert world.pixels().shape == (6, 3, 64, 64)
    assert np.abs(world.pixels()).max() <= 1


def test_words_are_nearest_to_other_words_about_the_same_class():
    classes = shape_classes(parts=2, seed=3)
    texts, others = aspect_texts(classes, seed=0), aspect_texts(classes, seed=1)
    assert texts.shape == (16, 1 + len(ASPECTS), 48)
    assert np.allclose(np.linalg.norm(texts, axis=2), 1, atol=1e-5)
    right = np.arange(16)
    names = float((((texts[:, 0]) @ others[:, 0].T).argmax(1) == right).mean())
    whole = float((texts.reshape(16, -1) @ others.reshape(16, -1).T).argmax(1).__eq__(right).mean())
    assert whole > names > 1 / 16
    # Without noise and name, a sentence is the code of its attribute: equal for classes that share it.
    plain = aspect_texts(classes, noise=0.0, named=0.0)[:, 4]
    same = np.array([[a.shape == b.shape for b in classes] for a in classes])
    assert np.array_equal(plain @ plain.T > 0.999, same)


@pytest.mark.parametrize(
    "given",
    [{"parts": 3}, {"count": 4, "novel": 4}, {"novel": 0}, {"count": 97}, {"count": 25, "textures": ("plain",)}],
)
def test_classes_that_cannot_be_made(given):
    with pytest.raises(BadInput, match="shape_classes"):
        shape_classes(**given)
    with pytest.raises(UnknownName):
        shape_classes(textures=("wool",))


@pytest.mark.parametrize("given", [{"n": 0}, {"n": 1, "among": []}, {"n": 1, "objects": (3, 2)}])
def test_scenes_that_cannot_be_drawn(given):
    with pytest.raises(BadInput, match="shape_scenes"):
        shape_scenes(shape_classes(), **given)

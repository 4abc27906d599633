"""Scenes: the same seed gives the same world, and every part of the ground truth agrees with every other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.worlds import make_scenes
from chiasm.worlds.render import REACH, distance
from chiasm.worlds.vocabulary import COLORS, OPPOSITE, RGB, SHAPES

WORLD = make_scenes(300, seed=7)


def test_the_same_seed_gives_the_same_world_in_another_process():
    code = (
        "import hashlib; from chiasm.worlds import make_scenes; w = make_scenes(20, seed=7);"
        "print(hashlib.sha256(w.pictures().tobytes() + str([s.to_json() for s in w]).encode()).hexdigest())"
    )
    import hashlib

    small = make_scenes(20, seed=7)
    here = hashlib.sha256(small.pictures().tobytes() + str([s.to_json() for s in small]).encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there
    assert not np.array_equal(small.pictures(), make_scenes(20, seed=8).pictures())


def test_a_larger_world_begins_with_the_smaller_one_and_rows_do_not_need_the_others():
    small = make_scenes(40, seed=7)
    assert [scene.to_json() for scene in small] == [WORLD[i].to_json() for i in range(40)]
    assert np.array_equal(small.pictures(), WORLD.pictures(range(40)))
    rows = [299, 3, 270]
    assert np.array_equal(WORLD.pictures(rows), WORLD.pictures()[rows])


def test_boxes_masks_and_areas_come_from_the_same_pixels():
    drawing = WORLD.draw()
    for scene in WORLD:
        masks = WORLD.masks(scene.index)
        assert len(masks) == len(scene.objects)
        covered = {j for _, name, j in scene.relations if name in ("in_front_of", "inside")}
        for k, (thing, mask) in enumerate(zip(scene.objects, masks)):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            if k in covered:
                hidden = drawing.areas[scene.index, k] - mask.sum()
                assert hidden > 0 or thing.shape == "ring"  # a small shape fits into the hole of a large ring
                assert thing.box[0] <= seen[0]
                assert thing.box[1] <= seen[1]
                assert thing.box[2] >= seen[2]
                assert thing.box[3] >= seen[3]
            else:
                assert thing.box == seen
                assert mask.sum() == drawing.areas[scene.index, k]
            assert abs((thing.box[0] + thing.box[2]) / 2 - thing.x) < 0.35 * thing.radius + 1


def test_masks_show_the_named_color():
    drawing = WORLD.draw()
    for scene in WORLD:
        for k, thing in enumerate(scene.objects):
            if thing.texture == "plain":
                inner = drawing.pictures[scene.index][drawing.labels[scene.index] == k + 1]
                # Edges mix with the ground; the middle does not.
                assert np.abs(inner.astype(int) - RGB[thing.color]).max(axis=1).min() <= 1


def test_relations_follow_from_the_pixels():
    for scene in WORLD:
        for i, name, j in scene.relations:
            assert (j, OPPOSITE[name], i) in scene.relations
            assert (i, OPPOSITE[name], j) not in scene.relations
            a, b = scene.objects[i], scene.objects[j]
            if name == "left_of":
                assert a.x < b.x - 8
            elif name == "above":
                assert a.y < b.y - 8
            elif name == "inside":
                assert b.box[0] <= a.box[0]
                assert b.box[1] <= a.box[1]
                assert a.box[2] <= b.box[2]
                assert a.box[3] <= b.box[3]
        touching = {(i, j) for i, name, j in scene.relations if name in ("in_front_of", "inside")}
        for i, a in enumerate(scene.objects):
            for j, b in enumerate(scene.objects):
                apart = np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius
                assert (
                    i >= j
                    or (j, i) in touching
                    or apart
                    or _boxes_are_apart(a.box, b.box)
                    or _share_no_pixel(scene, i, j)
                )


def _boxes_are_apart(a, b):
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _share_no_pixel(scene, i, j):
    # Later objects would hide pixels of earlier ones, so whole and visible areas would differ.
    drawing = WORLD.draw([scene.index])
    return all((drawing.labels[0] == k + 1).sum() == drawing.areas[0, k] for k in (i, j))


def test_every_attribute_value_relation_and_repetition_occurs():
    things = [thing for scene in make_scenes(1000, seed=1) for thing in scene.objects]
    for name, count in (("shape", 8), ("color", 8), ("texture", 4), ("size", 3), ("place", 9)):
        counts = Counter(getattr(thing, name) for thing in things)
        assert len(counts) == count
        assert min(counts.values()) > 0.4 * len(things) / count
    names = Counter(name for scene in make_scenes(1000, seed=1) for _, name, _ in scene.relations)
    assert set(names) == set(OPPOSITE)
    assert min(names.values()) >= 20


def test_held_out_pairs_never_occur_in_training_and_are_all_there_is_in_unseen():
    def pairs(split):
        return {(t.color, t.shape) for scene in make_scenes(500, seed=2, split=split) for t in scene.objects}

    train, unseen = pairs("train"), pairs("unseen")
    assert not train & unseen
    assert len(train) == 56
    assert len(unseen) == 8
    assert {color for color, _ in train} == set(COLORS)
    assert {shape for _, shape in train} == set(SHAPES)


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_every_shape_is_solid_somewhere_and_stays_within_reach(shape):
    line = np.linspace(-2, 2, 401)
    x, y = np.meshgrid(line, line)
    far = distance(shape, x, y)
    inside = far < 0
    assert inside.any()
    assert np.hypot(x[inside], y[inside]).max() <= REACH
    np.testing.assert_allclose(far, far[:, ::-1], atol=1e-9)  # all shapes are mirror images of themselves
    # A distance never changes faster than the way that is walked.
    assert np.abs(np.diff(far, axis=0)).max() <= 0.01 * 1.01
    assert np.abs(np.diff(far, axis=1)).max() <= 0.01 * 1.01


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(24, 96),
    grid=st.integers(2, 4),
    most=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    split=st.sampled_from(["all", "train", "unseen"]),
    stacks=st.floats(0, 1),
    repeats=st.floats(0, 1),
)
def test_any_settings_give_consistent_scenes(size, grid, most, seed, split, stacks, repeats):
    if size // grid < 8:
        with pytest.raises(BadInput):
            make_scenes(1, size=size, grid=grid)
        return
    world = make_scenes(
        5, seed=seed, size=size, grid=grid, objects=(1, most), split=split, stacks=stacks, repeats=repeats
    )
    drawing = world.draw()
    assert drawing.pictures.shape == (5, size, size, 3)
    assert drawing.pictures.dtype == np.uint8
    for scene in world:
        assert 1 <= len(scene.objects) <= most
        assert all(mask.any() for mask in world.masks(scene.index))
        assert json.loads(json.dumps(scene.to_json()))["index"] == scene.index


def test_what_cannot_be_is_said():
    with pytest.raises(UnknownName, match="circle"):
        make_scenes(1, shapes=("circel",))
    with pytest.raises(UnknownName, match="objects"):
        make_scenes(1, object=(1, 2))
    with pytest.raises(BadInput, match="held_out"):
        make_scenes(1, colors=("red",), shapes=("circle", "square"), split="unseen")
    with pytest.raises(BadInput, match="does not fit"):
        make_scenes(1, objects=(3, 2))
    with pytest.raises(BadInput, match="negative"):
        make_scenes(-1)
    with pytest.raises(IndexError):
        WORLD[300]
    empty = make_scenes(0)
    assert len(empty) == 0
    assert empty.pictures().shape == (0, 64, 64, 3)

"""Scenes with roles: what is said is what is there, and only the place tells who acts."""

import re

import numpy as np
import pytest

from chiasm.errors import BadInput
from chiasm.worlds.patches import COLORS
from chiasm.worlds.roles import ANIMALS, VERBS, role_scenes


def test_a_seed_decides_and_the_words_keep_their_codes():
    one, again, other = role_scenes(20, seed=1), role_scenes(20, seed=1), role_scenes(20, seed=2)
    assert one.texts == again.texts != other.texts
    np.testing.assert_array_equal(one.patches, again.patches)
    first, second = (role_scenes(500, seed=s, noise=0.0) for s in (1, 2))
    code = {tuple(k): p for k, p in zip(np.c_[first.color[:, 0], first.animal[:, 0]], first.patches[:, 0])}
    shared = [i for i, k in enumerate(zip(second.color[:, 0], second.animal[:, 0])) if k in code]
    assert shared
    for i in shared:
        np.testing.assert_array_equal(second.patches[i, 0], code[second.color[i, 0], second.animal[i, 0]])


def test_captions_say_what_the_patches_hold():
    world = role_scenes(300, seed=0, noise=0.0)
    for i, text in enumerate(world.texts):
        c, a = world.color[i], world.animal[i]
        assert text == f"{COLORS[c[0]]} {ANIMALS[a[0]]} {VERBS[world.verb[i]]} {COLORS[c[1]]} {ANIMALS[a[1]]}"
        assert (c[0], a[0]) != (c[1], a[1])
    # Exchanging the first two patches is the scene of the relation-swapped caption: the bag of patches is the same.
    where = {text: i for i, text in enumerate(world.texts)}
    for i, false in enumerate(world.swapped("relation")):
        if false in where:
            np.testing.assert_array_equal(world.patches[where[false]], world.patches[i][[1, 0, 2]])
    assert len(set(world.groups.tolist())) == len(set(world.texts))


def test_swapped_captions_are_false_and_have_the_same_words():
    world = role_scenes(300, seed=0)
    for kind in ("relation", "attribute"):
        for text, false in zip(world.texts, world.swapped(kind)):
            if false is not None:
                assert false != text
                assert sorted(re.findall(r"\w+", false)) == sorted(re.findall(r"\w+", text))
    none = np.array([false is None for false in world.swapped("attribute")])
    same = (world.color[:, 0] == world.color[:, 1]) | (world.animal[:, 0] == world.animal[:, 1])
    np.testing.assert_array_equal(none, same)
    assert None not in world.swapped("relation")


def test_bad_sizes_and_kinds_are_refused():
    with pytest.raises(BadInput, match="n=0"):
        role_scenes(0)
    with pytest.raises(BadInput, match="attribute"):
        role_scenes(3).swapped("colour")

"""The shifted domain: what is shifted, what is not, and that no picture is in two parts."""

import numpy as np
import pytest
import torch

from chiasm.errors import BadInput
from chiasm.worlds.mini import mini_clip
from chiasm.worlds.shifted_shapes import SMALL, make_domain
from chiasm.worlds.vocabulary import COLORS, SHAPES

SIZE = {"classes": 9, "shots": 3, "tests": 4, "scenes": 2048}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return mini_clip(settings=SMALL, cache=tmp_path_factory.mktemp("mini"))


def test_parts_have_their_sizes_and_share_no_picture_and_no_class(mini):
    domain = make_domain(mini, 5, **SIZE)
    assert (len(domain.base), len(domain.novel)) == (4, 5)
    assert len({*domain.base, *domain.novel}) == 9
    assert {tuple(name.split()) for name in domain.base + domain.novel} <= {(c, s) for c in COLORS for s in SHAPES}
    for (pictures, labels), classes, each in (
        (domain.shots, 4, 3),
        (domain.base_test, 4, 4),
        (domain.novel_test, 5, 4),
    ):
        assert pictures.shape == (classes * each, 3, 64, 64)
        assert np.bincount(labels).tolist() == [each] * classes
    every = torch.cat([domain.shots[0], domain.base_test[0], domain.novel_test[0]]).flatten(1)
    assert len(torch.unique(every, dim=0)) == len(every)


def test_a_seed_decides_everything(mini):
    one, again, other = (make_domain(mini, seed, **SIZE) for seed in (5, 5, 6))
    assert one.base == again.base
    assert torch.equal(one.novel_test[0], again.novel_test[0])
    assert one.base != other.base


def test_colors_go_to_their_inverse_and_nothing_else_does(mini):
    plain, half, whole = (make_domain(mini, 5, **SIZE, invert=invert, clutter=0).shots[0] for invert in (0.0, 0.5, 1.0))
    torch.testing.assert_close(whole, -plain, atol=1e-4, rtol=0)
    assert half.abs().max() < 0.01  # half way all colors meet in gray


def test_clutter_lies_behind_the_shape_and_is_gray(mini):
    plain, strewn = (make_domain(mini, 5, **SIZE, invert=0.0, clutter=clutter).shots[0] for clutter in (0, 24))
    changed = (plain != strewn).any(dim=1)
    assert 0.05 < changed.float().mean() < 0.2
    new = strewn.permute(0, 2, 3, 1)[changed]
    assert (new.amax(1) - new.amin(1)).median() < 1e-6  # edges of the shape blend with what lies behind
    colorful = (plain.amax(1) - plain.amin(1)) > 0.5  # the inside of the shape; the plain ground is gray
    assert colorful.any(dim=(1, 2)).float().mean() > 0.5
    assert changed[colorful].float().mean() < 0.05


def test_a_domain_that_cannot_be_filled_is_refused(mini):
    with pytest.raises(BadInput, match="1 classes"):
        make_domain(mini, 5, classes=1)
    with pytest.raises(BadInput, match=r"128 scenes have a class with \d pictures, of which 8 \+ 16 are needed"):
        make_domain(mini, 5, scenes=128)

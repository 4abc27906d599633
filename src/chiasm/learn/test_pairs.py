"""Pairs, their collator, and the two batch samplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.learn.features import Features
from chiasm.learn.pairs import OnePerGroup, PairCollator, Pairs, SeveralPerGroup

groupings = st.lists(st.integers(-3, 6), min_size=1, max_size=60).map(np.array)


def vectors(n: int, dim: int = 3) -> Features:
    return Features({"input_features": np.arange(n * dim, dtype=np.float32).reshape(n, dim)})


def test_defaults_are_row_i_with_row_i():
    pairs = Pairs({"a": vectors(4), "b": vectors(4)})
    assert len(pairs) == 4
    assert pairs.columns == ["a", "b"]
    assert pairs.rows["a"].tolist() == pairs.rows["b"].tolist() == [0, 1, 2, 3]
    assert pairs.groups is not None
    assert pairs.groups.tolist() == [0, 1, 2, 3]


def test_pairs_of_one_picture_are_one_group():
    pairs = Pairs({"a": vectors(2), "b": vectors(3)}, {"a": np.array([0, 0, 1]), "b": np.arange(3)})
    assert pairs.groups is not None
    assert pairs.groups.tolist() == [0, 0, 1]


@pytest.mark.parametrize("index", [slice(1, 3), [2, 0], np.array([True, False, False, True])])
def test_a_part_keeps_everything_together(index):
    pairs = Pairs(
        {"a": vectors(4), "b": vectors(4)},
        {"a": np.array([3, 2, 1, 0])},
        groups=np.array([5, 6, 7, 8]),
        per_pair={"weights": np.array([0.1, 0.2, 0.3, 0.4])},
    )
    part, rows = pairs[index], np.arange(4)[index]
    assert part.groups is not None
    assert part.rows["a"].tolist() == (3 - rows).tolist()
    assert part.rows["b"].tolist() == rows.tolist()
    assert part.groups.tolist() == (5 + rows).tolist()
    assert part.per_pair["weights"].tolist() == pytest.approx((0.1 * (1 + rows)).tolist())
    assert len(pairs) == 4


@given(st.integers(2, 80), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_shuffling_moves_a_share_and_loses_no_item(n: int, rate: float, seed: int):
    pairs = Pairs({"a": vectors(n), "b": vectors(n)})
    noisy, moved = pairs.shuffled(rate, seed)
    assert sorted(noisy.rows["b"].tolist()) == list(range(n))
    assert np.array_equal(noisy.rows["a"], pairs.rows["a"])
    assert np.array_equal(moved, noisy.rows["b"] != np.arange(n))
    assert moved.sum() <= round(rate * n)
    assert np.array_equal(pairs.shuffled(rate, seed)[0].rows["b"], noisy.rows["b"])
    assert np.array_equal(pairs.rows["b"], np.arange(n))


def test_views_are_columns_that_may_be_missing():
    rows = {
        "a": np.arange(3),
        "b/de": np.array([0, -1, 2]),
        "b/fr": np.array([3, 4, -1]),
        "negative": np.array([2, 1, 0]),
    }
    pairs = Pairs({"a": vectors(3), "b": vectors(5), "negative": vectors(3)}, rows)
    assert pairs.columns == ["a", "b/de", "b/fr", "negative"]
    batch = PairCollator(pairs, {"b": "text", "negative": "text"})(list(pairs.dataset()))
    assert batch["b/de_rows"].tolist() == [0, -1, 2]
    assert torch.equal(batch["b/fr_input_features"][0], torch.tensor([9.0, 10.0, 11.0]))
    assert batch["b/de_task"] == batch["b/fr_task"] == batch["negative_task"] == "text"
    assert batch["a_task"] == "a"
    assert batch["label"].tolist() == [0, 1, 2]


def test_views_of_the_first_side_make_every_pair_its_own_group():
    pairs = Pairs({"a": vectors(3), "b": vectors(3)}, {"a/x": np.array([0, 0, -1]), "b": np.arange(3)})
    assert pairs.groups is not None
    assert pairs.groups.tolist() == [0, 1, 2]


def test_a_part_has_numbers_of_its_own():
    """Labels of the data set count within the part: they index its ``per_pair``."""
    part = Pairs({"a": vectors(5), "b": vectors(5)})[[4, 2]]
    assert list(part.dataset()["label"]) == [0, 1]
    assert list(part.dataset()["a"]) == [4, 2]


def test_bad_pairs():
    two, three = vectors(2), vectors(3)
    with pytest.raises(BadInput, match="no column 'b'"):
        Pairs({"a": two})
    with pytest.raises(BadInput, match="outside"):
        Pairs({"a": two, "b": three}, {"a": np.array([0, 1, 2])})
    with pytest.raises(BadInput, match="outside"):
        Pairs({"a": three, "b": two})
    with pytest.raises(BadInput, match="outside"):
        Pairs({"a": two, "b": three}, {"a": np.array([0, -1])})
    with pytest.raises(BadInput, match="rows, expected"):
        Pairs({"a": two, "b": three}, {"a": np.array([0, 1]), "b": np.array([0])})
    with pytest.raises(BadInput, match="no pairs"):
        Pairs({"a": two, "b": three}, {"a": np.array([], dtype=int), "b": np.array([], dtype=int)})
    with pytest.raises(BadInput, match="groups has 1"):
        Pairs({"a": two, "b": two}, groups=np.array([1]))
    with pytest.raises(BadInput, match="weights has 3"):
        Pairs({"a": two, "b": two}, per_pair={"weights": np.ones(3)})
    with pytest.raises(UnknownName, match="negativ"):
        Pairs({"a": two, "b": two}, {"negativ": np.array([0, 1])})
    with pytest.raises(BadInput, match="outside 0"):
        Pairs({"a": two, "b": two}).shuffled(1.5, 0)


# ---- samplers


@given(groupings, st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_one_per_group_draws_every_pair_once_and_no_group_twice(groups, size: int, seed: int):
    sampler = OnePerGroup(groups, size, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        assert len(batch) <= size
        assert len(set(groups[batch])) == len(batch)


@given(groupings, st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_several_per_group_has_them_and_leaves_nobody_out(groups, each: int, count: int, seed: int):
    sampler = SeveralPerGroup(groups, each * count, each, seed)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert {i for batch in batches for i in batch} == set(range(len(groups)))
    for batch in batches:
        assert len(batch) <= each * count
        runs = groups[np.array(batch)].reshape(-1, each)
        assert (runs == runs[:, :1]).all()


@pytest.mark.parametrize("make", [lambda g, s: OnePerGroup(g, 8, s), lambda g, s: SeveralPerGroup(g, 8, 4, s)])
def test_epochs_and_seeds_change_the_order_and_nothing_else_does(make):
    groups = np.repeat(np.arange(20), 4)
    first = list(make(groups, 0))
    again, other = make(groups, 0), make(groups, 1)
    assert list(again) == first
    assert list(other) != first
    again.set_epoch(1)
    assert list(again) != first
    again.set_epoch(0)
    assert list(again) == first


def test_several_per_group_needs_a_batch_that_fits():
    with pytest.raises(BadInput, match="cannot hold"):
        SeveralPerGroup(np.arange(4), 6, 4)
    with pytest.raises(BadInput, match="cannot hold"):
        SeveralPerGroup(np.arange(4), 6, 0)

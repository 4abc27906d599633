"""Frozen features: batches, padding, missing rows, and the memory maps they are kept in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput
from chiasm.learn.features import Features


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_ragged_batch_is_each_item_with_padding_behind(lengths: list[int], seed: int):
    rng = np.random.default_rng(seed)
    items = [rng.integers(1, 50, size=n) for n in lengths]
    rows = rng.integers(0, len(items), size=5).tolist()
    batch = Features.ragged("input_ids", items).batch(rows)
    assert batch["input_ids"].shape == (5, max(lengths[r] for r in rows))
    assert batch["input_ids"].dtype == torch.int64
    assert batch["rows"].tolist() == rows
    for place, row in enumerate(rows):
        there = batch["attention_mask"][place]
        assert batch["input_ids"][place][there].tolist() == items[row].tolist()
        assert not batch["input_ids"][place][~there].any()
        assert there.sum() == lengths[row]


def test_vectors_and_tokens_become_float32_and_tokens_get_a_mask():
    batch = Features({"input_features": np.ones((3, 2), dtype=np.float16)}).batch([0, 2])
    assert batch["input_features"].dtype == torch.float32
    assert "attention_mask" not in batch
    tokens = Features({"input_features": np.ones((3, 4, 2), dtype=np.float16)}).batch([1])
    assert tokens["attention_mask"].tolist() == [[True] * 4]
    own = Features({"input_features": np.ones((1, 2, 2)), "attention_mask": np.array([[True, False]])}).batch([0])
    assert own["attention_mask"].bool().tolist() == [[True, False]]


def test_a_missing_row_is_told_by_its_number():
    items = Features.ragged("input_ids", [[5, 6], [7]])
    batch = items.batch([1, -1])
    assert batch["rows"].tolist() == [1, -1]
    assert batch["input_ids"].tolist() == [[7, 0], [5, 6]]


def test_a_batch_is_a_copy():
    values = np.zeros((2, 3), dtype=np.float32)
    batch = Features({"input_features": values}).batch([0, 1])
    batch["input_features"] += 1
    assert not values.any()


def test_no_rows_make_an_empty_batch():
    assert Features({"input_features": np.ones((2, 3))}).batch([])["input_features"].shape == (0, 3)
    assert Features.ragged("input_ids", [[1], [2, 3]]).batch([])["attention_mask"].shape == (0, 0)


def test_saved_features_are_memory_maps_with_the_same_batches(tmp_path):
    dense = {"input_features": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16)}
    for features in (Features(dense), Features.ragged("input_ids", [[1, 2], [3], [4, 5, 6], [7]], **dense)):
        features.save(tmp_path / "x")
        again = Features.load(tmp_path / "x")
        assert isinstance(again.dense["input_features"], np.memmap)
        assert len(again) == len(features)
        one, other = features.batch([3, 0, -1]), again.batch([3, 0, -1])
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_broken_save_is_no_save(tmp_path, monkeypatch):
    features = Features({"input_features": np.ones((4, 3))})
    features.save(tmp_path / "x")

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        Features({"input_features": np.zeros((2, 3))}).save(tmp_path / "x")
    with pytest.raises(BadInput, match="no features here"):
        Features.load(tmp_path / "x")


def test_bad_features(tmp_path):
    with pytest.raises(BadInput, match="different lengths"):
        Features({"x": np.ones(2), "y": np.ones(3)})
    with pytest.raises(BadInput, match="different lengths"):
        Features()
    with pytest.raises(BadInput, match="fit together"):
        Features(runs={"x": np.ones(3)}, offsets=np.array([0, 2]))
    with pytest.raises(BadInput, match="without tokens"):
        Features.ragged("input_ids", [[1], []])
    with pytest.raises(BadInput, match="without tokens"):
        Features.ragged("input_ids", [])
    with pytest.raises(BadInput, match="no features here"):
        Features.load(tmp_path)
    (tmp_path / "features.json").write_text(json.dumps({"dense": ["gone"], "runs": []}), encoding="utf-8")
    with pytest.raises(BadInput, match="no features here"):
        Features.load(tmp_path)
    np.save(tmp_path / "gone.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="no features here"):
        Features.load(tmp_path)

"""Top-k by inner product: equal to a full stable sort, whatever the chunks, the order, the ties and the holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput
from chiasm.kernels.topk import topk_inner


def dense(queries, gallery, k, bias=None):
    scores = queries @ gallery.T
    if bias is not None:
        scores = scores + bias[None, :]
    scores = np.where(np.isnan(scores), -np.inf, scores)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(gallery))]
    best = np.take_along_axis(scores, rows, 1)
    return best, np.where(np.isneginf(best), -1, rows)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    q=st.integers(0, 7),
    m=st.integers(0, 90),
    k=st.integers(1, 100),
    chunk=st.one_of(st.none(), st.integers(1, 100)),
    holes=st.floats(0, 1),
    levels=st.integers(1, 5),
)
def test_equals_a_full_stable_sort(seed, q, m, k, chunk, holes, levels):
    """Small integers make every score exact and most of them tied."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-levels, levels + 1, (q, 3)).astype(np.float32)
    gallery = rng.integers(-levels, levels + 1, (m, 3)).astype(np.float32)
    bias = np.where(rng.random(m) < holes, -np.inf, rng.integers(-2, 3, m)).astype(np.float32)
    expected = dense(queries, gallery, k, bias)
    scores, rows = topk_inner(queries, gallery, k, bias=bias, chunk=chunk)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    t = topk_inner(torch.tensor(queries), torch.tensor(gallery), k, bias=torch.tensor(bias), chunk=chunk)
    assert all(isinstance(x, torch.Tensor) for x in t)
    np.testing.assert_array_equal(t[1].numpy(), expected[1])
    np.testing.assert_array_equal(t[0].numpy(), expected[0])


@pytest.mark.parametrize("order", ["rising", "falling", "equal"])
def test_sorted_galleries(order):
    m = 20_000
    value = {"rising": np.arange(m), "falling": -np.arange(m), "equal": np.zeros(m)}[order].astype(np.float32)
    queries = np.ones((50, 1), np.float32)
    scores, rows = topk_inner(queries, value[:, None], 7)
    expected = np.arange(m - 1, m - 8, -1) if order == "rising" else np.arange(7)
    assert (rows == expected).all()
    assert (scores == value[expected]).all()


def test_chunks_and_query_blocks_do_not_matter():
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((1500, 16)).astype(np.float32)
    gallery = rng.standard_normal((3000, 16)).astype(np.float32)
    expected = topk_inner(queries, gallery, 10, chunk=3000)
    for chunk in (1, 17, 512, None):
        some = topk_inner(queries[:40], gallery, 10, chunk=chunk)
        np.testing.assert_array_equal(some[1], expected[1][:40])
    for i in (0, 1023, 1024, 1499):
        alone = topk_inner(queries[i : i + 1], gallery, 10)
        np.testing.assert_array_equal(alone[1][0], expected[1][i])


def test_nan_is_never_found():
    gallery = np.array([[1.0], [np.nan], [3.0], [np.nan]], np.float32)
    scores, rows = topk_inner(np.ones((1, 1), np.float32), gallery, 4)
    assert rows.tolist() == [[2, 0, -1, -1]]
    assert scores[0, :2].tolist() == [3, 1]
    assert np.isneginf(scores[0, 2:]).all()
    _, rows = topk_inner(np.full((1, 1), np.nan, np.float32), gallery, 2)
    assert (rows == -1).all()


def test_memory_stays_below_the_score_matrix():
    import tracemalloc

    queries, gallery = np.ones((1000, 4), np.float32), np.ones((200_000, 4), np.float32)
    tracemalloc.start()
    topk_inner(queries, gallery, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * queries.shape[0] * gallery.shape[0] * 4


def test_inputs_are_not_changed():
    queries, gallery, bias = np.ones((2, 3), np.float32), np.ones((5, 3), np.float32), np.arange(5, dtype=np.float32)
    copies = [a.copy() for a in (queries, gallery, bias)]
    topk_inner(queries, gallery, 2, bias=bias)
    for a, b in zip((queries, gallery, bias), copies, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "bad",
    [
        {"k": 0},
        {"k": -1},
        {"chunk": 0},
        {"bias": np.zeros(3, np.float32)},
        {"queries": np.zeros(4, np.float32)},
        {"queries": np.zeros((2, 5), np.float32)},
    ],
)
def test_bad_arguments(bad):
    arguments = {"queries": np.zeros((2, 4), np.float32), "gallery": np.zeros((6, 4), np.float32), "k": 2} | bad
    with pytest.raises(BadInput):
        topk_inner(arguments.pop("queries"), arguments.pop("gallery"), arguments.pop("k"), **arguments)

"""MaxSim over ragged tokens: equal to a naive loop and to sentence-transformers, whatever the lengths, blocks and holes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import maxsim as reference

from chiasm.errors import BadInput
from chiasm.kernels.maxsim import maxsim, maxsim_of, topk_maxsim


def ragged(rng, count, longest, dim=5, shortest=0):
    lengths = rng.integers(shortest, longest + 1, count)
    offsets = np.r_[0, np.cumsum(lengths)]
    # Small integers: every score is exact, and many are tied.
    return rng.integers(-2, 3, (offsets[-1], dim)).astype(np.float32), offsets


def naive(queries, starts, documents, offsets, mean=False):
    """The definition, one pair at a time."""
    out = np.full((len(starts) - 1, len(offsets) - 1), -np.inf)
    for i in range(len(starts) - 1):
        for j in range(len(offsets) - 1):
            q, d = queries[starts[i] : starts[i + 1]], documents[offsets[j] : offsets[j + 1]]
            if len(d):
                out[i, j] = sum((q @ d.T).max(axis=1)) / (max(1, len(q)) if mean else 1)
    return out.astype(np.float32)


def sorted_naively(scores, k):
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, 1)
    return best, np.where(np.isneginf(best), -1, rows)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    q=st.integers(0, 5),
    n=st.integers(0, 20),
    longest=st.integers(0, 9),
    asked=st.integers(0, 6),
    mean=st.booleans(),
    block=st.integers(1, 300),
    k=st.integers(1, 25),
)
def test_equals_the_definition(seed, q, n, longest, asked, mean, block, k):
    rng = np.random.default_rng(seed)
    queries, starts = ragged(rng, q, asked)
    documents, offsets = ragged(rng, n, longest)
    expected = naive(queries, starts, documents, offsets, mean)
    for kind in (np.asarray, torch.as_tensor):
        given_ = {"query_offsets": kind(starts), "mean": mean}
        a, b = kind(queries), kind(documents)
        scores = maxsim(a, b, kind(offsets), block=block, **given_)
        assert type(scores) is type(a)
        np.testing.assert_allclose(np.asarray(scores), expected, rtol=1e-6)
        best, rows = topk_maxsim(a, b, kind(offsets), k, block=block, **given_)
        wanted = sorted_naively(np.asarray(scores), min(k, n))
        np.testing.assert_array_equal(np.asarray(rows), wanted[1])
        np.testing.assert_array_equal(np.asarray(best), wanted[0])
        some = rng.integers(-1, n, (q, 3)) if n else np.full((q, 3), -1)
        padded = np.c_[expected, np.full((q, 1), -np.inf, np.float32)]
        found = maxsim_of(a, b, kind(offsets), kind(some), chunk=2, **given_)
        np.testing.assert_allclose(np.asarray(found), np.take_along_axis(padded, some % (n + 1), 1), rtol=1e-6)


def test_agrees_with_sentence_transformers_on_floats():
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((4, 7, 16)).astype(np.float32)
    lengths = rng.integers(1, 40, 90)
    documents = rng.standard_normal((lengths.sum(), 16)).astype(np.float32)
    offsets = np.r_[0, np.cumsum(lengths)]
    mask = np.arange(7)[None, :] < np.array([7, 3, 1, 5])[:, None]
    peer = reference(
        torch.from_numpy(queries), list(torch.from_numpy(documents).split(lengths.tolist())), torch.from_numpy(mask)
    )
    np.testing.assert_allclose(maxsim(queries, documents, offsets, mask=mask), peer.numpy(), rtol=1e-4, atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter():
    rng = np.random.default_rng(1)
    queries, (documents, offsets) = rng.standard_normal((2, 5, 5)).astype(np.float32), ragged(rng, 9, 6, shortest=1)
    mask = np.array([[True] * 3 + [False] * 2] * 2)
    short = maxsim(queries[:, :3].copy(), documents, offsets, mean=True)
    broken = queries.copy()
    broken[:, 3:] = np.nan
    np.testing.assert_allclose(maxsim(broken, documents, offsets, mask=mask, mean=True), short, rtol=1e-6)
    rows = np.tile(np.arange(9), (2, 1))
    np.testing.assert_allclose(maxsim_of(broken, documents, offsets, rows, mask=mask, mean=True), short, rtol=1e-5)


def test_repeating_a_document_token_changes_nothing():
    rng = np.random.default_rng(2)
    queries, document = rng.standard_normal((3, 4, 8)), rng.standard_normal((6, 8))
    twice = np.concatenate([document, document[2:3]])
    np.testing.assert_array_equal(maxsim(queries, document, [0, 6]), maxsim(queries, twice, [0, 7]))


def test_reverse_exchanges_the_roles():
    rng = np.random.default_rng(3)
    queries, starts = ragged(rng, 4, 5, shortest=1)
    documents, offsets = ragged(rng, 6, 7, shortest=1)
    rows = np.tile(np.arange(6), (4, 1))
    found = maxsim_of(queries, documents, offsets, rows, query_offsets=starts, mean=True, reverse=True)
    np.testing.assert_allclose(found, maxsim(documents, queries, starts, query_offsets=offsets, mean=True).T, rtol=1e-6)


def test_half_precision_is_computed_in_single():
    rng = np.random.default_rng(4)
    queries, documents = rng.standard_normal((2, 3, 32)).astype("f4"), rng.standard_normal((50, 32)).astype("f2")
    offsets = np.arange(0, 51, 5)
    scores = maxsim(queries, documents, offsets)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, maxsim(queries, documents.astype("f4"), offsets), rtol=1e-6)
    assert maxsim(queries.astype("f8"), documents.astype("f8"), offsets).dtype == np.float64


def test_inputs_are_not_changed_and_memory_maps_are_read(tmp_path):
    rng = np.random.default_rng(5)
    documents, offsets = ragged(rng, 30, 9, shortest=1)
    np.save(tmp_path / "tokens.npy", documents)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    queries = rng.standard_normal((2, 4, 5)).astype(np.float32)
    before = queries.copy()
    np.testing.assert_array_equal(maxsim(queries, mapped, offsets), maxsim(queries, documents, offsets))
    np.testing.assert_array_equal(queries, before)


def test_top_k_holds_no_matrix_of_tokens():
    """8 queries x 4 tokens against 20,000 x 10 tokens would be 26 MB of token scores and 0.6 MB of scores."""
    rng = np.random.default_rng(6)
    documents = rng.standard_normal((200_000, 8)).astype(np.float32)
    queries, offsets = rng.standard_normal((8, 4, 8)).astype(np.float32), np.arange(0, 200_001, 10)
    tracemalloc.start()
    try:
        topk_maxsim(queries, documents, offsets, 5, block=1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, d: maxsim(q, d, [0, 3]), "must rise from 0 to the 6 tokens"),
        (lambda q, d: maxsim(q, d, [0, 4, 2, 6]), "must rise"),
        (lambda q, d: maxsim(q[:, :, :2], d, [0, 6]), r"must be \[Q, L, D\]"),
        (lambda q, d: maxsim(q, d[0], [0, 6]), r"must be \[T, D\]"),
        (lambda q, d: maxsim(q, d, [0, 6], mask=np.ones((2, 1))), "mask"),
        (lambda q, d: maxsim(q, d, [0, 6], block=0), "block"),
        (lambda q, d: topk_maxsim(q, d, [0, 6], 0), "at least 1"),
        (lambda q, d: topk_maxsim(q, d, [0, 6], 1, block=0), "block"),
        (lambda q, d: maxsim_of(q, d, [0, 6], np.zeros((1, 1), int)), "rows"),
        (lambda q, d: maxsim_of(q, d, [0, 6], np.array([[0], [1]])), "outside the 1 documents"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call(np.ones((2, 3, 4), np.float32), np.ones((6, 4), np.float32))

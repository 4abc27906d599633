from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from chiasm.errors import BadInput
from chiasm.search.word_index import WordIndex


def sparse(n: int, words: int, active: int, seed: int) -> np.ndarray:
    """Vectors with Zipf-distributed words: long lists of frequent ones."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, words + 1)
    out = np.zeros((n, words), np.float32)
    for row in out:
        chosen = rng.choice(words, active, replace=False, p=share / share.sum())
        row[chosen] = rng.random(active) * np.sqrt(1 + chosen)
    return out


def naive(queries: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ items.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    return np.where(best > 0, best, -np.inf), np.where(best > 0, order, -1)


def test_equals_the_dense_product():
    items, queries = sparse(3000, 200, 12, 0), sparse(40, 200, 5, 1)
    want, rows = naive(queries, items, 10)
    got, found = WordIndex(items).search(queries, 10)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert (found == rows).mean() > 0.995  # nearly equal scores may change places


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 400), st.sampled_from([1, 3, 200]))
@settings(max_examples=60, deadline=None)
def test_small_whole_numbers_are_exact_even_with_ties(seed, words, n, k):
    rng = np.random.default_rng(seed)
    # Small whole numbers: sums are exact, ties are frequent.
    items = rng.integers(0, 4, (n, words)) * (rng.random((n, words)) < 0.3)
    queries = rng.integers(0, 4, (5, words)) * (rng.random((5, words)) < 0.5)
    index = WordIndex(items)
    want = naive(queries.astype(np.float32), items.astype(np.float32), min(k, n))
    got = index.search(queries, k)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def test_columns_of_common_words_add_up_to_the_same():
    items, queries = sparse(3000, 30, 12, 0), sparse(40, 30, 5, 1)
    index = WordIndex(items)
    assert 0 < len(index._column_of) < 30  # both ways are taken
    with_columns = index.search(queries, 10)
    index._column_of = {}
    lists_only = index.search(queries, 10)
    np.testing.assert_allclose(with_columns[0], lists_only[0], rtol=1e-5)


def test_filter_hides_items():
    items, queries = sparse(500, 50, 6, 0), sparse(10, 50, 4, 1)
    allowed = np.arange(500) % 3 == 0
    want = naive(queries, items * allowed[:, None], 10)
    got = WordIndex(items).search(queries, 10, allowed=allowed)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert (allowed[got[1][got[1] >= 0]]).all()
    assert (WordIndex(items).search(queries, 3, allowed=np.zeros(500, bool))[1] == -1).all()


def test_explanation_sums_to_the_score():
    items, queries = sparse(300, 40, 6, 0), sparse(5, 40, 5, 1)
    names = [f"w{i}" for i in range(40)]
    for int8 in (False, True):
        index = WordIndex(items, names, int8=int8)
        scores, rows = index.search(queries, 3)
        for q in range(5):
            match = index.explain(queries[q], int(rows[q, 0]))
            assert match.score == pytest.approx(float(scores[q, 0]), rel=1e-5)
            assert str(match).startswith(f"matched on: {match.words[0][0]} ")
    assert len(index.explain(queries[0], int(rows[0, 0]), most=1).words) <= 1
    one = WordIndex(np.eye(3), ["dog", "grass", "sky"])
    assert str(one.explain([0.8, 0.4, 0.0], 0)) == "matched on: dog 0.80"
    assert str(one.explain([0.8, 0.4, 0.0], 2)) == "no word in common"


def test_int8_is_close_and_smaller():
    items, queries = sparse(2000, 100, 8, 0), sparse(20, 100, 5, 1)
    full, small = WordIndex(items), WordIndex(items, int8=True)
    assert small.entries == full.entries
    assert small.nbytes < 0.7 * full.nbytes
    a, b = full.search(queries, 1)[0], small.search(queries, 1)[0]
    # Each entry is off by half a step of its list's largest weight, or by one where a tiny one is kept at one step.
    slack = (queries * items.max(0)).sum(1) / 127
    assert (np.abs(a - b)[:, 0] <= slack + 1e-5).all()


def test_all_kinds_of_vectors_give_the_same():
    items = sparse(60, 20, 4, 0)
    query = sparse(3, 20, 4, 1)
    want = WordIndex(items).search(query, 4)
    for kind in (
        csr_array,
        torch.from_numpy,
        lambda x: torch.from_numpy(x).to_sparse(),
        lambda x: csr_array(x).tocoo(),
    ):
        got = WordIndex(kind(items)).search(kind(query), 4)
        np.testing.assert_array_equal(got[1], want[1])
    single = WordIndex(items).search(torch.from_numpy(query[0]).to_sparse(), 4)
    np.testing.assert_array_equal(single[1], want[1][:1])


@pytest.mark.parametrize("int8", [False, True])
def test_save_and_load(tmp_path, int8):
    index = WordIndex(sparse(60, 20, 4, 0), [f"w{i}" for i in range(20)], int8=int8)
    index.save(tmp_path / "words.safetensors")
    again = WordIndex.load(tmp_path / "words.safetensors")
    query = sparse(3, 20, 4, 1)
    np.testing.assert_array_equal(again.search(query)[0], index.search(query)[0])
    assert again.words == index.words
    assert len(again) == 60
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("broken.safetensors", "missing.safetensors"):
        with pytest.raises(BadInput):
            WordIndex.load(tmp_path / name)


def test_inputs_are_not_mutated_and_bad_ones_are_refused():
    items = sparse(20, 10, 3, 0)
    before, matrix = items.copy(), csr_array(items)
    kept = matrix.copy()
    WordIndex(items).search(items, 3)
    WordIndex(matrix, int8=True).search(matrix, 3)
    assert (items == before).all()
    assert (matrix != kept).nnz == 0
    for bad in (-items, np.where(items > 0, np.nan, 0), np.where(items > 0, np.inf, 0), np.zeros((2, 3, 4))):
        with pytest.raises(BadInput):
            WordIndex(bad)
    index = WordIndex(items)
    for call in (
        lambda: WordIndex(items, ["one"]),
        lambda: index.search(items[:, :5]),
        lambda: index.search(items, 0),
        lambda: index.search(items, 3, allowed=np.ones(4, bool)),
        lambda: index.explain(items[0], 99),
    ):
        with pytest.raises(BadInput):
            call()


def test_empty_things_are_defined():
    index = WordIndex(np.zeros((4, 5)))
    scores, rows = index.search(np.ones((2, 5)), 3)
    assert (rows == -1).all()
    assert np.isneginf(scores).all()
    assert WordIndex(np.zeros((0, 5))).search(np.ones((2, 5)), 3)[1].shape == (2, 0)
    assert WordIndex(np.eye(5)).search(np.zeros((1, 5)), 3)[1].tolist() == [[-1, -1, -1]]
    assert WordIndex(np.eye(5)).search(np.zeros((0, 5)), 3)[1].shape == (0, 3)

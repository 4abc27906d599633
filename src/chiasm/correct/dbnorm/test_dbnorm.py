"""Identities, closed forms and invariances of DBNorm and its peers (card: unit identities a to g)."""

import numpy as np
import pytest
from scipy.special import logsumexp

from chiasm.correct import fold_gallery, fold_queries
from chiasm.correct.bias import load_bias
from chiasm.correct.dbnorm import (
    CSLS,
    DualBankNorm,
    DynamicDualBankNorm,
    DynamicInvertedSoftmax,
    GloballyCorrected,
    InvertedSoftmax,
    NearestNeighborNormalization,
)
from chiasm.embeddings import unit
from chiasm.errors import BadInput

RNG = np.random.default_rng(0)
GALLERY, QUERIES = unit(RNG.standard_normal((60, 8)) + 0.5), unit(RNG.standard_normal((20, 8)) + 0.5)
QUERY_BANK, ITEM_BANK = unit(RNG.standard_normal((70, 8)) + 0.5), unit(RNG.standard_normal((50, 8)))


def order(scores):
    return np.argsort(-np.asarray(scores), axis=1, kind="stable")


def from_matrix(similarity, bank):
    """Vectors whose inner products are the given matrices: items are the axes."""
    return np.eye(len(similarity[0]), dtype=np.float32), np.array(similarity, np.float32), np.array(bank, np.float32)


def textbook_dual(s, q, g, b1, b2):
    """The equation of the paper, dense, in float64."""
    return np.exp(b1 * s) / np.exp(b1 * q).sum(0) * np.exp(b2 * s) / np.exp(b2 * g).sum(0)


@pytest.mark.parametrize(("b1", "b2"), [(20, 3), (1 / 1.99, 3), (5, 0), (0, 5)])
def test_dual_ranks_as_the_dense_equation(b1, b2):
    s, q, g = (x.astype(np.float64) @ GALLERY.T.astype(np.float64) for x in (QUERIES, QUERY_BANK, ITEM_BANK))
    fitted = DualBankNorm(b1, b2).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    np.testing.assert_array_equal(order(fitted.scores(QUERIES)), order(textbook_dual(s, q, g, b1, b2)))


def test_without_item_strength_it_is_inverted_softmax():
    dual = DualBankNorm(20, 0).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    alone = InvertedSoftmax(20).fit(GALLERY, queries=QUERY_BANK)
    np.testing.assert_allclose(dual.bias_, alone.bias_, atol=1e-5)
    np.testing.assert_allclose(dual.log_items_, np.log(len(ITEM_BANK)), rtol=1e-6)


def test_both_strengths_zero_corrects_nothing():
    fitted = DualBankNorm(0, 0).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    np.testing.assert_array_equal(fitted.bias_, 0)


def test_equal_banks_and_strengths_rank_as_inverted_softmax():
    dual = DualBankNorm(7, 7).fit(GALLERY, queries=QUERY_BANK, items=QUERY_BANK)
    alone = InvertedSoftmax(7).fit(GALLERY, queries=QUERY_BANK)
    np.testing.assert_allclose(dual.bias_, alone.bias_, atol=1e-5)


def test_closed_form_on_two_by_two():
    gallery, queries, bank = from_matrix([[0.9, 0.8], [0.8, 0.9]], [[0.9, 0.9]])
    flat = InvertedSoftmax(1.0).fit(gallery, queries=bank)
    np.testing.assert_allclose(flat.bias_, 0, atol=1e-7)
    gallery, queries, bank = from_matrix([[0.9, 0.8], [0.8, 0.9]], [[1.2, 0.5]])
    tilted = InvertedSoftmax(1.0).fit(gallery, queries=bank)
    # The uncentered scores of row 0 are (0.9 - 1.2, 0.8 - 0.5); the bias is centered by the mean of (1.2, 0.5).
    np.testing.assert_allclose(tilted.scores(queries)[0] - 0.85, [-0.3, 0.3], atol=1e-6)


def test_a_constant_added_to_an_item_cancels():
    similarity, bank, own = (RNG.normal(size=(n, 12)) for n in (5, 9, 7))
    shift = np.zeros(12)
    shift[3] = 2.5
    axes = np.eye(12, dtype=np.float32)
    plain = DualBankNorm(4, 2).fit(axes, queries=bank.astype("f4"), items=own.astype("f4"))
    moved = DualBankNorm(4, 2).fit(axes, queries=(bank + shift).astype("f4"), items=(own + shift).astype("f4"))
    a, b = plain.scores(similarity.astype("f4")), moved.scores((similarity + shift).astype("f4"))
    np.testing.assert_array_equal(order(a), order(b))


@pytest.mark.parametrize("method", [DualBankNorm(), InvertedSoftmax(), CSLS(5), NearestNeighborNormalization(9)])
def test_folded_search_equals_correction(method):
    fitted = method.fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    dense = fold_queries(QUERIES) @ fold_gallery(GALLERY, fitted.bias_).T
    scores, rows = fitted.topk(QUERIES, 10)
    np.testing.assert_array_equal(rows, order(dense)[:, :10])
    np.testing.assert_allclose(scores, np.take_along_axis(dense, rows, 1), atol=1e-6)
    np.testing.assert_allclose(fitted.bias_.mean(), 0, atol=1e-6)


@pytest.mark.parametrize("inactive", ["exp", "raw"])
def test_dynamic_without_active_items_is_raw(inactive):
    # Bank rows that all prefer item 0, which no query does: nothing is active for these queries.
    gallery = np.eye(4, dtype=np.float32)
    bank = np.array([[1, 0, 0, 0]], np.float32)
    queries = np.array([[0.1, 0.9, 0.3, 0.2], [0.0, 0.2, 0.8, 0.4]], np.float32)
    fitted = DynamicDualBankNorm(inactive=inactive).fit(gallery, queries=bank, items=bank)
    np.testing.assert_array_equal(order(fitted.scores(queries)), order(queries))
    np.testing.assert_array_equal(fitted.topk(queries, 4)[1], order(queries))


def test_dynamic_with_all_items_active_is_dual():
    dynamic = DynamicDualBankNorm(9, 2, k_active=len(GALLERY)).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    dual = DualBankNorm(9, 2).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    np.testing.assert_array_equal(dynamic.topk(QUERIES, 10)[1], dual.topk(QUERIES, 10)[1])


@pytest.mark.parametrize("inactive", ["exp", "raw"])
def test_dynamic_equals_a_naive_double_loop(inactive):
    b1, b2 = 6.0, 2.0
    s, q, g = (x.astype(np.float64) @ GALLERY.T.astype(np.float64) for x in (QUERIES, QUERY_BANK, ITEM_BANK))
    active_q, active_g = set(q.argmax(1)), set(g.argmax(1))
    expected = np.empty_like(s)
    for i, row in enumerate(s):
        best = row.argmax()
        for j, x in enumerate(row):
            off = (lambda b, x=x: np.exp(b * x)) if inactive == "exp" else (lambda b, x=x: x)
            first = np.exp(b1 * x) / np.exp(b1 * q[:, j]).sum() if best in active_q else off(b1)
            second = np.exp(b2 * x) / np.exp(b2 * g[:, j]).sum() if best in active_g else off(b2)
            expected[i, j] = first * second
    fitted = DynamicDualBankNorm(b1, b2, inactive=inactive).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    np.testing.assert_array_equal(order(fitted.scores(QUERIES)), order(expected))
    np.testing.assert_array_equal(fitted.topk(QUERIES, 60)[1], order(expected))


def test_dynamic_inverted_softmax_ignores_the_item_bank():
    one = DynamicInvertedSoftmax(8).fit(GALLERY, queries=QUERY_BANK)
    two = DynamicInvertedSoftmax(8).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    np.testing.assert_array_equal(one.scores(QUERIES), two.scores(QUERIES))


def test_globally_corrected_counts_bank_queries():
    fitted = GloballyCorrected(chunk=7).fit(GALLERY, queries=QUERY_BANK)
    s, q = QUERIES @ GALLERY.T, QUERY_BANK @ GALLERY.T
    ranks = 1 + (q[None, :, :] > s[:, None, :]).sum(1)
    scores = fitted.scores(QUERIES)
    np.testing.assert_array_equal(np.round(-scores), ranks)
    np.testing.assert_array_equal(fitted.topk(QUERIES, 10)[1], order(scores)[:, :10])


def test_peers_in_closed_form():
    q = QUERY_BANK @ GALLERY.T
    nearest = np.sort(q, axis=0)[::-1]
    csls = CSLS(10).fit(GALLERY, queries=QUERY_BANK)
    expected = -nearest[:10].mean(0) / 2
    np.testing.assert_allclose(csls.bias_, expected - expected.mean(), atol=1e-6)
    nnn = NearestNeighborNormalization(k=1000, alpha=0.5).fit(GALLERY, queries=QUERY_BANK)
    expected = -0.5 * q.mean(0)
    np.testing.assert_allclose(nnn.bias_, expected - expected.mean(), atol=1e-6)


def test_banks_may_come_in_parts():
    whole = DualBankNorm().fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    parts = DualBankNorm().fit(GALLERY, queries=QUERY_BANK[:30], items=ITEM_BANK[:1])
    parts.partial_fit(queries=QUERY_BANK[30:]).partial_fit(items=ITEM_BANK[1:])
    np.testing.assert_allclose(whole.bias_, parts.bias_, atol=1e-5)


def test_items_may_come_in_parts():
    whole = DualBankNorm().fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    parts = DualBankNorm().fit(GALLERY[:25], queries=QUERY_BANK, items=ITEM_BANK)
    parts.extend(GALLERY[25:], queries=QUERY_BANK, items=ITEM_BANK)
    np.testing.assert_allclose(whole.bias_, parts.bias_, atol=1e-5)
    with pytest.raises(BadInput, match="same banks"):
        parts.extend(GALLERY[:2], queries=QUERY_BANK)


def test_large_temperatures_do_not_overflow():
    fitted = DualBankNorm(500, 90).fit(GALLERY, queries=QUERY_BANK, items=ITEM_BANK)
    q = QUERY_BANK.astype(np.float64) @ GALLERY.T
    np.testing.assert_allclose(fitted.log_queries_, logsumexp(500 * q, axis=0), rtol=1e-5)


def test_saved_bias_is_bit_equal(tmp_path):
    fitted = DualBankNorm().fit(GALLERY, queries=QUERY_BANK)
    fitted.save(tmp_path / "bias.safetensors")
    np.testing.assert_array_equal(load_bias(tmp_path / "bias.safetensors"), fitted.bias_)
    with pytest.raises(BadInput, match="not a saved correction"):
        load_bias(tmp_path / "nothing")


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="bank"):
        DualBankNorm().fit(GALLERY)
    with pytest.raises(BadInput, match="is missing"):
        CSLS().fit(GALLERY)
    with pytest.raises(BadInput, match="is empty"):
        DualBankNorm().fit(GALLERY, queries=QUERY_BANK[:0])
    with pytest.raises(BadInput, match="cannot be compared"):
        DualBankNorm().fit(GALLERY, queries=QUERY_BANK[:, :5])
    broken = QUERY_BANK.copy()
    broken[3, 2] = np.nan
    with pytest.raises(BadInput, match="row 3"):
        DualBankNorm().fit(GALLERY, queries=broken)
    with pytest.raises(BadInput, match="not fitted"):
        DualBankNorm().scores(QUERIES)
    with pytest.raises(BadInput, match="negative"):
        DualBankNorm(-1).fit(GALLERY, queries=QUERY_BANK)


def test_queries_inside_the_bank_are_noticed():
    fitted = DualBankNorm().fit(GALLERY, queries=np.concatenate([QUERY_BANK, QUERIES]))
    with pytest.warns(UserWarning, match="20 of 20 queries are in the query bank"):
        fitted.topk(QUERIES, 3)


def test_degenerate_galleries_have_results():
    zero, same = np.zeros((3, 8), np.float32), np.ones((3, 8), np.float32)
    for gallery in (zero, same, GALLERY[:1]):
        fitted = DualBankNorm().fit(gallery, queries=QUERY_BANK, items=ITEM_BANK)
        assert np.isfinite(fitted.bias_).all()
        assert fitted.topk(QUERIES, 5)[1].shape == (20, len(gallery))

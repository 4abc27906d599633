"""Identities of InvGC (card: unit identities a to g)."""

import numpy as np
import pytest

from chiasm.correct.invgc import BankMoments, InverseGraphConvolution, grid
from chiasm.embeddings import unit
from chiasm.errors import BadInput

RNG = np.random.default_rng(1)
GALLERY = unit(RNG.standard_normal((40, 10)) + 1)
ITEMS, QUERIES = unit(RNG.standard_normal((70, 10)) + 1), unit(RNG.standard_normal((30, 10)) + 1)


def fit(**options):
    return InverseGraphConvolution(**options).fit(GALLERY, queries=QUERIES, items=ITEMS)


def dense(gallery, bank, step, k=None, center=True):
    """The paper's equation with the whole matrix."""
    w = (gallery @ bank.T).astype(np.float64)
    if center:
        w = w - w.mean()
    if k is not None:
        keep = np.argsort(-w, axis=1)[:, :k]
        mask = np.zeros_like(w)
        np.put_along_axis(mask, keep, 1, axis=1)
        w = w * mask
    return unit(gallery - step / (k or len(bank)) * w @ bank)


def test_no_step_changes_nothing():
    assert fit().vectors_ is not None
    np.testing.assert_array_equal(fit().vectors_, GALLERY)


@pytest.mark.parametrize("center", [True, False])
def test_the_full_graph_through_moments_equals_the_matrix(center):
    got = fit(step_items=0.7, center=center, safe=False).vectors_
    np.testing.assert_allclose(got, dense(GALLERY, ITEMS, 0.7, center=center), atol=1e-5)


def test_local_with_all_neighbors_equals_full_without_centering():
    local = fit(step_items=0.5, pool_rate=1.0, center=False)
    full = fit(step_items=0.5, center=False, safe=False)
    np.testing.assert_allclose(local.vectors_, full.vectors_, atol=1e-5)


def test_local_equals_the_masked_matrix():
    got = fit(step_items=0.6, pool_rate=0.1).vectors_
    np.testing.assert_allclose(got, dense(GALLERY, ITEMS, 0.6, k=7, center=False), atol=1e-5)


def test_two_banks_are_pooled_or_joined():
    pooled = fit(step_items=0.4, step_queries=0.8, safe=False).vectors_
    halves = (dense(GALLERY, ITEMS, 0.4) + dense(GALLERY, QUERIES, 0.8)) / 2
    np.testing.assert_allclose(pooled, unit(halves), atol=1e-5)
    joint = fit(step_items=0.4, step_queries=0.8, safe=False, joint=True, center=False).vectors_
    shift = 0.4 / 70 * (GALLERY @ ITEMS.T) @ ITEMS + 0.8 / 30 * (GALLERY @ QUERIES.T) @ QUERIES
    np.testing.assert_allclose(joint, unit(GALLERY - shift), atol=1e-5)


def test_one_bank_item_in_closed_form():
    v, b = GALLERY[:1], ITEMS[:1]

    def apply(gallery, step):
        return InverseGraphConvolution(step_items=step, center=False, safe=False).fit(gallery, items=b).vectors_

    np.testing.assert_allclose(apply(v, 0.5), unit(v - 0.5 * (v @ b.T) * b), atol=1e-6)
    np.testing.assert_allclose(apply(b, 0.5), b, atol=1e-6)  # what is left points the same way
    np.testing.assert_array_equal(apply(b, 1.0), b)  # nothing is left: returned unchanged


def test_what_is_orthogonal_to_the_bank_stays():
    bank = np.zeros((5, 4), np.float32)
    bank[:, :2] = unit(RNG.standard_normal((5, 2)))
    gallery = np.array([[0, 0, 0.6, 0.8]], np.float32)
    for rate in (None, 0.4):
        got = InverseGraphConvolution(step_items=1.0, pool_rate=rate, center=False).fit(gallery, items=bank)
        np.testing.assert_allclose(got.vectors_, gallery, atol=1e-6)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_rotation_leaves_scores(rate):
    turn = np.linalg.qr(RNG.standard_normal((10, 10)))[0].astype(np.float32)
    options = {"step_items": 0.5, "step_queries": 0.5, "pool_rate": rate}
    plain = fit(**options).scores(GALLERY)
    turned = InverseGraphConvolution(**options).fit(GALLERY @ turn, queries=QUERIES @ turn, items=ITEMS @ turn)
    np.testing.assert_allclose(turned.scores(GALLERY @ turn), plain, atol=1e-5)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_chunks_do_not_matter(rate):
    options = {"step_items": 0.5, "step_queries": 0.3, "pool_rate": rate}
    np.testing.assert_allclose(fit(**options, chunk=7).vectors_, fit(**options).vectors_, atol=1e-6)


def test_new_items_need_no_refit():
    fitted = fit(step_items=0.5, pool_rate=0.1)
    np.testing.assert_allclose(fitted.transform(GALLERY[10:15]), fitted.vectors_[10:15], atol=1e-6)


def test_safe_never_flips_the_dominant_direction():
    moments = BankMoments.of(ITEMS, 16)
    values, vectors = np.linalg.eigh(moments.second)
    assert moments.top_eigenvalue == pytest.approx(values[-1], rel=1e-5)
    top = vectors[:, -1].astype(np.float32)
    over = fit(step_items=100.0, center=False).vectors_ @ top
    assert (over * (GALLERY @ top) > -1e-4).all()
    flipped = fit(step_items=100.0, center=False, safe=False).vectors_ @ top
    assert (flipped * (GALLERY @ top) < 0).any()


def test_clip_ignores_neighbors_that_point_away():
    bank = np.array([[1, 0], [-1, 0]], np.float32)
    item = np.array([[0.6, 0.8]], np.float32)
    clipped = InverseGraphConvolution(step_items=0.5, pool_rate=1.0, clip=True).fit(item, items=bank).vectors_
    np.testing.assert_allclose(clipped, unit(item - 0.5 / 2 * 0.6 * bank[:1]), atol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="no bank of items"):
        InverseGraphConvolution(step_items=1).fit(GALLERY)
    with pytest.raises(BadInput, match="negative"):
        fit(step_items=-1)
    with pytest.raises(BadInput, match="pool_rate"):
        fit(step_items=1, pool_rate=0.0)


def test_the_grid_starts_weak():
    steps = [c.step_items + c.step_queries for c in grid(local=True)]
    assert steps[0] == min(steps)

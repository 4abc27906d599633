"""Figures of spaces against definitions, closed forms and invariances; bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from chiasm.errors import BadInput
from chiasm.measure import (
    alignment,
    anti_hub_share,
    close_gap,
    delta_deg,
    detection,
    effective_rank,
    hub_share,
    hubness,
    hubness_of_lists,
    intra_modal_misalignment,
    mean_rank_variance,
    mean_similarity,
    modality_gap,
    nearest,
    neighbor_agreement,
    participation_ratio,
    robin_hood,
    same_label,
    skewness,
    spectrum,
    uniformity,
)


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype("f4")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype("f8"), b.astype("f8")
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def rotation(d: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(rows(d, d, seed).astype("f8"))[0]


# Hubness


def test_hubness_equals_its_definition():
    queries, gallery = rows(80, 6), rows(150, 6, 1)
    counts = np.zeros(150)
    for row in cosines(queries, gallery):
        counts[np.argsort(-row)[:10]] += 1
    found = hubness(queries, gallery, chunk=13)
    assert found.counts.tolist() == counts.tolist()
    assert found.skewness == pytest.approx(stats.skew(counts))
    assert found.anti_hub_share == (counts == 0).mean()
    assert found.hub_share == pytest.approx(np.sort(counts)[-2:].sum() / 800)
    assert found.robin_hood == pytest.approx(np.abs(counts - counts.mean()).sum() / 2 / counts.sum())


def test_skewness_counts_items_that_are_never_retrieved():
    assert skewness([3, 3, 0, 0, 0, 0, 0, 0]) > skewness([3, 3]) == 0


def test_extremes_of_hubness():
    m = 40
    equal = hubness_of_lists(np.arange(m)[:, None], m)
    assert (equal.skewness, equal.robin_hood, equal.anti_hub_share) == (0, 0, 0)
    one = hubness_of_lists(np.zeros((20, 1), dtype=int), m)
    assert one.robin_hood == pytest.approx(1 - 1 / m)
    assert one.hub_share == 1
    assert one.anti_hub_share == 1 - 1 / m
    assert one.skewness == pytest.approx((m - 2) / np.sqrt(m - 1))  # skewness of a Bernoulli variable with p = 1/m
    assert json.loads(json.dumps(one.to_json()))["largest"] == 20
    assert hub_share([1, 1, 2], top=1.0) == 1
    assert robin_hood([0, 0]) == 0
    assert anti_hub_share([0, 1]) == 0.5


def test_a_popularity_cone_has_hubs_and_a_bias_removes_them():
    rng = np.random.default_rng(0)
    center, latent = np.eye(64)[0] * 4, rng.normal(size=(800, 64))
    text = latent + 1.2 * rng.normal(size=latent.shape) + center
    image = latent + 1.2 * rng.normal(size=latent.shape) + center / 4 * rng.normal(2, 2, size=(800, 1))
    cone, plain = hubness(text, image), hubness(text - center, latent)
    assert cone.skewness > 1.5 > 0.8 > plain.skewness
    assert cone.anti_hub_share > plain.anti_hub_share
    assert hubness(text, image, bias=-cosines(text, image).mean(axis=0).astype("f4")).skewness < cone.skewness / 2


def test_neighbors_leave_the_row_itself_out_also_among_duplicates():
    doubled = np.repeat(rows(20, 5), 3, axis=0)
    scores, found = nearest(doubled, None, 4)
    assert found.shape == (60, 4)
    assert not (found == np.arange(60)[:, None]).any()
    np.testing.assert_allclose(scores[:, :2], 1, atol=1e-6)
    same = np.ones((50, 4))
    assert not (nearest(same, None, 3)[1] == np.arange(50)[:, None]).any()
    assert nearest(rows(3, 4), None, 10)[1].shape == (3, 2)


# Degeneration


def test_degeneration_equals_its_definition():
    gallery, queries = rows(60, 8), rows(30, 8, 1)
    inside, across = cosines(gallery, gallery), cosines(queries, gallery)
    np.fill_diagonal(inside, -2)
    assert delta_deg(gallery, chunk=7) == pytest.approx(inside.max(axis=1).mean(), abs=1e-6)
    assert mean_similarity(gallery, k=5) == pytest.approx(np.sort(inside, axis=1)[:, -5:].mean(), abs=1e-6)
    assert mean_similarity(gallery, queries, k=5) == pytest.approx(np.sort(across, axis=1)[:, -5:].mean(), abs=1e-6)
    assert mean_similarity(gallery, k=None) == pytest.approx(inside[inside > -2].mean(), abs=1e-6)
    assert mean_similarity(gallery, queries, k=None) == pytest.approx(across.mean(), abs=1e-6)
    assert mean_similarity(gallery, k=59) == pytest.approx(mean_similarity(gallery, k=None), abs=1e-6)
    assert delta_deg(np.ones((5, 3))) == pytest.approx(1)
    assert delta_deg(np.eye(4)) == 0


def test_effective_rank_closed_forms():
    assert effective_rank(np.eye(7)) == pytest.approx(7)
    assert effective_rank(np.outer(np.arange(1, 20), np.ones(5))) == pytest.approx(1)
    assert effective_rank(np.zeros((3, 4))) == 0
    # Two singular values 3 and 1: entropy of (3/4, 1/4).
    wanted = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(wanted)
    assert participation_ratio(np.diag([3.0, 1.0]), center=False) == pytest.approx((9 + 1) ** 2 / (81 + 1))
    assert participation_ratio(np.concatenate([np.eye(6), -np.eye(6)])) == pytest.approx(6)
    assert participation_ratio(np.ones((4, 3))) == 0
    vectors = rows(200, 12) * np.linspace(1, 4, 12, dtype="f4")
    np.testing.assert_allclose(spectrum(vectors), np.linalg.svd(vectors.astype("f8"), compute_uv=False), rtol=1e-6)
    moved = vectors + 5
    np.testing.assert_allclose(spectrum(moved, center=True), spectrum(vectors, center=True), rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 999))
def test_ranks_have_bounds_and_ignore_rotation_and_scale(n, d, seed):
    vectors = rows(n, d, seed)
    turned = 3 * vectors @ rotation(d, seed).astype("f4")
    for figure in (effective_rank, participation_ratio):
        value = figure(vectors)
        assert 1 - 1e-6 <= value <= min(n, d) + 1e-6
        assert figure(turned) == pytest.approx(value, rel=1e-3)
        assert figure(np.concatenate([vectors, vectors])) == pytest.approx(value, rel=1e-4)


def test_a_cone_is_seen():
    sphere = rows(500, 32)
    cone = sphere + 6 * np.eye(32, dtype="f4")[0]
    assert delta_deg(cone) > delta_deg(sphere) + 0.1
    assert mean_similarity(cone, k=None) > 0.4 > 0.05 > mean_similarity(sphere, k=None)
    assert effective_rank(cone) < effective_rank(sphere) - 2
    assert uniformity(cone) > uniformity(sphere) + 1


# Gap


def test_gap_of_shifted_modalities_and_of_none():
    base = rows(600, 16)
    none = modality_gap(base[:300], base[300:])
    assert none.distance < 0.15
    assert none.relative < 0.15
    assert 0.4 < none.separability < 0.6
    shift = 3 * np.eye(16, dtype="f4")[0]
    wide = modality_gap(base + shift, rows(600, 16, 1) - shift)
    assert wide.distance > 0.8
    assert wide.relative > 1
    assert wide.separability > 0.95
    narrow = modality_gap(*close_gap(base + shift, rows(600, 16, 1) - shift))
    assert narrow.distance < wide.distance / 4
    swapped = modality_gap(rows(600, 16, 1) - shift, base + shift)
    np.testing.assert_allclose(swapped.vector, -wide.vector, atol=1e-6)
    json.dumps(wide.to_json())


def test_gap_closed_form():
    gap = modality_gap(np.eye(3)[[0] * 4], np.eye(3)[[1] * 4])
    assert gap.distance == pytest.approx(2**0.5)
    assert gap.relative == np.inf
    assert gap.separability == 1
    same = modality_gap(np.ones((6, 3)), np.ones((6, 3)))
    assert (same.distance, same.relative, same.separability) == (0, 0, 0.5)


def test_neighbor_agreement_ends():
    a = rows(200, 16)
    assert neighbor_agreement(a, a @ rotation(16).astype("f4")).mean() > 0.99
    chance = neighbor_agreement(a, rows(200, 7, 5))
    assert chance.mean() == pytest.approx(10 / 199, abs=0.02)
    ours, theirs = (nearest(x, None, 10)[1] for x in (a, rows(200, 7, 5)))
    assert chance[3] == len(set(ours[3]) & set(theirs[3])) / 10


@pytest.mark.parametrize(("noise", "misaligned"), [(0.0, False), (1.0, True)])
def test_intra_modal_misalignment_of_the_linear_toy(noise, misaligned):
    """Images vary in directions that no text reaches; without that variation there is nothing to find."""
    rng = np.random.default_rng(0)
    labels = rng.integers(20, size=600)
    shared = rng.normal(size=(20, 10))[labels]
    image = np.concatenate([shared + 0.25 * rng.normal(size=(600, 10)), np.zeros((600, 54))], axis=1)
    text = image.copy()
    image[:, 10:] = 2 * noise * np.sqrt(10) * rng.normal(size=(600, 54)) / np.sqrt(54)
    found = intra_modal_misalignment(image, text, same_label(labels, labels))
    assert (found.misalignment.low > 0.05) == misaligned
    if not misaligned:
        assert abs(found.misalignment.mean) < 0.005
        assert found.agreement > 0.99
    assert found.misalignment.mean == pytest.approx(found.crossed - found.native)
    json.dumps(found.to_json())


# Alignment and uniformity


def test_alignment_and_uniformity_equal_their_definitions():
    a, b = rows(50, 6), rows(50, 6, 1)
    distance = 2 - 2 * np.diag(cosines(a, b))
    assert alignment(a, b) == pytest.approx(distance.mean(), rel=1e-5)
    assert alignment(a, b, alpha=1) == pytest.approx(np.sqrt(distance).mean(), rel=1e-5)
    assert alignment(a, 3 * a) == pytest.approx(0, abs=1e-9)
    pairs = cosines(a, a)[np.triu_indices(50, 1)]
    wanted = np.log(np.exp(-2 * (2 - 2 * pairs)).mean())
    for chunk in (None, 1, 7, 50):
        assert uniformity(a, chunk=chunk) == pytest.approx(wanted, rel=1e-5)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-5)
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_uniformity_of_a_sample():
    a = rows(2000, 12)
    sampled = uniformity(a, sample=600, seed=1)
    assert sampled == uniformity(a, sample=600, seed=1)
    assert sampled == pytest.approx(uniformity(a), abs=0.05)
    assert uniformity(a, sample=9999) == uniformity(a)


# Mean rank variance


def test_mean_rank_variance_of_the_card():
    found = mean_rank_variance([[0, 0], [2, 4]])
    assert (found.mrv, found.mrsd) == (0.5, 0.5)
    spread = mean_rank_variance([[0, 4]])
    assert (spread.mrv, spread.mrsd) == (4, 2)
    assert mean_rank_variance([[0, 500]], clip=100).mrv == 2500
    assert mean_rank_variance([[0, np.inf]], clip=4).mrv == 4
    assert mean_rank_variance([[0, 4, np.nan], [np.nan] * 3]).mrv == 4
    assert mean_rank_variance([[5], [9]]).mrv == 0
    ranks = np.random.default_rng(0).integers(100, size=(30, 4)).astype(float)
    assert mean_rank_variance(ranks).mrv == pytest.approx(ranks.var(axis=1).mean())
    assert mean_rank_variance(ranks[:, ::-1] + 1).mrv == pytest.approx(mean_rank_variance(ranks).mrv)
    for bad in ([[0, np.inf]], [1, 2], [[np.nan]], np.zeros((0, 2))):
        with pytest.raises(BadInput):
            mean_rank_variance(bad)


# Detection


def test_detection_equals_its_definition():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(1, 12, size=101).astype(float), rng.integers(0, 8, size=77).astype(float)
    found = detection(inside, outside)
    wins = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    assert found.auroc == pytest.approx(wins)
    accepted = {t: ((inside >= t).mean(), (outside >= t).mean()) for t in np.unique(inside)}
    assert found.fpr95 == min(fpr for tpr, fpr in accepted.values() if tpr >= 0.95)
    assert detection(-outside, -inside).auroc == pytest.approx(found.auroc)
    assert detection(-outside, -inside).aupr_in == pytest.approx(found.aupr_out)


def test_detection_extremes():
    perfect = detection([2.0, 3], [0.0, 1])
    assert (perfect.auroc, perfect.aupr_in, perfect.aupr_out, perfect.fpr95) == (1, 1, 1, 0)
    tied = detection(np.ones(20), np.ones(30))  # saturated scores count against the detector
    assert (tied.auroc, tied.fpr95) == (0.5, 1)
    assert tied.aupr_in == pytest.approx(0.4)
    assert detection([np.inf, 1.0], [-np.inf, 0.0]).auroc == 1
    twenty = np.arange(20.0)
    assert detection(twenty, [0.5]).threshold == 1  # 19 of 20 are 95 %
    for bad in (([], [1.0]), ([1.0], [np.nan])):
        with pytest.raises(BadInput):
            detection(*bad)
    with pytest.raises(BadInput):
        detection([1.0], [0.0], tpr=0)


# All of them


@pytest.mark.parametrize(
    "call",
    [
        lambda xp: hubness(xp(rows(40, 5)), xp(rows(30, 5, 1))).counts,
        lambda xp: hubness(xp(rows(40, 5))).skewness,
        lambda xp: modality_gap(xp(rows(40, 5)), xp(rows(30, 5, 1))).vector,
        lambda xp: modality_gap(xp(rows(40, 5)), xp(rows(30, 5, 1))).separability,
        lambda xp: close_gap(xp(rows(40, 5)), xp(rows(30, 5, 1)))[0],
        lambda xp: nearest(xp(rows(40, 5)), None, 3)[1],
        lambda xp: delta_deg(xp(rows(40, 5))),
        lambda xp: mean_similarity(xp(rows(40, 5)), k=None),
        lambda xp: effective_rank(xp(rows(40, 5))),
        lambda xp: uniformity(xp(rows(40, 5)), sample=20),
        lambda xp: alignment(xp(rows(40, 5)), xp(rows(40, 5, 1))),
    ],
)
def test_torch_gives_the_same_of_its_own_kind(call):
    torch = pytest.importorskip("torch")
    ours, theirs = call(np.asarray), call(torch.from_numpy)
    assert isinstance(theirs, torch.Tensor) == isinstance(ours, np.ndarray)
    np.testing.assert_allclose(np.asarray(theirs), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("figure", [hubness, delta_deg, uniformity, effective_rank, lambda x: modality_gap(x, x)])
@pytest.mark.parametrize("bad", [np.zeros(3), np.full((4, 2), np.nan), np.full((4, 2), np.inf), np.zeros((0, 3))])
def test_bad_rows_are_refused(figure, bad):
    with pytest.raises(BadInput):
        figure(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda: hubness(rows(3, 4), rows(3, 5)),
        lambda: hubness(rows(1, 4)),
        lambda: delta_deg(rows(1, 4)),
        lambda: alignment(rows(3, 4), rows(2, 4)),
        lambda: uniformity(rows(5, 4), sample=1),
        lambda: hubness_of_lists(np.array([[5]]), 3),
        lambda: hubness_of_lists(np.zeros((0, 3), dtype=int), 3),
        lambda: hub_share([1, 2], top=0),
        lambda: neighbor_agreement(rows(3, 4), rows(4, 4)),
        lambda: modality_gap(rows(9, 4), rows(9, 5)),
        lambda: modality_gap(rows(3, 4), rows(9, 4)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(BadInput):
        call()


def test_one_direction_and_zero_rows_have_results():
    zeros = np.zeros((6, 4))
    assert delta_deg(zeros) == 0
    assert hubness(zeros).k == 5
    assert modality_gap(zeros, zeros).distance == 0
    assert participation_ratio(zeros) == 0
    assert np.isfinite(uniformity(zeros))

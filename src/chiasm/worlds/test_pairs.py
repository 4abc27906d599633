"""Pair worlds: every planted fault can be measured, and the clean world has none of them."""

from __future__ import annotations

import numpy as np
import pytest

from chiasm.errors import BadInput, UnknownName
from chiasm.worlds.pairs import (
    KINDS,
    attributes,
    channels,
    clean,
    clusters,
    cone,
    gap,
    identities,
    image_only,
    make_pairs,
    noisy,
    popularity,
)


def recall_at_1(world):
    """Text -> image, against the true partner; ties count against it."""
    scores = world.text @ world.image.T
    own = scores[np.arange(len(scores)), world.partner]
    return ((scores >= own[:, None]).sum(axis=1) == 1).mean()


def skewness(world, k=10):
    scores = world.text @ world.image.T
    best = np.argpartition(-scores, k, axis=1)[:, :k]
    counts = np.bincount(best.ravel(), minlength=scores.shape[1]).astype(float)
    return (((counts - counts.mean()) / counts.std()) ** 3).mean()


def mean_gap(world):
    return np.linalg.norm(world.text.mean(axis=0) - world.image.mean(axis=0))


def pair_cosine(world):
    return (world.text * world.image).sum(axis=1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_seeds_shapes_and_truth(kind):
    world, again, other = make_pairs(kind, seed=1), make_pairs(kind, seed=1), make_pairs(kind, seed=2)
    assert world.arrays().keys() == again.arrays().keys()
    for name, values in world.arrays().items():
        assert np.array_equal(values, again.arrays()[name])
        assert np.isfinite(values).all()
    assert not np.array_equal(world.text, other.text)
    assert world.text.dtype == world.bank_image.dtype == np.float32
    assert len(world.text) == len(world.image) == len(world.partner) == len(world.noisy)
    assert len(world.bank_text) == len(world.bank_image) == len(world.bank_partner) == len(world.bank_noisy)
    assert world.kind == kind
    if world.comparable:
        np.testing.assert_allclose(np.linalg.norm(world.text, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(world.bank_image, axis=1), 1, atol=1e-5)


def test_the_clean_world_has_no_fault():
    world = clean()
    assert 0.52 < recall_at_1(world) < 0.60  # the card: 55.7 % without a cone
    assert skewness(world) < 0.5
    assert mean_gap(world) < 0.08
    assert not world.noisy.any()
    assert not world.bank_noisy.any()


def test_the_cone_makes_hubs_and_costs_recall():
    worlds = [cone(seed=seed) for seed in range(3)]
    assert 0.43 < np.mean([recall_at_1(w) for w in worlds]) < 0.52  # the card: 46.5 %, skewness 2.2
    assert 1.7 < np.mean([skewness(w) for w in worlds]) < 3.0
    w = worlds[0]
    assert (w.text @ w.truth["axis"]).mean() > 0.8 * np.linalg.norm(w.text.mean(axis=0))
    # The rest of the image projects on the axis with standard deviation 1.56, and the length divides: not 1.
    assert np.corrcoef(w.image @ w.truth["axis"], w.truth["popularity"])[0, 1] > 0.7
    assert skewness(cone(offset=0, popularity=(0, 0))) < 0.5  # the negative control


def test_the_popular_items_are_the_hubs():
    world = popularity()
    best = np.argpartition(-(world.text @ world.image.T), 10, axis=1)[:, :10]
    counts = np.bincount(best.ravel(), minlength=len(world))
    hub = world.truth["hub"]
    assert 0.005 < hub.mean() < 0.04
    assert counts[hub].min() > np.percentile(counts[~hub], 90)
    assert skewness(world) > 3


def test_clusters_are_crowded_unevenly():
    world = clusters()
    assert 0.90 < recall_at_1(world) < 0.96  # the card: 92.2 %, skewness 1.0
    assert 0.6 < skewness(world) < 1.4
    same = world.truth["cluster"][:, None] == world.truth["cluster"][None]
    scores = world.text @ world.image.T
    assert scores[same].mean() > scores[~same].mean() + 0.15
    assert skewness(clusters(pull=0)) < 0.5


def test_the_gap_moves_the_modalities_apart_and_changes_no_ranking():
    apart, together = gap(), gap(size=0.0)
    assert mean_gap(apart) == pytest.approx(0.7 / np.sqrt(1 + 0.35**2), abs=0.05)
    assert mean_gap(together) < 0.08
    rank = [np.argsort(-(w.text @ w.image.T), axis=1)[:, :5] for w in (apart, together)]
    assert (rank[0] == rank[1]).mean() > 0.999


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6])
def test_noisy_pairs_are_known_and_their_partners_too(rate):
    world = noisy(rate=rate)
    assert abs(world.noisy.mean() - rate) < 0.005
    assert abs(world.bank_noisy.mean() - rate) < 0.005
    assert recall_at_1(world) > 0.97  # of the true partner
    assert np.array_equal(np.sort(world.partner), np.arange(len(world)))
    assert np.array_equal(world.partner != np.arange(len(world)), world.noisy)
    cosine = pair_cosine(world)
    assert cosine[~world.noisy].mean() > 0.6
    if rate:
        assert abs(cosine[world.noisy].mean()) < 0.05


@pytest.mark.parametrize(("own", "expected"), [(0.0, 0.655), (0.3, 0.642), (0.6, 0.533), (1.0, 0.298)])
def test_what_only_pictures_have_hurts_image_to_image_search_as_the_card_says(own, expected):
    means = []
    for seed in range(3):
        world = image_only(own=own, seed=seed)
        relevant = world.truth["labels"][:, None] == world.truth["bank_labels"][None]
        order = np.argsort(-(world.image @ world.bank_image.T), axis=1)
        hits = np.take_along_axis(relevant, order, axis=1)
        precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
        means.append(((precision * hits).sum(axis=1) / hits.sum(axis=1)).mean())
        # Nothing of the text lies outside the shared part, so zero-shot does not see the image's own part.
        basis = world.truth["shared_basis"]
        np.testing.assert_allclose(world.text @ basis @ basis.T, world.text, atol=1e-5)
    assert np.mean(means) == pytest.approx(expected, abs=0.05)


def test_attribute_features_hold_their_attributes_and_noise_is_in_the_bank_only():
    world = attributes(prototypes=12, rate=0.4)
    assert not world.comparable
    assert not world.noisy.any()
    assert abs(world.bank_noisy.mean() - 0.4) < 0.01
    bits = 2.0 * world.truth["bank_attributes"] - 1
    # A linear map from the features finds the bits of the text in its own row, those of the image at its partner.
    for features, own in ((world.bank_text, bits), (world.bank_image[world.bank_partner], bits)):
        guess = features @ np.linalg.lstsq(features, own, rcond=None)[0]
        assert (np.sign(guess) == own).mean() > 0.97
    flips = [bits[world.truth["bank_labels"] == c] for c in range(12)]
    assert np.mean([(np.sign(rows.sum(axis=0)) != rows).mean() for rows in flips]) == pytest.approx(0.2, abs=0.02)


def test_identities_of_test_and_training_differ():
    world = identities()
    assert len(world) == 800
    assert len(world.bank_text) == 1600
    assert not set(world.truth["labels"]) & set(world.truth["bank_labels"])
    assert set(np.bincount(world.truth["bank_labels"])[200:]) == {4}


def test_channels_need_both_weights_and_turns():
    plain, turned = channels(rotate=False), channels()
    assert recall_at_1(plain) < 0.15  # the card: cosine 6.5
    assert recall_at_1(turned) < 0.02  # the card: 0.1
    weight = 1 / (1 + plain.truth["channel_noise"] ** 2) ** 2
    weighted = (plain.text * weight) @ plain.image.T
    assert (weighted.argmax(axis=1) == np.arange(1000)).mean() > 0.8
    turns = turned.truth["turns"]
    back = np.einsum("nbj,bij->nbi", turned.image.reshape(1000, -1, 8), turns).reshape(1000, 64)
    assert (((turned.text * weight) @ back.T).argmax(axis=1) == np.arange(1000)).mean() > 0.8


def test_bad_parameters_are_named():
    with pytest.raises(UnknownName, match="cone"):
        make_pairs("con")
    with pytest.raises(BadInput, match="rate"):
        noisy(rate=1.5)
    with pytest.raises(BadInput, match="n=0"):
        cone(n=0)
    with pytest.raises(BadInput, match="block"):
        channels(dim=10, block=8)
    one = cone(n=1, bank=0)
    assert one.text.shape == (1, 64)
    assert one.bank_text.shape == (0, 64)

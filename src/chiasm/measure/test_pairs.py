"""Noisy-pair rate: planted rates are found, clean data stays clean, intervals say when the space cannot tell."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chiasm.errors import BadInput
from chiasm.measure.detection import detection
from chiasm.measure.pairs import noisy_pairs


def pairs(rate: float, seed: int, *, n: int = 1500, noise: float = 1.5, clusters: int = 0, offset: float = 0.0):
    """Matched rows around a common latent, of which a share is permuted among themselves; and which."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n, 64))
    if clusters:
        latent += 1.5 * rng.normal(size=(clusters, 64))[rng.integers(clusters, size=n)]
    a = latent + noise * rng.normal(size=latent.shape) + offset * np.eye(64)[0]
    b = latent + noise * rng.normal(size=latent.shape) - offset * np.eye(64)[0]
    wrong = rng.permutation(n)[: int(rate * n)]
    b[wrong] = b[np.roll(wrong, 1)]
    return a, b, np.isin(np.arange(n), wrong)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("kind", [{}, {"noise": 1.0}, {"clusters": 20, "offset": 4.0}])
def test_planted_rates_are_found(rate, kind):
    a, b, wrong = pairs(rate, 1, **kind)
    found = noisy_pairs(a, b, resamples=40)
    assert found.rate.mean == pytest.approx(rate, abs=0.03)
    assert found.rate.low - 0.01 <= rate <= found.rate.high + 0.01
    assert found.separation > 0.95
    if rate:
        # The posterior names the pairs, not only their number, and it is calibrated.
        assert detection(found.probability[wrong], found.probability[~wrong]).auroc > 0.93
        assert found.probability.mean() == pytest.approx(rate, abs=0.03)
        likely = found.probability > 0.5
        assert wrong[likely].mean() == pytest.approx(found.probability[likely].mean(), abs=0.12)
        # Under the null p-values are uniform.
        assert np.quantile(found.p_values[wrong], [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.12)


def test_more_noise_gives_a_higher_estimate():
    found = [noisy_pairs(*pairs(rate, 2)[:2], resamples=20).rate for rate in (0.0, 0.15, 0.3, 0.6, 0.9)]
    rates = [rate.mean for rate in found]
    assert rates == sorted(rates)
    # With few good pairs left their shape is uncertain, and the interval knows.
    assert found[-1].low < 0.9 < found[-1].high


def test_popular_items_are_no_evidence():
    """A cone with items of different popularity moves similarities of good and mismatched pairs alike."""
    a, b, _ = pairs(0.2, 3)
    popularity = np.random.default_rng(0).normal(2, 2, size=(len(a), 1))
    center = 4 * np.eye(64)[1]
    found = noisy_pairs(a + center, b + center / 4 * popularity, resamples=20)
    assert found.rate.mean == pytest.approx(0.2, abs=0.05)


def test_a_space_that_cannot_tell_says_so():
    a, b, _ = pairs(0.2, 4, noise=4.0)
    weak = noisy_pairs(a, b, resamples=20)
    assert weak.separation < 0.8
    assert weak.rate.low < 0.2 < weak.rate.high
    assert weak.rate.high - weak.rate.low > 0.2
    rng = np.random.default_rng(0)
    unrelated = noisy_pairs(rng.normal(size=(400, 32)), rng.normal(size=(400, 32)), resamples=20)
    assert unrelated.rate.high > 0.85
    assert unrelated.bound > 0.85


def test_seeded_invariant_and_of_the_kind_of_its_input():
    torch = pytest.importorskip("torch")
    a, b, _ = pairs(0.2, 5, n=300)
    first = noisy_pairs(a, b, resamples=10)
    assert first.to_json() == noisy_pairs(a, b, resamples=10).to_json()
    assert json.loads(json.dumps(first.to_json()))["rate"]["n"] == 300
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
    np.testing.assert_allclose(noisy_pairs(3 * a @ turn, b @ turn, resamples=2).p_values, first.p_values, atol=1e-3)
    probability = noisy_pairs(torch.from_numpy(a), torch.from_numpy(b), resamples=2).probability
    assert isinstance(probability, torch.Tensor)
    assert ((first.probability >= 0) & (first.probability <= 1)).all()
    order = np.argsort(first.p_values)
    assert (np.diff(first.probability[order]) >= -1e-6).all()


def test_bad_input():
    rows = np.random.default_rng(0).normal(size=(30, 4))
    for a, b in ((rows, rows[:20]), (rows[:10], rows[:10]), (np.ones((30, 4)), np.ones((30, 4))), (rows, rows[:, :2])):
        with pytest.raises(BadInput):
            noisy_pairs(a, b)

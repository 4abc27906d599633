"""Bootstrap intervals: against scipy, closed forms, coverage, degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from chiasm.errors import BadInput
from chiasm.measure.intervals import difference_interval, grouped_mean_interval, mean_interval, statistic_interval


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_equals_scipy(method):
    values = np.random.default_rng(0).exponential(size=80)
    ours = mean_interval(values, method=method, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method=method, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * width)
    assert ours.mean == pytest.approx(values.mean())


def test_large_samples_give_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, size=4000)
    found = mean_interval(values, level=0.9)
    half = stats.norm.ppf(0.95) * values.std() / np.sqrt(4000)
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


def test_coverage():
    rng = np.random.default_rng(0)
    inside = [mean_interval(rng.normal(size=40), resamples=400, seed=s) for s in range(300)]
    assert 0.9 <= np.mean([i.low <= 0 <= i.high for i in inside]) <= 0.98


def test_pairs_are_kept_together():
    rng = np.random.default_rng(0)
    hard = 10 * rng.normal(size=200)
    a, b = hard + 0.3 + 0.1 * rng.normal(size=200), hard
    paired = difference_interval(a, b)
    assert paired.low > 0.25
    assert paired.high < 0.35
    assert mean_interval(a).high - mean_interval(a).low > 1
    assert difference_interval(b, a).high == pytest.approx(-paired.low, abs=0.01)
    a[0], b[1] = np.nan, np.nan
    assert difference_interval(a, b).n == 198


def test_dependent_figures_are_resampled_together():
    groups = np.repeat(np.arange(50), 5)
    values = np.random.default_rng(0).normal(size=50)[groups]
    naive, honest = mean_interval(values), mean_interval(values, groups=groups)
    assert honest.mean == pytest.approx(naive.mean)
    assert honest.n == 50
    # Five copies of each figure carry no more information than one.
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(5**0.5, rel=0.1)


def test_seeds_and_queries_both_vary():
    rng = np.random.default_rng(0)
    groups = [mu + rng.normal(size=100) for mu in (0.0, 2.0, 4.0)]
    both = grouped_mean_interval(groups)
    assert both.mean == pytest.approx(np.mean([g.mean() for g in groups]))
    assert both.high - both.low > 3 * (
        mean_interval(np.concatenate(groups)).high - mean_interval(np.concatenate(groups)).mean
    )
    one = grouped_mean_interval(groups[:1], resamples=8000)
    alone = mean_interval(groups[0], method="percentile", resamples=8000)
    assert one.low == pytest.approx(alone.low, abs=0.02)
    single = grouped_mean_interval([0.1, 0.2, 0.3])
    assert 0.1 <= single.low < 0.2 < single.high <= 0.3
    assert grouped_mean_interval([[1.0, 1.0], [1.0]]).low == 1


def test_any_statistic():
    values = np.random.default_rng(0).normal(size=500)
    found = statistic_interval(lambda rows: float(np.median(values[rows])), 500)
    assert found.mean == np.median(values)
    assert found.low < found.mean < found.high


def test_seeded_and_independent_of_block_size(monkeypatch):
    values = np.random.default_rng(0).random(50)
    first = mean_interval(values)
    assert first == mean_interval(values)
    assert first != mean_interval(values, seed=1)
    monkeypatch.setattr("chiasm.measure.intervals._CHUNK", 60)
    assert first.low == pytest.approx(mean_interval(values).low, abs=1e-9)


def test_degenerate_input():
    constant = mean_interval([2.0] * 10)
    assert (constant.mean, constant.low, constant.high) == (2, 2, 2)
    one = mean_interval([2.0])
    assert not one.excludes_zero
    assert one.to_json()["low"] is None
    assert mean_interval([0.0, 1.0, np.nan]).n == 2
    for bad in ([], [np.nan], [np.inf, 1.0], [[1.0]]):
        with pytest.raises(BadInput):
            mean_interval(bad)
    for options in ({"level": 1.0}, {"resamples": 0}, {"method": "bac"}, {"groups": [1]}):
        with pytest.raises(BadInput):
            mean_interval([1.0, 2.0], **options)
    with pytest.raises(BadInput):
        difference_interval([1.0], [1.0, 2.0])
    for bad in ([], [[]], [[np.nan]]):
        with pytest.raises(BadInput):
            grouped_mean_interval(bad)

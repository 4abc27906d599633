"""Which labels are kept, with what weights; reports against counting by hand; both kinds of arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.adapt.pseudo_labels import (
    certainty,
    class_thresholds,
    coverage_precision,
    label_confidence,
    select,
    soft_weights,
    threshold_weights,
)
from chiasm.errors import BadInput, UnknownName

SHARES = np.array([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0.05, 0.9, 0.05], [0.02, 0.03, 0.95], [0.75, 0.2, 0.05]])


@pytest.mark.parametrize("kind", ["max", "margin", "entropy", "gini"])
def test_certainty_of_nothing_and_of_everything(kind):
    sure = certainty(np.eye(4), kind)
    np.testing.assert_allclose(sure, 1)
    nothing = 0.25 if kind in ("max", "gini") else 0
    np.testing.assert_allclose(certainty(np.full((2, 3, 4), 0.25), kind), np.full((2, 3), nothing), atol=1e-12)
    assert certainty(np.ones((2, 1)), kind).tolist() == [1, 1]


def test_certainty_in_between():
    p = np.array([[0.7, 0.2, 0.1]])
    assert certainty(p, "margin")[0] == pytest.approx(0.5)
    assert certainty(p, "gini")[0] == pytest.approx(0.54)
    assert certainty(p, "entropy")[0] == pytest.approx(1 + (p * np.log(p)).sum() / np.log(3))


def test_requested_labels_are_kept_where_the_teacher_agrees_and_is_sure():
    chosen = select(SHARES, requested=np.array([0, 0, 0, 2, 0]), threshold=0.7)
    assert chosen.keep.tolist() == [True, False, False, True, True]
    assert chosen.labels.tolist() == [0, 0, 0, 2, 0]
    assert chosen.weights.tolist() == [1, 0, 0, 1, 1]
    np.testing.assert_allclose(chosen.confidence, [0.8, 0.5, 0.05, 0.95, 0.75])
    assert not select(SHARES, threshold=1.01).keep.any()
    assert select(SHARES, threshold=0).keep.all()


def test_a_sure_teacher_may_replace_the_label():
    chosen = select(SHARES, requested=np.array([0, 1, 0, 0, 1]), threshold=0.7, relabel=0.9)
    assert chosen.labels.tolist() == [0, 1, 1, 2, 1]
    assert chosen.relabeled.tolist() == [False, False, True, True, False]
    assert chosen.keep.tolist() == [True, False, True, True, False]


def test_a_threshold_for_each_class_and_a_share_of_each_class():
    assert select(SHARES, threshold=[0.9, 0.5, 0.5]).keep.tolist() == [False, False, True, True, False]
    chosen = select(SHARES, threshold=0, share=0.34)
    assert chosen.keep.tolist() == [True, False, False, False, False]
    assert select(SHARES, threshold=0, share=1.0).keep.all()


def test_the_report_counts():
    report = select(SHARES, requested=np.array([0, 0, 1, 2, 0])).report(np.array([0, 1, 1, 2, 1]))
    assert (report.count, report.kept, report.right) == (5, 4, 3)
    assert report.coverage == pytest.approx(0.8)
    assert report.precision == pytest.approx(0.75)
    np.testing.assert_allclose(report.class_coverage, [2 / 3, 1, 1])
    np.testing.assert_allclose(report.class_precision, [0.5, 1, 1])
    assert "kept 4 of 5, coverage 0.800, precision 0.750" in str(report)
    nothing = select(SHARES, threshold=2.0).report(np.zeros(5, int))
    assert np.isnan(nothing.precision)
    assert nothing.coverage == 0


def test_weights_of_noisy_labels_by_hand():
    confidence = np.array([0.9, 0.6, 0.3, 0.4, 0.2])
    labels = np.array([0, 0, 0, 1, 1])
    np.testing.assert_allclose(soft_weights(confidence, labels, 0.5), [1, 1, 0.5, 1, 0.5])
    np.testing.assert_allclose(soft_weights(confidence, labels, 0.5, balanced=False), [1, 1, 0.75, 1, 0.5])
    assert (soft_weights(confidence, labels, 1.0) == 1).all()
    np.testing.assert_allclose(soft_weights(np.array([0.2, 0.5]), np.array([0, 1]), 0.1), [1, 1])  # classes of one
    np.testing.assert_allclose(soft_weights(np.array([0.0, 0.0]), np.array([0, 0]), 0.5), [1, 1])
    np.testing.assert_allclose(soft_weights(np.array([0.5, 0.9]), np.array([-1, 0]), 0.5), [0, 1])
    maps = soft_weights(confidence[:4].reshape(2, 2), labels[:4].reshape(2, 2), 0.5)
    assert maps.shape == (2, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.floats(0.01, 1), st.integers(0, 99))
def test_at_least_the_share_of_each_class_has_full_weight(n, classes, share, seed):
    rng = np.random.default_rng(seed)
    confidence, labels = rng.random(n), rng.integers(classes, size=n)
    weights = soft_weights(confidence, labels, share)
    assert ((weights >= 0) & (weights <= 1)).all()
    for c in range(classes):
        mine = weights[labels == c]
        assert not len(mine) or (mine == 1).sum() >= share * len(mine) - 1e-6
        assert (np.diff(mine[np.argsort(confidence[labels == c])]) >= 0).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_thresholds_of_classes_sorted_and_by_histogram(kind):
    rng = np.random.default_rng(0)
    confidence, labels = rng.random(400), rng.integers(-1, 3, size=400)
    exact = np.asarray(class_thresholds(kind(confidence), kind(labels), 0.3, classes=4))
    rough = np.asarray(class_thresholds(kind(confidence), kind(labels), 0.3, classes=4, bins=1000))
    for c in range(3):
        ranked = np.sort(confidence[labels == c])[::-1]
        assert exact[c] == ranked[int(np.ceil(0.3 * len(ranked) - 1e-9)) - 1]
        assert exact[c] - 1 / 1000 - 1e-9 <= rough[c] <= exact[c] + 1e-9
    assert np.isnan(exact[3])
    assert np.isnan(rough[3])
    one = np.asarray(class_thresholds(kind(confidence), kind(labels), 0.3, balanced=False))
    assert one.shape == (1,)
    assert (confidence[labels >= 0] >= one[0]).sum() == np.ceil(0.3 * (labels >= 0).sum() - 1e-9)
    nothing = np.asarray(class_thresholds(kind(confidence), kind(np.full(400, -1)), 0.3, classes=4))
    assert np.isnan(nothing).all()


def test_weights_at_given_thresholds():
    weights = threshold_weights(np.array([0.2, 0.5, 0.1, 0.3]), np.array([0, 0, 1, -1]), np.array([0.4, np.nan]))
    np.testing.assert_allclose(weights, [0.5, 1, 1, 0])
    assert threshold_weights(np.ones(2), np.full(2, -1), np.ones(0)).tolist() == [0, 0]
    one = threshold_weights(np.array([0.2, 0.8]), np.array([7, 0]), np.array([0.4]))  # one for all labels
    np.testing.assert_allclose(one, [0.5, 1])
    assert threshold_weights(np.ones((0, 2)), np.ones((0, 2), int), np.ones(3)).shape == (0, 2)
    with pytest.raises(BadInput, match="label 2 for 2 thresholds"):
        threshold_weights(np.ones(2), np.array([0, 2]), np.ones(2))
    with pytest.raises(BadInput, match="confidences"):
        threshold_weights(np.ones(2), np.zeros(3, int), np.ones(2))


def test_what_a_threshold_buys():
    confidence, right = np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, True, False, False])
    coverage, precision = coverage_precision(confidence, right, [0.0, 0.8, 0.85, 0.95])
    np.testing.assert_allclose(coverage, [1, 0.75, 0.25, 0])
    np.testing.assert_allclose(precision[:3], [0.5, 2 / 3, 1])
    assert np.isnan(precision[3])


def test_tensors_give_tensors_and_the_same():
    requested = np.array([0, 1, 0, 0, 1])
    arrays = select(SHARES, requested=requested, relabel=0.9, share=0.5)
    tensors = select(torch.tensor(SHARES), requested=torch.tensor(requested), relabel=0.9, share=0.5)
    for name in ("labels", "keep", "confidence", "relabeled", "weights"):
        assert torch.is_tensor(getattr(tensors, name))
        np.testing.assert_allclose(getattr(tensors, name).numpy(), getattr(arrays, name))
    for kind in ("max", "margin", "entropy", "gini"):
        np.testing.assert_allclose(certainty(torch.tensor(SHARES), kind).numpy(), certainty(SHARES, kind))
    labels = torch.tensor([0, 0, 1, 1, 1])
    weights = soft_weights(torch.tensor(SHARES[:, 0]), labels, 0.5)
    np.testing.assert_allclose(weights.numpy(), soft_weights(SHARES[:, 0], labels.numpy(), 0.5))
    assert not certainty(torch.full((2, 3), 1 / 3, requires_grad=True)).requires_grad


def test_bad_input():
    with pytest.raises(BadInput, match="no probabilities"):
        select(np.array([[2.0, -1.0]]))
    with pytest.raises(BadInput, match="no probabilities"):
        certainty(np.array([[np.nan, 1.0]]))
    with pytest.raises(BadInput, match="outside the 3 classes"):
        label_confidence(SHARES, np.array([0, 1, 2, 3, 0]))
    with pytest.raises(BadInput, match="labels for shares"):
        select(SHARES, requested=np.array([0]))
    with pytest.raises(BadInput, match="2 thresholds"):
        select(SHARES, threshold=[0.1, 0.2])
    with pytest.raises(BadInput, match="class numbers"):
        select(SHARES, requested=np.zeros(5))
    with pytest.raises(BadInput, match="share"):
        soft_weights(np.ones(2), np.zeros(2, int), 0.0)
    with pytest.raises(BadInput, match="label 2 lies outside the 2 classes"):
        class_thresholds(np.ones(2), np.array([0, 2]), 0.5, classes=2)
    with pytest.raises(BadInput, match="bins"):
        class_thresholds(np.ones(2), np.array([0, 1]), 0.5, bins=0)
    with pytest.raises(BadInput, match="confidences"):
        soft_weights(np.ones(2), np.zeros(3, int), 0.5)
    with pytest.raises(UnknownName):
        certainty(SHARES, "guess")  # pyright: ignore
    empty = select(np.zeros((0, 3)), requested=np.zeros(0, int))
    assert np.isnan(empty.report(np.zeros(0, int)).coverage)


def test_lists_will_do_and_confidences_without_meaning_are_refused():
    np.testing.assert_allclose(soft_weights([0.9, 0.3], [0, 0], 0.5), [1, 1 / 3])
    for wrong in (np.nan, -0.1):
        with pytest.raises(BadInput, match="negative or NaN"):
            soft_weights(np.array([wrong, 0.2]), np.array([0, 1]), 0.5)
    assert label_confidence(np.array([0.8, 0.2]), 1) == 0.2

"""Figures of segmentation against counts by hand."""

import numpy as np
import pytest
import torch

from chiasm.errors import BadInput
from chiasm.measure import confusion, harmonic_mean, segmentation

TRUTH = np.array([[0, 0, 1, 1], [2, 2, 255, 1]])
FOUND = np.array([[0, 1, 1, 1], [2, 0, 2, 0]])


def test_counts_by_hand():
    table = confusion(FOUND, TRUTH, classes=3)
    assert table.tolist() == [[1, 1, 0], [1, 2, 0], [1, 0, 1]]
    found = segmentation(table, novel=[2])
    # background 1 / (2 + 3 - 1), class 1: 2 / (3 + 3 - 2), class 2: 1 / (2 + 1 - 1)
    assert found.iou == pytest.approx((1 / 4, 1 / 2, 1 / 2))
    assert found.miou == pytest.approx(0.5)
    assert found.miou_with_background == pytest.approx(5 / 12)
    # foreground as one: 3 of (5 + 4 - 3)
    assert found.fb_iou == pytest.approx((1 / 4 + 3 / 6) / 2)
    assert found.accuracy == pytest.approx(4 / 7)
    # right of each class: 1 of 2, 2 of 3, 1 of 2
    assert found.mean_accuracy == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 3)
    assert (found.miou_base, found.miou_novel, found.harmonic_mean) == pytest.approx((0.5, 0.5, 0.5))


def test_tables_of_pictures_add_up_whatever_their_kind():
    whole = confusion(FOUND, TRUTH, classes=3)
    parts = confusion([FOUND[0], FOUND[1]], [TRUTH[0], TRUTH[1]], classes=3)
    assert np.array_equal(whole, parts)
    assert np.array_equal(whole, confusion(torch.from_numpy(FOUND), torch.from_numpy(TRUTH), classes=3))


def test_absent_classes_do_not_count_and_a_class_only_predicted_is_zero():
    found = segmentation(confusion(np.array([0, 1, 2]), np.array([0, 1, 1]), classes=4))
    assert found.iou[2] == 0
    assert np.isnan(found.iou[3])
    assert found.mean_accuracy == pytest.approx((1 + 1 / 2) / 2)  # only classes that occur
    assert found.miou == pytest.approx((1 / 2 + 0) / 2)
    empty = segmentation(confusion(np.array([], int), np.array([], int), classes=2))
    assert np.isnan(empty.miou)
    assert np.isnan(empty.accuracy)


def test_harmonic_mean_is_pulled_to_the_lower():
    assert harmonic_mean(0.8, 0.2) == pytest.approx(0.32)
    assert harmonic_mean(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("found", "truth", "match"),
    [
        (np.zeros((2, 2), int), np.zeros((4, 4), int), "flatters"),
        (np.array([3]), np.array([0]), "class 3"),
        (np.array([0]), np.array([7]), "class 7"),
        (np.array([-1]), np.array([0]), "class -1"),
        ([np.array([0])], [np.array([0]), np.array([0])], "1 predictions for 2"),
    ],
)
def test_bad_input(found, truth, match):
    with pytest.raises(BadInput, match=match):
        confusion(found, truth, classes=3)
    with pytest.raises(BadInput, match="novel classes"):
        segmentation(np.eye(3), novel=[0])
    with pytest.raises(BadInput, match="square"):
        segmentation(np.zeros((2, 3)))

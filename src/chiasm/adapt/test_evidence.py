"""Opinions against closed forms; Dempster's rule against the K x K sum; the vacuous opinion; gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chiasm.adapt.evidence import Opinion, average, evidence, from_shares, fuse, opinion
from chiasm.errors import BadInput, UnknownName

found = arrays(np.float64, (3, 4), elements=st.floats(0, 100))


def test_no_evidence_is_no_opinion():
    vacuous = opinion(np.zeros((2, 5)))
    assert (vacuous.uncertainty == 1).all()
    assert (vacuous.belief == 0).all()
    np.testing.assert_allclose(vacuous.shares, 0.2)


def test_closed_form():
    one = opinion(np.array([[6.0, 2.0]]))  # alpha = 7, 3; S = 10
    np.testing.assert_allclose(one.belief, [[0.6, 0.2]])
    np.testing.assert_allclose(one.uncertainty, [0.2])
    np.testing.assert_allclose(one.shares, [[0.7, 0.3]])
    np.testing.assert_allclose(one.strength, [10])
    np.testing.assert_allclose(one.evidence, [[6, 2]])
    np.testing.assert_allclose(from_shares(np.array([[0.75, 0.25]]), 8.0).belief, one.belief)


@settings(max_examples=50, deadline=None)
@given(found, found)
def test_dempsters_rule_is_the_sum_over_all_pairs(a, b):
    one, two = opinion(a), opinion(b)
    joint = fuse(one, two)
    for i in range(3):
        table = np.outer(one.belief[i], two.belief[i])
        conflict = table.sum() - np.trace(table)
        belief = np.diag(table) + one.belief[i] * two.uncertainty[i] + two.belief[i] * one.uncertainty[i]
        if conflict < 0.999:
            np.testing.assert_allclose(joint.belief[i], belief / (1 - conflict), atol=1e-9)
            uncertainty = one.uncertainty[i] * two.uncertainty[i] / (1 - conflict)
            np.testing.assert_allclose(joint.uncertainty[i], uncertainty, atol=1e-9)
    np.testing.assert_allclose(joint.belief.sum(-1) + joint.uncertainty, 1)
    np.testing.assert_allclose(fuse(two, one).belief, joint.belief)
    np.testing.assert_array_equal(fuse(one, opinion(np.zeros((3, 4)))).belief, one.belief)


def test_sources_that_agree_leave_less_open_and_those_that_exclude_each_other_are_averaged():
    one = opinion(np.array([[9.0, 1.0]]))
    assert fuse(one, one).uncertainty < one.uncertainty
    left, right = (Opinion(np.eye(2)[i : i + 1], np.zeros(1)) for i in (0, 1))
    joint = fuse(left, right)
    np.testing.assert_allclose(joint.belief, [[0.5, 0.5]])
    assert np.isfinite(joint.uncertainty).all()


def test_the_average_leans_to_the_certain_one():
    sure, open_ = opinion(np.array([[98.0, 0.0]])), opinion(np.zeros((1, 2)))
    np.testing.assert_allclose(average(sure, open_), sure.shares)
    np.testing.assert_allclose(average(open_, open_), 0.5)


@pytest.mark.parametrize("kind", ["softplus", "exp", "relu", "tanh"])
def test_evidence_is_finite_rising_and_the_same_for_tensors(kind):
    scores = np.array([[-1e4, -1.0, 0.0, 1.0, 1e4]])
    values = evidence(scores, kind)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(evidence(torch.tensor(scores), kind).numpy(), values)
    if kind == "softplus":
        assert values[0, 2] == pytest.approx(np.log(2))
    np.testing.assert_allclose(evidence(scores / 2, kind, scale=2.0), values)


def test_gradients_pass_through_fusion():
    a, b = torch.rand(3, 4, requires_grad=True), torch.rand(3, 4, requires_grad=True)
    fuse(opinion(a), opinion(b)).shares[:, 0].sum().backward()
    assert a.grad is not None
    assert (a.grad != 0).any()
    assert torch.isfinite(a.grad).all()
    assert b.grad is not None


def test_bad_input():
    with pytest.raises(BadInput, match="negative"):
        opinion(np.array([[-1.0, 2.0]]))
    with pytest.raises(BadInput, match="negative or not"):
        opinion(np.array([[np.nan, 2.0]]))
    with pytest.raises(BadInput, match="classes"):
        fuse(opinion(np.ones((1, 2))), opinion(np.ones((1, 3))))
    with pytest.raises(BadInput, match="no opinion"):
        fuse()
    with pytest.raises(BadInput, match="no opinion"):
        average()
    with pytest.raises(UnknownName):
        evidence(np.ones((1, 2)), "sigmoid")  # pyright: ignore


def test_lists_will_do_and_what_does_not_fit_together_is_refused():
    np.testing.assert_allclose(from_shares([[0.75, 0.25]], 8.0).belief, opinion([[6.0, 2.0]]).belief)
    np.testing.assert_allclose(evidence([[-1.0, 2.0]], "relu"), [[0, 2]])
    with pytest.raises(BadInput, match="no probabilities"):
        from_shares(np.array([[9.0, 1.0]]), 3.0)
    with pytest.raises(BadInput, match=r"strength \(3,\)"):
        from_shares(np.full((2, 2), 0.5), np.ones(3))
    with pytest.raises(BadInput, match="not a finite number"):
        opinion(np.array([[np.inf, 1.0]]))
    one = opinion(np.ones((2, 3)))
    for other in (opinion(np.ones((3, 3))), opinion(np.ones((2, 2))), opinion(torch.ones((2, 3)))):
        for together in (fuse, average):
            with pytest.raises(BadInput, match="different items or classes"):
                together(one, other)
    with pytest.raises(BadInput, match="ndarray is no opinion"):
        fuse(one, np.ones((2, 3)))  # pyright: ignore

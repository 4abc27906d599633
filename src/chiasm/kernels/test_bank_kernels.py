"""The kernels that compare items with a bank equal the dense equations, whatever the chunks and the array kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from chiasm.errors import BadInput
from chiasm.kernels.logsumexp import logsumexp_inner
from chiasm.kernels.nearest_mean import nearest_mean


def arrays(seed, bank, items, scale):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((n, 5)).astype(np.float32) for n in (bank, items))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    bank=st.integers(1, 40),
    items=st.integers(1, 40),
    beta=st.sampled_from([-3.0, 0.0, 0.5, 20.0, 300.0]),
    chunk=st.integers(1, 50),
)
def test_logsumexp_equals_the_dense_one(seed, bank, items, beta, chunk):
    b, v = arrays(seed, bank, items, 1.0)
    expected = logsumexp(beta * (b.astype(np.float64) @ v.T), axis=0)
    got = logsumexp_inner(b, v, beta, chunk=chunk, item_chunk=max(1, chunk // 2))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    tensor = logsumexp_inner(torch.from_numpy(b), torch.from_numpy(v), beta)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [2.0, 300.0])
def test_logsumexp_of_groups_is_that_of_each_part(scale):
    b, v = arrays(0, 12, 7, 1.0)
    expected = [logsumexp_inner(part, v, scale) for part in np.split(b, 4)]
    np.testing.assert_allclose(logsumexp_inner(b, v, scale, groups=4, chunk=2, item_chunk=3), expected, rtol=1e-5)
    tensor = logsumexp_inner(torch.from_numpy(b), torch.from_numpy(v), scale, groups=4)
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5)
    assert logsumexp_inner(b, v[:0], scale, groups=4).shape == (4, 0)
    for groups in (0, 5):
        with pytest.raises(BadInput, match="do not divide 12"):
            logsumexp_inner(b, v, scale, groups=groups)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    bank=st.integers(1, 40),
    items=st.integers(1, 40),
    k=st.integers(1, 60),
    chunk=st.integers(1, 50),
)
def test_nearest_mean_equals_sorting(seed, bank, items, k, chunk):
    b, v = arrays(seed, bank, items, 1.0)
    expected = np.sort(v @ b.T, axis=1)[:, ::-1][:, :k].mean(1)
    np.testing.assert_allclose(nearest_mean(v, b, k, chunk=chunk), expected, atol=1e-5)
    np.testing.assert_allclose(nearest_mean(torch.from_numpy(v), torch.from_numpy(b), k).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [lambda b, v: logsumexp_inner(b, v, 3.0), lambda b, v: nearest_mean(v, b, 2)])
def test_no_items_give_no_figures_and_inputs_stay(kernel):
    b, v = arrays(0, 4, 3, 1.0)
    before = b.copy(), v.copy()
    assert kernel(b, v).shape == (3,)
    assert kernel(b, v[:0]).shape == (0,)
    np.testing.assert_array_equal(before[0], b)
    np.testing.assert_array_equal(before[1], v)

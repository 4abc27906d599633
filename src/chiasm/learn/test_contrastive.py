"""The streamed core equals the naive loss: values, gradients, options; whatever the chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput
from chiasm.learn.contrastive import InfoNCE, info_nce


def naive(a, b, scale, relation, ignore=None, extra_a=None, extra_b=None, several="mean"):
    """Both directions with the whole matrix and a loop over rows."""

    def direction(x, y, rel, ign, extra):
        scores = scale * x @ y.T
        losses = []
        for i in range(len(x)):
            if rel[i].sum() == 0:
                continue
            keep = torch.ones(len(y), dtype=torch.bool) if ign is None else ~ign[i] | (rel[i] > 0)
            candidates = scores[i][keep]
            if extra is not None:
                candidates = torch.cat([candidates, scale * x[i] @ extra.T])
            if several == "mean":
                goal = (rel[i] / rel[i].sum() * scores[i]).sum()
            else:
                goal = scores[i][rel[i] > 0].logsumexp(0)
            losses.append(candidates.logsumexp(0) - goal)
        return torch.stack(losses).mean() if losses else scores.sum() * 0

    forth = direction(a, b, relation, ignore, extra_b)
    back = direction(b, a, relation.T, None if ignore is None else ignore.T, extra_a)
    return {"a_to_b": forth / 2, "b_to_a": back / 2}


def batch(seed, n, m, d=6):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (n, m, 4, 3)]
    return [torch.nn.functional.normalize(x, dim=1).requires_grad_() for x in rows], generator


def gradients(parts, inputs):
    return torch.autograd.grad(sum(parts.values()), inputs, allow_unused=True, materialize_grads=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    chunk=st.integers(1, 10),
    scale=st.sampled_from([1.0, 20.0, 300.0]),
    several=st.sampled_from(["mean", "sum"]),
    extras=st.booleans(),
    ignoring=st.booleans(),
)
def test_values_and_gradients_equal_the_naive_loss(seed, n, m, chunk, scale, several, extras, ignoring):
    (a, b, extra_a, extra_b), generator = batch(seed, n, m)
    groups = torch.randint(3, (n,), generator=generator), torch.randint(3, (m,), generator=generator)
    relation = (groups[0][:, None] == groups[1]).double()
    ignore = torch.rand(n, m, generator=generator) < 0.4 if ignoring else None
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    extra = {"extra_a": extra_a, "extra_b": extra_b} if extras else {}
    got = info_nce(a, b, scale=factor, groups=groups, ignore=ignore, several=several, chunk=chunk, **extra)
    want = naive(a, b, factor, relation, ignore, several=several, **extra)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)
    inputs = [a, b, factor, *extra.values()]
    for x, y in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


def test_soft_targets_equal_the_naive_loss():
    (a, b, *_), generator = batch(0, 7, 5)
    targets = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    targets[2] = 0
    targets[:, 1] = 0
    got, want = info_nce(a, b, targets=targets, chunk=3), naive(a, b, 20.0, targets)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)
    for x, y in zip(gradients(got, [a, b]), gradients(want, [a, b]), strict=True):
        torch.testing.assert_close(x, y)


def test_plain_pairs_are_cross_entropy():
    (a, b, *_), _ = batch(1, 8, 8)
    logits, labels = 20 * a @ b.T, torch.arange(8)
    want = (torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(sum(info_nce(a, b).values()), want)


def test_order_of_pairs_does_not_matter():
    (a, b, *_), generator = batch(2, 9, 9)
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(sum(info_nce(a, b).values()), sum(info_nce(a[order], b[order]).values()))


@pytest.mark.parametrize("direction", ["a", "b"])
def test_one_direction_is_one_part_with_full_weight(direction):
    (a, b, *_), _ = batch(3, 6, 6)
    one = info_nce(a, b, directions=direction)
    both = info_nce(a, b)
    assert len(one) == 1
    for name, value in one.items():
        torch.testing.assert_close(value, 2 * both[name])


@pytest.mark.parametrize("side", ["a", "b"])
def test_stopped_side_gets_no_gradient(side):
    (a, b, *_), _ = batch(4, 6, 6)
    grads = dict(zip("ab", gradients(info_nce(a, b, stop_gradient=side), [a, b]), strict=True))
    assert not grads[side].any()
    assert grads["b" if side == "a" else "a"].any()


def test_a_row_without_positives_does_not_count():
    (a, b, *_), _ = batch(5, 4, 3)
    alone = info_nce(a, b, groups=(torch.tensor([0, 1, 2, 9]), torch.arange(3)), directions="a")
    without = info_nce(a[:3], b, directions="a")
    torch.testing.assert_close(alone["a_to_b"], without["a_to_b"])
    nothing = info_nce(a, b, groups=(torch.tensor([5, 6, 7, 9]), torch.arange(3)))
    assert sum(nothing.values()) == 0
    assert not gradients(nothing, [a])[0].any()


def test_one_pair_is_zero_and_identical_pairs_are_the_log_of_their_number():
    (a, b, *_), _ = batch(6, 1, 1)
    assert sum(info_nce(a, b).values()).item() == pytest.approx(0, abs=1e-12)
    same = a.expand(5, -1)
    assert sum(info_nce(same, same).values()).item() == pytest.approx(torch.log(torch.tensor(5.0)).item(), rel=1e-6)


def test_learned_temperature_gets_a_gradient_and_is_bounded():
    (a, b, *_), _ = batch(7, 6, 6)
    objective = InfoNCE(0.07, learn_temperature=True).double()
    sum(objective(a, b).values()).backward()
    assert objective.log_scale.grad is not None
    assert objective.log_scale.grad != 0
    assert float(InfoNCE(0.001).scale) == 100
    assert not list(InfoNCE().parameters())


def test_bad_input_is_named():
    (a, b, *_), _ = batch(8, 4, 3)
    with pytest.raises(BadInput, match="not pairs"):
        info_nce(a, b)
    with pytest.raises(BadInput, match="no pairs"):
        info_nce(a[:0], b[:0])
    with pytest.raises(BadInput, match="directions"):
        info_nce(a, a, directions="forth")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="targets"):
        info_nce(a, b, targets=-torch.ones(4, 3))
    with pytest.raises(BadInput, match="ignore"):
        info_nce(a, b, groups=(torch.arange(4), torch.arange(3)), ignore=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(BadInput, match="temperature"):
        InfoNCE(0)


def test_weights_make_each_direction_a_weighted_mean():
    (a, b, *_), _ = batch(3, 5, 5)
    weights = torch.tensor([0.0, 1.0, 0.3, 0.0, 2.0], dtype=torch.float64)
    scores = 4.0 * a @ b.T
    naive_rows = scores.logsumexp(1) - scores.diagonal(), scores.logsumexp(0) - scores.diagonal()
    wanted = sum((weights * rows).sum() / weights.sum() / 2 for rows in naive_rows)
    parts = info_nce(a, b, scale=4.0, weights=weights, chunk=2)
    torch.testing.assert_close(sum(parts.values()), wanted)
    for got, want in zip(gradients(parts, (a, b)), torch.autograd.grad(wanted, (a, b))):
        torch.testing.assert_close(got, want)
    ones = info_nce(a, b, scale=4.0, weights=torch.ones(5))
    torch.testing.assert_close(sum(ones.values()), sum(info_nce(a, b, scale=4.0).values()))
    nothing = info_nce(a, b, scale=4.0, weights=torch.zeros(5))
    assert sum(nothing.values()).item() == 0
    with pytest.raises(BadInput):
        info_nce(a, b, weights=torch.ones(4))
    with pytest.raises(BadInput):
        info_nce(a, b, weights=-torch.ones(5))

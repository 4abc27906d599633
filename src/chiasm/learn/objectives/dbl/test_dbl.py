"""Identities and properties of deep boosting."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, Pairs, Stage, train
from chiasm.learn.held_out import Encoded, cosine
from chiasm.learn.objectives.dbl import (
    DeepBoosting,
    MomentumBoosting,
    absolute,
    adaptive_margin,
    branched,
    cohort,
    dark_rank,
    distillation,
    ensemble,
    offline,
    online,
    positive_gap,
    relational,
    relative,
    similarity_preserving,
    softmax_boost,
    triplet,
)
from chiasm.learn.objectives.dbl import trial as dbl_trial
from chiasm.learn.sentence_loss import SentenceLoss
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.learn.trial import Trial

COMPARATORS = (distillation, relational, similarity_preserving, dark_rank, softmax_boost)
M = 0.2


def scores(n: int, seed: int) -> torch.Tensor:
    return 2 * torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) - 1


def towers(seed: int):
    torch.manual_seed(seed)
    return dual_tower(Perceptron([6, 8]), Perceptron([6, 8]), device="cpu")


def pairs(n: int = 64) -> Pairs:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, 6)).astype(np.float32)
    noisy = z + 0.1 * rng.standard_normal((n, 6)).astype(np.float32)
    return Pairs({"a": Features({"input_features": z}), "b": Features({"input_features": noisy})})


def same_weights(left, right) -> bool:
    return all(torch.equal(p, q) for p, q in zip(left.parameters(), right.parameters(), strict=True))


# ---- closed forms


def test_the_cards_two_by_two():
    s, a = torch.tensor([[0.8, 0.5], [0.4, 0.7]]), torch.tensor([[0.6, 0.4], [0.3, 0.6]])
    assert float(triplet(s, M)) == pytest.approx(0.0, abs=1e-6)
    # By hand: rows (.2+.2-.3, .2+.3-.3) = (.1, .2); columns (.2+.3-.4, .2+.2-.2) = (.1, .2).
    assert float(relative(s, a, M)) == pytest.approx(0.6, abs=1e-6)
    assert float(absolute(s, a, M)) == pytest.approx(0.8, abs=1e-6)


def naive(kind: str, s: torch.Tensor, a: torch.Tensor, same: torch.Tensor, negatives: str) -> float:
    """Literal double loops."""
    n, total = len(s), 0.0
    reduce = max if negatives == "max" else sum
    for x, y, mask in ((s, a, same), (s.T, a.T, same.T)):
        for i in range(n):
            hinges = [0.0]
            for j in range(n):
                if mask[i, j]:
                    continue
                if kind == "triplet":
                    v = M + x[i, j] - x[i, i]
                elif kind == "relative":
                    v = M + (y[i, i] - y[i, j]) - (x[i, i] - x[i, j])
                else:
                    v = M * 0.7 + x[i, j] - y[i, j]
                hinges.append(max(0.0, float(v)))
            total += reduce(hinges)
    if kind == "absolute":
        total += 2 * sum(max(0.0, float(M * 0.3 + a[i, i] - s[i, i])) for i in range(n))
    return total


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 1000), negatives=st.sampled_from(["max", "sum"]))
def test_losses_are_the_double_loops(n, seed, negatives):
    s, a = scores(n, seed), scores(n, seed + 1)
    ids = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    same = ids[:, None] == ids[None, :]
    options = {"same": same, "negatives": negatives}
    for kind, value in (
        ("triplet", triplet(s, M, **options)),
        ("relative", relative(s, a, M, **options)),
        ("absolute", absolute(s, a, M, share=0.3, **options)),
    ):
        assert float(value) == pytest.approx(naive(kind, s, a, same, negatives), abs=1e-4)


def test_a_constant_anchor_makes_relative_boosting_the_plain_loss():
    s = scores(7, 0)
    for negatives in ("max", "sum", "mean"):
        got = relative(s, torch.full_like(s, 0.4), M, negatives=negatives)
        torch.testing.assert_close(got, triplet(s, M, negatives=negatives))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_equal_anchor_leaves_every_hinge_at_its_margin(share):
    s = scores(5, 0)
    assert float(relative(s, s, M)) == pytest.approx(2 * 5 * M, abs=1e-5)
    assert float(absolute(s, s, M, share=share)) == pytest.approx(2 * 5 * M, abs=1e-5)


def test_transposing_both_changes_nothing_and_mean_is_the_sum_over_rows():
    s, a = scores(6, 0), scores(6, 1)
    for loss in (relative, absolute, *COMPARATORS[:1], softmax_boost):
        torch.testing.assert_close(loss(s, a), loss(s.T, a.T))
    torch.testing.assert_close(relative(s, a, reduction="mean"), relative(s, a) / 6)


def test_no_gradient_reaches_the_anchor_and_nothing_is_mutated():
    for loss in (relative, absolute, *COMPARATORS):
        s, a = scores(6, 0).requires_grad_(), scores(6, 1).requires_grad_()
        loss(s, a).backward()
        assert a.grad is None
        assert s.grad is not None
        assert torch.isfinite(s.grad).all()
        assert s.grad.abs().max() > 0
        assert torch.equal(s.detach(), scores(6, 0))


# ---- margins


def test_margins_vanish_at_the_limit():
    m = 0.3
    assert float(adaptive_margin(torch.tensor(2.0), 2.0, m, "soft")) == pytest.approx(0, abs=1e-7)
    assert float(adaptive_margin(torch.tensor(-1e4), 2.0, m, "soft")) == pytest.approx(m)
    step = torch.tensor([2 - 1e-3, 2 + 1e-3], dtype=torch.float64)
    low, high = adaptive_margin(step, 2.0, m, "soft").tolist()
    assert (high - low) / 2e-3 == pytest.approx(-1, abs=1e-3)
    near = adaptive_margin(torch.tensor([2 - m - 1e-6, 2 - m + 1e-6]), 2.0, m, "hard")
    assert near.tolist() == pytest.approx([m, m], abs=1e-5)
    assert adaptive_margin(torch.tensor([1.9, -1.0]), 2.0, m, "hard").tolist() == pytest.approx([0.1, m])
    # The mirrored form of absolute boosting: m' / 0 at the lower limit of the scores.
    assert float(adaptive_margin(torch.tensor(1.0), 1.0, m / 2, "soft")) == pytest.approx(0, abs=1e-7)
    r = torch.tensor(0.3)
    expected = m / (1 + torch.exp(-(4 / m) * (r + 1))) - m / 2
    torch.testing.assert_close(adaptive_margin(-r, 1.0, m / 2, "soft"), expected)


def test_a_perfect_anchor_asks_for_nothing_more_with_a_soft_margin():
    perfect = 2 * torch.eye(4) - 1
    for loss in (relative, absolute):
        assert float(loss(perfect, perfect, M, adapt="soft")) == pytest.approx(0, abs=1e-5)
        assert float(loss(perfect, perfect, M)) == pytest.approx(2 * 4 * M, abs=1e-5)


# ---- comparators


def test_imitating_itself_costs_nothing():
    s = scores(6, 0)
    for loss in (distillation, relational, similarity_preserving):
        assert float(loss(s, s)) == pytest.approx(0, abs=1e-6)


def test_comparators_in_closed_form():
    s, a = torch.zeros(2, 2), torch.tensor([[0.1, 0.0], [0.0, 0.1]])
    p = torch.tensor([1.0, 0.0]).softmax(0)
    assert float(distillation(s, a)) == pytest.approx(2 * float((0.5 * (0.5 / p).log()).sum()), rel=1e-5)
    assert float(relational(s, a)) == pytest.approx(0.25)
    assert float(softmax_boost(a, s)) == pytest.approx(-2 * float(p[0].log()), rel=1e-5)
    # Two candidates, worth w and v: the chance that the anchor's best comes first.
    s = torch.tensor([[0.5, 1.0], [1.0, 0.5]])
    worth = torch.tensor([-3.0 * 1.0, 0.0])
    assert float(dark_rank(s, torch.eye(2))) == pytest.approx(-float(worth.log_softmax(0)[0]), rel=1e-5)


def test_pairs_of_one_group_do_not_matter():
    ids = torch.tensor([0, 0, 1, 2, 3, 4])
    same = ids[:, None] == ids[None, :]
    s, a = scores(6, 0), scores(6, 1)
    moved = s.clone()
    moved[0, 1], moved[1, 0] = 0.9, -0.9
    for loss in (relative, absolute, *COMPARATORS):
        # Where the loss looks: at the anchor's best candidates, or where the anchor is far ahead.
        a[0, 1] = a[1, 0] = 0.95 if loss is dark_rank else -0.95
        torch.testing.assert_close(loss(s, a, same=same), loss(moved, a, same=same))
        assert not torch.allclose(loss(s, a), loss(moved, a)), loss.__name__


def test_batches_without_negatives_are_defined():
    one = torch.ones(1, 1, requires_grad=True)
    everything = torch.ones(3, 3, dtype=torch.bool)
    for loss in (relative, absolute, *COMPARATORS):
        assert torch.isfinite(loss(one, one))
        s = scores(3, 0).requires_grad_()
        loss(s, scores(3, 1), same=everything).backward()
        assert s.grad is not None
        assert torch.isfinite(s.grad).all(), loss.__name__
    assert float(triplet(scores(3, 0), same=everything)) == 0
    assert positive_gap(one.detach()).isposinf().all()


def test_hostile_input():
    with pytest.raises(BadInput, match="shape"):
        triplet(torch.zeros(2, 3))
    with pytest.raises(BadInput, match="anchor"):
        relative(torch.zeros(2, 2), torch.zeros(3, 3))
    with pytest.raises(UnknownName, match="soft"):
        adaptive_margin(torch.zeros(2), 1.0, 0.2, "sofft")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName, match="relative"):
        DeepBoosting("relativ")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="margin"):
        DeepBoosting(margin=0)
    with pytest.raises(BadInput, match="start"):
        MomentumBoosting(start=1.5)
    with pytest.raises(BadInput, match="shapes"):
        DeepBoosting()(torch.zeros(2, 3), torch.zeros(3, 3))
    model = towers(0)
    with pytest.raises(BadInput, match="the same"):
        cohort([model, model])


# ---- the objective


def test_the_target_boosts_over_all_earlier_branches():
    a, b = torch.randn(6, 3, 8), torch.randn(6, 3, 8)
    s = [cosine(Encoded(a[:, k]), Encoded(b[:, k])) for k in range(3)]
    found = DeepBoosting(alpha=0.5)(a, b)
    torch.testing.assert_close(found["triplet"], triplet(s[2]))
    torch.testing.assert_close(found["boost"], 0.25 * (relative(s[2], s[0]) + relative(s[2], s[1])))
    torch.testing.assert_close(found["anchor"], triplet(s[0]) + triplet(s[1]) + 0.5 * relative(s[1], s[0]))


@pytest.mark.parametrize("loss", ["sum", "mean", "info_nce"])
def test_the_warm_up_has_neither_boost_nor_hard_negatives(loss):
    objective = DeepBoosting(warmup=0.5, warmup_loss=loss)
    a, b = torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    objective.on_progress(0, 10)
    early = objective(a, b, groups=torch.tensor([0, 0, 1, 2, 3, 4]))
    assert set(early) == {"anchor", "triplet"}
    objective.on_progress(5, 10)
    late = objective(a, b)
    assert set(late) == {"anchor", "triplet", "boost"}
    assert not torch.allclose(early["triplet"], late["triplet"])


def test_only_mutual_learning_changes_the_anchor():
    for boost, moves in (("kl", False), ("dml", True), ("relative", False)):
        grads = []
        for alpha in (0.0, 5.0):
            a = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
            b = torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(1))
            torch.stack([*DeepBoosting(boost, alpha=alpha)(a, b).values()]).sum().backward()
            assert a.grad is not None
            grads.append(a.grad[:, 0])
        assert torch.equal(*grads) != moves


# ---- schedules


def test_online_without_boost_is_two_solo_trainings_bit_for_bit():
    options = {"batch_size": 16, "log_every": 1000, "device": "cpu", "seed": 3}
    stage = Stage(steps=12, rate=1e-2)
    solo = [towers(0), towers(1)]
    for model in solo:
        train(model, pairs(), DeepBoosting(), stage, clip=2.0, **options)
    for alpha, target_is_alone in ((0.0, True), (1.0, False)):
        models = [towers(0), towers(1)]
        online(models, pairs(), DeepBoosting(alpha=alpha), stage, **options)
        assert same_weights(models[0], solo[0])
        assert same_weights(models[1], solo[1]) == target_is_alone


def test_offline_starts_from_the_anchor_and_leaves_it_alone():
    anchor = towers(0)
    before = copy.deepcopy(anchor)
    target, report = offline(
        anchor, pairs(), DeepBoosting(warmup=0), Stage(steps=5, rate=1e-2), batch_size=16, device="cpu"
    )
    assert same_weights(anchor, before)
    assert not same_weights(target, before)
    assert report.steps == 5


@pytest.mark.parametrize(("start", "same"), [(0.0, False), (1.0, True)])
def test_the_momentum_anchor_follows_or_stays(start, same):
    model, first = towers(0), towers(0)
    objective = MomentumBoosting(start=start, warmup=0)
    loss = SentenceLoss(model, objective, pairs())
    train(model, pairs(), objective, Stage(steps=4, rate=1e-2), loss=loss, batch_size=16, device="cpu")
    assert same_weights(loss.teacher.teacher, first) == same
    assert objective.momentum == pytest.approx(start + (1 - start) * (1 - np.cos(np.pi * 3 / 4)) / 2)
    # With momentum 0 the anchor is the target itself: every hinge of the boost is its margin.
    objective = MomentumBoosting(start=0.0)
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    boost = objective(a, b, a_momentum=a, b_momentum=b)["boost"]
    assert float(boost) == pytest.approx(2 * 5 * M, abs=1e-5)


def test_the_cohort_is_its_target_and_saves_as_such(tmp_path):
    models = [towers(0), towers(1)]
    whole = cohort(models)
    held_out = HeldOut(pairs())
    for one, other in zip(held_out.encoded(whole), held_out.encoded(models[1])):
        assert torch.equal(one.vectors, other.vectors)
    anchor = HeldOut(pairs(), routes={"a": "a1", "b": "b1"}).encoded(whole)[0]
    assert torch.equal(anchor.vectors, held_out.encoded(models[0])[0].vectors)
    whole.save_pretrained(str(tmp_path))
    from sentence_transformers import SentenceTransformer

    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert torch.equal(held_out.encoded(again)[0].vectors, held_out.encoded(whole)[0].vectors)
    with pytest.raises(BadInput, match="views already"):
        branched(branched(pairs(), 2), 2)


def test_the_ensembles_cosine_is_the_mean_of_the_cosines():
    a, b = ([Encoded(torch.randn(5, d)) for d in (4, 8)] for _ in range(2))
    mean = (cosine(a[0], b[0]) + cosine(a[1], b[1])) / 2
    torch.testing.assert_close(cosine(ensemble(a), ensemble(b)), mean)


def test_state_survives_and_the_trial_runs():
    objective = DeepBoosting()
    objective.on_progress(1, 10)
    again = DeepBoosting()
    again.load_state_dict(objective.state_dict())
    assert again.warming_up
    trial = Trial("tiny", pairs(), pairs(), lambda: towers(0), steps=4, batch_size=16)
    model, trained = dbl_trial.run(trial)
    assert isinstance(trained, DeepBoosting)
    assert not same_weights(model, towers(0))

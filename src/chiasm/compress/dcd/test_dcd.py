"""Identities and properties of dynamic contrastive distillation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chiasm.compress.dcd import (
    DCD,
    ROUTES,
    CrossFusion,
    DualEncoder,
    Items,
    Matching,
    Pool,
    ProductFusion,
    Reranker,
    Teacher,
    ask,
    candidates,
    entropies,
    entropy_weights,
    grid,
    hardest,
    heirs,
    mastery_weights,
    mined,
    succeed,
)
from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, OnePerGroup, Pairs, Stage, train
from chiasm.learn.held_out import Encoded, cosine
from chiasm.learn.towers import Perceptron, Tower, dual_tower

SEEDS = st.integers(0, 10_000)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def source(n: int, dim: int = 6, seed: int = 0) -> Features:
    return Features({"input_features": normal(n, dim, seed=seed).numpy()})


def captions(images: int = 12, each: int = 2) -> Pairs:
    """Every picture has some captions, and so stands in as many pairs."""
    rows = np.repeat(np.arange(images), each)
    return Pairs({"a": source(images), "b": source(images * each, seed=1)}, {"a": rows, "b": np.arange(images * each)})


def product(a: dict, b: dict) -> torch.Tensor:
    """A teacher that needs no network."""
    return 3 * (a["input_features"] * b["input_features"]).sum(-1)


def towers(seed: int = 0, sizes: tuple[int, ...] = (6, 8)):
    torch.manual_seed(seed)
    return dual_tower(Perceptron(sizes), Perceptron(sizes), device="cpu")


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- candidates


def test_the_positive_comes_first_and_both_lists_mean_the_same_captions():
    z = torch.tensor([[1.0, 5.0, 0.0, 4.0, -1.0, 2.0]])  # the positive is third or fourth best
    index, valid = hardest(z, 3)
    assert index.tolist() == [[0, 1, 3, 5]]
    assert valid.all()
    assert z.gather(1, index).tolist() == [[1.0, 5.0, 4.0, 2.0]]
    # A student that is the teacher gives the same columns, so that nothing is left to distill.
    a, b = normal(6, 4), normal(6, 4, seed=1)
    student = DualEncoder()
    z = grid(student, Encoded(a), Encoded(b)).detach()
    loss = DCD(student=student, hard_negatives=3, logits="raw")(a, b, teacher_logits=z)
    assert float(loss["kd"].detach()) == pytest.approx(0, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_positive_that_ranks_last_still_comes_first_with_seven_distinct_negatives(seed):
    z = normal(5, 20, seed=seed)
    z[:, 0] = z.min() - 1
    index, valid = hardest(z, 7)
    assert (index[:, 0] == 0).all()
    assert index.shape == (5, 8)
    assert valid.all()
    assert all(len(set(row)) == 8 for row in index.tolist())
    kept = z.gather(1, index[:, 1:])
    assert (kept.min(dim=1).values >= z.scatter(1, index, -torch.inf).max(dim=1).values).all()


def test_a_row_with_few_candidates_says_so():
    allowed = torch.tensor([[False, True, False], [False, False, False]])
    index, valid = hardest(torch.zeros(2, 3), 7, allowed=allowed)
    assert valid.tolist() == [[True, True, False], [True, False, False]]
    assert index[0, :2].tolist() == [0, 1]


def test_captions_of_the_same_picture_are_no_candidates():
    groups, rows = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 6, 7, 5])
    allowed = candidates(groups, None, 4)
    assert allowed.tolist() == [[False, False, True, True]] * 2 + [[True, True, False, True], [True, True, True, False]]
    # Item 5 stands twice: it is one candidate, and none of whom it is right for, by its own pair or by its group's.
    allowed = candidates(groups, rows, 4)
    assert allowed.tolist() == [
        [False, False, True, False],
        [False, False, True, False],
        [True, True, False, False],
        [False, True, True, False],
    ]


# ---- weights


def test_equal_uncertainty_gives_equal_weights_and_the_mean_loss():
    z, y = torch.zeros(4, 8), normal(4, 8)
    a, h = entropy_weights(z)
    torch.testing.assert_close(h, torch.full((4,), 0.25))
    torch.testing.assert_close(a, torch.full((4,), 0.25))
    label = torch.eye(8)[:1].expand(4, 8)
    expected = nn.functional.binary_cross_entropy_with_logits(y, label)
    torch.testing.assert_close(DCD(alpha=0).weighted(y, z)["self"], expected)


def test_a_student_equal_to_its_teacher_has_no_distillation_loss():
    y = normal(4, 8)
    for logits in ("raw", "centered"):
        assert float(DCD(logits=logits).weighted(y, y)["kd"]) == 0
    shifted = DCD(logits="centered").weighted(y, y + torch.arange(4.0)[:, None])["kd"]
    assert float(shifted) == pytest.approx(0, abs=1e-10)
    assert float(DCD(logits="raw").weighted(y, y + 1)["kd"]) == pytest.approx(0.2)


def test_weights_in_closed_form():
    z = torch.tensor([[200.0, -200.0], [0.0, 0.0]])
    torch.testing.assert_close(entropies(z), torch.tensor([0.0, math.log(2)]))
    a, h = entropy_weights(z)
    torch.testing.assert_close(h, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(a, torch.tensor([0.7311, 0.2689]), atol=1e-4, rtol=0)
    # The sharp form looks at log C instead of at the batch: entropy log 2 of at most log 2 leaves nothing.
    sharp, _ = entropy_weights(z, sharpness=2.0)
    torch.testing.assert_close(sharp, torch.tensor([2.0, 0.0]).softmax(0), atol=1e-5, rtol=0)


def test_a_teacher_that_is_sure_of_everything_gives_equal_weights():
    a, h = entropy_weights(1000 * torch.eye(3))
    assert torch.isfinite(a).all()
    torch.testing.assert_close(h, torch.full((3,), 1 / 3))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 6), st.floats(0, 50))
def test_weights_sum_to_one_and_ignore_what_is_not_there(seed, n, size):
    z = size * normal(n, 5, seed=seed)
    valid = torch.rand(n, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
    valid[:, 0] = True
    for sharpness in (None, 3.0):
        weights = entropy_weights(z, valid, sharpness=sharpness)
        other = entropy_weights(z.masked_fill(~valid, 1e6), valid, sharpness=sharpness)
        for w, v in zip(weights, other):
            assert torch.equal(w, v)
            assert float(w.sum()) == pytest.approx(1, abs=1e-5)


def test_mastery_in_closed_form():
    y = normal(3, 4)
    torch.testing.assert_close(mastery_weights(y, y), torch.full((3,), 1 - math.exp(-1)), atol=1e-5, rtol=0)
    mastered = torch.tensor([[1000.0, 0.0, 0.0]])
    assert float(mastery_weights(mastered, torch.zeros(1, 3))) == 0
    w = mastery_weights(y, normal(3, 4, seed=1))
    loss = DCD(weighting="wsl", alpha=0.7, logits="raw").weighted(y, normal(3, 4, seed=1))
    expected = 0.7 * (w * ((y - normal(3, 4, seed=1)) ** 2).mean(1)).mean()
    torch.testing.assert_close(loss["kd"], expected)
    torch.testing.assert_close(loss["self"], nn.functional.cross_entropy(y, torch.zeros(3, dtype=torch.long)))


def test_the_weights_have_no_gradient_and_matter():
    y, z = normal(4, 8).requires_grad_(), (3 * normal(4, 8, seed=1)).requires_grad_()
    torch.stack([*DCD().weighted(y, z.detach()).values()]).sum().backward()
    assert y.grad is not None
    a, h = entropy_weights(z)
    assert not a.requires_grad
    assert not h.requires_grad
    losses = {w: DCD(weighting=w).weighted(y, z.detach()) for w in ("entropy", "static", "wsl")}
    assert len({float(x["kd"].detach()) for x in losses.values()}) == 3


def test_temperature_cancels_for_logits_that_match_in_scale():
    y, z = normal(4, 8), normal(4, 8, seed=1)
    for t in (0.5, 4.0):
        torch.testing.assert_close(DCD(temperature=t).weighted(y, z)["kd"], DCD().weighted(y, z)["kd"])


def test_standardized_logits_do_not_see_the_teachers_scale():
    y, z = normal(4, 8), normal(4, 8, seed=1)
    objective = DCD(logits="standardized", weighting="static")
    torch.testing.assert_close(objective.weighted(y, 7 * z + 2)["kd"], objective.weighted(y, z)["kd"])
    assert torch.isfinite(objective.weighted(y, torch.zeros(4, 8))["kd"])


def test_parity_is_the_released_order_and_weight():
    y = torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 0.0]])
    released = DCD(parity=True, logits="raw", alpha=1.0).weighted(y, y)["kd"]
    # The teacher's best is not the positive of the first row: its logits (2, 1, 0) meet the student's (0, 2, 1).
    assert float(released) == pytest.approx((4 + 1 + 1) / 3 / 2)
    assert float(DCD(logits="raw", alpha=1.0).weighted(y, y)["kd"]) == 0


# ---- the objective


def test_alpha_zero_and_all_candidates_is_weighted_bce():
    a, b, z = normal(6, 4), normal(6, 4, seed=1), 2 * normal(6, 6, seed=2)
    objective = DCD(alpha=0, hard_negatives=5)
    found = sum(objective(a, b, teacher_logits=z).values())
    logits = 10 * cosine(Encoded(a), Encoded(b))
    p = z.softmax(1)
    entropy = -(p * p.log()).sum(1)
    each = nn.functional.binary_cross_entropy_with_logits(logits, torch.eye(6), reduction="none").mean(1)
    torch.testing.assert_close(found, (entropy / entropy.sum() * each).sum())


def test_both_directions_are_the_mean_of_each():
    a, b, z = normal(6, 4), normal(6, 4, seed=1), normal(6, 6, seed=2)
    i2t, t2i, both = (
        sum(DCD(direction=d, hard_negatives=3)(a, b, teacher_logits=z).values()) for d in ("i2t", "t2i", "both")
    )
    torch.testing.assert_close(both, (i2t + t2i) / 2)
    swapped = sum(DCD(direction="i2t", hard_negatives=3)(b, a, teacher_logits=z.T).values())
    torch.testing.assert_close(t2i, swapped)


@pytest.mark.parametrize("logits", ["centered", "raw", "standardized"])
@pytest.mark.parametrize("weighting", ["entropy", "wsl", "static"])
def test_degenerate_batches_are_defined(weighting, logits):
    objective = DCD(weighting=weighting, logits=logits, direction="both")
    for groups in (None, torch.zeros(3, dtype=torch.long)):
        a = normal(3, 4).requires_grad_()
        losses = objective(a, normal(3, 4, seed=1), groups=groups, teacher_logits=torch.zeros(3, 3))
        torch.stack([*losses.values()]).sum().backward()
        assert a.grad is not None
        assert torch.isfinite(a.grad).all()
    one = objective(normal(1, 4), normal(1, 4), teacher_logits=torch.zeros(1, 1))
    assert all(torch.isfinite(value) for value in one.values())
    equal = torch.ones(4, 4)
    assert all(torch.isfinite(v) for v in objective(equal, equal, teacher_logits=torch.zeros(4, 4)).values())


def test_only_the_chosen_pairs_go_through_the_student():
    seen: list[int] = []
    student = ProductFusion(4, 1)
    student.register_forward_hook(lambda m, i, out: seen.append(len(out)))
    objective = DCD(student=student, hard_negatives=7)
    sum(objective(normal(32, 4), normal(32, 4, seed=1), teacher_logits=normal(32, 32, seed=2)).values())
    assert seen == [32 * 8]


def test_a_mined_pool_gives_the_loss_of_the_batch():
    """The same candidates, once chosen in the batch and once beforehand."""
    n = 8
    pairs = Pairs({"a": source(n), "b": source(n, seed=1)})
    pool = Pool.draw(pairs, n - 1).scored(product, pairs)
    model = towers()
    for choice, objective in (("teacher", DCD(hard_negatives=3)), ("all", DCD(negatives="all"))):
        chosen = mined(pairs, pool, 3, choice=choice)
        a, b = (model({**pairs.source(s).batch(range(n)), "task": s})["sentence_embedding"] for s in ("a", "b"))
        rows = [chosen.rows[name] for name in chosen.rows if name.startswith("negative_b")]
        negative, logits = b[torch.from_numpy(np.stack(rows, 1))], torch.from_numpy(chosen.per_pair["logits_b"])
        from_pool = objective(a, b, negative_b=negative, logits_b=logits)
        inputs = {s: pairs.source(s).batch(range(n)) for s in ("a", "b")}
        in_batch = DCD(product, hard_negatives=objective.hard_negatives, negatives=objective.negatives)
        from_batch = in_batch(a, b, a_inputs=inputs["a"], b_inputs=inputs["b"])
        for part in ("kd", "self"):
            torch.testing.assert_close(from_pool[part], from_batch[part])


def test_three_ways_to_ask_the_teacher_agree():
    pairs = Pairs({"a": source(6), "b": source(6, seed=1)})
    a, b, rows = normal(6, 4), normal(6, 4, seed=1), torch.arange(6)
    inputs = [pairs.source(s).batch(range(6)) for s in ("a", "b")]
    z = 3 * inputs[0]["input_features"] @ inputs[1]["input_features"].T
    given = DCD()(a, b, teacher_logits=z)
    matrix = DCD(z.numpy())(a, b, a_rows=rows, b_rows=rows)
    for chunk in (5, 1000):
        asked = DCD(product, chunk=chunk)(a, b, a_inputs=inputs[0], b_inputs=inputs[1])
        for part in ("kd", "self"):
            torch.testing.assert_close(asked[part], given[part])
            torch.testing.assert_close(matrix[part], given[part])


def test_the_warm_up_begins_at_random_and_without_the_teacher():
    a, b, z = normal(16, 4), normal(16, 4, seed=1), normal(16, 16, seed=2)
    objective = DCD(warmup=0.5, hard_negatives=3).eval()
    objective.on_progress(0, 10)
    early = objective(a, b, teacher_logits=z)
    assert float(early["kd"].detach()) == 0
    objective.on_progress(5, 10)
    late = objective(a, b, teacher_logits=z)
    assert float(late["kd"].detach()) > 0
    plain = DCD(hard_negatives=3).eval()(a, b, teacher_logits=z)
    torch.testing.assert_close(late, plain)
    again = DCD(warmup=0.5, hard_negatives=3).eval()
    again.load_state_dict(objective.state_dict())
    torch.testing.assert_close(again(a, b, teacher_logits=z), late)


def test_hostile_input():
    a, b = normal(4, 4), normal(4, 4, seed=1)
    with pytest.raises(BadInput, match="teacher thinks"):
        DCD()(a, b)
    with pytest.raises(BadInput, match="not pairs"):
        DCD()(a, b[:3])
    with pytest.raises(BadInput, match="NaN"):
        DCD()(a, b, teacher_logits=torch.full((4, 4), float("nan")))
    with pytest.raises(BadInput, match="teacher_logits"):
        DCD()(a, b, teacher_logits=torch.zeros(4, 5))
    with pytest.raises(BadInput, match="without logits_b"):
        DCD()(a, b, negative_b=normal(4, 2, 4))
    with pytest.raises(BadInput, match="logits_b"):
        DCD()(a, b, negative_b=normal(4, 2, 4), logits_b=torch.zeros(4, 2))
    with pytest.raises(UnknownName, match="entropy"):
        DCD(weighting="entropi")  # pyright: ignore[reportArgumentType]
    for wrong in ({"alpha": 1.5}, {"temperature": 0.0}, {"hard_negatives": 0}, {"warmup": 1.0}, {"sharpness": -1.0}):
        with pytest.raises(BadInput):
            DCD(**wrong)
    with pytest.raises(BadInput, match="matrix"):
        DCD(np.zeros(3))
    pairs = captions()
    with pytest.raises(BadInput, match="One logit a pair"):
        Pool.draw(pairs, 3).scored(lambda a, b: torch.zeros(1, 2), pairs)
    with pytest.raises(BadInput, match="pool of"):
        mined(pairs[:4], Pool.draw(pairs, 3))
    with pytest.raises(UnknownName, match="side"):
        Pool.draw(pairs, 3, column="c")
    with pytest.raises(BadInput, match="tokens"):
        CrossFusion(4)(Encoded(a), Encoded(b))


# ---- pools


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 40), st.sampled_from(["a", "b"]))
def test_pools_hold_distinct_items_of_other_groups(seed, size, column):
    pairs = captions(10, 3)
    pool = Pool.draw(pairs, size, column=column, seed=seed)
    assert np.array_equal(pool.rows[:, 0], pairs.rows[column])
    items = len(np.unique(pairs.rows[column]))
    right = 3 if column == "b" else 1
    expected = min(size, items - right)
    for row, group in zip(pool.rows, pairs.groups):
        false = row[1:][row[1:] >= 0]
        assert len(false) == len(set(false.tolist())) == expected
        owners = false // 3 if column == "b" else false
        assert (owners != group).all()


@pytest.mark.parametrize("column", ["a", "b"])
def test_near_pools_hold_the_nearest_false_items(column):
    pairs = captions(10, 3)
    a, b = (nn.functional.normalize(normal(n, 4, seed=n), dim=1).numpy() for n in (10, 30))
    pool = Pool.near(pairs, a, b, 5, column=column)
    scores = (a @ b.T)[pairs.rows["a"]] if column == "b" else (b @ a.T)[pairs.rows["b"]]
    owner = np.arange(30) // 3 if column == "b" else np.arange(10)
    scores = np.where(owner[None, :] == np.asarray(pairs.groups)[:, None], -np.inf, scores)
    assert np.array_equal(pool.rows[:, 1:], np.argsort(-scores, axis=1)[:, :5])
    assert np.array_equal(pool.rows[:, 0], pairs.rows[column])


def test_pools_are_scored_in_place_and_survive_saving(tmp_path):
    pairs = captions(5, 2)
    pool = Pool.draw(pairs, 9).scored(product, pairs, batch_size=3)
    x, y = (np.asarray(pairs.source(s).batch(range(len(pairs.source(s))))["input_features"]) for s in ("a", "b"))
    expected = 3 * np.take_along_axis(x[pairs.rows["a"]] @ y.T, np.maximum(pool.rows, 0), 1) * (pool.rows >= 0)
    np.testing.assert_allclose(pool.logits, expected, rtol=1e-4, atol=1e-5)
    assert (pool.rows[:, -1] == -1).all()  # a caption of the own picture had to be left out
    backward = Pool.draw(pairs, 4, column="a").scored(product, pairs)
    np.testing.assert_allclose(
        backward.logits, 3 * np.take_along_axis(y[pairs.rows["b"]] @ x.T, backward.rows, 1), rtol=1e-4, atol=1e-5
    )
    pool.save(tmp_path / "pool.safetensors")
    again = Pool.load(tmp_path / "pool.safetensors")
    assert np.array_equal(again.rows, pool.rows)
    assert np.array_equal(again.logits, pool.logits)
    assert again.column == "b"


# ---- teachers and students


def test_the_teacher_is_asked_and_never_touched():
    pairs = captions()
    owner = towers(3)
    scorer = ProductFusion(8, 2)
    scorer.layers[0].register_forward_hook(lambda m, i, out: modes.append(m.training))
    modes: list[bool] = []
    owner.train()
    scorer.train()
    teacher = Teacher(owner, scorer)
    before = state(owner), state(scorer)
    model, objective = towers(0), DCD(teacher, hard_negatives=3)
    first = state(model)
    assert not any(p is q for p in objective.parameters() for q in scorer.parameters())
    sampler = OnePerGroup(np.asarray(pairs.groups), 8)
    train(model, pairs, objective, Stage(steps=4, rate=1e-2), sampler=sampler, batch_size=8, device="cpu")
    assert same(state(owner), before[0])
    assert same(state(scorer), before[1])
    assert all(p.grad is None for p in [*owner.parameters(), *scorer.parameters()])
    assert modes
    assert not any(modes)
    assert scorer.training
    assert not same(state(model), first)


@pytest.mark.parametrize("direction", ["i2t", "both"])
def test_training_on_mined_pairs_needs_no_teacher(direction):
    pairs = captions()
    chosen = pairs
    for column in ("b", "a") if direction == "both" else ("b",):
        chosen = mined(chosen, Pool.draw(pairs, 6, column=column).scored(product, pairs), 3)
    model = towers()
    before = state(model)
    report = train(
        model,
        chosen,
        DCD(direction=direction),
        Stage(steps=30, rate=1e-2),
        routes=ROUTES,
        batch_size=8,
        log_every=5,
        device="cpu",
    )
    assert not same(state(model), before)
    assert report.losses[-1] < report.losses[0]
    found = HeldOut(pairs, DCD()).reports(model)["a_to_b"]
    plain = HeldOut(pairs).reports(model)["a_to_b"]
    assert found["hit@1"] == plain["hit@1"]  # scale and bias do not rank


def test_scorers_agree_with_their_definition_and_with_any_chunk():
    a, b = Encoded(normal(5, 8)), Encoded(normal(7, 8, seed=1))
    dual = DualEncoder(4.0, -1.0)
    torch.testing.assert_close(grid(dual, a, b), 4 * cosine(a, b) - 1)
    torch.testing.assert_close(dual(a, Encoded(b.vectors[:5])), grid(dual, a, b).diagonal())
    flat = ProductFusion(8, 0)
    torch.testing.assert_close(grid(flat, a, b), (a.vectors * flat.head.weight) @ b.vectors.T + flat.head.bias)
    fused = ProductFusion(8, 2)
    torch.testing.assert_close(grid(fused, a, b, chunk=1), grid(fused, a, b))
    objective = DCD(student=fused)
    shortlist = torch.tensor([[3, 1], [0, 6], [2, 2], [4, 5], [1, 0]])
    expected = objective.similarity(a, b).gather(1, shortlist)
    torch.testing.assert_close(objective.rerank(a, b, shortlist), expected)
    by_text = torch.tensor([[4, 0]] * 7)
    backward = objective.similarity(a, b).T.gather(1, by_text)
    torch.testing.assert_close(objective.rerank(b, a, by_text, "b"), backward)


def test_cross_fusion_does_not_see_padding():
    torch.manual_seed(0)
    scorer = CrossFusion(8, 2, heads=2).eval()
    a, b = normal(3, 4, 8), normal(3, 5, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    found = scorer(Encoded(a[:, 0], a), Encoded(b[:, 0], b, mask))
    assert torch.isfinite(found).all()
    short = scorer(Encoded(a[1:2, 0], a[1:2]), Encoded(b[1:2, 0], b[1:2, :2]))
    torch.testing.assert_close(found[1:2], short)
    assert not torch.allclose(found[0], scorer(Encoded(a[:, 0], a.flip(0)), Encoded(b[:, 0], b, mask))[0])


def test_cross_fusion_over_aligned_towers_begins_with_their_cosine():
    scorer = CrossFusion(8, 1, heads=2, cosine=True)
    a, b = normal(3, 4, 8), normal(3, 5, 8, seed=1)
    x, y = Encoded(a[:, 0], a), Encoded(b[:, 0], b)
    torch.testing.assert_close(scorer(x, y), 10 * cosine(x, y).diagonal())
    nn.init.normal_(scorer.head.weight)  # ones would cancel: the last norm centers
    assert not torch.allclose(scorer(x, y), 10 * cosine(x, y).diagonal())


def test_a_fusion_teacher_over_tokens_scores_like_its_parts():
    torch.manual_seed(0)
    model = dual_tower(
        Tower(6, width=8, layers=1, heads=2, out=8), Tower(vocabulary=9, width=8, heads=2, out=8), device="cpu"
    )
    texts = Features.ragged("input_ids", [np.array([3, 4, 5]), np.array([6]), np.array([7, 8])])
    pairs = Pairs({"a": Features({"input_features": normal(3, 4, 6).numpy()}), "b": texts})
    scorer = CrossFusion(8, 1, heads=2)
    teacher = Teacher(model, scorer)
    inputs = [pairs.source(s).batch(range(3)) for s in ("a", "b")]
    every = torch.arange(3)
    z = ask(teacher, *inputs, every.repeat_interleave(3), every.repeat(3), chunk=2).view(3, 3)
    torch.testing.assert_close(z.diagonal(), teacher(*inputs))
    torch.testing.assert_close(teacher.similarity(*HeldOut(pairs).encoded(model)), z)
    # The student reads tokens too, in the batch and from a pool.
    student = CrossFusion(8, 1, heads=2)
    for trained, routes in ((pairs, None), (mined(pairs, Pool.draw(pairs, 2).scored(teacher, pairs), 1), ROUTES)):
        before = state(student)
        other = copy.deepcopy(model)
        train(other, trained, DCD(teacher, student), Stage(steps=2), routes=routes, batch_size=3, device="cpu")
        assert not same(state(student), before)


def test_a_matching_teacher_learns_and_spares_its_group():
    scorer = ProductFusion(4, 1)
    a, b = normal(4, 4), normal(4, 4, seed=1)
    logits = grid(scorer, Encoded(a), Encoded(b))
    own = torch.arange(4)
    found = Matching(scorer)(a, b)
    torch.testing.assert_close(found["a_to_b"], 0.5 * nn.functional.cross_entropy(logits, own))
    one_group = Matching(scorer)(a, b, groups=torch.zeros(4, dtype=torch.long))
    assert all(float(value.detach()) == pytest.approx(0, abs=1e-6) for value in one_group.values())


# ---- models of sentence-transformers


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student and two judges (one logit; no and yes), tiny and random, saved to disk."""
    from sentence_transformers import CrossEncoder

    from tiny_models import write_bert, write_text

    folder = tmp_path_factory.mktemp("models")
    write_text(folder / "student")
    write_bert(folder / "bert", seed=3)
    for labels in (1, 2, 3):
        torch.manual_seed(labels)
        judge = CrossEncoder(str(folder / "bert"), num_labels=labels, device="cpu")
        judge.save_pretrained(str(folder / f"judge{labels}"))
    return folder


COLORS, THINGS = ("red", "green", "blue"), ("cat", "dog", "horse", "house")
QUESTIONS = [f"a {color} {thing}" for color in COLORS for thing in THINGS]
PASSAGES = [f"photo of the {color} {thing} in snow" for color in COLORS for thing in THINGS]


def student_pairs(folder):
    from sentence_transformers import SentenceTransformer

    student = SentenceTransformer(str(folder / "student"), device="cpu")
    return student, Pairs({"a": Items(QUESTIONS, student), "b": Items(PASSAGES, student)})


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_teaches_a_sentence_transformer(folders, tmp_path, labels):
    from sentence_transformers import CrossEncoder, SentenceTransformer

    judge = CrossEncoder(str(folders / f"judge{labels}"), device="cpu")
    before = state(judge)
    student, pairs = student_pairs(folders)
    pool = Pool.draw(pairs, 6).scored(Reranker(judge, pairs), pairs)
    row = [(QUESTIONS[2], PASSAGES[i]) for i in pool.rows[2]]
    raw = judge.predict(row, activation_fn=nn.Identity())
    expected = raw[:, 1] - raw[:, 0] if labels == 2 else raw
    np.testing.assert_allclose(pool.logits[2], expected, rtol=1e-4, atol=1e-5)
    first = student.encode(QUESTIONS)
    report = train(
        student, mined(pairs, pool, 3), DCD(), Stage(steps=20, rate=1e-2), batch_size=6, log_every=2, device="cpu"
    )
    assert report.losses[-1] < report.losses[0]
    assert same(state(judge), before)
    trained = student.encode(QUESTIONS)
    assert not np.allclose(first, trained)
    student.save(str(tmp_path / "taught"), create_model_card=False)
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "taught"), device="cpu").encode(QUESTIONS), trained, atol=1e-6
    )
    assert 0 <= HeldOut(pairs)(student)["mean_hit@1"] <= 1


def test_a_cross_encoder_can_be_asked_in_every_step(folders):
    from sentence_transformers import CrossEncoder

    judge = CrossEncoder(str(folders / "judge1"), device="cpu")
    student, pairs = student_pairs(folders)
    objective = DCD(Reranker(judge, pairs), hard_negatives=2, direction="both")
    inputs = [pairs.source(side).batch([1, 4, 7]) for side in ("a", "b")]
    a, b = (student(dict(x))["sentence_embedding"] for x in inputs)
    z = torch.tensor(
        [
            [judge.predict((QUESTIONS[i], PASSAGES[j]), activation_fn=nn.Identity()) for j in (1, 4, 7)]
            for i in (1, 4, 7)
        ]
    )
    found = objective(a, b, a_inputs=inputs[0], b_inputs=inputs[1])
    given = objective(a, b, teacher_logits=z.view(3, 3))
    for part, value in found.items():
        torch.testing.assert_close(value, given[part], atol=1e-5, rtol=1e-4)
    before = state(student)
    train(student, pairs, objective, Stage(steps=2), batch_size=4, device="cpu")
    assert not same(state(student), before)


def test_a_student_with_a_router_reads_its_own_routes_and_prompts(folders):
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Router

    parts = [list(SentenceTransformer(str(folders / "student"), device="cpu").children()) for _ in range(2)]
    router = Router.for_query_document(parts[0], parts[1])
    student = SentenceTransformer(modules=[router], device="cpu")
    questions = Items(QUESTIONS, student, route="query", prompt="query ")
    pairs = Pairs({"a": questions, "b": Items(PASSAGES, student, route="document")})
    expected = student.encode_query(QUESTIONS[:3], prompt="query ")
    found = student({**questions.batch([0, 1, 2]), "task": "query"})["sentence_embedding"].detach()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    judge = CrossEncoder(str(folders / "judge1"), device="cpu")
    pool = Pool.draw(pairs, 4).scored(Reranker(judge, pairs), pairs)
    routes = {"a": "query", "b": "document", "negative_b": "document"}
    before = state(student)
    train(student, mined(pairs, pool, 2), DCD(), Stage(steps=2, rate=1e-2), routes=routes, batch_size=4, device="cpu")
    assert not same(state(student), before)


def test_judges_that_cannot_judge_are_refused(folders):
    from sentence_transformers import CrossEncoder

    student, pairs = student_pairs(folders)
    judge = CrossEncoder(str(folders / "judge3"), device="cpu")
    with pytest.raises(BadInput, match="3 labels"):
        Reranker(judge, pairs)
    with pytest.raises(BadInput, match="Items"):
        Reranker(judge, captions())
    with pytest.raises(BadInput, match="no items"):
        Items([], student)


# ---- succession


def test_heirs_are_spread_evenly():
    assert heirs(6, 3) == [0, 3, 5]
    assert heirs(12, 6) == sorted(set(heirs(12, 6)))
    assert heirs(12, 6)[0] == 0
    assert heirs(12, 6)[-1] == 11
    assert heirs(4, 4) == [0, 1, 2, 3]
    assert heirs(3, 1) == [0]
    for wrong in ((3, 4), (3, 0)):
        with pytest.raises(BadInput):
            heirs(*wrong)


def test_a_student_inherits_layers_and_the_match_row():
    teacher, student = ProductFusion(4, 6), ProductFusion(4, 3)
    teacher.head = nn.Linear(4, 2)
    before = state(teacher)
    assert set(succeed(student, teacher)) == set(student.state_dict())
    for mine, theirs in zip(student.layers, (0, 3, 5)):
        assert same(state(mine), state(teacher.layers[theirs]))
    assert torch.equal(student.head.weight, teacher.head.weight[1:])
    with torch.no_grad():
        student.head.weight.zero_()
    assert same(state(teacher), before)
    cross, half = CrossFusion(8, 4, heads=2), CrossFusion(8, 4, heads=2)
    succeed(half, cross)
    assert same(state(half), state(cross))
    with pytest.raises(BadInput, match="teacher's"):
        succeed(ProductFusion(5, 3), teacher)
    with pytest.raises(BadInput, match="layers"):
        succeed(student, teacher, [0, 9, 1])


def test_only_the_fusion_trains_where_the_towers_are_shared():
    pairs = captions()
    model, scorer = towers(2), ProductFusion(8, 3)
    student = ProductFusion(8, 1)
    succeed(student, scorer)
    before = state(model), state(student)
    objective = DCD(Teacher(model, scorer), student, logits="raw", hard_negatives=3)
    train(model, pairs, objective, Stage(train=(), steps=3, rate=1e-2), batch_size=8, device="cpu")
    assert same(state(model), before[0])
    assert not same(state(student), before[1])


# ---- negative control


def test_a_teacher_without_an_opinion_has_none():
    """Equal logits for everything: no sample is weighted above another, and centered there is nothing to imitate but silence."""
    a, b = normal(6, 4), normal(6, 4, seed=1)
    silent = DCD(negatives="all", alpha=0.2)(a, b, teacher_logits=torch.zeros(6, 6))
    static = DCD(negatives="all", alpha=0, weighting="static")(a, b)
    torch.testing.assert_close(silent["self"], 0.8 * static["self"])
    y = 10 * cosine(Encoded(a), Encoded(b))
    spread = (y - y.mean(1, keepdim=True)).square().mean()
    torch.testing.assert_close(silent["kd"], 0.2 * spread)

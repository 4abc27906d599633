"""Identities of FDT: sparsemax, grounding, the codebook, its temperature, inspection, and the inverted index."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, Pairs, Stage, train
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.fdt import (
    FDT,
    InvertedIndex,
    activate,
    code_use,
    ground,
    grounded_tokens,
    sparsemax,
    starting_temperature,
    support_iou,
    top_items,
)
from chiasm.learn.objectives.fdt.codebook import code_overlap
from chiasm.learn.objectives.fdt.inspection import item_weights
from chiasm.learn.towers import Tower, dual_tower
from chiasm.learn.training import CollapseWarning
from chiasm.worlds.patches import patch_scenes


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(seed=0, **options):
    torch.manual_seed(seed)
    return FDT(**{"width": 8, "codes": 12, "dim": 6, "temperature": 1.0, **options})


def batch(n=5, seed=0):
    a, b = tensor(n, 4, 8, seed=seed), tensor(n, 3, 8, seed=seed + 1)
    mask = torch.ones(n, 3, dtype=torch.bool)
    mask[::2, 2] = False
    return {"a": a.mean(1), "b": b.mean(1), "a_tokens": a, "b_tokens": b, "b_mask": mask}


# ---- weights over the codes


@pytest.mark.parametrize(
    ("z", "w"),
    [([2.0, 0, 0], [1.0, 0, 0]), ([1.0, 1.0], [0.5, 0.5]), ([0.5, 0.2, -1.0], [0.65, 0.35, 0.0])],
)
def test_sparsemax_in_closed_form(z, w):
    torch.testing.assert_close(sparsemax(torch.tensor([z])), torch.tensor([w]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    codes=st.integers(1, 40),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    most=st.sampled_from([None, 1, 2, 7]),
)
def test_sparsemax_is_the_projection_on_the_simplex(seed, codes, scale, most):
    z = scale * tensor(4, codes, seed=seed, dtype=torch.float64)
    w = sparsemax(z, most=most)
    torch.testing.assert_close(w.sum(1), torch.ones(4, dtype=torch.float64))
    assert bool((w >= 0).all())
    torch.testing.assert_close(sparsemax(z + 17.0, most=most), w)
    # Optimality of a projection P(z): <z - P(z), v - P(z)> <= 0 for all corners v of the simplex.
    residual = z - w
    assert bool((residual - (residual * w).sum(1, keepdim=True) <= 1e-9).all())


def test_sparsemax_gradient():
    z = tensor(3, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sparsemax(x, most=3), (z,))
    w = sparsemax(z)
    g = tensor(3, 7, seed=5, dtype=torch.float64)
    (grad,) = torch.autograd.grad((w * g).sum(), z)
    for row in range(3):
        on = w[row] > 0
        expected = torch.where(on, g[row] - g[row][on].mean(), torch.zeros(7, dtype=torch.float64))
        torch.testing.assert_close(grad[row], expected)


def test_sparsemax_in_half_precision_with_many_codes():
    z = torch.zeros(1, 5000, dtype=torch.float16)
    w = sparsemax(z)
    assert w.dtype == torch.float16
    torch.testing.assert_close(w.float().sum(), torch.tensor(1.0), atol=2e-2, rtol=0)


@pytest.mark.parametrize("kind", ["sparsemax", "softmax"])
def test_temperature_limits(kind):
    r = tensor(3, 9)
    torch.testing.assert_close(activate(r / 1e6, kind), torch.full((3, 9), 1 / 9), atol=1e-5, rtol=0)
    hard = torch.nn.functional.one_hot(r.argmax(1), 9).float()
    torch.testing.assert_close(activate(r / 1e-4, kind), hard)


def test_sigmoid_is_divided_by_its_sum():
    z = tensor(3, 9)
    torch.testing.assert_close(activate(z, "sigmoid"), z.sigmoid() / z.sigmoid().sum(1, keepdim=True))
    assert bool(activate(z - 300, "sigmoid").isfinite().all())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_starting_temperature_has_the_support_that_was_asked_for(share):
    r = 5 * tensor(50, 40)
    found = starting_temperature(r, share)
    assert float((sparsemax(r / found) > 0).float().mean()) == pytest.approx(share, abs=0.01)


# ---- grounding


@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_grounding_equals_the_naive_loop(pool, chunk):
    q, c = (
        tensor(4, 5, 6, dtype=torch.float64).requires_grad_(),
        tensor(11, 6, seed=1, dtype=torch.float64).requires_grad_(),
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    expected = []
    for row, there in zip(q, mask):
        products = row[there] @ c.T / 6**0.5
        expected.append({"max": products.amax(0), "mean": products.mean(0), "sum": products.sum(0)}[pool])
    expected = torch.stack(expected)
    found = ground(q, mask, c, pool=pool, chunk=chunk)
    torch.testing.assert_close(found, expected)
    g = tensor(4, 11, seed=3, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * g).sum(), (q, c)), torch.autograd.grad((expected * g).sum(), (q, c))
    ):
        torch.testing.assert_close(one, other)


def test_released_padding_puts_a_floor_under_the_match():
    q, c = -torch.ones(1, 2, 4), torch.ones(3, 4)
    mask = torch.tensor([[True, False]])
    assert bool((ground(q, mask, c) == -2).all())
    assert bool((ground(q, mask, c, pads_count=True) == 0).all())
    assert bool((ground(q, mask, c, pool="mean") == -2).all())
    assert bool((ground(q, mask, c, pool="mean", pads_count=True) == -1).all())


def test_padded_tokens_change_nothing_and_empty_items_are_no_nan():
    objective = made()
    tokens = tensor(4, 3, 8)
    longer = torch.cat([tokens, 100 * tensor(4, 2, 8, seed=9)], 1)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 3:] = False
    torch.testing.assert_close(objective.represent(longer, mask, "a"), objective.represent(tokens, None, "a"))
    mask[1] = False
    longer.requires_grad_()
    out = objective.represent(longer, mask, "a")
    torch.testing.assert_close(objective.weights(longer, mask, "a")[1], torch.full((12,), 1 / 12))
    out.sum().backward()
    assert bool(out.isfinite().all())
    assert bool(longer.grad.isfinite().all())
    assert bool((longer.grad[1] == 0).all())


# ---- the objective


def test_equal_tokens_and_tied_maps_have_cosine_one():
    objective = made()
    objective.query_b = objective.query_a
    items = Encoded(tensor(6, 8), tensor(6, 4, 8, seed=2), torch.ones(6, 4, dtype=torch.bool))
    torch.testing.assert_close(objective.similarity(items, items).diagonal(), torch.ones(6))


def test_order_of_the_codes_does_not_matter():
    objective, given = made().eval(), batch()
    items = Encoded(given["a"], given["a_tokens"]), Encoded(given["b"], given["b_tokens"], given["b_mask"])
    moved = copy.deepcopy(objective)
    moved.codes.data = moved.codes.data[:, torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(moved.similarity(*items), objective.similarity(*items))
    chunked = copy.deepcopy(objective)
    chunked.chunk = 5
    torch.testing.assert_close(chunked.similarity(*items, chunk=2), objective.similarity(*items))


def test_loss_is_info_nce_of_the_representations_and_reaches_everything():
    objective, given = made().train(), batch()
    losses = objective(**given)
    f = objective.represent(given["a_tokens"], None, "a"), objective.represent(given["b_tokens"], given["b_mask"], "b")
    scores = objective.scale * f[0] @ f[1].T
    right = torch.arange(5)
    expected = (
        torch.nn.functional.cross_entropy(scores, right) + torch.nn.functional.cross_entropy(scores.T, right)
    ) / 2
    torch.testing.assert_close(sum(losses.values()), expected)
    sum(losses.values()).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize(
    "options",
    [{"activation": "softmax"}, {"activation": "sigmoid"}, {"pool": "mean"}, {"pool": "sum"}, {"parity": True}],
)
def test_variants_train_and_differ(options):
    given = batch()
    plain, other = (made(temperature=10.0, **some)(**given) for some in ({}, options))
    assert abs(float(sum(plain.values()).detach()) - float(sum(other.values()).detach())) > 1e-4
    assert all(bool(loss.isfinite()) for loss in other.values())


def test_one_code_is_the_negative_control():
    objective, given = made(codes=1), batch()
    items = Encoded(given["a"], given["a_tokens"]), Encoded(given["b"], given["b_tokens"], given["b_mask"])
    torch.testing.assert_close(objective.similarity(*items), torch.ones(5, 5))
    assert sum(objective(**given).values()).item() == pytest.approx(np.log(5), abs=1e-5)


def test_books_of_their_own_share_nothing():
    objective = made(shared=False)
    assert objective.codes.shape == (2, 12, 6)
    assert not torch.equal(objective.book("a"), objective.book("b"))
    assert made().book("a").data_ptr() == made().codes.data_ptr() or torch.equal(made().book("a"), made().book("b"))
    assert all(bool(x.isfinite()) for x in objective(**batch()).values())


def test_overlap_of_codes():
    torch.testing.assert_close(code_overlap(torch.eye(4)[None]), torch.tensor(0.0))
    codes = tensor(1, 9, 4)
    unit = torch.nn.functional.normalize(codes[0], dim=1)
    expected = (unit @ unit.T - torch.eye(9)).square().sum() / 81
    torch.testing.assert_close(code_overlap(codes), expected)
    objective = made(orthogonality=1.0, warmup=0.5).train()
    objective.on_progress(0, 100)
    assert objective(**batch())["orthogonality"].item() == 0
    objective.on_progress(25, 100)
    half = objective(**batch())["orthogonality"].item()
    assert half == pytest.approx(0.5 * code_overlap(objective.codes).item(), rel=1e-5)


# ---- temperature, scale, codes that die


def test_temperature_is_found_cooled_and_saved(tmp_path):
    objective = made(temperature=None, start=0.9, decay=0.5, every=10, least=0.5).train()
    objective.on_progress(0, 100)
    objective(**batch(40))
    start = float(objective.temperature)
    assert float(objective.share) == pytest.approx(0.9, abs=0.05)
    objective.on_progress(10, 100)
    assert float(objective.temperature) == pytest.approx(start / 2)
    objective.share.fill_(0.4)  # fewer active than `least`: no further
    objective.on_progress(90, 100)
    assert float(objective.temperature) == pytest.approx(start / 2)
    other = made(seed=7, temperature=None)
    other.load_state_dict(objective.state_dict())
    assert float(other.temperature) == float(objective.temperature)
    given = batch()
    torch.testing.assert_close(other.eval()(**given)["a_to_b"], objective.eval()(**given)["a_to_b"], rtol=0, atol=0)


def test_evaluation_changes_no_state():
    objective = made(temperature=None).eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(**batch())
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())


def test_scale_stays_in_its_bounds():
    objective = made()
    for value, bound in ((9.0, 6.0), (0.0, 3.0)):
        objective.log_scale.data.fill_(value)
        objective.on_progress(1, 10)
        assert objective.log_scale.item() == bound
    objective.log_scale.data.fill_(6.0)
    assert objective.scale.item() == 100


def test_dead_codes_become_recent_queries():
    objective = made(revive_after=3).train()
    far = objective.codes.data[0].norm(dim=1).mean()
    for step in range(3):
        objective.on_progress(step, 10)
        objective(**batch())
    objective.idle[0, :4] = 3
    objective.idle[0, 4:] = 0
    before = objective.codes.detach().clone()
    assert objective.revive() == 4
    queries, _ = objective.recent.get()
    new = torch.nn.functional.normalize(objective.codes.detach()[0, :4], dim=1)
    nearest = (new @ torch.nn.functional.normalize(queries, dim=1).T).amax(1)
    torch.testing.assert_close(nearest, torch.ones(4))
    torch.testing.assert_close(objective.codes.detach()[0, :4].norm(dim=1), far.expand(4))
    assert torch.equal(objective.codes.detach()[0, 4:], before[0, 4:])
    assert int(objective.idle[0, :4].max()) == 0


# ---- inspection and index


def test_codes_show_their_items_and_tokens():
    objective, given = made(), batch()
    items = Encoded(given["b"], given["b_tokens"], given["b_mask"])
    values, rows = top_items(objective, items, "b", k=2)
    match = objective.match(items.tokens, items.mask, "b")
    torch.testing.assert_close(values[:, 0], match.amax(0))
    assert torch.equal(rows[:, 0], match.argmax(0))
    values, places = grounded_tokens(objective, items, "b", 3, k=3)
    assert bool(values[0, 2].isneginf())
    torch.testing.assert_close(values[:, 0] / 6**0.5, match[:, 3])
    assert int(places[0, 2]) == 2
    with pytest.raises(BadInput, match="code 99"):
        grounded_tokens(objective, items, "b", 99)


def test_overlap_of_supports():
    a = torch.tensor([[0.5, 0.5, 0, 0], [1.0, 0, 0, 0], [0, 0, 0.5, 0.5]])
    b = torch.tensor([[0.5, 0, 0.5, 0], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(support_iou(a, b), torch.tensor([1 / 3, 1.0, 0.0]))
    use = code_use(a)
    assert use.count.tolist() == [2, 1, 1, 1]
    assert use.active == pytest.approx(5 / 12)
    assert use.used == 1


def test_inverted_index_gives_exact_scores_and_finds_all_with_enough_candidates():
    objective = made(codes=20)
    a = Encoded(tensor(30, 8), tensor(30, 4, 8, seed=2))
    b = Encoded(tensor(9, 8), tensor(9, 3, 8, seed=3))
    w_a, w_b = item_weights(objective, a, "a"), item_weights(objective, b, "b")
    exact = objective.similarity(a, b).T
    index = InvertedIndex.of(objective, w_a, "a", strongest=20)
    scores, rows = index.search(w_b, 5, candidates=30)
    shared = (w_b[:, None] * w_a[None] > 0).any(-1)
    expected = exact.masked_fill(~shared, -torch.inf).topk(5, dim=1)
    torch.testing.assert_close(scores, expected.values)
    assert torch.equal(rows[~scores.isneginf()], expected.indices[~scores.isneginf()])
    few = InvertedIndex.of(objective, w_a, "a", strongest=2)
    assert few.entries <= 60
    scores, rows = few.search(w_b, 3, candidates=5)
    for i in range(9):
        for score, j in zip(scores[i], rows[i]):
            assert int(j) == -1 or float(score) == pytest.approx(float(exact[i, j]), abs=1e-5)


# ---- bad input


def test_bad_input_is_named():
    for options in ({"codes": 0}, {"temperature": 0.0}, {"start": 0.0}, {"decay": 1.5}):
        with pytest.raises(BadInput):
            FDT(**options)
    with pytest.raises(UnknownName, match="sparsemax"):
        FDT(activation="sparse-max")
    with pytest.raises(UnknownName):
        FDT(pool="median")
    with pytest.raises(UnknownName):
        activate(tensor(2, 3), "relu")
    with pytest.raises(BadInput, match="do not fit"):
        ground(tensor(2, 3, 4), torch.ones(2, 2, dtype=torch.bool), tensor(5, 4))
    with pytest.raises(BadInput):
        sparsemax(torch.zeros(2, 0))
    with pytest.raises(BadInput):
        InvertedIndex(tensor(3, 4), tensor(5, 2))
    with pytest.raises(BadInput):
        support_iou(tensor(2, 3), tensor(2, 4))


def test_one_pair_and_equal_pairs():
    given = {name: value[:1] for name, value in batch().items()}
    assert sum(made()(**given).values()).item() == pytest.approx(0.0, abs=1e-6)
    same = {name: value[:1].expand(4, *value.shape[1:]) for name, value in batch().items()}
    assert sum(made()(**same).values()).item() == pytest.approx(np.log(4), abs=1e-5)


# ---- in training


def scenes(seed=0):
    world = patch_scenes(256, seed=0, objects=2)
    sources = {"a": Features({"input_features": world.patches}), "b": Features({"input_ids": world.captions[0]})}
    torch.manual_seed(seed)
    small = {"layers": 0, "width": 32, "out": 32}
    towers = dual_tower(Tower(32, **small), Tower(vocabulary=world.vocabulary, **small), device="cpu")
    return Pairs(sources), towers


def test_a_training_that_starts_cold_collapses_and_this_is_noticed():
    pairs, model = scenes(1)
    torch.manual_seed(1)
    objective = FDT(32, codes=64, dim=32, temperature=0.05, decay=1.0)  # as cold as 1 is for more codes
    with pytest.warns(CollapseWarning):
        report = train(model, pairs, objective, Stage(steps=100, rate=3e-3), batch_size=64, device="cpu")
    assert report.collapsed
    held_out = HeldOut(pairs[:100], objective)
    assert held_out(model)["mean_hit@1"] < 0.05
    weights = [item_weights(objective, items, side) for items, side in zip(held_out.encoded(model), "ab")]
    assert float(support_iou(*weights).mean()) < 0.05


def test_a_training_that_starts_dense_learns_and_a_checkpoint_knows_the_temperature(tmp_path):
    pairs, model = scenes()
    torch.manual_seed(0)
    objective = FDT(32, codes=64, dim=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        report = train(model, pairs, objective, Stage(steps=100, rate=3e-3), batch_size=64, device="cpu")
    assert not report.collapsed
    assert report.losses[-1] < report.losses[0] / 2
    assert 0 < float(objective.share) < 0.5
    assert float(objective.temperature) < float(objective.start_temperature)
    save_file({k: v.contiguous() for k, v in objective.state_dict().items()}, tmp_path / "fdt.safetensors")
    again = FDT(32, codes=64, dim=32)
    again.load_state_dict(load_file(tmp_path / "fdt.safetensors"))
    items = HeldOut(pairs[:50], objective).encoded(model)
    assert torch.equal(again.similarity(*items), objective.similarity(*items))

"""Identities, closed forms, gradients, protocol and hostile input of MCR (card: unit identities a to g)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, InfoNCE, Pairs, Stage, train
from chiasm.learn.contrastive import info_nce
from chiasm.learn.objectives.mcr import (
    HEADS,
    MCR,
    Answers,
    ConditionalBottleneck,
    DivergenceLog,
    Unimodal,
    divergence,
    fit,
    fusion_head,
    jensen_shannon,
    label_contrast,
    permutations,
    play,
)
from chiasm.learn.objectives.mcr.perturbation import class_distance
from chiasm.learn.objectives.mcr.trial import classes_of, run
from chiasm.learn.objectives.mcr.world import bits, routed
from chiasm.learn.towers import Perceptron, Tower, dual_tower
from chiasm.learn.trial import Trial


def latents(*dims, rows=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, generator=generator) for d in dims]


def shift(rows, count=2):
    """Cyclic shifts by 1 .. count, all of which count."""
    index = (torch.arange(rows) + torch.arange(1, count + 1)[:, None]) % rows
    return index, torch.ones_like(index, dtype=torch.bool)


def gradients(value, tensors):
    found = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors)]


# ---- divergence


def test_divergence_in_closed_form():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.3, 0.7]])
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.3, 0.7]])
    expected = [math.log(2), 0.5 * (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)), 0.0]
    torch.testing.assert_close(jensen_shannon(p, q), torch.tensor(expected), atol=1e-6, rtol=0)
    assert expected[1] == pytest.approx(0.2158, abs=1e-4)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50))
def test_divergence_stays_in_its_bounds(seed, size):
    p, q = (size * x for x in latents(5, 5, seed=seed))
    found = class_distance(p, q)
    assert (found >= -1e-6).all()
    assert (found <= math.log(2) + 1e-6).all()


def test_identity_permutation_moves_nothing_and_an_ignored_modality_has_no_influence():
    z, head = latents(4, 3), fusion_head("linear", (4, 3), 5)
    same = torch.arange(9)[None], torch.ones(1, 9, dtype=torch.bool)
    assert float(divergence(head, z, 0, *same, class_distance, head(z)).detach()) == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        head.maps[1].weight.zero_()
    found = play(head, z, "greedy", *shift(9))[1]
    assert float(found[1]) == pytest.approx(0, abs=1e-7)
    assert float(found[0]) > 0.01


def test_divergence_equals_a_loop_over_rows():
    z, head = latents(4, 3), fusion_head("mlp", (4, 3), 5)
    index, counts = shift(9, 3)
    counts[0, 2] = counts[2, 5] = False
    clean, total, n = head(z).softmax(-1), 0.0, 0
    for p in range(3):
        for i in range(9):
            if counts[p, i]:
                moved = head([z[0][i : i + 1], z[1][index[p, i]][None]]).softmax(-1)
                total, n = total + float(jensen_shannon(clean[i], moved[0]).detach()), n + 1
    found = divergence(head, z, 1, index, counts, class_distance, head(z))
    assert float(found.detach()) == pytest.approx(total / n, rel=1e-4)


def test_permutations_keep_their_promises():
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    for kind in ("rand", "rsi", "rsl", "all"):
        index, counts = permutations(7, kind, 5, labels)
        assert index.shape == counts.shape == ((6 if kind == "all" else 5), 7)
        assert torch.equal(index.sort(1).values, torch.arange(7).expand_as(index))
        moved = index != torch.arange(7)
        if kind in ("rsi", "all"):
            assert moved.all()
            assert counts.all()
        if kind == "rsl":
            assert torch.equal(counts, labels[index] != labels)
    every = permutations(7, "all")[0]
    assert torch.equal(
        every.sort(0).values.T, torch.stack([torch.tensor([j for j in range(7) if j != i]) for i in range(7)])
    )
    assert not permutations(4, "rsl", 3, torch.zeros(4))[1].any()
    for kind in ("rand", "rsi", "all"):
        assert permutations(1, kind)[0].shape == (0, 1)


# ---- the game


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize("shared", [False, True])
def test_greedy_is_zero_and_pushes_only_encoders(head, shared):
    torch.manual_seed(0)
    z = [x.requires_grad_() for x in latents(4, 3)]
    module = fusion_head(head, (4, 3), 5, 8)
    term, found = play(module, z, "greedy", *shift(9), shared_clean=shared)
    assert float(term.detach()) == pytest.approx(0, abs=1e-6)
    assert (found > 0).all()
    for g in gradients(term, list(module.parameters())):
        assert g.abs().max() < 1e-6
    for g in gradients(term, z):
        assert g.abs().max() > 1e-5


@pytest.mark.parametrize(("game", "k"), [("greedy", -1), ("independent", 0), ("collaborative", 1)])
@pytest.mark.parametrize("dims", [(4, 3), (4, 3, 5)])
def test_each_encoder_gets_the_gradient_of_the_equation(game, k, dims):
    torch.manual_seed(0)
    z = [x.requires_grad_() for x in latents(*dims)]
    module, (index, counts) = fusion_head("mlp", dims, 5, 8), shift(9)
    term = play(module, z, game, index, counts)[0]
    clean = module(z)
    each = [gradients(divergence(module, z, i, index, counts, class_distance, clean), z) for i in range(len(z))]
    for e, g in enumerate(gradients(term, z)):
        expected = -each[e][e] - k * sum(each[j][e] for j in range(len(z)) if j != e)
        torch.testing.assert_close(g, expected, atol=1e-6, rtol=1e-4)


def test_with_three_modalities_the_mean_leaves_the_head_alone():
    torch.manual_seed(0)
    z, module = latents(4, 3, 5), fusion_head("mlp", (4, 3, 5), 5, 8)
    for rivals, silent in (("mean", True), ("sum", False)):
        term, found = play(module, z, "greedy", *shift(9), rivals=rivals)
        expected = 0 if silent else float(found.sum())
        assert float(term.detach()) == pytest.approx(expected, abs=1e-6)
        largest = max(float(g.abs().max()) for g in gradients(term, list(module.parameters())))
        assert (largest < 1e-6) is silent


# ---- contrast and bottleneck


def test_contrast_in_closed_form():
    z = torch.eye(2)
    found = label_contrast([z, z], torch.arange(2))
    assert float(found) == pytest.approx(-math.log(math.e**2 / (math.e**2 + 2)), rel=1e-5)
    assert float(found) == pytest.approx(0.2395, abs=1e-4)


def test_contrast_equals_a_double_loop():
    z, labels = latents(6, 6, 6, rows=5), torch.tensor([0, 0, 1, 2, 1])
    joined = torch.cat([x / x.norm(dim=1, keepdim=True) for x in z]).double()
    tiled, s = labels.repeat(3).tolist(), joined @ joined.T / 0.5
    costs = []
    for a in range(15):
        against = sum(math.exp(s[a, n]) for n in range(15) if tiled[n] != tiled[a])
        costs += [
            -math.log(math.exp(s[a, b]) / (math.exp(s[a, b]) + against))
            for b in range(15)
            if a != b and tiled[a] == tiled[b]
        ]
    assert float(label_contrast(z, labels)) == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_pure_contrast_of_two_modalities_is_info_nce():
    a, b = latents(6, 6, rows=7)
    z = torch.cat([nn.functional.normalize(x, dim=1) for x in (a, b)])
    partner = torch.eye(14).roll(7, dims=1)
    expected = info_nce(z, z, scale=2.0, targets=partner, ignore=torch.eye(14, dtype=torch.bool), directions="a")[
        "a_to_b"
    ]
    torch.testing.assert_close(label_contrast([a, b], torch.arange(7)), expected)


def test_contrast_without_negatives_or_positives():
    z = [x.requires_grad_() for x in latents(4, 4, rows=3)]
    found = label_contrast(z, torch.zeros(3, dtype=torch.long))
    assert float(found.detach()) == 0
    assert all(torch.isfinite(g).all() for g in gradients(found, z))
    assert float(label_contrast([z[0]], torch.arange(3)).detach()) == 0


def test_bottleneck():
    block, z = ConditionalBottleneck(3, (4, 2)), [x.requires_grad_() for x in latents(4, 2)]
    assert float(block([torch.zeros(5, 4), torch.zeros(5, 2)], torch.zeros(5, 3)).detach()) == 0
    evidence = torch.randn(9, 3, requires_grad=True)
    block(z, evidence).backward()
    assert evidence.grad is None
    assert all(x.grad.abs().max() > 0 for x in z)
    assert all(p.grad.abs().max() > 0 for p in block.parameters())


# ---- the objective


def labelled(rows=12, classes=3):
    return torch.arange(rows) % classes


def test_parts_are_the_terms():
    torch.manual_seed(0)
    mcr = MCR(3, (4, 4), contrast=0.5, bottleneck=0.1, competition=0.2, game="independent").eval()
    z, y = latents(4, 4, rows=12), labelled()
    parts = mcr(*z, labels=y)
    assert set(parts) == {"task", "unimodal", "game", "contrast", "bottleneck"}
    torch.testing.assert_close(parts["task"], nn.functional.cross_entropy(mcr.head(z), y))
    alone = sum(nn.functional.cross_entropy(h(x), y) for h, x in zip(mcr.heads, z))
    torch.testing.assert_close(parts["unimodal"], alone)
    torch.testing.assert_close(parts["game"], -0.2 * mcr.divergences.sum())
    torch.testing.assert_close(parts["contrast"], 0.5 * label_contrast(z, y))
    torch.testing.assert_close(parts["bottleneck"], 0.1 * mcr.bottleneck(z, mcr.head(z)))
    assert float(mcr.shares().sum()) == pytest.approx(1)
    mcr.on_progress(0, 100)
    assert all(float(mcr(*z, labels=y)[n].detach()) == 0 for n in ("game", "contrast", "bottleneck"))
    torch.testing.assert_close(mcr(*z, labels=y)["task"], parts["task"])


def test_without_labels_only_what_needs_none():
    mcr = MCR(3, (4, 4), contrast=0.5, contrast_by="pairs").eval()
    assert set(mcr(*latents(4, 4))) == {"game", "contrast"}
    assert float(MCR(3, (4, 4), competition=0)(*latents(4, 4))["task"].detach()) == 0


@pytest.mark.parametrize("game", ["greedy", "independent"])
def test_without_competition_it_is_multi_loss_bit_for_bit(game):
    samples = bits(80, seed=1)

    def trained(**options):
        torch.manual_seed(0)
        model = dual_tower(Perceptron([100, 8]), Perceptron([100, 8]), device="cpu")
        mcr = MCR(4, (8, 8), **options)
        train(model, pairs_of(samples), mcr, Stage(steps=4), batch_size=16, seed=3)
        return torch.cat([p.detach().flatten() for p in (*model.parameters(), *mcr.parameters())])

    assert torch.equal(trained(game=game, competition=0.0), trained(competition=0.0))
    assert not torch.equal(trained(game=game, competition=1.0, warmup=0.0), trained(competition=0.0))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_trains_with_three_modalities(head):
    torch.manual_seed(0)
    z, y = [x.requires_grad_() for x in latents(4, 5, 6, rows=12)], labelled()
    mcr = MCR(
        3, (4, 5, 6), head=head, width=8, contrast=0.1, contrast_dim=4, bottleneck=0.1, permutation="rsl", count=2
    )
    parts = mcr(z[0], z[1], c=z[2], labels=y)
    sum(parts.values()).backward()
    assert all(x.grad.abs().max() > 0 for x in z)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in mcr.parameters())
    assert mcr.predict(z).shape == (12, 3)
    assert mcr.divergences.shape == (3,)
    torch.testing.assert_close(mcr.ensemble(z).sum(1), torch.ones(12))


@pytest.mark.parametrize("distance", ["squared", "absolute"])
def test_regression(distance):
    z, y = latents(4, 4, rows=6), torch.randn(6, generator=torch.Generator().manual_seed(5))
    mcr = MCR(1, (4, 4), regression=True, distance=distance, bottleneck=0.1, bottleneck_on="labels").eval()
    parts = mcr(*z, labels=y)
    out = mcr.predict(z)[:, 0]
    torch.testing.assert_close(parts["task"], (out - y).square().mean())
    own = mcr.head.maps[0](z[0])[:, 0]
    far = (own[:, None] - own[None]).square() if distance == "squared" else (own[:, None] - own[None]).abs()
    torch.testing.assert_close(mcr.divergences[0], (far.sum() / 30).detach())


@pytest.mark.parametrize("game", ["greedy", "collaborative"])
def test_the_cap_bounds_the_gradient(game):
    torch.manual_seed(0)
    z, y = [x.requires_grad_() for x in latents(4, 4, rows=12)], labelled()
    mcr = MCR(3, (4, 4), game=game, competition=1000.0, cap=0.3, unimodal=0, permutation="all")
    parts = mcr(*z, labels=y)
    sizes = {name: torch.cat(gradients(parts[name], z)).norm() for name in ("task", "game")}
    assert float(sizes["game"] / sizes["task"]) == pytest.approx(0.3, rel=1e-3)
    mcr.competition = 1e-6
    free = torch.cat(gradients(mcr(*z, labels=y)["game"], z))
    mcr.cap = None
    torch.testing.assert_close(torch.cat(gradients(mcr(*z, labels=y)["game"], z)), free)


def test_degenerate_batches_have_results():
    for rows, y in ((1, torch.tensor([2])), (4, torch.zeros(4, dtype=torch.long))):
        same = [torch.ones(rows, 4, requires_grad=True) for _ in range(2)]
        for kind in ("rand", "rsi", "rsl", "all"):
            mcr = MCR(3, (4, 4), contrast=1, bottleneck=1, permutation=kind, cap=0.3)
            total = sum(mcr(*same, labels=y).values())
            assert torch.isfinite(total)
            assert all(torch.isfinite(g).all() for g in gradients(total, same))


# ---- protocol


def pairs_of(samples, first=None):
    sources = {
        "a": Features({"input_features": samples.first if first is None else first}),
        "b": Features({"input_features": samples.second}),
    }
    return Pairs(sources, groups=np.arange(len(samples)), per_pair={"labels": samples.labels})


def test_stages_log_and_answers():
    samples = routed(400, seed=1000)
    pairs = pairs_of(samples)
    torch.manual_seed(0)
    model = dual_tower(Perceptron([100, 16]), Perceptron([100, 16]), device="cpu")
    mcr = MCR(5, (16, 16), head="mlp", count=1)
    log = DivergenceLog(mcr)
    reports = fit(
        model,
        pairs[:300],
        mcr,
        alone=Stage("alone", epochs=6, rate=5e-3),
        together=Stage("together", epochs=2),
        validation=pairs[300:],
        callbacks=[log],
    )
    assert [r.steps for r in reports] == [60, 20]
    assert len(log.rows) > 2
    assert 0 < log.rows[-1]["a"] < math.log(2)
    figures = Answers(pairs[300:], mcr)(model)
    assert set(figures) == {"fused", "ensemble", "alone_a", "alone_b"}
    assert figures["alone_a"] > 0.4
    assert figures["ensemble"] > figures["alone_b"] - 0.05
    latents_of = Answers(pairs[300:], mcr).latents(model)
    hits = (mcr.predict(latents_of).argmax(1).numpy() == samples.labels[300:]).mean()
    assert figures["fused"] == pytest.approx(hits)


def test_training_alone_touches_no_fusion_head():
    samples = bits(60, seed=0)
    model, mcr = dual_tower(Perceptron([100, 8]), Perceptron([100, 8]), device="cpu"), MCR(4, (8, 8))
    before = {k: v.clone() for k, v in mcr.head.state_dict().items()}
    other = [p.clone() for n, p in model.named_parameters() if ".b." in n]
    train(model, pairs_of(samples), Unimodal(mcr, only=0), Stage(steps=3), batch_size=16)
    assert all(torch.equal(v, mcr.head.state_dict()[k]) for k, v in before.items())
    assert other
    assert all(torch.equal(p, q) for p, q in zip(other, (p for n, p in model.named_parameters() if ".b." in n)))
    parts = Unimodal(mcr)(*latents(8, 8), labels=labelled(9, 4))
    assert set(parts) == {"unimodal_a", "unimodal_b"}


def test_retrieval_trial_with_and_without_classes():
    rng = np.random.default_rng(0)
    sources = {
        "a": Features({"input_features": rng.standard_normal((60, 4, 8)).astype("f4")}),
        "b": Features.ragged("input_ids", rng.integers(3, 20, (60, 5))),
    }

    def towers():
        return dual_tower(
            Tower(8, width=8, layers=1, out=8), Tower(vocabulary=20, width=8, layers=1, out=8), device="cpu"
        )

    for known in ({"labels": np.arange(60) % 4 + 5}, {}):
        pairs = Pairs(sources, per_pair=known)
        trial = Trial("t", pairs[:40], pairs[40:], towers, steps=3, batch_size=8)
        _, objective = run(trial)
        assert objective.mcr.classes == (4 if known else 20)
        assert set(trial.run("mcr")) == {"a_to_b", "b_to_a"}
    clusters = classes_of(Pairs(sources, {"a": [0, 0, 1, 2], "b": [0, 1, 2, 3]}), 2)
    assert clusters[0] == clusters[1]
    a, b = latents(8, 8, rows=6)
    parts = objective(a, b, labels=labelled(6))
    for name, value in InfoNCE()(a, b).items():
        torch.testing.assert_close(parts[name], value)


def test_state_survives():
    mcr = MCR(3, (4, 4), bottleneck=0.1)
    mcr(*latents(4, 4), labels=labelled(9))
    again = MCR(3, (4, 4), bottleneck=0.1)
    again.load_state_dict(mcr.state_dict())
    assert torch.equal(again.divergences, mcr.divergences)
    assert torch.equal(again.predict(latents(4, 4)), mcr.predict(latents(4, 4)))


def test_worlds_are_what_they_say():
    world = bits(4000, seed=0)
    assert np.mean(world.told_by == 0) == pytest.approx(0.95, abs=0.02)
    # The hard modality has no linear trace of the label: class means coincide.
    means = [world.second[world.labels == c].mean(0) for c in range(4)]
    assert np.abs(np.ptp(np.stack(means), axis=0)).max() < 0.3
    easy = [world.first[world.labels == c].mean(0) for c in range(4)]
    assert np.abs(np.ptp(np.stack(easy), axis=0)).max() > 1
    assert np.array_equal(bits(50, seed=3).first, bits(50, seed=3).first)
    told = routed(3000, seed=0, shared=0.2, only_first=0.5).told_by
    assert np.bincount(told) / 3000 == pytest.approx([0.2, 0.5, 0.3], abs=0.03)
    assert replace(world, second=world.first).noise(0).shape == world.first.shape


# ---- hostile input


def test_bad_input_is_named():
    for options, name in (
        ({"head": "lineer"}, "linear"),
        ({"game": "greddy"}, "greedy"),
        ({"permutation": "rst"}, "rsl"),
        ({"distance": "square"}, "squared"),
        ({"contrast_by": "label"}, "labels"),
    ):
        with pytest.raises(UnknownName, match=name):
            MCR(3, **options)
    for options in ({"dims": (4,)}, {"dims": (4,) * 5}, {"temperature": 0}, {"warmup": 2}, {"competition": -1}):
        with pytest.raises(BadInput):
            MCR(3, **options)
    with pytest.raises(BadInput, match="contrast_dim"):
        MCR(3, (4, 5), contrast=1)
    mcr = MCR(3, (4, 4))
    with pytest.raises(BadInput, match="made for lengths"):
        mcr(*latents(4, 5))
    with pytest.raises(BadInput, match="made for 3 classes"):
        mcr(*latents(4, 4), labels=torch.full((9,), 3))
    with pytest.raises(BadInput, match="no classes"):
        mcr(*latents(4, 4), labels=torch.zeros(9))
    with pytest.raises(BadInput, match="no labels"):
        Answers(Pairs({"a": Features({"x": np.ones((2, 1))}), "b": Features({"x": np.ones((2, 1))})}), mcr)
    with pytest.raises(BadInput, match="copies"):
        bits(5, copies=20)
    with pytest.raises(BadInput, match="shared"):
        routed(5, shared=0.9, only_first=0.5)

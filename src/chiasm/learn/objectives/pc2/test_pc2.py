"""PC2: closed forms of the card, identities, the memory, the protocol, and the negative control."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch.nn import functional

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, Pairs, Stage, objective, train
from chiasm.learn.held_out import HeldOut, cosine
from chiasm.learn.objectives.pc2 import (
    PC2,
    PairMemory,
    PseudoHead,
    SplitFigures,
    class_usage,
    clean_pairs,
    co_teach,
    corrected,
    lend_captions,
    low_posterior,
    oscillation,
    pair_losses,
    soft_margin,
    triplet,
    twins,
)
from chiasm.learn.objectives.pc2.head import marginal_entropy, resized, sample_entropy
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.worlds.pairs import attributes


def unit(n, d, seed):
    return functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def naive_hard(scores, margins):
    n, total = len(scores), 0.0
    for i in range(n):
        total += max(max(0.0, float(margins[i] + scores[i, j] - scores[i, i])) for j in range(n) if j != i)
        total += max(max(0.0, float(margins[i] + scores[j, i] - scores[i, i])) for j in range(n) if j != i)
    return total


def world(rate, n=600, seed=0):
    made = attributes(100, n, prototypes=12, rate=rate, seed=seed)
    sides = [Features({"input_features": x}) for x in (made.bank_image, made.bank_text, made.image, made.text)]
    return Pairs({"a": sides[0], "b": sides[1]}), Pairs({"a": sides[2], "b": sides[3]}), made.bank_noisy


def towers():
    return dual_tower(Perceptron([48, 64, 32]), Perceptron([48, 64, 32]), device="cpu")


# ---- closed forms


def test_corrected_correspondence():
    w, u = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5]), torch.tensor([0.0, 0.9, 0.8, 0.4, 0.6])
    torch.testing.assert_close(corrected(w, u), torch.tensor([1.0, 1.0, 0.8, 0.0, 0.8]))


def test_soft_margins():
    y = torch.tensor([0.0, 0.5, 1.0])
    exponential = [0.0, 0.2 * (math.sqrt(10) - 1) / 9, 0.2]
    torch.testing.assert_close(soft_margin(y), torch.tensor(exponential))
    torch.testing.assert_close(soft_margin(y, form="linear"), torch.tensor([0.0, 0.1, 0.2]))
    torch.testing.assert_close(soft_margin(y, form="sine"), torch.tensor([0.0, 0.1, 0.2]))
    with pytest.raises(UnknownName, match="exponential"):
        soft_margin(y, form="exponentail")  # pyright: ignore


def test_oscillation_is_a_divergence_and_zero_without_a_memory():
    now = torch.tensor([[0.5, 0.5], [0.3, 0.7], [0.5, 0.5]])
    before = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.0, 0.0]])
    torch.testing.assert_close(oscillation(now, before), torch.tensor([0.5108, 0.0, 0.0]), atol=1e-4, rtol=0)
    assert oscillation(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).isfinite().all()


def test_a_caption_is_lent_by_the_image_that_is_predicted_alike():
    clean = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    index, y = lend_captions(clean[1:].clone().requires_grad_(), clean)
    assert index.tolist() == [1]
    assert not y.requires_grad
    torch.testing.assert_close(y, torch.ones(1))
    far = torch.tensor([[0.49, math.sqrt(1 - 0.49**2)]])
    _, y = lend_captions(far, torch.tensor([[1.0, 0.0]]))
    assert float(soft_margin(y)) == 0
    _, y = lend_captions(torch.tensor([[0.51, math.sqrt(1 - 0.51**2)]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(y, torch.tensor([0.51]))
    with pytest.raises(BadInput, match="no clean pair"):
        lend_captions(clean, clean[:0])


def test_entropies():
    sure = torch.eye(4)
    assert float(marginal_entropy(sure)) == pytest.approx(math.log(4))
    assert float(sample_entropy(sure)) == 0
    assert float(class_usage(sure)) == pytest.approx(1)
    assert float(class_usage(sure[:1].expand(5, -1))) == 0
    assert float(sample_entropy(torch.full((3, 4), 0.25))) == pytest.approx(math.log(4))


# ---- the hinge


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 999))
def test_hard_triplet_equals_the_naive_loop(n, seed):
    scores = unit(n, 4, seed) @ unit(n, 4, seed + 1).T
    margins = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    assert float(triplet(scores, margins).sum()) == pytest.approx(naive_hard(scores, margins), abs=1e-4)


def test_mean_triplet_counts_the_positives_as_zero_and_spares_the_group():
    scores = torch.tensor([[0.5, 0.6], [0.1, 0.2]])
    wanted = torch.tensor([(0.2 + 0.6 - 0.5) / 2, (0.2 + 0.1 - 0.2) / 2 + (0.2 + 0.6 - 0.2) / 2])
    torch.testing.assert_close(triplet(scores, 0.2, negatives="mean"), wanted)
    for negatives in ("mean", "hard"):
        assert float(triplet(scores, 0.2, groups=torch.zeros(2, dtype=torch.long), negatives=negatives).sum()) == 0
    assert float(triplet(torch.ones(1, 1), 0.2).sum()) == 0
    with pytest.raises(BadInput):
        triplet(torch.zeros(2, 3), 0.2)
    with pytest.raises(UnknownName):
        triplet(scores, 0.2, negatives="hardest")  # pyright: ignore


def test_without_head_and_split_it_is_the_plain_triplet_with_hard_negatives():
    a, b = unit(6, 5, 0), unit(6, 5, 1)
    parts = PC2(classify=0, width=5)(a, b, ids=torch.arange(6))
    assert list(parts) == ["match"]
    assert float(parts["match"]) == pytest.approx(naive_hard(a @ b.T, torch.full((6,), 0.2)), abs=1e-5)


def test_losses_of_pairs_do_not_depend_on_the_order_of_computing():
    a, b = unit(50, 8, 0), unit(50, 8, 1)
    whole = pair_losses(a, b, batch=50)
    torch.testing.assert_close(whole, triplet(a @ b.T, 0.2, negatives="mean"))
    assert pair_losses(a, b, batch=7, seed=1).isfinite().all()


# ---- the head


def test_the_head_shrinks_long_sequences_and_pads_short_ones():
    tokens = torch.arange(5.0)[None, :, None].expand(2, 5, 1).clone()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    torch.testing.assert_close(resized(tokens, mask, 3)[..., 0], torch.tensor([[0.0, 2.0, 4.0], [0.0, 1.0, 0.0]]))
    head = PseudoHead(4, 8, tokens=3)
    with torch.no_grad():
        assert head(torch.zeros(2, 1), tokens, mask).shape == (2, 4)
    moved = tokens.clone()
    moved[1, 2:] = 99
    torch.testing.assert_close(head(torch.zeros(2, 1), moved, mask)[1], head(torch.zeros(2, 1), tokens, mask)[1])
    empty = resized(tokens, torch.zeros_like(mask), 3)
    assert float(empty.abs().sum()) == 0
    with pytest.raises(BadInput, match="tokens"):
        head(torch.zeros(2, 1))


def test_the_label_carries_no_gradient():
    loss = PC2(width=5, entropy_weight=0.0)
    a, b = unit(6, 5, 0).requires_grad_(), unit(6, 5, 1).requires_grad_()
    (grad,) = torch.autograd.grad(loss(a, b)["classify"], b, allow_unused=True, materialize_grads=True)
    assert float(grad.abs().sum()) == 0
    (grad,) = torch.autograd.grad(loss(a, b)["classify"], a)
    assert float(grad.abs().sum()) > 0


# ---- the split and the memory


def test_the_mixture_finds_two_heaps_and_survives_degenerate_values():
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(0.1, 0.02, 300), rng.normal(0.5, 0.05, 200), 1e6]
    posterior = low_posterior(values)
    assert (posterior[:300] > 0.5).mean() > 0.98
    assert (posterior[300:] < 0.5).mean() > 0.98
    order = np.argsort(values)
    assert (np.diff((posterior[order] > 0.5).astype(int)) <= 0).all()
    assert (low_posterior(np.full(5, 0.3)) == 1).all()
    assert low_posterior(np.array([0.0])).tolist() == [1.0]
    for bad in (np.array([]), np.array([np.nan, 1.0])):
        with pytest.raises(BadInput):
            low_posterior(bad)


def test_a_split_without_noise_calls_one_percent_noisy():
    posterior = np.linspace(0.6, 1, 200)
    clean = clean_pairs(posterior)
    assert np.flatnonzero(~clean).tolist() == [0, 1]
    assert clean_pairs(posterior, least=0).all()
    figures = SplitFigures.of(clean, np.r_[np.ones(4, bool), np.zeros(196, bool)])
    assert figures.recall == 1
    assert figures.precision == pytest.approx(196 / 198)


def test_the_memory_is_keyed_by_the_number_of_the_pair():
    memory = PairMemory(6, 3, 2)
    first = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    memory.trained(0, torch.tensor([4, 1]), first)
    # Whatever was called clean meanwhile and in whatever order the pairs come again.
    memory.measured(0, torch.tensor([1, 2, 4]), torch.zeros(3), torch.stack([first[1], first[0], first[0]]))
    assert float(memory.drift[0, [1, 2, 4]].max()) < 1e-3
    memory.measured(0, torch.tensor([1, 4]), torch.zeros(2), first)
    assert float(memory.drift[0, [1, 4]].min()) > 0.5
    assert bool(memory.drift[1].isnan().all())


def test_the_memory_grows_and_comes_back_from_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    loss = PC2(width=5, classes=4, networks=1).train()
    loss.on_progress(0, 10)
    loss(unit(6, 5, 0), unit(6, 5, 1), ids=torch.tensor([3, 9, 1, 0, 5, 7]))
    assert len(loss.memory) == 10
    loss.memory.split()
    save_file({k: v.contiguous() for k, v in loss.state_dict().items()}, tmp_path / "x.safetensors")
    again = PC2(width=5, classes=4)
    again.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert all(torch.equal(v, loss.state_dict()[k]) or v.isnan().any() for k, v in again.state_dict().items())
    batch = unit(6, 5, 2), unit(6, 5, 3)
    ids = torch.arange(6)
    assert {k: v.item() for k, v in again.eval()(*batch, ids=ids).items()} == {
        k: v.item() for k, v in loss.eval()(*batch, ids=ids).items()
    }


def test_each_network_follows_the_split_of_the_other():
    loss = PC2(width=4, classes=4, networks=2, pairs=4, classify=0, reuse=False)
    loss.memory.splits += 1
    loss.memory.noisy[1, :2] = True
    a, b = torch.cat([unit(4, 4, 0), unit(4, 4, 1)], 1), torch.cat([unit(4, 4, 2), unit(4, 4, 3)], 1)
    got = float(loss(a, b, ids=torch.arange(4))["match"])
    full = torch.full((4,), 0.2)
    scores = [a[:, :4] @ b[:, :4].T, a[:, 4:] @ b[:, 4:].T]
    assert got == pytest.approx(naive_hard(scores[0][2:, 2:], full) + naive_hard(scores[1], full), abs=1e-4)


def test_noisy_pairs_get_a_lent_caption_only_in_the_second_phase():
    torch.manual_seed(0)
    loss = PC2(width=4, classes=4, pairs=6)
    loss.memory.splits += 1
    loss.memory.noisy[0, 3:] = True
    a, b, ids = unit(6, 4, 0), unit(6, 4, 1), torch.arange(6)
    loss.progress.fill_(0.3)
    assert loss.phase == "clean"
    assert "pseudo" not in loss(a, b, ids=ids)
    loss.progress.fill_(0.7)
    assert loss.phase == "reuse"
    leaf = b.clone().requires_grad_()
    parts = loss(a, leaf, ids=ids)
    (grad,) = torch.autograd.grad(parts["pseudo"] + parts["match"], leaf)
    # The wrong captions themselves take no part.
    assert float(grad[3:].abs().sum()) == 0
    assert float(grad[:3].abs().sum()) > 0
    loss.memory.noisy[0] = True
    assert all(bool(v.isfinite()) for v in loss(a, b, ids=ids).values())


def test_info_nce_weighs_pairs_by_their_correspondence():
    loss = PC2(width=4, pairs=4, loss="info_nce", classify=0)
    a, b = unit(4, 4, 0), unit(4, 4, 1)
    plain = objective("info-nce")(a, b)
    assert float(loss(a, b)["match"]) == pytest.approx(float(sum(plain.values())), abs=1e-5)
    loss.memory.splits += 1
    loss.memory.clean.zero_()
    loss.memory.stable.zero_()
    assert float(loss(a, b, ids=torch.arange(4))["match"]) == 0


def test_options_are_checked():
    for wrong in ({"loss": "tripel"}, {"entropy": "x"}, {"form": "x"}, {"pseudo_negatives": "x"}):
        with pytest.raises(UnknownName):
            PC2(**wrong)
    for wrong in ({"networks": 0}, {"temperature": 0}, {"warmup": 2}, {"classes": 1}, {"pairs": -1}):
        with pytest.raises(BadInput):
            PC2(**wrong)
    with pytest.raises(BadInput, match="networks"):
        PC2(networks=2)(torch.ones(2, 5), torch.ones(2, 5))
    parity = PC2(parity=True)
    assert (parity.entropy, parity.entropy_weight) == ("per_sample", 10.0)


def test_identical_pairs_one_pair_and_inputs_that_stay_as_they_are():
    loss = PC2(width=4)
    same = torch.ones(5, 4)
    before = same.clone()
    parts = loss(same, same, ids=torch.arange(5), groups=torch.arange(5))
    assert all(bool(v.isfinite()) for v in parts.values())
    assert torch.equal(same, before)
    assert all(bool(v.isfinite()) for v in loss(same[:1], same[:1]).values())


# ---- training


def test_twins_score_as_the_mean_of_their_cosines_and_load_as_any_model(tmp_path):
    _, test, _ = world(0, 50)
    torch.manual_seed(0)
    models = [towers(), towers()]
    both = twins(models, device="cpu")
    held_out = HeldOut(test)
    wanted = sum(cosine(*held_out.encoded(model)) for model in models) / 2
    torch.testing.assert_close(cosine(*held_out.encoded(both)), wanted, atol=1e-5, rtol=1e-4)
    both.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=True)
    assert torch.equal(held_out.encoded(again)[0].vectors, held_out.encoded(both)[0].vectors)
    assert again.get_embedding_dimension() == 64
    with pytest.raises(BadInput):
        twins(models[:1])


def test_co_teaching_finds_the_noise_and_selects_on_validation():
    pairs, test, noisy = world(0.4, 800)
    loss = PC2(networks=2, classes=16, hidden=32, splits=10)
    settings = {"epochs": 10, "rate": 2e-3, "batch_size": 64, "device": "cpu"}
    found = co_teach(towers, pairs, loss, validation=test, **settings)
    figures = SplitFigures.of(found.clean, noisy)
    assert figures.recall > 0.9
    assert figures.precision > 0.75
    assert [report.stage.name for report in found.reports] == ["clean", "reuse"]
    assert [report.steps for report in found.reports] == [65, 65]
    assert len(found.splits) == 10 - 1
    assert found.correspondence[noisy].mean() < found.correspondence[~noisy].mean() - 0.3
    best = found.reports[-1].best
    assert best is not None
    assert best > 300
    # The second phase goes on with the moments of the first; the memory knows every pair.
    assert len(loss.memory) == len(pairs)
    with pytest.raises(BadInput, match="networks"):
        co_teach(towers, pairs, PC2(), **settings)


def test_the_rate_falls_once_over_both_phases():
    pairs, test, _ = world(0.2, 200)
    found = co_teach(
        towers, pairs, epochs=5, batch_size=50, rate=1e-3, decay_at=0.6, validation=test, device="cpu", log_every=1
    )
    rates = [entry["learning_rate"] for report in found.reports for entry in report.history if "learning_rate" in entry]
    # The entry of the very step at which it falls still shows the rate of the step before.
    assert rates[:12] == pytest.approx([1e-3] * 12)
    assert rates[13:] == pytest.approx([1e-4] * 7)


def test_in_a_plain_training_one_network_splits_for_itself_from_the_losses_of_its_steps():
    pairs, _, noisy = world(0.4, 800)
    torch.manual_seed(0)
    model, loss = towers(), objective("pc2", classes=16, hidden=32, splits=10)
    train(model, pairs, loss, Stage(epochs=10, rate=2e-3), batch_size=64, device="cpu")
    assert int(loss.memory.splits) == 9
    figures = SplitFigures.of(~loss.memory.noisy[0].numpy(), noisy)
    assert figures.recall > 0.9
    assert figures.precision > 0.75


def test_without_noise_it_changes_little():
    pairs, test, _ = world(0, 400)
    settings = {"epochs": 6, "rate": 2e-3, "batch_size": 64, "device": "cpu"}
    options = {"classes": 16, "hidden": 32, "networks": 2, "splits": 6}
    hits = []
    for more in ({}, {"split": False, "classify": 0, "reuse": False}):
        model = co_teach(towers, pairs, PC2(**options, **more), **settings).model
        hits.append(HeldOut(test)(model)["mean_hit@10"])
    assert abs(hits[0] - hits[1]) < 0.05

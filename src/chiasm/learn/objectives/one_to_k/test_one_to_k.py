"""Identities of the 1-to-K loss, its baselines, its companions, and the consistency of ranks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, Pairs, SentenceLoss, Stage, info_nce, train
from chiasm.learn.held_out import Encoded, cosine
from chiasm.learn.objectives.one_to_k import (
    OneToK,
    choose_languages,
    choose_negatives,
    consistency,
    consistency_of,
    mask_spans,
    one_to_k,
    one_to_one,
    per_language,
    pivot,
)
from chiasm.learn.objectives.one_to_k.trial import together
from chiasm.learn.pairs import PairCollator
from chiasm.learn.towers import Tower, dual_tower
from chiasm.measure import mean_rank_variance
from chiasm.worlds.patches import patch_scenes


def unit(*shape, seed=0, dtype=torch.float64):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(rows, dim=-1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def there(n, k):
    return torch.ones(n, k, dtype=torch.bool)


def naive(v, t, present, scale, weight=1.0):
    """The card's sums with loops: i2t with target 1/K_i, t2i of every text."""
    n, k = present.shape
    logits = scale * torch.einsum("id,jkd->ijk", v, t).masked_fill(~present, -torch.inf)
    items, texts = [], []
    for i in range(n):
        mass = logits[i].flatten().logsumexp(0)
        own = [mass - logits[i, i, m] for m in range(k) if present[i, m]]
        items += [torch.stack(own).mean()] if own else []
        texts += [logits[:, i, m].logsumexp(0) - logits[i, i, m] for m in range(k) if present[i, m]]
    return (torch.stack(items).mean() + weight * torch.stack(texts).mean()) / 2


def total(losses):
    return torch.stack(list(losses.values())).sum()


# ---- the loss


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 500), n=st.integers(1, 6), k=st.integers(1, 4), gone=st.sampled_from([0.0, 0.4]))
def test_loss_equals_the_naive_sums_also_with_missing_texts(seed, n, k, gone):
    v, t = unit(n, 5, seed=seed), unit(n, k, 5, seed=seed + 1)
    present = torch.rand(n, k, generator=generator(seed)) >= gone
    present[0, 0] = True
    given = {"scale": 7.0, "groups": torch.arange(n)}
    torch.testing.assert_close(total(one_to_k(v, t, present, **given)), naive(v, t, present, 7.0))
    torch.testing.assert_close(
        total(one_to_k(v, t, present, t2i_weight="reference", **given)), naive(v, t, present, 7.0, 1 / k)
    )
    # What stands at a missing text does not matter.
    other = torch.where(present[..., None], t, unit(n, k, 5, seed=seed + 9))
    for loss in (one_to_k, pivot, per_language):
        torch.testing.assert_close(total(loss(v, other, present, **given)), total(loss(v, t, present, **given)))


def test_one_language_is_symmetric_info_nce():
    v, t = unit(6, 5), unit(6, 5, seed=1)
    losses = OneToK()(v, t)
    expected = info_nce(v, t, scale=1 / 0.07)
    for name in ("a_to_b", "b_to_a"):
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-6, atol=1e-6)
    with_view = OneToK()(v, t[:, None])
    torch.testing.assert_close(total(with_view), total(losses))


def test_copies_of_one_language_add_log_k():
    v, t, k = unit(6, 5), unit(6, 5, seed=1), 4
    given = {"scale": 10.0, "groups": torch.arange(6)}
    many = one_to_k(v, t[:, None].expand(-1, k, -1), there(6, k), **given)
    single = info_nce(v, t, scale=10.0)
    torch.testing.assert_close(many["a_to_b"], single["a_to_b"] + math.log(k) / 2)
    torch.testing.assert_close(many["b_to_a"], single["b_to_a"])


def test_closed_forms():
    v = torch.tensor([[1.0, 0.0]])
    losses = one_to_k(v, v[:, None].expand(1, 2, 2), there(1, 2), scale=1.0, groups=torch.arange(1))
    assert 2 * losses["a_to_b"].item() == pytest.approx(math.log(2))
    assert losses["b_to_a"].item() == pytest.approx(0, abs=1e-7)
    eye = torch.eye(2)
    losses = one_to_k(eye, eye[:, None], there(2, 1), scale=1.0, groups=torch.arange(2))
    assert total(losses).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 500), order=st.permutations(range(4)))
def test_order_of_the_languages_does_not_matter(seed, order):
    v, t = unit(5, 6, seed=seed), unit(5, 4, 6, seed=seed + 1)
    given = {"scale": 5.0, "groups": torch.arange(5)}
    for loss in (one_to_k, per_language):
        torch.testing.assert_close(
            total(loss(v, t[:, order], there(5, 4), **given)), total(loss(v, t, there(5, 4), **given))
        )
    ranks = np.random.default_rng(seed).integers(0, 50, (5, 4)).astype(float)
    assert mean_rank_variance(ranks[:, order]).mrv == pytest.approx(mean_rank_variance(ranks).mrv)


def test_every_language_pulls_an_item_alike():
    v, t = unit(4, 5).requires_grad_(), unit(4, 3, 5, seed=1)
    loss = one_to_k(v, t, there(4, 3), scale=3.0, groups=torch.arange(4))["a_to_b"]
    (grad,) = torch.autograd.grad(loss, v)
    p = torch.softmax(3.0 * v @ t.flatten(0, 1).T, dim=1)
    pull = 3.0 * (p @ t.flatten(0, 1) - t.mean(1)) / (2 * 4)  # all K own texts with weight 1/K
    torch.testing.assert_close(grad, pull)


def test_groups_are_no_negatives():
    v, t = unit(3, 5), unit(3, 2, 5, seed=1)
    v, t = torch.cat([v, v[:1]]), torch.cat([t, t[:1]])
    groups = torch.tensor([0, 1, 2, 0])
    losses = one_to_k(v, t, there(4, 2), scale=4.0, groups=groups)
    scores = 4.0 * v @ t.flatten(0, 1).T
    right = groups[:, None] == groups.repeat_interleave(2)[None]
    logs = scores.log_softmax(1)
    expected = -(torch.where(right, logs, torch.zeros_like(logs)).sum(1) / right.sum(1)).mean() / 2
    torch.testing.assert_close(losses["a_to_b"], expected)


# ---- the baselines


def test_baselines_are_sums_of_info_nce():
    v, t = unit(6, 5), unit(6, 3, 5, seed=1)
    given = {"scale": 6.0, "groups": torch.arange(6)}
    each = [total(info_nce(v, t[:, k], scale=6.0)) for k in range(3)]
    torch.testing.assert_close(total(per_language(v, t, there(6, 3), **given)), torch.stack(each).mean())
    others = [total(info_nce(t[:, 1], t[:, k], scale=6.0)) for k in (0, 2)]
    torch.testing.assert_close(
        total(pivot(v, t, there(6, 3), language=1, **given)), each[1] + torch.stack(others).mean()
    )


def test_one_to_one_draws_one_language_an_item_and_only_present_ones():
    v, t = unit(6, 5), unit(6, 3, 5, seed=1)
    present = there(6, 3)
    present[:, 1:] = False
    losses = one_to_one(v, t, present, scale=6.0, groups=torch.arange(6), generator=generator())
    torch.testing.assert_close(total(losses), total(info_nce(v, t[:, 0], scale=6.0)))
    found = {
        round(total(one_to_one(v, t, there(6, 3), scale=6.0, groups=torch.arange(6), generator=generator(s))).item(), 9)
        for s in range(8)
    }
    assert len(found) > 3
    objective = OneToK("1-to-1")
    first = total(objective(v, t)).item()
    assert total(objective(v, t)).item() == first
    objective.on_progress(1, 10)
    assert total(objective(v, t)).item() != first


def test_batches_without_texts_and_of_one_are_defined():
    v, t = unit(3, 5).requires_grad_(), unit(3, 2, 5, seed=1)
    for mode in ("1-to-k", "pivot", "1-to-1", "per-language"):
        losses = OneToK(mode)(v, t, b_present=torch.zeros(3, 2, dtype=torch.bool))
        assert total(losses).item() == 0
        total(losses).backward()
        own = (v[0] @ t[0].T).detach() / 0.07
        # Only in 1-to-K do the own texts compete with each other; a single text competes with nothing.
        among = own if mode == "1-to-k" else own[:1]
        expected = (among.logsumexp(0) - among.mean()).item() / 2
        assert total(OneToK(mode)(v[:1], t[:1])).item() == pytest.approx(expected, abs=1e-6)
    assert bool((v.grad == 0).all())
    same = total(OneToK()(v[:1].expand(4, -1), t[:1].expand(4, -1, -1))).item()
    assert math.isfinite(same)


def test_temperature_is_learned_within_bounds_and_saved(tmp_path):
    objective = OneToK()
    assert objective.temperature.item() == pytest.approx(0.07)
    for value, bound in ((2.0, 0.5), (1e-6, 0.001)):
        objective.temperature.data.fill_(value)
        objective.on_progress(0, 1)
        assert objective.temperature.item() == pytest.approx(bound)
    objective.temperature.data.fill_(0.03)
    total(objective(unit(4, 5), unit(4, 2, 5, seed=1))).backward()
    assert objective.temperature.grad.abs().item() > 0
    save_file({k: v.contiguous() for k, v in objective.state_dict().items()}, tmp_path / "o.safetensors")
    again = OneToK()
    again.load_state_dict(load_file(tmp_path / "o.safetensors"))
    given = unit(4, 5), unit(4, 2, 5, seed=1)
    assert torch.equal(total(again(*given)), total(objective(*given)))


def test_bad_input_is_named():
    with pytest.raises(UnknownName, match="1-to-k"):
        OneToK("one-to-k")
    with pytest.raises(UnknownName, match="reference"):
        OneToK(t2i_weight="referense")
    with pytest.raises(UnknownName, match="worst"):
        OneToK(choice="worse")
    with pytest.raises(BadInput, match="layers"):
        OneToK(vocabulary=10)
    with pytest.raises(BadInput, match=r"\[N, K, D\]"):
        OneToK()(unit(4, 5), unit(3, 2, 5))
    with pytest.raises(BadInput, match="tokens"):
        OneToK(layers=1, width=8, heads=2)(unit(4, 5), unit(4, 2, 5))


# ---- which language, which negatives


def test_languages_that_match_worst_are_drawn_more():
    present = there(2, 2)
    scores = torch.tensor([[5.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    drawn = torch.stack([choose_languages(scores, present, generator(s)) for s in range(300)])
    p = torch.softmax(scores, 1)
    weight = p.max() + 1e-5 - p[0, :2]
    assert float(drawn[:, 0].float().mean()) == pytest.approx(float(weight[1] / weight.sum()), abs=0.06)
    assert float(drawn[:, 1].float().mean()) == pytest.approx(0.5, abs=0.1)
    uniform = torch.stack([choose_languages(scores, present, generator(s), "uniform") for s in range(300)])
    assert float(uniform[:, 0].float().mean()) == pytest.approx(0.5, abs=0.1)
    raw = torch.stack([choose_languages(scores, present, generator(s), "worst-similarity") for s in range(300)])
    assert float(raw[:, 0].float().mean()) > 0.95
    present[1] = False
    present[0, 1] = False
    for choice in ("uniform", "worst", "worst-similarity"):
        assert choose_languages(scores, present, generator(), choice).tolist() == [0, -1]


def test_hard_negatives_are_never_the_own_ones():
    n, k = 5, 3
    scores = torch.randn(n, n * k, generator=generator())
    present = there(n, k)
    present[2, 1:] = False
    groups = torch.tensor([0, 1, 2, 3, 0])
    chosen = choose_languages(scores, present, generator())
    for seed in range(50):
        text, item = choose_negatives(scores, present, chosen, groups, generator(seed))
        assert bool((groups[text // k] != groups).all())
        assert bool(present.flatten()[text].all())
        assert bool((groups[item] != groups).all())
    hard = scores.clone()
    hard[0, 4] = 30.0
    assert int(choose_negatives(hard, present, chosen, groups, generator())[0][0]) == 4
    alone = choose_negatives(scores[:1, :k], present[:1], chosen[:1], groups[:1], generator())
    assert [int(x[0]) for x in alone] == [-1, -1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 500), length=st.integers(1, 60), share=st.sampled_from([0.0, 0.4, 1.0]))
def test_masking_hides_the_right_number_of_words(seed, length, share):
    ids = torch.randint(3, 50, (4, length), generator=generator(seed))
    mask = torch.arange(length)[None] < torch.tensor([length, max(1, length // 2), 1, 0])[:, None]
    before = ids.clone()
    new, hidden = mask_spans(ids, mask, generator(seed), vocabulary=50, share=share)
    assert torch.equal(ids, before)
    words = mask.sum(1).clamp(max=40)
    expected = (words * share).round().long().clamp(1, 12).minimum(words)
    assert torch.equal(hidden.sum(1), expected)
    assert not bool((hidden & ~mask).any())
    assert not bool(hidden[:, 40:].any())
    assert torch.equal(new[~hidden], ids[~hidden])
    assert bool(((new[hidden] == 2) | (new[hidden] >= 3)).all())


def test_spans_hide_neighbors():
    ids = torch.full((400, 20), 7)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def neighbors(chance):
        hidden = mask_spans(ids, mask, generator(), share=0.15, span_chance=chance)[1]
        return float((hidden[:, 1:] & hidden[:, :-1]).sum(1).float().mean())

    assert neighbors(1.0) > neighbors(0.0) + 0.5
    new, hidden = mask_spans(ids, mask, generator(), vocabulary=100)
    assert float((new[hidden] == 2).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((new[hidden] == 7).float().mean()) == pytest.approx(0.11, abs=0.03)


# ---- the companions


def companions(seed=0, n=4, k=2, **options):
    torch.manual_seed(seed)
    objective = OneToK(layers=1, width=8, heads=2, vocabulary=20, warmup=0.0, **options)
    table = torch.nn.Embedding(20, 8)
    ids = torch.randint(3, 20, (n, k, 5), generator=generator(seed))
    mask = torch.ones(n, k, 5, dtype=torch.bool)
    mask[:, 1, 3:] = False

    def encode(inputs):
        return {"token_embeddings": table(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]}

    given = {
        "a_tokens": torch.randn(n, 6, 8, generator=generator(seed + 1)).requires_grad_(),
        "b_tokens": table(ids),
        "b_mask": mask,
        "b_inputs": {"input_ids": ids, "attention_mask": mask, "task": "b"},
        "encode": encode,
    }
    return objective, (unit(n, 8, dtype=torch.float32), unit(n, k, 8, seed=3, dtype=torch.float32)), given


@pytest.mark.parametrize("choice", ["uniform", "worst", "worst-similarity"])
def test_companions_reach_every_parameter(choice):
    objective, vectors, given = companions(choice=choice)
    losses = objective(*vectors, **given)
    assert set(losses) == {"a_to_b", "b_to_a", "matching", "masked_words"}
    total(losses).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert float(given["a_tokens"].grad.abs().sum()) > 0
    assert torch.equal(total(objective(*vectors, **given)), total(losses))


def test_companions_rise_with_the_training():
    objective, vectors, given = companions()
    full = objective(*vectors, **given)["matching"].item()
    objective.warmup = 0.5
    assert objective(*vectors, **given)["matching"].item() == 0
    objective.progress.fill_(0.25)
    assert objective(*vectors, **given)["matching"].item() == pytest.approx(full / 2, rel=1e-5)


def test_companions_with_missing_texts_or_one_item():
    objective, vectors, given = companions()
    present = there(4, 2)
    present[0] = False
    assert math.isfinite(total(objective(*vectors, b_present=present, **given)).item())
    nothing = objective(*vectors, b_present=torch.zeros(4, 2, dtype=torch.bool), **given)
    assert nothing["matching"].item() == nothing["masked_words"].item() == 0
    objective, vectors, given = companions(n=1)
    assert objective(*vectors, **given)["matching"].item() == 0


def test_matching_head_learns_and_reranks():
    torch.manual_seed(0)
    objective = OneToK(layers=1, width=8, heads=2, warmup=0.0)
    codes = torch.randn(6, 1, 8, generator=generator())
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    uninformative = torch.ones(6, 8)
    for step in range(150):
        objective.on_progress(step, 150)
        loss = objective(uninformative, uninformative, a_tokens=codes, b_tokens=codes)["matching"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    items = Encoded(uninformative, codes)
    scores = objective.rerank(items, items, k=6)
    assert bool((scores.argmax(1) == torch.arange(6)).all())
    few = objective.rerank(items, items, "b", k=2)
    assert int((few > 1.5).sum()) == 12
    torch.testing.assert_close(few[few < 1.5], cosine(items, items)[few < 1.5])
    with pytest.raises(BadInput, match="fusion"):
        OneToK().rerank(items, items)


# ---- consistency of ranks


def test_rank_variance_in_closed_form():
    found = mean_rank_variance(np.array([[0.0, 0.0], [2.0, 4.0]]))
    assert (found.mrv, found.mrsd) == (0.5, 0.5)
    found = mean_rank_variance(np.array([[0.0, 4.0]]))
    assert (found.mrv, found.mrsd) == (4.0, 2.0)
    assert mean_rank_variance(np.array([[0.0, 400.0]]), clip=100).mrv == 2500


def test_consistency_ranks_by_hand():
    a = Encoded(torch.eye(3))
    texts = {"x": Encoded(torch.eye(3)), "y": Encoded(torch.eye(3)[[1, 0, 2]])}
    present = {"x": np.ones(3, bool), "y": np.ones(3, bool)}
    found = consistency_of(a, texts, present, np.arange(3))
    # Language y swaps the first two: their right item ties with a wrong one at cosine 0 and so comes last.
    assert found["b_to_a"].ranks.tolist() == [[1, 3], [1, 3], [1, 1]]
    assert found["b_to_a"].variance().mrv == pytest.approx(2 / 3)
    assert found["a_to_b"].recall("hit@1").tolist() == [1.0, pytest.approx(1 / 3)]
    assert found["a_to_b"].spread("hit@1") == pytest.approx(2 / 3)
    collapsed = consistency_of(
        Encoded(torch.ones(3, 2)), {"x": Encoded(torch.ones(3, 2))}, {"x": present["x"]}, np.arange(3)
    )
    assert collapsed["a_to_b"].recall("hit@1").tolist() == [0.0]
    partly = {"x": present["x"], "y": np.array([True, False, True])}
    texts["y"] = Encoded(torch.eye(3)[[1, 2]])
    found = consistency_of(a, texts, partly, np.arange(3))
    assert np.isnan(found["b_to_a"].ranks[1, 1])
    assert found["b_to_a"].ranks[2].tolist() == [1, 1]


def test_training_with_views_and_missing_ones():
    world = patch_scenes(96, seed=0, languages=2)
    sources = {
        "a": Features({"input_features": world.patches}),
        "b": Features({"input_ids": np.concatenate(world.captions)}),
    }
    second = np.where(np.arange(96) % 3 == 0, -1, 96 + np.arange(96))
    pairs = Pairs(sources, {"a": np.arange(96), "b/en": np.arange(96), "b/de": second})
    torch.manual_seed(0)
    small = {"layers": 0, "width": 16, "out": 16}
    model = dual_tower(Tower(32, **small), Tower(vocabulary=world.vocabulary, **small), device="cpu")
    objective = OneToK(layers=1, width=16, vocabulary=world.vocabulary)
    report = train(model, pairs, objective, Stage(steps=25, rate=1e-2), batch_size=32, log_every=1, device="cpu")
    assert np.mean(report.losses[-3:]) < np.mean(report.losses[4:7])
    found = consistency(model, pairs, batch_size=40)
    assert found["a_to_b"].languages == ("en", "de")
    assert int(np.isnan(found["b_to_a"].ranks[:, 1]).sum()) == 32
    assert found["b_to_a"].recall("hit@10").min() > 0.15
    with pytest.raises(BadInput, match="views"):
        consistency(model, Pairs(sources, {"a": np.arange(96), "b": np.arange(96)}))


class Recorder(torch.nn.Module):
    """An objective that keeps what it was given."""

    def forward(self, a, b, *, b_present=None, b_tokens=None, b_mask=None, b_inputs=None):
        self.given = {"b": b, "b_present": b_present, "b_tokens": b_tokens, "b_mask": b_mask, "b_inputs": b_inputs}
        return {"loss": a.sum() * 0}


def test_views_are_encoded_in_one_call_as_each_on_its_own():
    short = [np.array([3, 4]), np.array([5]), np.array([6, 7])]
    long = [np.array([8, 9, 10, 11]), np.array([12, 13]), np.array([3])]
    sources = {
        "a": Features({"input_features": np.ones((3, 4), np.float32)}),
        "b": Features.ragged("input_ids", short + long),
    }
    pairs = Pairs(sources, {"a": np.arange(3), "b/x": np.arange(3), "b/y": np.array([3, -1, 5])})
    torch.manual_seed(0)
    model = dual_tower(Tower(4, layers=0), Tower(vocabulary=20, layers=1), device="cpu").eval()
    recorder = Recorder()
    batch = PairCollator(pairs)([{"a": i, "b/x": i, "b/y": int(pairs.rows["b/y"][i]), "label": i} for i in range(3)])
    features = [
        {name.removeprefix(f"{c}_"): v for name, v in batch.items() if name.startswith(f"{c}_")} for c in pairs.columns
    ]
    SentenceLoss(model, recorder, pairs)(features, batch["label"])
    given = recorder.given
    assert given["b_present"].tolist() == [[True, True], [True, False], [True, True]]
    assert given["b_tokens"].shape == (3, 2, 4, 64)
    assert given["b_mask"].sum(-1).tolist() == [[2, 4], [1, 2], [2, 1]]
    for k, inputs in enumerate(features[1:]):
        alone = model(dict(inputs))
        torch.testing.assert_close(given["b"][:, k], alone["sentence_embedding"])
        length = alone["token_embeddings"].shape[1]
        there = given["b_mask"][:, k, :length]
        torch.testing.assert_close(given["b_tokens"][:, k, :length][there], alone["token_embeddings"][there])
        assert torch.equal(given["b_inputs"]["input_ids"][:, k, :length], inputs["input_ids"])
    # A route of its own for one view gives the same.
    other = [features[0], features[1], {**features[2], "task": "b "}]
    routed = SentenceLoss(lambda x: model({**x, "task": x["task"].strip()}), recorder, pairs)
    before = given["b"]
    routed(other, batch["label"])
    torch.testing.assert_close(recorder.given["b"], before)


def test_captions_of_a_picture_become_its_views():
    sources = {
        "a": Features({"input_features": np.ones((3, 4), np.float32)}),
        "b": Features({"input_ids": np.ones((6, 2))}),
    }
    pairs = Pairs(
        sources,
        {"a": np.array([2, 0, 2, 1, 2]), "b": np.array([5, 4, 3, 2, 1])},
        per_pair={"labels": np.array([7, 8, 7, 9, 7])},
    )
    found = together(pairs)
    assert found.rows["a"].tolist() == [0, 1, 2]
    assert np.stack([found.rows[f"b/{k}"] for k in range(3)], 1).tolist() == [[4, -1, -1], [2, -1, -1], [5, 3, 1]]
    assert found.per_pair["labels"].tolist() == [8, 9, 7]
    assert found.groups.tolist() == [0, 1, 2]

"""Identities and properties of triple contrast."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput
from chiasm.learn import Features, Pairs, SentenceLoss, Stage, info_nce, train
from chiasm.learn.held_out import Encoded, cosine
from chiasm.learn.objectives.tcl import (
    VIEW_ROUTES,
    Augmented,
    FusedTripleContrast,
    TripleContrast,
    cells,
    local_contrast,
    masked_words,
    two_views,
)
from chiasm.learn.objectives.tcl import trial as tcl_trial
from chiasm.learn.pairs import PairCollator
from chiasm.learn.towers import Tower, dual_tower
from chiasm.learn.trial import Trial
from chiasm.learn.words import MASK

WORDS = 12


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def pairs(n: int = 24) -> Pairs:
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((n, 9, 5)).astype(np.float32)
    words = [rng.integers(3, WORDS, size=2 + i % 4) for i in range(n)]
    return Pairs({"a": Features({"input_features": patches}), "b": Features.ragged("input_ids", words)})


def towers(seed: int = 0):
    torch.manual_seed(seed)
    return dual_tower(
        Tower(5, width=16, layers=1, out=16), Tower(vocabulary=WORDS, width=16, layers=1, out=16), device="cpu"
    )


def total(losses) -> torch.Tensor:
    return torch.stack([*losses.values()]).sum()


# ---- CMA


def test_without_extras_it_is_info_nce_against_the_momentum_vectors():
    v, t, v_hat, t_hat = (unit(6, 4, seed=k) for k in range(4))
    objective = TripleContrast(w_imc=0, w_lmi=0, alpha=0, queue=8, temperature=0.1).eval()
    found = objective(v, t, a_momentum=v_hat, b_momentum=t_hat)
    labels = torch.arange(6)
    by_hand = [torch.nn.functional.cross_entropy(x @ y.T / 0.1, labels) for x, y in ((v, t_hat), (t, v_hat))]
    assert set(found) == {"cma"}
    torch.testing.assert_close(found["cma"], (by_hand[0] + by_hand[1]) / 2)
    plain = torch.stack([*info_nce(v, t, scale=10.0).values()]).sum()
    torch.testing.assert_close(objective(v, t)["cma"], plain)


def test_soft_targets_mix_the_teachers_opinion():
    v, t, v_hat, t_hat = (unit(5, 4, seed=k) for k in range(4))
    objective = TripleContrast(w_imc=0, w_lmi=0, alpha=0.4, temperature=0.2).eval()
    expected = torch.zeros(())
    for x, hat, bank in ((v, v_hat, t_hat), (t, t_hat, v_hat)):
        target = 0.4 * (hat @ bank.T / 0.2).softmax(1) + 0.6 * torch.eye(5)
        expected = expected - (target * (x @ bank.T / 0.2).log_softmax(1)).sum(1).mean() / 2
    torch.testing.assert_close(objective(v, t, a_momentum=v_hat, b_momentum=t_hat)["cma"], expected)


def test_alpha_rises_and_the_other_terms_begin_late():
    objective = TripleContrast(alpha=0.4, alpha_ramp=0.1, aux_start=0.5)
    v, t = unit(5, 4), unit(5, 4, seed=1)
    seen = []
    for step in (0, 5, 10, 50, 99):
        objective.on_progress(step, 100)
        seen.append((round(objective.current_alpha, 3), sorted(objective.eval()(v, t))))
    assert [alpha for alpha, _ in seen] == [0.0, 0.2, 0.4, 0.4, 0.4]
    assert [names for _, names in seen] == [["cma"]] * 3 + [["cma", "imc"]] * 2
    paper = TripleContrast(parity=True)
    paper.on_progress(0, 100)
    assert "imc" in paper.eval()(v, t)


def test_pairs_of_one_id_share_the_target():
    v, t = unit(4, 6), unit(4, 6, seed=1)
    groups = torch.tensor([0, 0, 1, 2])
    objective = TripleContrast(w_imc=0, w_lmi=0, alpha=0, temperature=0.1).eval()
    share = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    expected = sum(-(share * (x @ y.T / 0.1).log_softmax(1)).sum(1).mean() / 2 for x, y in ((v, t), (t, v)))
    torch.testing.assert_close(objective(v, t, groups=groups)["cma"], expected)
    # With distillation of weight 0+ the other path gives the same.
    objective.alpha = 1e-9
    torch.testing.assert_close(objective(v, t, groups=groups)["cma"], expected)


def test_the_queue_holds_the_last_vectors_and_their_ids_count_as_positives():
    objective = TripleContrast(queue=5, w_lmi=0, momentum=0.9).train()
    batches = [unit(3, 4, seed=k) for k in range(4)]
    for k, batch in enumerate(batches):
        objective(batch, batch, groups=torch.arange(3) + 10 * k)
    assert objective.queue_a is not None
    vectors, ids = objective.queue_a.get()
    assert sorted(ids.tolist()) == [21, 22, 30, 31, 32]
    order = torch.argsort(ids)
    torch.testing.assert_close(vectors[order], torch.cat(batches)[7:])
    v = unit(2, 4, seed=9)
    objective.eval()
    old = objective(v, v, groups=torch.tensor([31, 99]))["imc"]
    new = objective(v, v, groups=torch.tensor([98, 99]))["imc"]
    assert not torch.allclose(old, new)
    assert torch.equal(objective.queue_a.get()[0], vectors)


# ---- LMI


def literal(v: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, scale: float) -> float:
    out = []
    for i in range(len(v)):
        losses = []
        for k in range(tokens.shape[1]):
            if not mask[i, k]:
                continue
            positive = np.exp(scale * float(v[i] @ tokens[i, k]))
            negative = sum(
                np.exp(scale * float(v[i] @ tokens[j, q]))
                for j, q in itertools.product(range(len(v)), range(tokens.shape[1]))
                if j != i and mask[j, q]
            )
            losses.append(-np.log(positive / (positive + negative)))
        if losses:
            out.append(np.mean(losses))
    return float(np.mean(out)) if out else 0.0


@settings(max_examples=20, deadline=None)
@given(b=st.integers(1, 5), n=st.integers(1, 4), seed=st.integers(0, 99), chunk=st.sampled_from([None, 1, 2]))
def test_local_contrast_is_the_double_loop(b, n, seed, chunk):
    v, tokens = unit(b, 6, seed=seed), unit(b, n, 6, seed=seed + 100)
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) < 0.7
    got = local_contrast(v, tokens, mask, scale=3.0, chunk=chunk)
    assert float(got) == pytest.approx(literal(v, tokens, mask, 3.0), abs=1e-5)


def test_local_contrast_in_closed_form():
    v = torch.eye(2)
    assert float(local_contrast(v, v[:, None], scale=1.0)) == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)


def test_local_contrast_keeps_its_gradients_where_they_belong():
    v, tokens = unit(4, 6).requires_grad_(), unit(4, 3, 6).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    mask = torch.tensor([[True] * 3, [True, False, False], [False] * 3, [True] * 3])
    local_contrast(v, tokens, mask, scale=scale).backward()
    assert tokens.grad is None
    assert v.grad is not None
    assert scale.grad is not None
    assert torch.isfinite(v.grad).all()
    assert float(scale.grad) != 0


def test_padding_and_empty_rows_do_not_matter():
    v, tokens = unit(3, 6), unit(3, 2, 6, seed=1)
    mask = torch.ones(3, 2, dtype=torch.bool)
    padded = torch.cat([tokens, 7 * unit(3, 1, 6, seed=2)], dim=1)
    longer = torch.cat([mask, torch.zeros(3, 1, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(local_contrast(v, padded, longer), local_contrast(v, tokens, mask))
    alone = v[:1].clone().requires_grad_()
    loss = local_contrast(alone, tokens[:1])
    loss.backward()
    assert float(loss.detach()) == 0
    assert alone.grad is not None
    assert torch.isfinite(alone.grad).all()
    assert float(local_contrast(v, tokens, ~mask)) == 0
    assert float(local_contrast(v, tokens, same=torch.ones(3, 3, dtype=torch.bool))) == 0


def test_cells_are_block_means_of_any_raster():
    tokens = torch.arange(36.0).reshape(1, 36, 1)
    got, there = cells(tokens, side=3)
    raster = tokens.reshape(3, 2, 3, 2)
    torch.testing.assert_close(got[0, :, 0], raster.mean((1, 3)).flatten())
    assert there.all()
    torch.testing.assert_close(cells(tokens, side=6)[0], tokens)
    torch.testing.assert_close(cells(tokens, side=9)[0], tokens)
    assert cells(torch.zeros(2, 50, 3), side=4)[0].shape == (2, 16, 3)
    mask = torch.ones(1, 36, dtype=torch.bool)
    mask[0, [0, 1, 6, 7]] = False  # the first cell
    mask[0, 2] = False
    got, there = cells(tokens, mask, side=3)
    assert there[0].tolist() == [False] + [True] * 8
    assert float(got[0, 1, 0]) == pytest.approx((3 + 8 + 9) / 3)


# ---- views


def test_views_differ_keep_a_word_and_leave_the_source_alone():
    source = pairs()
    first = source.source("b").batch([0, 1, 2, 3])["input_ids"].clone()
    view = Augmented(source.source("b"), mask_rate=1.0, seed=0).batch([0, 1, 2, 3])
    assert ((view["input_ids"] > MASK).sum(1) == 1).all()
    assert (view["input_ids"][~view["attention_mask"]] == 0).all()
    assert torch.equal(source.source("b").batch([0, 1, 2, 3])["input_ids"], first)
    left, right = (Augmented(source.source("a"), seed=s) for s in (0, 0))
    assert torch.equal(left.batch([1])["input_features"], right.batch([1])["input_features"])
    assert not torch.equal(left.batch([1])["input_features"], right.batch([2])["input_features"])
    doubled = Augmented(source.source("a"), augment=lambda batch, _: {**batch, "input_features": batch["rows"]})
    assert doubled.batch([3])["input_features"].tolist() == [3]


class Spy(TripleContrast):
    """Keeps what it was given."""

    def forward(self, a, b, **given):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.given = given
        return super().forward(a, b, **given)

    forward.__signature__ = __import__("inspect").signature(TripleContrast.forward)  # pyright: ignore


def test_the_second_view_goes_through_the_momentum_encoder_only():
    views = two_views(pairs(), seed=1)
    model, objective = towers(), Spy(momentum=0.0)
    loss = SentenceLoss(model, objective, views)
    assert loss.columns == ["a", "b", "a2", "b2"]
    batch = PairCollator(views, VIEW_ROUTES)(list(views[:6].dataset()))
    columns = [{k.removeprefix(f"{c}_"): v for k, v in batch.items() if k.startswith(f"{c}_")} for c in views.columns]
    assert loss.teacher is not None  # made before the hook, which its copy would take along
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = loss(columns, batch["label"])
    handle.remove()
    assert len(calls) == 2
    assert set(found) == {"cma", "imc", "lmi"}
    given = objective.given
    assert not given["a2_momentum"].requires_grad
    # Momentum 0: the teacher is the student, so on the first view they agree, on the second they do not.
    out = model({**columns[0]})["sentence_embedding"]
    torch.testing.assert_close(given["a_momentum"], out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(given["a2_momentum"], out, atol=1e-3)


@pytest.mark.parametrize(("momentum", "same"), [(1.0, True), (0.5, False)])
def test_training_moves_the_momentum_encoder_as_it_should(momentum, same):
    model, first = towers(), towers()
    objective = TripleContrast(momentum=momentum, queue=16, aux_start=0)
    views = two_views(pairs())
    loss = SentenceLoss(model, objective, views)
    train(model, views, objective, Stage(steps=4), loss=loss, batch_size=8, routes=VIEW_ROUTES, device="cpu")
    teacher = loss.teacher.teacher
    stayed = all(torch.equal(p, q) for p, q in zip(teacher.parameters(), first.parameters(), strict=True))
    assert stayed == same
    assert objective.queue_b is not None
    assert len(objective.queue_b) == 16
    assert objective.temperature.detach() != pytest.approx(0.07)


# ---- fusion


def fused(**options) -> FusedTripleContrast:
    torch.manual_seed(0)
    return FusedTripleContrast(WORDS, width=16, layers=1, queue=8, **options)


def encoded(n: int, length: int, seed: int) -> Encoded:
    mask = torch.arange(length)[None, :] < 1 + torch.arange(n)[:, None] % length
    return Encoded(unit(n, 16, seed=seed), unit(n, length, 16, seed=seed + 50), mask)


def test_re_ranking_all_is_the_ranking_by_matching():
    objective, a, b = fused(rerank=100, pairs_at_once=3).eval(), encoded(4, 3, 0), encoded(5, 2, 1)
    left, right = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"))
    logits = objective._logits(a, b, left, right).detach()
    odds = (logits[:, 1] - logits[:, 0]).view(4, 5)
    for direction in ("a", "b"):
        torch.testing.assert_close(objective.similarity(a, b, direction), odds)
    objective.rerank = 2
    scores, plain = objective.similarity(a, b, "a"), cosine(a, b)
    top = plain.topk(2, dim=1).indices
    torch.testing.assert_close(scores.gather(1, top), odds.gather(1, top))
    assert torch.equal(scores.topk(2, dim=1).indices.sort(1).values, top.sort(1).values)
    rest = torch.ones_like(plain, dtype=torch.bool).scatter(1, top, False)
    kept = scores[rest].view(4, 3).argsort(1), plain[rest].view(4, 3).argsort(1)
    assert torch.equal(*kept)
    assert objective.similarity(a, b, "b").shape == (4, 5)


def test_wrong_pairs_are_never_of_the_same_group():
    objective, seen = fused(), []
    objective._logits = lambda a, b, left, right: seen.append((left, right)) or torch.zeros(len(left), 2)
    a, b = encoded(6, 3, 0), encoded(6, 2, 1)
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    for _ in range(20):
        loss = objective.matching(a, b, groups)
        left, right = seen.pop()
        assert len(left) == 18
        assert (groups[left[6:]] != groups[right[6:]]).all()
        assert torch.equal(left[:6], right[:6])
        assert float(loss) == pytest.approx(np.log(2))
    objective.matching(a, b, torch.zeros(6))
    assert len(seen.pop()[0]) == 6


def test_hidden_words_are_drawn_as_in_bert():
    ids = torch.randint(3, WORDS, (400, 10), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 0
    there = ids > 0
    shown, hidden = masked_words(ids, there, WORDS, 0.15, torch.Generator().manual_seed(1))
    assert not hidden[:, -1].any()
    assert torch.equal(shown[~hidden], ids[~hidden])
    assert float(hidden[there].float().mean()) == pytest.approx(0.15, abs=0.02)
    assert float((shown[hidden] == MASK).float().mean()) == pytest.approx(0.8, abs=0.06)
    assert (shown[there] > 1).all()
    assert not masked_words(ids, there, WORDS, 0.0)[1].any()


def test_all_losses_train_and_survive_saving():
    model, objective = towers(), fused(aux_start=0.0)
    views = two_views(pairs())
    before = copy.deepcopy(objective.state_dict())
    report = train(model, views, objective, Stage(steps=6), batch_size=8, routes=VIEW_ROUTES, device="cpu", log_every=1)
    assert {"cma", "imc", "lmi", "itm", "mlm"} <= set().union(*report.history)
    state = objective.state_dict()
    for name in ("match.weight", "word.weight", "fusion.norm.weight", "word_hat.teacher.weight", "temperature"):
        assert not torch.equal(state[name], before[name]), name
    again = fused()
    again.load_state_dict(state)
    assert again.queue_a is not None
    assert torch.equal(again.queue_a.vectors, state["queue_a.vectors"])
    a, b = encoded(4, 3, 0), encoded(4, 2, 1)
    assert torch.equal(again.eval().similarity(a, b), objective.eval().similarity(a, b))


def test_the_momentum_heads_follow():
    objective = fused(momentum=0.0, w_mlm=0, w_itm=0).train()
    with torch.no_grad():
        objective.word.weight.add_(1)
    objective(unit(3, 16), unit(3, 16))
    assert torch.equal(objective.word_hat.teacher.weight, objective.word.weight)


# ---- bad input, the trial


def test_hostile_input():
    for options in ({"w_imc": -1}, {"alpha": 2}, {"temperature": 0}, {"momentum": 1.1}, {"side": 0}):
        with pytest.raises(BadInput):
            TripleContrast(**options)
    with pytest.raises(BadInput, match="shapes"):
        TripleContrast()(unit(2, 3), unit(3, 3))
    with pytest.raises(BadInput, match="local features"):
        local_contrast(unit(2, 3), unit(2, 4, 5))
    with pytest.raises(BadInput, match="noise"):
        Augmented(pairs().source("a"), noise=-1)
    with pytest.raises(BadInput, match="vocabulary"):
        FusedTripleContrast(2)
    with pytest.raises(BadInput, match="tokens"):
        fused().similarity(Encoded(unit(2, 16)), Encoded(unit(2, 16)))
    same = torch.ones(3, 4, requires_grad=True)
    loss = total(TripleContrast().train()(same, same))
    loss.backward()
    assert torch.isfinite(loss)
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_the_trial_runs():
    trial = Trial("tiny", pairs(), pairs(), towers, steps=4, batch_size=8)
    model, objective = tcl_trial.run(trial)
    assert isinstance(objective, TripleContrast)
    assert objective.queue_a is not None
    assert not any(
        torch.equal(p, q) for p, q in zip(model.parameters(), towers().parameters(), strict=True) if p.ndim > 1
    )

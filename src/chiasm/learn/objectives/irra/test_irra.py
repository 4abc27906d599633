from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, Pairs, SeveralPerGroup, Stage, train
from chiasm.learn.objectives.irra import (
    IRRA,
    RelationReasoning,
    cmpm,
    faster_heads,
    mask_words,
    match_targets,
    sdm,
)
from chiasm.learn.towers import Perceptron, Tower, dual_tower
from chiasm.learn.words import MASK, PAD, UNKNOWN
from chiasm.worlds.pairs import identities
from chiasm.worlds.patches import patch_scenes


def vectors(n: int = 8, dim: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator)


def naive_sdm(a: torch.Tensor, b: torch.Tensor, match: list[list[float]], scale: float, eps: float = 1e-8) -> float:
    """The definition with plain loops in double precision."""
    a, b = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (a, b))
    n, total = len(a), 0.0
    for rows, columns in ((a, b), (b, a)):
        for i in range(n):
            scores = [scale * float(rows[i] @ columns[j]) for j in range(n)]
            top = max(scores)
            log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
            for j in range(n):
                q = match[i][j] / sum(match[i])
                p = math.exp(scores[j] - log_sum)
                total += p * (scores[j] - log_sum - math.log(q + eps)) / n
    return total


# ---- SDM


def test_sdm_on_two_pairs_has_the_closed_form():
    eye = torch.eye(2)
    near, far = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    expected = 2 * (near * math.log(near) + far * (math.log(far) - math.log(1e-8)))
    assert expected == pytest.approx(8.7438, abs=1e-3)
    assert float(sdm(eye, eye, scale=1.0)) == pytest.approx(expected, abs=1e-4)
    assert abs(float(sdm(eye, eye, scale=50.0))) < 1e-6


def test_sdm_equals_plain_loops():
    a, b = vectors()
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4])
    images = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    match = [
        [(1.0 if images[i] == images[j] else 0.3) if groups[i] == groups[j] else 0.0 for j in range(8)]
        for i in range(8)
    ]
    loss = float(sdm(a, b, match_targets(groups, images, 0.3), scale=7.0))
    assert loss == pytest.approx(naive_sdm(a, b, match, 7.0), rel=1e-5)


def test_sdm_of_equal_vectors_of_one_identity_is_zero():
    same = torch.ones(5, 4)
    assert abs(float(sdm(same, same, match_targets(torch.zeros(5, dtype=torch.long))))) < 1e-6


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.5, 100))
@settings(max_examples=40, deadline=None)
def test_sdm_is_a_divergence_and_does_not_depend_on_the_order(seed: int, n: int, scale: float):
    a, b = vectors(n, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, 3, (n,), generator=generator)
    loss = sdm(a, b, match_targets(groups), scale=scale)
    assert float(loss) >= -1e-5
    order = torch.randperm(n, generator=generator)
    moved = sdm(a[order], b[order], match_targets(groups[order]), scale=scale)
    torch.testing.assert_close(moved, loss, rtol=1e-4, atol=1e-5)


def test_mass_on_one_of_two_positives_is_nearly_free_but_not_for_cross_entropy():
    """Mode seeking: KL(p || q) of p = (1, 0), q = (1/2, 1/2) is log 2; a wrong item costs 18.4 nats."""
    from chiasm.learn import info_nce

    # Each vector lies on its partner and away from the other member of its identity.
    a = b = torch.eye(4)
    targets = match_targets(torch.tensor([0, 0, 1, 1]))
    assert float(sdm(a, b, targets)) == pytest.approx(2 * math.log(2), abs=1e-5)
    forward = sum(info_nce(a, b, scale=50.0, groups=torch.tensor([0, 0, 1, 1])).values())
    assert float(forward) == pytest.approx(25.0, abs=1e-3)
    assert float(sdm(a, b[[2, 3, 0, 1]], targets)) == pytest.approx(2 * -math.log(1e-8), abs=1e-3)


def test_soft_labels_are_divided_row_by_row():
    rows = match_targets(torch.zeros(3, dtype=torch.long), torch.tensor([0, 0, 1]), 0.3)
    torch.testing.assert_close(rows[0], torch.tensor([0.4348, 0.4348, 0.1304]), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.sum(1), torch.ones(3))
    torch.testing.assert_close(rows[2], torch.tensor([0.3, 0.3, 1.0]) / 1.6)


def test_gradient_of_sdm_is_right():
    a, b = (x.double().requires_grad_() for x in vectors(4, 3))
    targets = match_targets(torch.tensor([0, 0, 1, 2])).double()

    def double(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x, y = nn.functional.normalize(x, dim=1), nn.functional.normalize(y, dim=1)
        total = x.new_zeros(())
        for scores in (3 * x @ y.T, 3 * y @ x.T):
            p = scores.softmax(1)
            total = total + (p * (p.log() - (targets + 1e-8).log())).sum(1).mean()
        return total

    assert torch.autograd.gradcheck(double, (a, b))
    expected = torch.autograd.grad(double(a, b), (a, b))
    x, y = a.detach().float().requires_grad_(), b.detach().float().requires_grad_()
    found = torch.autograd.grad(sdm(x, y, targets.float(), scale=3.0), (x, y))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_cmpm_normalizes_only_the_candidates():
    a, b = vectors(2, 2)
    unit_b, unit_a = (x / x.norm(dim=1, keepdim=True) for x in (b, a))
    total = 0.0
    for scores in (a @ unit_b.T, b @ unit_a.T):
        p = scores.softmax(1)
        total += float((p * (p.log() - (torch.eye(2) + 1e-8).log())).sum(1).mean())
    assert float(cmpm(a, b)) == pytest.approx(total, rel=1e-5)
    # Longer queries make the softmax sharper; longer candidates change nothing in their direction.
    assert float(cmpm(10 * torch.eye(2), 10 * torch.eye(2))) < float(cmpm(torch.eye(2), torch.eye(2)))


def test_one_pair_and_large_scores_are_finite():
    one = torch.randn(1, 4)
    assert abs(float(sdm(one, -one))) < 1e-6
    a, b = vectors()
    a.requires_grad_()
    loss = sdm(a, b, scale=1e4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


# ---- masking


def test_masking_has_the_shares_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (2000, 20), generator=generator)
    before = ids.clone()
    masked, labels = mask_words(ids, None, vocabulary=500, generator=generator)
    assert torch.equal(ids, before)
    chosen = labels >= 0
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    # 15 %, and about 0.85^20 of the captions in which one was forced.
    assert float(chosen.float().mean()) == pytest.approx(0.15 + 0.85**20 / 20, abs=0.005)
    assert float((masked[chosen] == MASK).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((masked[chosen] == ids[chosen]).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert not torch.isin(masked, torch.tensor([PAD, UNKNOWN])).any()


@given(st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_special_and_missing_tokens_are_never_masked(seed: int, rate: float):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 9, (6, 7), generator=generator)
    mask = torch.rand(6, 7, generator=generator) < 0.6
    masked, labels = mask_words(ids, mask, vocabulary=9, special=(0, 1, 8), rate=rate, generator=generator)
    free = mask & ~torch.isin(ids, torch.tensor([0, 1, 2, 8]))
    assert not (labels >= 0)[~free].any()
    assert torch.equal(masked[~free], ids[~free])
    # A caption with at least one word has at least one to guess.
    assert torch.equal((labels >= 0).any(1), free.any(1))
    if rate == 0:
        assert torch.equal((labels >= 0).sum(1), free.any(1).long())


def test_token_zero_can_be_learned_where_it_is_a_word():
    ids = torch.zeros(4, 5, dtype=torch.long)
    masked, labels = mask_words(ids, None, vocabulary=10, mask_id=9, special=(), rate=1.0)
    assert (labels == 0).all()
    assert (masked == 9).any()


# ---- interaction encoder


def test_words_see_the_picture_and_only_what_is_there():
    torch.manual_seed(0)
    module = RelationReasoning(16, 30, depth=2, heads=4).eval()
    words, picture = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    seen = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    places = torch.zeros(2, 5, dtype=torch.bool)
    places[:, 1] = True
    out = module(words, picture, places, mask=mask, picture_mask=seen)
    assert out.shape == (2, 30)
    changed = picture.clone()
    changed[1, 4] = 99.0
    torch.testing.assert_close(module(words, changed, places, mask=mask, picture_mask=seen), out)
    changed[1, 0] = -changed[1, 0]
    assert not torch.allclose(module(words, changed, places, mask=mask, picture_mask=seen)[1], out[1])
    padded = words.clone()
    padded[1, 3] = 99.0
    torch.testing.assert_close(module(padded, picture, places, mask=mask, picture_mask=seen), out)
    # The released code lets padding take part.
    module.parity = True
    loose = module(words, picture, places, mask=mask, picture_mask=seen)
    assert not torch.allclose(module(padded, picture, places, mask=mask, picture_mask=seen)[1], loose[1])


# ---- the objective


def scenes(n: int = 40, seed: int = 0) -> tuple[Pairs, int]:
    world = patch_scenes(n, seed=seed)
    words = Features.ragged("input_ids", list(world.captions[0]))
    return Pairs({"a": Features({"input_features": world.patches}), "b": words}), world.vocabulary


def towers(vocabulary: int, seed: int = 0):
    torch.manual_seed(seed)
    kinds = {"width": 16, "out": 16, "layers": 1, "heads": 2}
    return dual_tower(Tower(32, **kinds), Tower(vocabulary=vocabulary, **kinds), device="cpu")


def test_all_parts_train_and_every_parameter_learns():
    pairs, vocabulary = scenes()
    model = towers(vocabulary)
    objective = IRRA(
        ["sdm", "itc", "cmpm", "id", "mlm"],
        width=16,
        vocabulary=vocabulary,
        identities=pairs.groups,
        depth=1,
        heads=2,
    )
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    report = train(
        model,
        pairs,
        objective,
        Stage(steps=6, rate=3e-3),
        batch_size=8,
        log_every=1,
        optimizer=faster_heads(model, objective),
        device="cpu",
    )
    assert {"sdm", "itc", "cmpm", "id", "mlm"} <= report.history[0].keys()
    for name, parameter in objective.named_parameters():
        # A key's bias adds the same to all scores of a query: it has no gradient by design.
        assert name.endswith("in_proj_bias") or not torch.equal(before[name], parameter), name


def test_the_trained_space_is_the_two_encoders(tmp_path):
    from sentence_transformers import SentenceTransformer

    pairs, vocabulary = scenes()
    model = towers(vocabulary)
    objective = IRRA(width=16, vocabulary=vocabulary, identities=pairs.groups, depth=1, heads=2)
    assert objective.parts == ("sdm", "id", "mlm")
    train(model, pairs, objective, Stage(steps=3), batch_size=8, device="cpu")
    batch = {**pairs.source("b").batch([0, 1]), "task": "b"}
    with_heads = model(dict(batch))["sentence_embedding"]
    names = set(model.state_dict())
    assert not any("reasoning" in name or "classifier" in name for name in names)
    model.save_pretrained(str(tmp_path))
    del objective
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True).eval()(dict(batch))[
        "sentence_embedding"
    ]
    assert torch.equal(with_heads, again)


def test_gradient_of_masked_words_reaches_both_encoders():
    pairs, vocabulary = scenes(6)
    model = towers(vocabulary)
    objective = IRRA(["mlm"], width=16, vocabulary=vocabulary, depth=1, heads=2)
    pictures, words = ({**pairs.source(s).batch(range(6)), "task": s} for s in ("a", "b"))
    out = model(dict(pictures))
    losses = objective(
        out["sentence_embedding"],
        out["sentence_embedding"],
        a_tokens=out["token_embeddings"],
        a_mask=out["attention_mask"],
        b_inputs=words,
        encode=model,
    )
    losses["mlm"].backward()
    for route in ("a", "b"):
        gradients = [p.grad for n, p in model.named_parameters() if f".{route}." in n]
        assert any(g is not None and float(g.abs().max()) > 0 for g in gradients), route


def test_identity_part_is_the_mean_cross_entropy():
    objective = IRRA(["id"], width=3, identities=[7, 9, 9, 4])
    assert objective.classifier is not None
    with torch.no_grad():
        objective.classifier.weight.copy_(torch.eye(3))
    a, b = torch.tensor([[2.0, 0, 0], [0, 0, 1.0]]), torch.tensor([[0, 1.0, 0], [0, 0, 0]])
    # Sorted identities are 4, 7, 9: labels of 9 and 4 are 2 and 0.
    cross = nn.functional.cross_entropy
    labels = torch.tensor([2, 0])
    expected = (cross(a, labels) + cross(b, labels)) / 2
    torch.testing.assert_close(objective(a, b, groups=torch.tensor([9, 4]))["id"], expected)
    with pytest.raises(BadInput, match=r"\[5\]"):
        objective(a, b, groups=torch.tensor([9, 5]))
    assert IRRA(["id"], width=3, identities=3).known.tolist() == [0, 1, 2]


def test_weights_and_warm_up():
    a, b = vectors(4, 3)
    groups = torch.tensor([0, 1, 2, 0])
    plain = IRRA(["sdm", "id"], width=3, identities=3)
    heavy = IRRA(["sdm", "id"], width=3, identities=3, weights={"id": 3.0}, warmup=0.5)
    heavy.load_state_dict(plain.state_dict())
    one = plain(a, b, groups=groups)
    torch.testing.assert_close(heavy(a, b, groups=groups)["id"], 3 * one["id"])
    for step, share in ((0, 0.0), (25, 0.5), (50, 1.0), (99, 1.0)):
        heavy.on_progress(step, 100)
        found = heavy(a, b, groups=groups)
        torch.testing.assert_close(found["id"], 3 * share * one["id"])
        torch.testing.assert_close(found["sdm"], one["sdm"])


def test_factor_uses_the_pictures():
    a, b = vectors(4, 3)
    groups, rows = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 2])
    soft = IRRA(factor=0.3)(a, b, groups=groups, a_rows=rows)["sdm"]
    torch.testing.assert_close(soft, sdm(a, b, match_targets(groups, rows, 0.3)))
    torch.testing.assert_close(IRRA(factor=1.0)(a, b, groups=groups, a_rows=rows), IRRA()(a, b, groups=groups))
    with pytest.raises(BadInput, match="factor"):
        IRRA(factor=0.3)(a, b, groups=groups)


def test_learning_rates():
    model = dual_tower(Perceptron([4, 4]), Perceptron([4, 4]), device="cpu")
    objective = IRRA(["sdm", "id"], width=4, identities=3)
    groups = [
        {"params": [*model.parameters(), *objective.parameters()], "weight_decay": 0.1},
    ]
    made = faster_heads(model, objective, make=torch.optim.Adam, eps=1e-3)(groups, 1e-5)
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    assert isinstance(made, torch.optim.Adam)
    assert made.defaults["eps"] == 1e-3
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(2e-5 if name.endswith("bias") else 1e-5)
    assert all(rates[id(p)] == pytest.approx(5e-5) for p in objective.parameters())


def test_masked_words_are_the_same_every_time_outside_of_training():
    pairs, vocabulary = scenes(6)
    model = towers(vocabulary).eval()
    objective = IRRA(["mlm"], width=16, vocabulary=vocabulary, depth=1, heads=2)
    out = model({**pairs.source("a").batch(range(6)), "task": "a"})
    given = {
        "a_tokens": out["token_embeddings"],
        "b_inputs": {**pairs.source("b").batch(range(6)), "task": "b"},
        "encode": model,
    }
    vector = out["sentence_embedding"]
    runs = {
        mode: [float(objective.train(mode)(vector, vector, **given)["mlm"]) for _ in range(3)] for mode in (False, True)
    }
    assert len(set(runs[False])) == 1
    assert len(set(runs[True])) == 3


def test_captions_without_a_word_give_no_loss_and_no_nan():
    objective = IRRA(["mlm"], width=8, vocabulary=6, depth=1, heads=2)
    tokens = torch.randn(2, 3, 8, requires_grad=True)

    def encode(inputs):
        return {"token_embeddings": tokens, "attention_mask": torch.zeros(2, 3)}

    inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.zeros(2, 3)}
    loss = objective(
        torch.randn(2, 8), torch.randn(2, 8), a_tokens=torch.randn(2, 4, 8), b_inputs=inputs, encode=encode
    )
    assert float(loss["mlm"].detach()) == 0
    loss["mlm"].backward()
    assert torch.isfinite(tokens.grad).all()


def test_bad_input():
    a, b = vectors()
    with pytest.raises(UnknownName, match="mlm"):
        IRRA(["mlmm"])
    with pytest.raises(UnknownName):
        IRRA(weights={"idd": 1.0})
    with pytest.raises(BadInput, match="vocabulary and width"):
        IRRA(["mlm"])
    with pytest.raises(BadInput, match="identities"):
        IRRA(["id"], width=4)
    with pytest.raises(BadInput, match="no parts"):
        IRRA([])
    with pytest.raises(BadInput, match="temperature"):
        IRRA(temperature=0)
    with pytest.raises(BadInput, match="not pairs"):
        IRRA()(a, b[:3])
    with pytest.raises(BadInput, match="groups"):
        IRRA(["id"], width=6, identities=2)(a, b)
    with pytest.raises(BadInput, match="tokens of the pictures"):
        IRRA(["mlm"], width=6, vocabulary=9, heads=2)(a, b)
    with pytest.raises(BadInput, match="without the part"):
        IRRA().guess({}, torch.zeros(1, 1), a, lambda x: x)
    with pytest.raises(BadInput, match="vocabulary of 4"):
        mask_words(torch.tensor([[3, 7]]), None, vocabulary=4)
    with pytest.raises(BadInput, match="special ids"):
        mask_words(torch.tensor([[1]]), None, vocabulary=3)
    with pytest.raises(BadInput, match="factor"):
        match_targets(torch.zeros(2), None, 2.0)


def test_state_comes_back():
    one = IRRA(width=6, identities=[5, 8], vocabulary=9, heads=2)
    other = IRRA(width=6, identities=[1, 2], vocabulary=9, heads=2)
    other.load_state_dict(one.state_dict())
    a, b = vectors()
    groups = torch.tensor([5, 8] * 4)
    one.reasoning = other.reasoning = None
    assert torch.equal(one(a, b, groups=groups)["id"], other(a, b, groups=groups)["id"])


def test_several_pairs_of_an_identity_are_worth_more_to_sdm_than_to_plain_infonce():
    """The claim in small; `claim.py` has the full one with its negative control."""
    world = identities(ids=120, seed=1000)
    train_pairs, test_pairs = (
        Pairs({"a": Features({"input_features": a}), "b": Features({"input_features": b})}, groups=labels)
        for a, b, labels in (
            (world.bank_image, world.bank_text, world.truth["bank_labels"]),
            (world.image, world.text, world.truth["labels"]),
        )
    )
    found = {}
    for part in ("itc", "sdm"):
        torch.manual_seed(0)
        model = dual_tower(Perceptron([48, 128, 64]), Perceptron([48, 128, 64]), device="cpu")
        sampler = SeveralPerGroup(np.asarray(train_pairs.groups), 64, 4)
        train(model, train_pairs, IRRA([part]), Stage(steps=150), batch_size=64, sampler=sampler, device="cpu")
        found[part] = HeldOut(test_pairs).reports(model)["b_to_a"]["map"]
    assert found["sdm"] > found["itc"] + 0.05

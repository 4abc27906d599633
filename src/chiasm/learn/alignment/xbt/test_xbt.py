"""XBT: the card's identities, closed forms, negative controls, saving, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chiasm.embeddings import unit
from chiasm.errors import BadInput, SpaceMismatch, UnknownName
from chiasm.learn.alignment.xbt import (
    XBT,
    Compatibility,
    CompatibleObjective,
    LowRank,
    Noise,
    Projection,
    QuantileMatch,
    SlerpCompanion,
    SpaceMap,
    TextObjective,
    TowerLora,
    compatible_towers,
    flips,
    least_squares,
    procrustes,
    slerp,
    update_gain,
)
from chiasm.learn.alignment.xbt.modules import Same
from chiasm.learn.contrastive import info_nce
from chiasm.worlds.upgrades import upgrade


def rows(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32))


@pytest.fixture(scope="module")
def small():
    return upgrade(300, 200, 6000, seed=7)


@pytest.fixture(scope="module")
def fitted(small):
    return XBT(hidden=128).fit_text(small.new.captions, small.old.captions, steps=400, batch_size=256)


# ---- the card's identities


def test_a_fresh_adapter_changes_nothing_bit_for_bit(fitted, small):
    x = torch.from_numpy(small.new.text)
    adapter = LowRank(x.shape[1])
    assert torch.equal(adapter.adapt(x), x)
    with torch.no_grad():
        assert torch.equal(fitted.projection.project(adapter.adapt(x)), fitted.projection.project(x))
        adapter.up.normal_()
    assert not torch.equal(adapter.adapt(x), x)
    torch.testing.assert_close(adapter.adapt(x).norm(dim=1), x.norm(dim=1))


def test_procrustes_recovers_a_rotation_and_then_new_ranks_as_old():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0].astype(np.float32)
    v = rows(200, 12, 1)
    u = v @ q
    turn = procrustes(u, v)
    np.testing.assert_allclose(turn, q.T, atol=1e-5)
    gallery = rows(50, 12, 2)
    old, new = v @ gallery.T, (u @ turn) @ gallery.T
    np.testing.assert_allclose(new, old, atol=1e-5)
    assert (new.argmax(1) == old.argmax(1)).all()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_flip_rates_differ_by_exactly_the_change_of_recall(pairs):
    old, new = (np.array(side, float) for side in zip(*pairs))
    positive, negative = flips(old, new)
    assert (positive - negative) * len(old) == pytest.approx(new.sum() - old.sum(), abs=1e-9)
    assert 0 <= positive <= 1 - old.mean() + 1e-12
    assert 0 <= negative <= old.mean() + 1e-12


def test_slerp_by_hand():
    u, v = np.array([1.0, 0]), np.array([0, 1.0])
    np.testing.assert_allclose(slerp(u, v, 0.5), [0.70710678, 0.70710678], atol=1e-6)
    a, b = rows(20, 5), rows(20, 5, 1)
    np.testing.assert_allclose(slerp(a, b, 0), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1), b, atol=1e-6)
    np.testing.assert_allclose(slerp(a, a, 0.3), a, atol=1e-6)
    assert np.isfinite(slerp(a, -a, 0.5)).all()


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(0, 99))
def test_slerp_has_length_one_and_divides_the_angle(share, seed):
    u, v = rows(2, 6, seed)
    w = slerp(u, v, share)
    assert np.linalg.norm(w) == pytest.approx(1, abs=1e-5)
    whole = np.arccos(np.clip(u @ v, -1, 1))
    assert np.arccos(np.clip(u @ w, -1, 1)) == pytest.approx(share * whole, abs=2e-3)


def test_without_sigma_a_run_equals_one_without_noise(small):
    one = XBT(hidden=16, sigma=0.0, seed=3).fit_text(small.new.captions[:200], small.old.captions[:200], epochs=2)
    two = XBT(hidden=16, seed=3)
    two.noise = Same(small.new.captions.shape[1])  # no noise at all in the model
    two.noise.sigma = 0.0
    two.fit_text(small.new.captions[:200], small.old.captions[:200], epochs=2)
    for name, array in one.map.arrays.items():
        assert np.array_equal(array, two.map.arrays[name]), name


def test_compatibility_is_strict_and_asks_for_every_direction():
    hits = np.array([1.0, 0, 1, 0])
    better = np.array([1.0, 1, 1, 0])
    assert not Compatibility({"t": hits}, {"t": hits[::-1].copy()}).holds()
    both = Compatibility({"t": hits, "i": hits}, {"t": better, "i": hits}, {"t": np.ones(4)})
    assert both.holds("t")
    assert not both.holds()
    row = both.table()["t"]
    assert (row["pfr"], row["nfr"], row["gain"], row["compatible"]) == (0.25, 0.0, 0.5, 1.0)
    assert np.isnan(both.table()["i"]["gain"])
    assert np.isnan(update_gain(0.5, 0.4, 0.4))
    assert np.isnan(update_gain(0.1, 0.4, 0.2))


# ---- parts


def test_noise_has_the_length_it_says_and_only_in_training():
    x = torch.from_numpy(rows(4000, 64))
    noise = Noise(1.0)
    torch.manual_seed(0)
    noise.train()
    shaken = noise({"sentence_embedding": x})["sentence_embedding"]
    cosine = (shaken * x).sum(1)
    # E 1 / sqrt(1 + s^2) over s ~ U(0, 1) is asinh(1), up to terms of order 1 / D.
    assert float(cosine.mean()) == pytest.approx(np.arcsinh(1), abs=0.01)
    assert torch.equal(noise.eval()({"sentence_embedding": x})["sentence_embedding"], x)
    torch.manual_seed(0)
    batch = Noise(1.0, "batch").train()({"sentence_embedding": x})["sentence_embedding"]
    assert float((batch * x).sum(1).std()) < float(cosine.std())


@pytest.mark.parametrize("form", ["mlp", "linear", "residual", "blocks"])
def test_the_map_in_numpy_is_the_projection_in_torch(form, tmp_path):
    torch.manual_seed(0)
    xbt = XBT(form, hidden=8)
    xbt.projection = Projection(6, 5, form, 8, zero=False)
    xbt.adapters = {"image": LowRank(6, 2)}
    with torch.no_grad():
        xbt.adapters["image"].up.normal_()
    x = rows(9, 6)
    with torch.no_grad():
        plain = nn.functional.normalize(xbt.projection.project(torch.from_numpy(x)), dim=1).numpy()
        moved = xbt.projection.project(xbt.adapters["image"].adapt(torch.from_numpy(x)))
    np.testing.assert_allclose(xbt.transform(x, "text"), plain, atol=1e-5)
    np.testing.assert_allclose(xbt.transform(x, "video"), nn.functional.normalize(moved, dim=1).numpy(), atol=1e-5)
    np.testing.assert_allclose(xbt.transform(x, "image", adapted=False), plain, atol=1e-5)
    xbt.map.save(tmp_path / "map")
    loaded = SpaceMap.load(tmp_path / "map")
    assert np.array_equal(loaded(x, "image"), xbt.transform(x, "image"))
    assert loaded.digest == xbt.map.digest


def test_residual_forms_start_as_their_linear_part():
    turn = procrustes(rows(50, 6), rows(50, 4, 1))
    for form in ("residual", "blocks", "linear"):
        phi = Projection(6, 4, form, 8)
        phi.start_at(torch.from_numpy(turn))
        x = rows(7, 6, 2)
        with torch.no_grad():
            np.testing.assert_allclose(phi.project(torch.from_numpy(x)).numpy(), x @ turn, atol=1e-6)
    with pytest.raises(BadInput, match="no linear part"):
        Projection(6, 4).start_at(torch.from_numpy(turn))


def test_stage_two_is_three_info_nce_and_the_target_gets_no_gradient():
    a, b, y = (torch.from_numpy(rows(6, 4, s)).requires_grad_() for s in range(3))
    parts = CompatibleObjective(0.1)(a, b, y)
    total = sum(parts.values())
    pieces = (info_nce(a, y, scale=10), info_nce(b, y, scale=10), info_nce(a, b, scale=10))
    torch.testing.assert_close(total, sum(sum(one.values()) for one in pieces))
    total.backward()
    assert y.grad is None
    assert a.grad is not None
    assert set(CompatibleObjective(terms=("pair",))(a, b)) == {"pair_a_to_b", "pair_b_to_a"}
    cosine = TextObjective("cosine")(a, 3 * a.detach())
    assert cosine["cosine"].item() == pytest.approx(0, abs=1e-6)
    assert set(TextObjective("both")(a, b)) == {"a_to_b", "b_to_a", "cosine"}


def test_quantile_matching_gives_one_distribution_and_keeps_the_order():
    rng = np.random.default_rng(0)
    scores, reference = rng.normal(0.4, 0.1, 4000), rng.normal(0.1, 0.2, 3000)
    moved = QuantileMatch().fit(scores, reference).transform(scores)
    assert moved.mean() == pytest.approx(reference.mean(), abs=0.01)
    assert moved.std() == pytest.approx(reference.std(), abs=0.02)
    assert (np.argsort(moved, kind="stable") == np.argsort(scores, kind="stable")).all()
    same = QuantileMatch().fit(scores, scores)
    np.testing.assert_allclose(same.transform([[-1.0, 0.4, 3.0]]), [[-1.0, 0.4, 3.0]], atol=1e-9)


def test_the_companion_keeps_the_old_system_where_the_new_model_is_noise():
    old, gallery = rows(80, 10), rows(80, 10)
    kept = SlerpCompanion().fit(rows(80, 7, 5), old, gallery)
    assert kept.share_ == 0
    np.testing.assert_allclose(kept.transform(rows(80, 7, 5), old), old, atol=1e-6)
    with pytest.raises(BadInput, match="not fitted"):
        SlerpCompanion().transform(old, old)
    # The same picture under several captions is one item: equal rows do not tie against each other.
    twice = SlerpCompanion(shares=(0, 1)).fit(
        gallery[[0, 0, 1, 1]], rows(4, 10, 6), gallery[[0, 0, 1, 1]], rotation=np.eye(10)
    )
    assert twice.share_ == 1


# ---- training


def test_text_alone_then_pairs(fitted, small):
    def right(map, query, gallery, modality):
        return float(((map(query, modality) @ gallery.T).argmax(1) == np.arange(len(query))).mean())

    new, old = small.new, small.old
    before = right(lambda x, _: x, old.text, old.image, "text"), right(lambda x, _: x, old.image, old.text, "image")
    assert right(fitted.transform, new.text, old.image, "text") > before[0]
    copy = XBT(hidden=128)
    copy.projection = fitted.projection
    kept = {k: v.clone() for k, v in fitted.projection.state_dict().items()}
    alone = right(fitted.transform, new.image, old.text, "image")
    copy.fit_pairs(new.pair_image, new.pair_text, epochs=20, batch_size=64, rate=3e-3)
    assert right(copy.transform, new.image, old.text, "image") > alone
    assert all(torch.equal(v, kept[k]) for k, v in copy.projection.state_dict().items())
    assert np.array_equal(copy.transform(new.text, "text", adapted=False), fitted.transform(new.text))


def test_shuffled_texts_teach_nothing(small):
    order = np.random.default_rng(0).permutation(len(small.new.captions))
    wrong = XBT(hidden=32).fit_text(small.new.captions[order], small.old.captions, epochs=2)
    hits = (wrong.transform(small.new.text) @ small.old.image.T).argmax(1) == np.arange(300)
    assert hits.mean() < 0.03


def test_a_slower_projection_moves_and_equal_texts_count_once(small):
    twice = np.concatenate([small.new.captions[:40]] * 2), np.concatenate([small.old.captions[:40]] * 2)
    xbt = XBT("linear", sigma=0.0, share_rate=0.1).fit_text(*twice, epochs=1)
    assert xbt.reports["text"].steps == 2  # 40 distinct texts, 20 a batch
    before = xbt.projection.linear.weight.detach().clone()
    xbt.fit_pairs(small.new.pair_image[:50], small.new.pair_text[:50], steps=3)
    assert not torch.equal(xbt.projection.linear.weight, before)


# ---- adapters in towers


@pytest.fixture
def towers():
    pytest.importorskip("peft")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, features, **_):
            x = features["sentence_embedding"]
            return {**features, "sentence_embedding": self.v_proj(x) + self.q_proj(x).tanh() + self.k_proj(x)}

    torch.manual_seed(0)
    image, text = Attention(), Attention()
    return compatible_towers([image], [text], Projection(6, 4, "linear"))


def test_tower_adapters_are_off_bit_for_bit_and_come_out_again(towers):
    batch = {"sentence_embedding": torch.from_numpy(rows(5, 6)), "task": "a"}
    names = list(towers.state_dict())

    def out():
        with torch.no_grad():
            return towers(dict(batch))["sentence_embedding"]

    plain = out()
    lora = TowerLora(rank=2).attach(towers)
    assert torch.equal(out(), plain)  # B = 0
    trained = [n for n, p in towers.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in n and ("q_proj" in n or "v_proj" in n) for n in trained)
    with torch.no_grad():
        for n, p in towers.named_parameters():
            if "lora_B" in n:
                p.normal_()
    moved = out()
    assert not torch.equal(moved, plain)
    with lora.off():
        assert torch.equal(out(), plain)
    state = {k: v.clone() for k, v in lora.state_dict().items()}
    with pytest.raises(BadInput, match="attached already"):
        TowerLora().attach(towers)
    lora.detach()
    assert list(towers.state_dict()) == names
    assert torch.equal(out(), plain)
    again = TowerLora(rank=2).attach(towers)
    again.load_state_dict(state)
    assert torch.equal(out(), moved)


def test_tower_adapters_train_through_the_trainer(towers):
    from chiasm.learn import Pairs, Stage, train
    from chiasm.learn.features import Features

    images, texts = (Features({"sentence_embedding": rows(24, 6, s)}) for s in (0, 1))
    TowerLora(rank=2).attach(towers)
    before = {n: p.detach().clone() for n, p in towers.named_parameters()}
    pairs = Pairs({"a": images, "b": texts, "target": texts})
    train(towers, pairs, CompatibleObjective(), Stage(steps=3, rate=1e-2, train=["*lora_*"]), batch_size=8)
    changed = {n for n, p in towers.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in n for n in changed)


def test_a_tower_without_attention_is_refused():
    pytest.importorskip("peft")
    with pytest.raises(BadInput, match="no linear layer"):
        TowerLora().attach(nn.Sequential(nn.Linear(3, 3)))


# ---- refused


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: XBT("cubic"), UnknownName),
        (lambda: XBT(start="best"), UnknownName),
        (lambda: XBT(start="procrustes"), BadInput),
        (lambda: XBT(sigma=-1), BadInput),
        (lambda: XBT(share_rate=-1), BadInput),
        (lambda: XBT(text_loss="mse"), UnknownName),
        (lambda: XBT(temperature=0), BadInput),
        (lambda: Noise(per="item"), UnknownName),
        (lambda: Projection(0, 3), BadInput),
        (lambda: Projection(3, 3, "cubic"), UnknownName),
        (lambda: LowRank(4, 5), BadInput),
        (lambda: TowerLora(0), BadInput),
        (lambda: XBT().transform(rows(3, 4)), BadInput),
        (lambda: XBT().fit_pairs(rows(9, 4), rows(9, 4)), BadInput),
        (lambda: XBT().fit_text(rows(9, 4), rows(8, 4)), BadInput),
        (lambda: XBT().fit_text(np.full((9, 4), np.nan), rows(9, 4)), BadInput),
        (lambda: XBT().fit_text(np.ones((9, 4)), np.ones((9, 4))), BadInput),
        (lambda: CompatibleObjective(terms=()), BadInput),
        (lambda: CompatibleObjective(terms=("old",)), UnknownName),
        (lambda: procrustes(rows(3, 2), rows(4, 2)), BadInput),
        (lambda: least_squares(np.full((2, 2), np.nan), rows(2, 2)), BadInput),
        (lambda: slerp(rows(2, 3), rows(2, 3), 1.5), BadInput),
        (lambda: flips([1, 0], [1]), BadInput),
        (lambda: flips([0.5], [1]), BadInput),
        (lambda: Compatibility({}, {}), BadInput),
        (lambda: QuantileMatch().fit([], [1.0]), BadInput),
        (lambda: SlerpCompanion(shares=(2,)), BadInput),
    ],
)
def test_nonsense_is_refused_with_a_reason(make, error):
    with pytest.raises(error):
        make()


def test_a_map_knows_its_spaces_and_refuses_others(tmp_path):
    found = SpaceMap(
        {"linear.weight": np.eye(3, dtype=np.float32), "linear.bias": np.zeros(3, np.float32)}, 3, 3, "n", "o"
    )
    found.check("n", "o", "here")
    with pytest.raises(SpaceMismatch):
        found.check("x", "o", "here")
    with pytest.raises(BadInput):
        found(rows(2, 4))
    path = tmp_path / "map"
    path.write_bytes(b"nothing")
    with pytest.raises(BadInput):
        SpaceMap.load(path)

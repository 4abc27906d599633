"""CromSS: the card's identities, closed forms, naive double loops, gradients, priors by scipy, controls, hostile input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from scipy.ndimage import gaussian_filter
from transformers import ResNetBackbone, ResNetConfig

from chiasm.errors import BadInput, TrainingDiverged, UnknownName
from chiasm.perceive.cromss import (
    HEADS,
    BackboneEncoder,
    CromSS,
    LabelSmoothing,
    Segmenter,
    SmallEncoder,
    TwoSensorNet,
    UNetDecoder,
    consistency_loss,
    entangle,
    frequencies,
    kept_share,
    make_head,
    one_hot,
    pretrain,
    ramp,
    transfer,
    weighted_cross_entropy,
    weighted_dice,
)
from chiasm.perceive.cromss.fitting import cut, fit, windows
from chiasm.worlds.sensor_maps import sensor_maps


def logits(seed=0, b=3, k=4, size=(6, 5)):
    return torch.randn(b, k, *size, generator=torch.Generator().manual_seed(seed))


def noisy(seed=0, b=3, k=4, size=(6, 5)):
    return torch.randint(0, k, (b, *size), generator=torch.Generator().manual_seed(seed + 50))


def total(parts):
    return sum(parts.values())


# ---- selection


def test_the_ramp_and_the_share():
    assert ramp(0) == pytest.approx(math.exp(-5))
    assert ramp(0) == pytest.approx(0.006738, abs=1e-6)
    assert kept_share(ramp(0)) == pytest.approx(0.996631, abs=1e-6)
    assert kept_share(ramp(80)) == 0.5
    assert ramp(500) == ramp(0, 80, "none") == ramp(0, 0) == 1
    assert ramp(20, 80, "linear") == 0.25
    assert kept_share(0.7, 1.0) == 1


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 200), st.floats(0, 200), st.floats(0.01, 1))
def test_the_share_falls_and_stays_within_its_ends(first, second, final):
    early, late = sorted((first, second))
    shares = [kept_share(ramp(epoch), final) for epoch in (early, late)]
    assert shares[0] >= shares[1] - 1e-12
    assert final - 1e-12 <= min(shares)
    assert max(shares) <= 1


def test_entangling_by_hand():
    one, zero = np.ones(1), np.zeros(1)
    assert [float(x[0]) for x in entangle(one, one)] == [1, 1]
    assert [float(x[0]) for x in entangle(one, zero)] == [0.5, 0]
    c = torch.tensor([0.2, 0.9])
    for found in entangle(c, c.clone()):
        torch.testing.assert_close(found, c * (1 + c) / 2)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_entangling_never_raises_a_confidence_and_at_most_halves_it(first, second):
    a, b = entangle(np.array([first]), np.array([second]))
    assert first / 2 - 1e-12 <= a[0] <= first
    assert second / 2 - 1e-12 <= b[0] <= second


def test_trust_equals_loops_over_pixels():
    a, b, labels = logits(0), logits(1), noisy()
    objective = CromSS(ramp_epochs=10)
    objective.set_epoch(4)
    trust = objective.trust(a, b, labels)
    r = math.exp(-5 * 0.6**2)
    rho = 1 - r / 2
    assert trust.share == pytest.approx(rho)
    p = [z.softmax(1).double().numpy() for z in (a, b)]
    y = labels.numpy()
    n, k = len(y), 4
    own = [np.array([[[q[i, y[i, h, w], h, w] for w in range(5)] for h in range(6)] for i in range(n)]) for q in p]
    sure = [1 + (q * np.log(q)).sum(1) / np.log(k) for q in p]
    for side, (weights, teacher) in enumerate(((trust.label_a, trust.teacher_a), (trust.label_b, trust.teacher_b))):
        mine = own[side] * (1 + own[1 - side]) / 2
        expected = np.zeros_like(mine)
        for c in range(k):
            ranked = sorted(mine[y == c], reverse=True)
            tau = ranked[math.ceil(rho * len(ranked)) - 1]
            expected[y == c] = np.clip(mine[y == c] / tau, 0, 1)
        np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4)
        doubt = sure[side] * (1 + sure[1 - side]) / 2
        np.testing.assert_allclose(teacher.numpy(), 1 - r + r * doubt, rtol=1e-4)


def test_a_class_of_one_pixel_keeps_its_weight():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0, 0] = 3
    objective = CromSS(ramp_kind="none")
    assert float(objective.trust(logits(0, 1, 4, (4, 4)), logits(1, 1, 4, (4, 4)), labels).label_a[0, 0, 0]) == 1


def test_confidence_of_uniform_and_of_one_hot_predictions():
    flat, sharp = torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    sharp[:, 1] = 1000.0
    labels = torch.ones(1, 2, 2, dtype=torch.long)
    objective = CromSS(ramp_kind="none", entangle=False)
    trust = objective.trust(flat, sharp, labels)
    torch.testing.assert_close(trust.teacher_a, torch.zeros(1, 2, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(trust.teacher_b, torch.ones(1, 2, 2))
    gini = CromSS(ramp_kind="none", entangle=False, confidence="gini").trust(flat, sharp, labels)
    torch.testing.assert_close(gini.teacher_a, torch.full((1, 2, 2), 0.25))
    parts = objective(flat.requires_grad_(), sharp.requires_grad_(), labels)
    total(parts).backward()
    assert torch.isfinite(flat.grad).all()
    assert torch.isfinite(sharp.grad).all()


def test_labels_that_nobody_believes_weigh_alike():
    a = torch.zeros(1, 3, 2, 2)
    a[:, 0] = 2000.0  # the share of the label is exactly 0
    labels = torch.full((1, 2, 2), 2)
    assert (CromSS(ramp_kind="none").trust(a, a, labels).label_a == 1).all()


def test_thresholds_of_one_for_all_and_by_histogram():
    a, b, labels = logits(0, 8), logits(1, 8), noisy(0, 8)
    whole, each = (CromSS(ramp_kind="none", balanced=x).trust(a, b, labels).label_a for x in (False, True))
    shares = [float((each[labels == c] == 1).float().mean()) for c in range(4)]
    assert min(shares) >= 0.5
    assert max(shares) < 0.56
    assert float((whole == 1).float().mean()) == pytest.approx(0.5, abs=0.01)
    coarse = CromSS(ramp_kind="none", bins=4096).trust(a, b, labels).label_a
    assert (coarse >= each - 1e-6).all()
    torch.testing.assert_close(coarse, each, atol=0.01, rtol=0)


def test_running_thresholds_move_in_training_and_are_saved():
    objective = CromSS(ramp_kind="none", threshold_momentum=0.9)
    first = CromSS(ramp_kind="none").trust(logits(0), logits(1), noisy()).label_a
    torch.testing.assert_close(objective.trust(logits(0), logits(1), noisy()).label_a, first)
    kept = objective.thresholds.clone()
    assert kept.shape == (2, 4)
    objective.trust(logits(2), logits(3), noisy(1))
    assert not torch.equal(objective.thresholds, kept)
    again = CromSS(ramp_kind="none", threshold_momentum=0.9)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.thresholds, objective.thresholds)
    objective.eval()
    before = objective.thresholds.clone()
    objective.trust(logits(4), logits(5), noisy(2))
    assert torch.equal(objective.thresholds, before)


def test_a_class_that_a_batch_lacks_keeps_its_running_threshold():
    objective = CromSS(ramp_kind="none", threshold_momentum=0.5)
    objective.trust(logits(0), logits(1), noisy())
    kept = objective.thresholds[0, 3].clone()
    objective.trust(logits(2), logits(3), noisy().clamp(max=2))
    assert torch.equal(objective.thresholds[0, 3], kept)
    assert torch.isfinite(objective.thresholds).all()


# ---- losses


def test_a_final_share_of_one_is_plain_cross_entropy_and_dice():
    a, b, labels = logits(0), logits(1), noisy()
    objective = CromSS(final_share=1.0, consistency="none", ramp_kind="none")
    parts = objective(a, b, labels)
    for side, z in (("a", a), ("b", b)):
        torch.testing.assert_close(parts[f"labels_{side}"], torch.nn.functional.cross_entropy(z, labels))
        p, hot = z.softmax(1), torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)
        dice = [1 - 2 * (p[:, k] * hot[:, k]).sum() / (p[:, k].sum() + hot[:, k].sum()) for k in range(4)]
        torch.testing.assert_close(parts[f"dice_{side}"], torch.stack(dice).mean())
    unselected = CromSS(select=False, consistency="none")(a, b, labels)
    torch.testing.assert_close(total(unselected), total(parts))


def test_dice_of_a_perfect_prediction_and_of_absent_classes():
    labels = noisy().clamp(max=2)  # class 3 is absent
    hot, ones = one_hot(labels, 4), torch.ones(labels.shape)
    assert float(weighted_dice(hot, hot, ones)) == pytest.approx(0, abs=1e-6)
    wrong = one_hot((labels + 1) % 3, 4)
    assert float(weighted_dice(wrong, hot, ones)) == pytest.approx(0.75)  # three of four classes are there
    assert float(weighted_dice(wrong, hot, torch.zeros(labels.shape))) == 0
    soft = 0.95 * hot + 0.05 / 4
    own = weighted_dice(wrong, soft, ones, torch.tensor([True, True, True, False]))
    assert own < weighted_dice(wrong, soft, ones)


def test_weights_decide_which_pixels_count():
    a, labels = logits(0), noisy()
    weights = torch.zeros(labels.shape)
    weights[1] = 0.3
    hot = one_hot(labels, 4)
    torch.testing.assert_close(
        weighted_cross_entropy(a, hot, weights), torch.nn.functional.cross_entropy(a[1:2], labels[1:2])
    )
    assert float(weighted_cross_entropy(a, hot, torch.zeros(labels.shape))) == 0


def test_consistency_of_equal_predictions_is_their_weighted_entropy():
    a, labels = logits(0), noisy()
    objective = CromSS(ramp_kind="none")
    found = objective(a, a.clone(), labels)["consistency"]
    p = a.softmax(1)
    entropy, q = -(p * p.log()).sum(1), objective.trust(a, a.clone(), labels).teacher_a
    torch.testing.assert_close(found, 2 * (q * entropy).sum() / q.sum())
    for kind in ("kl", "mse"):
        assert float(CromSS(consistency=kind)(a, a.clone(), labels)["consistency"]) == pytest.approx(0, abs=1e-6)


def test_the_consistency_can_rise():
    a, b, labels = logits(0), logits(1), noisy()
    whole, rising = CromSS(), CromSS(consistency_warmup=4)
    assert float(rising(a, b, labels)["consistency"]) == 0
    for objective in (whole, rising):
        objective.set_epoch(1)
    torch.testing.assert_close(rising(a, b, labels)["consistency"], whole(a, b, labels)["consistency"] / 4)
    rising.set_epoch(9)
    whole.set_epoch(9)
    torch.testing.assert_close(rising(a, b, labels)["consistency"], whole(a, b, labels)["consistency"])


@pytest.mark.parametrize("kind", ["ce", "kl", "mse"])
def test_no_gradient_reaches_the_teacher(kind):
    a, b = logits(0).requires_grad_(), logits(1).requires_grad_()
    consistency_loss(a, b, torch.ones(3, 6, 5), kind).backward()
    assert b.grad is None
    assert a.grad.abs().max() > 0


def test_cross_entropy_is_divergence_and_the_teachers_entropy():
    a, b, w = logits(0), logits(1), torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(9))
    p = b.softmax(1)
    entropy = ((-(p * p.log()).sum(1)) * w).sum() / w.sum()
    torch.testing.assert_close(consistency_loss(a, b, w) - consistency_loss(a, b, w, "kl"), entropy)


def test_the_weights_have_no_gradient_and_inputs_stay():
    a, b, labels = logits(0).requires_grad_(), logits(1).requires_grad_(), noisy()
    before = [x.detach().clone() for x in (a, b, labels)]
    objective = CromSS(ramp_kind="none", consistency="none", dice=False)
    total(objective(a, b, labels)).backward()
    trust = objective.trust(a, b, labels)
    assert not trust.label_a.requires_grad
    # Only through the logits: (p - y) S / sum S.
    expected = (before[0].softmax(1) - one_hot(labels, 4)) * (trust.label_a / trust.label_a.sum()).unsqueeze(1)
    torch.testing.assert_close(a.grad, expected)
    assert all(torch.equal(now.detach(), then) for now, then in zip((a, b, labels), before, strict=True))


def test_modalities_and_places_can_change_their_order():
    a, b, labels = logits(0), logits(1), noisy()
    objective = CromSS(ramp_epochs=10)
    objective.set_epoch(7)
    whole = total(objective(a, b, labels))
    torch.testing.assert_close(total(objective(b, a, labels)), whole)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(total(objective(a[order], b[order], labels[order])), whole)


def test_ignored_pixels_tell_nothing_to_the_label_terms():
    a, b, labels = logits(0), logits(1), noisy()
    labels[:, :3] = -1
    objective = CromSS(ramp_kind="none", consistency="none")
    found = total(objective(a, b, labels))
    torch.testing.assert_close(found, total(objective(a[:, :, 3:], b[:, :, 3:], labels[:, 3:])))
    nothing = CromSS(consistency="none")(a, b, torch.full_like(labels, -1))
    assert float(total(nothing)) == 0
    assert torch.isfinite(total(CromSS()(a, b, torch.full_like(labels, -1))))


def test_single_labels_and_volumes():
    flat = CromSS()(torch.randn(8, 3), torch.randn(8, 3), torch.arange(8) % 3)
    deep = CromSS()(torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.long))
    one = CromSS()(torch.randn(1, 2), torch.randn(1, 2), torch.zeros(1, dtype=torch.long))
    assert all(torch.isfinite(total(parts)) for parts in (flat, deep, one))


# ---- priors


def test_a_label_that_never_changes_is_its_own_prior():
    labels = np.full((2, 3, 7, 7), 4)
    smoothing = LabelSmoothing(labels, 9)
    found = smoothing.targets([0, 1], [0, 2])
    np.testing.assert_allclose(found[:, 4], 0.955556, atol=1e-5)
    np.testing.assert_allclose(found[:, [0, 8]], 0.005556, atol=1e-5)
    np.testing.assert_allclose(smoothing.priors([0], [1])[0, 4], 1, atol=1e-6)


@pytest.mark.parametrize("prior", ["both", "temporal", "spatial", "none"])
def test_targets_are_shares_and_the_label_stays_the_largest(prior):
    labels = np.random.default_rng(0).integers(-1, 4, size=(3, 4, 9, 8))
    for cache in (False, True):
        smoothing = LabelSmoothing(labels, 4, prior=prior, cache=cache)
        found = smoothing.targets([0, 2], [1, 3])
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=2e-3 if cache else 1e-5)
        mine = labels[[0, 2], [1, 3]]
        assert (found.argmax(axis=1) == mine)[mine >= 0].all()


def test_the_priors_are_filtered_label_maps():
    labels = np.random.default_rng(0).integers(0, 3, size=(1, 4, 12, 12))
    hot = np.stack([labels[0] == c for c in range(3)], axis=1).astype(np.float64)  # [T, K, H, W]
    temporal = np.stack([gaussian_filter(m, 3, truncate=4) for m in hot.mean(axis=0)])
    spatial = np.stack([gaussian_filter(m, 3, truncate=4) for m in hot[2]])
    for prior, expected in (("temporal", temporal), ("spatial", spatial), ("both", (temporal + spatial) / 2)):
        found = LabelSmoothing(labels, 3, prior=prior).priors([0], [2])[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(frequencies(labels, 3)[0], hot.mean(axis=0), atol=1e-6)


def test_without_a_prior_smoothing_is_uniform():
    labels = np.array([[[[0, 1]]]])
    found = LabelSmoothing(labels, 2, prior="none", uniform_share=0.2).targets([0], [0])[0]
    np.testing.assert_allclose(found, [[[0.9, 0.1]], [[0.1, 0.9]]], atol=1e-6)
    hard = LabelSmoothing(labels, 2, prior="none", uniform_share=0.0).targets([0], [0])[0]
    np.testing.assert_allclose(hard, [[[1, 0]], [[0, 1]]])


def test_ignored_labels_get_what_is_known_near_by():
    labels = np.full((1, 2, 5, 5), 1)
    labels[0, :, 2, 2] = -1
    found = LabelSmoothing(labels, 3).targets([0], [0])[0]
    assert found[1, 2, 2] > 0.95
    unknown = LabelSmoothing(np.full((1, 2, 5, 5), -1), 4).targets([0], [0])
    np.testing.assert_allclose(unknown, 0.25, atol=1e-6)
    single = LabelSmoothing(np.array([[0, 0, 1]]), 2, prior="temporal").targets([0], [2])  # no space at all
    np.testing.assert_allclose(single, [[0.15 * 2 / 3 + 0.025, 0.8 + 0.15 / 3 + 0.025]], atol=1e-6)


# ---- networks


def small(classes=4, **options):
    torch.manual_seed(0)
    return TwoSensorNet(SmallEncoder(2, (4, 6, 8)), SmallEncoder(3, (4, 6, 8)), classes, widths=(8, 6), **options)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (1, 1), (3, 2)])
@pytest.mark.parametrize("fusion", ["middle", "late"])
def test_logits_have_the_size_of_the_pictures(size, fusion):
    a, b = small(fusion=fusion).eval()(torch.randn(2, 2, *size), torch.randn(2, 3, *size))
    assert a.shape == b.shape == (2, 4, *size)


def test_middle_fusion_shares_the_decoder_and_late_fusion_nothing():
    middle, late = small(), small(fusion="late")
    assert middle.decoder_a is middle.decoder_b
    a = torch.randn(2, 2, 8, 8)
    for net, shared in ((middle, True), (late, False)):
        net.zero_grad()
        net.logits_a(a).sum().backward()
        reached = any(p.grad is not None for p in net.decoder_b.parameters())
        assert reached is shared
        assert all(p.grad is None for p in net.encoder_b.parameters())
    assert set(map(id, late.decoder_a.parameters())).isdisjoint(map(id, late.decoder_b.parameters()))


def test_predictions_do_not_depend_on_the_batch_and_one_sensor_will_do():
    net = small()
    a, b = torch.randn(5, 2, 8, 8), torch.randn(5, 3, 8, 8)
    whole = net.shares(a, b)
    torch.testing.assert_close(net.shares(a, b, batch_size=2), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((net.shares(a=a) + net.shares(b=b)) / 2, whole, rtol=1e-4, atol=1e-5)
    assert net.training  # as it was
    assert net.predict(a.numpy()).shape == (5, 8, 8)
    torch.testing.assert_close(whole.sum(1), torch.ones(5, 8, 8))


def test_a_hugging_face_backbone_is_an_encoder():
    config = ResNetConfig(
        num_channels=2,
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2"],
    )
    torch.manual_seed(0)
    encoders = [BackboneEncoder(ResNetBackbone(config)) for _ in range(2)]
    assert encoders[0].channels == (8, 12)
    net = TwoSensorNet(*encoders, classes=3, widths=(8, 6, 4))
    a, b = net(torch.randn(2, 2, 32, 32), torch.randn(2, 2, 32, 32))
    assert a.shape == b.shape == (2, 3, 32, 32)
    total(CromSS()(a, b, torch.zeros(2, 32, 32, dtype=torch.long))).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_gives_maps_and_gets_gradients(head):
    torch.manual_seed(0)
    segmenter = Segmenter(SmallEncoder(2, (4, 6, 8)), 3, head=head, frozen=False)
    out = segmenter(torch.randn(2, 2, 16, 12))
    assert out.shape == (2, 3, 16, 12)
    out.square().sum().backward()
    assert all(p.grad is not None for p in segmenter.head.parameters())
    frozen = Segmenter(SmallEncoder(2, (4, 6, 8)), 3, head=head)
    before = {name: x.clone() for name, x in frozen.encoder.state_dict().items()}
    frozen.train()(torch.randn(2, 2, 16, 12)).sum().backward()
    assert all(p.grad is None for p in frozen.encoder.parameters())
    assert all(torch.equal(x, before[name]) for name, x in frozen.encoder.state_dict().items())


def test_the_linear_head_is_linear_in_normalized_features():
    torch.manual_seed(0)
    head = make_head("linear", (3,), 2).eval()
    x, y = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    zero = head([torch.zeros(1, 3, 4, 4)], (4, 4))
    torch.testing.assert_close(head([x + y], (4, 4)) + zero, head([x], (4, 4)) + head([y], (4, 4)))


# ---- windows and training


def test_a_window_of_pictures_and_of_labels_is_the_same():
    labels = np.arange(2 * 9 * 7).reshape(2, 9, 7)
    pictures = np.stack([labels, -labels], axis=1)
    rows, columns = windows(2, (9, 7), 5, True, np.random.default_rng(0))
    found, maps = cut(pictures, rows, columns), cut(labels, rows, columns)
    assert found.shape == (2, 2, 5, 5)
    assert np.array_equal(found[:, 0], maps)
    assert np.array_equal(found[:, 1], -maps)
    assert all(set(m.reshape(-1)) <= set(whole.reshape(-1)) for m, whole in zip(maps, labels, strict=True))
    whole = cut(labels, *windows(2, (9, 7), None, True, None))
    assert np.array_equal(whole, labels)


@pytest.fixture(scope="module")
def world():
    return sensor_maps(24, seed=1000, size=16, cells=4, dates=2)


def tiny_net(world):
    torch.manual_seed(0)
    return TwoSensorNet(SmallEncoder(2, (4, 8)), SmallEncoder(4, (4, 8)), world.classes, widths=(8,))


def test_pretraining_learns_and_repeats(world):
    settings_ = {"epochs": 12, "batch_size": 8, "rate": 1e-2, "schedule": "plateau", "patience": 1, "validation": 0.1}
    runs = []
    for _ in range(2):
        net, objective = tiny_net(world), CromSS(ramp_epochs=2)
        report = pretrain(net, world.radar, world.optical, world.noisy, objective=objective, **settings_)
        runs.append((net, report))
        assert float(objective.epoch) == 11
    (net, report), (twin, _) = runs
    assert report.losses[-1] < report.losses[0]
    assert len([entry for entry in report.history if "eval_loss" in entry]) == 12
    assert all(torch.equal(x, y) for x, y in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    right = (net.predict(world.radar[:, 0], world.optical[:, 0]).numpy() == world.truth).mean()
    assert right > 0.3  # five classes


def test_transfer_keeps_a_frozen_encoder_and_learns_the_head(world):
    encoder = SmallEncoder(4, (4, 8))
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    options = {"epochs": 40, "batch_size": 8, "rate": 1e-2}
    segmenter, report = transfer(encoder, world.optical[:, 0], world.truth, 5, **options)
    assert report.losses[-1] < report.losses[0]
    for name, x in segmenter.encoder.state_dict().items():
        assert torch.equal(x, before[name])
    assert (segmenter.predict(world.optical[:, 1]).numpy() == world.truth).mean() > 0.4
    tuned, _ = transfer(encoder, world.optical[:, 0], world.truth, 5, frozen=False, **(options | {"epochs": 1}))
    moved = [not torch.equal(x, before[name]) for name, x in tuned.encoder.state_dict().items()]
    assert any(moved)
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())  # the given one never


def test_a_last_batch_of_one_pixel_is_no_trouble():
    torch.manual_seed(0)
    net = TwoSensorNet(SmallEncoder(3, (4,)), SmallEncoder(3, (4,)), 2, fusion="late", widths=(4,))
    pictures, labels = np.random.default_rng(0).normal(size=(9, 3, 1, 1)), np.arange(9)[:, None, None] % 2
    report = pretrain(net, pictures, -pictures, labels, epochs=1, batch_size=4, validation=0.0, schedule="constant")
    assert report.steps == 2
    assert np.isfinite(report.losses).all()


def test_save_and_load_give_the_same_predictions(world, tmp_path):
    net, twin = tiny_net(world), tiny_net(world)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    save_model(net, str(tmp_path / "net.safetensors"))
    load_model(twin, str(tmp_path / "net.safetensors"))
    given = (world.radar[:3, 0], world.optical[:3, 0])
    assert torch.equal(net.shares(*given), twin.shares(*given))


# ---- hostile input


def test_options_that_do_not_exist():
    for options in ({"consistency": "cosine"}, {"confidence": "max"}, {"presence": "all"}, {"ramp_kind": "sigmoid"}):
        with pytest.raises(UnknownName):
            CromSS(**options)
    negative = ({name: -1.0} for name in ("consistency_weight", "consistency_warmup", "ramp_epochs"))
    for options in ({"final_share": 0.0}, {"threshold_momentum": 1.0}, *negative):
        with pytest.raises(BadInput):
            CromSS(**options)
    with pytest.raises(UnknownName, match="prior"):
        LabelSmoothing(np.zeros((1, 1, 2, 2), int), 2, prior="space")
    with pytest.raises(UnknownName, match="fusion"):
        small(fusion="early")
    with pytest.raises(UnknownName, match="head"):
        make_head("segformer", (4,), 2)
    with pytest.raises(UnknownName, match="backbone"):
        BackboneEncoder(torch.nn.Conv2d(1, 1, 1))


def test_predictions_and_labels_that_do_not_fit():
    a, b, labels = logits(0), logits(1), noisy()
    for bad in ((a, b[:2], labels), (a, b, labels[:, 1:]), (a[:, :1], b[:, :1], labels), (a, b, labels + 3)):
        with pytest.raises(BadInput):
            CromSS()(*bad)
    with pytest.raises(BadInput, match="type"):
        CromSS()(a, b, labels.float())
    with pytest.raises(BadInput, match="targets"):
        CromSS()(a, b, labels, a[:, :3])
    with pytest.raises(BadInput, match="empty"):
        CromSS()(a[:0], b[:0], labels[:0])
    with pytest.raises(TrainingDiverged, match="'b'"):
        CromSS()(a, b * torch.nan, labels)
    with pytest.raises(BadInput):
        entangle(np.ones(2), np.ones(3))


def test_smoothing_refuses_what_it_cannot_use():
    with pytest.raises(BadInput, match="label 5"):
        LabelSmoothing(np.full((1, 1, 2, 2), 5), 5)
    with pytest.raises(BadInput, match="shares"):
        LabelSmoothing(np.zeros((1, 1, 2, 2), int), 2, prior_share=0.9, uniform_share=0.2)
    with pytest.raises(BadInput, match="type"):
        LabelSmoothing(np.zeros((1, 1, 2, 2)), 2)


def test_nets_and_training_refuse_what_does_not_fit(world):
    with pytest.raises(BadInput, match="share a decoder"):
        TwoSensorNet(SmallEncoder(2, (4, 8)), SmallEncoder(2, (4, 6)), 3)
    TwoSensorNet(SmallEncoder(2, (4, 8)), SmallEncoder(2, (4, 6)), 3, fusion="late")
    with pytest.raises(BadInput, match="widths"):
        UNetDecoder((4, 8, 16), 3, (8,))
    with pytest.raises(BadInput, match="at least 2 classes"):
        make_head("fpn", (4, 8), 1)
    net = small()
    with pytest.raises(BadInput, match="same places"):
        net(torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4))
    with pytest.raises(BadInput):
        net.shares()
    net, (a, b, labels) = tiny_net(world), (world.radar, world.optical, world.noisy)
    for shown, said in (
        ((a[:2], b, labels), "Give"),
        ((a * np.nan, b, labels), "NaN"),
        ((a, b, labels.astype(np.uint8) | 255), r"label 255 .*-1 for ignored"),
        ((a, b, labels[:, :, ::2, ::2]), r"labels \(24, 2, 8, 8\)"),
    ):
        with pytest.raises(BadInput, match=said):
            pretrain(net, *shown)
    with pytest.raises(BadInput, match="validation"):
        pretrain(net, a, b, labels, validation=1.0)
    with pytest.raises(BadInput, match="plateau"):
        pretrain(net, a, b, labels, validation=0.0)
    with pytest.raises(UnknownName, match="schedule"):
        pretrain(net, a, b, labels, schedule="step")
    for pictures, truth, classes, said in (
        (a[:, 0], world.truth, 3, "label 4"),
        (a, world.truth, 5, "Give"),
        (a[:, 0], world.truth[:, ::2, ::2], 5, r"labels \(24, 8, 8\)"),
        (a[:, 0] * np.nan, world.truth, 5, "NaN"),
    ):
        with pytest.raises(BadInput, match=said):
            transfer(SmallEncoder(2), pictures, truth, classes)
    nothing = {"epochs": 1, "batch_size": 1, "rate": 1.0, "weight_decay": 0.0, "schedule": "constant"}
    with pytest.raises(BadInput, match="nothing to learn"):
        fit(torch.nn.Identity(), lambda rows, generator: {}, np.arange(2), **nothing)


def test_a_failed_prediction_leaves_the_mode_and_windows_have_pixels(world):
    net = tiny_net(world).train()
    for make in (
        lambda: net.shares(noise_of(2, 9, 8)),
        lambda: net.shares(noise_of(2, 2, 8) * torch.nan),
        lambda: net.shares(noise_of(2, 2, 8), batch_size=0),
        lambda: pretrain(net, world.radar, world.optical, world.noisy, crop=0, epochs=1),
        lambda: pretrain(net, world.radar, world.optical, world.noisy, rate=-1.0, epochs=1),
        lambda: LabelSmoothing(world.noisy, world.classes, prior_share=float("nan")),
    ):
        with pytest.raises(BadInput):
            make()
        assert net.training


def noise_of(count, channels, side):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_a_left_over_row_does_not_drop_the_validation(world):
    report = pretrain(
        tiny_net(world), world.radar[:4], world.optical[:4], world.noisy[:4], epochs=1, batch_size=2, schedule="plateau"
    )
    assert [entry for entry in report.history if "eval_loss" in entry]

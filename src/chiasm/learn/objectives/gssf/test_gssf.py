"""Identities, closed forms, gradients, state and hostile input of GSSF (card: unit tests 1 to 6)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, InfoNCE, Pairs, Stage, train
from chiasm.learn.contrastive import info_nce
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives import objective
from chiasm.learn.objectives.gssf import (
    GSSF,
    RelationDistillation,
    StructuralAttention,
    StructuralMetric,
    channel_order,
    faster_head,
    fit,
    folded,
)
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.worlds.pairs import channels

FORMS = ("both", "diag", "block", "full")


def vectors(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def shaken(dim, seed=3, **options):
    metric = StructuralMetric(dim, **options)
    with torch.no_grad():
        for i, p in enumerate(metric.parameters()):
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + i)))
    return metric


def naive(metric, x, y):
    """The sum over channels and blocks, in float64, one pair at a time."""
    x, y = (normalize(v.double(), dim=-1) for v in (x, y))
    order, block = metric.order.tolist(), (metric.dim if metric.form == "full" else metric.block)
    out = torch.zeros(len(x), len(y), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(y)):
            if metric.weight is not None:
                out[i, j] += (metric.weight.double() * x[i] * y[j]).sum()
            if metric.blocks is not None:
                weights = metric.weights().double()
                for m in range(len(order)):
                    for n in range(len(order)):
                        if m // block == n // block:
                            out[i, j] += weights[m // block, m % block, n % block] * x[i, order[m]] * y[j, order[n]]
    return out.detach()


# ---- the card's identities


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [16, 13])
def test_a_fresh_head_is_the_cosine(form, dim):
    x, y = vectors(5, dim), vectors(7, dim, 1)
    expected = normalize(x, dim=1) @ normalize(y, dim=1).T
    for direction in ("a", "b"):
        torch.testing.assert_close(
            StructuralMetric(dim, form=form).scores(x, y, direction), expected, atol=1e-6, rtol=0
        )


def test_equal_weights_scale_the_cosine():
    metric = StructuralMetric(12, form="diag")
    torch.nn.init.constant_(metric.weight, 2.5)
    x, y = vectors(4, 12), vectors(3, 12, 1)
    torch.testing.assert_close(metric.scores(x, y), 2.5 * normalize(x, dim=1) @ normalize(y, dim=1).T)


def test_one_block_is_the_bilinear_layer():
    x, y = vectors(6, 8), vectors(6, 8, 1)
    for metric in (shaken(8, form="full"), shaken(8, form="block", block=8)):
        layer = torch.nn.Bilinear(8, 8, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(metric.blocks)
        own = metric.scores(x, y).diagonal()
        torch.testing.assert_close(own, layer(normalize(x, dim=1), normalize(y, dim=1))[:, 0], atol=1e-5, rtol=1e-5)


def test_blocks_of_one_channel_are_the_diagonal():
    diagonal, blocks = shaken(9, form="diag"), StructuralMetric(9, form="block", block=1)
    with torch.no_grad():
        blocks.blocks.copy_(diagonal.weight[:, None, None])
    x, y = vectors(4, 9), vectors(5, 9, 1)
    torch.testing.assert_close(diagonal.scores(x, y), blocks.scores(x, y))


def test_closed_form_and_asymmetry():
    x, y = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0]])
    for symmetric, forth, back in ((False, 0.5, 0.0), (True, 0.25, 0.25)):
        metric = StructuralMetric(4, block=2, symmetric=symmetric)
        with torch.no_grad():
            metric.blocks[0, 0, 1] = 0.5
        assert float(metric.scores(x, y).detach()) == forth
        assert float(metric.scores(y, x).detach()) == back


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(FORMS), st.booleans(), st.booleans())
def test_folded_scores_are_the_block_sum(dim, block, form, symmetric, moved):
    metric = shaken(dim, form=form, block=block, symmetric=symmetric)
    if moved:
        metric.group_channels(torch.randperm(dim, generator=torch.Generator().manual_seed(dim)))
    metric.block = min(block, dim)
    x, y = vectors(3, dim), vectors(2, dim, 1)
    expected = naive(metric, x, y).float()
    for direction in ("a", "b"):
        torch.testing.assert_close(metric.scores(x, y, direction).detach(), expected, atol=1e-5, rtol=1e-4)
    unit = normalize(x, dim=1)
    torch.testing.assert_close(
        unit @ metric.matrix() @ normalize(y, dim=1).T, metric.scores(x, y), atol=1e-5, rtol=1e-4
    )


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.size = max(self.size, one.numel())
        return out


def test_no_tensor_of_n_m_d_is_made():
    n, dim = 4096, 32
    metric, x = shaken(dim, block=8), vectors(4096, 32)
    with torch.no_grad(), Largest() as seen:
        whole = metric.scores(x, x, chunk=256)
    assert whole.shape == (n, n)
    assert seen.size <= n * n
    with torch.no_grad(), Largest() as seen:
        scores, rows = metric.topk(x[:64], x, 5, chunk=512)
    assert seen.size <= max(64 * 512, n * dim)
    best, _ = whole[:64].topk(5)
    torch.testing.assert_close(scores, best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.gather(whole[:64], 1, rows), best, atol=1e-5, rtol=1e-5)


# ---- scores


@pytest.mark.parametrize("options", [{}, {"renorm": True}, {"symmetric": True}, {"top": 2}])
@pytest.mark.parametrize("direction", ["a", "b"])
def test_any_inner_product_index_serves_it(options, direction):
    metric = shaken(10, block=4, **options)
    a, b = vectors(6, 10), vectors(8, 10, 1)
    asks, gallery = (a, b) if direction == "a" else (b, a)
    found = metric.transform_query(asks, direction) @ normalize(gallery, dim=1).T
    scores = metric.scores(a, b, direction)
    torch.testing.assert_close(found, scores if direction == "a" else scores.T)
    with torch.no_grad():
        for chunk in (1, 3, 100):
            torch.testing.assert_close(metric.scores(a, b, direction, chunk=chunk), scores.detach())
    if options.get("renorm"):
        assert float(scores.detach().abs().max()) <= 1 + 1e-6
        turned = normalize(asks, dim=1) @ (metric.matrix() if direction == "a" else metric.matrix().T)
        torch.testing.assert_close(metric.transform_query(asks, direction), turned / turned.norm(dim=1, keepdim=True))


def test_the_mask_keeps_the_largest_and_lets_gradients_through():
    metric = shaken(8, block=4, top=1)
    weights = metric.weights()
    assert ((weights != 0).sum(-1) == 1).all()
    torch.testing.assert_close(weights.abs().amax(-1), metric.blocks.abs().amax(-1))
    metric.scores(vectors(5, 8), vectors(5, 8, 1)).square().sum().backward()
    assert (metric.blocks.grad != 0).all()
    tied = shaken(8, block=4, top=1, symmetric=True)
    torch.testing.assert_close(tied.weights(), tied.weights().mT)


def test_half_precision_is_scored_in_float32():
    metric = shaken(8)
    out = metric.scores(vectors(3, 8).half(), vectors(3, 8, 1).half())
    assert out.dtype == torch.float32


def test_token_wise_scores():
    metric = shaken(6, block=3)
    a, b = vectors(2 * 3, 6).view(2, 3, 6), vectors(4 * 5, 6, 1).view(4, 5, 6)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2:] = False
    out = metric.late_interaction(a, b, b_mask=mask)
    for i in range(2):
        for j in range(4):
            pair = metric.scores(a[i], b[j][mask[j]])
            torch.testing.assert_close(out[i, j], pair.amax(1).sum(), atol=1e-5, rtol=1e-5)
    back = metric.late_interaction(a, b, b_mask=mask, direction="b")
    torch.testing.assert_close(back[1, 1], metric.scores(a[1], b[1, :2], "b").amax(0).sum(), atol=1e-5, rtol=1e-5)


# ---- the objective


def test_the_fresh_loss_is_info_nce():
    a, b = vectors(8, 16), vectors(8, 16, 1)
    groups = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5])
    ours, theirs = GSSF(temperature=0.1)(a, b, groups=groups), InfoNCE(0.1)(a, b, groups=groups)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_renormalized_directions_are_two_matrices():
    head = GSSF(6, renorm=True, block=3)
    head.metric = shaken(6, block=3, renorm=True)
    a, b = vectors(5, 6), vectors(5, 6, 1)
    parts, scale = head(a, b), head.temperature.scale
    own, other = (normalize(v, dim=1) for v in (a, b))
    forth = info_nce(head.transform_query(a), other, scale=scale, directions="a")["a_to_b"]
    back = info_nce(own, head.transform_query(b, "b"), scale=scale, directions="b")["b_to_a"]
    torch.testing.assert_close(parts["a_to_b"] + parts["b_to_a"], (forth + back) / 2)


def test_the_hinge_equals_a_double_loop_and_warms_up():
    head = GSSF(6, loss="triplet", block=3, warmup=0.5)
    head.metric = shaken(6, block=3)
    a, b, ids = vectors(7, 6), vectors(7, 6, 1), torch.tensor([0, 0, 1, 2, 3, 4, 5])
    s = head.metric.scores(a, b).detach()
    hardest, mean = torch.zeros(2), torch.zeros(2)
    for way, m in enumerate((s, s.T)):
        for i in range(7):
            costs = [max(0.0, float(0.2 + m[i, j] - m[i, i])) for j in range(7) if ids[i] != ids[j]]
            hardest[way] += max(costs) / 7
            violating = [c for c in costs if c > 0]
            mean[way] += (sum(violating) / len(violating) if violating else 0) / 7
    for step, expected in ((0, mean), (25, (mean + hardest) / 2), (50, hardest), (99, hardest)):
        head.on_progress(step, 100)
        parts = head(a, b, groups=ids)
        torch.testing.assert_close(torch.stack([parts["a_to_b"], parts["b_to_a"]]), expected / 2)


def test_penalties():
    head = GSSF(4, block=2, l1=0.5, pull=2.0)
    with torch.no_grad():
        head.metric.blocks[0] = torch.tensor([[9.0, 1.0], [-2.0, 9.0]])
        head.metric.weight.copy_(torch.tensor([1.0, 3.0, 1.0, 1.0]))
    parts = head(vectors(3, 4), vectors(3, 4, 1))
    assert float(parts["sparsity"].detach()) == pytest.approx(0.5 * 3)
    assert float(parts["pull"].detach()) == pytest.approx(2.0 * 4)
    head.on_progress(0, 100)
    assert float(head(vectors(3, 4), vectors(3, 4, 1))["sparsity"]) == 0


@pytest.mark.parametrize("options", [{"form": form} for form in FORMS] + [{"loss": "triplet"}, {"renorm": True}])
def test_every_parameter_learns(options):
    head = GSSF(8, block=4, **options)
    a, b = vectors(6, 8).requires_grad_(), vectors(6, 8, 1).requires_grad_()
    sum(head(a, b).values()).backward()
    for name, p in head.metric.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
    assert all(v.grad.abs().max() > 0 for v in (a, b))


@pytest.mark.parametrize("loss", ["info-nce", "triplet"])
def test_degenerate_batches_have_results(loss):
    head = GSSF(4, loss=loss)
    one, same = vectors(1, 4), vectors(1, 4).repeat(5, 1)
    for a, b, groups in ((one, one, None), (same, same, None), (same, same, torch.zeros(5, dtype=torch.long))):
        a = a.clone().requires_grad_()
        total = sum(head(a, b, groups=groups).values())
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(a.grad).all()
    if loss == "info-nce":
        assert float(sum(head(same, same).values())) == pytest.approx(math.log(5), rel=1e-5)
    assert torch.isfinite(sum(head(torch.zeros(3, 4), torch.zeros(3, 4)).values()))


# ---- grouping, plug-ins


def test_scattered_channels_find_together():
    rng = np.random.default_rng(0)
    place = rng.permutation(12)
    z = rng.standard_normal((4000, 12))
    turns = [np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(3)]
    other = np.concatenate([z[:, 4 * g : 4 * g + 4] @ turns[g] for g in range(3)], axis=1)
    order = channel_order(torch.from_numpy(z[:, place]), torch.from_numpy(other[:, place]), 4)
    found = {frozenset((place[order[4 * g : 4 * g + 4].numpy()] // 4).tolist()) for g in range(3)}
    assert found == {frozenset({0}), frozenset({1}), frozenset({2})}
    assert sorted(channel_order(vectors(9, 7), torch.ones(9, 7), 3).tolist()) == list(range(7))


def test_fresh_attention_is_plain_attention():
    q, k, v = (vectors(2 * 3 * 5, 8, i).view(2, 3, 5, 8) for i in range(3))
    layer = StructuralAttention(3, 8, block=4)
    torch.testing.assert_close(layer(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    layer.metrics[1] = shaken(8, block=4)
    matrix = layer.metrics[1].matrix()
    torch.testing.assert_close(layer.logits(q, k)[:, 1], q[:, 1] @ matrix @ k[:, 1].mT / 8**0.5, atol=1e-5, rtol=1e-4)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, :, 3:] = False
    mask[1, :, 2] = False
    out = layer(q, k, v, mask)
    expected = layer.logits(q, k).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0) @ v
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    assert (out[1, :, 2] == 0).all()
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_distillation_is_zero_for_the_teacher_itself_and_teaches_the_student_only():
    a, b = vectors(6, 8), vectors(6, 8, 1)
    own = RelationDistillation(8)
    assert float(sum(own(a, b, teacher_a=a, teacher_b=b).values()).abs()) < 1e-6
    teacher, student = vectors(6, 12, 2).requires_grad_(), a.clone().requires_grad_()
    parts = own(student, b, teacher_a=teacher, teacher_b=vectors(6, 12, 3))
    p = (10 * normalize(teacher, dim=1) @ normalize(teacher, dim=1).T).softmax(1)
    q = (10 * normalize(a, dim=1) @ normalize(a, dim=1).T).softmax(1)
    expected = (p * (p.log() - q.log())).sum(1).mean() / 3
    torch.testing.assert_close(parts["relations_a"].detach(), expected.detach())
    sum(parts.values()).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    assert own.metric.blocks.grad.abs().max() > 0
    alone = own(a[:1], b[:1], teacher_a=a[:1], teacher_b=b[:1])
    assert float(sum(alone.values())) == pytest.approx(0, abs=1e-6)


# ---- training, state


def test_post_hoc_fit_beats_the_cosine_and_not_where_nothing_is_wrong():
    def gain(strong, weak):
        world = channels(300, 1500, rotate=False, strong=strong, weak=weak, seed=1000)
        head = fit(world.bank_text, world.bank_image, epochs=8)
        with torch.no_grad():
            scores = head.similarity(*(Encoded(torch.from_numpy(x)) for x in (world.text, world.image))).numpy()
        truth = np.arange(300)
        return ((scores.argmax(1) == truth).mean() - ((world.text @ world.image.T).argmax(1) == truth).mean()) * 100

    assert gain(2.5, 0.2) > 40
    assert abs(gain(0.4, 0.4)) < 3


def test_fit_takes_groups_and_correlation():
    world = channels(10, 200, seed=1000)
    head = fit(
        torch.from_numpy(world.bank_text),
        world.bank_image,
        groups=np.arange(200) // 2,
        grouping="correlation",
        epochs=1,
    )
    assert not torch.equal(head.metric.order, torch.arange(64))


@pytest.mark.parametrize("direction", ["a", "b"])
def test_joint_training_folding_and_plain_loading(tmp_path, direction):
    from sentence_transformers import SentenceTransformer

    world = channels(20, 60, dim=16, seed=0)
    source = {"a": Features({"input_features": world.bank_text}), "b": Features({"input_features": world.bank_image})}
    pairs = Pairs(source)
    torch.manual_seed(0)
    model = dual_tower(Perceptron([16, 12]), Perceptron([16, 12]), device="cpu")
    head = objective("gssf", block=5)
    rates = []

    def optimizer(groups, rate):
        made = faster_head(head, 10)(groups, rate)
        rates.extend({g["lr"] for g in made.param_groups})
        return made

    train(
        model,
        pairs,
        head,
        Stage(steps=6, warmup=0.0),
        batch_size=16,
        optimizer=optimizer,
        evaluator=HeldOut(pairs, head),
    )
    assert sorted(set(rates)) == [pytest.approx(1e-3), pytest.approx(1e-2)]
    assert not torch.equal(head.metric.weight, torch.ones(12))
    a, b = HeldOut(pairs, head).encoded(model)
    folded(model, head.metric, direction).save_pretrained(str(tmp_path / "model"))
    # The folded part is sentence-transformers' own; it is the towers' class that has to be trusted.
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    left, right = (side.vectors for side in HeldOut(pairs).encoded(plain))
    with torch.no_grad():
        torch.testing.assert_close(left @ right.T, head.similarity(a, b, direction), atol=1e-5, rtol=1e-4)


def test_state_survives_and_sizes_a_new_head():
    head = GSSF(8, block=3)
    head.metric.group_channels(torch.tensor([3, 1, 2, 0, 7, 6, 5, 4]))
    with torch.no_grad():
        head.metric.blocks.normal_()
    again = GSSF(block=3)
    again.load_state_dict(head.state_dict())
    x, y = vectors(3, 8), vectors(4, 8, 1)
    assert torch.equal(again.metric.scores(x, y), head.metric.scores(x, y))
    assert torch.equal(again.metric.order, head.metric.order)


# ---- hostile input


def test_bad_input_is_named():
    with pytest.raises(UnknownName, match="diag"):
        GSSF(form="diagonal")
    with pytest.raises(UnknownName, match="triplet"):
        GSSF(loss="triplets")
    with pytest.raises(BadInput, match="block=0"):
        StructuralMetric(4, block=0)
    with pytest.raises(BadInput, match="warmup"):
        GSSF(warmup=2)
    with pytest.raises(BadInput, match="length 5"):
        StructuralMetric(4).scores(vectors(2, 5), vectors(2, 5))
    with pytest.raises(BadInput, match="permutation"):
        StructuralMetric(3).group_channels(torch.tensor([0, 0, 1]))
    with pytest.raises(BadInput, match="no vectors"):
        StructuralMetric().matrix()
    with pytest.raises(UnknownName, match="direction"):
        StructuralMetric(3).transform_query(vectors(1, 3), "c")
    with pytest.raises(BadInput, match="row 1 of b"):
        fit(np.ones((3, 4)), np.array([[1.0] * 4, [np.nan] * 4, [1.0] * 4]))
    with pytest.raises(BadInput, match="shapes"):
        fit(np.ones((3, 4)), np.ones((3, 5)))
    with pytest.raises(UnknownName, match="grouping"):
        fit(np.ones((3, 4)), np.ones((3, 4)), grouping="random")
    with pytest.raises(UnknownName, match="relation"):
        RelationDistillation(relations=("c",))
    with pytest.raises(BadInput, match="queries of shape"):
        StructuralAttention(2, 4).transform(vectors(2, 4))
    with pytest.raises(BadInput, match="not pairs"):
        GSSF(4, loss="triplet")(vectors(2, 4), vectors(3, 4))
    with pytest.raises(BadInput, match="linear"):
        folded(dual_tower(Perceptron([4, 4]), Perceptron([4, 4])), StructuralMetric(4, renorm=True))

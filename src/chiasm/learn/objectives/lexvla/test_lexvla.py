from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.learn import Features, HeldOut, Pairs, Stage, train
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.lexvla import (
    BagOfWords,
    LexVLA,
    PatchAdapter,
    Vocabulary,
    Weight,
    bag_of_words,
    best_patches,
    codebook_of,
    explain,
    flops,
    overuse,
    patch_labels,
    patchdis,
    sparse_encoder,
    top_words,
    upsampled,
    word_precision,
    word_recall,
    word_use,
)
from chiasm.learn.objectives.lexvla.claim import pairs_of, rows_of, trained
from chiasm.learn.objectives.lexvla.scenes import word_scenes
from chiasm.learn.towers import dual_tower
from chiasm.search.word_index import WordIndex


def items(n: int = 5, seed: int = 0, dim: int = 16) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    tokens = 3 * torch.randn(n, 4, dim, generator=generator)
    mask = torch.rand(n, 4, generator=generator) < 0.7
    mask[:, 0] = True
    return Encoded(tokens.mean(1), tokens, mask)


def made(**options) -> LexVLA:
    return LexVLA(**{"words": 32, "dim": 16, **options}).eval()


def loss_of(objective: LexVLA, a: Encoded, b: Encoded) -> dict[str, torch.Tensor]:
    return objective(a.vectors, b.vectors, a_tokens=a.tokens, a_mask=a.mask, b_tokens=b.tokens, b_mask=b.mask)


# ---- the penalty


@given(st.integers(2, 40), st.floats(0.01, 3))
@settings(max_examples=30, deadline=None)
def test_overuse_is_flops_where_usage_is_equal(size, value):
    vectors = torch.full((3, size), value, dtype=torch.float64)
    assert float(overuse(vectors)) == pytest.approx(float(flops(vectors)), rel=1e-9)


def test_overuse_of_one_word_is_v_times_flops():
    vectors = torch.zeros(4, 7)
    vectors[:, 2] = 1
    assert float(flops(vectors)) == 1
    assert float(overuse(vectors)) == pytest.approx(7)
    assert float(overuse(torch.zeros(4, 7))) == 0


def test_overuse_pushes_busy_words_harder_than_flops_does():
    vectors = torch.tensor([[0.9, 0.1, 0.1, 0.1]], requires_grad=True)
    found = []
    for cost in (flops, lambda v: overuse(v, stop_gradient=True), overuse):
        (grad,) = torch.autograd.grad(cost(vectors), vectors)
        found.append(grad[0].tolist())
    assert found[0][0] / found[0][1] == pytest.approx(9, rel=1e-5)
    assert found[1][0] / found[1][1] == pytest.approx(81, rel=1e-4)  # q_v a_v instead of a_v
    # d/da_v V sum a^3 / S = V (3 a_v^2 / S - sum a^3 / S^2): words used less than that balance are pushed up.
    total, cubes = 1.2, 0.9**3 + 3 * 0.1**3
    want = [4 * (3 * a * a / total - cubes / total**2) for a in (0.9, 0.1, 0.1, 0.1)]
    assert found[2] == pytest.approx(want, rel=1e-4)
    assert want[1] < 0


def test_weight_rises_quadratically_and_follows_its_target():
    weight = Weight(2.0, target=10)
    seen = []
    for step in (0, 10, 20, 30):
        weight.on_progress(step, 60)
        seen.append(float(weight.now))
    assert seen == pytest.approx([0, 0.5, 2, 2])
    weight.observe(11)
    assert float(weight.value) == pytest.approx(2.1)
    weight.observe(9)
    assert float(weight.value) == pytest.approx(2.0)
    fixed = Weight(2.0)
    fixed.observe(1e9)
    assert float(fixed.value) == 2
    again = Weight(0.0)
    again.load_state_dict(weight.state_dict())
    assert float(again.now) == float(weight.now)


# ---- the objective


def test_parts_of_the_loss_by_the_definition():
    objective, a, b = made(), items(), items(seed=1)
    objective.on_progress(1, 1)
    losses = loss_of(objective, a, b)
    sa, sb = objective.represent(a.tokens, a.mask, "a"), objective.represent(b.tokens, b.mask, "b")
    logits = sa @ sb.T / 0.07
    want = torch.nn.functional.cross_entropy(logits, torch.arange(5)) / 2
    assert float(losses["a_to_b"]) == pytest.approx(float(want), rel=1e-4)
    assert float(losses["overuse_a"]) == pytest.approx(float(overuse(sa)), rel=1e-5)
    assert float(losses["overuse_b"]) == pytest.approx(float(overuse(sb)), rel=1e-5)


def test_only_the_codebook_of_pictures_learns_and_neither_decays():
    objective = made()
    objective.on_progress(1, 1)
    sum(loss_of(objective, items(), items(seed=1)).values()).backward()
    assert objective.image_codebook.grad.abs().sum() > 0
    assert not objective.text_codebook.requires_grad
    assert objective.no_decay()[0] is objective.image_codebook
    assert torch.equal(objective.text_codebook, objective.image_codebook)


def test_permuting_the_vocabulary_changes_no_score():
    a, b, order = items(), items(seed=1), torch.randperm(32, generator=torch.Generator().manual_seed(0))
    one = made()
    two = LexVLA(one.text_codebook[order]).eval()
    for dense in (True, False):
        torch.testing.assert_close(two.similarity(a, b, dense=dense), one.similarity(a, b, dense=dense))


def test_scale_is_learned_and_bounded():
    objective = made()
    assert float(objective.scale) == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        objective.log_scale.fill_(math.log(500))
    assert float(objective.scale) == 100


def test_padding_and_chunks_change_no_score():
    a, b = items(), items(seed=1)
    want = made().similarity(a, b)
    longer = Encoded(
        a.vectors, torch.nn.functional.pad(a.tokens, (0, 0, 0, 3), value=50), torch.nn.functional.pad(a.mask, (0, 3))
    )
    torch.testing.assert_close(made().similarity(longer, b), want)
    torch.testing.assert_close(made(chunk=5).similarity(a, b, chunk=2), want)


def test_items_without_tokens_one_pair_and_equal_pairs_are_defined():
    objective, a = made(), items()
    none = Encoded(a.vectors, a.tokens, torch.zeros_like(a.mask))
    for x, y in ((a, none), (none, none), (Encoded(a.vectors[:1], a.tokens[:1], a.mask[:1]),) * 2):
        leaf = x.tokens.clone().requires_grad_()
        loss = sum(loss_of(objective, Encoded(x.vectors, leaf, x.mask), y).values())
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(leaf.grad).all()
    same = Encoded(a.vectors[:1].expand(4, -1), a.tokens[:1].expand(4, -1, -1), a.mask[:1].expand(4, -1))
    assert float(loss_of(objective, same, same)["a_to_b"]) == pytest.approx(math.log(4) / 2, rel=1e-4)
    assert objective.transform_query(Encoded(a.vectors[:0], a.tokens[:0], a.mask[:0]), "a").shape == (0, 32)


def test_sparse_vectors_options():
    vectors = made().transform_query(items(), "a", dense=True)
    assert ((made(top=3).sparse(vectors) > 0).sum(1) == 3).all()
    torch.testing.assert_close(made(renormalize=True).sparse(vectors).norm(dim=1), torch.ones(5))
    assert (made().sparse(vectors)[made().sparse(vectors) > 0] > 32**-0.5).all()


def test_unknown_options_and_bad_sizes_are_refused():
    for options in ({"penalty": "l1"}, {"text": "speech"}):
        with pytest.raises(UnknownName):
            made(**options)
    for options in ({"words": 0}, {"weight": -1}, {"temperature": 0}, {"codebook": torch.zeros(3)}, {"warmup": 2}):
        with pytest.raises(BadInput):
            made(**options)
    with pytest.raises(BadInput):
        made(text="bag").represent(torch.ones(2, 5), None, "b")


# ---- training


def test_lam_zero_is_the_plain_contrast_and_training_works():
    world = word_scenes(256, seed=1000)
    plain, zero = (trained(world, 0, steps=8, **o)[0] for o in ({"penalty": "none"}, {"weight": 0.0}))
    for x, y in zip(plain.state_dict().values(), zero.state_dict().values()):
        assert torch.equal(x, y)
    model, objective, _ = trained(world, 0, steps=100)
    found = {row.metric: row.value for row in rows_of("", "", model, objective, word_scenes(64, seed=1001))}
    assert found["R@1"] > 10  # chance is 1.6
    assert float(objective.weight.rise) == 1


def test_bags_of_words_train():
    world = word_scenes(64, seed=1000)
    model, objective, _ = trained(world, 0, steps=4, bags=True)
    a, b = HeldOut(pairs_of(world, bags=True), objective).encoded(model)
    vectors = objective.transform_query(b, "b")
    assert ((vectors > 0).sum(1) == 2).all()
    assert objective.similarity(a, b).shape == (64, 64)


def test_the_controller_steers_active_words():
    world = word_scenes(128, seed=1000)
    low = trained(world, 0, steps=12, target=1.0)[1]
    high = trained(world, 0, steps=12, target=300.0)[1]
    assert float(low.weight.value) == pytest.approx(1.05**12, rel=1e-4)
    assert float(high.weight.value) == pytest.approx(1.05**-12, rel=1e-4)


# ---- vocabulary


def test_vocabulary_keeps_words():
    tokens = ["<s>", "<0x0A>", "[PAD]", "\u2581dog", "ing", "\u2581,", "\u2581the", "\u25812", "\u2581x", "\u2581grass"]
    assert Vocabulary.of(tokens).words == ("dog", "the", "grass")
    assert Vocabulary.of(tokens, function_words=False).ids.tolist() == [3, 9]
    assert Vocabulary.of(tokens, pieces=True).words == ("dog", "-ing", "the", "grass")
    assert Vocabulary.of(["[CLS]", "dog", "##ing", "!", "a"]).words == ("dog",)
    assert Vocabulary.of(tokens).index("grass") == 2
    with pytest.raises(UnknownName):
        Vocabulary.of(tokens).index("gras")
    with pytest.raises(BadInput):
        Vocabulary.of(["<s>", "!"])


def test_projected_codebook_keeps_inner_products():
    table = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 8)
    vocabulary = Vocabulary(("p", "q", "r", "s"), np.array([1, 4, 5, 9]))
    book, axes = codebook_of(table, vocabulary, dim=3)
    hidden = table[[0, 2]]
    torch.testing.assert_close((hidden @ axes) @ book.T, hidden @ table[vocabulary.ids].T, rtol=1e-3, atol=1e-3)
    assert torch.equal(codebook_of(table, vocabulary)[0], table[vocabulary.ids])
    with pytest.raises(BadInput):
        codebook_of(table, vocabulary, dim=5)


def test_bags_hold_each_word_once():
    bags = bag_of_words([[0, 1, 1, 3], [], [2]], np.array([-1, 2, 0, -1]), 3)
    assert bags.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


# ---- PatchDis and reading


def test_patchdis_closed_forms():
    masks = torch.tensor([[0, 0, 1, -1]])
    perfect = patchdis(torch.tensor([[0, 0, 1, 1]]), masks, 3)
    assert perfect.miou == 1
    assert perfect.accuracy == 1
    assert perfect.iou[2].isnan()
    half = patchdis(torch.tensor([[0, 1, 1, 0]]), masks, 3)
    assert half.iou[:2].tolist() == [0.5, 0.5]
    assert half.accuracy == pytest.approx(2 / 3)
    none = patchdis(torch.tensor([[-1, -1, -1, -1]]), masks, 3)
    assert none.miou == 0
    for call in (lambda: patchdis(masks, masks[:, :2], 3), lambda: patchdis(masks, masks + 5, 3)):
        with pytest.raises(BadInput):
            call()


def test_labels_are_restricted_and_upsampled():
    patches, classes = torch.eye(3)[None], torch.eye(3)
    assert patch_labels(patches, classes).tolist() == [[0, 1, 2]]
    assert patch_labels(patches, classes, torch.tensor([[False, True, False]])).tolist() == [[1, 1, 1]]
    assert patch_labels(patches, classes, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[-1, -1, -1]]
    pixels = upsampled(torch.tensor([[0, 1, 2, 3]]), (2, 2), (4, 6))
    assert pixels[0].tolist() == [[0] * 3 + [1] * 3] * 2 + [[2] * 3 + [3] * 3] * 2
    with pytest.raises(BadInput):
        upsampled(torch.zeros(1, 5), (2, 2), (4, 4))


def test_explanations_sum_to_the_score():
    objective, names = made(), [f"w{i}" for i in range(32)]
    a, b = (objective.transform_query(items(seed=s), side)[0] for s, side in ((0, "a"), (1, "b")))
    parts = explain(a, b, names)
    assert sum(x for _, x in parts) == pytest.approx(float(a @ b), rel=1e-5)
    index = WordIndex(a[None], names)
    assert [w for w, _ in index.explain(b, 0).words] == [w for w, _ in parts]
    assert top_words(torch.tensor([[0.0, 2.0, 1.0]]), ("p", "q", "r"), 3) == [[("q", 2.0), ("r", 1.0)]]
    with pytest.raises(BadInput):
        explain(a, b[:3], names)
    with pytest.raises(BadInput):
        top_words(a[None], names[:3])


def test_index_finds_what_the_dense_product_finds():
    objective = made()
    a, b = (objective.transform_query(items(60, s), side) for s, side in ((0, "a"), (1, "b")))
    scores, _ = WordIndex(a).search(b, 5)
    want = (b @ a.T).topk(5).values
    torch.testing.assert_close(torch.from_numpy(scores), want)


def test_patches_answer_queries_and_say_words():
    objective = LexVLA(torch.eye(4)).eval()
    tokens = 9 * torch.eye(4)[None, :3]
    patches = objective.patches(tokens)
    assert best_patches(patches[0], torch.eye(4)[2], 1)[1].tolist() == [2]
    token, strength = objective.says(tokens, None)
    assert token[0, :3].tolist() == [0, 1, 2]
    torch.testing.assert_close(strength[0, :3], torch.full((3,), 10.0))


def test_word_use_recall_and_precision():
    vectors = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    use = word_use(vectors, most=1)
    assert (use.active, use.busiest, use.dead) == (1.5, 1.0, 0.5)
    assert use.weight == pytest.approx(2 / 3)
    assert word_use(vectors, most=2).busiest == 0.75
    truth = torch.tensor([[True, True, False, False], [False, True, False, False]])
    assert word_recall(vectors, truth).tolist() == [0.5, 1]
    assert word_precision(vectors, truth).tolist() == [1, 0.5]


# ---- saving, and the SparseEncoder


def towers() -> object:
    torch.manual_seed(0)
    return dual_tower(PatchAdapter(12, out=16), PatchAdapter(10, out=20), device="cpu")


def test_state_is_saved(tmp_path):
    objective = made(width_b=20)
    objective.weight.on_progress(1, 3)
    torch.save(objective.state_dict(), tmp_path / "objective.pt")
    again = made(width_b=20, seed=5)
    again.load_state_dict(torch.load(tmp_path / "objective.pt"))
    b = items(seed=1, dim=20)
    assert torch.equal(again.similarity(items(), b), objective.similarity(items(), b))
    assert float(again.weight.now) == float(objective.weight.now)


def test_sparse_encoder_scores_decodes_and_loads(tmp_path):
    from sentence_transformers import SparseEncoder

    rng = np.random.default_rng(0)
    pictures, texts = (rng.normal(0, 3, (6, 4, d)).astype(np.float32) for d in (12, 10))
    pairs = Pairs({"a": Features({"input_features": pictures}), "b": Features({"input_features": texts})})
    model, objective = towers(), made(width_b=20)
    train(model, pairs, objective, Stage(steps=2), batch_size=4, device="cpu")
    objective.eval()
    names = [f"w{i}" for i in range(32)]
    encoder = sparse_encoder(model, objective, names, device="cpu")
    found = [encoder.encode(list(x), task=side) for x, side in ((pictures, "a"), (texts, "b"))]
    assert found[0].is_sparse
    assert found[0].shape == (6, 32)
    held = HeldOut(pairs, objective)
    torch.testing.assert_close(encoder.similarity(*found), objective.similarity(*held.encoded(model)))
    want = top_words(found[0].to_dense()[:1], names, 3)[0]
    assert [word for word, _ in encoder.decode(found[0][0], top_k=3)] == [word for word, _ in want]
    assert (encoder.encode(list(pictures), task="a", max_active_dims=2).to_dense() > 0).sum(1).max() <= 2
    encoder.save(str(tmp_path / "encoder"))
    again = SparseEncoder(str(tmp_path / "encoder"), device="cpu", trust_remote_code=True)
    torch.testing.assert_close(again.encode_query(list(texts)).to_dense(), found[1].to_dense())
    torch.testing.assert_close(again.encode_document(list(pictures)).to_dense(), found[0].to_dense())
    assert again.decode(found[0][0], top_k=1)[0][0] == want[0][0]
    with pytest.raises(BadInput):
        sparse_encoder(model, objective, names[:3])


def test_bag_of_words_module_hands_through():
    bags = torch.eye(3)
    assert torch.equal(BagOfWords([3, 3])({"input_features": bags})["sentence_embedding"], bags)

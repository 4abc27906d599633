"""Identities, closed forms and invariances of inversion, the loss term and the closing of the gap (card: identities a to f)."""

import hashlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import battery
import chiasm
import tiny_models
from chiasm.blocks.prompts import encode_patch_embeddings, patch_embeddings, token_embeddings
from chiasm.correct.cross_the_gap import (
    ClipLoss,
    TextualInversion,
    VisualInversion,
    close_gap_by_training,
    compare,
    digits,
    invert,
)
from chiasm.correct.cross_the_gap.inversion import paper_tokens, spread
from chiasm.errors import BadInput, UnknownName
from chiasm.learn.contrastive import info_nce
from chiasm.measure import modality_gap, same_label
from chiasm.worlds import pairs

WORD = {"clip": "x", "siglip": "cat"}  # one token in each tiny tokenizer


@pytest.fixture(scope="module", params=["clip", "siglip"])
def tiny(request, tiny_clip, tiny_siglip):
    """A tiny model, its tokenizer, image and text features."""
    from transformers import AutoModel, AutoProcessor

    folder = {"clip": tiny_clip, "siglip": tiny_siglip}[request.param]
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    pictures = [tiny_models.picture(i) for i in range(6)]
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    ids = encoded(request.param, processor.tokenizer, ["a photo of x", "red cat", "sea", "a dog on the snow"])
    with torch.no_grad():
        images = model.get_image_features(pixel_values=pixels).pooler_output
        texts = model.get_text_features(**ids).pooler_output
    return SimpleNamespace(
        name=request.param,
        model=model,
        tokenizer=processor.tokenizer,
        pixels=pixels,
        images=images,
        texts=texts,
        folder=folder,
    )


def encoded(name, tokenizer, sentences):
    """As each family is fed: CLIP padded to the longest with a mask, SigLIP to full length without one."""
    if name == "siglip":
        return dict(tokenizer(sentences, padding="max_length", max_length=16, return_tensors="pt"))
    return dict(tokenizer(sentences, padding=True, return_tensors="pt"))


def weights_hash(model):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())).hexdigest()


def real_word(tiny):
    """The embedding ``[1, Wt]`` of a real word, and the feature of "a photo of" it."""
    ids = tiny.tokenizer(WORD[tiny.name], add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 1)
    with torch.no_grad():
        sentence = encoded(tiny.name, tiny.tokenizer, [f"a photo of {WORD[tiny.name]}"])
        return token_embeddings(tiny.model, ids)[0].detach(), tiny.model.get_text_features(**sentence).pooler_output


# ---- textual inversion


def test_a_real_words_embedding_solves_its_own_sentence(tiny):
    word, feature = real_word(tiny)
    oti = TextualInversion(tiny.model, tiny.tokenizer)
    found = invert(oti._encode, feature, word[None], steps=1)
    assert found.start.item() < 1e-6


def test_the_original_embedding_reproduces_the_text_bit_for_bit(tiny):
    word, feature = real_word(tiny)
    with torch.no_grad():
        assert torch.equal(TextualInversion(tiny.model, tiny.tokenizer)._encode(word[None]), feature)


def test_several_pseudo_words_stand_in_a_row_where_the_braces_were(tiny):
    words = token_embeddings(
        tiny.model, torch.tensor(tiny.tokenizer("red cat dog", add_special_tokens=False)["input_ids"])
    )
    oti = TextualInversion(tiny.model, tiny.tokenizer, template="a photo of {} on snow", tokens=len(words))
    sentence = encoded(tiny.name, tiny.tokenizer, ["a photo of red cat dog on snow"])
    with torch.no_grad():
        own = tiny.model.get_text_features(**sentence).pooler_output
        torch.testing.assert_close(oti._encode(words[None]), own, rtol=1e-5, atol=1e-6)


def test_inversion_lowers_the_loss_and_reports_it(tiny):
    oti = TextualInversion(tiny.model, tiny.tokenizer, steps=30)
    found = oti.invert(tiny.images)
    cosine = cosine_similarity(found.features, tiny.images)
    torch.testing.assert_close(found.loss, 1 - cosine, rtol=0, atol=1e-5)
    for loss in (found.loss, found.start):
        assert ((loss >= 0) & (loss <= 2)).all()
    assert (found.loss < found.start).all()
    assert (found.steps == 30).all()
    torch.testing.assert_close(found.features.norm(dim=1), torch.ones(6))
    with torch.no_grad():
        torch.testing.assert_close(normalize(oti._encode(found.pseudo)), found.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_model_is_left_as_it_was(tiny, kind):
    before = weights_hash(tiny.model)
    tiny.model.train()
    try:
        if kind == "text":
            TextualInversion(tiny.model, tiny.tokenizer, steps=3).transform(tiny.images)
        else:
            VisualInversion(tiny.model, steps=3).transform(tiny.texts)
        assert all(module.training for module in tiny.model.modules())
    finally:
        tiny.model.eval()
    assert weights_hash(tiny.model) == before
    assert all(p.grad is None and p.requires_grad for p in tiny.model.parameters())
    assert not any(module._forward_hooks for module in tiny.model.modules())


@pytest.mark.parametrize("early_stop", [False, True])
def test_an_items_result_does_not_depend_on_its_batch(tiny, early_stop):
    steps = 40
    oti = TextualInversion(tiny.model, tiny.tokenizer, steps=steps, early_stop=early_stop)
    small = TextualInversion(tiny.model, tiny.tokenizer, steps=steps, early_stop=early_stop, batch_size=2)
    whole, order = oti.invert(tiny.images), torch.tensor([3, 0, 5])
    some = small.invert(tiny.images[order])
    # Adam magnifies float32 rounding, so what is compared is what is searched with.
    assert (whole.features[order] * some.features).sum(dim=1).min() > 0.999
    torch.testing.assert_close(whole.loss[order], some.loss, rtol=0, atol=2e-3)
    torch.testing.assert_close(whole.start[order], some.start, rtol=0, atol=1e-5)


def test_equal_items_have_equal_results_and_seeds_differ(tiny):
    twice = tiny.images[[0, 0]]
    found = TextualInversion(tiny.model, tiny.tokenizer, steps=5).invert(twice)
    torch.testing.assert_close(found.pseudo[0], found.pseudo[1])
    other = TextualInversion(tiny.model, tiny.tokenizer, steps=5, seed=1).invert(twice)
    assert not torch.equal(found.pseudo, other.pseudo)


def test_arrays_come_back_as_they_came(tiny):
    oti = TextualInversion(tiny.model, tiny.tokenizer, steps=2)
    given = tiny.images.numpy().astype(np.float64)
    before = given.copy()
    found = oti.invert(given)
    assert all(
        isinstance(getattr(found, name), np.ndarray) for name in ("features", "pseudo", "start", "loss", "steps")
    )
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(given, before)
    torch.testing.assert_close(torch.from_numpy(found.features), oti.transform(tiny.images), rtol=1e-4, atol=1e-4)


def test_it_works_under_inference_mode_and_reports_progress(tiny):
    seen = []
    oti = TextualInversion(
        tiny.model, tiny.tokenizer, steps=3, batch_size=4, progress=lambda done, total: seen.append((done, total))
    )
    with torch.inference_mode():
        inside = oti.transform(tiny.images.clone())
    assert seen == [(4, 18), (8, 18), (12, 18), (14, 18), (16, 18), (18, 18)]
    torch.testing.assert_close(inside, oti.transform(tiny.images))


def test_degenerate_features_have_results(tiny):
    oti = TextualInversion(tiny.model, tiny.tokenizer, steps=2)
    assert oti.transform(tiny.images[:0]).shape == (0, 24)
    rows = tiny.images.clone()
    rows[1] = 0
    found = oti.invert(rows)
    assert (found.features[1] == 0).all()
    assert found.loss[1] == 1
    torch.testing.assert_close(found.features[2], oti.transform(tiny.images)[2], rtol=1e-4, atol=1e-4)
    rows[1, 0] = torch.nan
    with pytest.raises(BadInput, match="row 1"):
        oti.transform(rows)
    with pytest.raises(BadInput, match="same model"):
        oti.transform(tiny.images[:, :10])


def test_a_warm_start_begins_lower(tiny):
    rng = np.random.default_rng(0)
    mixed = normalize(torch.from_numpy(rng.dirichlet(np.ones(6), 40).astype(np.float32)) @ tiny.images)
    cold = TextualInversion(tiny.model, tiny.tokenizer, steps=40)
    done = cold.invert(mixed[:30])
    warm = TextualInversion(tiny.model, tiny.tokenizer, steps=40).fit(mixed[:30], done)
    assert warm.invert(mixed[30:]).start.mean() < 0.9 * cold.invert(mixed[30:]).start.mean()
    with pytest.raises(BadInput, match="their own inversions"):
        warm.fit(mixed[:3], done)


def test_half_precision_is_copied_to_float(tiny):
    import copy

    half = copy.deepcopy(tiny.model).to(torch.bfloat16)
    before = weights_hash(half.float())
    half.to(torch.bfloat16)
    oti = TextualInversion(half, tiny.tokenizer, steps=3)
    assert next(half.parameters()).dtype == torch.bfloat16
    assert np.isfinite(oti.transform(tiny.images.numpy())).all()
    assert weights_hash(oti.model) == before


def test_a_space_brings_its_tokenizer(tiny):
    space = chiasm.load(str(tiny.folder), device="cpu")
    vectors = space.encode([tiny_models.picture(i) for i in range(3)]).vectors
    found = TextualInversion(space, steps=20).invert(vectors)
    assert found.loss.mean() < found.start.mean()
    assert found.features.shape == vectors.shape


def test_bad_arguments_are_named(tiny, tiny_bert):
    from transformers import AutoModel

    for arguments, broken in (
        ({"template": "a photo"}, "needs one {}"),
        ({"template": "{} and {}"}, "needs one {}"),
        ({"tokens": 0}, "not positive"),
        ({"tokens": 99}, "the model reads"),
        ({"batch_size": 0}, "not positive"),
    ):
        with pytest.raises(BadInput, match=broken):
            TextualInversion(tiny.model, tiny.tokenizer, **arguments)
    with pytest.raises(BadInput, match="tokenizer"):
        TextualInversion(tiny.model)
    with pytest.raises(BadInput, match="17 tokens for 16 patches"):
        VisualInversion(tiny.model, tokens=17)
    with pytest.raises(BadInput, match="negative"):
        TextualInversion(tiny.model, tiny.tokenizer, steps=-1).transform(tiny.images)
    with pytest.raises(UnknownName, match="bert"):
        VisualInversion(AutoModel.from_pretrained(tiny_bert))


# ---- visual inversion


def test_as_many_tokens_as_patches_reproduce_the_picture_bit_for_bit(tiny):
    patches = patch_embeddings(tiny.model, tiny.pixels).detach()
    ovi = VisualInversion(tiny.model, tokens=patches.shape[1])
    with torch.no_grad():
        assert torch.equal(ovi._encode(patches), tiny.images)


@pytest.mark.parametrize(("tokens", "patches"), [(1, 16), (4, 49), (4, 196), (2, 256), (3, 16), (16, 16)])
def test_every_token_fills_one_run_of_positions(tokens, patches):
    marked = torch.arange(1.0, tokens + 1).reshape(1, tokens, 1)
    filled = spread(marked, patches).flatten()
    counts = torch.bincount(filled.long())[1:]
    assert (filled.diff() >= 0).all()
    assert counts.sum() == patches
    assert counts.max() - counts.min() <= 1


def test_one_token_fills_all_patches(tiny):
    one = torch.randn(2, 1, VisualInversion(tiny.model)._width())
    with torch.no_grad():
        expected = encode_patch_embeddings(tiny.model, one.expand(-1, 16, -1))
        assert torch.equal(VisualInversion(tiny.model, tokens=1)._encode(one), expected)


def test_texts_become_pictures(tiny):
    found = VisualInversion(tiny.model, steps=40).invert(tiny.texts)
    assert (found.loss < found.start).all()
    assert found.pseudo.shape[:2] == (4, 1 if tiny.name == "clip" else 4)


@pytest.mark.parametrize(
    ("kind", "width", "act", "tokens"),
    [
        ("clip", 768, "quick_gelu", 1),
        ("clip", 1024, "quick_gelu", 4),
        ("clip", 1024, "gelu", 2),
        ("siglip", 768, "x", 4),
    ],
)
def test_tokens_of_the_paper(kind, width, act, tokens):
    config = SimpleNamespace(model_type=kind, vision_config=SimpleNamespace(hidden_size=width, hidden_act=act))
    assert paper_tokens(config) == tokens


# ---- the optimization


def test_on_a_linear_tower_it_finds_the_projection():
    world = pairs.image_only(40, 10, own=0.6, seed=3)
    basis, images = torch.from_numpy(world.truth["shared_basis"]).float(), torch.from_numpy(world.image)
    start = torch.full((40, 10), 0.02)
    found = invert(lambda v: v @ basis.T, images, start)
    projected = images @ basis
    torch.testing.assert_close(found.features, normalize(projected @ basis.T), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.loss, 1 - projected.norm(dim=1), rtol=0, atol=1e-3)
    assert (start == 0.02).all()


def test_early_stop_ends_where_nothing_is_gained():
    target, start = torch.eye(3)[:2], torch.tensor([[1.0, 0, 0], [1, 0.5, 0.2]])
    found = invert(lambda v: v, target, start, steps=200, early_stop=True)
    assert found.steps[0] == 10  # it was there from the beginning
    assert 10 < found.steps[1] < 200
    assert found.loss[1] < 0.01
    alone = invert(lambda v: v, target[1:], start[1:], steps=200, early_stop=True)
    torch.testing.assert_close(found.inputs[1:], alone.inputs)
    free = invert(lambda v: v, target, start, steps=int(found.steps[1]))
    torch.testing.assert_close(found.inputs[1], free.inputs[1])


def test_no_steps_return_the_start():
    target, start = torch.eye(3), torch.ones(3, 3)
    found = invert(lambda v: v, target, start, steps=0)
    torch.testing.assert_close(found.inputs, start)
    torch.testing.assert_close(found.loss, torch.full((3,), 1 - 3**-0.5))
    torch.testing.assert_close(found.start, found.loss)


# ---- the loss term


def batch(seed=0, n=7, d=battery.DIM):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("make", [ClipLoss, lambda: ClipLoss(temperature=1.0, learn_temperature=False)])
def test_it_keeps_the_contract_of_objectives(make):
    battery.check_objective(make)
    assert make().pairs.scale.requires_grad is (make is ClipLoss)


def test_terms_are_weighted_symmetric_info_nce():
    a, b, a2, b2 = batch()
    parts = ClipLoss(0.5, 2.0, intra_temperature=0.2).eval()(a, b, views_a=a2, views_b=(b, b2))
    units = [normalize(x) for x in (a, b, a2, b2)]
    for name, weight, x, y in (("intra_image", 0.5, units[0], units[2]), ("intra_text", 2.0, units[1], units[3])):
        expected = weight * sum(info_nce(x, y, scale=5.0).values())
        torch.testing.assert_close(parts[name], expected)
    plain = ClipLoss()(a, b)
    assert set(plain) == {"a_to_b", "b_to_a"}
    for name, value in plain.items():
        torch.testing.assert_close(parts[name], value)
        torch.testing.assert_close(value, info_nce(units[0], units[1], scale=1 / 0.07)[name])


def test_groups_are_positives_in_every_term():
    a, b, a2, _ = batch(1, 6)
    groups = torch.tensor([0, 0, 1, 2, 3, 4])
    loss = ClipLoss(1.0)
    parts = loss(a, b, groups=groups, views_a=a2)
    expected = sum(info_nce(normalize(a), normalize(a2), scale=10.0, groups=groups).values())
    torch.testing.assert_close(parts["intra_image"], expected)
    torch.testing.assert_close(loss(a, b, groups=(groups, groups), views_a=a2)["intra_image"], expected)
    assert not torch.isclose(loss(a, b, views_a=a2)["intra_image"], expected)


def test_the_intra_term_leaves_the_other_modality_alone():
    a, b, a2, _ = (x.requires_grad_() for x in batch(2))
    ClipLoss(1.0)(a, b, views_a=a2)["intra_image"].backward()
    assert b.grad is None
    assert a.grad.abs().sum() > 0
    assert a2.grad.abs().sum() > 0


def test_the_weight_rises_during_the_warm_up_in_training_only():
    a, b, a2, _ = batch(3)
    loss = ClipLoss(1.0, warmup=4)
    full = loss.eval()(a, b, views_a=a2)["intra_image"]
    assert loss.step == 0
    shares = [float(loss.train()(a, b, views_a=a2)["intra_image"] / full) for _ in range(6)]
    np.testing.assert_allclose(shares, [0, 0.25, 0.5, 0.75, 1, 1], atol=1e-6)


def test_bad_terms_are_named():
    a, b, *_ = batch()
    with pytest.raises(BadInput, match="no views"):
        ClipLoss(intra_text=1.0)(a, b)
    with pytest.raises(BadInput, match="negative"):
        ClipLoss(intra_image=-1.0)


# ---- closing the gap, and measuring


def test_a_high_temperature_closes_the_gap_of_a_copy(tiny):
    ids = encoded(tiny.name, tiny.tokenizer, ["red cat", "blue dog", "green horse", "a tree", "the sea", "snow"])
    data = {"pixel_values": tiny.pixels, **ids}
    before = weights_hash(tiny.model)
    distances = []
    for temperature in (1.0, 0.01):
        tuned = close_gap_by_training(tiny.model, [data] * 25, temperature=temperature, lr=1e-3)
        with torch.no_grad():
            images = tuned.get_image_features(pixel_values=tiny.pixels).pooler_output
            texts = tuned.get_text_features(**ids).pooler_output
        distances.append(modality_gap(images, texts).distance)
    assert distances[0] < 0.5 * distances[1]
    assert weights_hash(tiny.model) == before
    with pytest.raises(BadInput, match="no batches"):
        close_gap_by_training(tiny.model, [])


def test_the_comparison_equals_ranking_by_hand(tiny):
    oti = TextualInversion(tiny.model, tiny.tokenizer, steps=1)
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = compare(oti, tiny.images, tiny.images, same_label(labels, labels), exclude_self=True)
    assert found.gain.mean == pytest.approx(found.inverted["map"] - found.native["map"])
    scores = normalize(found.inversion.features) @ normalize(tiny.images).T
    scores.fill_diagonal_(-2)
    right = labels[scores.argmax(dim=1).numpy()] == labels
    assert found.inverted["hit@1"] == pytest.approx(right.mean())


def test_naming_the_room_loads_no_network():
    code = (
        "import sys, chiasm.correct.cross_the_gap as room\nfrom chiasm.correct import DualBankNorm\n"
        "assert 'torch' not in sys.modules, 'torch'\nfrom chiasm.correct import TextualInversion\n"
        "assert TextualInversion is room.TextualInversion and 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---- the digits of the claim


def test_digits_are_split_captioned_and_seeded():
    one, again, other = digits.Digits.of(0), digits.Digits.of(0), digits.Digits.of(1)
    assert torch.equal(one.pixels, again.pixels)
    assert one.captions == again.captions
    assert not torch.equal(one.pixels, other.pixels)
    assert (one.trained, len(one.labels)) == (1300, 1797)
    assert all(sentence.split()[-1] == digits.CLASSES[label] for sentence, label in zip(one.captions, one.labels))
    noise = one.pixels - one.clean
    assert noise.std().item() == pytest.approx(digits.NOISE, rel=0.02)
    assert torch.equal(noise[:, 0], noise[:, 2])
    for i, j in ((0, 1), (5, 900)):
        assert (one.same_caption[i] == one.same_caption[j]) == (one.captions[i] == one.captions[j])


def test_training_batches_have_fresh_noise_and_each_picture_once_an_epoch():
    world = digits.Digits.of(0, limit=520)
    first, second = digits.batches(world, 3, 1, views=True)
    assert first["pixel_values"].shape == (128, 3, 8, 8)
    assert not torch.equal(first["pixel_values"], first["views"])
    # Averaged over fresh noise, both views show the same clean pictures of the training half.
    for batch in (first, second):
        clean = (batch["pixel_values"] + batch["views"]) / 2
        nearest = torch.cdist(clean.flatten(1), world.clean[:260].flatten(1)).argmin(dim=1)
        right = (digits.Words().batch(world.captions[:260])["input_ids"][nearest] == batch["input_ids"]).all(dim=1)
        assert right.float().mean() > 0.9
        assert len(nearest.unique()) > 115


def test_the_word_tokenizer_serves_inversion():
    model, words = digits.untrained(0), digits.Words()
    oti = TextualInversion(model, words, steps=0)
    seven = token_embeddings(model, torch.tensor([[words.ids["seven"]]])).detach()
    with torch.no_grad():
        own = model.get_text_features(**words.batch(["a photo of seven"])).pooler_output
        torch.testing.assert_close(oti._encode(seven), own, rtol=1e-5, atol=1e-6)

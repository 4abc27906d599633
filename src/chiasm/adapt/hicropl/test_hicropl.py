"""HiCroPL: the card's identities, the adapter's contract, hostile input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from chiasm.adapt.hicropl import (
    HiCroPL,
    HierarchicalMapper,
    KnowledgePooler,
    PromptedClassifier,
    PromptFlow,
    base_and_novel,
    base_to_novel,
    crop_and_flip,
    harmonic_mean,
    shots,
    tune,
)
from chiasm.blocks.deep_prompts import SUPPORTED
from chiasm.errors import BadInput, UnknownName
from chiasm.worlds.mini import word_tokenizer

NAMES = ("red circle", "blue star", "green ring")
PIXELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def make_model(kind="clip", layers=4):
    tokenizer: PreTrainedTokenizerFast = word_tokenizer()
    torch.manual_seed(0)
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "max_position_embeddings": 24,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    if kind == "siglip":
        config = SiglipConfig(text_config={**text, "projection_size": 24}, vision_config=vision)
        return SiglipModel(config).eval(), tokenizer
    if kind == "altclip":  # its positions begin behind that of the padding, 0
        text |= {"project_dim": 16, "max_position_embeddings": 25}
    classes = {
        "clip": (CLIPConfig, CLIPModel),
        "metaclip_2": (MetaClip2Config, MetaClip2Model),
        "chinese_clip": (ChineseCLIPConfig, ChineseCLIPModel),
        "altclip": (AltCLIPConfig, AltCLIPModel),
    }
    config, network = classes[kind]
    return network(config(text_config=text, vision_config=vision, projection_dim=8)).eval(), tokenizer


@pytest.fixture
def model():
    return make_model()


def classifier(model, **options):
    adapter = {k: options.pop(k) for k in list(options) if k in HiCroPL().settings}
    adapter = HiCroPL(**{"tokens": 3, "heads": 4, **adapter})
    return PromptedClassifier(adapter, *model, NAMES, sentence=options.pop("sentence", "a {}"), **options)


# ---- the parts


def test_a_pooler_of_one_prompt_has_a_closed_form():
    pooler = KnowledgePooler(8, heads=2)
    q, p = torch.randn(1, 8), torch.randn(1, 8)
    w, b = pooler.attention.in_proj_weight[16:], pooler.attention.in_proj_bias[16:]
    own = pooler.norm_out(q + pooler.attention.out_proj(functional.linear(pooler.norm_in(p), w, b)))
    torch.testing.assert_close(pooler(q, p), own)


def test_a_mapper_without_attention_output_and_perceptron_is_its_query_map():
    mapper = HierarchicalMapper(8, 12, heads=4)
    for layer in (mapper.attention.out_proj, mapper.ffn[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    prompts = torch.randn(1, 5, 12)
    torch.testing.assert_close(mapper(prompts, torch.randn(1, 3, 8)), mapper.query(prompts))


def test_a_mapper_does_not_care_for_the_order_of_proxies_and_keeps_that_of_prompts():
    mapper = HierarchicalMapper(8, 12, heads=4, dim=16)
    prompts, known = torch.randn(1, 5, 12), torch.randn(1, 3, 8)
    out = mapper(prompts, known)
    torch.testing.assert_close(mapper(prompts, known.flip(1)), out)
    torch.testing.assert_close(mapper(prompts.flip(1), known), out.flip(1))


def make_flow(cross=2, **options):
    torch.manual_seed(0)
    return PromptFlow(16, 24, 3, 4, cross, heads=4, **options)


def test_early_text_and_late_vision_prompts_are_used_as_they_are():
    flow = make_flow()
    text, vision = flow()
    assert [tuple(p.shape) for p in text] == [(3, 16)] * 4
    assert [tuple(p.shape) for p in vision] == [(3, 24)] * 4
    assert all(torch.equal(text[i], flow.text[i]) and not torch.equal(vision[i], flow.vision[i]) for i in (0, 1))
    assert all(torch.equal(vision[i], flow.vision[i]) and not torch.equal(text[i], flow.text[i]) for i in (2, 3))
    assert not torch.equal(flow.vision[0], flow.vision[1])  # every layer has prompts of its own


@pytest.mark.parametrize(("cross", "same"), [(4, "text"), (0, "vision")])
def test_all_early_or_all_late(cross, same):
    flow = make_flow(cross)
    found = dict(zip(("text", "vision"), flow()))
    other = "vision" if same == "text" else "text"
    assert all(torch.equal(a, b) for a, b in zip(found[same], getattr(flow, same)))
    assert not any(torch.equal(a, b) for a, b in zip(found[other], getattr(flow, other)))


def test_ablations_are_what_they_say():
    none = make_flow(flow="none")
    assert all(torch.equal(a, b) for a, b in zip(none()[0] + none()[1], [*none.text, *none.vision]))
    assert {name.split(".")[0] for name, _ in none.named_parameters()} == {"text", "vision"}
    down = make_flow(flow="text_to_vision")
    assert down.to_text is None
    assert all(torch.equal(a, b) for a, b in zip(down.text_prompts(), down.text))
    raw = make_flow(proxies=False)
    assert raw.text_knowledge().shape == (2, 3, 16)
    assert make_flow().text_knowledge().shape == (2, 1, 16)
    shared, each = make_flow(share_poolers=True), make_flow()
    assert len(shared.text_poolers) == 1
    assert len(each.text_poolers) == 2
    only = make_flow(towers=("text",))
    assert only.vision is None
    assert only.vision_prompts() == []


def test_layers_see_all_proxies_of_their_half_or_only_their_own():
    for every_layer, reached in ((True, [0, 1]), (False, [0])):
        flow = make_flow(every_layer=every_layer)
        (grad,) = torch.autograd.grad(flow.vision_prompts()[0].square().sum(), flow.text)
        assert [i for i in range(4) if bool(grad[i].abs().sum() > 0)] == reached


def test_poolers_begin_as_copies_with_storage_of_their_own():
    first, second = make_flow().text_poolers
    assert torch.equal(first.attention.in_proj_weight, second.attention.in_proj_weight)
    assert first.attention.in_proj_weight.data_ptr() != second.attention.in_proj_weight.data_ptr()


@given(
    tokens=st.integers(1, 4),
    depth=st.integers(1, 5),
    cut=st.integers(0, 5),
    options=st.fixed_dictionaries(
        {"proxies": st.booleans(), "every_layer": st.booleans(), "mapper_dim": st.sampled_from([None, 8])}
    ),
)
@settings(max_examples=25, deadline=None)
def test_of_any_size_it_keeps_what_leads_and_changes_what_follows(tokens, depth, cut, options):
    cross = min(cut, depth)
    flow = PromptFlow(8, 16, tokens, depth, cross, heads=4, **options)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    (text, vision), (text_again, vision_again) = flow(), flow()
    for layer in range(depth):
        assert torch.equal(text[layer], flow.text[layer]) == (layer < cross)
        assert torch.equal(vision[layer], flow.vision[layer]) == (layer >= cross)
        assert torch.equal(text[layer], text_again[layer])
        assert torch.equal(vision[layer], vision_again[layer])
        assert text[layer].shape == (tokens, 8)
        assert vision[layer].shape == (tokens, 16)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_the_size_at_vit_b_16_is_what_the_page_says():
    count = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in PromptFlow(512, 768, 16, 12, 6).named_children()
    }
    assert round((count["to_vision"] + count["to_text"]) / 1e6, 1) == 12.7
    assert round((count["text_poolers"] + count["vision_poolers"]) / 1e6, 1) == 20.5


# ---- the classifier


@pytest.mark.parametrize("kind", SUPPORTED)
def test_without_prompts_it_is_zero_shot_classification(kind):
    model = make_model(kind)
    zero = PromptedClassifier(HiCroPL(tokens=0), *model, NAMES, descriptions=lambda name: f"a {name}", sentence="a {}")
    network = model[0]
    f0 = functional.normalize(network.get_image_features(pixel_values=PIXELS).pooler_output, dim=-1)
    torch.testing.assert_close(zero.frozen_images(PIXELS), f0)
    torch.testing.assert_close(zero.images(PIXELS), f0)
    torch.testing.assert_close(zero.texts(), zero.frozen_text)
    torch.testing.assert_close(zero.logits(PIXELS), network.logit_scale.exp() * f0 @ zero.frozen_text.T)
    parts = zero(PIXELS, LABELS)
    assert abs(float(parts["text_distance"])) < 1e-4
    assert abs(float(parts["image_distance"])) < 1e-4
    prompted = classifier(model)
    with prompted.adapter.disabled():
        torch.testing.assert_close(prompted.images(PIXELS), f0)


def test_the_loss_is_the_cross_entropy_and_bounded_distances(model):
    plain = classifier(model, distill=0.0)(PIXELS, LABELS)
    torch.testing.assert_close(plain["loss"], functional.cross_entropy(plain["logits"], LABELS))
    whole = classifier(model)(PIXELS, LABELS)
    torch.testing.assert_close(whole["cross_entropy"], plain["loss"])
    distances = whole["text_distance"] + whole["image_distance"]
    torch.testing.assert_close(whole["loss"], whole["cross_entropy"] + distances)
    assert 0 < float(distances.detach()) / 12 < 4
    alone = classifier(model, mix=False)
    f, f0 = alone.images(PIXELS), alone.frozen_images(PIXELS)
    torch.testing.assert_close(alone(PIXELS, LABELS)["image_distance"], 12 * (1 - (f * f0).sum(1).mean()))
    mixed = classifier(model)
    torch.testing.assert_close(mixed.images(PIXELS), functional.normalize(f + f0, dim=-1))


def test_every_learned_parameter_gets_a_gradient_and_no_frozen_one(model):
    for options in (
        {},
        {"proxies": False},
        {"every_layer": False},
        {"mapper_dim": 8},
        {"cross_layer": 1},
        {"tokens": 1},
    ):
        one = classifier(model, **options)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        one(PIXELS, LABELS)["loss"].backward()
        for name, parameter in one.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            assert reached == parameter.requires_grad, (options, name)
        assert all(parameter.grad is None for parameter in model[0].parameters())
    assert all(parameter.requires_grad for parameter in model[0].parameters())


def test_evaluation_is_pure_and_does_not_depend_on_the_batch(model):
    one = classifier(model).eval()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    first = one.logits(PIXELS)
    assert torch.equal(one.logits(PIXELS), first)
    parts = torch.cat([one.logits(PIXELS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(parts, first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.logits(PIXELS, batch_size=4), first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.logits(PIXELS.flip(0)).flip(0), first, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    torch.testing.assert_close(one.predict_proba(PIXELS).sum(1), torch.ones(6))


def test_chunks_and_checkpoints_of_classes_change_neither_loss_nor_gradient(model):
    found = []
    for options in ({}, {"class_chunk": 2}, {"class_chunk": 1, "checkpoint": True}):
        one = classifier(model, **options)
        loss = one(PIXELS, LABELS)["loss"]
        found.append((loss, *torch.autograd.grad(loss, [p for p in one.parameters() if p.requires_grad])))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_drawn_classes_hold_those_of_the_batch(model):
    one = classifier(model, classes_per_step=2).train()
    out = one(PIXELS[:2], torch.tensor([2, 2]))
    assert out["logits"].shape == (2, 2)
    few = classifier(model, classes_per_step=1).train()(PIXELS, LABELS)
    assert few["logits"].shape == (6, 3)  # the batch itself holds three
    assert one.eval()(PIXELS, LABELS)["logits"].shape == (6, 3)
    whole = classifier(model, classes_per_step=3).train()(PIXELS, LABELS)["loss"]
    torch.testing.assert_close(whole, classifier(model)(PIXELS, LABELS)["loss"])


def test_other_classes_share_the_prompts(model):
    one = classifier(model)
    novel = one.with_classes(["purple cross"])
    assert novel.adapter is one.adapter
    assert novel.predict(PIXELS).tolist() == [0] * 6  # a list of one: every picture belongs to it
    assert torch.equal(novel.predict_proba(PIXELS), torch.ones(6, 1))
    assert float(novel(PIXELS, torch.zeros(6).long())["cross_entropy"].detach()) == 0


# ---- the adapter


def test_attached_the_models_own_functions_see_the_prompts_and_detached_they_do_not(model):
    network, tokenizer = model
    network.train()
    ids = tokenizer(["a red circle", "a star"], padding=True, return_tensors="pt")
    text = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
    bare = [
        network.get_image_features(pixel_values=PIXELS).pooler_output,
        network.get_text_features(**text).pooler_output,
    ]
    one = classifier((network, tokenizer))
    adapter = one.adapter.attach(network)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training
    seen = network.get_image_features(pixel_values=PIXELS).pooler_output
    assert not torch.allclose(seen, bare[0], atol=1e-4)
    torch.testing.assert_close(
        one.images(PIXELS), functional.normalize(functional.normalize(seen, dim=-1) + one.frozen_images(PIXELS), dim=-1)
    )
    with adapter.disabled():
        assert torch.equal(network.get_image_features(pixel_values=PIXELS).pooler_output, bare[0])
        assert torch.equal(network.get_text_features(**text).pooler_output, bare[1])
    with pytest.raises(BadInput, match="already attached"):
        adapter.attach(network)
    adapter.detach()
    assert torch.equal(network.get_image_features(pixel_values=PIXELS).pooler_output, bare[0])
    assert torch.equal(network.get_text_features(**text).pooler_output, bare[1])
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.training


def test_the_state_holds_only_what_was_added_and_comes_back(model, tmp_path):
    one = classifier(model)
    assert {name.split(".")[0] for name in one.state_dict()} == {"adapter"}
    assert sum(v.numel() for v in one.state_dict().values()) == sum(p.numel() for p in one.adapter.parameters())
    one.adapter.save(tmp_path)
    again = HiCroPL.load(tmp_path)
    assert again.settings == one.adapter.settings
    two = PromptedClassifier(again, *model, NAMES, sentence="a {}")
    assert torch.equal(two.logits(PIXELS), one.logits(PIXELS))
    with pytest.raises(BadInput, match="holds no HiCroPL"):
        HiCroPL.load(tmp_path / "nothing")


def test_short_prompts_begin_as_words(model):
    network, tokenizer = model
    table = network.text_model.embeddings.token_embedding.weight
    ids = tokenizer("a photo of", add_special_tokens=False)["input_ids"]
    assert torch.equal(classifier(model).adapter.flow.text[0], table[ids])
    assert HiCroPL(tokens=3, heads=4).build(network).flow.text[0].abs().max() < 0.2  # without a tokenizer: at random
    assert classifier(model, tokens=5).adapter.flow.text[0].abs().max() < 0.2


def test_seeds_decide_the_first_values_and_nothing_else_does(model):
    torch.manual_seed(1)
    first = HiCroPL(tokens=5, heads=4).build(model[0])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second, other = (HiCroPL(tokens=5, heads=4, seed=s).build(model[0]) for s in (0, 1))
    assert torch.equal(first.flow.text, second.flow.text)
    assert not torch.equal(first.flow.text, other.flow.text)
    torch.manual_seed(1)
    HiCroPL(tokens=5, heads=4).build(model[0])
    assert torch.equal(torch.get_rng_state(), state)


# ---- training and protocol


def test_tuning_learns_and_leaves_the_model_alone(model):
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    one = classifier(model, distill=0.1, mix=False)
    report = tune(one, PIXELS, LABELS, epochs=30, batch_size=3, rate=5e-3, seed=1)
    assert report.steps == 60
    assert report.history[-1]["loss"] < 0.9 * report.history[0]["loss"]
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
    result = base_to_novel(
        one, one.with_classes(["purple cross", "white heart"]), PIXELS, LABELS.numpy(), PIXELS[:2], np.array([0, 1])
    )
    assert result.base_hits.tolist() == (one.predict(PIXELS) == LABELS).tolist()
    assert result.novel_answers.sum() == 2
    assert result.harmonic == harmonic_mean(result.base, result.novel)


def test_one_class_can_be_tuned_and_has_nothing_to_tell_apart(model):
    adapter = HiCroPL(tokens=3, heads=4)
    one = PromptedClassifier(adapter, *model, ["red circle"], sentence="a {}")
    report = tune(one, PIXELS[:2], [0, 0], epochs=3, rate=1e-3)
    assert report.steps == 3
    parts = one(PIXELS, torch.zeros(6).long())
    assert float(parts["cross_entropy"].detach()) == 0
    assert float(parts["loss"].detach()) < 12 * 4
    assert one.predict(PIXELS).tolist() == [0] * 6


def test_wrong_labels_change_what_is_seen_unless_the_anchor_holds(model):
    """Negative control: labels that are all wrong move the vectors away, but hardly if lambda is large."""
    wrong, moved = (LABELS + 1) % 3, []
    for distill in (0.0, 1000.0):
        one = classifier(model, distill=distill, mix=False)
        tune(one, PIXELS, wrong, epochs=30, batch_size=6, rate=5e-3)
        moved.append(1 - float((one.images(PIXELS) * one.frozen_images(PIXELS)).sum(1).mean().detach()))
    assert moved[1] < 0.2 * moved[0]


def test_frozen_vectors_that_are_known_change_nothing_and_prompts_for_texts_alone_need_no_second_pass(model):
    one = classifier(model)
    known = one.frozen_images(PIXELS)
    assert torch.equal(one.images(PIXELS, known), one.images(PIXELS))
    assert torch.equal(one.logits(PIXELS, known, batch_size=6), one.logits(PIXELS))
    torch.testing.assert_close(one.logits(PIXELS, known, batch_size=4), one.logits(PIXELS), rtol=1e-4, atol=1e-4)
    texts = classifier(model, towers=("text",), depth=1, mix=False)
    assert texts.images(PIXELS, known) is known
    assert torch.equal(texts.images(PIXELS), known)


def test_the_same_seed_gives_the_same_prompts_also_with_augmentation(model):
    runs = []
    for _ in range(2):
        one = classifier(model)
        tune(one, PIXELS, LABELS, epochs=2, batch_size=4, augment=crop_and_flip, seed=3)
        runs.append(one.adapter.flow.text.detach().clone())
    assert torch.equal(*runs)


def test_crops_keep_shape_and_input_and_can_do_nothing():
    pictures = PIXELS.clone()
    cropped = crop_and_flip(pictures, torch.Generator().manual_seed(0))
    assert cropped.shape == pictures.shape
    assert torch.equal(pictures, PIXELS)
    assert not torch.allclose(cropped, pictures)
    ramp = torch.linspace(0, 1, 16).expand(2, 3, 16, 16)
    flat = crop_and_flip(ramp, torch.Generator().manual_seed(0), least=1.0, flip=1.0)
    assert (flat[..., 0] > flat[..., -1]).all()  # mirrored


def test_the_protocols_parts():
    assert base_and_novel(["c", "a", "b"]) == (["a", "b"], ["c"])
    assert harmonic_mean(80, 60) == pytest.approx(68.571428)
    assert harmonic_mean(0, 0) == 0
    labels = np.array([0, 1, 1, 1, 2, 2])
    rows = shots(labels, 2, seed=1)
    assert np.bincount(labels[rows]).tolist() == [1, 2, 2]
    assert np.array_equal(rows, shots(labels, 2, seed=1))
    with pytest.raises(BadInput, match="cannot be split"):
        base_and_novel(["a"])
    with pytest.raises(BadInput, match="0 shots"):
        shots(labels, 0)


# ---- hostile input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": -1}, "-1 tokens"),
        ({"heads": 5}, "5 heads"),
        ({"depth": 9}, "shallower tower has 4 layers"),
        ({"cross_layer": 5}, "0 <= cross_layer <= depth"),
        ({"tokens": 22}, "no room for words"),
        ({"tokens": 20}, "exceed the context of 24"),
        ({"classes_per_step": 0}, "classes_per_step 0"),
        ({"sentence": "no place"}, "exactly one"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(BadInput, match=message):
        classifier(model, **options)


def test_names_and_classes_that_do_not_exist_are_refused(model):
    with pytest.raises(UnknownName, match="Did you mean both"):
        classifier(model, flow="booth")
    with pytest.raises(UnknownName, match="tower"):
        classifier(model, towers=("sound",))
    for classes in ([], ["a", "a"]):
        with pytest.raises(BadInput):
            PromptedClassifier(HiCroPL(tokens=2, heads=4), *model, classes)
    long = "very " * 30
    with pytest.raises(BadInput, match=r"'a very very.*longer than the context of 24"):
        PromptedClassifier(
            HiCroPL(tokens=2, heads=4),
            *model,
            ["red circle", long.strip()],
            sentence="a {}",
            descriptions=lambda name: "a shape",
        )
    with pytest.raises(BadInput, match="labels from 0 to 3"):
        classifier(model)(PIXELS[:2], torch.tensor([0, 3]))
    with pytest.raises(BadInput, match="labels from 0 to 5"):
        tune(classifier(model), PIXELS, np.arange(6))
    with pytest.raises(BadInput, match="nothing to learn"):
        tune(classifier(model, tokens=0), PIXELS, LABELS)
    with pytest.raises(BadInput, match="no parameters yet"):
        HiCroPL().text_prompts()
    with pytest.raises(BadInput, match="widths"):
        classifier(model).adapter.build(
            CLIPModel(
                CLIPConfig(
                    projection_dim=8,
                    text_config={
                        "num_hidden_layers": 1,
                        "hidden_size": 8,
                        "num_attention_heads": 1,
                        "intermediate_size": 8,
                        "vocab_size": 9,
                        "max_position_embeddings": 30,
                    },
                    vision_config={
                        "num_hidden_layers": 1,
                        "hidden_size": 8,
                        "num_attention_heads": 1,
                        "intermediate_size": 8,
                        "image_size": 8,
                        "patch_size": 8,
                    },
                )
            )
        )


def test_a_text_that_has_no_room_beside_attached_prompts_is_refused(model):
    network, tokenizer = model
    adapter = HiCroPL(tokens=12, heads=4).attach(network)
    short = tokenizer(["a red circle"], return_tensors="pt")["input_ids"]
    assert torch.isfinite(network.get_text_features(input_ids=short).pooler_output).all()
    long = tokenizer(["a red circle " * 4], return_tensors="pt")["input_ids"]
    with pytest.raises(BadInput, match="12 prompt tokens and a text of 14 tokens exceed the context of 24"):
        network.get_text_features(input_ids=long)
    adapter.detach()
    assert torch.isfinite(network.get_text_features(input_ids=long).pooler_output).all()
    with pytest.raises(BadInput, match="22 prompt tokens leave no room for words in a context of 24"):
        HiCroPL(tokens=22, heads=4).attach(network)
    assert all(parameter.requires_grad for parameter in network.parameters())  # a refused model is left as it was


def test_models_that_are_not_supported_are_refused_by_name(tiny_bert):
    from transformers import AutoModel

    bert = AutoModel.from_pretrained(tiny_bert)
    for refused in (
        lambda: HiCroPL().attach(bert),
        lambda: PromptedClassifier(HiCroPL(), bert, word_tokenizer(), NAMES),
    ):
        with pytest.raises(UnknownName, match=rf"'bert'.*{', '.join(SUPPORTED)}"):
            refused()


@pytest.mark.parametrize(
    ("pictures", "labels", "options", "message"),
    [
        (PIXELS.numpy(), LABELS, {}, "as a ndarray"),
        (torch.full_like(PIXELS, torch.nan), LABELS, {}, "picture 0 holds NaN"),
        (PIXELS[..., :5, :5], LABELS, {}, "3, 16, 16"),
        (PIXELS, [0.5] * 6, {}, "labels of type"),
        (PIXELS, ["a"] * 6, {}, "labels of type"),
        (PIXELS, LABELS, {"epochs": 0}, "epochs 0"),
        (PIXELS, LABELS, {"batch_size": 0}, "batch_size 0"),
        (PIXELS, LABELS, {"rate": 0.0}, "rate 0"),
    ],
)
def test_what_cannot_be_tuned_on_is_refused_before_training(model, pictures, labels, options, message):
    one = classifier(model)
    before = one.adapter.flow.text.clone()
    with pytest.raises(BadInput, match=message):
        tune(one, pictures, labels, **options)
    assert torch.equal(one.adapter.flow.text, before)


def test_pictures_and_labels_that_do_not_fit_are_refused(model):
    one = classifier(model)
    for wrong in (PIXELS[0], PIXELS[..., :8], PIXELS[:, :1], PIXELS.numpy()):
        with pytest.raises(BadInput, match="pixel_values"):
            one.predict(wrong)
    for wrong in (LABELS[:2], LABELS.float(), LABELS[:, None]):
        with pytest.raises(BadInput, match="int64"):
            one(PIXELS, wrong)
    with pytest.raises(BadInput, match="frozen vectors"):
        one.predict(PIXELS, one.frozen_images(PIXELS)[:2])
    with pytest.raises(BadInput, match="no tokenizer"):
        PromptedClassifier(HiCroPL(tokens=2, heads=4), model[0], None, NAMES)
    with pytest.raises(BadInput, match="1 shots of 0 items"):
        shots([], 1)


def test_two_adapters_on_one_model_are_refused(model):
    first, second = (HiCroPL(tokens=2, heads=4, seed=seed) for seed in (0, 1))
    first.attach(model[0])
    with pytest.raises(BadInput, match="attached prompts already"):
        second.attach(model[0])
    first.detach()
    second.attach(model[0]).detach()


def test_folders_that_hold_something_else_are_refused(model, tmp_path):
    HiCroPL(tokens=2, heads=4).build(model[0]).save(tmp_path)
    (tmp_path / "hicropl.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="holds no HiCroPL"):
        HiCroPL.load(tmp_path)
    HiCroPL(tokens=3, heads=4).build(model[0]).save(tmp_path / "other")
    (tmp_path / "hicropl.safetensors").write_bytes((tmp_path / "other" / "hicropl.safetensors").read_bytes())
    with pytest.raises(BadInput, match="holds no HiCroPL"):
        HiCroPL.load(tmp_path)


@pytest.mark.parametrize("options", [{"tokens": 1.5}, {"depth": "a"}, {"mapper_dim": 0}, {"ffn_mult": float("nan")}])
def test_sizes_of_the_wrong_kind_are_refused(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        HiCroPL(**options)

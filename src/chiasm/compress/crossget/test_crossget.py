"""CrossGET and ToMe on tiny random CLIP, SigLIP, BLIP and LLaVA models: identities, gradients, batches, hostile input."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from chiasm.blocks.attention import AttentionTap
from chiasm.compress.crossget import CrossGET, CrossGuided, ToMe, js_divergence, paired_layers
from chiasm.compress.crossget.towers import block_of
from chiasm.errors import BadInput, UnknownName
from chiasm.learn.contrastive import InfoNCE

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = {
    **TOWER,
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "eos_token_id": 3,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
IMAGE = 39  # placeholder of a picture in LLaVA's ids


def clip(implementation="sdpa"):
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config={**TEXT, "num_hidden_layers": 2}, vision_config=VISION, projection_dim=24))
    model.set_attn_implementation(implementation)
    return model.eval()


def siglip():
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).eval()


def blip():
    torch.manual_seed(0)
    text = {**TEXT, "encoder_hidden_size": 32, "sep_token_id": 3}
    return BlipForImageTextRetrieval(
        BlipConfig(text_config=text, vision_config={**VISION, "initializer_range": 0.2}, image_text_hidden_size=24)
    ).eval()


def llava(**changes):
    torch.manual_seed(0)
    vision = {**VISION, "model_type": "clip_vision_model"}
    text = {
        **TOWER,
        "model_type": "llama",
        "vocab_size": 40,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, **changes)
    return LlavaForConditionalGeneration(config).eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PIXELS = noise(3, 3, 32, 32)
IDS = torch.tensor([[1, 7, 8, 9, 10, 11, 12, 3], [1, 5, 6, 5, 3, 0, 0, 0], [1, 20, 21, 22, 23, 24, 3, 0]])
MASK = (IDS != 0).long()


def image_features(model, pixels=PIXELS):
    return model.get_image_features(pixel_values=pixels).pooler_output


def text_features(model, ids=IDS, mask=MASK):
    return model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output


# ---- attach and detach


@pytest.mark.parametrize("method", [lambda: CrossGET(2, 1), lambda: ToMe(2, 1)])
@pytest.mark.parametrize("make", [clip, siglip, lambda: clip("eager")])
@torch.no_grad()
def test_attach_changes_outputs_and_detach_leaves_no_trace(make, method):
    model = make()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    bare, said = image_features(model), text_features(model)
    reduction = method().attach(model)
    assert not torch.allclose(image_features(model), bare, atol=1e-6)
    assert torch.isfinite(text_features(model)).all()
    assert set(model.state_dict()) == set(state)
    reduction.detach()
    assert torch.equal(image_features(model), bare)
    assert torch.equal(text_features(model), said)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())
    reduction.attach(model)
    reduction.detach()


@pytest.mark.parametrize("make", [clip, siglip])
@torch.no_grad()
def test_with_r_zero_outputs_are_bit_identical(make):
    model = make()
    bare, said = image_features(model), text_features(model)
    for reduction in (CrossGET(0, 0), ToMe(0, 0), CrossGET([0, 0, 0])):
        reduction.attach(model)
        assert torch.equal(image_features(model), bare)
        assert torch.equal(text_features(model), said)
        reduction.detach()


@torch.no_grad()
def test_the_block_without_reduction_is_the_layer_itself():
    for model in (clip().vision_model, BlipVisionModel(blip().config.vision_config).eval()):
        layer, x = model.encoder.layers[0], noise(2, 6, 32)
        tap = AttentionTap(model).attach()
        got = block_of(layer).run(x, None, lambda y, _: y)
        tap.detach()
        want = layer(x, attention_mask=None)
        want = want[0] if isinstance(want, tuple) else want
        assert torch.allclose(got, want, atol=1e-5)


@torch.no_grad()
def test_state_dict_holds_only_cross_tokens_and_survives_a_round_trip():
    model = clip()
    first = CrossGET(2).attach(model)
    assert set(first.state_dict()) == {"cross.image", "cross.text"}
    assert first.cross["image"].shape == (1, 3, 32)
    assert first.cross["text"].shape == (1, 2, 32)
    for parameter in first.parameters():
        parameter.add_(noise(*parameter.shape))
    want = image_features(model)
    state = first.state_dict()
    first.detach()
    second = CrossGET(2).attach(model)
    assert not torch.equal(image_features(model), want)
    second.load_state_dict(state)
    assert torch.equal(image_features(model), want)
    twin = copy.deepcopy(second)
    second.detach()
    twin.attach(model)
    assert torch.equal(image_features(model), want)
    twin.detach()
    assert not ToMe(2).attach(model).state_dict()


@pytest.mark.parametrize(
    "method", [lambda: CrossGET(3, 2), lambda: ToMe(3, 2), lambda: CrossGET(3, 2, importance="attention")]
)
@torch.no_grad()
def test_evaluation_does_not_depend_on_the_batch(method):
    model = clip()
    reduction = method().attach(model)
    for parameter in reduction.parameters():
        parameter.add_(noise(*parameter.shape))
    whole, said = image_features(model), text_features(model)
    for i in range(3):
        length = int(MASK[i].sum())
        alone = text_features(model, IDS[i : i + 1, :length], MASK[i : i + 1, :length])
        assert torch.allclose(image_features(model, PIXELS[i : i + 1])[0], whole[i], atol=1e-5)
        assert torch.allclose(alone[0], said[i], atol=1e-5), f"text {i} depends on the padding"
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(image_features(model, PIXELS[order]), whole[order], atol=1e-5)
    assert torch.allclose(text_features(model, IDS[order], MASK[order]), said[order], atol=1e-5)
    reduction.detach()


def tiny_vision():
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**VISION)).eval(), {"pixel_values": PIXELS}


def test_the_adapter_contract_on_a_vision_tower():
    """Every cross token gets a gradient, no frozen weight does, and what comes out does not depend on the batch."""
    model, batch = tiny_vision()
    model.requires_grad_(False)
    bare = model(**batch)[0]
    reduction = CrossGET(2).attach(model)
    with torch.no_grad():
        reduction.cross["image"].add_(0.1 * noise(1, 3, 32))
    out = model(**batch)[0]
    assert out.shape == bare.shape  # un-merged: one vector a patch
    (out * torch.linspace(0.1, 1, out.numel()).view_as(out)).sum().backward()
    gradient = reduction.cross["image"].grad
    assert gradient is not None
    assert (gradient.abs().amax(dim=-1) > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    reduction.detach()
    assert torch.equal(model(**batch)[0], bare)


# ---- tokens


@torch.no_grad()
def test_tokens_are_counted_and_the_source_map_is_complete():
    model = clip()
    reduction = CrossGET(3).attach(model)
    image_features(model)
    owner = reduction.owner()
    assert reduction.achieved() == [3, 3, 3]
    assert owner.shape == (3, 17)
    assert int(owner.max()) == 17 - 9 - 1
    assert all(len(row.unique()) == 17 - 9 for row in owner)
    assert (owner[:, 0] == 0).all()  # the class token stays first
    full, less = reduction.flops()
    assert less < full
    reduction.detach()


@torch.no_grad()
def test_merging_equal_patches_is_free():
    """A gray picture without positions has equal patches: proportional attention makes any merge exact."""
    model = clip()
    model.vision_model.embeddings.position_embedding.weight.zero_()
    gray = torch.ones(1, 3, 32, 32)
    bare = image_features(model, gray)
    for reduction in (ToMe(3), CrossGET(3, importance="none")):
        reduction.attach(model)
        if isinstance(reduction, CrossGET):
            # The cross token is one more key; without it nothing may change.
            reduction.has_cross = False
        assert torch.allclose(image_features(model, gray), bare, atol=1e-5)
        reduction.detach()


@torch.no_grad()
def test_a_text_without_mergeable_tokens_is_untouched():
    model = clip()
    short = torch.tensor([[1, 5, 3]])
    bare = text_features(model, short, None)
    reduction = CrossGET(0, 4).attach(model)
    assert torch.allclose(text_features(model, short, None), bare, atol=1e-6)
    assert reduction.achieved("text") == [0, 0]
    reduction.detach()


@torch.no_grad()
def test_every_text_merges_as_it_would_alone_and_what_went_is_counted():
    """ToMe finds partners only across even and odd places; where it runs out of them, fewer tokens go."""
    model = clip()
    reduction = ToMe(0, 3).attach(model)
    said = text_features(model)
    assert reduction.achieved("text")[0] <= 3
    assert reduction.owner("text").amax() + 1 == IDS.shape[1] - sum(reduction.achieved("text"))
    for i in range(3):
        length = int(MASK[i].sum())
        alone = text_features(model, IDS[i : i + 1, :length], MASK[i : i + 1, :length])
        assert torch.allclose(alone[0], said[i], atol=1e-5)
        assert reduction.owner("text").amax() + 1 == length - sum(reduction.achieved("text"))
    reduction.detach()


# ---- the alignment


def test_js_divergence_closed_forms():
    a = noise(4, 6)
    assert js_divergence(a, a).item() == pytest.approx(0, abs=1e-6)
    assert js_divergence(a, a, parity=True).item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[50.0, -50.0]])
    assert js_divergence(far, -far).item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    p, t = torch.tensor([0.7, 0.3]), torch.tensor([0.2, 0.8])
    m = (p + t) / 2
    assert js_divergence(p.log()[None], t.log()[None]).item() == pytest.approx(
        0.5 * float((p * (p / m).log()).sum() + (t * (t / m).log()).sum()), abs=1e-6
    )
    assert js_divergence(p.log()[None], t.log()[None], parity=True).item() == pytest.approx(
        0.5 * float((m * (m / p).log()).sum() + (m * (m / t).log()).sum()), abs=1e-6
    )
    with pytest.raises(BadInput):
        js_divergence(a, a[:2])


def test_layers_of_different_towers_are_paired():
    assert paired_layers(3, 3) == [1, 1, 1]
    assert paired_layers(2, 4) == [2, 2]
    assert sum(paired_layers(12, 7)) == 7
    assert sum(paired_layers(24, 32)) == 32


@pytest.mark.parametrize("make", [clip, siglip])
def test_alignment_reaches_cross_tokens_and_no_weight_of_the_heads(make):
    model = make()
    reduction = CrossGET(2).attach(model)
    image_features(model), text_features(model)
    reduction.alignment().backward()
    for name, parameter in reduction.cross.items():
        assert parameter.grad is not None
        assert (parameter.grad.abs().amax(dim=-1) > 0).any(), name
    assert all(
        p.grad is None for name, p in model.named_parameters() if "projection" in name or "post_layernorm" in name
    )
    with pytest.raises(BadInput, match="no cross tokens"):
        reduction.alignment()
    reduction.detach()


def test_gradient_of_a_cross_token_stays_in_its_layer():
    """No gradient flows through the cross token between layers: the alignment of layer l moves cross[l] alone."""
    model = clip()
    model.requires_grad_(False)
    reduction = CrossGET(0).attach(model)
    text_features(model)
    tokens = reduction._seen["text"]
    tokens[1].sum().backward()
    gradient = reduction.cross["text"].grad
    assert gradient is not None
    assert (gradient[0, 0] == 0).all()
    assert (gradient[0, 1] != 0).all()
    reduction.detach()


def test_the_objective_mixes_task_and_alignment():
    model = clip()
    reduction = CrossGET(2).attach(model)
    objective = CrossGuided(InfoNCE(), reduction, weight=0.25, warmup=0.5)
    a, b = image_features(model), text_features(model)
    objective.on_progress(0, 100)
    parts = objective(a, b)
    task = InfoNCE()(a, b)
    assert parts["alignment"].item() == 0
    assert all(torch.equal(parts[name], value) for name, value in task.items())
    objective.on_progress(60, 100)
    image_features(model), text_features(model)
    parts = objective(a, b)
    assert parts["alignment"].item() > 0
    assert all(parts[name].item() == pytest.approx(0.75 * value.item()) for name, value in task.items())
    assert {n for n, _ in objective.named_parameters()} >= {"reduction.cross.image", "reduction.cross.text"}
    for wrong in ({"weight": 1.5}, {"weight": -0.1}, {"warmup": 2}):
        with pytest.raises(BadInput):
            CrossGuided(InfoNCE(), reduction, **wrong)
    reduction.detach()


# ---- BLIP and LLaVA


def test_blip_reduces_its_vision_tower():
    model = blip()
    inputs = {"input_ids": IDS, "attention_mask": MASK, "pixel_values": PIXELS, "use_itm_head": False}
    with torch.no_grad():
        bare = model(**inputs).itm_score
    reduction = CrossGET(3).attach(model)
    assert not torch.equal(model(**inputs).itm_score, bare)
    reduction.alignment().backward()
    assert all(parameter.grad is not None for parameter in reduction.parameters())
    reduction.detach()
    with torch.no_grad():
        assert torch.equal(model(**inputs).itm_score, bare)
    with pytest.raises(UnknownName, match="r_text=0"):
        CrossGET(3, 1).attach(model)


def prompt(pictures=(1, 1, 1)):
    rows = [[1, *([IMAGE] * 16 * n), 5, 6, 7] for n in pictures]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": PIXELS[: sum(pictures)]}


@torch.no_grad()
def test_llava_gets_fewer_image_tokens():
    model = llava()
    inputs = prompt()
    bare = model(**inputs).logits
    reduction = CrossGET(3, importance="attention").attach(model)
    assert reduction.image_tokens() == 16 - 2 * 3  # layers 0 and 1 of 3: LLaVA reads the last but one
    short = reduction.shorten(inputs, IMAGE)
    assert short["input_ids"].shape[1] == inputs["input_ids"].shape[1] - 6
    logits = model(**short).logits
    assert logits.shape[1] == short["input_ids"].shape[1]
    alone = {k: v[:1] for k, v in short.items()}
    assert torch.allclose(model(**alone).logits[0], logits[0], atol=1e-5)
    spoken = model.generate(**short, max_new_tokens=4, do_sample=False)
    assert spoken.shape[1] <= short["input_ids"].shape[1] + 4
    reduction.detach()
    assert torch.equal(model(**inputs).logits, bare)


@torch.no_grad()
def test_llava_with_different_numbers_of_pictures():
    model = llava()
    reduction = CrossGET(2).attach(model)
    inputs = prompt((1, 2))
    inputs["labels"] = inputs["input_ids"].clone()
    short = reduction.shorten(inputs, IMAGE)
    want = reduction.image_tokens()
    assert ((short["input_ids"] == IMAGE).sum(1) == torch.tensor([want, 2 * want])).all()
    assert (short["labels"][short["attention_mask"] == 0] != IMAGE).all()
    assert torch.isfinite(model(**short).logits).all()
    broken = {"input_ids": torch.tensor([[1, IMAGE, 5]])}
    with pytest.raises(BadInput, match="image tokens"):
        reduction.shorten(broken, IMAGE)
    reduction.detach()


def test_llava_aligns_its_first_token_and_trains_only_cross_tokens():
    model = llava()
    model.requires_grad_(False)
    reduction = CrossGET(2, importance="attention").attach(model)
    short = reduction.shorten(prompt(), IMAGE)
    loss = model(**short).logits.square().mean() + reduction.alignment()
    loss.backward()
    assert reduction.cross["text"].shape == (1, 3, 32)
    assert (reduction.cross["text"].grad.abs().amax(-1) > 0).all()
    assert reduction.cross["image"].grad.abs().amax() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    reduction.detach()


@torch.no_grad()
def test_llava_decodes_as_it_reads():
    """Cached decoding with a moved first token equals one pass over the whole sequence."""
    model = llava()
    reduction = CrossGET(2).attach(model)
    for parameter in reduction.parameters():
        parameter.add_(0.3 * noise(*parameter.shape))
    short = reduction.shorten(prompt(), IMAGE)
    whole = model(**short).logits
    ids, mask = short["input_ids"], short["attention_mask"]
    first = model(**{**short, "input_ids": ids[:, :-2], "attention_mask": mask[:, :-2]}, use_cache=True)
    then = model(input_ids=ids[:, -2:], attention_mask=mask, past_key_values=first.past_key_values)
    assert torch.allclose(then.logits, whole[:, -2:], atol=1e-5)
    reduction.detach()


# ---- hostile input


def test_unsupported_models_and_budgets():
    bert = BertModel(BertConfig(**TOWER, vocab_size=40))
    with pytest.raises(UnknownName, match="clip, siglip, blip, llava"):
        CrossGET(1).attach(bert)
    with pytest.raises(UnknownName, match="clip, siglip, blip, llava"):
        CrossGET(1).attach(torch.nn.Linear(2, 2))
    with pytest.raises(BadInput, match="layer 0"):
        CrossGET(17).attach(clip())
    with pytest.raises(BadInput, match="At most"):
        ToMe(7).attach(clip())  # 17 tokens: 7, then 10 are left of which 4 can go
    with pytest.raises(BadInput, match="negative"):
        CrossGET(-1)
    with pytest.raises(BadInput, match="3 layers"):
        CrossGET([1, 1]).attach(clip())
    with pytest.raises(UnknownName):
        CrossGET(1, matching="greedy")
    with pytest.raises(BadInput, match="r_text=0"):
        CrossGET(1, 1).attach(llava())
    with pytest.raises(BadInput, match="one layer"):
        CrossGET(1).attach(llava(vision_feature_layer=[-2, -1]))


def test_a_failed_attach_leaves_the_model_alone_and_twice_is_refused():
    model = clip()
    with pytest.raises(BadInput):
        CrossGET(17).attach(model)
    assert all("forward" not in vars(module) for module in model.modules())
    reduction = CrossGET(2).attach(model)
    with pytest.raises(BadInput, match="attached already"):
        reduction.attach(model)
    reduction.detach()
    with pytest.raises(BadInput, match="LLaVA"):
        CrossGET(2).attach(model).image_tokens()


def test_gradient_checkpointing_is_refused():
    model = clip()
    model.gradient_checkpointing_enable()
    model.train()
    reduction = CrossGET(2).attach(model)
    with pytest.raises(BadInput, match="gradient checkpointing"):
        image_features(model)
    reduction.detach()


@torch.no_grad()
def test_half_precision_and_an_empty_batch():
    model = clip().to(torch.bfloat16)
    reduction = CrossGET(3).attach(model)
    assert torch.isfinite(image_features(model, PIXELS.to(torch.bfloat16))).all()
    assert image_features(model, PIXELS[:1].to(torch.bfloat16)).shape == (1, 24)
    reduction.detach()


def test_what_is_asked_too_early_or_of_the_wrong_model_is_refused():
    reduction = CrossGET(2)
    for ask in (reduction.owner, reduction.flops, reduction.image_tokens, lambda: reduction.shorten({}, IMAGE)):
        with pytest.raises(BadInput):
            ask()
    reduction.attach(llava())
    for ask in (lambda: reduction.flops("text"), lambda: reduction.shorten({}, IMAGE), reduction.owner):
        with pytest.raises(BadInput):
            ask()
    with pytest.raises(UnknownName, match="width of keys"):
        CrossGET(2, keys="ful")
    for wrong in (1.5, "8", [1.5, 1, 1], float("nan")):
        with pytest.raises(BadInput, match="whole number"):
            CrossGET(wrong)
    with pytest.raises(BadInput, match="cross tokens"):
        CrossGuided(InfoNCE(), ToMe(2))
    with pytest.raises(BadInput, match="vision layer -9"):
        CrossGET(2).attach(llava(vision_feature_layer=-9))


@torch.no_grad()
def test_two_reductions_do_not_share_a_model_and_nan_is_found_at_once():
    model = clip()
    bare = image_features(model)
    reduction = CrossGET(2).attach(model)
    with pytest.raises(BadInput, match="another reduction"):
        ToMe(2).attach(model)
    with pytest.raises(BadInput, match="NaN"):
        image_features(model, PIXELS * float("nan"))
    reduction.detach()
    assert torch.equal(image_features(model), bare)

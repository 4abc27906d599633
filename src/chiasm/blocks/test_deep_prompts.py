"""Deep prompts in every supported architecture: pure, exact, and equal to the layers run by hand."""

import threading

import pytest
import torch
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipModel,
)

import tiny_models
from chiasm.blocks.deep_prompts import (
    SUPPORTED,
    DeepPrompts,
    deep_prompts,
    encode_images,
    encode_text,
    tower_sizes,
)
from chiasm.blocks.prompts import (
    encode_patch_embeddings,
    encode_token_embeddings,
    patch_embeddings,
    token_embeddings,
)
from chiasm.errors import BadInput, UnknownName

START, PAD, END, CONTEXT = 40, 41, 42, 12
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 43,
    "bos_token_id": START,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "max_position_embeddings": CONTEXT,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def tiny(kind: str, **text):
    torch.manual_seed(0)
    text = {**TEXT, **text}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    elif kind == "metaclip_2":
        model = MetaClip2Model(MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=8))
    elif kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 24}, vision_config=VISION))
    elif kind == "chinese_clip":
        model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    else:
        text |= {"project_dim": 16, "max_position_embeddings": CONTEXT + PAD + 1}
        model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
    return model.eval()


def words(lengths=(5, 3), width=None, start=True):
    """Ids ``[B, L]`` of random words between start and end, padded, and their mask."""
    generator = torch.Generator().manual_seed(1)
    width = width or max(lengths) + 2
    ids = torch.full((len(lengths), width), PAD)
    for row, length in zip(ids, lengths):
        text = torch.randint(0, 40, (length,), generator=generator)
        whole = torch.cat([torch.tensor([START] if start else []).long(), text, torch.tensor([END])])
        row[: len(whole)] = whole
    return ids, (ids != PAD).long()


def some(model, n=2, depth=None, seed=2):
    """Random prompts of both towers."""
    sizes, generator = tower_sizes(model), torch.Generator().manual_seed(seed)

    def made(width, layers):
        return [
            torch.randn(n, width, generator=generator).requires_grad_() for _ in range(min(layers, depth or layers))
        ]

    return made(sizes.text_width, sizes.text_layers), made(sizes.vision_width, sizes.vision_layers)


PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
every = pytest.mark.parametrize("kind", SUPPORTED)


@every
def test_sizes_of_the_towers(kind):
    sizes = tower_sizes(tiny(kind))
    assert (sizes.text_width, sizes.text_layers, sizes.context) == (16, 3, CONTEXT)
    assert (sizes.vision_width, sizes.vision_layers) == (24, 2)
    assert sizes.dim == (24 if kind == "siglip" else 8)


@every
def test_without_prompts_the_features_are_the_models_own_bit_for_bit(kind):
    model = tiny(kind)
    ids, mask = words()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    text, image = model.get_text_features(ids, mask).pooler_output, model.get_image_features(PIXELS).pooler_output
    assert torch.equal(encode_text(model, ids, [], mask), text)
    assert torch.equal(encode_images(model, PIXELS, []), image)
    none = [torch.zeros(0, 16)], [torch.zeros(0, 24)]
    assert torch.equal(encode_text(model, ids, none[0], mask), text)
    assert torch.equal(encode_images(model, PIXELS, none[1]), image)
    prompts = some(model)
    assert not torch.allclose(encode_text(model, ids, prompts[0], mask), text, atol=1e-4)
    assert not torch.allclose(encode_images(model, PIXELS, prompts[1]), image, atol=1e-4)
    assert torch.equal(model.get_text_features(ids, mask).pooler_output, text)
    assert torch.equal(model.get_image_features(PIXELS).pooler_output, image)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every
def test_word_embeddings_as_first_prompts_are_the_words(kind):
    """A prompt of depth one that holds the embeddings of two words equals the text with these words in it."""
    model = tiny(kind)
    start = kind != "siglip"
    ids, mask = words(start=start)
    place = int(start)
    two = torch.tensor([7, 9])
    longer = torch.cat([ids[:, :place], two.expand(2, 2), ids[:, place:]], 1)
    wide = torch.cat([mask[:, :place], mask.new_ones(2, 2), mask[:, place:]], 1)
    own = model.get_text_features(longer, wide).pooler_output
    embed = getattr(model.text_model, "roberta", model.text_model).embeddings
    table = embed.token_embedding if hasattr(embed, "token_embedding") else embed.word_embeddings
    torch.testing.assert_close(encode_text(model, ids, [table(two)], mask), own, rtol=1e-5, atol=1e-6)


def test_deep_text_prompts_equal_the_layers_run_by_hand():
    model = tiny("clip")
    ids, _ = words((4, 4))
    text, _ = some(model, n=2)
    tower = model.text_model
    longer = torch.cat([ids[:, :1], ids.new_zeros(2, 2), ids[:, 1:]], 1)
    x = tower.embeddings.token_embedding(longer)
    x = torch.cat([x[:, :1], text[0].expand(2, -1, -1), x[:, 3:]], 1)
    x = x + tower.embeddings.position_embedding.weight[: x.shape[1]]
    causal = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
    for i, layer in enumerate(tower.encoder.layers):
        if i:
            x = torch.cat([x[:, :1], text[i].expand(2, -1, -1), x[:, 3:]], 1)
        x = layer(x, causal)
    own = model.text_projection(tower.final_layer_norm(x)[:, -1])
    torch.testing.assert_close(encode_text(model, ids, text), own, rtol=1e-4, atol=1e-5)


def test_deep_vision_prompts_equal_the_layers_run_by_hand():
    model = tiny("clip")
    _, vision = some(model, n=3)
    tower = model.vision_model
    x = tower.pre_layrnorm(torch.cat([tower.embeddings(PIXELS), vision[0].expand(3, -1, -1)], 1))
    x = tower.encoder.layers[0](x, None)
    x = tower.encoder.layers[1](torch.cat([x[:, :-3], vision[1].expand(3, -1, -1)], 1), None)
    own = model.visual_projection(tower.post_layernorm(x[:, 0]))
    torch.testing.assert_close(encode_images(model, PIXELS, vision), own, rtol=1e-4, atol=1e-5)
    with deep_prompts(model, vision=vision):
        assert tower(PIXELS).last_hidden_state.shape == (3, 5, 24)  # the prompts are taken out again


@every
def test_gradients_reach_every_prompt_and_checkpointing_changes_nothing(kind):
    model = tiny(kind)
    ids, mask = words()
    prompts = some(model)
    found = []
    for checkpoint in (False, True):
        text = encode_text(model, ids, prompts[0], mask, freeze=True, checkpoint=checkpoint)
        image = encode_images(model, PIXELS, prompts[1], freeze=True, checkpoint=checkpoint)
        grads = torch.autograd.grad(text.square().sum() + image.square().sum(), [*prompts[0], *prompts[1]])
        assert all(bool(grad.abs().sum() > 0) for grad in grads)
        found.append((text, image, *grads))
    for plain, again in zip(*found):
        torch.testing.assert_close(again, plain)
    encode_text(model, ids, prompts[0], mask, freeze=True, checkpoint=True).sum().backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@every
def test_items_do_not_see_their_batch_and_padding_changes_nothing(kind):
    model = tiny(kind)
    ids, mask = words()
    text, vision = some(model)
    with torch.no_grad():
        images = encode_images(model, PIXELS, vision)
        alone = torch.cat([encode_images(model, one[None], vision) for one in PIXELS])
        torch.testing.assert_close(alone, images, rtol=1e-4, atol=1e-5)
        whole = encode_text(model, ids, text, mask)
        single = torch.cat([encode_text(model, ids[i : i + 1], text, mask[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)
        if kind == "siglip":
            return  # its vector is the last token's, padding or not
        wide = torch.cat([ids, torch.full((2, 2), PAD)], 1)
        padded = encode_text(model, wide, text, (wide != PAD).long())
        torch.testing.assert_close(padded, whole, rtol=1e-4, atol=1e-5)


@every
def test_padding_makes_room_and_text_never_does(kind):
    model = tiny(kind)
    text, _ = some(model, n=4)
    ids, mask = words((5, 3), width=CONTEXT, start=kind != "siglip")  # full context, but padded
    assert torch.isfinite(encode_text(model, ids, text, mask)).all()
    if kind not in ("siglip",):
        short, short_mask = ids[:, :7], mask[:, :7]
        torch.testing.assert_close(
            encode_text(model, ids, text, mask), encode_text(model, short, text, short_mask), rtol=1e-4, atol=1e-5
        )
    full, full_mask = words((9, 3), start=kind != "siglip")
    with pytest.raises(BadInput, match=r"4 prompt tokens and a text of 1\d tokens exceed the context of 12"):
        encode_text(model, full, text, full_mask)
    with pytest.raises(BadInput, match="exceed the context"):
        encode_text(model, full, text)


def test_the_end_token_as_padding_is_no_room_if_it_is_the_only_end():
    model = tiny("clip", pad_token_id=END)
    text, _ = some(model, n=2)
    ids = torch.tensor([[START, *range(9), END]])
    with pytest.raises(BadInput, match="exceed"):
        encode_text(model, ids, text)
    fits = torch.tensor([[START, *range(8), END, END]])
    torch.testing.assert_close(encode_text(model, fits, text), encode_text(model, fits[:, :-1], text))


def test_fewer_prompted_layers_let_the_tokens_pass():
    model = tiny("clip")
    ids, mask = words()
    text, vision = some(model)
    assert not torch.equal(encode_text(model, ids, text[:1], mask), encode_text(model, ids, text, mask))
    assert not torch.equal(encode_images(model, PIXELS, vision[:1]), encode_images(model, PIXELS, vision))


def test_prompts_of_each_item():
    model = tiny("clip")
    own = [torch.stack([one, two, one]) for one, two in zip(some(model, seed=4)[1], some(model, seed=5)[1])]
    whole = encode_images(model, PIXELS, own)
    parts = torch.cat([encode_images(model, PIXELS[i : i + 1], [p[i] for p in own]) for i in range(3)])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="3 items for a batch of 2"):
        encode_images(model, PIXELS[:2], own)


def test_attached_prompts_can_be_switched_off_and_removed():
    model = tiny("clip")
    ids, mask = words()
    text, vision = some(model)
    bare = model.get_image_features(PIXELS).pooler_output
    handle = DeepPrompts(model, text=lambda: text, vision=lambda: vision)
    prompted = model.get_image_features(PIXELS).pooler_output
    assert torch.equal(encode_images(model, PIXELS, []), bare)  # pure: what is attached stands back
    assert torch.equal(encode_images(model, PIXELS, vision), prompted)
    assert not torch.allclose(prompted, bare, atol=1e-4)
    both = model(input_ids=ids, attention_mask=mask, pixel_values=PIXELS)
    assert both.logits_per_image.shape == (3, 2)
    handle.enabled = False
    assert torch.equal(model.get_image_features(PIXELS).pooler_output, bare)
    handle.enabled = True
    handle.remove()
    assert torch.equal(model.get_image_features(PIXELS).pooler_output, bare)


def test_a_failed_call_leaves_nothing_behind():
    model = tiny("clip")
    ids, mask = words()
    bare = model.get_text_features(ids, mask).pooler_output
    with pytest.raises(ValueError, match="match"), deep_prompts(model, vision=some(model)[1]):
        model.get_image_features(torch.zeros(1, 3, 24, 24))
    assert torch.equal(model.get_text_features(ids, mask).pooler_output, bare)


def test_other_threads_are_left_alone():
    model, found = tiny("clip"), []
    bare = model.get_image_features(PIXELS).pooler_output
    with deep_prompts(model, vision=some(model)[1]):
        other = threading.Thread(target=lambda: found.append(model.get_image_features(PIXELS).pooler_output))
        other.start()
        other.join()
    assert torch.equal(found[0], bare)


def test_prompts_that_do_not_fit_are_refused(tiny_bert):
    from transformers import AutoModel

    model = tiny("clip")
    ids, mask = words()
    wrong = [[torch.zeros(2, 17)], [torch.zeros(2, 16)] * 4, [torch.zeros(2, 16), torch.zeros(3, 16)]]
    for prompts in wrong:
        with pytest.raises(BadInput, match="3 layers of width 16"):
            encode_text(model, ids, prompts, mask)
    with pytest.raises(UnknownName, match=r"'bert'.*clip, siglip, metaclip_2, chinese_clip, altclip"):
        tower_sizes(AutoModel.from_pretrained(tiny_bert))
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(BadInput, match="gradient checkpointing"):
        encode_images(model, PIXELS, some(model)[1])


def test_metaclip_encodes_from_embeddings_bit_for_bit():
    model = tiny("metaclip_2")
    ids, mask = words()
    own = model.get_text_features(ids, mask).pooler_output
    assert torch.equal(encode_token_embeddings(model, token_embeddings(model, ids), ids, mask), own)
    own = model.get_image_features(PIXELS).pooler_output
    assert torch.equal(encode_patch_embeddings(model, patch_embeddings(model, PIXELS)), own)


def test_a_sentence_transformer_is_looked_into(tiny_clip):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_clip), device="cpu")
    assert tower_sizes(model).text_width == 32
    pictures = [tiny_models.picture(i) for i in range(2)]
    bare = model.encode(pictures)
    with deep_prompts(model, vision=[torch.ones(1, 32)]):
        assert abs(model.encode(pictures) - bare).max() > 1e-4
    assert (model.encode(pictures) == bare).all()


def test_texts_and_pictures_of_the_wrong_shape_are_refused():
    model = tiny("clip")
    ids, mask = words()
    text, vision = some(model)
    for wrong in (ids[0], ids.float(), ids[:0], ids[:, :0], None):
        with pytest.raises(BadInput, match="token ids"):
            encode_text(model, wrong, text)  # pyright: ignore
    with pytest.raises(BadInput, match="a mask"):
        encode_text(model, ids, text, mask[:, :-1])
    with pytest.raises(BadInput, match="exceeds the context of 12"):
        encode_text(model, ids.repeat(1, 3), [])
    for wrong in (PIXELS[0], PIXELS[:0], PIXELS[..., :8], PIXELS.numpy()):
        with pytest.raises(BadInput, match="3, 16, 16"):
            encode_images(model, wrong, vision)  # pyright: ignore
    for wrong in ([torch.ones(24)], [torch.ones(1, 1, 2, 24)], "ab"):
        with pytest.raises(BadInput, match="list of tensors"):
            encode_images(model, PIXELS, wrong)  # pyright: ignore

"""Encoding from embeddings equals the model's own encoding, bit for bit, and leaves nothing behind."""

import threading

import pytest
import torch
from torch import nn

import chiasm
import tiny_models
from chiasm.blocks.prompts import (
    dual_encoder,
    encode_patch_embeddings,
    encode_token_embeddings,
    frozen,
    patch_embeddings,
    replaced_output,
    token_embeddings,
)
from chiasm.errors import BadInput, UnknownName


@pytest.fixture(scope="module", params=["clip", "siglip"])
def loaded(request, tiny_clip, tiny_siglip):
    """A tiny model with its processor."""
    from transformers import AutoModel, AutoProcessor

    folder = {"clip": tiny_clip, "siglip": tiny_siglip}[request.param]
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def texts(processor):
    return processor.tokenizer(
        ["a photo of x", "cat on the sea"], padding="max_length", max_length=16, return_tensors="pt"
    )


def pixels(processor):
    return processor.image_processor([tiny_models.picture(i) for i in range(3)], return_tensors="pt")["pixel_values"]


def test_original_embeddings_give_the_models_own_text_features(loaded):
    model, processor = loaded
    ids = texts(processor)["input_ids"]
    for mask in (None, (ids != ids[0, -1]).long().index_fill(1, torch.tensor([0]), 1)):
        own = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        assert torch.equal(encode_token_embeddings(model, token_embeddings(model, ids), ids, mask), own)


def test_original_patches_give_the_models_own_image_features(loaded):
    model, processor = loaded
    pictures = pixels(processor)
    own = model.get_image_features(pixel_values=pictures).pooler_output
    assert torch.equal(encode_patch_embeddings(model, patch_embeddings(model, pictures)), own)


def test_one_row_of_ids_serves_a_batch(loaded):
    model, processor = loaded
    ids = texts(processor)["input_ids"][:1]
    words = token_embeddings(model, ids) + torch.randn(5, *ids.shape[1:], model.config.text_config.hidden_size)
    whole = encode_token_embeddings(model, words, ids)
    parts = torch.cat([encode_token_embeddings(model, word[None], ids) for word in words])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_gradients_reach_what_was_injected_and_nothing_else(loaded):
    model, processor = loaded
    ids = texts(processor)["input_ids"]
    words = token_embeddings(model, ids).detach().requires_grad_()
    patches = patch_embeddings(model, pixels(processor)).detach().requires_grad_()
    with frozen(model):
        (encode_token_embeddings(model, words, ids).sum() + encode_patch_embeddings(model, patches).sum()).backward()
    assert words.grad.abs().sum() > 0
    assert patches.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_restores_every_flag():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].bias.requires_grad_(False)
    model[1].eval()
    with frozen(model):
        assert not model.training
        assert not model[0].weight.requires_grad
    with pytest.raises(RuntimeError, match="shape"), frozen(model):
        model(torch.ones(1, 5))
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad


def test_a_replaced_output_is_gone_afterwards_even_after_an_error():
    layer = nn.Linear(3, 3)
    x = torch.ones(1, 3)
    own = layer(x)
    with replaced_output(layer, lambda out: out * 0):
        assert layer(x).abs().sum() == 0
    assert torch.equal(layer(x), own)
    with pytest.raises(RuntimeError, match="shape"), replaced_output(layer, lambda out: out * 0):
        layer(torch.ones(1, 5))
    assert torch.equal(layer(x), own)
    assert not layer._forward_hooks


def test_other_threads_are_left_alone():
    layer, found = nn.Linear(3, 3), []
    x = torch.ones(1, 3)
    with replaced_output(layer, lambda out: out + 1):
        other = threading.Thread(target=lambda: found.append(layer(x)))
        other.start()
        other.join()
        assert torch.equal(layer(x), found[0] + 1)


def test_several_layers_at_once():
    layers = nn.Sequential(nn.Identity(), nn.Identity())
    with replaced_output(layers[0], lambda out: out + 1), replaced_output(layers[1], lambda out: out * 10):
        assert layers(torch.ones(())) == 20
    assert layers(torch.ones(())) == 1


def test_a_space_and_a_sentence_transformer_are_looked_into(tiny_clip):
    space = chiasm.load(str(tiny_clip), device="cpu")
    network = dual_encoder(space)
    assert type(network).__name__ == "CLIPModel"
    assert dual_encoder(space.model) is network
    assert dual_encoder(network) is network


def test_other_architectures_are_refused_by_name(tiny_bert):
    from transformers import AutoModel

    with pytest.raises(UnknownName, match=r"'bert'.*clip, siglip"):
        dual_encoder(AutoModel.from_pretrained(tiny_bert))
    with pytest.raises(UnknownName, match="Linear"):
        dual_encoder(nn.Linear(2, 2))


def test_shapes_that_do_not_fit_are_refused(loaded):
    model, processor = loaded
    ids = texts(processor)["input_ids"]
    words = token_embeddings(model, ids)
    with pytest.raises(BadInput, match="expected"):
        encode_token_embeddings(model, words[:, :-1], ids)
    with pytest.raises(BadInput, match="expected"):
        encode_token_embeddings(model, words[:1], ids)
    with pytest.raises(BadInput, match="4 x 4 patches"):
        encode_patch_embeddings(model, patch_embeddings(model, pixels(processor))[:, :-1])

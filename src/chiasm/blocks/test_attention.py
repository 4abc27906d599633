"""Taps change nothing by themselves; what they hear is what the model computes; a bias of log 2 is a doubled key."""

import threading

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from chiasm.blocks.attention import (
    AttentionTap,
    attention_probabilities,
    listen,
    own_implementation,
    queries_and_keys,
)
from chiasm.errors import BadInput

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def vision(implementation="sdpa"):
    torch.manual_seed(0)
    config = CLIPVisionConfig(**TOWER, image_size=32, patch_size=8, attn_implementation=implementation)
    model = CLIPVisionModel(config)
    model.set_attn_implementation(implementation)
    return model.eval()


def llama(implementation="sdpa"):
    torch.manual_seed(0)
    config = LlamaConfig(**TOWER, vocab_size=40, num_key_value_heads=2)
    model = LlamaModel(config)
    model.set_attn_implementation(implementation)
    return model.eval()


PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_tap_changes_nothing_and_is_gone_afterwards(implementation):
    model, language = vision(implementation), llama(implementation)
    bare, spoken = model(PIXELS)[0], language(IDS)[0]
    tap = AttentionTap(model, language).attach()
    assert torch.equal(model(PIXELS)[0], bare)
    assert torch.equal(language(IDS)[0], spoken)
    assert model.config._attn_implementation == f"chiasm|{implementation}"
    assert own_implementation(model.config) == implementation
    with listen() as calls:
        assert torch.equal(model(PIXELS)[0], bare)
    assert len(calls) == 2
    tap.detach()
    tap.detach()
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(PIXELS)[0], bare)


@torch.no_grad()
def test_two_taps_on_one_model():
    model = vision()
    first, second = AttentionTap(model).attach(), AttentionTap(model).attach()
    first.detach()
    with listen() as calls:
        model(PIXELS)
    assert len(calls) == 2
    second.detach()
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_probabilities_are_those_of_eager_attention():
    model = vision("eager")
    want = model(PIXELS, output_attentions=True).attentions
    tap = AttentionTap(model).attach()
    with listen() as calls:
        model(PIXELS)
    tap.detach()
    for call, own in zip(calls, want):
        assert torch.allclose(call.probabilities(), own, atol=1e-6)
        assert torch.allclose(call.probabilities(slice(0, 1)), own[:, :, :1], atol=1e-6)


@torch.no_grad()
def test_probabilities_of_a_causal_model_with_grouped_heads():
    want = llama("eager")(IDS, output_attentions=True).attentions
    model = llama("sdpa")
    tap = AttentionTap(model).attach()
    with listen() as calls:
        model(IDS)
    tap.detach()
    assert calls[0].key.shape[1] == 2
    assert torch.allclose(calls[1].probabilities(), want[1], atol=1e-5)
    assert torch.allclose(calls[1].probabilities(slice(-1, None)), want[1][:, :, -1:], atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_bias_of_log_two_is_the_key_twice(implementation):
    model = vision(implementation)
    attention = model.encoder.layers[0].self_attn
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    twice = torch.cat([x, x[:, 2:3]], dim=1)
    want = attention(twice)[0][:, :5]
    tap = AttentionTap(model).attach()
    with listen(torch.tensor([1.0, 1, 2, 1, 1]).log()[None, None, None]):
        got = attention(x)[0]
    tap.detach()
    assert torch.allclose(got, want, atol=1e-6)


@torch.no_grad()
def test_a_bias_keeps_the_causal_mask():
    model = llama()
    bare = model(IDS)[0]
    tap = AttentionTap(model).attach()
    with listen(torch.zeros(1, 1, 1, 7)):
        got = model(IDS)[0]
    tap.detach()
    assert torch.allclose(got, bare, atol=1e-5)


@torch.no_grad()
def test_queries_and_keys_are_the_models_own_and_nothing_else_runs():
    model = llama()
    tap = AttentionTap(model).attach()
    hidden = model.embed_tokens(IDS)
    places = model.rotary_emb(hidden, torch.arange(7)[None])
    layer = model.layers[0]
    with listen() as calls:
        model(IDS)
    query, key = queries_and_keys(
        layer.self_attn, layer.input_layernorm(hidden), position_embeddings=places, attention_mask=None
    )
    tap.detach()
    assert torch.equal(query, calls[0].query)
    assert torch.equal(key, calls[0].key)


def test_an_untapped_module_is_refused():
    model = vision()
    with pytest.raises(BadInput, match="AttentionTap"):
        queries_and_keys(model.encoder.layers[0].self_attn, torch.zeros(1, 3, 32))
    with pytest.raises(BadInput, match="no transformers config"):
        AttentionTap(torch.nn.Linear(2, 2)).attach()
    tap = AttentionTap(model).attach()
    with pytest.raises(BadInput, match="attached already"):
        tap.attach()
    tap.detach()


@torch.no_grad()
def test_other_threads_are_left_alone():
    model = vision()
    bare = model(PIXELS)[0]
    tap = AttentionTap(model).attach()
    got = []
    with listen(torch.full((1, 1, 1, 17), -3.0).cumsum(-1)) as calls:
        thread = threading.Thread(target=lambda: got.append(model(PIXELS)[0]))
        thread.start()
        thread.join()
        assert not calls
        assert not torch.equal(model(PIXELS)[0], bare)
    tap.detach()
    assert torch.equal(got[0], bare)


def test_rows_that_see_nothing_are_zero_not_nan():
    q = torch.randn(1, 1, 2, 4)
    mask = torch.tensor([[True, False], [False, False]])
    got = attention_probabilities(q, q, 0.5, mask)
    assert torch.equal(got[0, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@torch.no_grad()
def test_the_text_model_with_padding_is_unchanged():
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(**TOWER, vocab_size=40, max_position_embeddings=16, eos_token_id=3)).eval()
    mask = torch.ones_like(IDS)
    mask[0, 4:] = 0
    bare = model(IDS, attention_mask=mask)[0]
    tap = AttentionTap(model).attach()
    assert torch.equal(model(IDS, attention_mask=mask)[0], bare)
    tap.detach()

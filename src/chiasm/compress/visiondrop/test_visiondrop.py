"""VisionDrop on tiny random LLaVAs: closed forms of its scores and schedule, identities of the pruned model, hostile input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel, DynamicCache, LlavaConfig, LlavaForConditionalGeneration

from chiasm.blocks.merging import contextual
from chiasm.compress.visiondrop import (
    Stage,
    VisionDrop,
    even_cuts,
    fast_v,
    mean_tokens,
    misalignment,
    pyramid_drop,
    schedule,
    tokens_by_layer,
    vision_zip,
)
from chiasm.compress.visiondrop.scores import blind_scores, choose, encoder_scores, others, text_scores, visual_scores
from chiasm.compress.visiondrop.sequence import causal_mask
from chiasm.errors import BadInput, UnknownName

IMAGE = 39
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
STAGES = [Stage(None, 8, 2), Stage(1, 5, 1), Stage(2, 3, 1)]


def llava(vision="clip_vision_model", text="llama", implementation="sdpa", **changes):
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config={**SIZES, "num_hidden_layers": 3, "model_type": vision, "image_size": 32, "patch_size": 8},
        text_config={
            **SIZES,
            "model_type": text,
            "vocab_size": 40,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 3,
            "head_dim": 8,
        },
        image_token_id=IMAGE,
        vision_feature_select_strategy="full" if vision == "siglip_vision_model" else "default",
        **changes,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # the initial weights are so small that attention is all but uniform
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model.set_attn_implementation(implementation)
    return model


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PIXELS = noise(4, 3, 32, 32)


def prompt(pictures=(1, 1), texts=((5, 6, 7), (8, 9, 10)), right=False):
    rows = [[1, *([IMAGE] * 16 * n), *words] for n, words in zip(pictures, texts)]
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    ids = torch.tensor([row + f if right else f + row for row, f in zip(rows, fill)])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": PIXELS[: sum(pictures)]}


# ---- schedule


def test_the_released_schedule():
    made = schedule(32, 32)
    assert [stage.count for stage in made] == [48, 35, 26, 19]
    assert [(stage.dominant, stage.contextual) for stage in made] == [(42, 6), (30, 5), (22, 4), (16, 3)]
    assert [stage.layer for stage in made] == [None, 8, 16, 24]
    assert mean_tokens(made, 32, 576) == 32
    assert even_cuts(32) == [8, 16, 24]


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(8, 128), layers=st.integers(4, 40), encoder=st.floats(1.0, 3.0))
def test_the_mean_is_the_budget_and_counts_fall(tokens, layers, encoder):
    made = schedule(tokens, layers, encoder=encoder)
    counts = [stage.count for stage in made]
    assert counts == sorted(counts, reverse=True)
    assert abs(mean_tokens(made, layers, 4096) - tokens) <= 1.0
    assert all(stage.dominant > 0 for stage in made)


def test_schedules_at_the_edges():
    assert [s.count for s in schedule(16, 8, [])] == [16]
    assert [s.count for s in schedule(16, 8, available=16)] == [16] * 4
    assert schedule(14, 8, available=16)[0].count == 16  # 1.5 x 14 is more than there is
    assert tokens_by_layer([Stage(2, 3)], 4, 9) == [9, 9, 3, 3]
    assert tokens_by_layer([Stage(None, 5), Stage(2, 3)], 4, 9) == [5, 5, 3, 3]
    for arguments in ((0, 8), (-3, 8), (8, 8, [0]), (8, 8, [8]), (8, 8, [3, 2])):
        with pytest.raises(BadInput):
            schedule(*arguments)
    with pytest.raises(BadInput, match="a picture has 16"):
        schedule(17, 8, available=16)
    with pytest.raises(BadInput, match="encoder=5"):
        schedule(8, 8, encoder=5.0)
    with pytest.raises(BadInput, match="at least one token"):
        Stage(1, 0, 0)
    with pytest.raises(BadInput, match="layer 0"):
        Stage(0, 3)


# ---- scores


def spans(batch, tokens, first, count):
    rows = torch.arange(batch)
    return torch.ones(batch, tokens, dtype=torch.bool), rows, torch.arange(first, first + count).expand(batch, -1)


def test_causal_uniform_attention_in_closed_form():
    q = torch.zeros(1, 2, 2, 4)
    args = (q, q, *spans(1, 2, 0, 2), 1.0)
    assert torch.allclose(visual_scores(*args), torch.tensor([[0.75, 0.25]]))
    assert torch.allclose(visual_scores(*args, "causal"), torch.tensor([[0.75, 0.5]]))
    assert torch.allclose(visual_scores(*args, "length"), torch.tensor([[1.0, 1.0]]))
    q = torch.zeros(1, 2, 7, 4)
    args = (q, q, *spans(1, 7, 0, 7), 1.0)
    want = torch.tensor([sum(1 / (j + 1) for j in range(i, 7)) / 7 for i in range(7)])
    assert torch.allclose(visual_scores(*args)[0], want)
    assert torch.allclose(visual_scores(*args, bidirectional=True), torch.full((1, 7), 1 / 7))


def test_length_correction_is_flat_with_a_prefix():
    q = torch.zeros(2, 2, 9, 4)
    assert torch.allclose(visual_scores(q, q, *spans(2, 9, 3, 5), 1.0, "length"), torch.ones(2, 5))


def test_scores_do_not_look_at_the_question():
    q, k = noise(1, 4, 9, 4), noise(1, 2, 9, 4, seed=2)
    valid, rows, columns = spans(1, 9, 1, 5)
    k2, q2 = k.clone(), q.clone()
    k2[:, :, 6:], q2[:, :, 6:] = 7.0, -3.0
    for bidirectional in (False, True):
        args = (valid, rows, columns, 0.5)
        want = visual_scores(q, k, *args, bidirectional=bidirectional)
        assert torch.allclose(visual_scores(q2, k2, *args, bidirectional=bidirectional), want, atol=1e-6)
    assert not torch.allclose(text_scores(q2, k2, *args), text_scores(q, k, *args))


def test_scores_against_a_loop_with_grouped_heads():
    q, k = noise(1, 4, 6, 4), noise(1, 2, 6, 4, seed=2)
    got = visual_scores(q, k, *spans(1, 6, 1, 4), 0.5)[0]
    want = torch.zeros(4)
    for h in range(4):
        for place in range(1, 5):
            row = torch.softmax(torch.stack([q[0, h, place] @ k[0, h // 2, j] * 0.5 for j in range(place + 1)]), 0)
            for j in range(1, place + 1):
                want[j - 1] += row[j] / 16
    assert torch.allclose(got, want, atol=1e-5)


def test_encoder_scores():
    q, k = noise(2, 3, 5, 4), noise(2, 3, 5, 4, seed=2)
    whole = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1)
    assert torch.allclose(encoder_scores(q, k, 0.5, True), whole[:, :, 0, 1:].sum(1), atol=1e-6)
    assert torch.allclose(encoder_scores(q, k, 0.5, False), whole.mean((1, 2)), atol=1e-6)


def test_choosing_keeps_the_order():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.9], [1.0, 0.0, 0.0, 0.0]])
    assert choose(scores, 2).tolist() == [[1, 3], [0, 1]]
    assert others(choose(scores, 2), 4).tolist() == [[0, 2], [2, 3]]
    assert choose(blind_scores("uniform", noise(1, 8, 2), 0), 4).tolist() == [[0, 2, 4, 6]]
    a, b = blind_scores("random", noise(2, 8, 2), 1), blind_scores("random", noise(2, 8, 2), 2)
    assert torch.equal(a[0], a[1])
    assert not torch.equal(a, b)


def test_masks():
    assert causal_mask(torch.ones(2, 5, dtype=torch.bool), 5) is None
    assert causal_mask(torch.ones(2, 5, dtype=torch.bool), 1) is None
    assert causal_mask(torch.ones(2, 5, dtype=torch.bool), 2)[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    padded = causal_mask(torch.tensor([[False, True, True]]), 3)[0, 0]
    assert padded.tolist() == [[True, False, False], [False, True, False], [False, True, True]]


# ---- the pruned model


@pytest.mark.parametrize("positions", ["repack", "keep"])
@pytest.mark.parametrize("vision", ["clip_vision_model", "siglip_vision_model"])
@torch.no_grad()
def test_a_budget_of_all_tokens_changes_no_logit_and_detach_leaves_no_trace(vision, positions):
    model = llava(vision)
    inputs = prompt()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    bare = model(**inputs).logits
    pruner = VisionDrop(16, positions=positions).attach(model)
    assert not pruner.state_dict()
    assert torch.equal(model(**inputs).logits, bare)
    pruner.detach()
    pruner = VisionDrop(stages=STAGES, positions=positions).attach(model)
    assert model(**inputs).logits.shape[1] == bare.shape[1] - 12
    pruner.detach()
    assert torch.equal(model(**inputs).logits, bare)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_any_language_model(text):
    model = llava(text=text)
    pruner = VisionDrop(stages=STAGES).attach(model)
    logits = model(**prompt()).logits
    assert logits.shape[1] == 1 + 4 + 3
    assert torch.isfinite(logits).all()
    pruner.detach()


@torch.no_grad()
def test_eager_and_sdpa_agree():
    inputs = prompt((1, 2), ((5, 6), (8, 9, 10)))
    out = []
    for implementation in ("sdpa", "eager"):
        model = llava(implementation=implementation)
        pruner = VisionDrop(stages=STAGES).attach(model)
        out.append(model(**inputs).logits[inputs["attention_mask"][:, -1] == 1, -3:])
        pruner.detach()
    assert torch.allclose(*out, atol=1e-4)


@torch.no_grad()
def test_without_contextual_tokens_the_sequence_is_the_best_in_order():
    model = llava()
    seen = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    inputs = prompt()
    model(**inputs)
    pruner = VisionDrop(stages=[Stage(None, 6)], keep_class=False).attach(model)
    model(**inputs)
    kept = pruner.cuts_made[0].kept
    pruner.detach()
    hook.remove()
    whole, less = seen
    assert (kept.diff(dim=1) > 0).all()
    for b in range(2):
        want = torch.cat([whole[b, :1], whole[b, 1 + kept[b]], whole[b, 17:]])
        assert torch.allclose(less[b], want, atol=1e-6)


@torch.no_grad()
def test_the_class_token_is_one_of_the_dominant_ones():
    model = llava()
    pruner = VisionDrop(stages=[Stage(None, 6, 2)]).attach(model)
    assert model(**prompt()).logits.shape[1] == 1 + 8 + 3
    kept = pruner.cuts_made[0].kept
    assert (kept[:, 0] == -1).all()
    assert kept.shape == (2, 6)
    pruner.detach()


@pytest.mark.parametrize("positions", ["repack", "keep"])
@pytest.mark.parametrize("scorer", ["visual", "text", "random", "uniform", "norm"])
@torch.no_grad()
def test_the_batch_does_not_matter(scorer, positions):
    """Different texts, paddings and numbers of pictures in one batch: each item's last logits are as if it were alone."""
    model = llava()
    pruner = VisionDrop(stages=STAGES, scorer=scorer, positions=positions).attach(model)
    pictures, texts = (1, 2, 1), ((5, 6, 7), (8, 9), (10, 11, 12, 13, 14))
    inputs = prompt(pictures, texts)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    whole = model(**inputs).logits[:, -1]
    first = 0
    for i in range(3):
        alone = prompt(pictures[i : i + 1], texts[i : i + 1])
        alone["pixel_values"] = PIXELS[first : first + pictures[i]]
        first += pictures[i]
        assert torch.allclose(model(**alone).logits[0, -1], whole[i], atol=1e-4), f"item {i}"
    pruner.detach()


@pytest.mark.parametrize("positions", ["repack", "keep"])
@torch.no_grad()
def test_decoding_with_the_cache_is_reading_at_once(positions):
    model = llava()
    pruner = VisionDrop(stages=STAGES, positions=positions).attach(model)
    inputs = prompt((1, 1), ((5, 6, 7), (8, 9, 10, 11, 12)))
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    whole = model(**inputs).logits[:, -3:]
    head = {k: v[:, :-3] if v.ndim == 2 else v for k, v in inputs.items()}
    read = model(**head, use_cache=True)
    parts = []
    for step, count in ((3, 1), (2, 2)):
        end = inputs["input_ids"].shape[1] - step + count
        out = model(
            input_ids=inputs["input_ids"][:, end - count : end],
            attention_mask=inputs["attention_mask"][:, :end],
            past_key_values=read.past_key_values,
        )
        parts.append(out.logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)
    pruner.detach()


@pytest.mark.parametrize("positions", ["repack", "keep"])
@torch.no_grad()
def test_generate_is_greedy_reading(positions):
    model = llava()
    pruner = VisionDrop(stages=STAGES, positions=positions).attach(model)
    inputs = prompt((1,), ((5, 6, 7),))
    spoken = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    for _ in range(4):
        new = model(**inputs).logits[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    assert torch.equal(spoken, inputs["input_ids"])
    pruner.detach()


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_several_sequences_of_one_prompt_are_refused(options):
    model, inputs = llava(), prompt()
    pruner = VisionDrop(tokens=8).attach(model)
    with pytest.raises(BadInput, match="num_beams=1"):
        model.generate(**inputs, max_new_tokens=2, eos_token_id=None, pad_token_id=0, **options)
    pruner.detach()
    model.generate(**inputs, max_new_tokens=2, eos_token_id=None, pad_token_id=0, **options)


def test_one_pruned_picture_answers_several_questions():
    """Visual scores do not look at the question, so a forked cache gives what the whole prompt gives."""
    model = llava()
    pruner = VisionDrop(stages=STAGES).attach(model)
    read = model(**prompt((1,), ((5, 6),)), use_cache=True)
    for question in ((7, 8), (9, 10, 11)):
        cache = pruner.fork(read.past_key_values, drop_last=1)
        got = model(input_ids=torch.tensor([question]), past_key_values=cache).logits
        want = model(**prompt((1,), ((5, *question),))).logits[:, -len(question) :]
        assert torch.allclose(got, want, atol=1e-4)
    with pytest.raises(BadInput, match="not filled"):
        pruner.fork(DynamicCache())
    with pytest.raises(BadInput, match="drop_last"):
        pruner.fork(read.past_key_values, drop_last=99)
    pruner.detach()


@torch.no_grad()
def test_labels_are_cut_with_the_tokens():
    model = llava()
    pruner = VisionDrop(stages=STAGES).attach(model)
    inputs = prompt()
    with pytest.raises(BadInput, match="inference"):
        model(**inputs, labels=inputs["input_ids"])
    logits = model(**inputs).logits
    got = pruner.cut(inputs["input_ids"])
    assert got.shape == logits.shape[:2]
    assert got[0].tolist() == [1, *[IMAGE] * 3, -100, 5, 6, 7]
    pruner.detach()


@torch.no_grad()
def test_text_alone_passes_untouched():
    model = llava()
    ids = torch.tensor([[1, 5, 6, 7]])
    bare = model(input_ids=ids).logits
    pruner = VisionDrop(stages=STAGES).attach(model)
    assert torch.equal(model(input_ids=ids).logits, bare)
    pruner.detach()


@torch.no_grad()
def test_a_broken_call_leaves_nothing_behind():
    model = llava()
    inputs = prompt()
    pruner = VisionDrop(stages=STAGES).attach(model)
    want = model(**inputs).logits
    with pytest.raises(BadInput, match="image tokens"):
        model(input_ids=torch.tensor([[1, IMAGE, 5]]), pixel_values=PIXELS[:1])
    with pytest.raises(BadInput, match="pixel_values"):
        model(**{**inputs, "pixel_values": PIXELS[None]})
    states = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(BadInput, match="needs input_ids"):
        model(inputs_embeds=states, pixel_values=inputs["pixel_values"], attention_mask=inputs["attention_mask"])
    assert torch.equal(model(**inputs).logits, want)
    pruner.detach()
    for unattached in (pruner.visual_tokens, lambda: pruner.flops(4), lambda: pruner.cut(inputs["input_ids"])):
        with pytest.raises(BadInput):
            unattached()


def test_flops_fall_with_the_tokens():
    model = llava()
    pruner = VisionDrop(stages=STAGES).attach(model)
    assert pruner.visual_tokens() == [10, 6, 4, 4]
    full, less = pruner.flops(4)
    assert less < full
    pruner.detach()


# ---- baselines and probe


@torch.no_grad()
def test_baselines():
    model = llava()
    for pruner, want in (
        (vision_zip(8), [8, 8, 8, 8]),
        (fast_v(10, 4, 16), [16, 16, 4, 4]),
        (pyramid_drop(4, 16), [16, 8, 4, 2]),
    ):
        pruner.attach(model)
        assert pruner.visual_tokens() == want
        assert model(**prompt()).logits.shape[1] == 1 + want[-1] + 3
        pruner.detach()
    with pytest.raises(BadInput, match="are more than a mean"):
        fast_v(4, 4, 16)


def test_the_probe_sees_where_a_scorer_looks():
    model = llava()
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.zero_()  # uniform attention: only the causal mask is left
    seen = misalignment(model, prompt(), 1, 4)
    assert seen.correlation == pytest.approx(-1.0, abs=1e-4)
    assert seen.kept.tolist() == [[0, 1, 2, 3]] * 2
    assert seen.centroid[0] == pytest.approx(0.125)
    assert seen.mean_place == pytest.approx(2 / 16)
    assert seen.scores.shape == (2, 16)
    flat = misalignment(model, prompt(), 1, 4, correction="length")
    assert torch.allclose(flat.scores, torch.ones(2, 16), atol=1e-4)
    with pytest.raises(BadInput, match="keep"):
        misalignment(model, prompt(), 1, 17)


# ---- hostile input


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: VisionDrop(0), BadInput),
        (lambda: VisionDrop(8, scorer="magic"), UnknownName),
        (lambda: VisionDrop(8, merge="max"), UnknownName),
        (lambda: VisionDrop(8, positions="drop"), UnknownName),
        (lambda: VisionDrop(8, correction="some"), UnknownName),
        (lambda: VisionDrop(stages=[]), BadInput),
        (lambda: VisionDrop(stages=[Stage(2, 3), Stage(1, 3)]), BadInput),
        (lambda: VisionDrop(17).attach(llava()), BadInput),
        (lambda: VisionDrop(stages=[Stage(None, 17)]).attach(llava()), BadInput),
        (lambda: VisionDrop(stages=[Stage(4, 3)]).attach(llava()), BadInput),
        (lambda: VisionDrop(stages=[Stage(1, 3), Stage(2, 5)]).attach(llava()), BadInput),
        (lambda: VisionDrop(4).attach(torch.nn.Linear(2, 2)), UnknownName),
        (lambda: VisionDrop(4).attach(llava(vision_feature_layer=[-1, -2])), BadInput),
    ],
)
def test_hostile_input(make, error):
    with pytest.raises(error):
        make()


def test_an_unsupported_model_is_told_which_work():
    model = CLIPModel(CLIPConfig(text_config=SIZES, vision_config={**SIZES, "image_size": 32, "patch_size": 8}))
    with pytest.raises(UnknownName, match="It works on llava"):
        VisionDrop(4).attach(model)
    pruner = VisionDrop(4).attach(llava())
    with pytest.raises(BadInput, match="attached already"):
        pruner.attach(llava())


def test_a_copy_is_detached():
    model = llava()
    pruner = VisionDrop(stages=STAGES).attach(model)
    twin = copy.deepcopy(pruner)
    pruner.detach()
    twin.attach(model)
    assert twin.visual_tokens() == [10, 6, 4, 4]
    twin.detach()


def test_identical_tokens_double():
    x = torch.ones(1, 5, 3)
    assert torch.equal(contextual(x, x, 1, "sum")[0], 2 * torch.ones(1, 1, 3))
    assert torch.equal(contextual(x, x, 1, "mean")[0], torch.ones(1, 1, 3))


def test_two_pruners_do_not_share_a_model():
    model = llava()
    pruner = VisionDrop(stages=STAGES).attach(model)
    with pytest.raises(BadInput, match="another one"):
        VisionDrop(4).attach(model)
    with pytest.raises(BadInput, match="another one"):
        misalignment(model, prompt(), 1, 4)
    pruner.detach()
    assert not any(layer._forward_pre_hooks for layer in model.model.language_model.layers)


def test_a_cache_with_a_graph_can_be_forked():
    model, inputs = llava(), prompt()
    pruner = VisionDrop(stages=STAGES).attach(model)
    cache = model(**inputs, use_cache=True).past_key_values
    twin = pruner.fork(cache)
    assert torch.equal(twin.layers[0].keys, cache.layers[0].keys)
    assert not twin.layers[0].keys.requires_grad
    with pytest.raises(BadInput, match="use_cache"):
        pruner.fork(3)


@torch.no_grad()
def test_calls_that_do_not_fit_the_prompt():
    model, inputs = llava(), prompt()
    pruner = VisionDrop(stages=STAGES).attach(model)
    for name, wrong in (
        ("attention_mask", inputs["attention_mask"][:, 1:]),
        ("attention_mask", inputs["attention_mask"][:1]),
        ("pixel_values", inputs["pixel_values"] * float("nan")),
    ):
        with pytest.raises(BadInput):
            model(**{**inputs, name: wrong})
    model(**inputs)
    for values in (inputs["input_ids"][:, :3], inputs["input_ids"][:1], inputs["input_ids"][0]):
        with pytest.raises(BadInput, match="given"):
            pruner.cut(values)
    with pytest.raises(BadInput):
        pruner.flops(-1)


def test_vision_encoders_and_baselines_that_do_not_work():
    with pytest.raises(UnknownName, match="CLIP- or SigLIP-like"):
        VisionDrop(4).attach(llava(vision="dinov2"))
    for make in (
        lambda: fast_v(4, 4, 16, layer=4),
        lambda: pyramid_drop(4, 16, ratio=2),
        lambda: Stage(None, 2.5),
        lambda: VisionDrop(float("nan")),
        lambda: schedule(4, 4, encoder=float("nan")),
        lambda: schedule(4, 0),
        lambda: misalignment(llava(), {"input_ids": torch.tensor([[1, 5]])}, 1, 4),
    ):
        with pytest.raises(BadInput):
            make()

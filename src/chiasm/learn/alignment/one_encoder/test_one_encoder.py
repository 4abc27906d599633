"""OneEncoder: the card's identities, masks, the progressive protocol, questions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import nn

from chiasm.blocks.alignment import AlignmentLayer, pooled
from chiasm.errors import BadInput, UnknownName
from chiasm.learn.alignment.one_encoder import (
    FUSIONS,
    AnswerHead,
    Fusion,
    ModalityToken,
    OneEncoder,
    OneEncoderLoss,
    TokenPerceptron,
    UniversalProjection,
    as_model,
    class_prompts,
    embedded,
    encoder_of,
    first_step,
    next_step,
    question_encoder,
    token_means,
    wups,
)
from chiasm.learn.features import Features
from chiasm.learn.held_out import encode
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage, frozen_but
from chiasm.learn.training import train

D = 16


def small(fusion: str = "addition", **options) -> OneEncoder:
    torch.manual_seed(0)
    return OneEncoder({"image": 6, "text": 5}, width=D, feedforward=32, fusion=fusion, **options).eval()


def size(*parts: nn.Module) -> int:
    return sum(p.numel() for part in parts for p in part.parameters())


def concepts(n: int, features: int, length: int, seed: int) -> Features:
    """N items of eight kinds: tokens near the kind's own code."""
    codes = np.random.default_rng(99).standard_normal((8, features))
    noise = np.random.default_rng(seed).standard_normal((n, length, features))
    return Features({"input_features": (codes[np.arange(n) % 8][:, None] + 0.3 * noise).astype(np.float32)})


# ---- the card's identities


def test_parameter_counts_are_the_papers() -> None:
    assert size(AlignmentLayer(768, 256)) == 263_168
    assert size(UniversalProjection()) == 1_315_584
    assert size(ModalityToken(), TokenPerceptron()) == 42_115
    model = OneEncoder()
    before = size(model)
    model.grow("audio", 768)
    assert size(model) - before == 263_168 + 42_115
    assert (size(model) - before) / size(model) < 0.2


def test_a_token_of_zeros_added_or_of_ones_multiplied_changes_nothing() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 4, D), torch.ones(3, 4, dtype=torch.bool)
    for name, neutral in (("addition", torch.zeros(1, D)), ("multiplication", torch.ones(1, D))):
        up = UniversalProjection(D, feedforward=32, fusion=name).eval()
        torch.testing.assert_close(up(x, neutral, mask), up(x, None, mask), rtol=0, atol=0)
        assert (up(x, neutral + 0.5, mask) - up(x, None, mask)).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_operator_returns_the_items_own_tokens(fusion: str) -> None:
    model = small(fusion)
    out = model({"input_features": torch.randn(2, 7, 6)}, task="image")
    assert out["token_embeddings"].shape == (2, 7, D)
    assert torch.isfinite(out["sentence_embedding"]).all()
    assert model.token("image").shape == (15 if fusion == "concatenation" else 1, D)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_and_neighbors_do_not_matter(fusion: str, pooling: str) -> None:
    model = small(fusion, pooling=pooling)
    x = torch.randn(3, 4, 6)
    alone = model({"input_features": x}, task="image")["sentence_embedding"]
    padded = torch.cat([x, torch.full((3, 5, 6), float("nan"))], dim=1)
    mask = torch.arange(9).expand(3, 9) < 4
    with_padding = model({"input_features": padded, "attention_mask": mask}, task="image")
    torch.testing.assert_close(with_padding["sentence_embedding"], alone, rtol=1e-4, atol=1e-5)
    assert with_padding["token_embeddings"][:, 4:].abs().max() == 0
    one = model({"input_features": x[:1]}, task="image")["sentence_embedding"]
    torch.testing.assert_close(one, alone[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_item_without_tokens_is_zero_and_its_gradient_is_finite(fusion: str) -> None:
    model = small(fusion)
    x = torch.randn(2, 3, 6, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    e = model({"input_features": x, "attention_mask": mask}, task="image")["sentence_embedding"]
    assert e[1].abs().max() == 0
    e.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad[~mask].abs().max() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_loss_of_two_orthonormal_pairs() -> None:
    e = torch.eye(2, dtype=torch.float64)
    loss = sum(OneEncoderLoss(per_pair=True).double()(e, e).values())
    assert float(loss) == pytest.approx(math.log1p(math.exp(-math.exp(2.5))), rel=1e-6)
    assert float(loss) == pytest.approx(5.11e-6, rel=2e-3)


def test_without_its_encoder_the_projection_is_the_fused_tokens() -> None:
    up = UniversalProjection(D, feedforward=32)
    up._encoded = lambda y, seen: torch.zeros_like(y)
    x, token = torch.randn(2, 5, D), torch.randn(1, D)
    torch.testing.assert_close(up(x, token), x + token)
    torch.testing.assert_close(up.embed(x, token), (x + token).mean(1))


# ---- fusion operators in closed form


@pytest.mark.parametrize("fusion", ["scaled-dot", "bahdanau", "luong"])
def test_attention_operators_weigh_the_tokens_that_are_there(fusion: str) -> None:
    torch.manual_seed(1)
    operator = Fusion(fusion, D)
    x, token = torch.randn(2, 5, D), torch.randn(1, D)
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    weights = operator.weights(x, token, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert weights[0, 3:].abs().max() == 0
    # Equal tokens get equal weights, so that the context is their common value.
    same = torch.randn(D).expand(1, 5, D)
    fused, _ = operator(same, token, torch.ones(1, 5, dtype=torch.bool))
    value = operator.value(same) if fusion == "scaled-dot" else same
    torch.testing.assert_close(fused, same + value, rtol=1e-4, atol=1e-5)


def test_luong_and_bahdanau_by_hand() -> None:
    torch.manual_seed(2)
    x, token, mask = torch.randn(1, 3, D), torch.randn(1, D), torch.ones(1, 3, dtype=torch.bool)
    luong, bahdanau = Fusion("luong", D), Fusion("bahdanau", D)
    by_hand = torch.stack([token[0] @ luong.bilinear.weight @ x[0, j] for j in range(3)]).softmax(0)
    torch.testing.assert_close(luong.weights(x, token, mask)[0], by_hand)
    scores = [bahdanau.score((bahdanau.of_token(token[0]) + bahdanau.of_item(x[0, j])).tanh()) for j in range(3)]
    torch.testing.assert_close(bahdanau.weights(x, token, mask)[0], torch.cat(scores).softmax(0))


def test_bahdanau_without_tanh_does_not_see_the_token() -> None:
    torch.manual_seed(3)
    x, mask = torch.randn(2, 4, D), torch.ones(2, 4, dtype=torch.bool)
    for tanh, moves in ((False, False), (True, True)):
        operator = Fusion("bahdanau", D, tanh=tanh)
        difference = (operator.weights(x, torch.randn(1, D), mask) - operator.weights(x, torch.randn(1, D), mask)).abs()
        assert (float(difference.detach().max()) > 1e-4) is moves


def test_pooling() -> None:
    tokens = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[False, True, True, False]])
    torch.testing.assert_close(pooled(tokens, mask), tokens[:, 1:3].mean(1))
    torch.testing.assert_close(pooled(tokens, mask, "first"), tokens[:, 1])
    assert pooled(tokens[:, :0], mask[:, :0]).tolist() == [[0, 0, 0]]


# ---- the loss


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_loss_is_the_two_cross_entropies(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, 8, generator=generator) for _ in range(2))
    s = math.exp(2.5) * nn.functional.normalize(a, dim=1) @ nn.functional.normalize(b, dim=1).T
    want = (nn.functional.cross_entropy(s, torch.arange(n)) + nn.functional.cross_entropy(s.T, torch.arange(n))) / 2
    torch.testing.assert_close(sum(OneEncoderLoss(per_pair=True)(a, b).values()), want, rtol=1e-4, atol=1e-5)


def test_groups_are_positives_unless_told_otherwise() -> None:
    a = torch.randn(4, 8)
    groups = torch.tensor([0, 0, 1, 2])
    strict, kind = OneEncoderLoss(per_pair=True), OneEncoderLoss()
    assert torch.equal(sum(strict(a, a, groups=groups).values()), sum(kind(a, a).values()))
    assert sum(kind(a, a, groups=groups).values()) != sum(kind(a, a).values())


def test_scale_is_fixed_or_learned_within_its_bounds() -> None:
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    fixed, learned = OneEncoderLoss(), OneEncoderLoss("learned")
    assert float(fixed.scale) == pytest.approx(12.1825, rel=1e-5)
    assert not list(fixed.parameters())
    sum(learned(a, b).values()).backward()
    assert learned.log_scale.grad is not None
    assert learned.log_scale.grad != 0
    with torch.no_grad():
        learned.log_scale.fill_(9.0)
    assert learned.scale.item() == pytest.approx(math.exp(3.0), rel=1e-5)
    learned.on_progress(0, 1)
    learned.log_scale.grad = None
    sum(learned(a, b).values()).backward()
    assert learned.log_scale.item() == 3.0
    assert learned.log_scale.grad != 0  # at the bound it is still alive
    assert OneEncoderLoss("learned").state_dict().keys() == {"log_scale"}


def test_the_anchor_gets_no_gradient() -> None:
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    sum(OneEncoderLoss(anchor="b")(a, b).values()).backward()
    assert a.grad is not None
    assert a.grad.abs().max() > 0
    assert b.grad is None or b.grad.abs().max() == 0


# ---- the protocol


@pytest.mark.parametrize("fusion", ["addition", "concatenation", "bahdanau"])
def test_a_later_step_touches_nothing_that_was_there(fusion: str, tmp_path: Path) -> None:
    model = as_model(small(fusion), device="cpu")
    image, text, audio = concepts(32, 6, 4, 1), concepts(32, 5, 3, 2), concepts(32, 7, 5, 3)
    kinds = np.arange(32) % 8
    stage = Stage(steps=4, warmup=0)
    first_step(model, Pairs({"a": image, "b": text}, groups=kinds), stage=stage, batch_size=8, device="cpu")
    before = [encode(model, source, name).vectors for source, name in ((image, "image"), (text, "text"))]
    old = {name: value.clone() for name, value in model.state_dict().items()}
    next_step(model, "audio", 7, Pairs({"a": audio, "b": text}, groups=kinds), stage=stage, batch_size=8, device="cpu")
    after = [encode(model, source, name).vectors for source, name in ((image, "image"), (text, "text"))]
    assert all(torch.equal(x, y) for x, y in zip(before, after))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in old.items())
    heard = encode(model, audio, "audio")
    assert heard.vectors.std(0).max() > 0
    model.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert torch.equal(encode(loaded, audio, "audio").vectors, heard.vectors)
    assert torch.equal(encode(loaded, image, "image").vectors, before[0])
    assert encoder_of(loaded).grown == ["audio"]


def test_every_parameter_of_a_step_gets_a_gradient_and_frozen_parts_rest() -> None:
    for fusion in FUSIONS:
        model = as_model(small(fusion), device="cpu")
        patterns = encoder_of(model).grow("audio", 7)
        with frozen_but(model, patterns) as learned:
            model.train()
            assert not encoder_of(model).projection.training
            assert encoder_of(model).align["audio"].training
            e = model({"input_features": torch.randn(6, 4, 7), "task": "audio"})["sentence_embedding"]
            sum(OneEncoderLoss(anchor="b")(e, torch.randn(6, D)).values()).backward()
            named = dict(model.named_parameters())
            assert all(named[name].grad is not None and named[name].grad.abs().max() > 0 for name in learned), fusion
            assert all(p.grad is None for name, p in named.items() if name not in learned)
        model.zero_grad()


def test_embeddings_of_a_frozen_modality_pass_through() -> None:
    model = as_model(small(), device="cpu")
    text = concepts(10, 5, 3, 0)
    kept = embedded(model, text, "text")
    assert torch.equal(encode(model, kept, "text").vectors, encode(model, text, "text").vectors)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 12), keep=st.integers(1, 5))
def test_token_means(length: int, keep: int) -> None:
    tokens = np.random.default_rng(length).standard_normal((2, length, 3)).astype(np.float32)
    one = token_means(tokens)
    np.testing.assert_allclose(one[:, 0], tokens.mean(1), rtol=1e-4, atol=1e-5)
    padded = np.concatenate([tokens, np.full((2, 4, 3), np.nan, np.float32)], axis=1)
    mask = np.arange(length + 4)[None].repeat(2, 0) < length
    np.testing.assert_allclose(token_means(padded, mask, keep), token_means(tokens, None, keep), rtol=1e-4, atol=1e-5)


def test_prompts() -> None:
    assert class_prompts(["dog"]) == ["a dog, this is a photo of a dog"]


# ---- questions


@pytest.mark.parametrize("fusion", ["concatenation", "attention"])
def test_questions_are_learned(fusion: str) -> None:
    torch.manual_seed(0)
    # The answer is the kind of the picture if the question is of the first sort, else the kind plus four.
    n = 128
    sort = np.arange(n) // 8 % 2
    image, text = concepts(n, 6, 4, 1), np.random.default_rng(2).standard_normal((n, 3, 5)).astype(np.float32)
    text[:, :, 0] = 3 * sort[:, None]
    answers = (np.arange(n) % 8 + 4 * sort) % 8
    pairs = Pairs({"a": Features({"input_features": text}), "b": image}, per_pair={"answers": answers})
    model = as_model(OneEncoder({"image": 6, "text": 5}, width=D, feedforward=32, dropout=0.0), device="cpu")
    head = AnswerHead(8, D, hidden=64, dropout=0.0, fusion=fusion, heads=2)
    routes = {"a": "text", "b": "image"}
    train(model, pairs, head, Stage(steps=150, rate=3e-3), routes=routes, batch_size=64, device="cpu")
    a, b = encode(model, pairs.source("a"), "text"), encode(model, image, "image")
    with torch.no_grad():
        guess = head.eval().scores(a.vectors, b.vectors, a.tokens, a.mask, b.tokens, b.mask).argmax(1).numpy()
    assert (guess == answers).mean() > 0.9


def test_of_several_answers_the_first_counts() -> None:
    head = AnswerHead(5, D).eval()
    a, b = torch.randn(3, D), torch.randn(3, D)
    one = head(a, b, answers=torch.tensor([1, 2, -1]))["answer"]
    several = head(a, b, answers=torch.tensor([[1, 4], [2, 0], [-1, -1]]))["answer"]
    assert torch.equal(one, several)
    want = nn.functional.cross_entropy(head.scores(a, b)[:2], torch.tensor([1, 2]))
    torch.testing.assert_close(one, want)
    assert head(a, b, answers=torch.tensor([-1, -1, -1]))["answer"] == 0
    with pytest.raises(BadInput, match="tokens"):
        AnswerHead(5, D, fusion="attention").scores(a, b)


def test_the_question_networks_sizes() -> None:
    encoder = question_encoder()
    assert encoder.width == 768
    assert len(encoder.projection.layers) == 2
    assert {m.p for layer in encoder.align.values() for m in layer.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert AnswerHead(10).hidden.weight.shape == (512, 1536)


def test_wups() -> None:
    def same(a: str, b: str) -> float:
        return 1.0 if a == b else 0.8 if {a, b} == {"cat", "dog"} else 0.0

    np.testing.assert_allclose(wups([["cat"], ["cat"], ["a", "b"]], [["cat"], ["dog"], ["b", "a"]], same), [1, 0.08, 1])
    np.testing.assert_allclose(wups([["cat"]], [["dog"]], same, threshold=0.0), [0.8])


# ---- what cannot be


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownName, match="addition"):
        OneEncoder(fusion="additoin")
    with pytest.raises(UnknownName, match="pooling"):
        OneEncoder(pooling="last")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName):
        small()({"input_features": torch.randn(1, 2, 6)}, task="smell")
    with pytest.raises(BadInput, match="already"):
        small().grow("text", 4)
    with pytest.raises(BadInput, match="name"):
        small().grow("a.b", 4)
    with pytest.raises(UnknownName):
        small().parts("text")
    with pytest.raises(UnknownName):
        OneEncoderLoss("free")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="bounds"):
        OneEncoderLoss("learned", bounds=(3, 2))
    with pytest.raises(BadInput, match="tokens have 6 numbers, those of text have 5"):
        small()({"input_features": torch.randn(1, 2, 6)}, task="text")
    with pytest.raises(BadInput, match="fit"):
        small()({"input_features": torch.randn(1, 2, 5), "attention_mask": torch.ones(1, 3)}, task="text")

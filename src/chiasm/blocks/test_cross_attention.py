from __future__ import annotations

import pytest
import torch

from chiasm.blocks.cross_attention import CrossAttentionBlock, FusionEncoder, MaskedAttention, QuickGELU, clip_init
from chiasm.errors import BadInput, UnknownName


def sequences(n: int = 3, length: int = 5, other: int = 7, width: int = 16, context: int = 12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, length, width, generator=generator)
    y = torch.randn(n, other, context, generator=generator)
    mask = torch.arange(length)[None] < torch.tensor([[length], [2], [3]])[:n]
    context_mask = torch.arange(other)[None] < torch.tensor([[4], [other], [1]])[:n]
    return x, y, mask, context_mask


def fusion(**options) -> FusionEncoder:
    torch.manual_seed(1)
    return FusionEncoder(16, 2, 4, context=12, **options).eval()


def naive(attention: MaskedAttention, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The textbook: softmax(Q K^T / sqrt(d)) V head by head, item by item, over the tokens that are there."""
    inner = attention.attention
    heads, width = inner.num_heads, inner.embed_dim
    weights = (
        inner.in_proj_weight.chunk(3)
        if inner.in_proj_weight is not None
        else (inner.q_proj_weight, inner.k_proj_weight, inner.v_proj_weight)
    )
    (wq, wk, wv), (bq, bk, bv) = weights, inner.in_proj_bias.chunk(3)
    out = torch.zeros_like(x)
    size = width // heads
    for i in range(len(x)):
        kept = y[i][mask[i]]
        q, k, v = x[i] @ wq.T + bq, kept @ wk.T + bk, kept @ wv.T + bv
        parts = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            parts.append(torch.softmax(q[:, at] @ k[:, at].T / size**0.5, dim=1) @ v[:, at])
        out[i] = torch.cat(parts, dim=1) @ inner.out_proj.weight.T + inner.out_proj.bias
    return out


def test_masked_attention_is_the_textbook_over_the_tokens_that_are_there():
    x, y, mask, context_mask = sequences()
    torch.manual_seed(0)
    for attention, other, there in (
        (MaskedAttention(16, 4, context=12), y, context_mask),
        (MaskedAttention(16, 2), None, mask),
    ):
        torch.testing.assert_close(
            attention(x, other, there), naive(attention, x, x if other is None else other, there), atol=1e-5, rtol=1e-5
        )


def test_weights_sum_to_one_over_what_is_there():
    x, y, _, context_mask = sequences()
    seen = MaskedAttention(16, 4, context=12).weights(x, y, context_mask)
    assert seen.shape == (3, 4, 5, 7)
    torch.testing.assert_close(seen.sum(-1), torch.ones(3, 4, 5))
    assert not seen.masked_select(~context_mask[:, None, None, :]).any()


@pytest.mark.parametrize("training", [True, False])
def test_missing_tokens_do_not_matter_whatever_stands_there(training: bool):
    x, y, mask, context_mask = sequences()
    model = fusion().train(training)
    first = model(x, y, mask=mask, context_mask=context_mask)
    other_x = torch.where(mask[..., None], x, torch.full_like(x, 1e4))
    other_y = torch.where(context_mask[..., None], y, torch.full_like(y, -1e4))
    again = model(other_x, other_y, mask=mask, context_mask=context_mask)
    torch.testing.assert_close(first[mask], again[mask])


def test_padding_further_changes_nothing():
    x, y, mask, context_mask = sequences()
    model = fusion()
    pad = torch.nn.functional.pad
    wider = model(
        pad(x, (0, 0, 0, 3)),
        pad(y, (0, 0, 0, 2)),
        mask=pad(mask, (0, 3)),
        context_mask=pad(context_mask, (0, 2)),
    )
    torch.testing.assert_close(wider[:, :5][mask], model(x, y, mask=mask, context_mask=context_mask)[mask])


def test_an_item_does_not_see_the_others():
    x, y, mask, context_mask = sequences()
    model = fusion()
    whole = model(x, y, mask=mask, context_mask=context_mask)
    alone = model(x[1:2], y[1:2], mask=mask[1:2], context_mask=context_mask[1:2])
    torch.testing.assert_close(whole[1:2][:, :2], alone[:, :2])


def test_order_of_the_context_does_not_matter():
    x, y, mask, context_mask = sequences()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    model = fusion()
    torch.testing.assert_close(
        model(x, y, mask=mask, context_mask=context_mask),
        model(x, y[:, order], mask=mask, context_mask=context_mask[:, order]),
    )


@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_look_at_adds_nothing_and_makes_no_nan(training: bool):
    x, y, mask, context_mask = sequences()
    x, y = x.requires_grad_(), y.requires_grad_()
    context_mask = context_mask.clone()
    context_mask[1] = False
    model = fusion().train(training)
    out = model(x, y, mask=mask, context_mask=context_mask)
    out.sum().backward()
    for values in (out, x.grad, y.grad):
        assert torch.isfinite(values).all()
    assert not y.grad[1].any()
    # Item 1 is what it would be without any context at all.
    torch.testing.assert_close(out[1], model(x[1:2], None, mask=mask[1:2])[0])
    gone = torch.zeros_like(mask)
    out = model(x, y, mask=gone, context_mask=torch.zeros_like(context_mask))
    assert torch.isfinite(out).all()


def test_all_parameters_learn():
    x, y, mask, context_mask = sequences()
    model = fusion().train()
    model(x, y, mask=mask, context_mask=context_mask).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_without_parts():
    x, y, _, _ = sequences()
    block = CrossAttentionBlock(16, 2, context=12, self_attention=False)
    # Without self-attention tokens do not see each other.
    torch.testing.assert_close(block(x, y)[:, :2], block(x[:, :2], y))
    plain = CrossAttentionBlock(16, 2, cross_attention=False)
    torch.testing.assert_close(plain(x, y), plain(x))


def test_inputs_stay_as_they_are():
    x, y, mask, context_mask = sequences()
    before = [t.clone() for t in (x, y, mask, context_mask)]
    fusion()(x, y, mask=mask, context_mask=context_mask)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, mask, context_mask)))


def test_first_weights_have_the_deviations_of_clip():
    torch.manual_seed(0)
    model = FusionEncoder(128, 3, context=256)
    attention = model.layers[1].cross_attention.attention
    perceptron = model.layers[1].perceptron
    for weight, deviation in (
        (attention.k_proj_weight, 256**-0.5),
        (attention.q_proj_weight, 128**-0.5),
        (attention.out_proj.weight, (2 * 128 * 3) ** -0.5),
        (perceptron[0].weight, (2 * 128) ** -0.5),
        (perceptron[2].weight, (2 * 128 * 3) ** -0.5),
    ):
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    single = MaskedAttention(128, 2)
    clip_init(single, 128, 1)
    assert float(single.attention.in_proj_weight.std()) == pytest.approx(128**-0.5, rel=0.05)


def test_quick_gelu():
    assert float(QuickGELU()(torch.tensor(1.0))) == pytest.approx(1 / (1 + 2.718281828**-1.702), rel=1e-6)


def test_bad_input():
    x, y, _, _ = sequences()
    with pytest.raises(BadInput, match="heads"):
        MaskedAttention(16, 3)
    with pytest.raises(BadInput, match="mask"):
        MaskedAttention(16, 2, context=12)(x, y, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(BadInput, match="expected"):
        MaskedAttention(16, 2)(x[0])
    with pytest.raises(BadInput, match="layers"):
        FusionEncoder(16, 0)
    with pytest.raises(BadInput, match="without any attention"):
        CrossAttentionBlock(16, self_attention=False, cross_attention=False)
    with pytest.raises(UnknownName, match="quick_gelu"):
        FusionEncoder(16, 1, activation="quickgelu")  # pyright: ignore[reportArgumentType]

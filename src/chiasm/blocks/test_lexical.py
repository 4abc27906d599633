from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.blocks.lexical import best_products, elu1p, lexical, lexical_tokens, sparsify
from chiasm.errors import BadInput


def drawn(n=3, length=5, dim=4, words=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(n, length, dim, generator=generator, dtype=dtype)
    book = torch.randn(words, dim, generator=generator, dtype=dtype)
    mask = torch.arange(length)[None] < torch.tensor([length, 2, 0])[:n, None]
    return tokens, mask, book


def test_elu1p_closed_forms():
    got = elu1p(torch.tensor([0.0, -1.0, 2.0, -torch.inf]))
    torch.testing.assert_close(got, torch.tensor([1.0, 0.36787944, 3.0, 0.0]))


def test_best_products_equal_a_double_loop():
    tokens, mask, book = drawn()
    best, token = best_products(tokens, mask, book, chunk=3)
    for i in range(3):
        for v in range(7):
            products = [float(tokens[i, l] @ book[v]) for l in range(5) if mask[i, l]]
            if products:
                assert float(best[i, v]) == pytest.approx(max(products), abs=1e-5)
                assert int(token[i, v]) == products.index(max(products))
            else:
                assert float(best[i, v]) == -torch.inf
                assert int(token[i, v]) == -1


def test_gradient_is_that_of_the_plain_formula():
    tokens, mask, book = drawn(dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (tokens, book)]
    assert torch.autograd.gradcheck(lambda t, z: lexical(t, mask, z, chunk=2), leaves)
    plain = [x.clone().requires_grad_() for x in (tokens[:2], book)]
    products = (plain[0] @ plain[1].T).masked_fill(~mask[:2, :, None], -torch.inf)
    torch.nn.functional.normalize(elu1p(products.amax(1)), dim=-1)[:, 0].sum().backward()
    lexical(leaves[0], mask, leaves[1])[:, 0].sum().backward()
    torch.testing.assert_close(leaves[0].grad[:2], plain[0].grad)
    torch.testing.assert_close(leaves[1].grad, plain[1].grad)
    assert (leaves[0].grad[2] == 0).all()


@given(st.integers(1, 9), st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_chunks_and_padding_change_nothing(chunk, pad):
    tokens, mask, book = drawn()
    want = lexical(tokens, mask, book)
    torch.testing.assert_close(lexical(tokens, mask, book, chunk=chunk), want)
    longer = torch.nn.functional.pad(tokens, (0, 0, 0, pad), value=1e3)
    torch.testing.assert_close(lexical(longer, torch.nn.functional.pad(mask, (0, pad)), book), want)
    assert (want[2] == 0).all()
    torch.testing.assert_close(want[:2].norm(dim=1), torch.ones(2))


def test_one_token_is_its_own_pool():
    tokens, _, book = drawn()
    torch.testing.assert_close(lexical(tokens[:, :1], None, book), lexical_tokens(tokens, book)[:, 0])


def test_sparsify_closed_forms():
    uniform = torch.full((1, 4), 0.5)
    assert (sparsify(uniform) == 0).all()  # the threshold is strict
    one = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    assert torch.equal(sparsify(one), one)
    values = torch.tensor([[0.1, 0.7, 0.7, 0.0]])
    assert torch.equal(sparsify(values, top=1), torch.tensor([[0.0, 0.7, 0.0, 0.0]]))
    assert torch.equal(sparsify(values, top=9), values)
    assert torch.equal(sparsify(values, threshold=0.05), values)


def test_bad_input_is_refused():
    tokens, mask, book = drawn()
    for call in (
        lambda: best_products(tokens, mask[:, :2], book),
        lambda: best_products(tokens, mask, book[:, :2]),
        lambda: best_products(tokens[0], None, book),
        lambda: best_products(tokens, mask, book, chunk=0),
        lambda: sparsify(book, top=0),
        lambda: sparsify(book, top=2, threshold=0.1),
    ):
        with pytest.raises(BadInput):
            call()

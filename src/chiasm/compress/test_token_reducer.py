"""Schedules in closed form, states and hostile input of `TokenReducer`."""

import pytest
import torch

from chiasm.blocks.attention import Attended
from chiasm.compress.flops import block_flops, matching_flops, stack_flops
from chiasm.compress.token_reducer import Schedule, TokenReducer, TokenState, attention_score, cross_score
from chiasm.errors import BadInput, UnknownName


def call(batch=2, heads=2, tokens=9, width=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, heads, tokens, width, generator=g) for _ in range(2))
    return Attended(q, k, None, 0.5, False)


def test_schedules():
    assert Schedule(4).counts(3) == [4, 4, 4]
    assert Schedule(4, 1.0).counts(3) == [0, 4, 8]
    assert Schedule(4, -1.0).counts(3) == [8, 4, 0]
    assert Schedule(4, 0.5).counts(3) == [2, 4, 6]
    assert Schedule([1, 0, 2]).counts(3) == [1, 0, 2]
    assert Schedule(0).nothing
    assert Schedule([0, 0]).nothing
    assert Schedule(16).plan(197, 3, 2) == [16, 16, 16]
    assert Schedule(3, cap=True).plan(9, 3, 2) == [3, 2, 1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Schedule(-1), "negative"),
        (lambda: Schedule([1, -1]), "negative"),
        (lambda: Schedule(1, 2.0), "inflection"),
        (lambda: Schedule([1]).counts(2), "2 layers"),
        (lambda: Schedule(4).plan(9, 1, 2), "At most 3"),
        (lambda: Schedule(5).plan(4, 1), "At most 2"),
    ],
)
def test_schedules_that_cannot_be(make, match):
    with pytest.raises(BadInput, match=match):
        make()


@pytest.mark.parametrize("match", ["complete_graph", "bipartite", "receive_best", "random"])
def test_sizes_sum_to_the_input_after_any_number_of_layers(match):
    state = TokenState.start(torch.randn(2, 20, 3), [0, -1])
    reducer = TokenReducer(Schedule(3), match=match, score="cross", merge="guided")
    assert state.log_size is None
    for layer in range(3):
        state = reducer(state, 3, call(tokens=20 - 3 * layer, seed=layer))
    assert state.tokens.shape == (2, 11, 3)
    assert torch.equal(state.size.sum(1), torch.full((2,), 20.0))
    assert torch.equal(state.matrix().sum(2).float(), state.size)
    assert state.log_size.shape == (2, 1, 1, 11)
    assert (state.position.diff(dim=1) > 0).all()


def test_the_mean_of_what_each_token_stands_for():
    x = torch.randn(2, 20, 3)
    state = TokenState.start(x)
    reducer = TokenReducer(Schedule(4), match="bipartite", keys="mean", keep_order=False)
    for layer in range(3):
        state = reducer(state, 4, call(tokens=20 - 4 * layer, seed=layer))
    assert torch.allclose((state.matrix().float() @ x) / state.size[..., None], state.tokens, atol=1e-5)


def test_nothing_to_do_returns_the_state_itself():
    state = TokenState.start(torch.randn(1, 4, 2))
    assert TokenReducer(0)(state, 0, call()) is state


def test_scores():
    made = call()
    want = torch.nn.functional.cosine_similarity(
        made.key.transpose(1, 2).flatten(2), made.query[:, :, -1].flatten(1)[:, None], dim=-1
    )
    assert torch.allclose(cross_score(made), want, atol=1e-6)
    seen = made.probabilities().mean(1)
    got = attention_score(made)
    for i in range(8):
        others = [q for q in range(8) if q != i]
        assert torch.allclose(got[:, i], seen[:, others, i].mean(1) + seen[:, 8, i], atol=1e-6)


def test_attention_score_ignores_the_view_of_padding():
    made = call(batch=1, tokens=7)
    bias = torch.zeros(1, 1, 1, 7)
    bias[..., 2:4] = -torch.inf
    there = [0, 1, 4, 5, 6]
    padded = Attended(made.query, made.key, None, 0.5, False, bias)
    alone = Attended(made.query[:, :, there], made.key[:, :, there], None, 0.5, False)
    assert torch.allclose(attention_score(padded)[:, there[:-1]], attention_score(alone)[:, :-1], atol=1e-6)
    assert (attention_score(padded)[:, 2:4] == 0).all()


@pytest.mark.parametrize("match", ["complete_graph", "bipartite", "random"])
def test_padding_goes_and_no_protected_token_does(match):
    """The second item has its free tokens on one side only, so bipartite matching finds fewer pairs there."""
    padding = torch.zeros(2, 10, dtype=torch.bool)
    padding[1, 8:] = True
    protected = torch.zeros(2, 10, dtype=torch.bool)
    protected[1, [0, 2, 4]] = True
    state = TokenState.start(torch.randn(2, 10, 3), protected, padding)
    reducer = TokenReducer(Schedule(2), match=match, score="cross", merge="guided")
    for layer in range(2):
        state = reducer(state, 2, call(tokens=state.tokens.shape[1], seed=layer))
    assert state.size.sum(1).tolist() == [10, 8]
    assert (state.size[state.protected] == 1).all()
    assert state.protected.sum(1).tolist() == [0, 3]
    assert torch.isfinite(state.tokens).all()


def test_a_callable_of_ones_own():
    state = TokenState.start(torch.randn(1, 6, 2))
    reducer = TokenReducer(Schedule(1), score=lambda c: -torch.arange(6.0)[None], merge="guided")
    out = reducer(state, 1, call(batch=1, tokens=6))
    assert int(out.size.argmax()) != 5  # the least important token went


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: TokenReducer(1, match="best"), UnknownName),
        (lambda: TokenReducer(1, score="text"), UnknownName),
        (lambda: TokenReducer(1, merge="max"), UnknownName),
        (lambda: TokenReducer(1, merge="guided"), BadInput),
        (lambda: TokenState.start(torch.zeros(2, 3)), BadInput),
        (lambda: TokenState.start(torch.zeros(2, 3, 1), [3]), BadInput),
        (lambda: TokenState.start(torch.zeros(2, 3, 1), padding=torch.zeros(2, 4, dtype=torch.bool)), BadInput),
    ],
)
def test_hostile_input(make, error):
    with pytest.raises(error):
        make()


def test_flops_against_a_count():
    # T=2, D=3, inner 4: four projections of 2x3x3, scores and mixing of 2x2x3, perceptron of 2x3x4 twice.
    assert block_flops(2, 3, 4) == 2 * (4 * 18 + 2 * 12 + 2 * 24)
    assert block_flops(2, 3, 4, gated=True) == 2 * (4 * 18 + 2 * 12 + 3 * 24)
    assert stack_flops([2, 2], [2, 2], 3, 4) == 2 * block_flops(2, 3, 4)
    assert matching_flops(4, 3) == 4 * matching_flops(4, 3, bipartite=True) == 96
    with pytest.raises(BadInput):
        stack_flops([2], [2, 2], 3, 4)

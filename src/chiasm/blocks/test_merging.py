"""Matchings against naive loops and small closed forms; merges conserve what they promise; the source map brings all back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.blocks.merging import (
    Matching,
    bipartite,
    complete_graph,
    contextual,
    follow,
    kept,
    merge,
    random_pairs,
    source_matrix,
    spread,
    unit_keys,
)
from chiasm.errors import BadInput, UnknownName


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_complete(keys, r, importance, protected):
    """The card's four steps for one item, with loops."""
    n = len(keys)
    s = (keys @ keys.T).tolist()
    s = [[max(s[i][j], s[j][i]) for j in range(n)] for i in range(n)]  # mutual neighbors tie exactly
    for i in range(n):
        for j in range(n):
            if i == j or protected[i] or protected[j]:
                s[i][j] = -float("inf")
    order = sorted(range(n), key=lambda i: -max(s[i]))
    rank = {token: place for place, token in enumerate(order)}
    cost = []
    for i in range(n):
        allowed = [s[i][j] for j in range(n) if rank[j] > rank[i]]
        best = max(allowed, default=-float("inf"))
        cost.append(float("inf") if protected[i] else float(importance[i]) - best)
    source = sorted(range(n), key=lambda i: cost[i])[:r]
    stays = [j for j in range(n) if j not in source]
    return {i: max(stays, key=lambda j: s[i][j]) for i in source}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(6, 14), share=st.floats(0, 1))
def test_complete_graph_is_the_cards_loop(seed, tokens, share):
    keys = unit(2, tokens, 5, seed=seed)
    importance = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed))
    protected = torch.zeros(2, tokens, dtype=torch.bool)
    protected[:, 0] = True
    protected[1, 3] = True
    r = int(share * ((tokens - 2) // 2))
    found = complete_graph(keys, r, importance, protected)
    for b in range(2):
        want = naive_complete(keys[b], r, importance[b], protected[b])
        assert dict(zip(found.source[b].tolist(), found.target[b].tolist())) == want


def test_two_pairs_of_near_twins_merge():
    a, b = torch.eye(4)[0], torch.eye(4)[1]
    twin = torch.tensor([0.99, 0, (1 - 0.99**2) ** 0.5, 0])
    other = torch.tensor([0, 0.9, 0, (1 - 0.81) ** 0.5])
    found = complete_graph(torch.stack([a, twin, b, other])[None], 2, torch.zeros(1, 4))
    pairs = {frozenset(p) for p in zip(found.source[0].tolist(), found.target[0].tolist())}
    assert pairs == {frozenset({0, 1}), frozenset({2, 3})}


def test_complete_graph_merges_more_similar_pairs_than_bipartite():
    """The card's pilot: clustered Gaussian features, T=197, d=16, r=16; the opposite precedence is no worse there."""
    similarity = {"bipartite": [], "published": [], "receive_best": []}
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        centers = torch.randn(40, 16, generator=g)
        keys = centers[torch.randint(0, 40, (197,), generator=g)] + 0.8 * torch.randn(197, 16, generator=g)
        keys = torch.nn.functional.normalize(keys, dim=-1)[None]
        similarity["bipartite"].append(bipartite(keys, 16).similarity.mean().item())
        for rule in ("published", "receive_best"):
            similarity[rule].append(complete_graph(keys, 16, precedence=rule).similarity.mean().item())
    mean = {name: sum(values) / 20 for name, values in similarity.items()}
    assert mean["published"] > mean["bipartite"]
    assert mean["receive_best"] > mean["bipartite"]


def test_bipartite_is_the_argmax_over_odd_tokens():
    keys = unit(1, 7, 6)
    found = bipartite(keys, 2, torch.tensor([[True] + [False] * 6]))
    s = keys[0] @ keys[0].T
    best = {i: max((float(s[i, j]), j) for j in (1, 3, 5)) for i in (2, 4, 6)}
    want = sorted(best, key=lambda i: -best[i][0])[:2]
    assert found.source[0].tolist() == want
    assert found.target[0].tolist() == [best[i][1] for i in want]


@pytest.mark.parametrize("matcher", [bipartite, complete_graph, random_pairs])
def test_protected_tokens_neither_go_nor_receive_and_never_change(matcher):
    keys, x = unit(3, 12, 8), torch.randn(3, 12, 4)
    protected = torch.zeros(3, 12, dtype=torch.bool)
    protected[:, [0, 5, 11]] = True
    found = matcher(keys, 3, protected=protected)
    keep = kept(found, 12)
    out, size = merge(x, torch.ones(3, 12), found, keep)
    hidden = protected.gather(1, keep)
    assert hidden.sum() == 9
    assert torch.equal(out[hidden], x[protected])
    assert (size[hidden] == 1).all()
    assert not protected.gather(1, found.source).any()
    assert not protected.gather(1, found.target).any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), r=st.integers(0, 5))
def test_the_mean_conserves_sizes_and_weighted_sums(seed, r):
    keys, x = unit(2, 11, 6, seed=seed), torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(seed))
    size = torch.randint(1, 5, (2, 11), generator=torch.Generator().manual_seed(seed)).float()
    found = complete_graph(keys, r)
    out, after = merge(x, size, found, kept(found, 11))
    assert torch.allclose(after.sum(1), size.sum(1))
    assert torch.allclose((after[..., None] * out).sum(1), (size[..., None] * x).sum(1), atol=1e-4)


def test_equal_importance_is_the_mean_and_unequal_follows_the_formula():
    x, size = torch.randn(1, 3, 2), torch.tensor([[2.0, 3.0, 1.0]])
    found = Matching(torch.tensor([[0, 2]]), torch.tensor([[1, 1]]), torch.zeros(1, 2))
    keep = kept(found, 3)
    plain = merge(x, size, found, keep)[0]
    assert torch.allclose(merge(x, size, found, keep, torch.full((1, 3), 0.7))[0], plain, atol=1e-6)
    importance = torch.tensor([[0.3, -0.2, 1.1]])
    got = merge(x, size, found, keep, importance)[0][0, 0]
    total = size[0, 1] * x[0, 1]
    for a in (0, 2):
        w = 2 * torch.stack([importance[0, a], importance[0, 1]]).softmax(0)
        total = total + w[0] * size[0, a] * x[0, a] + (w[1] - 1) * size[0, 1] * x[0, 1]
    assert torch.allclose(got, total / size.sum(), atol=1e-6)


def test_nothing_to_merge_is_the_identity():
    x, size = torch.randn(2, 5, 3), torch.ones(2, 5)
    found = complete_graph(unit(2, 5, 4), 0)
    keep = kept(found, 5)
    out, after = merge(x, size, found, keep, torch.rand(2, 5))
    assert torch.equal(out, x)
    assert torch.equal(after, size)
    assert torch.equal(follow(torch.arange(5).expand(2, -1), found, keep, 5), torch.arange(5).expand(2, -1))


def test_the_source_map_through_two_merges():
    keys, x = unit(2, 12, 4), torch.arange(24.0).view(2, 12, 1)
    owner, size, tokens = torch.arange(12).expand(2, -1), torch.ones(2, 12), x
    for _ in range(2):
        found = complete_graph(torch.nn.functional.normalize(keys, dim=-1), 3)
        keep = kept(found, tokens.shape[1])
        owner = follow(owner, found, keep, tokens.shape[1])
        keys = merge(keys, size, found, keep)[0]
        tokens, size = merge(tokens, size, found, keep)
    matrix = source_matrix(owner, 6).float()
    assert torch.equal(matrix.sum(1), torch.ones(2, 12))
    assert torch.equal(matrix.sum(2), size)
    # A size-weighted mean of means is the mean of all its sources.
    assert torch.allclose((matrix @ x) / size[..., None], tokens, atol=1e-5)
    assert torch.equal(spread(tokens, owner), (matrix.transpose(1, 2) @ tokens))


def test_counts_and_padding_do_not_depend_on_the_rest_of_the_batch():
    keys, x = unit(2, 10, 4), torch.randn(2, 10, 3)
    padding = torch.zeros(2, 10, dtype=torch.bool)
    padding[1, 6:] = True
    size = (~padding).float()
    counts = torch.tensor([4, 2])
    found = complete_graph(keys, 4, protected=padding, counts=counts)
    keep = kept(found, 10, padding)
    out, after = merge(x, size, found, keep)
    alone = complete_graph(keys[1:, :6], 2)
    keep_alone = kept(alone, 6)
    want, size_alone = merge(x[1:, :6], torch.ones(1, 6), alone, keep_alone)
    assert out.shape[1] == 6
    assert torch.allclose(out[1, 2:], want[0])
    assert torch.equal(after[1], torch.cat([torch.zeros(2), size_alone[0]]))
    assert torch.isfinite(out).all()


def test_random_pairs_are_the_same_for_every_item():
    found = random_pairs(unit(3, 9, 4), 3, seed=5)
    assert (found.source == found.source[0]).all()
    assert not set(found.source[0].tolist()) & set(found.target[0].tolist())
    assert not torch.equal(random_pairs(unit(3, 9, 4), 3, seed=6).source, found.source)


@pytest.mark.parametrize("matcher", [bipartite, complete_graph, random_pairs])
def test_more_than_half_of_the_free_tokens_of_an_item_cannot_go(matcher):
    protected = torch.zeros(2, 9, dtype=torch.bool)
    protected[1, :4] = True
    assert matcher(unit(2, 9, 4), 2, protected=protected).count == 2
    with pytest.raises(BadInput, match="from 0 to 2"):
        matcher(unit(2, 9, 4), 3, protected=protected)
    assert matcher(unit(2, 9, 4), 3, protected=protected, counts=torch.tensor([3, 2])).valid.sum() == 5


def test_bipartite_makes_no_pair_with_a_protected_token():
    """Free tokens that stand on one side only have no partners: fewer pairs, never a protected token."""
    keys, x = unit(2, 8, 4), torch.randn(2, 8, 3)
    protected = torch.zeros(2, 8, dtype=torch.bool)
    protected[1, [0, 2, 4]] = True  # of the even tokens only the last is free
    found = bipartite(keys, 2, protected)
    assert found.valid.tolist() == [[True, True], [True, False]]
    assert found.source[1, 0] == 6
    keep = kept(found, 8)
    out, size = merge(x, torch.ones(2, 8), found, keep)
    assert size.sum(1).tolist() == [8, 8]
    assert torch.equal(out[1][protected[1][keep[1]]], x[1][protected[1]])
    owner = follow(torch.arange(8).expand(2, -1), found, keep, 8)
    assert torch.equal(source_matrix(owner, 7).sum(2).float(), size)


def test_keys_of_heads():
    key = torch.randn(2, 3, 5, 4)
    assert unit_keys(key, "mean").shape == (2, 5, 4)
    full = unit_keys(key, "full")
    assert torch.allclose(full[1, 2], torch.nn.functional.normalize(key[1, :, 2].flatten(), dim=0))
    with pytest.raises(UnknownName):
        unit_keys(key, "half")


def test_merges_pass_gradients():
    x = torch.randn(1, 6, 2, requires_grad=True)
    found = complete_graph(unit(1, 6, 4), 2)
    merge(x, torch.ones(1, 6), found, kept(found, 6))[0].sum().backward()
    assert (x.grad != 0).all()


def test_half_precision_has_no_nan():
    keys = unit_keys(torch.randn(1, 2, 8, 4, dtype=torch.float16), "full")
    protected = torch.zeros(1, 8, dtype=torch.bool)
    protected[:, :4] = True
    found = complete_graph(keys, 2, torch.zeros(1, 8, dtype=torch.float16), protected)
    out, _ = merge(torch.randn(1, 8, 2, dtype=torch.float16), torch.ones(1, 8), found, kept(found, 8))
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("r", [-1, 5])
def test_too_many_pairs(r):
    for matcher in (bipartite, complete_graph, random_pairs):
        with pytest.raises(BadInput, match="cannot be merged"):
            matcher(unit(1, 9, 4), r)
    with pytest.raises(UnknownName):
        complete_graph(unit(1, 9, 4), 1, precedence="best")


# ---- contextual tokens


def test_contextual_targets_follow_the_step_rule():
    x = torch.randn(1, 10, 2)
    assert contextual(x, x, 3)[1].tolist() == [0, 3, 6]
    assert contextual(x, x, 7)[1].tolist() == list(range(7))


def test_contextual_tokens_against_a_loop():
    x, metric = torch.randn(2, 9, 3), torch.randn(2, 9, 4)
    got, targets, cluster = contextual(x, metric, 3)
    mean = contextual(x, metric, 3, "mean")[0]
    unit_metric = torch.nn.functional.normalize(metric, dim=-1)
    for b in range(2):
        members = {0: [], 3: [], 6: []}
        for i in range(9):
            if i not in members:
                members[max(members, key=lambda t: float(unit_metric[b, i] @ unit_metric[b, t]))].append(i)
        for j, t in enumerate(targets.tolist()):
            added = x[b, members[t]].mean(0) if members[t] else torch.zeros(3)
            assert torch.allclose(got[b, j], x[b, t] + added, atol=1e-5)
            assert torch.allclose(mean[b, j], x[b, [t, *members[t]]].mean(0), atol=1e-5)
            assert (cluster[b, [t, *members[t]]] == j).all()


def test_identical_tokens_double_or_stay():
    x = torch.ones(1, 6, 2) * 0.5
    assert torch.equal(contextual(x, x, 1)[0], torch.ones(1, 1, 2))
    assert torch.equal(contextual(x, x, 1, "mean")[0], torch.full((1, 1, 2), 0.5))
    # Ties go to the first target; the cluster of the second is empty and adds nothing.
    assert torch.equal(contextual(x, x, 2)[0][0, 1], torch.full((2,), 0.5))


def test_no_contextual_tokens_and_too_many():
    x = torch.randn(1, 4, 2)
    out, targets, cluster = contextual(x, x, 0)
    assert out.shape == (1, 0, 2)
    assert len(targets) == 0
    assert (cluster == -1).all()
    with pytest.raises(BadInput, match="contextual"):
        contextual(x, x, 5)
    with pytest.raises(UnknownName):
        contextual(x, x, 2, "max")

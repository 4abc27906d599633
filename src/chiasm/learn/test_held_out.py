"""Held-out recall equals what plain loops over all items find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chiasm.errors import UnknownName
from chiasm.learn.features import Features
from chiasm.learn.held_out import Encoded, HeldOut, cosine, encode
from chiasm.learn.pairs import Pairs
from chiasm.learn.towers import Perceptron, Tower, dual_tower


def identity(dim: int = 4):
    """A model that gives its input back."""
    model = dual_tower(Perceptron([dim, dim]), Perceptron([dim, dim]), device="cpu")
    for route in model[0].sub_modules.values():
        with torch.no_grad():
            route[0].layers[0].weight.copy_(torch.eye(dim))
            route[0].layers[0].bias.zero_()
    return model


def brute(a: np.ndarray, b: np.ndarray, pairs: Pairs) -> dict[str, list[float]]:
    """Rank of the first right item of every query, with plain loops; ties count against the model."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    items = [sorted({int(r) for r in pairs.rows[s] if r >= 0}) for s in ("a", "b")]
    assert pairs.groups is not None
    groups: list[dict[int, set[int]]] = [{}, {}]
    for side, s in enumerate(("a", "b")):
        for row, group in zip(pairs.rows[s].tolist(), pairs.groups.tolist()):
            groups[side].setdefault(row, set()).add(group)
    found: dict[str, list[float]] = {}
    for name, here, there in (("a_to_b", 0, 1), ("b_to_a", 1, 0)):
        found[name] = []
        for q in items[here]:
            scores = {g: float(np.float32(unit[here][q] @ unit[there][g])) for g in items[there]}
            right = {g for g in items[there] if groups[here][q] & groups[there][g]}
            best = max(scores[g] for g in right)
            found[name].append(1 + sum(s > best for g, s in scores.items() if g not in right))
    return found


@given(st.integers(0, 10_000), st.integers(2, 25))
@settings(max_examples=25, deadline=None)
def test_equals_brute_force(seed: int, n: int):
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((size, 4)).astype(np.float32) for size in (7, 9))
    pairs = Pairs(
        {"a": Features({"input_features": a}), "b": Features({"input_features": b})},
        {"a": rng.integers(0, 7, n), "b": rng.integers(0, 9, n)},
        groups=rng.integers(0, 6, n),
    )
    reports = HeldOut(pairs, batch_size=4).reports(identity())
    for way, ranks in brute(a, b, pairs).items():
        assert reports[way]["median_rank"] == np.median(ranks)
        for k in (1, 5, 10):
            assert reports[way][f"hit@{k}"] == pytest.approx(np.mean(np.array(ranks) <= k)), (way, k)


def test_a_collapsed_model_has_no_recall():
    same = Features({"input_features": np.ones((30, 4), dtype=np.float32)})
    figures = HeldOut(Pairs({"a": same, "b": same}))(identity())
    assert figures["mean_hit@10"] == 0


def test_missing_views_do_not_compete():
    a = np.eye(4, dtype=np.float32)
    pairs = Pairs(
        {"a": Features({"input_features": a}), "b": Features({"input_features": a})},
        {"a": np.arange(4), "b/de": np.array([0, -1, 2, 3])},
    )
    held_out = HeldOut(pairs, routes={"b": "b"}, columns=("a", "b/de"))
    reports = held_out.reports(identity())
    assert len(reports["b_to_a"]) == 3
    assert reports["b_to_a"]["hit@1"] == 1
    assert len(reports["a_to_b"]) == 4
    assert reports["a_to_b"].without_positives == 1
    assert reports["a_to_b"]["hit@1"] == 1


def test_an_objective_may_score():
    class Negated(nn.Module):
        def similarity(self, a: Encoded, b: Encoded, direction: str) -> torch.Tensor:
            assert direction in ("a", "b")
            return cosine(a, b) * (-1 if direction == "a" else 1)

    eye = Features({"input_features": np.eye(4, dtype=np.float32)})
    reports = HeldOut(Pairs({"a": eye, "b": eye}), Negated()).reports(identity())
    assert reports["b_to_a"]["hit@1"] == 1
    assert reports["a_to_b"]["hit@1"] == 0


def test_encode_pads_tokens_of_all_batches_and_puts_the_mode_back():
    lengths = [2, 5, 1, 3]
    source = Features.ragged("input_ids", [np.arange(1, n + 1) for n in lengths])
    model = dual_tower(Perceptron([4, 4]), Tower(vocabulary=9, width=8, heads=2, layers=1, out=4), device="cpu")
    model.train()
    small = encode(model, source, "b", batch_size=1)
    assert model.training
    whole = encode(model, source, "b")
    assert small.tokens is not None
    assert small.mask is not None
    assert whole.tokens is not None
    assert len(small) == 4
    assert small.mask.sum(1).tolist() == lengths
    torch.testing.assert_close(small.vectors, whole.vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.tokens[small.mask], whole.tokens[small.mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encode(model, source, "b", [3, 1]).vectors, whole.vectors[[3, 1]], rtol=1e-4, atol=1e-5)


def test_the_figure_to_select_by_must_exist():
    eye = Features({"input_features": np.eye(4, dtype=np.float32)})
    with pytest.raises(UnknownName, match="hit@10"):
        HeldOut(Pairs({"a": eye, "b": eye}), primary="hit@100")

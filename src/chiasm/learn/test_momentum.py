"""The momentum encoder and the queue of earlier vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chiasm.errors import BadInput
from chiasm.learn.momentum import FeatureQueue, Momentum, cosine_momentum


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_update_is_the_weighted_mean_of_parameters_and_buffers():
    model = student()
    teacher = Momentum(model, 0.9)
    before = copy.deepcopy(teacher.teacher.state_dict())
    model.train()(torch.randn(8, 3)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    teacher.update(model)
    for name, value in model.state_dict().items():
        found = teacher.teacher.state_dict()[name]
        if value.is_floating_point():
            torch.testing.assert_close(found, 0.9 * before[name] + 0.1 * value)
        else:
            assert torch.equal(found, value)


@pytest.mark.parametrize(("momentum", "follows"), [(1.0, False), (0.0, True)])
def test_extremes(momentum: float, follows: bool):
    model = student()
    teacher = Momentum(model, momentum)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    teacher.update(model)
    want = model.state_dict() if follows else start
    torch.testing.assert_close(teacher.teacher[0].weight, want["0.weight"])
    teacher.update(model, 0.0)
    torch.testing.assert_close(teacher.teacher[0].weight, model[0].weight)


def test_the_teacher_neither_learns_nor_drops_nor_follows_a_mode():
    model = student()
    teacher = Momentum(model)
    teacher.train()
    assert not any(module.training for module in teacher.teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    x = torch.randn(4, 3, requires_grad=True)
    out = teacher(x)
    assert not out.requires_grad
    assert torch.equal(out, teacher(x))
    assert model.training
    assert teacher.teacher[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_momentum_is_a_share():
    with pytest.raises(BadInput, match="outside 0"):
        Momentum(student(), 1.1)


def test_cosine_momentum_rises_from_start_to_end():
    values = [cosine_momentum(step, 10, 0.9, 1.0) for step in range(12)]
    assert values[0] == pytest.approx(0.9)
    assert values[10] == values[11] == pytest.approx(1.0)
    assert values == sorted(values)
    assert cosine_momentum(5, 10, 0.9, 1.0) == pytest.approx(0.95)
    assert cosine_momentum(0, 0, 0.9, 1.0) == pytest.approx(0.9)


@given(st.integers(1, 12), st.lists(st.integers(0, 20), max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_queue_holds_the_last_vectors(size: int, batches: list[int]):
    queue, pushed = FeatureQueue(size, 2), []
    for n in batches:
        ids = torch.arange(len(pushed), len(pushed) + n)
        queue.push(torch.stack([ids.float(), -ids.float()], dim=1), ids)
        pushed += ids.tolist()
    vectors, ids = queue.get()
    assert sorted(ids.tolist()) == pushed[-size:]
    assert len(queue) == len(vectors) == min(size, len(pushed))
    assert torch.equal(vectors, torch.stack([ids.float(), -ids.float()], dim=1).reshape(-1, 2))


def test_the_queue_is_saved_and_gives_copies():
    queue, again = FeatureQueue(4, 2), FeatureQueue(4, 2)
    values = torch.randn(3, 2, requires_grad=True)
    queue.push(values)
    again.load_state_dict(queue.state_dict())
    assert len(again) == 3
    assert again.get()[1].tolist() == [-1, -1, -1]
    taken = again.get()[0]
    assert not taken.requires_grad
    again.push(torch.zeros(4, 2))
    torch.testing.assert_close(taken, values.detach())
    with pytest.raises(BadInput, match="queue of 0"):
        FeatureQueue(0, 2)

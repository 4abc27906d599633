"""Stages: what is frozen rests in eval mode, does not change, and is free again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chiasm.errors import BadInput, ChiasmError
from chiasm.learn.stages import Stage, frozen_but, frozen_digest


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "head": nn.Linear(3, 2)})


def test_only_what_matches_learns_and_the_rest_rests():
    network = model()
    network["head"].bias.requires_grad_(False)
    with frozen_but(network, ["head.*"]) as learning:
        assert learning == ["head.bias", "head.weight"]
        network.train()
        assert not network["body"].training
        assert not network["body"][1].training
        assert network["head"].training
        network["head"](network["body"](torch.randn(4, 3))).sum().backward()
        assert network["body"][0].weight.grad is None
        assert network["head"].weight.grad is not None
    assert network["body"][0].weight.requires_grad
    assert not network["head"].bias.requires_grad
    assert network.train()["body"][1].training


@pytest.mark.parametrize("what", ["parameter", "buffer"])
def test_a_frozen_part_that_changes_is_noticed(what: str):
    network = model()
    frozen = network["body"][0].weight if what == "parameter" else network["body"][1].running_mean
    with (
        pytest.raises(ChiasmError, match="frozen part has changed"),
        frozen_but(network, ["head.*"]),
        torch.no_grad(),
    ):
        frozen.add_(1e-6)
    assert network["body"][0].weight.requires_grad


def test_an_error_inside_still_frees_everything():
    network = model()
    with pytest.raises(RuntimeError, match="planted"), frozen_but(network, ["head.*"]):
        raise RuntimeError("planted")
    assert all(p.requires_grad for p in network.parameters())
    assert network.train()["body"].training


def test_the_digest_sees_single_bits_and_only_frozen_parts():
    network = model()
    network["body"].requires_grad_(False)
    before = frozen_digest(network)
    with torch.no_grad():
        network["head"].weight.add_(1.0)
    assert frozen_digest(network) == before
    with torch.no_grad():
        network["body"][0].weight[0, 0] = torch.nextafter(network["body"][0].weight[0, 0], torch.tensor(9.0))
    assert frozen_digest(network) != before


def test_bad_stages():
    with pytest.raises(BadInput, match="no parameter matches 'tail"), frozen_but(model(), ["head.*", "tail.*"]):
        pass
    with pytest.raises(BadInput, match="0 steps"):
        Stage(steps=0)
    with pytest.raises(BadInput, match="epochs"):
        Stage(epochs=0)
    with pytest.raises(BadInput, match="share of the steps"):
        Stage(warmup=100)

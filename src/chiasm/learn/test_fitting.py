"""`fit_module`: the trainer of transformers around any module with a loss."""

from __future__ import annotations

import torch
from torch import nn

from chiasm.learn.fitting import finite, fit_module


class Line(nn.Module):
    """y = w x + b by least squares."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(self.map(x), y)}


def points(n: int = 64) -> list[dict[str, torch.Tensor]]:
    x = torch.linspace(-1, 1, n)
    return [{"x": value[None], "y": 2 * value[None] + 1} for value in x]


def fitted(seed: int = 0, **options) -> tuple[Line, object]:
    torch.manual_seed(0)
    line = Line().eval()
    options = {"learning_rate": 0.1, "weight_decay": 0.0, **options}
    return line, fit_module(line, points(), batch_size=8, epochs=40, seed=seed, **options)


def test_it_finds_the_line_and_restores_the_mode():
    line, state = fitted(logging_strategy="epoch")
    assert state.global_step == 320
    torch.testing.assert_close(line.map.weight.item(), 2.0, atol=0.05, rtol=0)
    torch.testing.assert_close(line.map.bias.item(), 1.0, atol=0.05, rtol=0)
    assert not line.training
    assert len([entry for entry in state.log_history if "loss" in entry]) == 40


def test_a_seed_gives_the_same_weights_and_another_one_does_not():
    one, two, other = (fitted(seed)[0].map.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_rows_may_be_anything_that_collate_understands():
    x = torch.linspace(-1, 1, 64)[:, None]
    line = Line()
    fit_module(
        line,
        range(64),
        batch_size=8,
        epochs=40,
        seed=0,
        collate=lambda rows: {"x": x[rows], "y": -x[rows]},
        learning_rate=0.1,
        weight_decay=0.0,
    )
    torch.testing.assert_close(line.map.weight.item(), -1.0, atol=0.05, rtol=0)


def test_finite():
    assert finite([torch.zeros(2), torch.ones(1)])
    assert not finite([torch.zeros(2), torch.tensor([1.0, torch.nan])])
    assert not finite([torch.tensor([torch.inf])])

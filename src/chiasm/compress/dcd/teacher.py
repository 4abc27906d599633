"""The teacher: any scorer of pairs, asked without a gradient; and the objective that trains one.

A teacher is a callable ``teacher(a_inputs, b_inputs) -> [m]`` over m aligned pairs, where the inputs are what a source's
``batch(rows)`` gives (tensors ``[m, ...]``), or a `Teacher`, which encodes each side once and then only fuses, or a matrix of
logits ``[items of a, items of b]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.compress.dcd.scorers import PAIRS, grid, taken
from chiasm.errors import BadInput
from chiasm.learn.held_out import Direction, Encoded

Inputs = dict[str, Any]
AnyTeacher = Callable[[Inputs, Inputs], Tensor]


class Teacher:
    """Two towers and a scorer on top of them, in eval mode and without a gradient.

    It is no `nn.Module`, so that it is neither trained nor saved with the student, even where the student shares its towers.

    Args:
        model: the model with the towers.
        scorer: of aligned pairs; see `chiasm.compress.dcd.scorers`.
        routes: the model's routes for the two sides.
    """

    def __init__(self, model: Any, scorer: nn.Module, routes: Sequence[str] = ("a", "b")) -> None:
        self.model, self.scorer, self.routes = model, scorer, tuple(routes)

    @torch.no_grad()
    def encoded(self, inputs: Inputs, side: int) -> Encoded:
        """What the towers give for the items of one side (0 or 1)."""
        with resting(self.model):
            out = self.model({**inputs, "task": self.routes[side]})
        tokens = out.get("token_embeddings")
        mask = out.get("attention_mask")
        return Encoded(out["sentence_embedding"], tokens, None if tokens is None or mask is None else mask.bool())

    @torch.no_grad()
    def score(self, a: Encoded, b: Encoded) -> Tensor:
        """``[m]`` logits of aligned pairs of encoded items."""
        with resting(self.scorer):
            return self.scorer(a, b)

    def __call__(self, a_inputs: Inputs, b_inputs: Inputs) -> Tensor:
        """``[m]`` logits of m aligned pairs."""
        return self.score(self.encoded(a_inputs, 0), self.encoded(b_inputs, 1))

    @torch.no_grad()
    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a") -> Tensor:
        """``[N, M]`` logits of all pairs, for `chiasm.learn.held_out.HeldOut`."""
        with resting(self.scorer):
            return grid(self.scorer, a, b)


@contextmanager
def resting(module: Any) -> Iterator[None]:
    """Eval mode while it lasts; each part's own mode is put back."""
    if not isinstance(module, nn.Module):
        yield
        return
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@torch.no_grad()
def ask(
    teacher: AnyTeacher, a_inputs: Inputs, b_inputs: Inputs, rows: Tensor, columns: Tensor, *, chunk: int = PAIRS
) -> Tensor:
    """The teacher's logits of some pairs, ``chunk`` pairs at a time.

    Args:
        teacher: see the module.
        a_inputs, b_inputs: what it reads of the items of both sides.
        rows, columns: int ``[k]``: which item of ``a`` with which of ``b``.

    Returns:
        float ``[k]``, without a gradient.

    Raises:
        BadInput: not one finite logit a pair.
    """
    if isinstance(teacher, Teacher):
        a, b = teacher.encoded(a_inputs, 0), teacher.encoded(b_inputs, 1)

        def scored(i: Tensor, j: Tensor) -> Tensor:
            return teacher.score(taken(a, i), taken(b, j))
    else:

        def scored(i: Tensor, j: Tensor) -> Tensor:
            with resting(teacher):
                return teacher(_rows(a_inputs, i), _rows(b_inputs, j))

    parts = []
    for i, j in zip(rows.split(chunk), columns.split(chunk)):
        parts.append(scored(i, j))
        if parts[-1].shape != i.shape:
            raise BadInput(
                f"the teacher gave {tuple(parts[-1].shape)} for {len(i)} pairs", where="teacher", fix="One logit a pair"
            )
    return finite(torch.cat(parts).detach().float() if parts else torch.zeros(0))


def finite(z: Tensor) -> Tensor:
    """The logits, if they are numbers.

    Raises:
        BadInput: NaN or infinite logits.
    """
    if not bool(torch.isfinite(z).all()):
        bad = int((~torch.isfinite(z)).sum())
        raise BadInput(f"{bad} of {z.numel()} logits are NaN or infinite", where="teacher", fix="Look at its inputs")
    return z


def _rows(inputs: Inputs, index: Tensor) -> Inputs:
    return {name: value[index] if isinstance(value, Tensor) else value for name, value in inputs.items()}


class Matching(nn.Module):
    """Trains a scorer: cross-entropy over all pairs of a batch, in both directions. What a teacher learns from here.

    Args:
        scorer: of aligned pairs; its parameters are trained.

    Other pairs of the same group are neither positives nor negatives.
    """

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts of n pairs; n^2 pairs are scored with a gradient.

        Args:
            a, b: ``[n, D]``.
            groups: int ``[n]``.
            a_tokens, a_mask, b_tokens, b_mask: ``[n, L, D]`` and bool ``[n, L]``, for scorers that read tokens.
        """
        if len(a) != len(b) or not len(a):
            raise BadInput(f"{len(a)} and {len(b)} rows are not pairs", where="Matching")
        logits = grid(self.scorer, Encoded(a, a_tokens, a_mask), Encoded(b, b_tokens, b_mask))
        own = torch.arange(len(a), device=a.device)
        if groups is not None:
            same = (groups[:, None] == groups[None, :]) & (own[:, None] != own[None, :])
            logits = logits.masked_fill(same, -torch.inf)
        loss = nn.functional.cross_entropy
        return {"a_to_b": 0.5 * loss(logits, own), "b_to_a": 0.5 * loss(logits.T, own)}

    @torch.no_grad()
    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a") -> Tensor:
        """``[N, M]`` logits of all pairs."""
        return grid(self.scorer, a, b)

"""How a modality's token enters the tokens of an item: the six operators of OneEncoder (section "fusion").

With X ``[N, L, D]`` the aligned tokens and tau ``[s, D]`` the modality token:

    addition         Y = X + tau                                                       (the published default)
    multiplication   Y = X * tau
    concatenation    Y = [tau_1 ... tau_s, X], and the s places are dropped after the projection
    scaled-dot       Y = X + c,   c = softmax(q(tau) k(X)^T / sqrt(D)) v(X)
    bahdanau         Y = X + c,   c = softmax_j(w^T tanh(Wc tau + Wv x_j)) X            (Bahdanau and others, arXiv 1409.0473)
    luong            Y = X + c,   c = softmax_j(tau^T W x_j) X                         (Luong and others, arXiv 1508.04025)

The softmax runs over the tokens that are there; the others have the score -inf. Without any, c is zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chiasm.errors import unknown_name

FUSIONS = ("addition", "multiplication", "concatenation", "scaled-dot", "bahdanau", "luong")
# Tokens a modality: 15 where they are put before the others, one where they are added.
CONCATENATED = 15


def tokens_of(fusion: str) -> int:
    """How many vectors a modality token has with an operator.

    Raises:
        UnknownName: no such operator.
    """
    if fusion not in FUSIONS:
        raise unknown_name("fusion operator", fusion, FUSIONS)
    return CONCATENATED if fusion == "concatenation" else 1


class Fusion(nn.Module):
    """One of the six operators.

    Args:
        name: see above.
        width: D.
        tanh: for ``"bahdanau"``: False leaves the tanh out, as the paper's formula is often written. Then ``Wc tau`` is
            the same for all j, the softmax cancels it, and the token has no effect and no gradient.

    Raises:
        UnknownName: no such operator.
    """

    def __init__(self, name: str = "addition", width: int = 256, *, tanh: bool = True) -> None:
        super().__init__()
        tokens_of(name)
        self.name, self.width, self.tanh = name, width, tanh
        if name == "scaled-dot":
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        elif name == "bahdanau":
            self.of_token, self.of_item = nn.Linear(width, width), nn.Linear(width, width, bias=False)
            self.score = nn.Linear(width, 1, bias=False)
        elif name == "luong":
            self.bilinear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, token: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The fused tokens and their mask.

        Args:
            x: ``[N, L, D]``.
            token: tau ``[s, D]``.
            mask: bool ``[N, L]``, True where a token is.

        Returns:
            ``[N, L, D]`` and ``[N, L]``; with concatenation ``L + s`` places.
        """
        if self.name == "addition":
            return x + token, mask
        if self.name == "multiplication":
            return x * token, mask
        if self.name == "concatenation":
            first = token.expand(len(x), -1, -1)
            return torch.cat([first, x], dim=1), torch.cat([mask.new_ones(first.shape[:2]), mask], dim=1)
        context = self.weights(x, token, mask).unsqueeze(1) @ (self.value(x) if self.name == "scaled-dot" else x)
        return x + context, mask

    def weights(self, x: Tensor, token: Tensor, mask: Tensor) -> Tensor:
        """What the token attends to, ``[N, L]``: sums to 1 over the tokens that are there, 0 if there is none."""
        token = token.mean(0)
        if self.name == "scaled-dot":
            scores = self.key(x) @ self.query(token) / math.sqrt(self.width)
        elif self.name == "luong":
            scores = self.bilinear(x) @ token
        else:
            added = self.of_token(token) + self.of_item(x)
            scores = self.score(added.tanh() if self.tanh else added).squeeze(-1)
        # A row without tokens is opened, so that no NaN appears in it or its gradient, and closed again afterwards.
        there = mask | ~mask.any(1, keepdim=True)
        return scores.masked_fill(~there, -torch.inf).softmax(-1).masked_fill(~mask, 0.0)

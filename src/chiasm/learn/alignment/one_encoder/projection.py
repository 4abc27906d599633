"""The parts of OneEncoder: the modality token and the Universal Projection, shared by all modalities.

tau = LayerNorm(MLP(t)),  t [s, 3]           MLP: 3 -> 64 -> 128 -> D with ReLU
Y = fuse(X, tau)
O = Y + Encoder(LayerNorm(Y))                Encoder: post-norm transformer layers, ReLU
e = mean of O over the tokens that are there
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.blocks.alignment import Pooling, filled, pooled
from chiasm.learn.alignment.one_encoder.fusion import Fusion, tokens_of

CODE = 3  # numbers of a modality token before its perceptron


class ModalityToken(nn.Module):
    """A modality's own vectors t ``[s, 3]``, drawn from N(0, u^2) with u from U(0.1, 0.6), as in the paper.

    Args:
        count: s.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        spread = torch.empty(()).uniform_(0.1, 0.6)
        self.code = nn.Parameter(torch.randn(count, CODE) * spread)

    def forward(self) -> Tensor:
        return self.code


class TokenPerceptron(nn.Sequential):
    """``3 -> 64 -> 128 -> width`` with ReLU between, and a LayerNorm; with one token 42,115 numbers learn at width 256."""

    def __init__(self, width: int = 256) -> None:
        super().__init__(
            nn.Linear(CODE, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width), nn.LayerNorm(width)
        )


class UniversalProjection(nn.Module):
    """The one network that all modalities go through: 1,315,584 parameters at its defaults.

    Args:
        width: D.
        layers: transformer layers; 1, and 2 in the network for questions.
        heads: 4.
        feedforward: 2048, the library's default, which the paper keeps.
        dropout: 0.1, likewise.
        fusion: operator, see `fusion`.
        tanh: of `Fusion`.

    Raises:
        UnknownName: no such operator.
    """

    def __init__(
        self,
        width: int = 256,
        *,
        layers: int = 1,
        heads: int = 4,
        feedforward: int = 2048,
        dropout: float = 0.1,
        fusion: str = "addition",
        tanh: bool = True,
    ) -> None:
        super().__init__()
        self.fusion = Fusion(fusion, width, tanh=tanh)
        self.norm = nn.LayerNorm(width)
        # One at a time: nn.TransformerEncoder would copy one layer, and equal layers would start with equal weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, feedforward, dropout, batch_first=True) for _ in range(layers)
        )

    def forward(self, x: Tensor, token: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Projected tokens ``[N, L, D]``, zero where there is none.

        Args:
            x: aligned tokens ``[N, L, D]``.
            token: tau ``[s, D]``; None fuses nothing.
            mask: bool ``[N, L]``, True where a token is.
        """
        there = filled(mask, x)
        # What stands in padded places (it may be anything) must reach neither the attention nor a gradient.
        x = x.masked_fill(~there.unsqueeze(-1), 0.0)
        y, seen = (x, there) if token is None else self.fusion(x, token, there)
        out = y + self._encoded(self.norm(y), seen)
        out = out[:, out.shape[1] - x.shape[1] :]
        return out.masked_fill(~there.unsqueeze(-1), 0.0)

    def _encoded(self, y: Tensor, seen: Tensor) -> Tensor:
        if not y.shape[1]:
            return y
        # An item without tokens would attend to nothing, which is NaN: it attends to its padding, and its output is dropped.
        hidden = ~(seen | ~seen.any(1, keepdim=True))
        for layer in self.layers:
            y = layer(y, src_key_padding_mask=hidden)
        return y

    def embed(
        self, x: Tensor, token: Tensor | None = None, mask: Tensor | None = None, pooling: Pooling = "mean"
    ) -> Tensor:
        """One vector an item, ``[N, D]``; arguments as in `forward` and `pooled`."""
        return pooled(self(x, token, mask), mask, pooling)


def new_token(fusion: str) -> ModalityToken:
    """A modality token with as many vectors as the operator takes."""
    return ModalityToken(tokens_of(fusion))

"""Fusion heads: latents of M modalities in, class logits (or regression outputs) out. All read a list of ``[B, d_i]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name


class LinearFusion(nn.Module):
    """sum_i W_i z_i + b: the reference's linear head.

    Args:
        dims: lengths of the latents.
        classes: number of outputs C.
        width: not used; all heads are made alike.
    """

    def __init__(self, dims: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(dim, classes, bias=False) for dim in dims)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        return torch.stack([one(z) for one, z in zip(self.maps, latents, strict=True)]).sum(dim=0) + self.bias


class MLPFusion(nn.Module):
    """A perceptron with one hidden layer of ``width`` over the joined latents."""

    def __init__(self, dims: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(sum(dims), width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        return self.layers(torch.cat(list(latents), dim=-1))


class FiLMFusion(nn.Module):
    """The first latent, scaled and shifted by the others (Perez and others 2018, arXiv 1709.07871).

    h = (1 + g(z_2 ..)) * P z_1 + s(z_2 ..), then a linear map of relu(h); g and s see all other latents joined.
    """

    def __init__(self, dims: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        if len(dims) < 2:
            raise BadInput(f"{len(dims)} modality", where="FiLMFusion", fix="It needs one to shift the other by")
        self.enter = nn.Linear(dims[0], width)
        self.condition = nn.Linear(sum(dims[1:]), 2 * width)
        self.leave = nn.Linear(width, classes)

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        gain, shift = self.condition(torch.cat(list(latents[1:]), dim=-1)).chunk(2, dim=-1)
        return self.leave(torch.relu((1 + gain) * self.enter(latents[0]) + shift))


class GatedFusion(nn.Module):
    """sum_i g_i * tanh(P_i z_i) with gates g = softmax over modalities (GMU, Arevalo and others 2017, arXiv 1702.01992)."""

    def __init__(self, dims: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(dim, width) for dim in dims)
        self.gate = nn.Linear(sum(dims), width * len(dims))
        self.leave = nn.Linear(width, classes)

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        hidden = torch.stack([torch.tanh(one(z)) for one, z in zip(self.enter, latents, strict=True)], dim=1)
        gates = self.gate(torch.cat(list(latents), dim=-1)).unflatten(-1, hidden.shape[1:]).softmax(dim=1)
        return self.leave((gates * hidden).sum(dim=1))


class TransformerFusion(nn.Module):
    """One pre-LN transformer layer over a class token and one token a modality."""

    def __init__(self, dims: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(dim, width) for dim in dims)
        self.kind = nn.Parameter(torch.randn(len(dims) + 1, width) * 0.02)
        heads = next(h for h in (4, 2, 1) if width % h == 0)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, 0.0, nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, classes)

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        tokens = torch.stack([one(z) for one, z in zip(self.enter, latents, strict=True)], dim=1)
        first = torch.zeros_like(tokens[:, :1])
        tokens = torch.cat([first, tokens], dim=1) + self.kind
        return self.leave(self.norm(self.layer(tokens)[:, 0]))


HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearFusion,
    "mlp": MLPFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
    "transformer": TransformerFusion,
}


def fusion_head(name: str, dims: Sequence[int], classes: int, width: int = 64) -> nn.Module:
    """A head by name.

    Args:
        name: one of `HEADS`.
        dims: lengths of the latents, one a modality.
        classes: number of outputs.
        width: of the hidden layer, where there is one.

    Raises:
        UnknownName: a head that does not exist.
    """
    if name not in HEADS:
        raise unknown_name("fusion head", name, HEADS)
    return HEADS[name](dims, classes, width)

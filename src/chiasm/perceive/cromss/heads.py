"""Decoders for the task after pre-training: from a feature pyramid to logits, each in its plainest form.

Linear probe; FPN (Kirillov and others 2019, arXiv 1901.02446); PSPNet (Zhao and others 2017, arXiv 1612.01105); DeepLabv3+
(Chen and others 2018, arXiv 1802.02611). CromSS transfers with the last three (cromss, arXiv 2405.01217).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput, unknown_name
from chiasm.perceive.cromss.networks import DECODER_WIDTHS, UNetDecoder, resized


def _convolved(before: int, after: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class LinearHead(nn.Module):
    """One linear map of all levels, brought to the pictures' size: what the features tell without further layers."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        # Levels differ in scale; without statistics of their own the coarse ones drown the fine ones, or the reverse.
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in channels)
        self.maps = nn.ModuleList(nn.Conv2d(width, classes, 1, bias=level == 0) for level, width in enumerate(channels))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *size]``. A linear map and resizing commute, so each level is mapped before it grows."""
        found = [m(n(x)) for m, n, x in zip(self.maps, self.norms, maps, strict=True)]
        return torch.stack([resized(x, size) for x in found]).sum(0)


class FPNHead(nn.Module):
    """Feature pyramid: each level as wide as the others, the coarser one added to the finer, their sum classified."""

    def __init__(self, channels: Sequence[int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.sideways = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.smooth = nn.ModuleList(_convolved(width, width, 3) for _ in channels)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *size]``."""
        levels = [side(x) for side, x in zip(self.sideways, maps, strict=True)]
        for place in range(len(levels) - 2, -1, -1):
            finer = levels[place]
            levels[place] = finer + functional.interpolate(levels[place + 1], finer.shape[2:], mode="nearest")
        finest = levels[0].shape[2:]
        total = torch.stack([resized(s(x), finest) for s, x in zip(self.smooth, levels, strict=True)]).sum(0)
        return resized(self.head(total), size)


class PSPHead(nn.Module):
    """Pyramid pooling of the coarsest level: means over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the picture beside it."""

    def __init__(
        self, channels: Sequence[int], classes: int, width: int = 64, bins: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        self.bins, each = tuple(bins), max(1, channels[-1] // len(bins))
        # No normalization here: a mean over the whole picture is one pixel a picture.
        self.pooled = nn.ModuleList(nn.Sequential(nn.Conv2d(channels[-1], each, 1), nn.ReLU()) for _ in bins)
        self.join = _convolved(channels[-1] + each * len(bins), width, 3)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *size]``."""
        x = maps[-1]
        parts = [
            resized(pooled(functional.adaptive_avg_pool2d(x, cells)), x.shape[2:])
            for pooled, cells in zip(self.pooled, self.bins, strict=True)
        ]
        return resized(self.head(self.join(torch.cat([x, *parts], dim=1))), size)


class DeepLabHead(nn.Module):
    """Dilated convolutions side by side on the coarsest level, joined with the finest one (DeepLabv3+)."""

    def __init__(
        self, channels: Sequence[int], classes: int, width: int = 64, rates: Sequence[int] = (1, 2, 4), low: int = 16
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [_convolved(channels[-1], width), *(_convolved(channels[-1], width, 3, rate) for rate in rates)]
        )
        self.whole = nn.Sequential(nn.Conv2d(channels[-1], width, 1), nn.ReLU())
        self.project = _convolved(width * (len(rates) + 2), width)
        self.low = _convolved(channels[0], low)
        self.join = _convolved(width + low, width, 3)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *size]``."""
        x = maps[-1]
        whole = self.whole(functional.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        context = self.project(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))
        fine = self.low(maps[0])
        joined = self.join(torch.cat([resized(context, fine.shape[2:]), fine], dim=1))
        return resized(self.head(joined), size)


def _unet(channels: Sequence[int], classes: int) -> nn.Module:
    blocks = max(1, len(channels) - 1)
    widths = (DECODER_WIDTHS[0],) * max(0, blocks - len(DECODER_WIDTHS)) + DECODER_WIDTHS[-blocks:]
    return UNetDecoder(channels, classes, widths)


HEADS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "linear": LinearHead,
    "unet": _unet,
    "fpn": FPNHead,
    "pspnet": PSPHead,
    "deeplab": DeepLabHead,
}


def make_head(name: str, channels: Sequence[int], classes: int) -> nn.Module:
    """A head by its name.

    Args:
        name: one of `HEADS`.
        channels: of the pyramid, finest first.
        classes: K, at least 2.

    Raises:
        UnknownName: no such head.
        BadInput: fewer than two classes, no level.
    """
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
    if classes < 2 or not channels:
        raise BadInput(f"{classes} classes, {len(channels)} levels", where="make_head", fix="Give at least 2 classes")
    return HEADS[name](tuple(channels), classes)

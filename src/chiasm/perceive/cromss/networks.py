"""Two sensors, one label map: encoders that give feature pyramids, a U-Net decoder, and their middle or late fusion.

    middle fusion: two encoders, one shared decoder and head, run once for each sensor
    late fusion:   two complete U-Nets, which only the losses couple

CromSS (cromss, arXiv 2405.01217); U-Net: Ronneberger and others 2015, arXiv 1505.04597.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput, unknown_name

Fusion = Literal["middle", "late"]
# Decoder of the paper's U-Net on a ResNet-50.
DECODER_WIDTHS = (256, 128, 64, 32, 16)


def _convolved(before: int, after: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each normalized."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class SmallEncoder(nn.Module):
    """A convolutional encoder for small pictures; every level halves the side.

    Args:
        channels: of the pictures.
        widths: of the levels, the first at full resolution.

    Attributes:
        channels: the widths, as every encoder here tells them.

    Raises:
        BadInput: no channels or widths; in the call, pictures of other channels.
    """

    def __init__(self, channels: int, widths: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        if min((channels, *widths)) < 1 or not widths:
            raise BadInput(
                f"{channels} channels, widths {tuple(widths)}", where="SmallEncoder", fix="Give numbers from 1"
            )
        self.channels = tuple(widths)
        self.levels = nn.ModuleList(_convolved(i, o) for i, o in pairwise((channels, *widths)))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` -> one map a level, finest first: ``[B, widths[l], H / 2^l, W / 2^l]`` (rounded up)."""
        first: Any = self.levels[0]
        if pictures.ndim != 4 or pictures.shape[1] != first[0].in_channels:
            raise BadInput(
                f"pictures {tuple(pictures.shape)}", where="SmallEncoder", fix=f"Give [B, {first[0].in_channels}, H, W]"
            )
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(functional.max_pool2d(maps[-1], 2, ceil_mode=True) if maps else pictures))
        return maps


class BackboneEncoder(nn.Module):
    """A Hugging Face backbone (ResNet, ConvNeXt, Swin, ... of any config) as an encoder.

    Args:
        backbone: a model with ``feature_maps`` and ``channels``, for example
            ``ResNetBackbone(ResNetConfig(num_channels=13, out_features=["stem", "stage1", "stage2", "stage3", "stage4"]))``.

    Raises:
        UnknownName: a model that gives no feature maps.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        channels = getattr(backbone, "channels", None)
        if not channels or not isinstance(backbone, nn.Module):
            raise unknown_name(
                "backbone", type(backbone).__name__, ("ResNetBackbone", "ConvNextBackbone", "SwinBackbone")
            )
        self.backbone = backbone
        self.channels = tuple(channels)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """The backbone's feature maps, finest first."""
        return list(self.backbone(pictures).feature_maps)


class UNetDecoder(nn.Module):
    """From a feature pyramid to logits at the pictures' own size.

    Args:
        channels: of the pyramid, finest first.
        classes: K.
        widths: of the blocks, coarsest first; more blocks than levels go on without a shorter way from the encoder.
    """

    def __init__(self, channels: Sequence[int], classes: int, widths: Sequence[int] = DECODER_WIDTHS) -> None:
        super().__init__()
        if classes < 2 or len(widths) < len(channels) - 1 or not widths:
            raise BadInput(
                f"{classes} classes, {len(widths)} blocks for {len(channels)} levels",
                where="UNetDecoder",
                fix=f"Give at least 2 classes and {max(1, len(channels) - 1)} widths",
            )
        skips = [*list(channels)[-2::-1], *(0 for _ in widths)][: len(widths)]
        self.blocks = nn.ModuleList(
            _convolved(before + skip, width)
            for before, skip, width in zip((channels[-1], *widths), skips, widths, strict=False)
        )
        self.head = nn.Conv2d(widths[-1], classes, 3, padding=1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *size]``.

        Args:
            maps: the pyramid, finest first.
            size: height and width of the pictures.
        """
        x, finer = maps[-1], list(maps[-2::-1])
        for number, block in enumerate(self.blocks):
            skip = finer[number] if number < len(finer) else None
            # Without a way from the encoder: twice the side, but never beyond the picture.
            doubled = [min(2 * now, whole) for now, whole in zip(x.shape[2:], size, strict=True)]
            x = functional.interpolate(x, doubled if skip is None else skip.shape[2:], mode="nearest")
            x = block(x if skip is None else torch.cat([x, skip], dim=1))
        return resized(self.head(x), size)


def in_batches(module: nn.Module, run: Callable[[Tensor], Tensor], pictures: Tensor, batch_size: int) -> Tensor:
    """``run`` of pictures ``[N, C, H, W]`` part by part, on the CPU; the module is in evaluation mode meanwhile.

    Raises:
        BadInput: batches of none, or pictures with NaN.
    """
    if batch_size < 1 or not bool(torch.isfinite(pictures).all()):
        raise BadInput(
            f"batches of {batch_size}" if batch_size < 1 else "pictures hold NaN or infinite values",
            where=type(module).__name__,
            fix="Take at least 1" if batch_size < 1 else "Fill them in first",
        )
    was_training, device = module.training, next(module.parameters()).device
    module.eval()
    try:
        return torch.cat([run(part.to(device)).cpu() for part in pictures.split(batch_size)])
    finally:
        module.train(was_training)


def resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear to ``size``; as it is where it has that size."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


class TwoSensorNet(nn.Module):
    """Two encoders of co-registered pictures and their decoder(s).

    Args:
        encoder_a, encoder_b: modules with ``channels`` that give feature pyramids; for middle fusion of the same channels.
        classes: K.
        fusion: ``"middle"`` or ``"late"``.
        widths: of the decoder's blocks; default the paper's, of smaller encoders the last of them.

    Raises:
        BadInput: encoders that cannot share a decoder.
        UnknownName: another fusion.
    """

    def __init__(
        self,
        encoder_a: nn.Module,
        encoder_b: nn.Module,
        classes: int,
        *,
        fusion: Fusion = "middle",
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if fusion not in ("middle", "late"):
            raise unknown_name("fusion", fusion, ("middle", "late"))
        channels = [tuple(getattr(encoder, "channels", ())) for encoder in (encoder_a, encoder_b)]
        if not all(channels):
            raise BadInput("an encoder does not tell its channels", where="TwoSensorNet", fix="See SmallEncoder")
        if fusion == "middle" and channels[0] != channels[1]:
            raise BadInput(
                f"encoders of {channels[0]} and {channels[1]} channels cannot share a decoder",
                where="TwoSensorNet",
                fix="Give encoders of the same channels, or fusion='late'",
            )
        self.classes, self.fusion = classes, fusion
        self.encoder_a, self.encoder_b = encoder_a, encoder_b
        # One entry for both sensors, or one for each: a module registered twice would be saved twice.
        self.decoders = nn.ModuleList(
            UNetDecoder(c, classes, _widths(widths, len(c))) for c in (channels[:1] if fusion == "middle" else channels)
        )

    @property
    def decoder_a(self) -> nn.Module:
        """The first sensor's decoder."""
        return self.decoders[0]

    @property
    def decoder_b(self) -> nn.Module:
        """The second sensor's decoder; in middle fusion the same one."""
        return self.decoders[-1]

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, K, H, W]`` of either sensor.

        Args:
            a, b: pictures ``[B, C_a, H, W]`` and ``[B, C_b, H, W]``.

        Raises:
            BadInput: pictures of different sizes or numbers.
        """
        if a.ndim != 4 or b.ndim != 4 or len(a) != len(b) or a.shape[2:] != b.shape[2:]:
            raise BadInput(
                f"pictures {tuple(a.shape)} and {tuple(b.shape)}",
                where="TwoSensorNet",
                fix="Give [B, C, H, W] of the same places at the same size",
            )
        return self.logits_a(a), self.logits_b(b)

    def logits_a(self, a: Tensor) -> Tensor:
        """Logits from the first sensor alone."""
        return self.decoder_a(self.encoder_a(a), a.shape[2:])

    def logits_b(self, b: Tensor) -> Tensor:
        """Logits from the second sensor alone."""
        return self.decoder_b(self.encoder_b(b), b.shape[2:])

    @torch.inference_mode()
    def shares(self, a: Any = None, b: Any = None, *, batch_size: int = 64) -> Tensor:
        """Probabilities ``[N, K, H, W]``: the mean of the sensors that are given; in evaluation mode.

        Args:
            a, b: pictures ``[N, C, H, W]``, arrays or tensors; one of them may be missing.
            batch_size: pictures at a time; changes nothing.

        Raises:
            BadInput: no pictures, numbers that differ, NaN, or batches of none.
        """
        given = [
            (run, torch.as_tensor(x, dtype=torch.float32))
            for run, x in ((self.logits_a, a), (self.logits_b, b))
            if x is not None
        ]
        if not given or any(x.ndim != 4 or x.shape[2:] != given[0][1].shape[2:] for _, x in given):
            raise BadInput("no pictures, or of different sizes", where="TwoSensorNet.shares", fix="Give [N, C, H, W]")
        if len({len(x) for _, x in given}) > 1:
            raise BadInput(
                "different numbers of pictures", where="TwoSensorNet.shares", fix="Give both sensors of the same places"
            )
        found = [in_batches(self, lambda part, run=run: run(part).softmax(1), x, batch_size) for run, x in given]
        return torch.stack(found).mean(0)

    def predict(self, a: Any = None, b: Any = None, *, batch_size: int = 64) -> Tensor:
        """Classes int64 ``[N, H, W]``, from the mean of the sensors that are given."""
        return self.shares(a, b, batch_size=batch_size).argmax(1)


def _widths(widths: Sequence[int] | None, levels: int) -> tuple[int, ...]:
    if widths is not None:
        return tuple(widths)
    return DECODER_WIDTHS if levels >= len(DECODER_WIDTHS) else DECODER_WIDTHS[-max(1, levels - 1) :]

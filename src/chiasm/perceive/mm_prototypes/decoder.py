"""Elastic mask prediction: one small decoder for every class, whatever the number of its prototypes.

Similarity maps s_j(p) = cos(P_j, F(p)) / tau are reduced over the prototypes j by [max, logmeanexp, softmax-weighted sum],
which know neither order nor duplicates; a class-agnostic decoder turns them into a logit map. Multi-modal prototypes,
arXiv 2307.02003.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput

CHANNELS = ("max", "logmeanexp", "attention")


@dataclass(frozen=True)
class Reduced:
    """Similarities without the axis of the prototypes.

    Args:
        channels: ``[..., 3, P]``: maximum, logmeanexp, softmax-weighted sum; 0 where a class has no prototype.
        weights: ``[..., n, P]``: the softmax over the prototypes, 0 at missing ones.
    """

    channels: Tensor
    weights: Tensor


def reduce_similarities(similarities: Tensor, mask: Tensor | None = None) -> Reduced:
    """Reduces over the prototypes of a class, independent of their order and of copies.

    The maximum grows with every further prototype; logmeanexp has equal weights and does not favor classes with many.

    Args:
        similarities: ``[..., n, P]`` of n prototypes with P pixels.
        mask: bool ``[..., n]``, True where there is a prototype; None if all are there.

    Raises:
        BadInput: no prototype at all, or a mask that does not fit.
    """
    if similarities.ndim < 2 or not similarities.shape[-2]:
        raise BadInput(f"similarities {tuple(similarities.shape)}", where="reduce_similarities", fix="Give [..., n, P]")
    if mask is None:
        mask = torch.ones(similarities.shape[:-1], dtype=torch.bool, device=similarities.device)
    if mask.shape != similarities.shape[:-1]:
        raise BadInput(
            f"a mask {tuple(mask.shape)} for similarities {tuple(similarities.shape)}",
            where="reduce_similarities",
            fix="Give bool [..., n]",
        )
    none = ~mask.any(dim=-1, keepdim=True)
    # A class without prototypes looks at everything first, and its result is dropped: no NaN, in the gradient neither.
    seen = similarities.masked_fill(~(mask | none)[..., None], -torch.inf)
    count = (mask | none).sum(dim=-1)[..., None].to(similarities.dtype)
    weights = seen.softmax(dim=-2)
    channels = torch.stack(
        [seen.amax(dim=-2), seen.logsumexp(dim=-2) - count.log(), (weights * similarities).sum(dim=-2)], dim=-2
    )
    return Reduced(channels.masked_fill(none[..., None], 0.0), weights.masked_fill(none[..., None], 0.0))


class ElasticDecoder(nn.Module):
    """Logit maps of any number of classes with any number of prototypes each.

    Args:
        width: length D of features and prototypes.
        channels: of the decoder; 64 (the card).
        temperature: tau; 0.07 (the card).
        skip: add a weighted sum of the three reduced maps to the logits [inferred]. GroupNorm takes the level out of the
            maps of a class, and it is by their levels that classes compete.
        use: which of `CHANNELS` are used; the others are set to 0.

    Raises:
        BadInput: sizes or a temperature that make no decoder, or unknown channels.
    """

    def __init__(
        self,
        width: int,
        channels: int = 64,
        *,
        temperature: float = 0.07,
        skip: bool = True,
        use: tuple[str, ...] = CHANNELS,
    ) -> None:
        super().__init__()
        if width < 1 or channels < 1 or not temperature > 0:
            raise BadInput(
                f"width={width}, channels={channels}, temperature={temperature}",
                where="ElasticDecoder",
                fix="Give sizes from 1 and a positive temperature",
            )
        if not use or set(use) - set(CHANNELS):
            raise BadInput(f"use={use}", where="ElasticDecoder", fix=f"Give some of {', '.join(CHANNELS)}")
        self.temperature = temperature
        self.register_buffer("used", torch.tensor([name in use for name in CHANNELS]), persistent=False)
        self.reduce_features = nn.Conv2d(width, channels, 1)
        self.reduce_prototypes = nn.Linear(width, channels)
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(size, channels, 3, padding=1), nn.GroupNorm(groups, channels), nn.ReLU())
            for size in (2 * channels + len(CHANNELS), channels, channels)
        )
        self.out = nn.Conv2d(channels, 1, 1)
        self.skip = nn.Linear(len(CHANNELS), 1, bias=False) if skip else None
        if self.skip is not None:
            # In the beginning the logits are logmeanexp, the channel that does not grow with the number of clues.
            chosen = "logmeanexp" if "logmeanexp" in use else use[0]
            with torch.no_grad():
                self.skip.weight.copy_(torch.tensor([[float(name == chosen) for name in CHANNELS]]))
                self.out.weight.mul_(0.1)

    def similarities(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """``[B, D, H, W]``, ``[B, K, n, D]`` -> ``[B, K, n, H * W]``: cosine / tau. One matrix product a picture."""
        flat = functional.normalize(features.flatten(2), dim=1)
        rows = functional.normalize(prototypes, dim=-1)
        found = torch.bmm(rows.flatten(1, 2), flat) / self.temperature
        return found.unflatten(1, prototypes.shape[1:3])

    def forward(
        self, features: Tensor, prototypes: Tensor, mask: Tensor | None = None, *, chunk: int | None = None
    ) -> Tensor:
        """Logits of every class, four times as fine as the features.

        Args:
            features: ``[B, D, H, W]``.
            prototypes: ``[B, K, n, D]``.
            mask: bool ``[B, K, n]``; None if all are there.
            chunk: classes decoded at once; None for all. Changes nothing but the memory.

        Returns:
            ``[B, K, 4 H, 4 W]``; -inf for classes without a prototype.

        Raises:
            BadInput: shapes that do not fit.
        """
        if features.ndim != 4 or prototypes.ndim != 4 or len(features) != len(prototypes):
            raise BadInput(
                f"features {tuple(features.shape)}, prototypes {tuple(prototypes.shape)}",
                where="ElasticDecoder",
                fix="Give [B, D, H, W] and [B, K, n, D]",
            )
        if mask is None:
            mask = torch.ones(prototypes.shape[:3], dtype=torch.bool, device=prototypes.device)
        size = prototypes.shape[1] if chunk is None else chunk
        if size < 1:
            raise BadInput(
                f"chunk={chunk}, {prototypes.shape[1]} classes",
                where="ElasticDecoder",
                fix="Decode at least one class at a time",
            )
        reduced = self.reduce_features(features)
        parts = [
            self._decode(features, reduced, some, there)
            for some, there in zip(prototypes.split(size, dim=1), mask.split(size, dim=1), strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _decode(self, features: Tensor, reduced: Tensor, prototypes: Tensor, mask: Tensor) -> Tensor:
        """All of the module for some of the classes."""
        (count, _, height, wide), classes = features.shape, prototypes.shape[1]
        found = reduce_similarities(self.similarities(features, prototypes), mask)
        channels = found.channels * self.get_buffer("used")[:, None]
        # The weights sum to 1, so projecting before mixing is the same as after, and cheaper.
        mixed = self.reduce_prototypes(prototypes).transpose(2, 3) @ found.weights
        maps = torch.cat([reduced.flatten(2)[:, None].expand(-1, classes, -1, -1), mixed, channels], dim=2)
        x = maps.reshape(count * classes, maps.shape[2], height, wide)
        x = self.blocks[1](self.blocks[0](x))
        x = self.blocks[2](functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        logits = functional.interpolate(self.out(x), scale_factor=2, mode="bilinear", align_corners=False)
        if self.skip is not None:
            level = self.skip(channels.transpose(2, 3)).reshape(count * classes, 1, height, wide)
            logits = logits + functional.interpolate(level, scale_factor=4, mode="bilinear", align_corners=False)
        logits = logits.reshape(count, classes, *logits.shape[2:])
        return logits.masked_fill(~mask.any(dim=2)[..., None, None], -torch.inf)

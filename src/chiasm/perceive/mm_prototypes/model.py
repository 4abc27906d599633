"""`MultiModalPrototypes`: classes given by words, by masked pictures or by both, in one segmenter.

>>> model = MultiModalPrototypes(features=512, text=512)
>>> logits = model(pictures, Clues(text=words))                          # zero-shot: [B, 1 + K, 4 H, 4 W]
>>> logits = model(pictures, Clues(visual=regions, background=grounds))  # few-shot
>>> losses = model.losses(pictures, clues, labels)                        # training: parts that sum to the loss

Textual and visual prototypes are projected into one space, fused by cross-attention and compared with every pixel; classes
compete in a softmax with the background. *Multi-Modal Prototypes for Open-World Semantic Segmentation*, IJCV 2024,
arXiv 2307.02003. No code was published: constants are our specification.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput
from chiasm.learn.contrastive import info_nce
from chiasm.perceive.mm_prototypes.decoder import CHANNELS, ElasticDecoder
from chiasm.perceive.mm_prototypes.fusion import ComplementaryFusion
from chiasm.perceive.mm_prototypes.splitting import to_grid

IGNORE = 255


@dataclass(frozen=True)
class Clues:
    """What is known of K classes, for each of B pictures; B is 1 if all pictures share them.

    Args:
        text: ``[B, K, T, D']`` vectors of name and descriptions, or None.
        visual: ``[B, K, V, F]`` prototypes of support pictures, not yet projected, or None.
        background: ``[B, G, F]`` prototypes of what is around the supports' masks, or None.
        text_mask, visual_mask, background_mask: bool, True where there is one; None if all are there.
    """

    text: Tensor | None = None
    visual: Tensor | None = None
    background: Tensor | None = None
    text_mask: Tensor | None = None
    visual_mask: Tensor | None = None
    background_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.visual is None:
            raise BadInput("neither words nor pictures", where="Clues", fix="Give at least one of text and visual")
        for name, size in (("text", 4), ("visual", 4), ("background", 3)):
            value, mask = getattr(self, name), getattr(self, f"{name}_mask")
            if value is not None and value.ndim != size:
                raise BadInput(
                    f"{name} has shape {tuple(value.shape)}, expected {size} axes",
                    where="Clues",
                    fix="See the shapes that `Clues` lists",
                )
            if value is not None and mask is not None and mask.shape != value.shape[:-1]:
                raise BadInput(
                    f"a mask {tuple(mask.shape)} for {name} {tuple(value.shape)}",
                    where="Clues",
                    fix="Give one bool a prototype",
                )
        shapes = {tuple(value.shape[:2]) for value in (self.text, self.visual) if value is not None}
        if len(shapes) > 1:
            raise BadInput(
                f"text and visual speak of {sorted(shapes)} pictures and classes",
                where="Clues",
                fix="Give both of the same, with masks where one is missing",
            )
        batches = {len(value) for value in (self.text, self.visual, self.background) if value is not None}
        if len(batches) > 1:
            raise BadInput(f"clues of {sorted(batches)} pictures", where="Clues", fix="Give all of the same B pictures")

    @property
    def classes(self) -> int:
        """K."""
        given = self.text if self.text is not None else self.visual
        assert given is not None
        return given.shape[1]

    def without_text(self) -> Clues:
        """Only the pictures."""
        return replace(self, text=None, text_mask=None)

    def without_visual(self) -> Clues:
        """Only the words; the surroundings of the masks are gone too."""
        return replace(self, visual=None, visual_mask=None, background=None, background_mask=None)


class MultiModalPrototypes(nn.Module):
    """The trained part: projections, fusion, decoder, background vectors. Encoders stay outside, frozen.

    Args:
        features: length F of a feature of the dense image encoder.
        text: length D' of a vector of the text encoder.
        width: length D of the common space; 256 (the card).
        layers, heads: of the fusion; 2 and 8 (the card). 0 layers: prototypes are only put side by side.
        channels: of the decoder; 64 (the card).
        temperature: tau; 0.07 (the card).
        background: number Nb of learned background vectors; 5 [inferred].
        drop_visual, drop_text: share of training episodes that lose their pictures, or their words; 0.3 each (the card).
        dice: weight of the Dice term; 1 [inferred].
        separation: weight of the InfoNCE term; 0.1 [inferred].
        warmup: share of the training over which ``separation`` rises from 0.
        skip, use: of `ElasticDecoder`.

    Raises:
        BadInput: sizes or shares that make no model.
    """

    def __init__(
        self,
        features: int = 512,
        text: int = 512,
        *,
        width: int = 256,
        layers: int = 2,
        heads: int = 8,
        channels: int = 64,
        temperature: float = 0.07,
        background: int = 5,
        drop_visual: float = 0.3,
        drop_text: float = 0.3,
        dice: float = 1.0,
        separation: float = 0.1,
        warmup: float = 0.1,
        skip: bool = True,
        use: tuple[str, ...] = CHANNELS,
    ) -> None:
        super().__init__()
        if min(features, text, width, background) < 1 or layers < 0:
            raise BadInput(
                f"features={features}, text={text}, width={width}, background={background}, layers={layers}",
                where="MultiModalPrototypes",
                fix="Give sizes from 1, and 0 layers or more",
            )
        if not (drop_visual >= 0 and drop_text >= 0 and drop_visual + drop_text <= 1):
            raise BadInput(
                f"drop_visual={drop_visual}, drop_text={drop_text}",
                where="MultiModalPrototypes",
                fix="They are shares of the episodes; together at most 1",
            )
        if not (0 <= warmup <= 1 and dice >= 0 and separation >= 0):
            raise BadInput(
                f"warmup={warmup}, dice={dice}, separation={separation}",
                where="MultiModalPrototypes",
                fix="Give a share as warm-up, and weights of at least 0",
            )
        self.config = {
            "features": features,
            "text": text,
            "width": width,
            "layers": layers,
            "heads": heads,
            "channels": channels,
            "temperature": temperature,
            "background": background,
            "drop_visual": drop_visual,
            "drop_text": drop_text,
            "dice": dice,
            "separation": separation,
            "warmup": warmup,
            "skip": skip,
            "use": list(use),
        }
        self.visual_projection = nn.Linear(features, width, bias=False)
        self.text_projection = nn.Linear(text, width, bias=False)
        self.fusion = ComplementaryFusion(width, layers, heads) if layers else None
        self.decoder = ElasticDecoder(width, channels, temperature=temperature, skip=skip, use=tuple(use))
        self.background = nn.Parameter(torch.randn(background, width))
        self.drop_visual, self.drop_text = drop_visual, drop_text
        self.dice, self.separation, self.warmup = dice, separation, warmup
        self.register_buffer("progress", torch.tensor(1.0))

    def prototypes(self, clues: Clues) -> tuple[Tensor, Tensor]:
        """The fused prototypes of every class.

        Args:
            clues: of K classes.

        Returns:
            ``[B, K, n, D]`` and bool ``[B, K, n]``: first the textual, then the visual ones.
        """
        given = clues.text if clues.text is not None else clues.visual
        assert given is not None
        count, classes = given.shape[:2]
        empty = given.new_zeros(count, classes, 0)
        text = self._projected(clues.text, self.text_projection, "text", empty)
        visual = self._projected(clues.visual, self.visual_projection, "visual", empty)
        there = [
            _all(value, mask).flatten(0, 1) for value, mask in ((text, clues.text_mask), (visual, clues.visual_mask))
        ]
        text, visual = text.flatten(0, 1), visual.flatten(0, 1)
        if self.fusion is not None:
            text, visual = self.fusion(text, there[0], visual, there[1])
        shape = (count, classes)
        return torch.cat([text, visual], dim=1).unflatten(0, shape), torch.cat(there, dim=1).unflatten(0, shape)

    def backgrounds(self, clues: Clues) -> tuple[Tensor, Tensor]:
        """Background prototypes ``[B, Nb + G, D]`` and bool ``[B, Nb + G]``: the learned ones and those of the supports."""
        given = clues.text if clues.text is not None else clues.visual
        assert given is not None
        learned = self.background.expand(len(given), -1, -1)
        if clues.background is None:
            return learned, _all(learned, None)
        around = self._projected(clues.background, self.visual_projection, "background", learned[..., 0])
        there = [_all(learned, None), _all(around, clues.background_mask)]
        return torch.cat([learned, around], dim=1), torch.cat(there, dim=1)

    def forward(self, features: Tensor, clues: Clues, *, chunk: int | None = None) -> Tensor:
        """Logits of background and classes.

        Args:
            features: ``[B, F, H, W]`` of the dense encoder.
            clues: of K classes; of B pictures, or of one for all.
            chunk: classes decoded at once.

        Returns:
            ``[B, 1 + K, 4 H, 4 W]``, background first; -inf for classes without any clue.

        Raises:
            BadInput: shapes that do not fit.
        """
        prototypes, mask = self.prototypes(clues)
        return self.decode(features, prototypes, mask, *self.backgrounds(clues), chunk=chunk)

    def decode(
        self,
        features: Tensor,
        prototypes: Tensor,
        mask: Tensor,
        background: Tensor,
        background_mask: Tensor,
        *,
        chunk: int | None = None,
    ) -> Tensor:
        """The same from prototypes ``[B or 1, K, n, D]`` and background prototypes ``[B or 1, G, D]``."""
        seen, count = self.seen(features), len(features)
        if len(prototypes) not in (1, count):
            raise BadInput(
                f"clues of {len(prototypes)} pictures for {count} pictures",
                where="MultiModalPrototypes",
                fix="Give clues of each picture, or of one for all",
            )
        prototypes, mask = prototypes.expand(count, -1, -1, -1), mask.expand(count, -1, -1)
        background, there = background.expand(count, -1, -1)[:, None], background_mask.expand(count, -1)[:, None]
        ground = self.decoder(seen, background, there)
        if not prototypes.shape[1]:
            return ground
        return torch.cat([ground, self.decoder(seen, prototypes, mask, chunk=chunk)], dim=1)

    def losses(
        self, features: Tensor, clues: Clues, labels: Tensor, class_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss parts of a batch of episodes; their sum is the loss. In train mode modalities are dropped.

        Args:
            features: ``[B, F, H, W]``.
            clues: of B pictures.
            labels: int64 ``[B, h, w]``: 0 background, 1..K the classes of the clues, 255 not counted.
            class_ids: int64 ``[B, K]``: which class each is, so that one class of two episodes is no negative of itself.

        Raises:
            BadInput: shapes or labels that do not fit.
        """
        classes = clues.classes
        if labels.ndim != 3 or labels.is_floating_point() or len(labels) != len(features):
            raise BadInput(
                f"labels {tuple(labels.shape)} of type {labels.dtype} for {len(features)} pictures",
                where="losses",
                fix="Give class numbers [B, h, w]",
            )
        known = labels[labels != IGNORE]
        if known.numel() and (int(known.min()) < 0 or int(known.max()) > classes):
            raise BadInput(
                f"labels from {int(known.min())} to {int(known.max())} for {classes} classes",
                where="losses",
                fix="Give 0 for background, 1..K, and 255 for pixels that do not count",
            )
        if class_ids is not None and class_ids.shape != (len(features), classes):
            raise BadInput(
                f"class_ids {tuple(class_ids.shape)} of {len(features)} pictures and {classes} classes",
                where="losses",
                fix="Give [B, K]",
            )
        clues = self._dropped(clues)
        prototypes, mask = self.prototypes(clues)
        logits = self.decode(features, prototypes, mask, *self.backgrounds(clues))
        logits = functional.interpolate(
            logits.masked_fill(logits.isneginf(), -1e4), size=labels.shape[1:], mode="bilinear", align_corners=False
        )
        valid = labels != IGNORE
        safe = labels.masked_fill(~valid, 0)
        entropy = functional.cross_entropy(logits, safe, reduction="none")
        parts = {"cross_entropy": (entropy * valid).sum() / valid.sum().clamp(min=1)}
        one_hot = functional.one_hot(safe, classes + 1).permute(0, 3, 1, 2).to(logits.dtype) * valid[:, None]
        if self.dice:
            parts["dice"] = self.dice * dice_loss(logits.softmax(dim=1) * valid[:, None], one_hot)[:, 1:].mean()
        if self.separation:
            weight = self.separation * min(
                1.0, float(self.get_buffer("progress")) / self.warmup if self.warmup else 1.0
            )
            parts["separation"] = weight * self._separation(features, one_hot[:, 1:], prototypes, mask, class_ids)
        return parts

    def similarities(self, features: Tensor, clues: Clues) -> Tensor:
        """Where every fused prototype looks, for inspection: cosines ``[B, K, n, H, W]``, textual prototypes first.

        Missing prototypes have NaN, so that nobody reads them.

        Args:
            features: ``[B, F, H, W]``.
            clues: of B pictures, or of one for all.
        """
        prototypes, mask = self.prototypes(clues)
        prototypes, mask = prototypes.expand(len(features), -1, -1, -1), mask.expand(len(features), -1, -1)
        found = self.decoder.similarities(self.seen(features), prototypes) * self.decoder.temperature
        return found.masked_fill(~mask[..., None], torch.nan).unflatten(-1, tuple(features.shape[2:]))

    def on_progress(self, step: int, steps: int) -> None:
        """Tells how far training has come: the separation term rises over the first ``warmup`` of it."""
        self.get_buffer("progress").fill_(step / max(1, steps))

    def seen(self, features: Tensor) -> Tensor:
        """Features in the common space, of length sqrt(D) like the prototypes: ``[B, D, H, W]``.

        Raises:
            BadInput: features of another shape than ``[B, F, H, W]``.
        """
        size = self.visual_projection.in_features
        if features.ndim != 4 or features.shape[1] != size:
            raise BadInput(
                f"features {tuple(features.shape)}, expected [B, {size}, H, W]",
                where="MultiModalPrototypes",
                fix="Give those of the encoder that the model was made for",
            )
        found = self.visual_projection(features.movedim(1, -1)).movedim(-1, 1)
        return functional.normalize(found, dim=1) * found.shape[1] ** 0.5

    def _projected(self, value: Tensor | None, projection: nn.Linear, name: str, empty: Tensor) -> Tensor:
        """Projected to the common space, every vector of length sqrt(D), so that no modality outweighs the other."""
        width = projection.out_features
        if value is None:
            return empty.new_zeros(*empty.shape[:2], 0, width)
        if value.shape[-1] != projection.in_features:
            raise BadInput(
                f"{name} clues have {value.shape[-1]} numbers, expected {projection.in_features}",
                where="MultiModalPrototypes",
                fix="Give vectors of the encoders that the model was made for",
            )
        return functional.normalize(projection(value), dim=-1) * width**0.5

    def _dropped(self, clues: Clues) -> Clues:
        """In training, some episodes lose their pictures or their words, so that one network serves every setting.

        An episode keeps what its classes could not do without.
        """
        if not self.training or clues.text is None or clues.visual is None:
            return clues
        text, visual = _all(clues.text, clues.text_mask), _all(clues.visual, clues.visual_mask)
        drawn = torch.rand(len(text), device=text.device)
        lost = drawn < self.drop_visual
        no_visual = lost & text.any(dim=2).all(dim=1)
        no_text = ~lost & (drawn < self.drop_visual + self.drop_text) & visual.any(dim=2).all(dim=1)
        around = None
        if clues.background is not None:
            around = _all(clues.background, clues.background_mask) & ~no_visual[:, None]
        return replace(
            clues,
            text_mask=text & ~no_text[:, None, None],
            visual_mask=visual & ~no_visual[:, None, None],
            background_mask=around,
        )

    def _separation(
        self, features: Tensor, truth: Tensor, prototypes: Tensor, mask: Tensor, class_ids: Tensor | None
    ) -> Tensor:
        """InfoNCE between the mean feature of every class in its picture and the mean of its prototypes."""
        cover = to_grid(truth, (features.shape[2], features.shape[3]))
        area = cover.sum(dim=(2, 3))
        unit = functional.normalize(self.seen(features), dim=1)
        means = torch.einsum("bdhw,bkhw->bkd", unit, cover) / area.clamp(min=1e-6)[..., None]
        rows = functional.normalize(prototypes, dim=-1).masked_fill(~mask[..., None], 0.0)
        centers = rows.sum(dim=2) / mask.sum(dim=2).clamp(min=1)[..., None]
        there = mask.any(dim=2)
        seen = (area > 0) & there
        if not bool(seen.any()):
            return features.new_zeros(()) + 0.0 * self.background.sum()
        ids = torch.arange(seen.numel(), device=seen.device).reshape(seen.shape) if class_ids is None else class_ids
        found = info_nce(
            functional.normalize(means[seen], dim=-1),
            functional.normalize(centers[there], dim=-1),
            scale=1 / self.decoder.temperature,
            groups=(ids[seen], ids[there]),
            directions="a",
        )
        return found["a_to_b"]


def dice_loss(shares: Tensor, truth: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - Dice of every picture and class: ``[B, K, h, w]`` twice -> ``[B, K]``; ``smooth`` pixels keep empty ones defined."""
    both = (shares * truth).sum(dim=(2, 3))
    return 1 - (2 * both + smooth) / (shares.sum(dim=(2, 3)) + truth.sum(dim=(2, 3)) + smooth)


def _all(value: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device) if mask is None else mask.bool()

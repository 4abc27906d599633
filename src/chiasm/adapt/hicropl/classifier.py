"""`PromptedClassifier`: classes named in words, pictures classified with prompts, anchored to the frozen model.

    f = norm( norm(prompted image) + f0 ),   t[c] = norm( norm(prompted class c) + t0[c] ),   logits = exp(scale) f t^T
    L = CE(logits, y) + lambda [ (1 - mean_c cos(t[c], t0[c])) + (1 - mean_b cos(f[b], f0[b])) ]

f0 is the frozen model's own image vector, t0[c] the mean of its vectors of sentences about class c. HiCroPL (ICCV 2025, arXiv
2507.14976).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.adapt.descriptions import Descriptions, describe
from chiasm.adapt.descriptions import Source as DescriptionSource
from chiasm.adapt.hicropl.adapter import HiCroPL
from chiasm.blocks.deep_prompts import SUPPORTED, encode_images, encode_text, tower_sizes
from chiasm.blocks.prompts import dual_encoder
from chiasm.errors import BadInput

# Weight of the two distances to the frozen model, from the paper's configurations.
DISTILL = 12.0


class PromptedClassifier(nn.Module):
    """A classifier of pictures over a list of class names; it trains with `transformers.Trainer` (see `tune`).

    Only the adapter's parameters are its own: the model is neither in its parameters nor in its state dict.

    Args:
        adapter: the prompts; its parameters are made here if they are not there yet. It need not be attached.
        model: a two-tower model, see `chiasm.blocks.deep_prompts.tower_sizes`. It stays as it is.
        tokenizer: of the model; called with a list of texts.
        classes: C class names, C >= 1. With one class every picture belongs to it.
        descriptions: what `chiasm.adapt.descriptions.describe` takes; default templates ("a photo of a NAME.").
        sentence: what the text tower reads behind the prompts, with ``{}`` for the name; "NAME." as in the paper's code.
        distill: weight lambda of the distances to the frozen model; 12.
        mix: average prompted and frozen vectors; False: prompted ones alone (ablation).
        classes_per_step: in training, compare with at most so many classes, those of the batch among them; None for all.
        class_chunk: classes that the text tower reads at once; None for all.
        checkpoint: keep no activations of the text tower for the backward pass; with ``class_chunk`` memory is that of one chunk.
        seed: of the classes that are drawn with ``classes_per_step``.

    Raises:
        UnknownName: an architecture that is not supported.
        BadInput: class lists that are empty or name a class twice, names too long for the context beside the prompts.
    """

    ids: Tensor
    mask: Tensor | None
    frozen_text: Tensor

    def __init__(
        self,
        adapter: HiCroPL,
        model: Any,
        tokenizer: Any,
        classes: Sequence[str],
        descriptions: DescriptionSource | Descriptions | None = None,
        *,
        sentence: str = "{}.",
        distill: float = DISTILL,
        mix: bool = True,
        classes_per_step: int | None = None,
        class_chunk: int | None = None,
        checkpoint: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sentence.count("{}") != 1:
            raise BadInput(
                f"{sentence!r} has not exactly one {{}}", where="PromptedClassifier", fix="Give for example '{}.'"
            )
        if not callable(tokenizer):
            raise BadInput(
                f"a {type(tokenizer).__name__} is no tokenizer",
                where="PromptedClassifier",
                fix="Give that of the model",
            )
        for name, value in (("classes_per_step", classes_per_step), ("class_chunk", class_chunk)):
            if value is not None and value < 1:
                raise BadInput(f"{name} {value}", where="PromptedClassifier", fix="Give at least 1, or None")
        network = dual_encoder(model, SUPPORTED)
        self.adapter = adapter.build(network, tokenizer)
        # Hidden in a list, the model is no part of parameters and state dict.
        self._model = [network]
        self.tokenizer: Any = tokenizer
        self.sentence = sentence
        self.distill, self.mix = distill, mix
        self.classes_per_step, self.class_chunk, self.checkpoint, self.seed = (
            classes_per_step,
            class_chunk,
            checkpoint,
            seed,
        )
        self._generator = torch.Generator().manual_seed(seed)
        self.descriptions = descriptions if isinstance(descriptions, Descriptions) else describe(classes, descriptions)
        self.classes = tuple(str(name) for name in classes)
        if set(self.classes) - set(self.descriptions):
            missing = sorted(set(self.classes) - set(self.descriptions))
            raise BadInput(
                f"no description of {missing[0]!r}",
                where="PromptedClassifier",
                fix="Describe it, or leave descriptions out",
            )
        said = [sentence.replace("{}", name.replace("_", " ")) for name in self.classes]
        tokens = self._tokens(said)
        self.register_buffer("ids", tokens["input_ids"], persistent=False)
        self.register_buffer("mask", tokens.get("attention_mask"), persistent=False)
        self.register_buffer("frozen_text", self._frozen_text(), persistent=False)
        self._check_room(said)

    @property
    def model(self) -> Any:
        """The frozen two-tower model."""
        return self._model[0]

    @property
    def scale(self) -> float:
        """The inverse temperature, the frozen model's own."""
        return float(self.model.logit_scale.detach().exp())

    def with_classes(self, classes: Sequence[str], descriptions: Any = None) -> PromptedClassifier:
        """The same prompts for other classes: how novel classes are classified.

        Args:
            classes: their names.
            descriptions: as of the constructor.
        """
        return PromptedClassifier(
            self.adapter,
            self.model,
            self.tokenizer,
            classes,
            descriptions,
            sentence=self.sentence,
            distill=self.distill,
            mix=self.mix,
            classes_per_step=self.classes_per_step,
            class_chunk=self.class_chunk,
            checkpoint=self.checkpoint,
            seed=self.seed,
        )

    # ---- vectors

    def frozen_images(self, pixel_values: Tensor) -> Tensor:
        """f0: the frozen model's own unit vectors ``[B, D]``."""
        with torch.no_grad():
            return self._seen(pixel_values, [])

    def images(self, pixel_values: Tensor, frozen_images: Tensor | None = None) -> Tensor:
        """f: unit vectors ``[B, D]``.

        Args:
            pixel_values: ``[B, 3, H, W]`` as the model's own.
            frozen_images: f0, if it is known already.
        """
        prompts = self.adapter.vision_prompts()
        own = frozen_images
        if own is None and (self.mix or not prompts):
            own = self.frozen_images(pixel_values)
        if own is not None and not prompts:
            return own  # nothing is put into this tower: no second pass, and the average is f0 itself
        seen = self._seen(pixel_values, prompts)
        return functional.normalize(seen + own, dim=-1) if self.mix and own is not None else seen

    def texts(self, rows: Tensor | None = None) -> Tensor:
        """t: unit vectors ``[C, D]`` of the classes, or of some of them."""
        prompts = self.adapter.text_prompts()
        rows = torch.arange(len(self.classes), device=self.ids.device) if rows is None else rows
        read = []
        options = {"freeze": True, "checkpoint": self.checkpoint}
        for part in rows.split(self.class_chunk or len(rows)):
            mask = None if self.mask is None else self.mask[part]
            read.append(encode_text(self.model, self.ids[part], prompts, mask, **options))
        said = functional.normalize(torch.cat(read), dim=-1)
        return functional.normalize(said + self.frozen_text[rows], dim=-1) if self.mix else said

    def _seen(self, pixel_values: Tensor, prompts: list[Tensor]) -> Tensor:
        if torch.is_tensor(pixel_values):
            pixel_values = pixel_values.to(next(self.model.parameters()).device)
        return functional.normalize(encode_images(self.model, pixel_values, prompts, freeze=True), dim=-1)

    # ---- classification

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, frozen_images: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits, and with labels the loss and its parts.

        Args:
            pixel_values: ``[B, 3, H, W]``.
            labels: int64 ``[B]``, numbers of classes.
            frozen_images: f0 ``[B, D]``, if it is known already (no augmentation: computed once for all epochs).

        Returns:
            ``logits`` ``[B, C]`` (``[B, C']`` of the drawn classes in training with ``classes_per_step``); with labels also
            ``loss`` and its parts ``cross_entropy``, ``text_distance`` and ``image_distance`` (weighted; they sum to it).

        Raises:
            BadInput: labels of another length, no whole numbers, or outside 0 .. C-1; pictures of another size than the model's.
        """
        if labels is not None and (labels.shape != pixel_values.shape[:1] or labels.is_floating_point()):
            raise BadInput(
                f"labels {tuple(labels.shape)} of {labels.dtype} for pictures {tuple(pixel_values.shape)}",
                where="PromptedClassifier",
                fix="Give int64 [B]",
            )
        rows, target = self._compared(labels)
        own = self.frozen_images(pixel_values) if frozen_images is None else frozen_images
        images, texts = self.images(pixel_values, own), self.texts(rows)
        logits = self.scale * images @ texts.T
        if target is None:
            return {"logits": logits}
        known = self.frozen_text if rows is None else self.frozen_text[rows]
        parts = {
            "cross_entropy": functional.cross_entropy(logits, target),
            "text_distance": self.distill * (1 - (texts * known).sum(-1).mean()),
            "image_distance": self.distill * (1 - (images * own).sum(-1).mean()),
        }
        return {"loss": torch.stack(list(parts.values())).sum(), "logits": logits, **parts}

    @torch.no_grad()
    def logits(self, pixel_values: Tensor, frozen_images: Tensor | None = None, *, batch_size: int = 256) -> Tensor:
        """Logits ``[N, C]`` over all classes; class vectors are computed once, whatever N is.

        Args:
            pixel_values: ``[N, 3, H, W]``.
            frozen_images: f0 ``[N, D]``, if it is known already (the same pictures with several prompts or class lists).
            batch_size: pictures at once; it does not change the result.

        Raises:
            BadInput: pictures of another size than the model's, or frozen vectors of another shape.
        """
        if batch_size < 1:
            raise BadInput(f"batch_size {batch_size}", where="PromptedClassifier", fix="Give at least 1")
        wanted = len(pixel_values), self.frozen_text.shape[1]
        if frozen_images is not None and tuple(frozen_images.shape) != wanted:
            raise BadInput(
                f"frozen vectors {tuple(frozen_images.shape)}, expected {wanted}",
                where="PromptedClassifier",
                fix="Give frozen_images(pixel_values) of the same pictures",
            )
        texts, parts = self.texts(), []
        for start in range(0, len(pixel_values), batch_size):
            part = slice(start, start + batch_size)
            own = None if frozen_images is None else frozen_images[part]
            parts.append(self.scale * self.images(pixel_values[part], own) @ texts.T)
        return torch.cat(parts) if parts else texts.new_zeros((0, len(self.classes)))

    def predict(self, pixel_values: Tensor, frozen_images: Tensor | None = None, *, batch_size: int = 256) -> Tensor:
        """Numbers of the classes, int64 ``[N]``; arguments as of `logits`."""
        return self.logits(pixel_values, frozen_images, batch_size=batch_size).argmax(1)

    def predict_proba(
        self, pixel_values: Tensor, frozen_images: Tensor | None = None, *, batch_size: int = 256
    ) -> Tensor:
        """Probabilities ``[N, C]``; arguments as of `logits`."""
        return self.logits(pixel_values, frozen_images, batch_size=batch_size).softmax(1)

    def _compared(self, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Which classes a step compares with (None: all), and the labels among them."""
        if labels is None:
            return None, None
        count = len(self.classes)
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= count):
            raise BadInput(
                f"labels from {int(labels.min())} to {int(labels.max())} for {count} classes",
                where="PromptedClassifier",
                fix="Number the classes from 0 on",
            )
        if not self.training or self.classes_per_step is None or self.classes_per_step >= count:
            return None, labels
        present, target = labels.unique(return_inverse=True)
        others = torch.ones(count, dtype=torch.bool)
        others[present.cpu()] = False
        free = others.nonzero()[:, 0]
        more = free[torch.randperm(len(free), generator=self._generator)][
            : max(0, self.classes_per_step - len(present))
        ]
        return torch.cat([present, more.to(present.device)]), target

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        kind = self.model.config.model_type
        # SigLIP was trained on texts padded to its context, and reads its vector at the last place.
        padding = "max_length" if kind == "siglip" else True
        longest = self.model.config.text_config.max_position_embeddings if kind == "siglip" else None
        found = self.tokenizer(list(texts), padding=padding, max_length=longest, return_tensors="pt")
        context = tower_sizes(self.model).context
        if found["input_ids"].shape[1] > context:
            raise BadInput(
                f"{max(texts, key=len)!r} is longer than the context of {context} tokens",
                where="PromptedClassifier",
                fix="Shorten the name or description",
            )
        device = next(self.model.parameters()).device
        return {k: v.to(device) for k, v in found.items() if k in ("input_ids", "attention_mask")}

    def _check_room(self, said: Sequence[str]) -> None:
        """Names that have no room beside the prompts are refused now, and named, not in the first step of training."""
        try:
            with torch.no_grad():
                self.texts()
        except BadInput as error:
            longest = max(said, key=len)
            raise BadInput(
                f"{error.what} (longest class sentence: {longest!r})", where=error.where, fix=error.fix
            ) from None

    @torch.no_grad()
    def _frozen_text(self) -> Tensor:
        """t0 ``[C, D]``: the mean of the frozen vectors of each class's sentences."""
        chosen = Descriptions({name: self.descriptions[name] for name in self.classes})
        texts, owners = chosen.flat()
        rows = []
        for start in range(0, len(texts), 256):
            tokens = self._tokens(texts[start : start + 256])
            mask = tokens.get("attention_mask")
            rows.append(encode_text(self.model, tokens["input_ids"], [], mask, freeze=True))
        unit = functional.normalize(torch.cat(rows), dim=-1)
        total = unit.new_zeros(len(chosen), unit.shape[1]).index_add_(0, torch.tensor(owners, device=unit.device), unit)
        return functional.normalize(total, dim=-1)

"""Dense image encoders: pictures in, a raster of features out. A Hugging Face CLIP of any size, or a small convolutional one.

>>> encoder = ClipEncoder(CLIPModel.from_pretrained(...), tokenizer)
>>> encoder.pictures(pixel_values)       # [N, D, H, W]: patch tokens in the joint space
>>> encoder.texts(["a photo of a cat."])  # [N, D]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput
from chiasm.learn.fitting import fit_module


class ClipEncoder:
    """Both towers of a CLIP model, frozen: patch tokens in the joint space, and text vectors.

    Nothing trains the last layer's output at the patches: the loss sees the class token only, which reads their *values*. So
    a patch is by default represented by what it would give to the class token, the projected value of the last attention
    (MaskCLIP, Zhou and others 2022, arXiv 2112.01071).

    CLIP has read about every thing that has a name: classes that are "novel" to the segmenter are not novel to it.

    Args:
        model: `transformers.CLIPModel`, or one built like it (vision_model, visual_projection, get_text_features).
        tokenizer: callable of a list of texts that gives ``input_ids`` and ``attention_mask`` tensors.
        batch: pictures or texts at once.
        values: False for the output of the last layer instead of the values.

    Raises:
        BadInput: a model of another kind.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, batch: int = 32, values: bool = True) -> None:
        needed = ("vision_model", "visual_projection", "get_text_features")
        if not all(hasattr(model, name) for name in needed):
            raise BadInput(
                f"a {type(model).__name__} has no patch tokens in a joint space",
                where="ClipEncoder",
                fix="Give a CLIPModel, or any callable of your own as dense encoder",
            )
        self.model, self.tokenizer, self.batch, self.values = model.eval(), tokenizer, batch, values

    @torch.no_grad()
    def pictures(self, pixel_values: Tensor) -> Tensor:
        """Pixel values ``[N, 3, h, w]`` -> features ``[N, D, h / patch, w / patch]``.

        Other sizes than the model's own are read with interpolated positions.

        Raises:
            BadInput: no pictures, or sides that are no multiple of the patch.
        """
        patch = int(self.model.config.vision_config.patch_size)
        if pixel_values.ndim != 4 or not len(pixel_values) or any(side % patch for side in pixel_values.shape[2:]):
            raise BadInput(
                f"pictures {tuple(pixel_values.shape)}",
                where="ClipEncoder",
                fix=f"Give [N, 3, h, w] with sides that are multiples of {patch}",
            )
        height, wide = (side // patch for side in pixel_values.shape[2:])
        own = int(self.model.config.vision_config.image_size)
        other = {} if tuple(pixel_values.shape[2:]) == (own, own) else {"interpolate_pos_encoding": True}
        vision = self.model.vision_model
        found = []
        for part in pixel_values.split(self.batch):
            out = vision(pixel_values=part, output_hidden_states=self.values, **other)
            tokens = out.last_hidden_state
            if self.values:
                layer = vision.encoder.layers[-1]
                tokens = layer.self_attn.v_proj(layer.layer_norm1(out.hidden_states[-2]))
                tokens = layer.self_attn.out_proj(tokens)
            tokens = self.model.visual_projection(vision.post_layernorm(tokens[:, 1:]))
            found.append(functional.normalize(tokens, dim=-1).transpose(1, 2).unflatten(2, (height, wide)))
        return torch.cat(found)

    @torch.no_grad()
    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> unit vectors ``[N, D]``; longer ones than the context are cut.

        Raises:
            BadInput: no tokenizer.
        """
        if self.tokenizer is None:
            raise BadInput("no tokenizer", where="ClipEncoder", fix="Give the model's tokenizer")
        context = int(self.model.config.text_config.max_position_embeddings)
        found = []
        for start in range(0, len(sentences), self.batch):
            tokens = self.tokenizer(
                list(sentences[start : start + self.batch]),
                padding=True,
                truncation=True,
                max_length=context,
                return_tensors="pt",
            )
            vectors = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            found.append(functional.normalize(getattr(vectors, "pooler_output", vectors), dim=-1))
        return torch.cat(found)


class ConvEncoder(nn.Module):
    """Four convolutions with stride 4: a dense encoder that trains in seconds.

    Args:
        width: length of a feature.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = [(3, 32, 2), (32, 48, 2), (48, 64, 1), (64, width, 1)]
        layers: list[nn.Module] = []
        for size, out, stride in sizes:
            # GroupNorm: batch statistics would leak what else is in a batch.
            layers += [nn.Conv2d(size, out, 3, stride, 1), nn.GroupNorm(8 if out % 8 == 0 else 1, out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[N, 3, h, w]`` -> ``[N, width, h / 4, w / 4]``."""
        return self.layers(pixel_values)

    @torch.no_grad()
    def encode(self, pixel_values: Tensor, batch: int = 128) -> Tensor:
        """The same in batches, without a gradient."""
        self.eval()
        return torch.cat([self(part) for part in pixel_values.split(batch)])


class _PixelClassifier(nn.Module):
    """A dense encoder with a linear classifier of its features; what `pretrain` trains."""

    def __init__(self, encoder: ConvEncoder, width: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Conv2d(width, classes, 1)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.encoder(pixel_values))
        # The label in the middle of every cell: a raster of all pixels times all classes would cost more than the network.
        middle = functional.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest-exact")[:, 0]
        return {"loss": functional.cross_entropy(logits, middle.long(), ignore_index=255)}


class Rows(torch.utils.data.Dataset):
    """Tensors of equal length as the rows that `transformers.Trainer` draws."""

    def __init__(self, **values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: value[row] for name, value in self.values.items()}


def pretrain(
    pixel_values: Tensor,
    labels: Tensor,
    *,
    width: int = 64,
    epochs: float = 10,
    batch_size: int = 32,
    rate: float = 3e-3,
    seed: int = 0,
) -> ConvEncoder:
    """A `ConvEncoder` trained to tell the class in the middle of every cell.

    Give it no picture that shows a novel class: an unlabelled one would be learned as background.

    Args:
        pixel_values: ``[N, 3, h, w]``.
        labels: int64 ``[N, h, w]``: 0 background, then the base classes; 255 does not count.
        width, epochs, batch_size, rate, seed: of the training.

    Raises:
        BadInput: labels that do not fit the pictures, are outside 0 .. 255, or name no class.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    fits = labels.ndim == 3 and pixel_values.ndim == 4 and labels.shape == pixel_values[:, 0].shape
    known = labels[labels != 255]
    if not fits or not known.numel() or int(known.min()) < 0 or not 0 < int(known.max()) < 255:
        raise BadInput(
            f"labels {tuple(labels.shape)} for pictures {tuple(pixel_values.shape)}"
            + (f", classes {int(known.min())} to {int(known.max())}" if known.numel() else ", nothing labelled"),
            where="pretrain",
            fix="Give [N, h, w] of the pictures' size: 0 background, at least one class from 1 to 254, 255 unlabelled",
        )
    torch.manual_seed(seed)
    encoder = ConvEncoder(width)
    classes = int(known.max()) + 1
    run_trainer(
        _PixelClassifier(encoder, width, classes),
        Rows(pixel_values=pixel_values, labels=labels),
        rate=rate,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        schedule="cosine",
    )
    return encoder.eval()


def run_trainer(
    module: nn.Module,
    rows: torch.utils.data.Dataset,
    *,
    rate: float,
    batch_size: int,
    seed: int,
    epochs: float = 1,
    weight_decay: float = 0.01,
    schedule: str = "polynomial",
    callbacks: Sequence[Any] = (),
    progress: bool = False,
) -> list[dict[str, float]]:
    """Trains with `transformers.Trainer` what returns ``{"loss": ...}``; the history of the loss comes back.

    Raises:
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    state = fit_module(
        module,
        rows,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        callbacks=callbacks,
        progress=progress,
        learning_rate=rate,
        warmup_steps=0.05,
        weight_decay=weight_decay,
        lr_scheduler_type=schedule,
        logging_steps=20,
    )
    return [
        {"step": float(entry["step"]), "loss": float(entry["loss"])} for entry in state.log_history if "loss" in entry
    ]


def labels_tensor(labels: np.ndarray | Tensor) -> Tensor:
    """Labels of any integer kind as int64.

    Raises:
        BadInput: labels that are no whole numbers.
    """
    found = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    if found.is_floating_point():
        raise BadInput(f"labels of type {found.dtype}", where="labels", fix="Give class numbers")
    return found.long()

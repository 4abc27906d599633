"""The parts of a LLaVA-like model that image tokens pass: encoder, projector, language model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.blocks.attention import own_implementation
from chiasm.compress.flops import stack_flops
from chiasm.compress.visiondrop.sequence import causal_mask
from chiasm.errors import BadInput, UnknownName

# Values of `config.model_type`. Encoders may be CLIP- or SigLIP-like, language models Llama-like (Llama, Mistral, Qwen, ...).
SUPPORTED = ("llava",)


@dataclass(frozen=True)
class Parts:
    """What is hooked.

    Args:
        outer: the model that was given (with its head), `inner` the one below it.
        tower: the vision encoder; ``read`` its layer whose output becomes the image tokens.
        projector: from the encoder's width into the language model's.
        language: the language model; ``layers`` its blocks.
        patches: visual tokens of a picture, class token not counted.
        has_class: the encoder has a class token.
        image_token: id of the placeholder.
    """

    outer: Any
    inner: Any
    tower: Any
    read: Any
    projector: Any
    language: Any
    layers: list[Any]
    patches: int
    has_class: bool
    image_token: int

    def places(self, ids: Tensor | None, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ids ``[B, T]``, and item int64 ``[I]`` and columns int64 ``[I, M]`` of each picture's placeholders in them.

        Raises:
            BadInput: there are no ids, or the placeholders do not belong to that many pictures.
        """
        if ids is None:
            raise BadInput(
                "needs input_ids to know where the pictures are",
                where="VisionDrop",
                fix="Give ids instead of inputs_embeds",
            )
        here = ids == self.image_token
        if int(here.sum()) != images * self.patches or bool((here.sum(dim=1) % self.patches).any()):
            raise BadInput(
                f"{int(here.sum())} image tokens for {images} pictures of {self.patches}",
                where="VisionDrop",
                fix="Give the inputs as the model's processor makes them",
            )
        found = here.nonzero().view(images, self.patches, 2)
        return ids, found[:, 0, 0], found[:, :, 1]

    def mask(self, valid: Tensor, hidden: Tensor) -> Tensor | None:
        """The causal mask of states ``hidden`` ``[B, q, D]`` behind keys ``valid`` bool ``[B, T]``, as the model's function takes it."""
        eager = own_implementation(self.language.config) == "eager"
        visible = causal_mask(valid, hidden.shape[1], explicit=eager)
        if visible is None or not eager:
            return visible
        return torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~visible, -torch.inf)

    def prefill_flops(self, left: Sequence[int], text: int, images: int) -> tuple[int, int]:
        """FLOPs of the language model whole, and with ``left`` visual tokens a picture in each layer (scoring included)."""
        if text < 0 or images < 0:
            raise BadInput(f"{text} words and {images} pictures", where="VisionDrop.flops", fix="Give numbers from 0")
        width, inner = self.language.config.hidden_size, self.language.config.intermediate_size
        counts = [text + images * m for m in left]
        whole = [text + images * self.patches] * len(left)
        scoring = 0
        for before, after, total in zip(left, left[1:], counts):
            if after < before:
                scoring += 2 * (3 * total * width * width + images * before * total * width)
        gated = hasattr(self.layers[0].mlp, "gate_proj")
        full, less = (stack_flops(t, t, width, inner, gated=gated) for t in (whole, counts))
        return full, less + scoring


def parts_of(model: Any) -> Parts:
    """The parts of a model.

    Raises:
        UnknownName: another architecture; the message names those that work.
        BadInput: features of several vision layers, or an attention function that takes no masks.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    inner = getattr(model, "model", model)
    needed = ("vision_tower", "multi_modal_projector", "language_model", "get_image_features")
    if kind not in SUPPORTED or not all(hasattr(inner, name) for name in needed):
        raise UnknownName(
            f"no visual tokens to drop in the architecture {kind!r} ({type(model).__name__})",
            where="VisionDrop.attach",
            fix=f"It works on {', '.join(SUPPORTED)} models of transformers, with CLIP- or SigLIP-like vision encoders",
        )
    read = model.config.vision_feature_layer
    if not isinstance(read, int):
        raise BadInput(
            f"reads the vision layers {list(read)} at once",
            where="VisionDrop.attach",
            fix="Set config.vision_feature_layer to one layer",
        )
    tower, language = inner.vision_tower, inner.language_model
    if not hasattr(language, "layers") or not hasattr(language, "rotary_emb"):
        raise UnknownName(
            f"no rotary decoder layers in {type(language).__name__}",
            where="VisionDrop.attach",
            fix="It works with Llama-like language models",
        )
    implementation = own_implementation(language.config)
    if implementation not in ("sdpa", "eager"):
        raise BadInput(
            f"the language model uses the attention function {implementation!r}",
            where="VisionDrop.attach",
            fix="Load it with attn_implementation='sdpa' or 'eager'",
        )
    root = getattr(tower, "vision_model", tower)
    if not hasattr(getattr(root, "encoder", None), "layers") or not hasattr(root.embeddings, "position_embedding"):
        raise UnknownName(
            f"no supported layers in the vision encoder {type(root).__name__}",
            where="VisionDrop.attach",
            fix="It works with CLIP- or SigLIP-like vision encoders",
        )
    has_class = hasattr(root.embeddings, "class_embedding")
    strategy = model.config.vision_feature_select_strategy
    if (strategy == "default") != has_class:
        raise BadInput(
            f"vision_feature_select_strategy={strategy!r} with an encoder {'with' if has_class else 'without'} class token",
            where="VisionDrop.attach",
            fix=f"Set it to {'default' if has_class else 'full'!r}",
        )
    layers = list(root.encoder.layers)
    at = read - 1 if read >= 0 else len(layers) + read
    if not 0 <= at < len(layers):
        raise BadInput(
            f"vision_feature_layer={read} of {len(layers)} layers",
            where="VisionDrop.attach",
            fix=f"Set it to -{len(layers)} to -1, or 1 to {len(layers)}",
        )
    patches = int(root.embeddings.position_embedding.weight.shape[0]) - int(has_class)
    return Parts(
        model,
        inner,
        tower,
        layers[at],
        inner.multi_modal_projector,
        language,
        list(language.layers),
        patches,
        has_class,
        int(model.config.image_token_id),
    )


def called_with(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    names = [name for name in inspect.signature(module.forward).parameters if name != "kwargs"]
    return dict(zip(names, args)) | kwargs


def pixels_in(pixels: Tensor) -> int:
    """Number of pictures in pixels ``[I, 3, H, W]``.

    Raises:
        BadInput: another number of axes.
    """
    if pixels.ndim != 4:
        raise BadInput(f"pixel_values of shape {tuple(pixels.shape)}", where="VisionDrop", fix="Give [I, 3, H, W]")
    return len(pixels)


def valid_tokens(mask: Tensor | None, ids: Tensor) -> Tensor:
    """bool ``[B, T]``, False at padding.

    Raises:
        BadInput: a mask of another shape than the ids.
    """
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != ids.shape:
        raise BadInput(
            f"a mask {tuple(mask.shape)} for ids {tuple(ids.shape)}",
            where="VisionDrop",
            fix="Give a mask [B, T], and use a dynamic cache, not a static one",
        )
    return mask.bool()


def image_tokens(encoded: Any) -> Tensor:
    """The image tokens ``[I, M, D]`` that the projector gave.

    Raises:
        BadInput: NaN or infinite values.
    """
    found = encoded.pooler_output
    found = found if torch.is_tensor(found) else torch.stack(list(found))
    if not bool(torch.isfinite(found).all()):
        raise BadInput("image tokens hold NaN or infinite values", where="VisionDrop", fix="Look at pixel_values")
    return found


def refuse_labels(_outer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    """A hook: labels would not fit the logits."""
    if kwargs.get("labels") is not None:
        raise BadInput(
            "is for inference: there are fewer logits than labels",
            where="VisionDrop",
            fix="Call the model without labels, and compare with VisionDrop.cut(labels)",
        )

"""Token and patch vectors of a model, in the space of its sentence vectors, for late interaction and dense vision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chiasm.errors import UnsupportedModality

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FIX = "Encode without tokens=True, or use a BERT-, CLIP- or SigLIP-like model"


def token_vectors(model: SentenceTransformer, features: dict[str, Any], route: str, role: str) -> tuple[Tensor, Tensor]:
    """The vectors before pooling, each projected as the pooled one is.

    Text models with a pooling layer give their ``token_embeddings``. CLIP gives its text tokens through
    ``text_projection`` and its patches through ``post_layernorm`` and ``visual_projection`` (the class token is left
    out); SigLIP, whose vision head pools by attention and has no linear projection, gives the normalized patches.

    Args:
        model: the model.
        features: what ``model.preprocess`` returned, on the model's device.
        route: ``"text"``, ``"image"`` or ``"audio"``.
        role: ``"document"`` or ``"query"``.

    Returns:
        Tokens float ``[N, L, D]`` of unit length and a mask bool ``[N, L]``.

    Raises:
        UnsupportedModality: the model gives none for this modality.
    """
    network = getattr(model[0], "model", None)
    if route == "image" and isinstance(getattr(network, "vision_model", None), nn.Module):
        tokens = _patches(network, features)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        given = features.get("pixel_attention_mask")  # pictures of varying size (SigLIP 2)
        if given is not None and given.shape == mask.shape:
            mask = given.bool()
    elif route == "text" and isinstance(getattr(network, "text_model", None), nn.Module):
        tokens, mask = _clip_words(network, features)
    else:
        out = model(features, task=role)
        tokens, mask = out.get("token_embeddings"), out.get("attention_mask")
        if tokens is None or mask is None or mask.shape != tokens.shape[:2]:
            raise UnsupportedModality(f"the model gives no token vectors for {route}", fix=FIX)
        mask = mask.bool()
    return nn.functional.normalize(tokens.float(), dim=-1) * mask.unsqueeze(-1), mask


def _patches(network: Any, features: dict[str, Any]) -> Tensor:
    inputs = {k: v for k, v in features.items() if k in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    if "pixel_attention_mask" in inputs:
        inputs["attention_mask"] = inputs.pop("pixel_attention_mask")
    hidden = network.vision_model(**inputs).last_hidden_state
    if hasattr(network, "visual_projection"):
        return network.visual_projection(network.vision_model.post_layernorm(hidden[:, 1:]))
    return hidden


def _clip_words(network: Any, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
    ids = features["input_ids"]
    given = features.get("attention_mask")
    inputs = {"input_ids": ids} if given is None else {"input_ids": ids, "attention_mask": given}
    hidden = network.text_model(**inputs).last_hidden_state
    project = getattr(network, "text_projection", None) or getattr(network.text_model, "head", None)
    mask = given.bool() if given is not None else ids != network.config.text_config.pad_token_id
    return (hidden if project is None else project(hidden)), mask

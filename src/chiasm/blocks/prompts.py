"""Encoding from embeddings instead of words or pixels, on the CLIP and SigLIP models of Hugging Face transformers.

A module's output is replaced while the model runs (a forward hook that is gone afterwards), so masks, the place of the end
token, pooling and projection stay the model's own code. Putting the original embeddings back in gives the model's own
features, bit for bit:

    f(encode_token_embeddings(model, token_embeddings(model, ids), ids)) == f(model.get_text_features(ids))

Nothing is mutated: no weight is written, no module is exchanged, gradients flow to whatever was injected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, UnknownName

# Values of `config.model_type` whose towers have the parts used here (OpenAI's and LAION's CLIP, SigLIP, fixed-size SigLIP 2).
SUPPORTED = ("clip", "siglip", "metaclip_2")


def dual_encoder(model: Any, supported: Sequence[str] = SUPPORTED) -> Any:
    """The two-tower network inside a model: itself, or that of a `SentenceTransformer` or of a space.

    Args:
        model: `transformers.CLIPModel` or `transformers.SiglipModel`, a `SentenceTransformer` over one, or a space
            (`chiasm.load`).
        supported: the architectures (``config.model_type``) that will do.

    Raises:
        UnknownName: another architecture; the message names the supported ones.
    """
    found = model
    if not hasattr(found, "get_text_features"):
        found = first_module(model)
        found = getattr(found, "model", found)
    kind = getattr(getattr(found, "config", None), "model_type", type(found).__name__)
    if kind not in supported or not hasattr(found, "get_text_features"):
        raise UnknownName(
            f"no encoding from embeddings for the architecture {kind!r} ({type(found).__name__})",
            where="dual_encoder",
            fix=f"Give a transformers model with both towers, of one of the types {', '.join(supported)}",
        )
    return found


def first_module(model: Any) -> Any:
    """The first module of a `SentenceTransformer` (or of the one inside a space), which holds network and processor."""
    found = getattr(model, "model", model)
    return found[0] if isinstance(found, nn.Sequential) and len(found) else found


@contextmanager
def replaced_output(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """While it is open, calls of ``module`` return ``change(output)``.

    Several modules can be open at once (deep prompts: one a layer). Calls from other threads are left alone, so a model
    that serves searches can be inverted meanwhile.

    Args:
        module: any part of a model.
        change: takes the module's own output and returns what takes its place; must not write into it.
    """
    owner = threading.get_ident()

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return change(output) if threading.get_ident() == owner else output

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def token_embeddings(model: Any, input_ids: Tensor) -> Tensor:
    """Word embeddings ``[B, L, Wt]`` of token ids ``[B, L]``, before positions are added."""
    return dual_encoder(model).text_model.embeddings.token_embedding(input_ids)


def patch_embeddings(model: Any, pixel_values: Tensor) -> Tensor:
    """Patch embeddings ``[B, P, Wv]`` of pictures ``[B, 3, H, W]``, row by row, before class token and positions."""
    embed = dual_encoder(model).vision_model.embeddings.patch_embedding
    return embed(pixel_values.to(embed.weight.dtype)).flatten(2).transpose(1, 2)


def encode_token_embeddings(
    model: Any, embeddings: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Text features ``[B, D]`` (not normalized) with ``embeddings`` in place of those of the tokens.

    Args:
        model: see `dual_encoder`.
        embeddings: ``[B, L, Wt]``, before positions are added.
        input_ids: ``[B, L]`` or ``[1, L]`` for all; they tell where the end token is, their embeddings are not used.
        attention_mask: ``[B, L]`` or ``[1, L]``, as the model's own.

    Raises:
        UnknownName: another architecture.
        BadInput: shapes that do not fit the ids or the model.
    """
    network = dual_encoder(model)
    embed = network.text_model.embeddings.token_embedding
    expected = (embeddings.shape[0], input_ids.shape[-1], embed.embedding_dim)
    if tuple(embeddings.shape) != expected or input_ids.ndim != 2 or input_ids.shape[0] not in (1, expected[0]):
        raise BadInput(
            f"embeddings {tuple(embeddings.shape)} for ids {tuple(input_ids.shape)}; expected {list(expected)}",
            where="encode_token_embeddings",
        )
    ids = input_ids.expand(expected[0], -1)
    mask = None if attention_mask is None else attention_mask.expand(expected[0], -1)
    with replaced_output(embed, lambda _: embeddings):
        return _pooled(network.get_text_features(input_ids=ids, attention_mask=mask), network)


def encode_patch_embeddings(model: Any, patches: Tensor) -> Tensor:
    """Image features ``[B, D]`` (not normalized) with ``patches`` in place of the output of the patch embedding.

    Args:
        model: see `dual_encoder`.
        patches: ``[B, P, Wv]``, row by row, before class token and positions.

    Raises:
        UnknownName: another architecture.
        BadInput: another number or width of patches than the model has.
    """
    network = dual_encoder(model)
    parts = network.vision_model.embeddings
    embed, side = parts.patch_embedding, parts.image_size
    grid = side // parts.patch_size
    expected = (patches.shape[0], grid * grid, embed.out_channels)
    if tuple(patches.shape) != expected:
        raise BadInput(
            f"patches {tuple(patches.shape)}; expected {list(expected)}",
            where="encode_patch_embeddings",
            fix=f"The model looks at {grid} x {grid} patches of width {embed.out_channels}",
        )
    # The picture itself is not looked at; it only tells the size.
    blank = embed.weight.new_zeros(()).expand(len(patches), embed.in_channels, side, side)
    with replaced_output(embed, lambda _: patches.transpose(1, 2).unflatten(2, (grid, grid))):
        return _pooled(network.get_image_features(pixel_values=blank), network)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While it is open, the model is in eval mode and no weight takes part in gradients; afterwards all is as it was."""
    training = [module for module in model.modules() if module.training]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _pooled(output: Any, network: nn.Module) -> Tensor:
    features = output if torch.is_tensor(output) else output.pooler_output
    if features is None:
        raise BadInput("has a tower without pooling", where=type(network).__name__, fix="Give a model with its heads")
    return features

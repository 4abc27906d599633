"""Hashes of a model's weights and of its preprocessing: what makes the vectors of two spaces comparable."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Where a model lies and which version wrote the files does not change a vector.
VOLATILE = frozenset(
    {
        "_name_or_path",
        "_processor_class",
        "backend",
        "feature_extractor_type",
        "image_processor_type",
        "is_local",
        "name_or_path",
        "processor_class",
        "tokenizer_class",
        "tokenizer_file",
        "transformers_version",
        "vocab_file",
    }
)


def weights_digest(model: SentenceTransformer) -> str:
    """SHA-256 (32 hex digits) over names, types, shapes and values of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # A channels-last tensor is hashed in the logical order, so that the layout in memory makes no difference.
        plain = tensor.detach().cpu().contiguous()
        if plain.numel():
            digest.update(memoryview(plain.reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore
    return digest.hexdigest()[:32]


def version_stamp(model: SentenceTransformer) -> tuple[Any, ...]:
    """Changes when a parameter or buffer is replaced or written to (by an optimizer, by loading a state)."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def preprocessing_digest(model: SentenceTransformer) -> str:
    """SHA-256 (32 hex digits) over everything before and around the network: tokenizers, processors, prompts, modules."""
    parts: list[Any] = [{k: v for k, v in sorted(model.prompts.items()) if v}, model.truncate_dim]
    for name, module in model.named_modules():
        if hasattr(module, "get_config_dict") and type(module).__name__ != "Router":
            describe: Any = module.get_config_dict
            parts.append([name, type(module).__name__, plain_config(describe())])
        processor = module.__dict__.get("processor") or module.__dict__.get("tokenizer")
        if processor is not None:
            parts.append([name, processor_config(processor)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def processor_config(processor: Any) -> Any:
    """What a processor, tokenizer or feature extractor does, free of paths and of its state between calls."""
    pieces = {
        name: processor_config(getattr(processor, name))
        for name in ("tokenizer", "image_processor", "feature_extractor", "video_processor")
        if getattr(processor, name, None) is not None
    }
    if pieces:
        return pieces
    backend = getattr(processor, "backend_tokenizer", None) or (processor if hasattr(processor, "to_str") else None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        kept = {k: v for k, v in whole.items() if k not in ("padding", "truncation")}  # state of the latest call
        return [
            kept,
            int(min(getattr(processor, "model_max_length", 0), 1 << 30)),
            getattr(processor, "padding_side", ""),
        ]
    if hasattr(processor, "to_dict"):
        return plain_config(processor.to_dict())
    return type(processor).__name__


def plain_config(config: Any) -> Any:
    """A configuration without paths, versions and private names, its keys as strings."""
    if isinstance(config, dict):
        return {str(k): plain_config(v) for k, v in config.items() if str(k) not in VOLATILE}
    if isinstance(config, (list, tuple)):
        return [plain_config(v) for v in config]
    if hasattr(config, "tolist"):  # mel filters are arrays
        return hashlib.sha256(json.dumps(config.tolist()).encode()).hexdigest()
    return config

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


def grown_parts(model: SentenceTransformer) -> tuple[str, ...]:
    """Names of the modules that were added to a space later and changed none of its vectors (their ``grown`` is True).

    They are left out of the hashes: vectors made before they came and vectors made with them may be compared, so that a
    store made before stays in use.
    """
    return tuple(name for name, module in model.named_modules() if getattr(module, "grown", None) is True)


def _inside(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def weights_digest(model: SentenceTransformer) -> str:
    """SHA-256 (32 hex digits) over names, types, shapes and values of all parameters and persistent buffers, `grown_parts`
    excepted.
    """
    digest = hashlib.sha256()
    grown = grown_parts(model)
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor) or _inside(name, grown):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # A channels-last tensor is hashed in the logical order, so that the layout in memory makes no difference.
        plain = tensor.detach().cpu().contiguous()
        if plain.numel():
            digest.update(memoryview(plain.reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore
    return digest.hexdigest()[:32]


def grown_digest(model: SentenceTransformer) -> str:
    """SHA-256 (12 hex digits) over the weights of `grown_parts`, ``""`` if there are none: caches of what they gave need it."""
    parts = grown_parts(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor) and _inside(name, parts):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12] if parts else ""


def version_stamp(model: SentenceTransformer) -> tuple[Any, ...]:
    """Changes when a parameter or buffer is replaced or written to (by an optimizer, by loading a state)."""
    tensors = (*model.parameters(), *model.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def preprocessing_digest(model: SentenceTransformer) -> str:
    """SHA-256 (32 hex digits) over everything before and around the network: tokenizers, processors, prompts, modules;
    `grown_parts` excepted.
    """
    grown = grown_parts(model)
    parts: list[Any] = [{k: v for k, v in sorted(model.prompts.items()) if v}, model.truncate_dim]
    for name, module in model.named_modules():
        if _inside(name, grown):
            continue
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

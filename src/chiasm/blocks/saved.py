"""`Saved`: how the project's own sentence-transformers modules are saved and loaded."""

from __future__ import annotations

from typing import Any, Self

from sentence_transformers.base.modules import Module

_HUB = ("token", "cache_folder", "revision", "local_files_only")


class Saved(Module):
    """Saving and loading by ``config_keys`` (arguments of the constructor, in ``config.json``) and safetensors.

    Stands before the library's class: ``class PocketImage(Saved, InputModule)``.
    """

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        hub = {key: kwargs[key] for key in _HUB if key in kwargs}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        module = cls(**{key: config[key] for key in cls.config_keys})
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=module, **hub)
        return module

"""`Twins`: several models as one, whose cosine is the mean of their cosines. Saved and loaded like any other model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import nn
from torch.nn import functional

from chiasm.errors import BadInput


class Twins(InputModule):
    """Models of one structure side by side: unit vectors one after the other, divided by the root of their number.

    So the inner product (and the cosine) of two items is the mean over the models of their cosines: two networks that are
    averaged at inference are one vector in any index.

    Args:
        models: two or more `SentenceTransformer`, with the same inputs and routes.

    Raises:
        BadInput: fewer than two.
    """

    config_keys: list[str] = ["count"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        if len(models) < 2:
            raise BadInput(f"{len(models)} model", where="Twins", fix="Give two")
        self.models: Any = nn.ModuleList(models)

    @property
    def count(self) -> int:
        return len(self.models)

    @property
    def tokenizer(self) -> Any:
        return self.models[0].tokenizer

    @property
    def modalities(self) -> list[Any]:
        return self.models[0].modalities  # pyright: ignore[reportReturnType]

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return self.models[0].preprocess(inputs, prompt=prompt, **kwargs)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` ``[N, count * D]`` and, where the models give them, ``token_embeddings`` likewise."""
        outs = [model(dict(features)) for model in self.models]
        share = len(outs) ** -0.5
        found = {**outs[0], **features}
        found["sentence_embedding"] = share * torch.cat(
            [functional.normalize(out["sentence_embedding"], dim=-1) for out in outs], dim=-1
        )
        if all("token_embeddings" in out for out in outs):
            found["token_embeddings"] = torch.cat([out["token_embeddings"] for out in outs], dim=-1)
            found["attention_mask"] = outs[0]["attention_mask"]
        return found

    def get_embedding_dimension(self) -> int:
        return sum(int(model.get_embedding_dimension() or 0) for model in self.models)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        for number, model in enumerate(self.models):
            model.save_pretrained(  # pyright: ignore[reportCallIssue]
                str(Path(output_path) / f"network_{number}"),
                create_model_card=False,
                safe_serialization=safe_serialization,
            )

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Twins:
        hub = {k: kwargs[k] for k in ("token", "cache_folder", "revision", "local_files_only") if k in kwargs}
        count = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)["count"]
        folders = [
            cls.load_dir_path(model_name_or_path, subfolder=str(Path(subfolder) / f"network_{i}"), **hub)
            for i in range(count)
        ]
        # Whoever trusted this class enough to load it has the models below it in the same folder.
        return cls([SentenceTransformer(folder, device="cpu", trust_remote_code=True) for folder in folders])


def twins(models: Sequence[Any], *, device: str | None = None) -> SentenceTransformer:
    """A `SentenceTransformer` over `Twins`.

    Args:
        models: two or more models, with weights of their own.
        device: ``"cpu"``, ``"cuda"``, ...; None lets sentence-transformers choose.
    """
    return SentenceTransformer(modules=[Twins(models)], device=device, similarity_fn_name="cosine")

"""`OneEncoder`: many modalities, one projection, grown one modality at a time (arXiv 2409.11059).

A modality's frozen encoder gives tokens F ``[N, L, D_m]``; then X = AL_m(F), tau_m = MLP_m(t_m), O = UP(X, tau_m), e = mean(O).
It is one sentence-transformers module, so that what is shared stays shared when it is saved and loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from chiasm.blocks.alignment import POOLINGS, AlignmentLayer, Pooling, filled, pooled
from chiasm.blocks.saved import Saved
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.alignment.one_encoder.projection import TokenPerceptron, UniversalProjection, new_token

# The first modalities share one token perceptron; its name among the others.
FIRST = "first"


class OneEncoder(Saved, InputModule):
    """Features in: ``input_features`` ``[N, L, D_m]`` (or ``[N, D_m]``, one token) with ``attention_mask``, and the modality
    as ``task``. Features out: ``token_embeddings`` ``[N, L, width]`` and ``sentence_embedding`` ``[N, width]``, not normalized.
    Where ``sentence_embedding`` is given instead of tokens, it passes through: embeddings of a frozen modality, computed once.

    Args:
        features: modality -> length of a token of its frozen encoder.
        width: D; 256 in the paper.
        layers, heads, feedforward: of the Universal Projection.
        fusion: operator by which the modality token enters, see `chiasm.learn.alignment.one_encoder.fusion`.
        tanh: of the operator ``"bahdanau"``.
        pooling: ``"mean"`` or ``"first"``.
        dropout: 0.1.
        grown: those of the modalities that came later and have a token perceptron of their own.

    Raises:
        UnknownName: an operator or a pooling that does not exist.
        BadInput: a modality's name that cannot be part of a parameter's name.
    """

    config_keys: list[str] = [  # noqa: RUF012 (the library declares it so)
        "features",
        "width",
        "layers",
        "heads",
        "feedforward",
        "fusion",
        "tanh",
        "pooling",
        "dropout",
        "grown",
    ]

    def __init__(
        self,
        features: Mapping[str, int] | None = None,
        *,
        width: int = 256,
        layers: int = 1,
        heads: int = 4,
        feedforward: int = 2048,
        fusion: str = "addition",
        tanh: bool = True,
        pooling: Pooling = "mean",
        dropout: float = 0.1,
        grown: list[str] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        self.width, self.layers, self.heads, self.feedforward = width, layers, heads, feedforward
        self.fusion, self.tanh, self.dropout = fusion, tanh, dropout
        self.pooling: Pooling = pooling
        self.features: dict[str, int] = {}
        self.grown: list[str] = []
        self.projection = UniversalProjection(
            width, layers=layers, heads=heads, feedforward=feedforward, dropout=dropout, fusion=fusion, tanh=tanh
        )
        self.align = nn.ModuleDict()
        self.tokens = nn.ModuleDict()
        self.perceptrons = nn.ModuleDict({FIRST: TokenPerceptron(width)})
        for modality, length in (features or {"image": 768, "text": 768}).items():
            self._add(modality, length, own=modality in (grown or ()))

    @property
    def modalities(self) -> list[Any]:
        """The modalities, in the order in which they came."""
        return list(self.features)

    def _add(self, modality: str, features: int, own: bool) -> None:
        if not modality.isidentifier() or modality == FIRST or hasattr(nn.ModuleDict, modality):
            raise BadInput(f"{modality!r} cannot be the name of a modality", where="OneEncoder", fix="Use a plain word")
        if modality in self.features:
            raise BadInput(f"there is already {modality}", where="OneEncoder", fix="Give the new modality another name")
        self.features[modality] = int(features)
        self.align[modality] = AlignmentLayer(features, self.width, dropout=self.dropout)
        self.tokens[modality] = new_token(self.fusion)
        if own:
            self.grown.append(modality)
            self.perceptrons[modality] = TokenPerceptron(self.width)

    def grow(self, modality: str, features: int) -> list[str]:
        """Adds a modality with its own alignment layer, token and token perceptron; nothing else changes.

        Args:
            modality: its name.
            features: length of a token of its frozen encoder.

        Returns:
            Patterns of the parameters that step k trains, for `chiasm.learn.Stage`.

        Raises:
            BadInput: the modality is there already, or its name cannot be used.
        """
        self._add(modality, features, own=True)
        place = next(self.projection.parameters())
        for part in (self.align, self.tokens, self.perceptrons):
            part[modality].to(place.device, place.dtype).train(self.training)
        return self.parts(modality)

    def parts(self, modality: str) -> list[str]:
        """Patterns of the parameters that belong to one grown modality alone.

        Raises:
            UnknownName: no such modality, or one of the first, which have no perceptron of their own.
        """
        if modality not in self.grown:
            raise unknown_name("grown modality", modality, self.grown)
        return [f"*{part}.{modality}.*" for part in ("align", "tokens", "perceptrons")]

    def token(self, modality: str) -> Tensor:
        """tau of a modality, ``[s, width]``."""
        return self.perceptrons[modality if modality in self.grown else FIRST](self.tokens[modality]())

    def forward(self, features: dict[str, Any], task: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Adds ``token_embeddings``, ``attention_mask`` and ``sentence_embedding``.

        Raises:
            UnknownName: ``task`` is no modality of this model.
            BadInput: tokens of another length than its encoder's, or a mask that does not fit.
        """
        if "sentence_embedding" in features and "input_features" not in features:
            return features
        modality = str(features.get("task") or task)
        if modality not in self.modalities:
            raise unknown_name("modality", modality, self.modalities)
        x: Tensor = features["input_features"]
        x = x.unsqueeze(1) if x.ndim == 2 else x
        if x.shape[-1] != self.features[modality]:
            raise BadInput(
                f"tokens have {x.shape[-1]} numbers, those of {modality} have {self.features[modality]}",
                where="OneEncoder",
            )
        mask = filled(features.get("attention_mask"), x)
        weight = next(self.projection.parameters())
        x = x.to(weight.device, weight.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        out = self.projection(self.align[modality](x), self.token(modality), mask)
        return {
            **features,
            "token_embeddings": out,
            "attention_mask": mask,
            "sentence_embedding": pooled(out, mask, self.pooling),
        }

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Takes arrays or tensors of tokens ``[L, D_m]`` (or ``[D_m]``), one an item, and pads them."""
        from chiasm.learn.features import Features

        rows = [torch.as_tensor(one).numpy() for one in inputs]
        rows = [row[None] if row.ndim == 1 else row for row in rows]
        batch = Features.ragged("input_features", rows).batch(range(len(rows)))
        del batch["rows"]
        return batch

    def get_embedding_dimension(self) -> int:
        return self.width


def as_model(encoder: OneEncoder, *, device: str | None = None) -> SentenceTransformer:
    """The encoder as a `SentenceTransformer`, which `chiasm.learn.train` trains and ``save_pretrained`` saves."""
    return SentenceTransformer(modules=[encoder], device=device, similarity_fn_name="cosine")

"""Small towers over frozen features, as sentence-transformers modules: what trains when a space is aligned or compared.

    >>> model = dual_tower(Tower(256), Tower(vocabulary=200))         # pictures as patch vectors, texts as token ids
    >>> model = dual_tower(Perceptron([48, 128, 64]), Perceptron([48, 128, 64]))

A tower reads ``input_features`` (``[N, D]`` or ``[N, L, D]``) or ``input_ids`` (``[N, L]``) with their
``attention_mask``, as `chiasm.learn.features.Features` gives them, and writes ``token_embeddings`` ``[N, L, out]`` and
``sentence_embedding`` ``[N, out]``, neither of them normalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Router
from torch import Tensor, nn

from chiasm.blocks.saved import Saved
from chiasm.errors import BadInput

# How the two sides of a pair are called in a `dual_tower`, whatever their modality.
SIDES = ("a", "b")


class _Arrays(Saved, InputModule):
    """Takes features as they come from `Features.batch`."""

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Takes arrays or tensors ``[D]`` or ``[L, D]`` (or lists of token ids), or a list of them."""
        from chiasm.learn.features import Features

        name = "input_ids" if getattr(self, "vocabulary", None) else "input_features"
        rows = [torch.as_tensor(one).numpy() for one in inputs]
        if name == "input_features" and rows and rows[0].ndim == 1:
            return {name: torch.stack([torch.as_tensor(row, dtype=torch.float32) for row in rows])}
        batch = Features.ragged(name, rows).batch(range(len(rows)))
        del batch["rows"]
        return batch


class Tower(_Arrays):
    """A small pre-LN transformer over the tokens of an item.

    Args:
        features: length of an input vector; None for token ids.
        vocabulary: number of token ids; None for vectors.
        width: width of the transformer.
        layers: number of layers; 0 projects the tokens only.
        heads: attention heads.
        out: length of the output vectors.
        positions: how many positions are learned; 0 for none.
        position_std: their initial standard deviation.
        dropout: dropout in the layers.
        pool: ``"mean"`` over the tokens, or ``"first"``.

    Raises:
        BadInput: both or neither of ``features`` and ``vocabulary``.
    """

    config_keys: list[str] = [  # noqa: RUF012 (the library declares it so)
        "features",
        "vocabulary",
        "width",
        "layers",
        "heads",
        "out",
        "positions",
        "position_std",
        "dropout",
        "pool",
    ]

    def __init__(
        self,
        features: int | None = None,
        *,
        vocabulary: int | None = None,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        out: int = 64,
        positions: int = 64,
        position_std: float = 0.02,
        dropout: float = 0.0,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        if (features is None) == (vocabulary is None):
            raise BadInput("give either features or a vocabulary", where="Tower")
        if pool not in ("mean", "first"):
            raise BadInput(f"pool={pool!r} does not exist", where="Tower", fix="Use 'mean' or 'first'")
        self.features, self.vocabulary, self.width, self.layers, self.heads, self.out = (
            features,
            vocabulary,
            width,
            layers,
            heads,
            out,
        )
        self.positions, self.position_std, self.dropout, self.pool = positions, position_std, dropout, pool
        self.enter = nn.Linear(features, width) if features else nn.Embedding(int(vocabulary or 0), width)
        if vocabulary:
            nn.init.normal_(self.enter.weight, std=width**-0.5)
        self.place = nn.Parameter(torch.randn(positions, width) * position_std) if positions else None
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, out, bias=False)
        # nn.TransformerEncoder copies one layer; equal layers would start with equal weights.
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight)

    def hidden(self, features: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """States ``[N, L, width]`` after the last norm, and the mask ``[N, L]``."""
        x = features["input_ids"] if self.vocabulary else features["input_features"]
        if not self.vocabulary and x.ndim == 2:
            x = x[:, None]
        mask = features.get("attention_mask")
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
        x = self.enter(x)
        if self.place is not None:
            if x.shape[1] > self.positions:
                raise BadInput(
                    f"{x.shape[1]} tokens, but the tower has {self.positions} positions",
                    where="Tower",
                    fix="Make it with positions=...",
                )
            x = x + self.place[: x.shape[1]]
        x = self.encoder(x, src_key_padding_mask=~mask) if self.layers else self.encoder(x)
        return self.norm(x), mask

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``token_embeddings`` ``[N, L, out]``, ``attention_mask`` ``[N, L]`` and ``sentence_embedding`` ``[N, out]``."""
        hidden, mask = self.hidden(features)
        tokens = self.leave(hidden)
        if self.pool == "first":
            pooled = tokens[:, 0]
        else:
            weight = mask.unsqueeze(-1).to(tokens.dtype)
            pooled = (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
        return {**features, "token_embeddings": tokens, "attention_mask": mask, "sentence_embedding": pooled}

    def get_embedding_dimension(self) -> int:
        return self.out


class Perceptron(_Arrays):
    """A multilayer perceptron over one vector an item.

    Args:
        sizes: lengths from the input to the output, for example ``[48, 128, 64]``.
    """

    config_keys: list[str] = ["sizes"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)
        if len(self.sizes) < 2:
            raise BadInput(f"sizes {self.sizes} make no layer", where="Perceptron")
        layers: list[nn.Module] = []
        for here, there in zip(self.sizes, self.sizes[1:]):
            layers += [nn.Linear(here, there), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` ``[N, sizes[-1]]``."""
        return {**features, "sentence_embedding": self.layers(features["input_features"])}

    def get_embedding_dimension(self) -> int:
        return self.sizes[-1]


def dual_tower(a: InputModule, b: InputModule, *, device: str | None = None) -> SentenceTransformer:
    """A `SentenceTransformer` over a `Router` with the routes ``"a"`` and ``"b"``.

    Args:
        a: the module of the first side of every pair.
        b: the module of the second side; the same object shares the weights.
        device: ``"cpu"``, ``"cuda"``, ...; None lets sentence-transformers choose.
    """
    router = Router({"a": [a], "b": [b]}, default_route="a", allow_empty_key=False)
    return SentenceTransformer(modules=[router], device=device, similarity_fn_name="cosine")

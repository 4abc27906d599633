"""Towers and heads as sentence-transformers modules: the paper's adapter for patches, bags of words, and the `SparseEncoder`.

>>> encoder = sparse_encoder(model, objective, vocabulary)      # a sentence_transformers.SparseEncoder
>>> vectors = encoder.encode(pictures, task="a")                # torch sparse [N, V]
>>> encoder.decode(vectors[0], top_k=5)                         # [("dog", 0.8), ("grass", 0.4), ...]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from torch import Tensor, nn

from chiasm.blocks.lexical import lexical, sparsify, unit
from chiasm.blocks.saved import Saved
from chiasm.errors import BadInput
from chiasm.learn.objectives.lexvla.objective import LexVLA
from chiasm.learn.objectives.lexvla.vocabulary import Vocabulary
from chiasm.learn.towers import SIDES, Perceptron, Tower


class PatchAdapter(Tower):
    """Frozen patch (or token) vectors as hidden states: one self-attention layer, then two linear layers with GELU.

    Args:
        features: length of an input vector.
        out: D, the width of the codebook.
        width: of the attention.
        layers: 1 as in the paper; 0 leaves every patch on its own.
        **options: as in `Tower`; positions default to none, as patch features hold theirs.
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        out: int = 64,
        width: int = 64,
        layers: int = 1,
        positions: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(features, out=out, width=width, layers=layers, positions=positions, **options)
        self.leave = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, out))


class TextAdapter(PatchAdapter):
    """Token states of a language model, as they come in times a learned gain, plus what the adapter adds: nothing at first.

    The codebook of the texts is frozen. States that start where that codebook's model puts them keep saying their words; from
    a random start "dog" could come to stand for any word, and nobody could read the result.

    Args:
        features: length of a state, and of the words in the codebook.
        gain: start of the factor: the inner product of a unit state with its own unit word, 16 from our pilot [inferred].
        **options: as in `PatchAdapter`.

    Raises:
        BadInput: a gain that is not positive.
    """

    config_keys: list[str] = ["features", "width", "layers", "heads", "positions", "dropout"]  # noqa: RUF012

    def __init__(self, features: int, *, gain: float = 16.0, **options: Any) -> None:
        super().__init__(features, out=features, **options)
        if gain <= 0:
            raise BadInput(f"gain {gain} is not positive", where="TextAdapter")
        self.log_gain = nn.Parameter(torch.tensor(math.log(gain)))
        last: Any = self.leave[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As `Tower.forward`."""
        found = super().forward(features)
        states, mask = features["input_features"], found["attention_mask"]
        states = self.log_gain.exp() * (states[:, None] if states.ndim == 2 else states)
        weight = mask[..., None].to(states.dtype)
        pooled = found["sentence_embedding"] + (states * weight).sum(1) / weight.sum(1).clamp_min(1)
        return {**found, "token_embeddings": found["token_embeddings"] + states, "sentence_embedding": pooled}


class BagOfWords(Perceptron):
    """The text side of the ablation: hands bags of words ``[N, V]`` through.

    Args:
        sizes: ``[V, V]``.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.layers = nn.Sequential()


class WordNames:
    """The part of a tokenizer that `SparseEncoder.decode` asks for: names of the entries."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.words[i] for i in ids]


class LexicalHead(Saved):
    """Token vectors to a sparse vector over the words.

    Reads ``token_embeddings`` ``[N, L, width]`` and ``attention_mask``; writes ``sentence_embedding`` ``[N, V]``: dense while it
    trains, sparse otherwise.

    Args:
        words: names of the words.
        dim: D.
        width: length of the token vectors; None is D, without a map.
        bag: the input's ``sentence_embedding`` is a bag of words already.
        threshold, top, renormalize: as in `LexVLA`.
        chunk: words at a time.
    """

    config_keys: list[str] = ["words", "dim", "width", "bag", "threshold", "top", "renormalize", "chunk"]  # noqa: RUF012
    codebook: Tensor

    def __init__(
        self,
        words: Sequence[str],
        dim: int,
        width: int | None = None,
        *,
        bag: bool = False,
        threshold: float | None = None,
        top: int | None = None,
        renormalize: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.words, self.dim, self.width, self.bag = list(words), dim, width, bag
        self.threshold, self.top, self.renormalize, self.chunk = threshold, top, renormalize, chunk
        self.map: nn.Module = nn.Identity() if width is None else nn.Linear(width, dim)
        self.register_buffer("codebook", torch.zeros(len(self.words), dim))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds the vector over the words."""
        if self.bag:
            vectors = unit(features["sentence_embedding"])
        else:
            tokens, mask = features["token_embeddings"], features.get("attention_mask")
            vectors = lexical(self.map(tokens), mask, self.codebook, chunk=self.chunk)
        if not self.training:
            vectors = sparsify(vectors, threshold=self.threshold, top=self.top)
            vectors = unit(vectors) if self.renormalize else vectors
        return {**features, "sentence_embedding": vectors}

    def get_embedding_dimension(self) -> int:
        return len(self.words)


class WordRouter(Router):
    """A router whose "tokenizer" names the words, so that `SparseEncoder.decode` reads the vectors."""

    @property
    def modalities(self) -> list[Any]:
        """What the routes read. The library takes arrays ``[D]`` and ``[L, D]`` of features for waveforms."""
        arrays = any(isinstance(modules[0], Tower | Perceptron) for modules in self._routes())
        return sorted({*super().modalities, *(["audio"] if arrays else [])}, key=str)

    @property
    def tokenizer(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        heads = (module for modules in self._routes() for module in modules if isinstance(module, LexicalHead))
        head = next(heads, None)
        return None if head is None else WordNames(head.words)

    def _routes(self) -> list[Any]:
        return list(self.sub_modules.values())


def sparse_encoder(
    model: Any, objective: LexVLA, vocabulary: Vocabulary | Sequence[str], *, device: str | None = None
) -> SparseEncoder:
    """A trained model and its objective as a `SparseEncoder` with the routes ``"a"`` and ``"b"``.

    It holds copies of the heads; scores are inner products. `encode_document` takes side ``a``, `encode_query` side ``b``.
    What it saves is loaded with ``trust_remote_code=True``, as the modules are Chiasm's.

    Args:
        model: a model of `dual_tower`.
        objective: what it was trained with.
        vocabulary: the names of the words.
        device: as in `dual_tower`.

    Raises:
        BadInput: another number of words than the objective has.
    """
    words = vocabulary.words if isinstance(vocabulary, Vocabulary) else tuple(vocabulary)
    if len(words) != objective.size:
        raise BadInput(f"{len(words)} names for {objective.size} words", where="sparse_encoder")
    routes: dict[str, list[Any]] = {}
    for side in SIDES:
        mapped: Any = objective.map_a if side == "a" else objective.map_b
        linear = isinstance(mapped, nn.Linear)
        head = LexicalHead(
            words,
            objective.dim,
            mapped.in_features if linear else None,
            bag=side == "b" and objective.text == "bag",
            threshold=objective.threshold,
            top=objective.top,
            renormalize=objective.renormalize,
            chunk=objective.chunk,
        )
        head.codebook.copy_(objective.codebook("a" if side == "a" else "b").detach())
        if linear:
            head.map.load_state_dict(mapped.state_dict())
        routes[side] = [*model[0].sub_modules[side], head]
    # Pictures are found by texts: `encode_query` and `encode_document` take these routes.
    asked: Any = {("query", None): "b", ("document", None): "a"}
    router = WordRouter(routes, default_route="a", allow_empty_key=False, route_mappings=asked)
    return SparseEncoder(modules=[router], device=device, similarity_fn_name="dot").eval()

"""The Knowledge-Enhanced Encoder (KEE): the triples of a caption as one vector that is added to its text vector.

    e_h, e_r, e_t = mean of the word embeddings of head, relation, tail
    k  = normalize(Linear(Transformer(e_h + e_r - e_t over the triples)))          (TransE form; no positions over triples)
    t' = t / |t| + lambda k                                                        (lambda 0.2; not normalized again)

An empty graph gives k = 0, so t' = t / |t| exactly. Structure-CLIP, arXiv 2305.06152.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule, Module, Router
from tokenizers import Tokenizer
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.objectives.structure_clip.graph import MOST_TRIPLES, SceneGraph, parse
from chiasm.learn.words import PAD, Words

LONGEST_PHRASE = 5


def triple_ids(
    graphs: Sequence[SceneGraph], words: Words, *, most: int = MOST_TRIPLES, longest: int = LONGEST_PHRASE
) -> np.ndarray:
    """Word ids of the triples of graphs, int64 ``[N, most, 3, longest]``, padded with 0.

    Args:
        graphs: N graphs.
        words: the vocabulary (for a BERT: ``Words(tokenizer.backend_tokenizer)``).
        most: triples a caption; 6 (paper).
        longest: words of a head, relation or tail; 5 (released code).
    """
    out = np.full((len(graphs), most, 3, longest), PAD, dtype=np.int64)
    places = [(i, j, k) for i, g in enumerate(graphs) for j, t in enumerate(g.triples(most)) for k in range(len(t))]
    phrases = [phrase for g in graphs for triple in g.triples(most) for phrase in triple]
    if phrases:
        for place, ids in zip(places, words.ids(phrases, longest=longest), strict=True):
            out[place][: len(ids)] = ids
    return out


def triple_tokens(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    """``head + relation - tail``: zero where the relation leads from the head exactly to the tail (TransE)."""
    return head + relation - tail


class KnowledgeEncoder(nn.Module):
    """Triples to one unit vector a caption.

    Args:
        vocabulary: number of word ids; 0 is padding.
        width: length of the word embeddings.
        out: length of the text vectors that the result is added to.
        layers: transformer layers; 6 in the paper (the released class runs all 12 of BERT); 1 in small spaces.
        heads: attention heads.
        longest: words of a head, relation or tail.
        pool: ``"mean"`` over the triples, so that their order does not matter, or the ``"first"`` one (released code).
        bert: configuration of a BERT whose embeddings and first ``layers`` layers are used instead (see `of_bert`).

    Raises:
        UnknownName: a pooling that does not exist.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        out: int = 64,
        layers: int = 1,
        heads: int = 4,
        longest: int = LONGEST_PHRASE,
        pool: Literal["mean", "first"] = "mean",
        bert: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "first"):
            raise unknown_name("pooling", pool, ("mean", "first"))
        self.settings = {
            "vocabulary": vocabulary,
            "width": width,
            "out": out,
            "layers": layers,
            "heads": heads,
            "longest": longest,
            "pool": pool,
            "bert": bert,
        }
        self.pool, self.longest = pool, longest
        self.words, self.encoder = (
            _bert_parts(bert, layers) if bert else _own_parts(vocabulary, width, layers, heads, longest)
        )
        self.leave = nn.Linear(bert["hidden_size"] if bert else width, out)

    @classmethod
    def of_bert(
        cls, bert: Any, out: int, *, layers: int = 6, pool: Literal["mean", "first"] = "mean"
    ) -> KnowledgeEncoder:
        """With the embeddings and the first layers of a `transformers.BertModel` (a copy).

        Args:
            bert: the model, for example ``bert-base-uncased``.
            out: length of the text vectors.
            layers: how many of its layers; 6 (paper).
            pool: as in the class.
        """
        config = {**bert.config.to_dict(), "num_hidden_layers": layers}
        made = cls(bert.config.vocab_size, out=out, layers=layers, pool=pool, bert=config)
        made.words.load_state_dict(bert.embeddings.state_dict())
        wanted = made.encoder.state_dict()
        made.encoder.load_state_dict(
            {name: value for name, value in bert.encoder.state_dict().items() if name in wanted}
        )
        return made

    def forward(self, triples: Tensor) -> Tensor:
        """Unit vectors ``[..., out]`` of triples ``[..., T, 3, W]`` (word ids, 0 is padding); zero for an empty graph."""
        if triples.ndim < 3 or triples.shape[-2] != 3:
            raise BadInput(
                f"triples of shape {tuple(triples.shape)}, expected [..., T, 3, W]", where="KnowledgeEncoder"
            )
        lead = triples.shape[:-3]
        ids = triples.reshape(-1, *triples.shape[-3:])
        written = ids != PAD
        exists = written.flatten(2).any(-1)
        empty = ~exists.any(1)
        embedded = self.words(ids.reshape(-1, ids.shape[-1])).reshape(*ids.shape, -1)
        embedded = embedded.masked_fill(~written.unsqueeze(-1), 0).sum(-2) / written.sum(-1, keepdim=True).clamp_min(1)
        tokens = triple_tokens(*embedded.unbind(2))
        # A row without triples attends to its first place, or its softmax would be NaN; the result is set to zero below.
        seen = exists | (empty.unsqueeze(1) & (torch.arange(exists.shape[1], device=ids.device) == 0))
        states = self._encode(tokens, seen)
        if self.pool == "first":
            pooled = states[torch.arange(len(states), device=ids.device), seen.int().argmax(1)]
        else:
            pooled = states.masked_fill(~seen.unsqueeze(-1), 0).sum(1) / seen.sum(1, keepdim=True)
        k = nn.functional.normalize(self.leave(pooled), dim=-1).masked_fill(empty.unsqueeze(1), 0)
        return k.reshape(*lead, -1)

    def _encode(self, tokens: Tensor, seen: Tensor) -> Tensor:
        if not self.settings["bert"]:
            return self.encoder(tokens, src_key_padding_mask=~seen)
        mask = torch.zeros_like(seen, dtype=tokens.dtype).masked_fill(~seen, torch.finfo(tokens.dtype).min)
        return self.encoder(tokens, attention_mask=mask[:, None, None, :].expand(-1, -1, seen.shape[1], -1))[0]


class _PhraseWords(nn.Module):
    """Word + position, then a norm, as in BERT; ids ``[M, W]`` to ``[M, W, width]``."""

    def __init__(self, vocabulary: int, width: int, longest: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(longest, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.word(ids) + self.place[: ids.shape[1]])


def _own_parts(vocabulary: int, width: int, layers: int, heads: int, longest: int) -> tuple[nn.Module, nn.Module]:
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, 0.0, nn.functional.gelu, batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
    return _PhraseWords(vocabulary, width, longest), encoder


def _bert_parts(config: dict[str, Any], layers: int) -> tuple[nn.Module, nn.Module]:
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(**{**config, "num_hidden_layers": layers}), add_pooling_layer=False)
    return bert.embeddings, bert.encoder


class KnowledgeTower(InputModule):
    """A text tower whose vectors carry the knowledge of their caption's graph: ``t / |t| + strength * k``.

    Reads the features of the text tower and ``triples`` ``[N, T, 3, W]`` (without them: no graph). Writes
    ``sentence_embedding`` (not of unit length) and ``plain_embedding`` (``t / |t|``). Given sentences, it parses them.

    Args:
        modules: the text tower: modules of sentence-transformers that end in ``sentence_embedding``.
        knowledge: the encoder of triples; its ``out`` is the length of the text vectors.
        words: vocabulary of the triples, and of the tower too if that reads word ids; needed for sentences only.
        strength: lambda; 0.2 (paper).
    """

    def __init__(
        self,
        modules: Sequence[Module] | Router,
        knowledge: KnowledgeEncoder,
        *,
        words: Words | None = None,
        strength: float = 0.2,
    ) -> None:
        super().__init__()
        self.text = modules if isinstance(modules, Router) else Router({"text": list(modules)}, default_route="text")
        self.knowledge, self.words, self.strength = knowledge, words, strength

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        out = dict(features)
        for module in self._modules_of_text():
            out = module(out)
        plain = fused = nn.functional.normalize(out["sentence_embedding"], dim=-1)
        triples = features.get("triples")
        if triples is not None and self.strength:
            fused = plain + self.strength * self.knowledge(triples)
        return {**out, "plain_embedding": plain, "sentence_embedding": fused}

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Sentences become what the text tower reads, and the triples that the parser finds in them."""
        if self.words is None:
            raise BadInput(
                "this tower has no vocabulary for sentences", where="KnowledgeTower", fix="Make it with words=..."
            )
        texts = [str(text) for text in inputs]
        first = self._modules_of_text()[0]
        read = self.words.ids(texts) if getattr(first, "vocabulary", None) else texts
        triples = triple_ids([parse(text) for text in texts], self.words, longest=self.knowledge.longest)
        return {**first.preprocess(read, prompt=prompt), "triples": torch.from_numpy(triples)}

    def _modules_of_text(self) -> list[Any]:
        modules: Any = self.text.sub_modules["text"]
        return list(modules)

    def get_embedding_dimension(self) -> int:
        return self.knowledge.settings["out"]

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        folder = Path(output_path)
        (folder / "text").mkdir(parents=True, exist_ok=True)
        (folder / "knowledge").mkdir(exist_ok=True)
        self.text.save(str(folder / "text"), safe_serialization=safe_serialization)
        from safetensors.torch import save_file

        save_file(
            {k: v.detach().contiguous().clone() for k, v in self.knowledge.state_dict().items()},
            folder / "knowledge" / "model.safetensors",
        )
        words = None if self.words is None else self.words.tokenizer.to_str()
        settings = {"strength": self.strength, "knowledge": self.knowledge.settings, "words": words}
        (folder / self.config_file_name).write_text(json.dumps(settings), encoding="utf-8")

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> KnowledgeTower:
        from safetensors.torch import load_file

        hub = {k: kwargs[k] for k in ("token", "cache_folder", "revision", "local_files_only") if k in kwargs}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        trusted = {"trust_remote_code": kwargs.get("trust_remote_code", False)}
        text = Router.load(model_name_or_path, subfolder=str(Path(subfolder) / "text"), **trusted, **hub)
        knowledge = KnowledgeEncoder(**config["knowledge"])
        weights = cls.load_file_path(
            model_name_or_path, filename="model.safetensors", subfolder=str(Path(subfolder) / "knowledge"), **hub
        )
        knowledge.load_state_dict(load_file(str(weights)))
        words = None if config["words"] is None else Words(Tokenizer.from_str(config["words"]))
        return cls(text, knowledge, words=words, strength=config["strength"])

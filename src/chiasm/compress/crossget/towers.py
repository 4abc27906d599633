"""What CrossGET must know about a Hugging Face model: its towers, the parts of their blocks, where the summary token stands.

The step between attention and perceptron, where tokens merge, has no hook. So a reduced layer runs its own four parts in
`Block.run`'s order; norms, attention and perceptron stay the model's modules, with their weights, precision and hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.blocks.attention import Attended, additive, listen
from chiasm.blocks.prompts import first_module
from chiasm.compress.token_reducer import TokenState
from chiasm.errors import BadInput, UnknownName

# Values of `config.model_type`; a tower alone (CLIPVisionModel, SiglipTextModel, ...) works as well.
SUPPORTED = ("clip", "siglip", "blip", "llava")

Pooled = Literal["first", "last", "end", "mean"]


@dataclass(frozen=True)
class Tower:
    """One tower of a model.

    Args:
        name: ``"image"`` or ``"text"``.
        root: the module that is called with pixels or token ids.
        layers: its blocks.
        width: length of a token.
        pooled: where the summary token stands: ``"first"`` (class token), ``"end"`` (end-of-text token), ``"last"``, or
            ``"mean"`` where there is none.
        norm: the norm after the last block, or None.
        project: maps summary tokens into the shared space, or None.
        causal: tokens see no later ones.
        used: how many of the blocks count; the layers behind them (LLaVA reads the last but one) run unreduced.
        spread: give every input token a vector at the end, so that pooling, heads and masks behind the tower fit.
        prefix: the summary token is replaced where it stands instead of appended (the BOS of LLaVA's language model).
    """

    name: Literal["image", "text"]
    root: Any
    layers: list[Any]
    width: int
    pooled: Pooled
    norm: nn.Module | None = None
    project: nn.Module | None = None
    causal: bool = False
    used: int = 0
    spread: bool = True
    prefix: bool = False

    def summary(self, tokens: Tensor, end: Tensor | None) -> Tensor:
        """The summary token ``[B, 1, D]`` of tokens ``[B, T, D]``; ``end`` int ``[B]`` is where the end token is."""
        if self.pooled == "mean":
            return tokens.mean(dim=1, keepdim=True)
        if self.pooled == "end" and end is not None:
            return tokens.gather(1, end[:, None, None].expand(-1, 1, tokens.shape[2]))
        return tokens[:, :1] if self.pooled == "first" else tokens[:, -1:]

    def bias(self, state: TokenState) -> Tensor | None:
        """What is added to the attention logits: sizes, padding, and (by the places the tokens had) causality."""
        if not self.causal:
            return state.log_size
        later = state.position[:, None, :] > state.position[:, :, None]
        causal = torch.zeros(later.shape, device=later.device).masked_fill(later, -torch.inf)[:, None]
        total = causal if state.log_size is None else causal + state.log_size
        # A padding token in front would see nothing at all, and a softmax over nothing is NaN: it sees itself.
        own = torch.eye(total.shape[-1], dtype=torch.bool, device=total.device)
        return total.masked_fill(own & (total == -torch.inf), 0.0)

    @property
    def positions(self) -> int:
        """How many tokens it has positions for; BLIP keeps a plain parameter ``[1, T, D]`` instead of a table."""
        table = self.root.embeddings.position_embedding
        return int(table.weight.shape[0] if isinstance(table, nn.Embedding) else table.shape[1])


@dataclass(frozen=True)
class Block:
    """The parts of a pre-norm block, and how its attention is called."""

    before: nn.Module
    attention: nn.Module
    between: nn.Module
    perceptron: nn.Module

    def run(
        self, x: Tensor, bias: Tensor | None, reduce: Callable[[Tensor, Attended], Tensor], **kwargs: Any
    ) -> Tensor:
        """``x + attention``, then ``reduce``, then ``+ perceptron``.

        Args:
            x: ``[B, T, D]``.
            bias: added to the attention logits, broadcastable to ``[B, H, T, T]``.
            reduce: takes the tokens after the attention and the attention call, gives fewer tokens.
            **kwargs: further arguments of the attention module.
        """
        attended, call = self._attend(self.before(x), bias, **kwargs)
        x = reduce(x + attended, call)
        return x + self.perceptron(self.between(x))

    def _attend(self, x: Tensor, bias: Tensor | None, **kwargs: Any) -> tuple[Tensor, Attended]:
        if hasattr(self.attention, "qkv"):
            return _fused_attention(self.attention, x, bias)
        with listen(bias) as calls:
            out = self.attention(x, attention_mask=None, **kwargs)
        return (out[0] if isinstance(out, tuple) else out), calls[0]


def _fused_attention(attention: Any, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Attended]:
    """BLIP's attention, which does not ask transformers' registry: the same with its weights."""
    batch, tokens, width = x.shape
    q, k, v = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    drop = attention.dropout.p if attention.training else 0.0
    mask = additive(None, bias, q, k)
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, scale=attention.scale)
    out = attention.projection(out.transpose(1, 2).reshape(batch, tokens, width))
    return out, Attended(q, k, None, attention.scale, False, bias)


class Reduced(partial):
    """The forward of a layer that a reduction has taken over."""


def check_free(tower: Tower) -> None:
    """Raises `BadInput` where a reduction is attached already: two would take each other's tokens."""
    if any(isinstance(layer.__dict__.get("forward"), Reduced) for layer in tower.layers):
        raise BadInput(
            f"another reduction is attached to the {tower.name} tower", where="attach", fix="Call its detach() first"
        )


def check_finite(name: str, tokens: Tensor) -> None:
    """Raises `BadInput` for NaN or infinite values in what a tower's layers begin with: they would match nothing."""
    if not bool(torch.isfinite(tokens.sum(dtype=torch.float32))):
        raise BadInput(
            f"NaN or infinite values in what the {name} tower is given",
            where="CrossGET",
            fix="Look for them in the pictures, or in the weights",
        )


def block_of(layer: Any) -> Block:
    """The parts of a pre-norm vision or text block.

    Raises:
        UnknownName: a block of another make.
    """
    names = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
    if not all(hasattr(layer, name) for name in names):
        raise UnknownName(
            f"no reduction inside a {type(layer).__name__}, which is no pre-norm block",
            where="block_of",
            fix=f"Towers of these architectures work: {', '.join(SUPPORTED)}; BLIP's text tower needs r_text=0",
        )
    return Block(*(getattr(layer, name) for name in names))


def towers_of(model: Any) -> dict[str, Tower]:
    """The towers of a model by name.

    Args:
        model: a transformers model (CLIP, SigLIP, BLIP, LLaVA, or one tower of the first two), a `SentenceTransformer` over
            one, or a space.

    Raises:
        UnknownName: another architecture; the message names those that work.
        BadInput: a LLaVA that reads several vision layers at once, or one that it does not have.
    """
    if not hasattr(model, "config"):
        inside = first_module(model)
        model = getattr(inside, "model", getattr(inside, "auto_model", inside))
    kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if kind == "llava":
        return _llava(model)
    vision = getattr(model, "vision_model", model if "vision" in kind else None)
    text = getattr(model, "text_model", getattr(model, "text_encoder", model if "text" in kind else None))
    if kind.split("_")[0] not in SUPPORTED or (vision is None and text is None):
        raise UnknownName(
            f"no token reduction for the architecture {kind!r} ({type(model).__name__})",
            where="CrossGET.attach",
            fix=f"It works on {', '.join(SUPPORTED)} models",
        )
    found = {}
    if vision is not None:
        found["image"] = _vision(vision, getattr(model, "visual_projection", getattr(model, "vision_proj", None)))
    if text is not None:
        found["text"] = _text(text, getattr(model, "text_projection", getattr(model, "text_proj", None)))
    return found


def _vision(root: Any, project: nn.Module | None) -> Tower:
    if not hasattr(getattr(root, "encoder", None), "layers") or not hasattr(root, "post_layernorm"):
        raise UnknownName(
            f"no token reduction for the vision tower {type(root).__name__}",
            where="CrossGET.attach",
            fix="It works on those of CLIP, SigLIP and BLIP",
        )
    layers = list(root.encoder.layers)
    has_class = hasattr(root.embeddings, "class_embedding")
    return Tower(
        "image",
        root,
        layers,
        root.config.hidden_size,
        "first" if has_class else "mean",
        root.post_layernorm,
        project,
        used=len(layers),
    )


def _text(root: Any, project: nn.Module | None) -> Tower:
    if hasattr(root.encoder, "layer"):  # BLIP: a post-norm encoder that pools its first token
        layers = list(root.encoder.layer)
        return Tower("text", root, layers, root.config.hidden_size, "first", None, project, used=len(layers))
    layers, siglip = list(root.encoder.layers), hasattr(root, "head")
    return Tower(
        "text",
        root,
        layers,
        root.config.hidden_size,
        "last" if siglip else "end",
        root.final_layer_norm,
        root.head if siglip else project,
        causal=not siglip,
        used=len(layers),
    )


def _llava(model: Any) -> dict[str, Tower]:
    inner = getattr(model, "model", model)
    read = model.config.vision_feature_layer
    if not isinstance(read, int):
        raise BadInput(
            f"reads the vision layers {list(read)} at once, which have different numbers of tokens after a reduction",
            where="CrossGET.attach",
            fix="Set config.vision_feature_layer to one layer",
        )
    root = inner.vision_tower
    tower = _vision(getattr(root, "vision_model", root), inner.multi_modal_projector)
    used = read if read >= 0 else len(tower.layers) + 1 + read
    if not 1 <= used <= len(tower.layers):
        raise BadInput(
            f"reads the vision layer {read} of {len(tower.layers)}",
            where="CrossGET.attach",
            fix=f"Set config.vision_feature_layer to -{len(tower.layers)} to -1, or 1 to {len(tower.layers)}",
        )
    image = Tower(
        "image", tower.root, tower.layers, tower.width, tower.pooled, None, tower.project, used=used, spread=False
    )
    language = inner.language_model
    layers = list(language.layers)
    text = Tower(
        "text",
        language,
        layers,
        language.config.hidden_size,
        "first",
        causal=True,
        used=len(layers),
        spread=False,
        prefix=True,
    )
    return {"image": image, "text": text}


def end_of_text(root: Any, ids: Tensor) -> Tensor:
    """Where each text ends, int64 ``[B]``, as the CLIP text model finds it in ids ``[B, T]``."""
    end = getattr(root.config, "eos_token_id", None)
    if end is None or end == 2:  # configs before transformers 4.31: the end token has the largest id
        return ids.argmax(dim=-1)
    return (ids == end).int().argmax(dim=-1)


def detached_call(module: nn.Module | None, x: Tensor) -> Tensor:
    """``module(x)`` through which no gradient reaches the module's weights; x itself where there is no module."""
    if module is None:
        return x
    weights = {name: value.detach() for name, value in module.named_parameters()}
    return torch.func.functional_call(module, weights, (x,))

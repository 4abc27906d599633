"""Deep prompts: learned vectors that stand among the tokens of a tower, with others in their place at every layer.

    >>> with deep_prompts(model, text=text_prompts, vision=vision_prompts):     # one [n, W] a layer
    ...     model.get_text_features(**tokens), model.get_image_features(pixels)
    >>> encode_text(model, ids, text_prompts, mask), encode_images(model, pixels, vision_prompts)

Text: n tokens are put behind the start token, ``[start | prompts | words . end | pad]``, and get positions like any word.
Vision: n tokens are put behind the patches, after positions were added and before the first norm. Before layer i the n tokens
are exchanged for the prompts of layer i ("replace", VPT-deep: Jia and others 2022, arXiv 2203.12119; text and vision together:
MaPLe, arXiv 2210.03117). Layers without prompts of their own let the tokens pass. Behind the last layer the vision
prompts are taken out, so pooling, norms and projection are the model's own and see its own tokens.

Everything happens in forward hooks on a model of Hugging Face transformers. No weight is written, no module is exchanged, no
tensor is changed in place, gradients flow into the prompts; without prompts the outputs are the model's own, bit for bit.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from chiasm.blocks.prompts import dual_encoder, frozen
from chiasm.errors import BadInput

# Values of `config.model_type` whose towers are stacks of layers as used here.
SUPPORTED = ("clip", "siglip", "metaclip_2", "chinese_clip", "altclip")
# Their texts begin with a token of its own; SigLIP's do not.
_WITH_START = {"clip", "metaclip_2", "chinese_clip", "altclip"}
# Their text vector is the one at the end token.
_POOLED_AT_END = {"clip", "metaclip_2"}


class _Open(threading.local):
    """How many `deep_prompts` are open on this thread, for each tower: what is attached for good stands back meanwhile."""

    def __init__(self) -> None:
        self.towers: Counter[int] = Counter()


_open = _Open()

# Prompts of one tower: for each prompted layer, from the first, ``[n, W]``, or ``[B, n, W]`` for prompts of each item.
Prompts = Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """What prompts must fit.

    Args:
        text_width, text_layers: width and number of layers of the text tower.
        context: tokens that a text may have.
        vision_width, vision_layers: width and number of layers of the vision tower.
        dim: length of the vectors of both.
    """

    text_width: int
    text_layers: int
    context: int
    vision_width: int
    vision_layers: int
    dim: int


@dataclass(frozen=True)
class _Towers:
    """The parts of a two-tower network that are hooked."""

    kind: str
    network: Any
    text: Any
    words: Any
    text_layers: Any
    context: int
    vision: Any
    vision_layers: Any


def _towers(model: Any) -> _Towers:
    network = dual_encoder(model, SUPPORTED)
    kind = network.config.model_type
    text = getattr(network.text_model, "roberta", network.text_model)
    embeddings, encoder = text.embeddings, text.encoder
    words = getattr(embeddings, "token_embedding", None) or embeddings.word_embeddings
    places = getattr(embeddings, "position_embedding", None) or embeddings.position_embeddings
    # RoBERTa counts positions from the one behind that of the padding.
    unused = (places.padding_idx or 0) + 1 if kind == "altclip" else 0
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    vision = network.vision_model
    return _Towers(kind, network, text, words, layers, places.num_embeddings - unused, vision, vision.encoder.layers)


def tower_sizes(model: Any) -> TowerSizes:
    """Widths, depths and context of a model's towers.

    Args:
        model: `chiasm.blocks.prompts.dual_encoder` says what it may be; here also Chinese CLIP and AltCLIP.

    Raises:
        UnknownName: an architecture that is not one of `SUPPORTED`.
    """
    towers = _towers(model)
    vision_width = towers.vision.config.hidden_size
    projection = getattr(towers.network, "text_projection", None)
    return TowerSizes(
        towers.words.embedding_dim,
        len(towers.text_layers),
        towers.context,
        vision_width,
        len(towers.vision_layers),
        vision_width if projection is None else projection.out_features,
    )


class DeepPrompts:
    """Prompts in the towers of a model, until `remove`.

    Args:
        model: a two-tower model, see `tower_sizes`.
        text: asked once a call of the text tower for its `Prompts`; None leaves the tower alone.
        vision: the same of the vision tower.
        thread: only calls from this thread (`threading.get_ident`) see the prompts; None for all.

    Attributes:
        enabled: set it to False and the model gives its own outputs.

    Raises:
        UnknownName: an architecture that is not one of `SUPPORTED`.
        BadInput: prompts are attached to this tower already (``thread`` None); when the model is called, prompts that fit
            neither width nor depth, or a text that has no room for them.
    """

    def __init__(
        self,
        model: Any,
        *,
        text: Callable[[], Prompts] | None = None,
        vision: Callable[[], Prompts] | None = None,
        thread: int | None = None,
    ) -> None:
        self.enabled = True
        self._thread = thread
        self._towers = towers = _towers(model)
        for tower, given in ((towers.text, text), (towers.vision, vision)):
            if thread is None and given is not None and _attached(tower):
                raise BadInput("the model has attached prompts already", where="deep prompts", fix="Detach them first")
        # What a call in progress puts in, for each thread and tower.
        self._now = threading.local()
        self._handles: list[Any] = []
        if text is not None:
            self._text_source = text
            self._handles += [
                towers.text.register_forward_pre_hook(self._begin_text, with_kwargs=True),
                towers.words.register_forward_hook(self._first_text),
                towers.text.register_forward_hook(self._end, always_call=True),
            ]
            self._handles += self._at_layers(towers.text_layers, "text", self._place_text)
        if vision is not None:
            self._vision_source = vision
            self._handles += [
                towers.vision.register_forward_pre_hook(self._begin_vision, with_kwargs=True),
                towers.vision.embeddings.register_forward_hook(self._first_vision),
                towers.vision.encoder.register_forward_hook(self._without_prompts),
                towers.vision.register_forward_hook(self._end, always_call=True),
            ]
            self._handles += self._at_layers(towers.vision_layers, "vision", _place_last)

    def remove(self) -> None:
        """Takes the prompts out; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _at_layers(self, layers: Any, tower: str, place: Callable[[Tensor, Tensor], Tensor]) -> list[Any]:
        def before(number: int) -> Callable[..., Any]:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                prompts = getattr(self._now, tower, None)
                if prompts is None or number >= len(prompts):
                    return None
                if args:
                    return (place(args[0], prompts[number]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": place(kwargs["hidden_states"], prompts[number])}

            return hook

        return [
            layer.register_forward_pre_hook(before(number), with_kwargs=True)
            for number, layer in enumerate(layers)
            if number
        ]

    def _asked(self, tower: Any) -> bool:
        if self._thread is None:
            return self.enabled and not _open.towers[id(tower)]
        return self.enabled and self._thread == threading.get_ident()

    def _checked(self, prompts: Prompts, tower: str, layers: Any, width: int, module: Any) -> Prompts | None:
        prompts = list(prompts)
        if not all(torch.is_tensor(prompt) and prompt.ndim in (2, 3) for prompt in prompts):
            raise BadInput("prompts are no list of tensors", where="deep prompts", fix="Give [n, width] for each layer")
        if not prompts or not prompts[0].shape[-2]:
            return None
        shapes = {tuple(prompt.shape[-2:]) for prompt in prompts}
        if len(prompts) > len(layers) or len(shapes) > 1 or {s[-1] for s in shapes} != {width}:
            raise BadInput(
                f"prompts for {len(prompts)} layers of shapes {sorted(shapes)} in a {tower} tower with {len(layers)} layers "
                f"of width {width}",
                where="deep prompts",
                fix="Give at most one [n, width] a layer, with the same n",
            )
        if module.training and any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
            raise BadInput(
                f"the {tower} tower's own gradient checkpointing would run again without the prompts",
                where="deep prompts",
                fix="Call model.gradient_checkpointing_disable() and use encode_text(..., checkpoint=True)",
            )
        return prompts

    # ---- text

    def _begin_text(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._now.text = None
        if not self._asked(module):
            return None
        towers = self._towers
        prompts = self._checked(self._text_source(), "text", towers.text_layers, towers.words.embedding_dim, module)
        if prompts is None:
            return None
        kwargs = dict(kwargs)
        ids = args[0] if args else kwargs.pop("input_ids", None)
        if ids is None or kwargs.get("position_ids") is not None:
            raise BadInput("prompts need input_ids, and positions of the model's own", where="deep prompts")
        start, n = int(towers.kind in _WITH_START), prompts[0].shape[-2]
        mask = args[1] if len(args) > 1 else kwargs.pop("attention_mask", None)
        ids, mask = _with_room(ids, mask, n, start, towers)
        kinds = kwargs.get("token_type_ids")
        if kinds is not None:
            kwargs["token_type_ids"] = _inserted(kinds, n, start, 0)[:, : ids.shape[1]]
        self._now.text, self._now.start = prompts, start
        return (), {**kwargs, "input_ids": ids, "attention_mask": mask}

    def _first_text(self, module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        prompts = getattr(self._now, "text", None)
        return None if prompts is None else self._place_text(output, prompts[0])

    def _place_text(self, x: Tensor, prompt: Tensor) -> Tensor:
        start, n = self._now.start, prompt.shape[-2]
        return torch.cat([x[:, :start], _for_batch(prompt, x), x[:, start + n :]], dim=1)

    # ---- vision

    def _begin_vision(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._now.vision = None
        if self._asked(module):
            towers = self._towers
            self._now.vision = self._checked(
                self._vision_source(), "vision", towers.vision_layers, towers.vision.config.hidden_size, module
            )

    def _first_vision(self, module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        prompts = getattr(self._now, "vision", None)
        return None if prompts is None else torch.cat([output, _for_batch(prompts[0], output)], dim=1)

    def _without_prompts(self, module: Any, inputs: Any, output: Any) -> Any:
        prompts = getattr(self._now, "vision", None)
        if prompts is None:
            return None
        return replace(output, last_hidden_state=output.last_hidden_state[:, : -prompts[0].shape[-2]])

    def _end(self, module: Any, inputs: Any, output: Any) -> None:
        self._now.text = self._now.vision = None


def _attached(tower: Any) -> bool:
    """Whether a `DeepPrompts` for all threads is on a tower."""
    owners = (getattr(hook, "__self__", None) for hook in tower._forward_pre_hooks.values())
    return any(isinstance(owner, DeepPrompts) and owner._thread is None for owner in owners)


def _place_last(x: Tensor, prompt: Tensor) -> Tensor:
    return torch.cat([x[:, : x.shape[1] - prompt.shape[-2]], _for_batch(prompt, x)], dim=1)


def _for_batch(prompt: Tensor, x: Tensor) -> Tensor:
    """A prompt ``[n, W]`` or ``[B, n, W]`` as ``[B, n, W]`` of the type of ``x``."""
    if prompt.ndim == 3 and prompt.shape[0] not in (1, x.shape[0]):
        raise BadInput(f"prompts of {prompt.shape[0]} items for a batch of {x.shape[0]}", where="deep prompts")
    return prompt.to(x.dtype).expand(x.shape[0], -1, -1)


def _inserted(row: Tensor, n: int, start: int, value: int) -> Tensor:
    """``[B, L]`` -> ``[B, L + n]`` with a value in the new places."""
    return torch.cat([row[:, :start], row.new_full((len(row), n), value), row[:, start:]], dim=1)


def _with_room(ids: Tensor, mask: Tensor | None, n: int, start: int, towers: _Towers) -> tuple[Tensor, Tensor | None]:
    """Token ids and mask with n places for prompts; padding at the end makes room where the context is full."""
    config = towers.text.config
    pad, end = config.pad_token_id, config.eos_token_id
    # Any word will do, as its embedding is replaced; but the end must not be found here, nor padding.
    word = next(i for i in range(config.vocab_size) if i not in (pad, end, config.bos_token_id))
    longer = _inserted(ids, n, start, word)
    over = longer.shape[1] - towers.context
    if over > 0:
        empty = longer == pad if mask is None else (longer == pad) | (_inserted(mask, n, start, 1) == 0)
        kept = longer[:, : towers.context]
        complete = bool(empty[:, towers.context :].all())
        if towers.kind in _POOLED_AT_END:
            # Padding may be the end token itself, and the first one counts (in old checkpoints the highest id).
            old = towers.kind == "clip" and end == 2
            found = kept.amax(1) == ids.amax(1) if old else (kept == end).any(1)
            complete = complete and bool(found.all())
        if not complete:
            longest = int((longer.shape[1] - empty.flip(1).int().argmin(1)).max()) - n
            raise BadInput(
                f"{n} prompt tokens and a text of {longest} tokens exceed the context of {towers.context}",
                where="deep prompts",
                fix=f"Use fewer prompt tokens, or texts of at most {max(0, towers.context - n)} tokens",
            )
        longer = kept
    if mask is not None:
        mask = _inserted(mask, n, start, 1)[:, : longer.shape[1]]
    return longer, mask


@contextmanager
def deep_prompts(model: Any, *, text: Prompts | None = None, vision: Prompts | None = None) -> Iterator[None]:
    """While it is open, calls of this thread's go with these prompts; afterwards the model is as it was.

    Prompts that were attached for good (`DeepPrompts`) stand back in a tower for which prompts are given here, even if none.

    Args:
        model: see `tower_sizes`.
        text: ``[n, Wt]`` for each prompted layer of the text tower, from the first; None leaves the tower alone.
        vision: the same of the vision tower.

    Raises:
        UnknownName: an architecture that is not one of `SUPPORTED`.
        BadInput: prompts that fit neither width nor depth, or (when the model is called) a text without room for them.
    """
    handle = DeepPrompts(
        model,
        text=None if text is None else lambda: text,
        vision=None if vision is None else lambda: vision,
        thread=threading.get_ident(),
    )
    towers = handle._towers
    taken = [id(tower) for tower, given in ((towers.text, text), (towers.vision, vision)) if given is not None]
    _open.towers.update(taken)
    try:
        yield
    finally:
        _open.towers.subtract(taken)
        handle.remove()


def _check_ids(ids: Any, mask: Any, context: int) -> None:
    if not torch.is_tensor(ids) or ids.ndim != 2 or not ids.numel() or ids.is_floating_point():
        raise BadInput(
            f"token ids {tuple(ids.shape) if hasattr(ids, 'shape') else type(ids).__name__}",
            where="encode_text",
            fix="Give whole numbers [B, L], B and L at least 1",
        )
    if mask is not None and tuple(mask.shape) != tuple(ids.shape):
        raise BadInput(
            f"a mask {tuple(mask.shape)} for ids {tuple(ids.shape)}", where="encode_text", fix="Give both as [B, L]"
        )
    if context and ids.shape[1] > context:
        raise BadInput(
            f"a text of {ids.shape[1]} tokens exceeds the context of {context}", where="encode_text", fix="Shorten it"
        )


def _check_pixels(pixels: Any, config: Any) -> None:
    wanted = (config.num_channels, config.image_size, config.image_size)
    if not torch.is_tensor(pixels) or not len(pixels) or tuple(pixels.shape[1:]) != wanted:
        raise BadInput(
            f"pictures {tuple(pixels.shape) if hasattr(pixels, 'shape') else type(pixels).__name__}",
            where="encode_images",
            fix=f"Give the processor's pixel_values, a tensor [B, {', '.join(map(str, wanted))}] with B >= 1",
        )


def encode_text(
    model: Any,
    input_ids: Tensor,
    prompts: Prompts,
    attention_mask: Tensor | None = None,
    *,
    freeze: bool = False,
    checkpoint: bool = False,
) -> Tensor:
    """Text features ``[B, D]`` (not normalized) with prompts: a pure function of its arguments.

    Args:
        model: see `tower_sizes`.
        input_ids: ``[B, L]``, without places for the prompts.
        prompts: ``[n, Wt]`` for each prompted layer; an empty list for none.
        attention_mask: ``[B, L]``, as the model's own.
        freeze: the model's weights take no part in gradients, and it is in eval mode meanwhile.
        checkpoint: keep no activations, compute them again in the backward pass (Chen and others 2016, arXiv 1604.06174).

    Raises:
        as `deep_prompts`; BadInput also for ids and masks of the wrong shape, and texts longer than the context.
    """
    network = dual_encoder(model, SUPPORTED)
    _check_ids(input_ids, attention_mask, 0 if len(prompts) else _towers(network).context)

    def run(ids: Tensor, mask: Tensor | None, *given: Tensor) -> Tensor:
        with frozen(network) if freeze else nullcontext(), deep_prompts(model, text=given):
            return network.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    if checkpoint and torch.is_grad_enabled():
        # Hooks and freezing are set inside of what runs again, on whatever thread it does.
        return checkpointed(run, input_ids, attention_mask, *prompts, use_reentrant=False)
    return run(input_ids, attention_mask, *prompts)


def encode_images(
    model: Any, pixel_values: Tensor, prompts: Prompts, *, freeze: bool = False, checkpoint: bool = False
) -> Tensor:
    """Image features ``[B, D]`` (not normalized) with prompts: a pure function of its arguments.

    Args:
        model: see `tower_sizes`.
        pixel_values: ``[B, 3, H, W]``.
        prompts: ``[n, Wv]`` for each prompted layer; an empty list for none.
        freeze, checkpoint: as of `encode_text`.

    Raises:
        as `deep_prompts`; BadInput also for no pictures, and for those of another size than the model's.
    """
    network = dual_encoder(model, SUPPORTED)
    _check_pixels(pixel_values, network.vision_model.config)

    def run(pixels: Tensor, *given: Tensor) -> Tensor:
        with frozen(network) if freeze else nullcontext(), deep_prompts(model, vision=given):
            return network.get_image_features(pixel_values=pixels).pooler_output

    if checkpoint and torch.is_grad_enabled():
        return checkpointed(run, pixel_values, *prompts, use_reentrant=False)
    return run(pixel_values, *prompts)

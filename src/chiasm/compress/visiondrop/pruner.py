"""VisionDrop: image tokens are dropped by what they mean to each other, in the encoder and again inside the language model.

Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment, 2025 (AAAI 2026), arXiv 2506.22283.

    encoder, at the layer the model reads:   score_i = sum_h A[cls, i]          (no class token: mean over heads and patches)
    before layer l of the language model:    score_i = mean_q mean_h A[q, i]    q, i visual; A over the whole sequence
    every stage:   [ prefix | d best, in order | c contextual | suffix ],   contextual_j = target_j + mean of its cluster

Nothing is trained and the question is not looked at, so a pruned picture in the cache serves any question.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence as Listing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.blocks.attention import AttentionTap, queries_and_keys
from chiasm.compress.visiondrop.model import (
    Parts,
    called_with,
    image_tokens,
    parts_of,
    pixels_in,
    refuse_labels,
    valid_tokens,
)
from chiasm.compress.visiondrop.schedule import Stage, check_stages, schedule, tokens_by_layer
from chiasm.compress.visiondrop.scores import CORRECTIONS, SCORERS, Correction, Scorer, select
from chiasm.compress.visiondrop.sequence import Cut, Memory, Positions, Run, Segment, Sequence, copied
from chiasm.errors import BadInput, unknown_name


class VisionDrop(nn.Module):
    """Drops and merges the image tokens of a LLaVA-like model of transformers while it reads a prompt.

    It has no parameters; its state dict is empty.

    Args:
        tokens: mean number of visual tokens over the layers of the language model; the rest follows from `schedule`.
        stages: the stages themselves, instead of ``tokens``.
        cuts: layers before which tokens are dropped again, for `schedule`.
        encoder: tokens behind the encoder as a multiple of ``tokens``, for `schedule`: 1.5 for pictures, 3 for video.
        scorer: ``"visual"``; the baselines ``"text"`` (the last word's attention, as FastV and PyramidDrop), ``"random"``,
            ``"uniform"`` and ``"norm"``. Behind the encoder ``"text"`` is the visual score, since there is no text yet.
        merge: contextual tokens are target plus mean of the cluster (``"sum"``, published) or the mean of all (``"mean"``).
        positions: position ids are packed again (``"repack"``, published), or every token keeps its own (``"keep"``).
        correction: of the causal mask's preference for early tokens, see `visual_scores`; ``"none"`` is published.
        bidirectional: visual queries see all visual tokens of their picture while scoring; published: only earlier ones.
        keep_class: behind the encoder the class token is one of the dominant tokens, as in the released code.
        seed: of ``scorer="random"``.
        record: score even where nothing is dropped, for `chiasm.compress.visiondrop.probe`.

    Raises:
        UnknownName: an option that does not exist.
        BadInput: a budget below 1, or stages that are empty or not in order.
    """

    def __init__(
        self,
        tokens: int = 64,
        *,
        stages: Listing[Stage] | None = None,
        cuts: Listing[int] | None = None,
        encoder: float = 1.5,
        scorer: str = "visual",
        merge: Literal["sum", "mean"] = "sum",
        positions: Positions = "repack",
        correction: Correction = "none",
        bidirectional: bool = False,
        keep_class: bool = True,
        seed: int = 0,
        record: bool = False,
    ) -> None:
        super().__init__()
        for kind, name, known in (
            ("scorer", scorer, SCORERS),
            ("merge", merge, ("sum", "mean")),
            ("positions", positions, ("repack", "keep")),
            ("correction", correction, CORRECTIONS),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if stages is None and not tokens >= 1:
            raise BadInput(f"a budget of {tokens} tokens", where="VisionDrop", fix="Keep at least one")
        if stages is not None:
            layers = [0 if stage.layer is None else stage.layer for stage in stages]
            if not stages or layers != sorted(set(layers)):
                raise BadInput(
                    f"stages before the layers {layers}", where="VisionDrop", fix="Give them in order, each once"
                )
        self.tokens, self.given, self.cuts, self.encoder = tokens, stages, cuts, encoder
        self.merge: Literal["sum", "mean"] = merge
        self.positions: Positions = positions
        self.keep_class, self.record = keep_class, record
        self._score = Scorer(scorer, correction, bidirectional, seed)
        self.stages: list[Stage] = []
        self._parts: Parts | None = None
        self._tap: AttentionTap | None = None
        self._hooks: list[Any] = []
        self._local = threading.local()
        self._memories: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:  # a copy has the settings but is attached to nothing
        bare = {"stages": [], "_parts": None, "_tap": None, "_hooks": [], "_local": None, "_memories": None}
        return self.__dict__ | bare

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._local, self._memories = threading.local(), weakref.WeakKeyDictionary()

    # ---- putting it in and taking it out

    def attach(self, model: Any) -> VisionDrop:
        """Puts it into a model, for inference with ``forward`` and ``generate``.

        Raises:
            UnknownName: an architecture that is not supported; the message names those that are.
            BadInput: already attached, or another one is; a budget above the model's tokens, or stages outside its layers.
        """
        if self._parts is not None:
            raise BadInput("is attached already", where="VisionDrop", fix="Call detach() first")
        parts = parts_of(model)
        if any(isinstance(getattr(h, "__self__", None), VisionDrop) for h in parts.inner._forward_pre_hooks.values()):
            raise BadInput("another one is attached to this model", where="VisionDrop", fix="Call its detach() first")
        layers = len(parts.layers)
        if self.given is None:
            self.stages = schedule(self.tokens, layers, self.cuts, encoder=self.encoder, available=parts.patches)
        else:
            self.stages = list(self.given)
            check_stages(self.stages, layers, parts.patches)
        self._parts, self._tap = parts, AttentionTap(parts.tower, parts.language).attach()
        add = self._hooks.append
        add(parts.outer.register_forward_pre_hook(refuse_labels, with_kwargs=True))
        add(parts.inner.register_forward_pre_hook(self._enter, with_kwargs=True))
        add(parts.inner.register_forward_hook(self._leave, always_call=True))
        add(parts.read.register_forward_pre_hook(self._see, with_kwargs=True))
        add(parts.read.register_forward_hook(self._look_back))
        add(parts.projector.register_forward_pre_hook(self._reduce_patches))
        for at, layer in enumerate(parts.layers):
            add(layer.register_forward_pre_hook(partial(self._layer, at), with_kwargs=True))
        return self

    def detach(self) -> None:
        """Takes it out: outputs are bit-identical to those before `attach`."""
        for hook in self._hooks:
            hook.remove()
        if self._tap is not None:
            self._tap.detach()
        self._hooks, self._tap, self._parts, self.stages = [], None, None, []
        self._local.__dict__.clear()
        self._memories.clear()

    # ---- the model's forward: prompts become shorter before the language model, new tokens get their places

    @property
    def _model(self) -> Parts:
        if self._parts is None:
            raise BadInput("is not attached", where="VisionDrop", fix="Call attach(model) first")
        return self._parts

    @property
    def _run(self) -> Run | None:
        return getattr(self._local, "run", None)

    def _enter(self, inner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = called_with(inner, args, kwargs)
        self._local.run = None
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            memory = self._memories.get(cache)
            return None if memory is None else ((), self._continue(memory, cache, given))
        ids, pixels = given.get("input_ids"), given.get("pixel_values")
        # `generate` runs the encoder by itself, before the model.
        encoded = (given.get("mm_encoder_outputs") or {}).get("image")
        if pixels is None and encoded is None:
            return None
        return (), self._prompt(given, ids, pixels, encoded)

    def _prompt(self, given: dict[str, Any], ids: Tensor | None, pixels: Tensor | None, encoded: Any) -> dict[str, Any]:
        parts = self._model
        images = len(encoded.pooler_output) if pixels is None else pixels_in(pixels)
        if not images:  # transformers cannot divide pruned image tokens among the copies of a prompt
            raise BadInput(
                "cannot generate several sequences of one prompt",
                where="VisionDrop",
                fix="Use num_beams=1 and num_return_sequences=1; for several samples repeat the prompt and its picture",
            )
        ids, rows, columns = parts.places(ids, images)
        batch, length = ids.shape
        mask, position = given.get("attention_mask"), given.get("position_ids")
        valid = valid_tokens(mask, ids)
        places = torch.arange(length, device=ids.device).expand(batch, -1)
        position = places if position is None else position.expand(batch, -1)
        grid = torch.arange(parts.patches, device=ids.device).expand(images, -1)
        run = self._local.run = Run()
        sequence = Sequence(valid, position, places, rows, columns, grid, ids.new_zeros(batch))
        if pixels is not None:
            own = ("vision_feature_layer", "vision_feature_select_strategy")
            encoded = parts.inner.get_image_features(
                pixel_values=pixels, **{name: given[name] for name in own if name in given}
            )
        features = image_tokens(encoded)
        source, cut = getattr(self._local, "encoded", (None, None))
        if cut is not None:
            run.cuts.append(cut)
        hidden = parts.inner.get_input_embeddings()(ids)
        features = features.to(hidden.dtype)
        stage = self.stages[0]
        if source is not None and features.shape[1] == source.shape[1]:
            hidden, run.sequence = sequence.shrink(hidden, features, source, stage.contextual, self.positions)
        else:
            hidden = hidden.clone()
            hidden[sequence.rows[:, None], sequence.columns] = features
            run.sequence = sequence
        run.memory = Memory(length, position[:, -1] + 1)
        run.memory.segments.append(Segment(0, run.sequence.valid, run.sequence.dropped))
        self._local.cuts = run.cuts
        self._local.sequence = run.sequence
        # Without a mask, transformers would take gaps in the position ids for the borders of packed sequences.
        whole = mask is None and self.positions == "repack" and bool(run.sequence.valid.all())
        return given | {
            "input_ids": None,
            "pixel_values": None,
            "mm_encoder_outputs": None,
            "inputs_embeds": hidden,
            "attention_mask": None if whole else run.sequence.valid.long(),
            "position_ids": run.sequence.position,
        }

    def _continue(self, memory: Memory, cache: Any, given: dict[str, Any]) -> dict[str, Any]:
        """New tokens behind a pruned prompt: mask and position ids of the first segment."""
        new = given.get("input_ids")
        new = given["inputs_embeds"] if new is None else new
        first = memory.segments[0]
        fresh, position = memory.added(cache, new, given.get("attention_mask"), given.get("position_ids"))
        self._local.run = Run(memory=memory, fresh=fresh, position=position)
        valid = torch.cat([first.valid, fresh], dim=1)
        return given | {
            "attention_mask": None if bool(valid.all()) else valid.long(),
            "position_ids": self._moved(position, first),
        }

    def _moved(self, position: Tensor, segment: Segment) -> Tensor:
        return position if self.positions == "keep" else position - segment.dropped[:, None]

    def _leave(self, _inner: nn.Module, _args: Any, output: Any) -> None:
        self._local.run = None

    # ---- the encoder

    def _see(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the layer whose output the model reads: remembers what goes in."""
        self._local.before = args[0] if args else kwargs["hidden_states"]

    def _look_back(self, layer: nn.Module, _args: Any, output: Any) -> None:
        self._local.after = output[0] if isinstance(output, tuple) else output

    def _reduce_patches(self, projector: nn.Module, args: tuple[Any, ...]) -> Any:
        """Between encoder and projector: the first stage."""
        parts, stage = self._parts, self.stages[0]
        before, after = self._local.__dict__.pop("before", None), self._local.__dict__.pop("after", None)
        self._local.encoded = (None, None)
        if parts is None or before is None or after is None or stage.layer is not None:
            return None
        patches = args[0]
        images, count = patches.shape[:2]
        grid = torch.arange(count, device=patches.device).expand(images, -1)
        if stage.count >= count and not self.record:
            return None
        layer: Any = parts.read
        query, key = queries_and_keys(layer.self_attn, layer.layer_norm1(before), attention_mask=None)
        scores = self._score.patches(query, key, patches, parts.has_class)
        if stage.count >= count:
            self._local.encoded = (None, Cut(stage, scores, grid, grid))
            return None
        with_class = self.keep_class and parts.has_class and stage.dominant > 0
        metric = key.mean(dim=1)[:, int(parts.has_class) :]
        new, source, dominant = select(
            patches, metric, scores, stage.dominant - with_class, stage.contextual, self.merge
        )
        kept = dominant
        if with_class:
            new = torch.cat([after[:, :1].to(new.dtype), new], dim=1)
            first = source.new_zeros(images, 1)
            source = torch.cat([first, source], dim=1)
            kept = torch.cat([first - 1, dominant], dim=1)
        self._local.encoded = (source, Cut(stage, scores, kept, grid))
        return (new, *args[1:])

    # ---- the language model

    def _layer(self, at: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before each layer: a stage, if there is one; then mask, places and cache of this segment."""
        run = self._run
        if run is None or run.memory is None:
            return None
        if run.sequence is None:
            return self._decode(at, run, args, kwargs)
        cache = kwargs.get("past_key_values")
        if at == 0 and cache is not None:
            self._memories[cache] = run.memory
        stage = next((stage for stage in self.stages if stage.layer == at and at), None)
        hidden = args[0] if args else kwargs["hidden_states"]
        if stage is not None:
            hidden = self._reduce_states(at, layer, run, stage, hidden, kwargs)
        if run.sequence.rotary is None:
            return None  # nothing has been dropped inside the language model yet
        kwargs = kwargs | {
            "attention_mask": run.sequence.mask,
            "position_embeddings": run.sequence.rotary,
            "position_ids": run.sequence.position,
        }
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _reduce_states(
        self, at: int, layer: Any, run: Run, stage: Stage, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        sequence, parts = run.sequence, self._model
        assert sequence is not None
        assert run.memory is not None
        if stage.count >= sequence.columns.shape[1] and not self.record:
            return hidden
        rows, columns = sequence.rows, sequence.columns
        visual = hidden[rows[:, None], columns]
        rotary = sequence.rotary or kwargs["position_embeddings"]
        query, key = queries_and_keys(
            layer.self_attn, layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None
        )
        scaling = getattr(layer.self_attn, "scaling", query.shape[-1] ** -0.5)
        scores = self._score.tokens(query, key, visual, sequence.valid, rows, columns, scaling)
        if stage.count >= columns.shape[1]:
            run.cuts.append(Cut(stage, scores, sequence.grid, sequence.grid))
            return hidden
        metric = key.mean(dim=1)[rows[:, None], columns]
        new, source, best = select(visual, metric, scores, stage.dominant, stage.contextual, self.merge)
        run.cuts.append(Cut(stage, scores, sequence.grid.gather(1, best), sequence.grid))
        hidden, run.sequence = sequence.shrink(hidden, new, source, stage.contextual, self.positions)
        run.sequence.mask = parts.mask(run.sequence.valid, hidden)
        run.sequence.rotary = parts.language.rotary_emb(hidden, run.sequence.position)
        run.memory.segments.append(Segment(at, run.sequence.valid, run.sequence.dropped))
        self._local.sequence = run.sequence
        return hidden

    def _decode(self, at: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """New tokens in a segment behind the first: their keys are fewer, and their places earlier."""
        assert run.memory is not None
        segment = [s for s in run.memory.segments if s.layer <= at][-1]
        if segment.layer == 0:
            return None
        assert run.fresh is not None
        assert run.position is not None
        hidden = args[0] if args else kwargs["hidden_states"]
        position = self._moved(run.position, segment)
        if run.segment is not segment:
            valid = torch.cat([segment.valid, run.fresh], dim=1)
            run.segment = segment
            run.mask = self._model.mask(valid, hidden)
            run.rotary = self._model.language.rotary_emb(hidden, position)
        return args, kwargs | {"attention_mask": run.mask, "position_embeddings": run.rotary, "position_ids": position}

    # ---- what it tells and gives

    @property
    def cuts_made(self) -> list[Cut]:
        """What each stage did in the last prompt on this thread."""
        return list(getattr(self._local, "cuts", []))

    def cut(self, values: Tensor, fill: int = -100) -> Tensor:
        """Labels (or any ``[B, T]`` values of the prompt as given) of the positions that the last prompt's logits have.

        Raises:
            BadInput: no prompt has been read, or values of another shape than its ids.
        """
        sequence = getattr(self._local, "sequence", None)
        if sequence is None:
            raise BadInput(
                "no prompt with a picture has been read", where="VisionDrop.cut", fix="Call the attached model first"
            )
        return sequence.cut(values, fill)

    def fork(self, cache: Any, *, drop_last: int = 0) -> Any:
        """A copy of a pruned cache, to answer one question on a picture and another one on the same cache.

        Args:
            cache: the cache of a prompt that was read with this pruner attached.
            drop_last: tokens that the copy forgets, at the end.

        Raises:
            BadInput: a cache that is not this pruner's, or more tokens than follow the last picture.
        """
        memory = next((kept for known, kept in self._memories.items() if known is cache), None)
        if memory is None:
            raise BadInput(
                "the cache was not filled with this pruner attached",
                where="VisionDrop.fork",
                fix="Give past_key_values of a prompt that the attached model read with use_cache=True",
            )
        twin = copied(cache)
        self._memories[twin] = memory.forget(twin, drop_last)
        return twin

    def visual_tokens(self) -> list[int]:
        """Visual tokens of one picture in each layer of the language model; the pruner must be attached."""
        return tokens_by_layer(self.stages, len(self._model.layers), self._model.patches)

    def flops(self, text: int, images: int = 1) -> tuple[int, int]:
        """FLOPs of the language model for one prompt, whole and reduced (scoring included).

        Args:
            text: tokens of the prompt that are not visual.
            images: pictures in it.

        Raises:
            BadInput: not attached, or negative numbers.
        """
        return self._model.prefill_flops(self.visual_tokens(), text, images)

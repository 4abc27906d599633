"""`TowerReduction`: merges tokens inside the towers of a model, with or without cross tokens; what CrossGET and ToMe share."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.blocks.attention import Attended, AttentionTap
from chiasm.blocks.merging import spread
from chiasm.compress.crossget.alignment import js_divergence, paired_layers
from chiasm.compress.crossget.placeholders import shortened
from chiasm.compress.crossget.towers import (
    Reduced,
    Tower,
    block_of,
    check_finite,
    check_free,
    detached_call,
    end_of_text,
    towers_of,
)
from chiasm.compress.flops import matching_flops, stack_flops
from chiasm.compress.token_reducer import Schedule, TokenReducer, TokenState
from chiasm.errors import BadInput


@dataclass
class _Run:
    """One pass through a tower on one thread."""

    ids: Tensor | None = None
    mask: Tensor | None = None
    state: TokenState | None = None
    end: Tensor | None = None
    plan: list[int] = field(default_factory=list)
    cross: list[Tensor] = field(default_factory=list)
    achieved: list[int] = field(default_factory=list)


class TowerReduction(nn.Module):
    """Merges tokens in the towers of a Hugging Face model; what `CrossGET` and `ToMe` share.

    Args:
        reducers: tower (``"image"``, ``"text"``) -> its `TokenReducer`. Towers that are not named, or whose schedule takes
            nothing, stay bit-identical.
        cross: whether there are cross tokens.
        parity: the alignment as in the released code.
    """

    def __init__(self, reducers: Mapping[str, TokenReducer], *, cross: bool, parity: bool = False) -> None:
        super().__init__()
        self.reducers, self.has_cross, self.parity = dict(reducers), cross, parity
        self.cross = nn.ParameterDict()
        self.towers: dict[str, Tower] = {}
        self._tap: AttentionTap | None = None
        self._undo: list[Any] = []
        self._local = threading.local()
        self._seen: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A copy holds the cross tokens but is attached to nothing.
        return self.__dict__ | {"towers": {}, "_tap": None, "_undo": [], "_local": None, "_seen": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._local = threading.local()

    # ---- putting it in and taking it out

    def attach(self, model: Any) -> TowerReduction:
        """Puts the reduction into a model; cross tokens start at zero, so they are copies of the summary token.

        Args:
            model: CLIP, SigLIP, BLIP or LLaVA of transformers, a tower of the first two alone, or a model or space of
                sentence-transformers over one. Which of its parameters train is left to the caller.

        Raises:
            UnknownName: an architecture that is not supported.
            BadInput: already attached, or another one is; a text tower that cannot be reduced; more tokens than there are.
        """
        if self.towers:
            raise BadInput("is attached already", where=type(self).__name__, fix="Call detach() first")
        towers = towers_of(model)
        for name, tower in towers.items():
            check_free(tower)
            if self._reduces(name):
                if tower.prefix:
                    raise BadInput(
                        "does not reduce a language model", where=type(self).__name__, fix="Take r_text=0 for LLaVA"
                    )
                for layer in tower.layers[: tower.used]:
                    block_of(layer)
                if name == "image":
                    self._plan(tower)
                else:  # a text's length is known only when it comes
                    self._schedule(name).counts(tower.used)
        self.towers = towers
        for name, tower in towers.items():
            if self.has_cross and name not in self.cross:
                like = next(tower.layers[0].parameters())
                self.cross[name] = nn.Parameter(torch.zeros(1, tower.used, tower.width, device=like.device))
            self._put(name, tower)
        roots = [tower.root for name, tower in towers.items() if self._reduces(name)]
        self._tap = AttentionTap(*roots).attach() if roots else None
        return self

    def _put(self, name: str, tower: Tower) -> None:
        if name == "text":
            hook = tower.root.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            self._undo.append(hook.remove)
        for at, layer in enumerate(tower.layers[: tower.used]):
            if self._reduces(name):
                own = layer.__dict__.get("forward")
                layer.forward = Reduced(self._layer, name, at)
                self._undo.append(partial(_restore, layer, own))
            elif self.has_cross:
                hook = layer.register_forward_pre_hook(partial(self._read, name, at), with_kwargs=True)
                self._undo.append(hook.remove)

    def detach(self) -> None:
        """Takes the reduction out: outputs are bit-identical to those before `attach`. Cross tokens are kept."""
        for undo in self._undo:
            undo()
        if self._tap is not None:
            self._tap.detach()
        self._undo, self._tap, self.towers = [], None, {}
        self._seen.clear()

    def _schedule(self, name: str) -> Schedule:
        schedule = self.reducers[name].schedule
        return Schedule(schedule) if isinstance(schedule, int) else schedule

    def _reduces(self, name: str) -> bool:
        return name in self.reducers and not self._schedule(name).nothing

    # ---- one pass

    def _run(self, name: str, fresh: bool = False) -> _Run:
        runs = self._local.__dict__.setdefault("runs", {})
        if fresh or name not in runs:
            runs[name] = _Run()
        return runs[name]

    def _enter(self, name: str, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remembers ids and mask of a text before its layers run."""
        run = self._run(name, fresh=True)
        run.ids = kwargs.get("input_ids", args[0] if args else None)
        run.mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)

    def _layer(self, name: str, at: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stands for the forward of a reduced layer."""
        tower, reducer = self.towers[name], self.reducers[name]
        run = self._run(name)
        if at == 0:
            run = self._start(name, tower, hidden)
            assert run.state is not None
            hidden = run.state.tokens  # with the cross token
        assert run.state is not None
        state = run.state.holding(hidden)
        if self.has_cross:
            summary = hidden[:, -1:]
            if name == "text":
                end = None if run.end is None else state.owner.gather(1, run.end[:, None])[:, 0]
                summary = tower.summary(hidden[:, :-1], end)
            token = (summary.detach() + self.cross[name][:, at]).to(hidden.dtype)
            state = state.holding(torch.cat([hidden[:, :-1], token], dim=1))
            run.cross.append(token[:, 0])

        def reduce(x: Tensor, call: Attended) -> Tensor:
            run.state = reducer(state.holding(x), run.plan[at], call)
            run.achieved.append(x.shape[1] - run.state.tokens.shape[1])
            return run.state.tokens

        further = {"is_causal": False} if tower.causal else {}
        out = block_of(tower.layers[at]).run(state.tokens, tower.bias(state), reduce, **further)
        return self._finish(name, tower, run, out) if at == tower.used - 1 else out

    def _start(self, name: str, tower: Tower, hidden: Tensor) -> _Run:
        if torch.is_grad_enabled() and getattr(tower.layers[0], "gradient_checkpointing", False):
            raise BadInput(
                "cannot run the layers twice, as gradient checkpointing does",
                where=type(self).__name__,
                fix="Call model.gradient_checkpointing_disable()",
            )
        check_finite(name, hidden)
        run = self._run(name, fresh=name != "text")
        run.cross, run.achieved = [], []
        batch, length = hidden.shape[:2]
        padding = None
        if name == "text" and run.mask is not None and run.mask.ndim == 2 and not bool(run.mask.all()):
            padding = ~run.mask.bool()
        run.end = end_of_text(tower.root, run.ids) if tower.pooled == "end" and run.ids is not None else None
        if self.has_cross:
            hidden = torch.cat([hidden, tower.summary(hidden, run.end).detach()], dim=1)
            padding = None if padding is None else nn.functional.pad(padding, (0, 1))
        protected = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if tower.pooled != "mean":
            protected[:, 0] = True  # class token, or the start of a text
        if self.has_cross:
            protected[:, -1] = True
        if tower.pooled == "last":
            protected[:, length - 1] = True
        if run.end is not None:
            protected.scatter_(1, run.end[:, None], True)
        run.state = TokenState.start(hidden, protected, padding)
        free = int(protected.sum(dim=1).min()) if batch else 0
        run.plan = self._schedule(name).plan(hidden.shape[1], tower.used, free)
        return run

    def _finish(self, name: str, tower: Tower, run: _Run, out: Tensor) -> Tensor:
        """The tokens that leave the tower: without the cross token; one for every input token where the rest needs it."""
        assert run.state is not None
        state, run.state = run.state, None
        self._keep(name, run)
        owner = state.owner
        if self.has_cross:
            out, owner = out[:, :-1], owner[:, :-1]
        self._local.owner = getattr(self._local, "owner", {}) | {name: owner}
        self._local.achieved = getattr(self._local, "achieved", {}) | {name: run.achieved}
        return spread(out, owner) if tower.spread else out

    def _read(self, name: str, at: int, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In a tower that is not reduced the cross token only reads: it is made, and compared, but never attended to."""
        tower = self.towers[name]
        hidden = args[0] if args else kwargs["hidden_states"]
        if tower.prefix:
            return self._prefix(name, at, tower, hidden, args, kwargs)
        if not (torch.is_grad_enabled() and self.cross[name].requires_grad):
            return None
        run = self._run(name, fresh=at == 0 and name != "text")
        if at == 0:
            run.cross = []
            run.end = end_of_text(tower.root, run.ids) if tower.pooled == "end" and run.ids is not None else None
        run.cross.append((tower.summary(hidden, run.end).detach() + self.cross[name][:, at])[:, 0])
        if at == tower.used - 1:
            self._keep(name, run)
        return None

    def _prefix(
        self, name: str, at: int, tower: Tower, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """LLaVA's language model: the first token becomes the cross token while the prompt is read."""
        run = self._run(name)
        if at == 0:
            run.cross = []
            run.end = hidden.new_zeros(len(hidden), dtype=torch.int64)
            if run.mask is not None and run.mask.shape == hidden.shape[:2]:
                run.end = run.mask.long().argmax(dim=1)  # with padding in front the first token stands behind it
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length(at) > 0:
            return None
        assert run.end is not None
        where = run.end[:, None, None].expand(-1, 1, hidden.shape[2])
        token = (hidden.gather(1, where).detach() + self.cross[name][:, at]).to(hidden.dtype)
        run.cross.append(token[:, 0])
        if at == tower.used - 1:
            self._keep(name, run)
        hidden = hidden.scatter(1, where, token)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _keep(self, name: str, run: _Run) -> None:
        if run.cross and torch.is_grad_enabled() and self.cross[name].requires_grad:
            self._seen[name] = torch.stack(run.cross)
        run.cross = []

    # ---- what it tells

    def alignment(self) -> Tensor:
        """The alignment loss of the cross tokens of the last forward of both towers; a scalar, used up by the call.

        Raises:
            BadInput: no cross tokens, a tower that has not run with gradients, or batches of different sizes.
        """
        missing = [name for name in ("image", "text") if name not in self._seen]
        if missing:
            raise BadInput(
                f"there are no cross tokens of the {' and '.join(missing)} tower",
                where=f"{type(self).__name__}.alignment",
                fix="Attach it to a model with both towers, and run both with gradients before",
            )
        image, text = self._seen.pop("image"), self._seen.pop("text")
        if image.shape[1] != text.shape[1]:
            raise BadInput(
                f"{image.shape[1]} pictures and {text.shape[1]} texts",
                where=f"{type(self).__name__}.alignment",
                fix="Run both towers on the pairs of one batch",
            )
        sides = []
        for name, tokens in (("image", image), ("text", text)):
            tower = self.towers[name]
            norm = getattr(tower.root, "pre_layrnorm", tower.norm) if self.parity and name == "image" else tower.norm
            sides.append(detached_call(tower.project, detached_call(norm, tokens)))
        repeats = torch.tensor(paired_layers(len(image), len(text)), device=image.device)
        return js_divergence(
            sides[0].repeat_interleave(repeats, dim=0).flatten(0, 1), sides[1].flatten(0, 1), parity=self.parity
        )

    def achieved(self, name: str = "image") -> list[int]:
        """How many tokens went in each layer of the last pass through a tower on this thread (of the longest item)."""
        return list(getattr(self._local, "achieved", {}).get(name, []))

    def owner(self, name: str = "image") -> Tensor:
        """The source map of the last pass on this thread: int64 ``[B, T0]``, the output token in which each input token is.

        Raises:
            BadInput: no pass through a reduced tower of that name.
        """
        kept = getattr(self._local, "owner", {})
        if name not in kept:
            raise BadInput(
                f"nothing was merged in {name!r} yet",
                where=f"{type(self).__name__}.owner",
                fix="Attach it, and run a tower ('image' or 'text') whose r is above 0",
            )
        return kept[name]

    def image_tokens(self) -> int:
        """How many image tokens LLaVA's language model gets for each picture.

        Raises:
            BadInput: not attached to a LLaVA.
        """
        tower = self.towers.get("image")
        if tower is None or tower.spread:
            raise BadInput("is not attached to a LLaVA", where=type(self).__name__, fix="Call attach(model) with one")
        return tower.positions - sum(self._plan(tower)) - int(tower.pooled == "first")

    def _plan(self, tower: Tower, length: int | None = None) -> list[int]:
        length = tower.positions if length is None else length
        if not self._reduces(tower.name):
            return [0] * tower.used
        cross = int(self.has_cross)
        return self._schedule(tower.name).plan(length + cross, tower.used, int(tower.pooled != "mean") + cross)

    def shorten(self, inputs: Mapping[str, Any], image_token_id: int, *, padding: int = 0) -> dict[str, Any]:
        """Inputs of a LLaVA with as many placeholders for each picture as the reduced tower gives.

        Args:
            inputs: ``input_ids`` ``[B, T]`` and, as far as given, ``attention_mask`` and ``labels``; all else passes through.
            image_token_id: the placeholder, ``model.config.image_token_id``.
            padding: id that fills up items with fewer pictures, on the left.

        Raises:
            BadInput: not attached to a LLaVA, or placeholders that are no multiple of the model's own number.
        """
        want, tower = self.image_tokens(), self.towers["image"]
        return shortened(inputs, image_token_id, tower.positions - int(tower.pooled == "first"), want, padding)

    def flops(self, name: str = "image", length: int | None = None) -> tuple[int, int]:
        """FLOPs of a tower for one item, whole and reduced (matching included).

        Args:
            name: the tower.
            length: tokens; default all that the tower has positions for.

        Raises:
            BadInput: not attached to such a tower, or to one that cannot be reduced (a language model, BLIP's texts).
        """
        tower = self.towers.get(name)
        if tower is None or tower.prefix or not hasattr(tower.layers[0], "mlp"):
            raise BadInput(
                f"no FLOPs to count in the {name!r} tower",
                where=f"{type(self).__name__}.flops",
                fix="Attach it to a model with such a tower; language models and BLIP's texts are not reduced",
            )
        length = tower.positions if length is None else length
        plan = self._plan(tower, length)
        inner = tower.layers[0].mlp.fc1.out_features
        start = length + int(self.has_cross and self._reduces(name))
        before = [start - sum(plan[:at]) for at in range(len(plan))]
        after = [start - sum(plan[: at + 1]) for at in range(len(plan))]
        reducer = self.reducers.get(name)
        matching = 0
        if reducer is not None:
            heads = 1 if reducer.keys == "full" else tower.root.config.num_attention_heads
            matching = sum(
                matching_flops(t, tower.width // heads, bipartite=reducer.match == "bipartite")
                for t, r in zip(before, plan)
                if r
            )
        unread = [after[-1] if after else start] * (len(tower.layers) - tower.used)
        whole = [length] * len(tower.layers)
        full = stack_flops(whole, whole, tower.width, inner)
        return full, matching + stack_flops(before + unread, after + unread, tower.width, inner)


def _restore(layer: Any, own: Any) -> None:
    del layer.__dict__["forward"]
    if own is not None:
        layer.forward = own

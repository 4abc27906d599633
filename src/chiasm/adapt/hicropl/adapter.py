"""`HiCroPL`: the prompts of `PromptFlow` in the towers of a frozen model, as an adapter that comes off again.

    adapter = HiCroPL(tokens=4).attach(model)        # model.get_image_features / get_text_features now see the prompts
    adapter.detach()                                 # bit-identical to before

HiCroPL (ICCV 2025, arXiv 2507.14976). The few-shot classifier on top is `PromptedClassifier`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chiasm.adapt.hicropl.flow import Flow, PromptFlow
from chiasm.blocks.deep_prompts import DeepPrompts, tower_sizes
from chiasm.errors import BadInput

# Prompts of at most so many tokens begin as the first words of this, those of longer ones at random (as in the paper's code).
WORDS = "a photo of a"
LONGEST_WORDS = 4


class HiCroPL(nn.Module):
    """Hierarchical cross-modal prompts in both towers of a two-tower model of Hugging Face transformers.

    Its state dict holds only what was added. While it is attached the model's own parameters are frozen and the model is
    in eval mode; `detach` puts both back.

    Args:
        tokens: prompt tokens n a layer: 16 for few-shot and base-to-novel, 2 across data sets (the paper's configurations).
        depth: prompted layers L; default all layers of the shallower tower, at most 12.
        cross_layer: the layer k at which the flow turns round; default half of ``depth``.
        heads: attention heads of mappers and poolers; 8. They must divide the widths of the towers.
        ffn_mult: hidden width of the mappers' perceptrons; 4.
        mapper_dim: width of the mappers; None for that of the tower they lead to. A bottleneck saves most of the parameters.
        share_poolers: one pooler a tower instead of one a layer.
        flow: ``"both"``, ``"text_to_vision"``, ``"vision_to_text"`` or ``"none"``.
        proxies: pass knowledge on through one proxy a layer; False: all prompt tokens.
        every_layer: see the proxies of all layers; False: of the same layer only.
        towers: ``("text", "vision")``; ``("text",)`` with ``depth=1`` is CoOp (arXiv 2109.01134).
        seed: of the first values.

    Raises:
        BadInput: sizes that do not fit together.
        UnknownName: a flow or tower that does not exist.
    """

    def __init__(
        self,
        tokens: int = 16,
        depth: int | None = None,
        cross_layer: int | None = None,
        *,
        heads: int = 8,
        ffn_mult: float = 4.0,
        mapper_dim: int | None = None,
        share_poolers: bool = False,
        flow: Flow = "both",
        proxies: bool = True,
        every_layer: bool = True,
        towers: tuple[str, ...] = ("text", "vision"),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(tokens, Integral) or tokens < 0:
            raise BadInput(f"{tokens} tokens", where="HiCroPL", fix="Give a whole number, 0 or more")
        for name, value in (("depth", depth), ("cross_layer", cross_layer), ("mapper_dim", mapper_dim)):
            if value is not None and (not isinstance(value, Integral) or value < (name != "cross_layer")):
                raise BadInput(f"{name} {value!r}", where="HiCroPL", fix="Give a positive whole number, or None")
        if not 0 < ffn_mult < math.inf:
            raise BadInput(f"ffn_mult {ffn_mult}", where="HiCroPL", fix="Give a positive number; the paper has 4")
        self.settings: dict[str, Any] = {
            "tokens": tokens,
            "depth": depth,
            "cross_layer": cross_layer,
            "heads": heads,
            "ffn_mult": ffn_mult,
            "mapper_dim": mapper_dim,
            "share_poolers": share_poolers,
            "flow": flow,
            "proxies": proxies,
            "every_layer": every_layer,
            "towers": tuple(towers),
            "seed": seed,
        }
        self.flow: PromptFlow | None = None
        self.enabled = True
        self._widths: tuple[int, int] | None = None
        # Hidden in a list, the model is no part of the state dict.
        self._attached: list[tuple[Any, DeepPrompts, list[nn.Parameter], list[nn.Module]]] = []

    def build(self, model: Any, tokenizer: Any = None) -> HiCroPL:
        """Makes the parameters for a model's towers, if they are not there yet, on the model's device.

        Args:
            model: see `chiasm.blocks.deep_prompts.tower_sizes`.
            tokenizer: lets prompts of at most 4 tokens begin as words of "a photo of a"; without it they begin at random.

        Raises:
            UnknownName: an architecture without the towers that are needed.
            BadInput: towers too shallow for ``depth``, widths that the heads do not divide, or that differ from those that
                the parameters were made for.
        """
        sizes = tower_sizes(model)
        widths, device = (sizes.text_width, sizes.vision_width), next(model.parameters()).device
        if self.flow is not None:
            if widths != self._widths:
                raise BadInput(
                    f"prompts for widths {self._widths} (text, vision) and a model of widths {widths}", where="HiCroPL"
                )
            return self.to(device)
        most = min(sizes.text_layers, sizes.vision_layers)
        depth = min(most, 12) if self.settings["depth"] is None else self.settings["depth"]
        if depth > most:
            raise BadInput(
                f"depth {depth}, but the shallower tower has {most} layers", where="HiCroPL", fix="Leave depth out"
            )
        if self.settings["tokens"] >= sizes.context - 2:
            raise BadInput(
                f"{self.settings['tokens']} prompt tokens leave no room for words in a context of {sizes.context}",
                where="HiCroPL",
                fix="Use fewer tokens",
            )
        self._make(widths, depth)
        self._begin_as_words(model, tokenizer)
        return self.to(device)

    def _make(self, widths: tuple[int, int], depth: int) -> None:
        options = {k: v for k, v in self.settings.items() if k not in ("seed", "depth", "cross_layer", "tokens")}
        cross = depth // 2 if self.settings["cross_layer"] is None else self.settings["cross_layer"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings["seed"])
            self.flow = PromptFlow(*widths, self.settings["tokens"], depth, cross, **options)
        self._widths = widths

    @torch.no_grad()
    def _begin_as_words(self, model: Any, tokenizer: Any) -> None:
        n = self.settings["tokens"]
        assert self.flow is not None
        if tokenizer is None or self.flow.text is None or not 1 <= n <= LONGEST_WORDS:
            return
        from chiasm.blocks.deep_prompts import SUPPORTED
        from chiasm.blocks.prompts import dual_encoder

        ids = tokenizer(" ".join(WORDS.split()[:n]), add_special_tokens=False)["input_ids"]
        if len(ids) == n:  # a tokenizer that cuts these words into pieces has no such beginning
            text = dual_encoder(model, SUPPORTED).text_model
            embeddings = getattr(text, "roberta", text).embeddings
            table = getattr(embeddings, "token_embedding", None) or embeddings.word_embeddings
            self.flow.text[0] = table.weight[torch.as_tensor(ids)].to(self.flow.text.dtype)

    def attach(self, model: Any, tokenizer: Any = None) -> HiCroPL:
        """Puts the prompts into a model; its parameters are frozen, and it is put into eval mode, until `detach`.

        Args:
            model, tokenizer: as of `build`.

        Raises:
            BadInput: it is already attached, or the model has attached prompts of another; or as of `build`.
            UnknownName: an architecture that is not supported.
        """
        if self._attached:
            raise BadInput("is already attached", where="HiCroPL", fix="Call detach() first")
        self.build(model, tokenizer)
        handle = DeepPrompts(model, text=self.text_prompts, vision=self.vision_prompts)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        training = [module for module in model.modules() if module.training]
        model.requires_grad_(False)
        model.eval()
        self._attached.append((model, handle, learned, training))
        return self

    def detach(self) -> None:
        """Takes the prompts out: the model's outputs are bit-identical to those before `attach`."""
        for _, handle, learned, training in self._attached:
            handle.remove()
            for parameter in learned:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True
        self._attached.clear()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """While it is open, the model gives its own outputs, bit for bit."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def text_prompts(self) -> list[Tensor]:
        """``[n, Dt]`` for each prompted layer of the text tower; none while disabled."""
        return self._flow().text_prompts() if self.enabled else []

    def vision_prompts(self) -> list[Tensor]:
        """``[n, Dv]`` for each prompted layer of the vision tower; none while disabled."""
        return self._flow().vision_prompts() if self.enabled else []

    def _flow(self) -> PromptFlow:
        if self.flow is None:
            raise BadInput("has no parameters yet", where="HiCroPL", fix="Call attach(model) or build(model) first")
        return self.flow

    def save(self, folder: str | Path) -> None:
        """Writes ``hicropl.json`` and ``hicropl.safetensors``: only what was added."""
        flow = self._flow()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = {"settings": self.settings, "widths": self._widths, "depth": flow.depth}
        (folder / "hicropl.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()},
            folder / "hicropl.safetensors",
        )

    @classmethod
    def load(cls, folder: str | Path) -> HiCroPL:
        """Reads what `save` wrote; attach it to the model it was made for.

        Raises:
            BadInput: the folder holds no such adapter.
        """
        folder = Path(folder)
        try:
            made = json.loads((folder / "hicropl.json").read_text(encoding="utf-8"))
            settings, widths, depth = made["settings"], made["widths"], made["depth"]
            adapter = cls(**{**settings, "towers": tuple(settings["towers"])})
            adapter._make((widths[0], widths[1]), depth)
            adapter.load_state_dict(load_file(folder / "hicropl.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise BadInput(
                f"holds no HiCroPL adapter ({error})", where=str(folder), fix="Give a folder that save() wrote"
            ) from error
        return adapter

"""Low-rank adapters inside the towers, through peft: the new model itself stays as it is, and comes back when they are off.

>>> lora = TowerLora(rank=8).attach(model)            # query and value projections of every attention
>>> with lora.off():
...     plain = model.encode(texts)                   # bit for bit the model without them
>>> lora.detach()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from chiasm.errors import BadInput, missing_extra
from chiasm.learn.alignment.xbt.modules import Projection

# What query and value projections are called in the models of transformers.
TARGETS = ("q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "to_q", "to_v")


class TowerLora:
    """LoRA on the attention of towers.

    Args:
        rank: 8 (card: 8 to 16).
        alpha: the update is scaled by alpha / rank; default twice the rank.
        targets: last parts of the names of the linear layers; default `TARGETS`, those that occur.

    Raises:
        BadInput: a rank below 1.
    """

    def __init__(self, rank: int = 8, alpha: float | None = None, targets: Sequence[str] = TARGETS) -> None:
        if rank < 1:
            raise BadInput(f"rank {rank}", where="TowerLora")
        self.rank, self.alpha, self.targets = rank, 2 * rank if alpha is None else alpha, tuple(targets)
        self.model: nn.Module | None = None

    def attach(self, model: nn.Module) -> TowerLora:
        """Puts the adapters in place; only they are trainable afterwards.

        Raises:
            BadInput: no layer of these names, or adapters are there already.
            MissingExtra: peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise missing_extra("a low-rank adapter", "train", "peft") from error
        if self.model is not None or self._layers(model):
            raise BadInput("adapters are attached already", where="TowerLora", fix="Call detach first")
        found = {
            name.rpartition(".")[2]
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear) and name.rpartition(".")[2] in self.targets
        }
        if not found:
            raise BadInput(
                f"no linear layer is called {', '.join(self.targets)}",
                where="TowerLora",
                fix="Name its layers with targets=..., or use the adapter on vectors (XBT.fit_pairs)",
            )
        self._trained = {name: p.requires_grad for name, p in model.named_parameters()}
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=sorted(found), lora_dropout=0.0)  # pyright: ignore
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.model = model
        return self

    @staticmethod
    def _layers(model: nn.Module) -> list[tuple[str, Any]]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [(name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer)]

    def _attached(self) -> nn.Module:
        if self.model is None:
            raise BadInput("is not attached to a model", where="TowerLora", fix="Call attach first")
        return self.model

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was."""
        layers = self._layers(self._attached())
        for _, layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for _, layer in layers:
                layer.enable_adapters(True)

    def state_dict(self) -> dict[str, Tensor]:
        """The adapters' parameters only."""
        return {k: v for k, v in self._attached().state_dict().items() if "lora_" in k}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state_dict` gave.

        Raises:
            BadInput: other names.
        """
        model = self._attached()
        if set(state) != set(self.state_dict()):
            raise BadInput("these are the adapters of another model or rank", where="TowerLora.load_state_dict")
        model.load_state_dict(state, strict=False)

    def detach(self) -> None:
        """Takes the adapters out; layers, names and what was trainable are as before."""
        model = self._attached()
        for name, layer in self._layers(model):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer.get_base_layer())
        if hasattr(model, "peft_config"):  # peft notes there what it put in
            del model.peft_config
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trained.get(name, parameter.requires_grad))
        self.model = None


def compatible_towers(image: Sequence[nn.Module], text: Sequence[nn.Module], projection: Projection) -> Any:
    """Stage 2 on whole towers: a model with the routes ``a`` (pictures), ``b`` (texts) and ``target``.

    Attach `TowerLora` to it and train with `chiasm.learn.train` and `CompatibleObjective`, with a column ``target`` of the
    texts' vectors as the new model gave them before (``sentence_embedding``).

    Args:
        image, text: the modules of each tower, ending in ``sentence_embedding``.
        projection: phi of stage 1.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Router

    routes: dict[str, list[Any]] = {
        "a": [*image, Normalize(), projection],
        "b": [*text, Normalize(), projection],
        "target": [Normalize(), projection],
    }
    router = Router(routes, default_route="a", allow_empty_key=False)  # pyright: ignore[reportArgumentType]
    return SentenceTransformer(modules=[router], similarity_fn_name="cosine")

"""`SentenceLoss`: the one adapter between an objective and `SentenceTransformerTrainer`.

An objective is an `nn.Module` whose ``forward(a, b, *, groups=None, ...)`` returns loss parts by name. It knows no model:
it asks for what it needs by the names of its arguments, and `SentenceLoss` finds it:

    a, b, <column>              vectors ``[n, D]`` of a column (stacked ``[n, K, D]`` for the views ``b/de``, ``b/fr``, ...)
    <column>_tokens, _mask      token vectors ``[n, L, D]`` and bool ``[n, L]``
    <column>_momentum           vectors of the momentum encoder, no gradient; likewise ``<column>_momentum_tokens``
    <column>_present            bool ``[n, K]``, False where a view is missing
    <column>_inputs             what the model read (a dict); ``<column>_rows`` the row numbers in the source
    encode                      callable: (inputs of a column) -> what the model gives for them, with a gradient
    groups, ids                 int64 ``[n]``: group and number of each pair
    labels, weights, ...        ``[n, ...]``: what `Pairs.per_pair` holds under that name
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sentence_transformers.util import all_gather, all_gather_padded, all_gather_with_grad, get_world_size
from torch import Tensor, nn

from chiasm.errors import BadInput, TrainingDiverged
from chiasm.learn.momentum import Momentum
from chiasm.learn.pairs import Pairs

_SUFFIXES = ("momentum_tokens", "momentum", "tokens", "mask", "present", "inputs", "rows")


class SentenceLoss(nn.Module):
    """Runs the model over the columns of a batch and gives the objective what it asks for.

    Args:
        model: the model that is trained.
        objective: see above. It may have ``momentum`` (a float: coefficient of the momentum encoder) and
            ``on_progress(step, steps)``, called before every training step.
        pairs: the pairs the batches are drawn from.
        gather: with several processes, collect the batch of all of them before the loss (gradients flow back).

    Raises:
        BadInput: the objective asks for something that is not there.
        TrainingDiverged: the loss is NaN or infinite; names step and pairs.
    """

    def __init__(self, model: Any, objective: nn.Module, pairs: Pairs, *, gather: bool = True) -> None:
        super().__init__()
        self.model, self.objective, self.gather = model, objective, gather
        self.columns = pairs.columns
        self.sides = list(dict.fromkeys(column.split("/")[0] for column in self.columns))
        self.per_pair = {name: torch.from_numpy(values) for name, values in pairs.per_pair.items()}
        assert pairs.groups is not None
        self.per_pair["groups"] = torch.from_numpy(pairs.groups)
        self.wanted = self._wanted()
        # A list hides the teacher from parameters(), state_dict() and the trainer's search for models.
        self._teacher: list[Momentum] = []
        self.step = 0
        self.spread = float("nan")

    def _wanted(self) -> dict[str, bool]:
        """What the objective asks for -> whether it must have it."""
        wanted: dict[str, bool] = {}
        known = {"encode", "ids", *self.per_pair, *self.sides}
        known |= {f"{side}_{suffix}" for side in self.sides for suffix in _SUFFIXES}
        for name, parameter in inspect.signature(self.objective.forward).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            needed = parameter.default is parameter.empty
            if name in known:
                wanted[name] = needed
            elif needed:
                raise BadInput(
                    f"{type(self.objective).__name__} asks for {name!r}, which these pairs do not have",
                    where="SentenceLoss",
                    fix=f"They have {', '.join(sorted(known))}",
                )
        return wanted

    def _asks(self, *suffixes: str) -> bool:
        return any(name.endswith(tuple(f"_{s}" for s in suffixes)) for name in self.wanted)

    @property
    def teacher(self) -> Momentum:
        """The momentum encoder; made at the first use."""
        if not self._teacher:
            model = getattr(self.model, "module", self.model)
            self._teacher.append(Momentum(model, float(getattr(self.objective, "momentum", 0.995))))
        return self._teacher[0]

    def forward(self, features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            features: one dict a column, in the order of ``pairs.columns``.
            labels: int64 ``[n]``, the numbers of the pairs.
        """
        inputs = dict(zip(self.columns, features, strict=True))
        if labels is None:
            raise BadInput("the batch does not say which pairs it holds", where="SentenceLoss")
        if self.training and self._asks("momentum", "momentum_tokens"):
            self.teacher.update(getattr(self.model, "module", self.model))
        found: dict[str, Any] = {"ids": labels, "encode": self._encode}
        found |= {name: values.to(labels.device)[labels] for name, values in self.per_pair.items()}
        for side in self.sides:
            found |= self._side(side, {c: inputs[c] for c in self.columns if c.split("/")[0] == side})
        given = {name: found[name] for name in self.wanted if name in found}
        if self.gather and get_world_size() > 1:
            given = {name: _gathered(name, value, given) for name, value in given.items()}
            given = {name: value[0] if isinstance(value, tuple) else value for name, value in given.items()}
        losses = self.objective(**given)
        self._watch(losses, found, labels)
        return losses

    def _encode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.model(dict(inputs))

    def _side(self, side: str, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Everything of one side: of one column, or of its views one above the other."""
        out = {c: self.model(dict(x)) for c, x in inputs.items()}
        teacher = self._asks("momentum", "momentum_tokens") and {c: self.teacher(dict(x)) for c, x in inputs.items()}
        stacked = side not in inputs
        found: dict[str, Any] = {}

        def put(name: str, values: list[Any]) -> None:
            found[name] = torch.stack(values, dim=1) if stacked else values[0]

        put(side, [o["sentence_embedding"] for o in out.values()])
        if stacked or "rows" in next(iter(inputs.values())):
            put(f"{side}_rows", [x["rows"] for x in inputs.values()])
            found[f"{side}_present"] = found[f"{side}_rows"] >= 0
        if not stacked:
            only = next(iter(out.values()))
            found[f"{side}_inputs"] = next(iter(inputs.values()))
            if "token_embeddings" in only:
                found[f"{side}_tokens"] = only["token_embeddings"]
                found[f"{side}_mask"] = only["attention_mask"].bool()
        if teacher:
            put(f"{side}_momentum", [o["sentence_embedding"] for o in teacher.values()])
            only = next(iter(teacher.values()))
            if not stacked and "token_embeddings" in only:
                found[f"{side}_momentum_tokens"] = only["token_embeddings"]
        return found

    def _watch(self, losses: dict[str, Tensor], found: dict[str, Any], labels: Tensor) -> None:
        """Stops at a loss that is no number; measures how far the vectors of the batch lie apart."""
        total = torch.stack([value.detach() for value in losses.values()]).sum()
        if not bool(torch.isfinite(total)):
            bad = [n for n in ("a", "b") if not bool(torch.isfinite(found[n]).all())]
            rows = torch.zeros_like(labels, dtype=torch.bool)
            for name in bad:
                rows |= ~torch.isfinite(found[name]).flatten(1).all(1)
            pairs = (labels[rows] if bool(rows.any()) else labels).tolist()
            raise TrainingDiverged(
                f"the loss is {float(total)} at step {self.step}; pairs {pairs[:20]}{' ...' if len(pairs) > 20 else ''}",
                where=type(self.objective).__name__,
                fix="Lower the learning rate, or look at these pairs for NaN or empty content",
            )
        if self.training:
            b = found["b"].detach().flatten(0, -2)
            # 1 - |mean of the unit vectors|^2: 0 where all of them point one way.
            self.spread = float(1 - nn.functional.normalize(b, dim=-1).mean(0).square().sum())
            self.step += 1

    def on_progress(self, step: int, steps: int) -> None:
        """Tells the objective how far training has come."""
        self.step = step
        hook: Callable[[int, int], None] | None = getattr(self.objective, "on_progress", None)
        if hook is not None:
            hook(step, steps)


def _gathered(name: str, value: Any, given: dict[str, Any]) -> Any:
    """A tensor of all processes; tokens are padded to the longest first."""
    if not isinstance(value, Tensor):
        return value
    if name.endswith("_tokens"):
        mask = given.get(name.removesuffix("_tokens").removesuffix("_momentum") + "_mask")
        mask = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device) if mask is None else mask
        return all_gather_padded(value.contiguous(), mask.contiguous(), with_grad=value.requires_grad)
    if name.endswith("_mask"):
        return all_gather_padded(value.unsqueeze(-1).float(), value.contiguous())[1]
    return all_gather_with_grad(value.contiguous()) if value.requires_grad else all_gather(value.contiguous())

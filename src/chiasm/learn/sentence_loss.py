"""`SentenceLoss`: the one adapter between an objective and `SentenceTransformerTrainer`.

An objective is an `nn.Module` whose ``forward(a, b, *, groups=None, ...)`` returns loss parts by name. It knows no model:
it asks for what it needs by the names of its arguments, and `SentenceLoss` finds it:

    a, b, <column>              vectors ``[n, D]`` of a column (stacked ``[n, K, D]`` for the views ``b/de``, ``b/fr``, ...)
    <column>_tokens, _mask      token vectors ``[n, L, D]`` and bool ``[n, L]``
    <column>_momentum           vectors of the momentum encoder, no gradient; likewise ``<column>_momentum_tokens``
    <column>_plain              vectors before the tower added something to them (its ``plain_embedding``), if it does
    <column>_present            bool ``[n, K]``, False where a view is missing
    <column>_inputs             what the model read (a dict); ``<column>_rows`` the row numbers in the source
    (with views, tokens are ``[n, K, L, D]``, masks ``[n, K, L]`` and inputs ``[n, K, ...]``, padded to the longest view)
    encode                      callable: (inputs of a column) -> what the model gives for them, with a gradient
    encode_momentum             the same of the momentum encoder, without a gradient
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

_SUFFIXES = ("momentum_tokens", "momentum", "tokens", "mask", "present", "inputs", "rows", "plain")


class SentenceLoss(nn.Module):
    """Runs the model over the columns of a batch and gives the objective what it asks for.

    Args:
        model: the model that is trained.
        objective: see above. It may have ``momentum`` (a float: coefficient of the momentum encoder) and
            ``on_progress(step, steps)``, called before every training step, and ``local`` (names that are not collected
            from the other processes, because they go with ``<column>_inputs``, which are not). If it compares other
            vectors than those of ``b``, its ``spread`` says how far they lie apart (1 - |mean unit vector|^2), which the
            collapse detector watches.
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
        known = {"encode", "encode_momentum", "ids", *self.per_pair, *self.sides}
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
            # Asked every time, because an objective may let it rise.
            momentum = float(getattr(self.objective, "momentum", self.teacher.momentum))
            self.teacher.update(getattr(self.model, "module", self.model), momentum)
        found: dict[str, Any] = {"ids": labels, "encode": self._encode, "encode_momentum": self._encode_momentum}
        found |= {name: values.to(labels.device)[labels] for name, values in self.per_pair.items()}
        for side in self.sides:
            found |= self._side(side, {c: inputs[c] for c in self.columns if c.split("/")[0] == side})
        given = {name: found[name] for name in self.wanted if name in found}
        if self.gather and get_world_size() > 1:
            own = getattr(self.objective, "local", ())
            given = {name: value if name in own else _gathered(name, value, given) for name, value in given.items()}
            given = {name: value[0] if isinstance(value, tuple) else value for name, value in given.items()}
        losses = self.objective(**given)
        self._watch(losses, found, labels)
        return losses

    def _encode(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.model(dict(inputs))

    def _encode_momentum(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.teacher(dict(inputs))

    def _side(self, side: str, inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Everything of one side: of one column, or of its views one above the other."""
        stacked = side not in inputs
        views = list(inputs.values())
        read = _stacked(views) if stacked else views[0]
        asked = {suffix for suffix in ("momentum", "momentum_tokens") if f"{side}_{suffix}" in self.wanted}
        taught = _run(self.teacher, views, read, stacked) if asked else {}
        # A further view of which only the momentum encoder's opinion is asked does not go through the model.
        only_teacher = taught and not self.wanted.keys() & {side, f"{side}_tokens"}
        out = taught if only_teacher else _run(self.model, views, read, stacked)
        found: dict[str, Any] = {side: out["sentence_embedding"], f"{side}_inputs": read}
        if "plain_embedding" in out:
            found[f"{side}_plain"] = out["plain_embedding"]
        if "rows" in read:
            found[f"{side}_rows"] = read["rows"]
            found[f"{side}_present"] = read["rows"] >= 0
        if "token_embeddings" in out:
            found[f"{side}_tokens"] = out["token_embeddings"]
            mask = out.get("attention_mask")  # image networks give cells without one
            found[f"{side}_mask"] = (
                out["token_embeddings"].new_ones(out["token_embeddings"].shape[:2]).bool()
                if mask is None
                else mask.bool()
            )
        if taught:
            found[f"{side}_momentum"] = taught["sentence_embedding"]
            if "token_embeddings" in taught:
                found[f"{side}_momentum_tokens"] = taught["token_embeddings"]
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
            own = getattr(self.objective, "spread", None)
            b = found["b"].detach().flatten(0, -2)
            # 1 - |mean of the unit vectors|^2: 0 where all of them point one way.
            self.spread = float(1 - nn.functional.normalize(b, dim=-1).mean(0).square().sum() if own is None else own)
            self.step += 1

    def on_progress(self, step: int, steps: int) -> None:
        """Tells the objective how far training has come."""
        self.step = step
        hook: Callable[[int, int], None] | None = getattr(self.objective, "on_progress", None)
        if hook is not None:
            hook(step, steps)


def _run(model: Any, views: list[dict[str, Any]], read: dict[str, Any], stacked: bool) -> dict[str, Any]:
    """What a model gives for one column, or for all views, ``[n, K, ...]``: in one call if they take the same route."""
    if not stacked:
        return model(dict(read))
    if len({str(view.get("task")) for view in views}) > 1:
        return _stacked([model(dict(view)) for view in views])
    n, k = next(x for x in read.values() if isinstance(x, Tensor)).shape[:2]
    out = model({name: x.flatten(0, 1) if isinstance(x, Tensor) else x for name, x in read.items()})
    return {
        name: x.unflatten(0, (n, k)) if isinstance(x, Tensor) and x.shape[:1] == (n * k,) else x
        for name, x in out.items()
    }


def _stack_padded(values: list[Tensor]) -> Tensor:
    """Tensors ``[n, L_k, ...]`` of the views as one ``[n, K, L, ...]``, with zeros where a view is shorter."""
    longest = max(value.shape[1] for value in values)
    return torch.stack([nn.functional.pad(v, (0, 0) * (v.ndim - 2) + (0, longest - v.shape[1])) for v in values], dim=1)


def _stacked(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the model read of the views, one above the other; what is no tensor (the route) is the first view's."""
    return {
        name: value
        if not isinstance(value, Tensor)
        else torch.stack([x[name] for x in inputs], dim=1)
        if value.ndim < 2
        else _stack_padded([x[name] for x in inputs])
        for name, value in inputs[0].items()
    }


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

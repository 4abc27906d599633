"""The training of one `chiasm.align`: pairs of its splits, a trial batch, checkpoints, early stopping, and what it kept."""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from transformers import TrainerCallback

from chiasm.encode.pipeline import shown
from chiasm.errors import BadInput, ChiasmError, TrainingDiverged
from chiasm.learn.frozen import items_of
from chiasm.learn.held_out import HeldOut
from chiasm.learn.pair_table import Entry, PairTable
from chiasm.learn.pairs import OnePerGroup, PairCollator, Pairs
from chiasm.learn.sentence_loss import SentenceLoss
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train

_SETTINGS = "align.json"


class _Bar(TrainerCallback):
    """Tells how many steps are made."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step)


class Raw:
    """Items as the model reads them, for fine-tuning: decoded and preprocessed when they are needed.

    Args:
        space: prepares the items (decoding, cropping).
        model: whose route preprocesses them.
        entries: the items.
        route: the model's route.
    """

    def __init__(self, space: Any, model: Any, entries: Sequence[Entry], route: str) -> None:
        self.space, self.model, self.entries, self.route = space, model, entries, route

    def __len__(self) -> int:
        return len(self.entries)

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """What the route's first module reads of some rows, and ``rows`` int64 ``[n]``."""
        items = [items_of(self.entries[max(row, 0)], self.space.speech_as_text)[0] for row in rows]
        contents: list[Any] = [item.content for item in items]
        first = self.model[0]
        modules = getattr(first, "sub_modules", None)
        module = modules[self.route][0] if modules is not None else first
        if hasattr(module, "modality_config"):
            contents = [{self.route: content} for content in contents]
        features = module.preprocess(contents)
        out = {k: v for k, v in features.items() if isinstance(v, torch.Tensor)}
        return {**out, "modality": self.route, "rows": torch.tensor([int(row) for row in rows])}


class Run:
    """The training of one `align`: pairs, evaluator, checkpoints."""

    def __init__(
        self,
        model: Any,
        sources: Sequence[Any],
        table: PairTable,
        routes: dict[str, str],
        settings: dict[str, Any],
        target: Path | None,
        per_epoch: int,
    ) -> None:
        self.model, self.table, self.routes, self.settings, self.per_epoch = model, table, routes, settings, per_epoch
        self.notes: list[str] = []
        self.start: float | None = None
        self.folder = None if target is None else target.with_name(f"{target.name}.training")
        both = {"a": sources[0], "b": sources[1]}
        labels = np.unique(np.array(table.labels, dtype=object).astype(str), return_inverse=True)[1]

        def of(split: str, groups_of: int) -> Pairs:
            rows = table.rows(split)
            a, b = table.pairs[rows].T
            return Pairs(both, {"a": a, "b": b}, groups=(a, b)[groups_of], per_pair={"labels": labels[rows]})

        # A batch holds no picture twice, so the sentence tells the positives: equal sentences belong to both pictures.
        self.pairs = of("train", 1)
        self.held_out = HeldOut(of("val", 0), routes=routes) if len(table.rows("val")) else None

    def train(self, loss: nn.Module, stage: Stage, *, resume: bool, progress: Any, device: str | None) -> TrainReport:
        batch_size = min(self.settings["batch_size"], len(self.pairs))
        _probe(
            self.model,
            self.pairs,
            loss,
            self.routes,
            self.settings["objective"],
            min(batch_size, 8),
            self.settings["seed"],
        )
        self._prepare_folder(resume)
        initial, figures = None, {}
        if self.held_out is not None:
            figures = self.held_out(self.model)
            self.start = figures[self.held_out.primary_metric]
            initial = copy.deepcopy(self.model.state_dict()) if not self.settings["unfreeze"] else None
        total = self.per_epoch * stage.epochs
        try:
            with shown(progress, math.ceil(total), "steps") as tell:
                trained = train(
                    self.model,
                    self.pairs,
                    loss,
                    stage,
                    batch_size=batch_size,
                    seed=self.settings["seed"],
                    routes=self.routes,
                    sampler=OnePerGroup(self.pairs.rows["a"], batch_size, self.settings["seed"]),
                    evaluator=self.held_out,
                    evaluate_every=max(self.per_epoch, math.ceil(total / 20)),
                    patience=self.settings["patience"] if self.held_out is not None else None,
                    folder=self.folder,
                    resume=resume,
                    callbacks=[_Bar(tell)],
                    device=device or str(self.model.device),
                )
        except TrainingDiverged as error:
            raise self._located(error) from error
        if self.held_out is not None:
            trained.history.insert(0, {"step": 0.0, **{f"eval_{name}": value for name, value in figures.items()}})
        if self.held_out is None:
            self.notes.append("There are too few pictures to hold any out: training did not stop early.")
        elif initial is not None and self.start is not None and (trained.best or 0.0) <= self.start:
            self.model.load_state_dict(initial)
            self.notes.append("No state was better than the start on the val pictures: the start was kept.")
        return trained

    def _prepare_folder(self, resume: bool) -> None:
        if self.folder is None:
            return
        file = self.folder / _SETTINGS
        if resume and file.is_file():
            old = json.loads(file.read_text(encoding="utf-8"))
            other = [name for name, value in self.settings.items() if old.get(name) != value]
            if other:
                said = ", ".join(f"{name} was {old.get(name)}, now {self.settings[name]}" for name in other)
                raise BadInput(f"the interrupted run had other settings ({said})", where=str(self.folder))
            return
        if self.folder.exists():
            if not file.is_file() and any(self.folder.iterdir()):
                raise BadInput("holds something else than checkpoints", where=str(self.folder), fix="Move it away")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        file.write_text(json.dumps(self.settings), encoding="utf-8")

    def _located(self, error: TrainingDiverged) -> TrainingDiverged:
        """The error with the lines of the file that the pairs stand on."""
        rows = self.table.rows("train")
        named = re.search(r"pairs \[([\d, ]*)\]", error.what)
        numbers = [int(n) for n in named[1].split(",")] if named and named[1] else []
        places = list(dict.fromkeys(self.table.where[int(rows[n])] for n in numbers if n < len(rows)))
        return TrainingDiverged(f"{error.what} ({', '.join(places[:5])})", where=error.where, fix=error.fix)


def _probe(model: Any, pairs: Pairs, loss: nn.Module, routes: dict[str, str], name: str, size: int, seed: int) -> None:
    """One batch through a copy of the objective, so that one that needs more than vectors says so before the training.

    Raises:
        BadInput: it asks for tokens, words or further columns.
    """
    fix = "Give its sizes with --option, choose another objective, or use chiasm.learn.train with token features"
    asked = [
        n
        for n, p in inspect.signature(loss.forward).parameters.items()
        if p.default is p.empty and n.endswith(("_tokens", "_mask", "_inputs"))
    ]
    if asked:
        raise BadInput(
            f"{name} needs {', '.join(asked)}, and frozen heads give one vector an item", where="align", fix=fix
        )
    # Layers without a size yet cannot be copied; they get it here, and nothing else happens to them in eval mode.
    lazy = any(is_lazy(tensor) for tensor in [*loss.parameters(), *loss.buffers()])
    torch.manual_seed(seed)
    copied = (loss if lazy else copy.deepcopy(loss)).to(model.device)
    adapter = SentenceLoss(model, copied, pairs, gather=False)
    first = list(dict.fromkeys(pairs.rows["a"].tolist()))[:size]
    index = [int(np.flatnonzero(pairs.rows["a"] == row)[0]) for row in first]
    entries = [{column: int(pairs.rows[column][i]) for column in pairs.columns} | {"label": i} for i in index]
    batch = PairCollator(pairs, routes)(entries)
    features = [
        {
            k[len(c) + 1 :]: v.to(model.device) if isinstance(v, torch.Tensor) else v
            for k, v in batch.items()
            if k.startswith(f"{c}_")
        }
        for c in pairs.columns
    ]
    try:
        with torch.no_grad():
            adapter.eval()
            adapter(features, batch["label"].to(model.device))
    except TrainingDiverged:
        pass  # the training will say at which step and on which lines
    except (TypeError, KeyError, AttributeError, AssertionError, RuntimeError, ValueError) as error:
        said = error.what if isinstance(error, ChiasmError) else f"{type(error).__name__}: {str(error)[:200]}"
        raise BadInput(f"{name} cannot train heads over pooled vectors ({said})", where="align", fix=fix) from error
    finally:
        adapter.train()

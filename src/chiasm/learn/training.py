"""`train`: pairs and an objective in, a trained model out. The loop is `SentenceTransformerTrainer`'s.

>>> report = train(model, pairs, InfoNCE(), Stage(epochs=5), batch_size=128, evaluator=held_out)
>>> report.history, report.best, report.collapsed
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from chiasm.errors import BadInput, missing_extra
from chiasm.learn.momentum import Momentum
from chiasm.learn.pairs import PairCollator, Pairs
from chiasm.learn.sentence_loss import SentenceLoss
from chiasm.learn.stages import Stage, frozen_but

# A batch whose unit vectors have a mean this long (squared) has collapsed; so many steps in a row are no accident.
COLLAPSED_SPREAD = 1e-3
COLLAPSED_STEPS = 20


class CollapseWarning(UserWarning):
    """All vectors of a side have come to point the same way."""


@dataclass
class TrainReport:
    """What happened in a training.

    Args:
        stage: its settings.
        steps: optimizer steps made.
        seconds: wall time.
        history: one dict a log: ``step``, ``epoch``, ``loss`` and the objective's parts, or the evaluator's figures.
        best: the best value of the evaluator's primary figure, None without an evaluator.
        collapsed: True if the collapse detector fired.
        spread: 1 - |mean unit vector|^2 of the last batch's ``b`` side.
    """

    stage: Stage
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    collapsed: bool = False
    spread: float = float("nan")

    @property
    def losses(self) -> list[float]:
        """The logged losses in order."""
        return [entry["loss"] for entry in self.history if "loss" in entry]


def train(
    model: Any,
    pairs: Pairs,
    objective: nn.Module,
    stage: Stage | None = None,
    *,
    batch_size: int = 128,
    seed: int = 0,
    routes: Mapping[str, str] | None = None,
    sampler: Any = None,
    optimizer: Callable[[list[dict[str, Any]], float], torch.optim.Optimizer] | None = None,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    schedule: str = "cosine",
    evaluator: Any = None,
    evaluate_every: int | None = None,
    patience: int | None = None,
    log_every: int = 10,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    callbacks: Sequence[Any] = (),
    loss: nn.Module | None = None,
    device: str | None = None,
) -> TrainReport:
    """Trains a model in place.

    Args:
        model: a `SentenceTransformer` (see `chiasm.learn.towers.dual_tower`).
        pairs: what it learns from; more than one.
        objective: an objective; its own parameters (temperature, codebook, heads) are trained too.
        stage: what learns, how long, how fast.
        batch_size: pairs a step and process.
        seed: decides the order of the pairs and everything random in the model.
        routes: column -> route of the model's router; default the column's own name.
        sampler: a batch sampler over the pairs (`OnePerGroup`, `SeveralPerGroup`); default random batches.
        optimizer: ``optimizer(parameter groups, rate)``; default AdamW.
        weight_decay: of AdamW; biases, norms and one-dimensional parameters get none.
        clip: largest norm of the gradient; 0 for no clipping.
        schedule: learning-rate schedule of transformers: ``"cosine"``, ``"linear"``, ``"constant_with_warmup"``.
        evaluator: a sentence-transformers evaluator; the model with its best figure is kept.
        evaluate_every: steps between evaluations; default once an epoch.
        patience: evaluations without a better figure before training stops; None never stops early.
        log_every: steps between entries of the history.
        folder: where checkpoints go; needed for ``resume``. Default: a temporary folder.
        resume: go on from the last checkpoint in ``folder``, if there is one.
        progress: show a bar.
        callbacks: further `transformers.TrainerCallback`.
        loss: a `SentenceLoss` of your own making (then ``objective`` must be the one inside).
        device: ``"cpu"`` keeps training on the CPU where there is a GPU.

    Raises:
        BadInput: fewer than two pairs, or a batch of one.
        TrainingDiverged: the loss is no number any more.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    _check(pairs, batch_size)
    stage = stage or Stage()
    try:
        from sentence_transformers import SentenceTransformerTrainingArguments
        from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
        from transformers.trainer_utils import get_last_checkpoint

        from chiasm.learn.pair_trainer import PairTrainer
    except ImportError as error:
        raise missing_extra("training", "train", "accelerate") from error
    set_seed(seed)
    report = TrainReport(stage)
    loss = loss if loss is not None else SentenceLoss(model, objective, pairs)
    evaluates, kept = evaluator is not None, folder is not None
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chiasm-train-"))
        stack.enter_context(_quiet())
        stack.enter_context(frozen_but(model, stage.train))
        every: dict[str, Any] = (
            {"strategy": "steps", "steps": evaluate_every} if evaluate_every else {"strategy": "epoch", "steps": 500}
        )
        keeps = every["strategy"] if evaluates or kept else "no"
        args = SentenceTransformerTrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch_size,
            max_steps=stage.steps or -1,
            num_train_epochs=stage.epochs,
            learning_rate=stage.rate,
            warmup_steps=stage.warmup,
            weight_decay=weight_decay,
            max_grad_norm=clip,
            lr_scheduler_type=schedule,
            seed=seed,
            logging_steps=log_every,
            logging_nan_inf_filter=False,
            eval_strategy=every["strategy"] if evaluates else "no",
            eval_steps=every["steps"],
            save_strategy=keeps,
            save_steps=every["steps"],
            save_total_limit=2,
            load_best_model_at_end=evaluates,
            metric_for_best_model=f"eval_{evaluator.primary_metric}" if evaluates else None,
            greater_is_better=True if evaluates else None,
            report_to="none",
            disable_tqdm=not progress,
            use_cpu=device == "cpu" or not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            # Each route is called on its own, so within one call the parameters of the others are never used.
            ddp_find_unused_parameters=False,
        )
        own: list[Any] = [_Progress(loss, report)]
        if evaluates and patience:
            own.append(EarlyStoppingCallback(patience))
        averaged = _Average(model, stage.average) if stage.average is not None else None
        _give_sizes(loss, pairs, routes)
        groups = _parameter_groups(model, loss, weight_decay)
        made = (optimizer or _adamw)(groups, stage.rate)
        trainer = PairTrainer(
            model=model,
            args=args,
            train_dataset=pairs.dataset(),
            loss=loss,
            evaluator=evaluator,
            data_collator=PairCollator(pairs, routes),  # pyright: ignore[reportArgumentType]
            callbacks=[*own, *([averaged] if averaged else []), *callbacks],
            optimizers=(made, None),  # pyright: ignore[reportArgumentType]
        )
        trainer.sampler = sampler
        trainer.average = averaged.average if averaged else None
        trainer.remove_callback(PrinterCallback)
        last = get_last_checkpoint(str(folder)) if resume and Path(folder).is_dir() else None
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=last)
        if averaged:
            averaged.apply(model)
        report.seconds = time.perf_counter() - start
        report.steps = int(trainer.state.global_step)
        report.best = trainer.state.best_metric
    model.eval()
    report.history = [
        {k: float(v) for k, v in entry.items() if isinstance(v, (int, float))} for entry in trainer.state.log_history
    ]
    return report


def _check(pairs: Pairs, batch_size: int) -> None:
    if len(pairs) < 2:
        raise BadInput(f"{len(pairs)} pair", where="train", fix="A contrast needs at least two pairs")
    if batch_size < 2:
        raise BadInput(f"batch_size {batch_size}", where="train", fix="A contrast needs at least two pairs in a batch")


def _give_sizes(loss: nn.Module, pairs: Pairs, routes: Mapping[str, str] | None) -> None:
    """Lets lazy parts of the objective (`torch.nn.LazyLinear`) see two pairs, so that they have sizes before the optimizer."""
    if not any(is_lazy(parameter) for parameter in loss.parameters()):
        return
    device = next(p.device for p in loss.parameters() if not is_lazy(p))
    loss.to(device)
    batch = PairCollator(pairs, routes)(list(pairs[:2].dataset()))
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    columns = [
        {k.removeprefix(f"{column}_"): v for k, v in batch.items() if k.startswith(f"{column}_")}
        for column in pairs.columns
    ]
    was_training = loss.training
    loss.eval()
    with torch.no_grad():
        loss(columns, batch["label"])
    loss.train(was_training)


def _adamw(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate)


def _parameter_groups(model: nn.Module, loss: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Trained parameters of model and objective; matrices decay, the rest does not, nor what the objective exempts."""
    spared = {id(p) for p in getattr(getattr(loss, "objective", None), "no_decay", lambda: ())()}
    seen: set[int] = set()
    matrices, rest = [], []
    for parameter in [*model.parameters(), *loss.parameters()]:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            (matrices if parameter.ndim > 1 and id(parameter) not in spared else rest).append(parameter)
    return [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def _callback_base() -> type:
    from transformers import TrainerCallback

    return TrainerCallback


class _Progress(_callback_base()):
    """Tells the objective the step, and watches for a collapse."""

    def __init__(self, loss: Any, report: TrainReport) -> None:
        self.loss, self.report, self.run = loss, report, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.loss, "on_progress"):
            self.loss.on_progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report.spread = spread = getattr(self.loss, "spread", float("nan"))
        self.run = self.run + 1 if spread < COLLAPSED_SPREAD else 0
        if self.run == COLLAPSED_STEPS and not self.report.collapsed:
            self.report.collapsed = True
            warnings.warn(
                f"for {COLLAPSED_STEPS} steps all vectors have pointed the same way (step {state.global_step}); "
                "the model has collapsed and its recall will be chance",
                CollapseWarning,
                stacklevel=1,  # the caller is a module of transformers, whose warnings are silenced during training
            )


class _Average(_callback_base()):
    """Follows the weights and puts their average in place at the end."""

    def __init__(self, model: nn.Module, coefficient: float) -> None:
        self.model, self.average = model, Momentum(model, coefficient)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update(self.model)

    def apply(self, model: nn.Module) -> None:
        model.load_state_dict(self.average.teacher.state_dict())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the libraries print about a training that needs no explanation; warnings of our own pass."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch|accelerate|transformers")
            yield
    finally:
        logging.set_verbosity(level)
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)

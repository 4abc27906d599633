"""The training loop of this room, which is `transformers.Trainer`: a module with a loss, rows, and a function that draws batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, TrainingDiverged, missing_extra, unknown_name
from chiasm.learn.fitting import finite, fit_module

# A batch: (rows int64 [B], generator of random changes; None for validation) -> keyword arguments of the module.
Draw = Callable[[np.ndarray, np.random.Generator | None], dict[str, Tensor]]
SCHEDULES = {"plateau": "reduce_lr_on_plateau", "cosine": "cosine", "constant": "constant"}


@dataclass
class FitReport:
    """What happened in a training.

    Args:
        steps, seconds: optimizer steps and wall time.
        history: one dict an epoch and kind: ``step``, ``epoch`` and ``loss`` or ``eval_loss``.
    """

    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Mean training loss of each epoch."""
        return [entry["loss"] for entry in self.history if "loss" in entry]


def fit(
    module: nn.Module,
    draw: Draw,
    rows: np.ndarray,
    *,
    validation: np.ndarray | None = None,
    epochs: int,
    batch_size: int,
    rate: float,
    weight_decay: float,
    schedule: str = "plateau",
    patience: int = 30,
    factor: float = 0.5,
    clip: float = 0.0,
    seed: int = 0,
    on_epoch: Callable[[int], None] | None = None,
    progress: bool = False,
) -> FitReport:
    """Trains a module in place with Adam.

    Args:
        module: ``module(**batch)`` gives ``{"loss": scalar}``; has to name its arguments, one of them ``labels``.
        draw: makes batches.
        rows: int64 ``[N]``, what is drawn from.
        validation: int64 ``[V]``, rows of which the loss is taken after every epoch; the plateau schedule needs some.
        epochs, batch_size, rate, weight_decay: of the optimizer.
        schedule: ``"plateau"`` (halves the rate when the validation loss stays), ``"cosine"`` or ``"constant"``.
        patience, factor: of the plateau.
        clip: largest norm of the gradient; 0 for no clipping.
        seed: of order and changes.
        on_epoch: called with 0, 1, ... before every epoch.
        progress: show a bar.

    Raises:
        BadInput: nothing to learn from, numbers that make no training, or a plateau without validation rows.
        TrainingDiverged: a weight is no number afterwards.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if not len(rows) or epochs < 1 or batch_size < 1 or not rate > 0 or not 0 < factor < 1:
        raise BadInput(
            f"{len(rows)} rows, {epochs} epochs, batches of {batch_size}, rate {rate}, factor {factor}",
            where="fit",
            fix="Give pictures, at least one epoch, batches of at least one, a positive rate and a factor below 1",
        )
    if schedule == "plateau" and (validation is None or not len(validation)):
        raise BadInput("a plateau is seen on validation rows", where="fit", fix="Give some, or schedule='cosine'")
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not learned:
        raise BadInput("has nothing to learn", where="fit", fix="Leave some parameters unfrozen")
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise missing_extra("training", "train", "accelerate") from error

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_epoch is not None:
                on_epoch(round(float(state.epoch or 0)))

    evaluates = validation is not None and len(validation) > 0
    extra: dict[str, Any] = (
        {"lr_scheduler_kwargs": {"patience": patience, "factor": factor}} if schedule == "plateau" else {}
    )
    start = time.perf_counter()
    state = fit_module(
        module,
        _Rows(rows, True),
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        collate=_Batches(draw, seed),
        validation=_Rows(validation, False) if validation is not None and evaluates else None,
        optimizers=(torch.optim.Adam(learned, lr=rate, weight_decay=weight_decay), None),
        callbacks=[Epochs()],
        progress=progress,
        # Dropping the last batch would drop all of few validation rows as well.
        per_device_eval_batch_size=min(batch_size, len(validation))
        if validation is not None and evaluates
        else batch_size,
        max_grad_norm=clip,
        # A last batch of one picture has no statistics to be normalized by where maps are a single pixel.
        dataloader_drop_last=len(rows) > batch_size and len(rows) % batch_size == 1,
        lr_scheduler_type=SCHEDULES[schedule],
        metric_for_best_model="loss" if schedule == "plateau" else None,
        greater_is_better=False if schedule == "plateau" else None,
        eval_strategy="epoch" if evaluates else "no",
        prediction_loss_only=True,
        label_names=["labels"],
        logging_strategy="epoch",
        **extra,
    )
    if not finite(learned):
        raise TrainingDiverged("a weight is no number any more", where="fit", fix="Lower the learning rate")
    kept = ("step", "epoch", "loss", "eval_loss", "learning_rate")
    history = [
        {name: float(entry[name]) for name in kept if name in entry}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    return FitReport(int(state.global_step), time.perf_counter() - start, history)


class _Rows(torch.utils.data.Dataset):
    """Row numbers, and whether they are for training: what a batch holds is drawn when it is made."""

    def __init__(self, rows: np.ndarray, training: bool) -> None:
        self.rows, self.training = rows, training

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[int, bool]:
        return int(self.rows[place]), self.training


class _Batches:
    """Draws the batch of some rows; the random changes have a generator of their own."""

    def __init__(self, draw: Draw, seed: int) -> None:
        self.draw, self.generator = draw, np.random.default_rng([seed, 61])

    def __call__(self, items: list[tuple[int, bool]]) -> dict[str, Tensor]:
        rows = np.array([row for row, _ in items])
        return self.draw(rows, self.generator if items[0][1] else None)


def windows(
    count: int, size: tuple[int, int], crop: int | None, flip: bool, generator: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel rows ``[B, h, 1]`` and columns ``[B, 1, w]`` of a random window of each picture, mirrored or not.

    Args:
        count: B.
        size: height and width of the pictures.
        crop: side of the window; None takes the whole picture. For validation the window in the middle.
        flip: mirror half of them up-down and half left-right.
        generator: None for validation: nothing is random.

    Raises:
        BadInput: a window without pixels.
    """
    if crop is not None and crop < 1:
        raise BadInput(f"crop={crop}", where="windows", fix="Give a side in pixels, or None for whole pictures")
    found = []
    for whole in size:
        side = whole if crop is None else min(crop, whole)
        start = np.full(count, (whole - side) // 2)
        if generator is not None:
            start = generator.integers(0, whole - side + 1, size=count)
        places = start[:, None] + np.arange(side)
        if flip and generator is not None:
            places = np.where(generator.random(count)[:, None] < 0.5, places[:, ::-1], places)
        found.append(places)
    return found[0][:, :, None], found[1][:, None, :]


def cut(maps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Windows of maps ``[B, H, W]`` or ``[B, C, H, W]``, as `windows` gave them."""
    each = np.arange(len(maps))[:, None, None]
    if maps.ndim == 3:
        return maps[each, rows, columns]
    return np.ascontiguousarray(np.moveaxis(maps.transpose(0, 2, 3, 1)[each, rows, columns], -1, 1))

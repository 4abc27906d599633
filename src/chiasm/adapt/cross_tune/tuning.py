"""Trains a `CrossMatcher` on a few labelled items; keeps the state that is best on development items, the first one included.

The loop is that of `transformers.Trainer`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.adapt.cross_tune.matcher import CrossMatcher
from chiasm.errors import TrainingDiverged, missing_extra
from chiasm.learn.features import Features
from chiasm.learn.fitting import fit_module

# Rows that are scored together.
_ROWS = 64


@dataclass
class Labelled:
    """Items with labels.

    Args:
        features: ``input_features`` of N items.
        labels: int ``[N]``.
        weights: float ``[N]``, how much each counts.
    """

    features: Features
    labels: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> int:
        return row


@dataclass
class Tuned:
    """What a training came to.

    Args:
        matcher: in its best state.
        accuracy, loss: on the development items in that state.
        epoch: after which it was reached; 0 is before the first step.
        history: accuracy on the development items before the first and after each epoch.
    """

    matcher: CrossMatcher
    accuracy: float
    loss: float
    epoch: int
    history: list[float] = field(default_factory=list)


class _Network(nn.Module):
    """What the trainer trains: the matcher, with the descriptions as constants."""

    def __init__(self, matcher: CrossMatcher, labels: Tensor, labels_mask: Tensor, smoothing: float) -> None:
        super().__init__()
        self.matcher, self.smoothing = matcher, smoothing
        self.labels, self.labels_mask = labels, labels_mask

    def forward(self, tokens: Tensor, mask: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
        scores = self.matcher(tokens, mask, self.labels, self.labels_mask)
        each = nn.functional.cross_entropy(scores, target, reduction="none", label_smoothing=self.smoothing)
        return {"loss": (weight * each).sum() / weight.sum(), "scores": scores}


def tune(
    matcher: CrossMatcher,
    train: Labelled,
    dev: Labelled,
    labels: tuple[Tensor, Tensor],
    *,
    epochs: int,
    rate: float,
    weight_decay: float,
    batch_size: int,
    smoothing: float,
    seed: int,
) -> Tuned:
    """Trains in place; see `CrossTune` for the arguments.

    Raises:
        TrainingDiverged: a score is no number any more.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    tuned = Tuned(matcher, *measure(matcher, dev, labels), 0)
    tuned.history.append(tuned.accuracy)
    if not epochs or len(labels[0]) < 2:  # one class: nothing can be learned
        return tuned
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise missing_extra("tuning", "train", "accelerate") from error
    best = copy.deepcopy(matcher.state_dict())

    class KeepBest(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal best
            accuracy, loss = measure(matcher, dev, labels)
            matcher.train()
            if not np.isfinite(loss):
                raise TrainingDiverged(
                    "a score is no number any more", where="CrossTune", fix="Lower the learning rate"
                )
            tuned.history.append(accuracy)
            if (accuracy, -loss) > (tuned.accuracy, -tuned.loss):
                tuned.accuracy, tuned.loss, tuned.epoch = accuracy, loss, len(tuned.history) - 1
                best = copy.deepcopy(matcher.state_dict())

    fit_module(
        _Network(matcher, *labels, smoothing),
        train,
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        collate=lambda rows: batch(train, rows),
        callbacks=[KeepBest()],
        learning_rate=rate,
        weight_decay=weight_decay,
        lr_scheduler_type="constant",
        logging_strategy="no",
    )
    matcher.load_state_dict(best)
    matcher.eval()
    return tuned


def held_out_rows(numbers: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows that are held out for development: ``floor(share x count)`` random ones of each class.

    Args:
        numbers: class numbers ``[N]``.
        share: in (0, 1).
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(numbers))
    order = order[np.argsort(numbers[order], kind="stable")]
    sizes = np.bincount(numbers)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[place < np.floor(share * sizes)[numbers[order]]]


def batch(items: Labelled, rows: list[int]) -> dict[str, Tensor]:
    """What `_Network` reads of some rows."""
    found = items.features.batch(rows)
    return {
        "tokens": found["input_features"].float(),
        "mask": found["attention_mask"],
        "target": torch.from_numpy(items.labels[rows]),
        "weight": torch.from_numpy(items.weights[rows].astype(np.float32)),
    }


@torch.no_grad()
def scores(
    matcher: CrossMatcher, features: Features, labels: tuple[Tensor, Tensor], shortlist: int | None = None
) -> Tensor:
    """Scores ``[N, C]`` in evaluation mode; classes that are not among the ``shortlist`` nearest by cosine get -inf."""
    matcher.eval()
    out = []
    for begin in range(0, len(features), _ROWS):
        rows = features.batch(range(begin, min(begin + _ROWS, len(features))))
        tokens, mask = rows["input_features"].float(), rows["attention_mask"]
        out.append(matcher(tokens, mask, *labels, shortlist=shortlist))
    return torch.cat(out) if out else torch.zeros(0, len(labels[0]))


def measure(matcher: CrossMatcher, items: Labelled, labels: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy on items."""
    found, target = scores(matcher, items.features, labels), torch.from_numpy(items.labels)
    loss = nn.functional.cross_entropy(found, target)
    return float((found.argmax(dim=1) == target).float().mean()), float(loss)

"""How a segmenter is measured: few-shot and zero-shot episodes over novel classes, and the generalized setting.

>>> found = evaluate(model, features, labels, bank, texts, classes=novel, shots=1, clues="both")
>>> found.miou, found.fb_iou

Base classes in a query picture are background (the classical protocol of PASCAL-5i and COCO-20i). Figures are taken at the
full size of the labels, over all pictures together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chiasm.errors import BadInput, unknown_name
from chiasm.measure.segmentation import Segmentation, confusion, segmentation
from chiasm.perceive.mm_prototypes.episodes import Episodes, SupportBank
from chiasm.perceive.mm_prototypes.model import Clues, MultiModalPrototypes

Kind = Literal["both", "text", "visual"]


def evaluate(
    model: MultiModalPrototypes,
    features: Tensor,
    labels: np.ndarray | Tensor,
    bank: SupportBank,
    texts: Mapping[int, Tensor],
    *,
    classes: Sequence[int],
    shots: int = 1,
    clues: Kind = "both",
    seed: int = 0,
    batch: int = 16,
) -> Segmentation:
    """Every picture is a query once, for all classes at once; supports are drawn from the other pictures.

    Args:
        model: what is measured; its mode is kept, and it is in eval mode meanwhile.
        features: ``[N, F, H, W]``.
        labels: int ``[N, h, w]``.
        bank: supports, of the same pictures.
        texts: class -> ``[T, D']``.
        classes: which are asked for; all others are background.
        shots: support pictures of a class.
        clues: ``"both"``, ``"text"`` (zero-shot) or ``"visual"`` (few-shot).
        seed: of the supports; arms of one seed see the same.
        batch: pictures at once; changes nothing.

    Returns:
        Figures over background and the classes in the order given.

    Raises:
        UnknownName: clues of another kind.
        BadInput: too few supports, no picture, no class, or one without supports or words.
    """
    _check(clues)
    unknown = set(classes) - set(texts) if texts else set()
    unknown |= set(classes) - {int(c) for c in bank.owner} if shots else set()
    if not len(classes) or unknown or not len(features) or batch < 1:
        raise BadInput(
            f"classes {list(classes)}, of which {sorted(unknown)} are unknown, {len(features)} pictures, batches of {batch}",
            where="evaluate",
            fix="Give at least one picture, and classes that have supports and words",
        )
    queries = Episodes(features, labels, bank, dict(texts), ways=1, shots=shots)
    table = np.zeros((len(classes) + 1, len(classes) + 1), dtype=np.int64)
    with _evaluating(model):
        for start in range(0, len(features), batch):
            rows = range(start, min(start + batch, len(features)))
            found = [queries.episode(row, list(classes), np.random.default_rng([seed, row])) for row in rows]
            table += confusion(*_predicted(model, found, clues), classes=len(table))
    return segmentation(table)


@dataclass(frozen=True)
class FewShot:
    """Figures of episodes of one class each; all in [0, 1].

    Args:
        iou: class -> IoU of its foreground over all its episodes.
        miou: mean over the classes.
        fb_iou: mean IoU of foreground and background, all classes as one.
        episodes: how many.
    """

    iou: dict[int, float]
    miou: float
    fb_iou: float
    episodes: int


def evaluate_episodes(
    model: MultiModalPrototypes, episodes: Episodes, *, clues: Kind = "both", batch: int = 16
) -> FewShot:
    """The protocol of PASCAL-5i and COCO-20i: random episodes of one novel class; intersections and unions of a class
    are summed over its episodes.

    Args:
        model: what is measured; its mode is kept, and it is in eval mode meanwhile.
        episodes: of one way, from pictures and a bank of novel classes; 1000 on PASCAL-5i, 4000 or more on COCO-20i.
        clues: as of `evaluate`.
        batch: episodes at once; changes nothing.

    Raises:
        UnknownName: clues of another kind.
        BadInput: episodes of several classes, or without the clues that are asked for.
    """
    _check(clues)
    if episodes.ways != 1:
        raise BadInput(f"episodes of {episodes.ways} classes", where="evaluate_episodes", fix="Make them with ways=1")
    if batch < 1:
        raise BadInput(f"batches of {batch}", where="evaluate_episodes", fix="Take at least 1")
    tables = {c: np.zeros((2, 2), dtype=np.int64) for c in episodes.classes}
    with _evaluating(model):
        for start in range(0, len(episodes), batch):
            rows = [episodes[number] for number in range(start, min(start + batch, len(episodes)))]
            predicted, truth = _predicted(model, rows, clues)
            for row, found, right in zip(rows, predicted, truth, strict=True):
                tables[int(row["class_ids"][0])] += confusion(found, right, classes=2)
    seen = {c: segmentation(table) for c, table in tables.items() if table.any()}
    whole = segmentation(np.sum(list(tables.values()), axis=0))
    iou = {c: found.iou[1] for c, found in seen.items()}
    return FewShot(iou, float(np.nanmean(list(iou.values()))), whole.fb_iou, len(episodes))


def fold(classes: int, which: int, *, folds: int = 4, interleaved: bool = False) -> tuple[list[int], list[int]]:
    """Base and novel classes of a fold; classes are numbered from 1.

    Args:
        classes: their number, the background not counted; a multiple of ``folds``.
        which: the fold, from 0. Report all folds, or their mean; never the best.
        folds: 4.
        interleaved: False for PASCAL-5i (fold 0 is 1..5), True for COCO-20i (fold 0 is 1, 5, 9, ...).

    Raises:
        BadInput: a fold that does not exist, or classes that cannot be shared out.
    """
    if folds < 2 or classes < folds or classes % folds or not 0 <= which < folds:
        raise BadInput(
            f"fold {which} of {folds} with {classes} classes",
            where="fold",
            fix="Give a fold from 0, and classes that are a multiple of the folds",
        )
    each, every = classes // folds, range(1, classes + 1)
    novel = [c for c in every if ((c - 1) % folds if interleaved else (c - 1) // each) == which]
    return [c for c in every if c not in novel], novel


def _check(clues: str) -> None:
    if clues not in get_args(Kind):
        raise unknown_name("kind of clues", clues, get_args(Kind))


@contextmanager
def _evaluating(model: MultiModalPrototypes) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _predicted(model: MultiModalPrototypes, rows: Sequence[Mapping[str, Tensor]], kind: Kind) -> tuple[Tensor, Tensor]:
    """Predicted and true labels ``[n, h, w]`` of a batch of episodes, at the size of the labels."""
    found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    known = Clues(
        found.get("text"), found.get("visual"), found.get("background"), background_mask=found.get("background_mask")
    )
    if kind != "both":
        known = known.without_visual() if kind == "text" else known.without_text()
    size = (int(found["labels"].shape[1]), int(found["labels"].shape[2]))
    logits = functional.interpolate(model(found["features"], known), size=size, mode="bilinear", align_corners=False)
    return logits.argmax(dim=1), found["labels"]


def misplaced(bank: SupportBank, wrong: SupportBank) -> SupportBank:
    """A bank with the entries of another one: what support masks of other pictures would give (a negative control).

    Args:
        bank: entries whose picture and class are kept.
        wrong: as long as ``bank``.
    """
    return replace(bank, inside=wrong.inside, around=wrong.around, around_there=wrong.around_there)

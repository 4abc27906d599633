"""Episodes: a query picture, and for a few classes words and support pictures; and the training on them.

>>> bank = SupportBank.of(features, labels, classes=base, regions=5)      # M-Splitting once a picture and class
>>> episodes = Episodes(features, labels, bank, texts, ways=4, shots=1, length=4000)
>>> history = fit(model, episodes, epochs=1, batch_size=8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, TrainingDiverged
from chiasm.perceive.mm_prototypes.dense import labels_tensor, run_trainer
from chiasm.perceive.mm_prototypes.model import IGNORE, Clues, MultiModalPrototypes
from chiasm.perceive.mm_prototypes.splitting import Rule, to_grid, visual_prototypes


@dataclass(frozen=True)
class SupportBank:
    """Visual prototypes of every picture and class in it, made once.

    Args:
        picture: int ``[E]``, the picture of each entry.
        owner: int ``[E]``, its class (as in the labels).
        inside: ``[E, M, F]``, prototypes of the class's mask.
        around: ``[E, M, F]``, prototypes of what is neither its mask nor another class that was named.
        around_there: bool ``[E]``, False where nothing is around.
    """

    picture: np.ndarray
    owner: np.ndarray
    inside: Tensor
    around: Tensor
    around_there: Tensor

    @classmethod
    def of(
        cls,
        features: Tensor,
        labels: np.ndarray | Tensor,
        *,
        classes: Sequence[int],
        regions: int = 5,
        rule: Rule = "median",
        feature_weight: float = 1.0,
        least: float = 1.0,
    ) -> SupportBank:
        """Splits the masks of all pictures.

        Args:
            features: ``[N, F, H, W]``.
            labels: int ``[N, h, w]``: 0 background, class numbers, 255 unlabelled.
            classes: which classes are named. Only these have entries, and only their pixels stay out of the surroundings.
            regions, rule, feature_weight: of `split_mask`.
            least: smallest area of a mask, in cells of the raster of the features.

        Raises:
            BadInput: labels that do not fit, or a class that no picture shows.
        """
        labels = labels_tensor(labels)
        if features.ndim != 4 or labels.ndim != 3 or not len(labels) or len(labels) != len(features):
            raise BadInput(
                f"features {tuple(features.shape)}, labels {tuple(labels.shape)}",
                where="SupportBank",
                fix="Give [N, F, H, W] and [N, h, w] of the same N pictures",
            )
        check_labels(labels, "SupportBank")
        size, named = (int(features.shape[2]), int(features.shape[3])), sorted({int(c) for c in classes})
        if not named or named[0] < 1 or named[-1] >= IGNORE:
            raise BadInput(f"classes {named}", where="SupportBank", fix="Classes are numbered from 1 (0 is background)")
        cover = torch.stack([to_grid(labels == c, size) for c in named], dim=1)
        # What is not labelled may be anything, so it is not background either.
        free = (1 - cover.sum(dim=1) - to_grid(labels == IGNORE, size)).clamp(min=0)
        free = free.masked_fill(free < 0.5, 0.0)
        area = cover.sum(dim=(2, 3))
        entries = (area >= least).nonzero().tolist()
        missing = sorted(set(named) - {named[place] for _, place in entries})
        if missing:
            raise BadInput(
                f"no picture shows class {missing[0]} on at least {least:g} cells",
                where="SupportBank",
                fix="Leave the class out, or take a smaller `least`",
            )
        made = [
            visual_prototypes(features[row], cover[row, place], regions, rule=rule, feature_weight=feature_weight)
            for row, place in entries
        ]
        there = free.sum(dim=(1, 2)) > 0
        around = torch.stack(
            [
                visual_prototypes(features[row], free[row], regions, rule=rule, feature_weight=feature_weight)
                if bool(there[row])
                else features.new_zeros(regions, features.shape[1])
                for row in range(len(features))
            ]
        )
        picture = np.array([row for row, _ in entries])
        index = torch.from_numpy(picture)
        owner = np.array([named[place] for _, place in entries])
        return cls(picture, owner, torch.stack(made), around[index], there[index])

    def draw(self, owner: int, shots: int, rng: np.random.Generator, without: int = -1) -> np.ndarray:
        """Numbers of ``shots`` different entries of a class, none of the picture ``without``.

        Raises:
            BadInput: there are not so many.
        """
        found = np.flatnonzero((self.owner == owner) & (self.picture != without))
        if len(found) < shots:
            raise BadInput(
                f"class {owner} has {len(found)} other pictures, {shots} are wanted",
                where="SupportBank",
                fix="Take fewer shots",
            )
        return rng.choice(found, shots, replace=False)


class Episodes(torch.utils.data.Dataset):
    """Episodes that are drawn from labelled pictures; number i of a seed is always the same.

    Args:
        features: ``[N, F, H, W]`` of the query pictures.
        labels: int ``[N, h, w]``.
        bank: supports, made of the same pictures. Its classes are those that are drawn.
        texts: class -> ``[T, D']``, all of one T; None for no words. ``[R, T, D']`` holds R ways to say the same, of
            which every episode draws one: the vectors of few classes are soon learned by heart.
        ways: classes K of an episode; the others are background.
        shots: support pictures S of a class; 0 for words alone.
        length: number of episodes.
        seed: of the draws.
        averaged: share of the episodes in which every support has its mean instead of its regions, so that one model
            serves one prototype a mask as well as several.
        unlabelled: classes whose pixels do not count in the loss: novel classes that lie about in training pictures
            would be learned as background.

    Raises:
        BadInput: fewer classes or pictures than an episode needs.
    """

    def __init__(
        self,
        features: Tensor,
        labels: np.ndarray | Tensor,
        bank: SupportBank,
        texts: dict[int, Tensor] | None = None,
        *,
        ways: int = 1,
        shots: int = 1,
        length: int = 1000,
        seed: int = 0,
        averaged: float = 0.0,
        unlabelled: Sequence[int] = (),
    ) -> None:
        self.features, self.labels = features, labels_tensor(labels)
        if len(self.features) != len(self.labels) or int(bank.picture.max(initial=-1)) >= len(self.labels):
            raise BadInput(
                f"{len(self.features)} features, {len(self.labels)} labels, supports from {bank.picture.max(initial=-1) + 1}",
                where="Episodes",
                fix="Give features, labels and bank of the same pictures",
            )
        self.classes = sorted({int(c) for c in bank.owner})
        if not 1 <= ways <= len(self.classes) or shots < 0 or length < 1 or (not shots and texts is None):
            raise BadInput(
                f"ways={ways}, shots={shots}, length={length} with {len(self.classes)} classes",
                where="Episodes",
                fix="Draw at least one class, and give words or at least one shot",
            )
        if not 0 <= averaged <= 1:
            raise BadInput(f"averaged={averaged}", where="Episodes", fix="It is a share of the episodes")
        counts = {c: len(set(bank.picture[bank.owner == c])) for c in self.classes}
        scarce = min(self.classes, key=lambda c: counts[c])
        if counts[scarce] < shots + 1:
            raise BadInput(
                f"class {scarce} is in {counts[scarce]} pictures, {shots + 1} are needed (one is the query)",
                where="Episodes",
                fix="Take fewer shots, or leave the class out",
            )
        unknown = [c for c in self.classes if texts is not None and c not in texts]
        if unknown:
            raise BadInput(
                f"class {unknown[0]} has no words",
                where="Episodes",
                fix="Give texts of every class in the bank, or none",
            )
        self.bank, self.texts, self.ways, self.shots = bank, texts, ways, shots
        self.length, self.seed, self.averaged, self.unlabelled = length, seed, averaged, sorted(unlabelled)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Tensors of one episode: features, labels (0, 1..K, 255), class_ids ``[K]``, and text, visual, background.

        Up to half of the classes are in the query picture (one at least), the others are drawn from all.
        """
        rng = np.random.default_rng([self.seed, number])
        first = int(rng.choice(self.classes))
        row = int(rng.choice(self.bank.picture[self.bank.owner == first]))
        seen = rng.permutation(np.setdiff1d(self.bank.owner[self.bank.picture == row], [first]))
        chosen = [first, *seen[: self.ways // 2 - 1 if self.ways > 1 else 0]]
        rest = np.setdiff1d(self.classes, chosen)
        chosen += rng.choice(rest, self.ways - len(chosen), replace=False).tolist()
        averaged = self.averaged > 0 and rng.random() < self.averaged
        return self.episode(row, [int(c) for c in rng.permutation(chosen)], rng, averaged=averaged)

    def episode(
        self, row: int, chosen: Sequence[int], rng: np.random.Generator, *, averaged: bool = False
    ) -> dict[str, Tensor]:
        """The episode of one query picture and the classes ``chosen``, with supports that ``rng`` draws.

        Args:
            row: number of the query picture.
            chosen: K classes; they become 1..K in the labels.
            rng: draws the supports and the words.
            averaged: every support has its mean instead of its regions.
        """
        found = {
            "features": self.features[row],
            "labels": relabelled(self.labels[row], chosen, self.unlabelled),
            "class_ids": torch.tensor(list(chosen)),
        }
        if self.shots:
            drawn = [self.bank.draw(c, self.shots, rng, without=row) for c in chosen]
            inside = [self.bank.inside[rows] for rows in drawn]
            if averaged:
                # Regions have (nearly) equal areas; copies of a prototype count as one.
                inside = [rows.mean(dim=1, keepdim=True).expand_as(rows) for rows in inside]
            found["visual"] = torch.stack([rows.flatten(0, 1) for rows in inside])
            rows = np.concatenate(drawn)
            regions = self.bank.around.shape[1]
            found["background"] = self.bank.around[rows].flatten(0, 1)
            found["background_mask"] = self.bank.around_there[rows].repeat_interleave(regions)
        if self.texts is not None:
            said = [self.texts[c] for c in chosen]
            found["text"] = torch.stack([t if t.ndim == 2 else t[int(rng.integers(len(t)))] for t in said])
        return found


def relabelled(labels: Tensor, chosen: Sequence[int], unlabelled: Sequence[int] = ()) -> Tensor:
    """Class numbers -> 1..K of the chosen classes; other classes are background, ``unlabelled`` ones and 255 do not count.

    Raises:
        BadInput: labels outside 0 .. 255, no class, one that is chosen twice, or one outside 1 .. 254.
    """
    check_labels(labels, "relabelled")
    if not len(chosen) or len(set(chosen)) < len(chosen) or not all(0 < c < IGNORE for c in [*chosen, *unlabelled]):
        raise BadInput(
            f"classes {list(chosen)}, unlabelled {list(unlabelled)}",
            where="relabelled",
            fix="Give at least one class, each once, numbered from 1 to 254",
        )
    table = torch.zeros(256, dtype=torch.long)
    table[IGNORE] = IGNORE
    for c in unlabelled:
        table[c] = IGNORE
    for place, c in enumerate(chosen):
        table[c] = place + 1
    return table[labels]


def check_labels(labels: Tensor, where: str) -> None:
    """Raises `BadInput` for labels outside 0 .. 255."""
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > IGNORE):
        raise BadInput(
            f"labels from {int(labels.min())} to {int(labels.max())}",
            where=where,
            fix="Give 0 for background, classes from 1 to 254, and 255 for what is not labelled",
        )


class _Learner(nn.Module):
    """What `transformers.Trainer` sees: an episode batch in, the loss out."""

    def __init__(self, model: MultiModalPrototypes) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        class_ids: Tensor,
        text: Tensor | None = None,
        visual: Tensor | None = None,
        background: Tensor | None = None,
        background_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        clues = Clues(text, visual, background, background_mask=background_mask)
        parts = self.model.losses(features, clues, labels, class_ids)
        return {"loss": torch.stack(list(parts.values())).sum()}


def fit(
    model: MultiModalPrototypes,
    episodes: Episodes,
    *,
    epochs: float = 1,
    batch_size: int = 8,
    rate: float = 1e-4,
    weight_decay: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Trains in place: AdamW with a polynomial decay.

    Args:
        model: what is trained.
        episodes: what it is trained on.
        epochs: passes over the episodes.
        batch_size: episodes a step; 8 (the card: 8-16).
        rate: 1e-4 (the card).
        weight_decay: 0.01, AdamW's.
        seed: of the order and of the dropped modalities.
        progress: show a bar.

    Returns:
        One dict a logged step: ``step``, ``loss``.

    Raises:
        BadInput: epochs, a batch size or a rate that are not above 0.
        TrainingDiverged: the loss is no number any more.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model.on_progress(state.global_step, state.max_steps)

    if not epochs > 0 or batch_size < 1 or not rate > 0:
        raise BadInput(
            f"epochs={epochs}, batch_size={batch_size}, rate={rate}", where="fit", fix="Give numbers above 0"
        )
    was_training = model.training
    history = run_trainer(
        _Learner(model),
        episodes,
        rate=rate,
        batch_size=batch_size,
        epochs=epochs,
        weight_decay=weight_decay,
        seed=seed,
        callbacks=[Progress()],
        progress=progress,
    )
    model.train(was_training)
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()) or any(
        not math.isfinite(entry["loss"]) for entry in history
    ):
        raise TrainingDiverged("a parameter is no number any more", where="fit", fix="Lower the learning rate")
    return history

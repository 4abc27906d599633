"""Fine-tuning of a two-tower model with CMA, and `CMAClassifier`: pictures in, classes and out-of-distribution scores out.

The loop is sentence-transformers'; all parameters of both towers learn.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from chiasm.adapt.mm_ood.alignment import CrossModalAlignment
from chiasm.adapt.mm_ood.detector import OODClassifier
from chiasm.adapt.mm_ood.mining import QUANTILE, SHARE, NegativeLabels
from chiasm.errors import BadInput, TrainingDiverged, UnknownName
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train

# What the text tower reads of a class: in training, and at inference (the paper's command).
TRAIN_TEMPLATE, TEMPLATE = "a photo of a {}", "The nice {}"
# No more than this share of the steps is warm-up, however short the training.
MOST_WARMUP = 0.1

Augment = Callable[[Tensor, torch.Generator], Tensor]


def fine_tune(
    model: Any,
    pictures: Any,
    labels: Sequence[int] | np.ndarray,
    classes: Sequence[str],
    *,
    lam: float = 1e-3,
    template: str = TRAIN_TEMPLATE,
    epochs: float = 10,
    batch_size: int = 512,
    rate: float = 1e-5,
    weight_decay: float = 0.1,
    warmup_steps: int = 500,
    terms: str = "both",
    augment: Augment | None = None,
    seed: int = 0,
    objective: CrossModalAlignment | None = None,
) -> TrainReport:
    """Fine-tunes a model in place on labelled pictures with the CMA loss.

    Args:
        model: a `SentenceTransformer` that takes pictures and texts (over a CLIP, for example).
        pictures: N pictures as the model takes them (PIL, ...), or their ``pixel_values`` ``[N, 3, H, W]``.
        labels: int ``[N]``, numbers of classes.
        classes: their names.
        lam: weight of the energies, see `CrossModalAlignment`; 0 is FLYP.
        template: text of a class; equal texts occur several times in a batch.
        epochs, batch_size, rate, weight_decay: 10, 512, 1e-5, 0.1, AdamW with a cosine to 0 (the paper's setting on ImageNet).
        warmup_steps: 500, but at most a tenth of all steps.
        terms: which energies count.
        augment: (pixel values, generator) -> pixel values.
        seed: of order and augmentation.
        objective: a loss of your own settings; then ``lam`` and ``terms`` are its.

    Raises:
        BadInput: no classes, fewer than two pictures, labels outside the classes, a batch of one, things that are no pictures.
        UnknownName: a model without a picture tower or a text tower.
        TrainingDiverged: the loss is no number any more.
        MissingExtra: ``chiasm[train]`` is not installed.
    """
    _check_model(model, "fine_tune")
    _check_pictures(pictures, "fine_tune")
    labels = np.asarray(labels)
    _check_labels(labels, len(pictures), len(classes))
    if batch_size < 2 or not rate > 0:
        raise BadInput(
            f"batch_size {batch_size}, rate {rate}",
            where="fine_tune",
            fix="Give batches of at least 2 and a positive rate",
        )
    start = _own_scale(model)
    loss = objective or CrossModalAlignment(lam, scale=start, terms=terms)
    texts = [template.replace("{}", name.replace("_", " ")) for name in classes]
    pairs = Pairs(
        {"a": _Items(model, pictures, augment, seed), "b": _Items(model, texts)},
        {"a": np.arange(len(labels)), "b": labels},
        groups=labels,
    )
    steps = max(1, math.ceil(epochs * math.ceil(len(labels) / batch_size)))
    stage = Stage("cma", epochs=epochs, rate=rate, warmup=min(MOST_WARMUP, warmup_steps / steps))
    # A batch of the pictures' order is all that differs between two seeds; the model's own weights are its start.
    report = train(model, pairs, loss, stage, batch_size=batch_size, weight_decay=weight_decay, seed=seed)
    scale = float(loss.scale.detach())
    if not 0 < scale < math.inf:
        raise TrainingDiverged(f"the scale is {scale} after training", where="fine_tune", fix="Lower the rate")
    _set_scale(model, scale)
    return report


def encode_texts(model: Any, words: Sequence[str], *, template: str = TEMPLATE) -> np.ndarray:
    """Unit vectors float32 ``[N, D]`` of words in a template."""
    texts = [template.replace("{}", word.replace("_", " ")) for word in words]
    return np.asarray(model.encode(texts, normalize_embeddings=True, convert_to_numpy=True), dtype=np.float32)


def encode_pictures(model: Any, pictures: Any, *, batch_size: int = 256) -> np.ndarray:
    """Unit vectors float32 ``[N, D]`` of pictures, or of their ``pixel_values`` ``[N, 3, H, W]``.

    Raises:
        BadInput: no pictures, or things that are none.
    """
    _check_pictures(pictures, "encode_pictures")
    items, was_training, parts = _Items(model, pictures), model.training, []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(items), batch_size):
            batch = items.batch(range(start, min(start + batch_size, len(items))))
            batch = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            parts.append(torch.nn.functional.normalize(model(batch)["sentence_embedding"].float(), dim=-1).cpu())
    model.train(was_training)
    return torch.cat(parts).numpy()


class CMAClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a copy of a two-tower model on labelled pictures, classifies, and rejects what belongs to no class.

    Args:
        model: a `SentenceTransformer` over a CLIP-like model; it is copied, never changed.
        words: candidates for negative labels; None for none (then MCM scores).
        lam: weight of the alignment energies; 1e-3. 0 is FLYP.
        epochs, batch_size, rate, weight_decay, warmup_steps, terms: of `fine_tune`.
        train_template, template: text of a class in training and at inference.
        share, quantile: of `NegativeLabels.mined`.
        ood_score, temperature, groups, tpr: of `OODClassifier`.
        validation: share of the pictures that is kept out of training and sets the threshold; drawn class by class. 0 takes
            the training pictures, which makes the threshold too strict.
        augment: of `fine_tune`.
        seed: of everything random.

    Attributes:
        classes_: the class names, sorted.
        model_: the fine-tuned copy.
        negatives_: the `NegativeLabels`, mined by the pre-trained text tower, or None.
        detector_: the fitted `OODClassifier`; negative words encoded anew by the fine-tuned text tower.
        report_: the training's report.
    """

    def __init__(
        self,
        model: Any = None,
        words: Sequence[str] | None = None,
        *,
        lam: float = 1e-3,
        epochs: float = 10,
        batch_size: int = 512,
        rate: float = 1e-5,
        weight_decay: float = 0.1,
        warmup_steps: int = 500,
        terms: str = "both",
        train_template: str = TRAIN_TEMPLATE,
        template: str = TEMPLATE,
        share: float = SHARE,
        quantile: float = QUANTILE,
        ood_score: str = "auto",
        temperature: float | None = None,
        groups: int = 1,
        tpr: float = 0.95,
        validation: float = 0.1,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.words = words
        self.lam = lam
        self.epochs = epochs
        self.batch_size = batch_size
        self.rate = rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.terms = terms
        self.train_template = train_template
        self.template = template
        self.share = share
        self.quantile = quantile
        self.ood_score = ood_score
        self.temperature = temperature
        self.groups = groups
        self.tpr = tpr
        self.validation = validation
        self.augment = augment
        self.seed = seed

    def fit(self, X: Any, y: Any) -> CMAClassifier:
        """Fine-tunes on pictures and their class names.

        Args:
            X: N pictures, or ``pixel_values`` ``[N, 3, H, W]``.
            y: N class names (strings).

        Raises:
            BadInput: no pictures, labels of another length, a validation share outside 0 .. 1.
            UnknownName: a model without a picture tower or a text tower, or none.
        """
        _check_model(self.model, "CMAClassifier")
        _check_pictures(X, "CMAClassifier.fit")
        if isinstance(self.words, str):
            raise BadInput("words is one text", where="CMAClassifier", fix="Give a list of words, or None")
        names = np.asarray(y).astype(str)
        self.classes_, labels = np.unique(names, return_inverse=True)
        _check_labels(labels, len(X), len(self.classes_))
        if not 0 <= self.validation < 1:
            raise BadInput(
                f"validation {self.validation} is outside 0..1", where="CMAClassifier", fix="Give a share below 1"
            )
        kept, held = _split(labels, self.validation, self.seed)
        self.model_ = copy.deepcopy(self.model)
        self.negatives_ = None
        if self.words is not None:
            self.negatives_ = NegativeLabels.mined(
                list(self.classes_),
                list(self.words),
                lambda texts: encode_texts(self.model_, texts, template="{}"),
                template=self.template,
                share=self.share,
                quantile=self.quantile,
            )
        self.report_ = fine_tune(
            self.model_,
            _taken(X, kept),
            labels[kept],
            list(self.classes_),
            lam=self.lam,
            template=self.train_template,
            epochs=self.epochs,
            batch_size=self.batch_size,
            rate=self.rate,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            terms=self.terms,
            augment=self.augment,
            seed=self.seed,
        )
        negatives = None if self.negatives_ is None else self._texts(self.negatives_.words)
        self.detector_ = OODClassifier(
            self._texts(self.classes_),
            negatives,
            classes=self.classes_,
            ood_score=self.ood_score,
            temperature=self.temperature,
            groups=self.groups,
            tpr=self.tpr,
            seed=self.seed,
        ).fit(encode_pictures(self.model_, _taken(X, held if len(held) else kept)))
        return self

    def embed(self, X: Any) -> np.ndarray:
        """Unit vectors ``[N, D]`` of pictures by the fine-tuned model."""
        check_is_fitted(self, "detector_")
        return encode_pictures(self.model_, X)

    def predict(self, X: Any) -> np.ndarray:
        """Class names ``[N]``, known or not."""
        vectors = self.embed(X)
        return self.detector_.predict(vectors)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares ``[N, K]`` in the order of ``classes_``."""
        vectors = self.embed(X)
        return self.detector_.predict_proba(vectors)

    def score_samples(self, X: Any) -> np.ndarray:
        """How well each picture belongs to the known classes ``[N]``; higher is more known."""
        vectors = self.embed(X)
        return self.detector_.score_samples(vectors)

    def known(self, X: Any) -> np.ndarray:
        """Bool ``[N]``: accepted at the threshold of the validation pictures."""
        vectors = self.embed(X)
        return self.detector_.known(vectors)

    def predict_open(self, X: Any, unknown: Any = None) -> np.ndarray:
        """Class names, or ``unknown``; object ``[N]``."""
        vectors = self.embed(X)
        return self.detector_.predict_open(vectors, unknown)

    def _texts(self, words: Sequence[str] | np.ndarray) -> np.ndarray:
        return encode_texts(self.model_, [str(word) for word in words], template=self.template)


class _Items:
    """What a model reads of some items: a source for `chiasm.learn.Pairs`."""

    def __init__(self, model: Any, items: Any, augment: Augment | None = None, seed: int = 0) -> None:
        self.model, self.items, self.augment = model, items, augment
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        rows = list(rows)
        if isinstance(self.items, (Tensor, np.ndarray)) and self.items.ndim == 4 and self.items.shape[1] == 3:
            found: dict[str, Any] = {"pixel_values": torch.as_tensor(self.items[rows]), "modality": "image"}
        else:
            found = dict(self.model.preprocess([self.items[row] for row in rows]))
        if self.augment is not None:
            found["pixel_values"] = self.augment(found["pixel_values"], self.generator)
        return {**found, "rows": torch.tensor(rows)}


def _taken(items: Any, rows: np.ndarray) -> Any:
    return items[rows] if isinstance(items, (Tensor, np.ndarray)) else [items[row] for row in rows]


def _split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and validation; every class keeps at least one for training."""
    rng, held = np.random.default_rng(seed), []
    for one in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == one))
        held.append(rows[: min(len(rows) - 1, round(share * len(rows)))])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def _check_model(model: Any, where: str) -> None:
    known = getattr(model, "modalities", ("image", "text"))
    if not hasattr(model, "preprocess") or not {"image", "text"} <= set(known):
        raise UnknownName(
            f"a {type(model).__name__} takes no pictures and texts",
            where=where,
            fix="Give a SentenceTransformer over a CLIP or SigLIP model",
        )


def _check_pictures(pictures: Any, where: str) -> None:
    array = isinstance(pictures, (Tensor, np.ndarray)) and pictures.dtype != object
    pixels = array and pictures.ndim == 4 and pictures.shape[1] == 3
    listed = not array and hasattr(pictures, "__len__") and not isinstance(pictures, str)
    if not (pixels or listed) or (listed and any(isinstance(one, str) for one in pictures)):
        said = f"shape {np.shape(pictures)}" if array else f"a {type(pictures).__name__}"
        raise BadInput(
            f"{said} is no list of pictures" if not listed else "a text among the pictures",
            where=where,
            fix="Give a list of pictures, or pixel_values [N, 3, H, W]",
        )
    if where == "encode_pictures" and not len(pictures):
        raise BadInput("no pictures", where=where, fix="Give at least one")


def _check_labels(labels: np.ndarray, pictures: int, classes: int) -> None:
    if labels.shape != (pictures,) or pictures < 2:
        raise BadInput(
            f"{pictures} pictures and labels {labels.shape}", where="CMA", fix="Give one label a picture, N >= 2"
        )
    if labels.dtype.kind not in "iu":
        raise BadInput(f"labels of type {labels.dtype}", where="CMA", fix="Give whole numbers of classes")
    if not classes or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise BadInput(
            f"labels from {labels.min()} to {labels.max()} for {classes} classes",
            where="CMA",
            fix="Number the classes from 0 on",
        )


def _network(model: Any) -> Any:
    return getattr(model[0], "model", None) if len(model) else None


def _own_scale(model: Any) -> float:
    """The model's own inverse temperature, at most 100; 100 where it has none."""
    scale = getattr(_network(model), "logit_scale", None)
    return 100.0 if scale is None else min(100.0, float(scale.detach().exp()))


def _set_scale(model: Any, value: float) -> None:
    scale = getattr(_network(model), "logit_scale", None)
    if scale is not None:
        with torch.no_grad():
            scale.fill_(math.log(value))

"""`CrossTune`: a classifier from a few labelled items, label descriptions and an encoder that can only be called."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from chiasm.adapt.cross_tune.baselines import LinearProbe
from chiasm.adapt.cross_tune.encoding import BlackBox, as_tokens
from chiasm.adapt.cross_tune.generation import generate_texts, without_copies
from chiasm.adapt.cross_tune.labels import from_examples, padded, sentences
from chiasm.adapt.cross_tune.matcher import CrossMatcher
from chiasm.adapt.cross_tune.switch import Switch, judged, temperature
from chiasm.adapt.cross_tune.tuning import Labelled, Tuned, held_out_rows, scores, tune
from chiasm.adapt.descriptions import Source
from chiasm.adapt.pseudo_labels import Selection, select
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.features import Features


class CrossTune(ClassifierMixin, BaseEstimator):
    """Few-shot classification by cross-attention between inputs and label descriptions, on frozen features (CrossTune).

        >>> model = CrossTune(chiasm.load("pocket"), {"sports": "about football, tennis, athletes", ...})
        >>> model.fit(texts, labels, dev=(dev_texts, dev_labels)).predict(more_texts)

    Args:
        encoder: a space, a callable or a `BlackBox`; it is called once a text and nothing else. None: inputs are vectors
            ``[N, d]`` or tokens ``[N, T, d]`` already.
        descriptions: class -> sentences, any source of `chiasm.adapt.descriptions.describe`; for inputs that are vectors
            an array ``[C, d]`` or ``[C, Tc, d]`` in the order of the classes. None: the class names alone, or for vectors
            the mean of each class's training items.
        classes: all class names, in order; default those of ``y``, sorted. Classes without an example are judged by
            their description.
        generator: ``generate(prompt, n) -> texts`` for more training texts; None for none.
        teacher: an independent classifier (``fit``, ``predict_proba`` on the inputs of `fit`) that judges generated texts;
            default a linear probe on the same features. It sees the training items only.
        n_generate: texts a class, 32.
        demonstrations: training texts in a prompt, 6.
        threshold: least teacher's share of a generated text, 0.7. Above 1 nothing is kept.
        relabel: a teacher's share from which it may replace the label; None for never (0.9 is usual).
        augment_weight: weight of a generated text, 0.5.
        copy_cosine: generated texts whose mean vector has a higher cosine with a given one are copies, 0.95.
        switch: ``"dev"``: keep the generated texts only if they do no harm on the development items; ``"always"``: never ask;
            ``"unfiltered"``: use all, without the teacher either (the ablations).
        width, heads, interaction, dropout: of `CrossMatcher`.
        epochs, rate, weight_decay, batch_size: of AdamW; 25, 1e-3, 1e-2, 32.
        smoothing: of the labels; 0.1 is usual, 0 the default.
        dev_share: share of the items of each class held out where `fit` gets no development items; 0.5 (as many as for
            training).
        shortlist: among more classes than this only the nearest by cosine are scored by the head; 100.
        random_state: seed.

    After ``fit``: ``classes_ [C]``, ``matcher_``, ``temperature_``, ``switch_`` (a `Switch`, None without a generator),
    ``selection_``, ``dev_accuracy_``, ``epoch_`` (0: training did not help, this is the cosine), ``history_``.

    Raises:
        BadInput: see `fit`.
    """

    def __init__(
        self,
        encoder: Any = None,
        descriptions: Source | Any = None,
        *,
        classes: Sequence[Any] | None = None,
        generator: Callable[[str, int], list[str]] | None = None,
        teacher: Any = None,
        n_generate: int = 32,
        demonstrations: int = 6,
        threshold: float = 0.7,
        relabel: float | None = None,
        augment_weight: float = 0.5,
        copy_cosine: float = 0.95,
        switch: Literal["dev", "always", "unfiltered"] = "dev",
        width: int | None = None,
        heads: int = 4,
        interaction: Literal["product", "sum"] = "product",
        dropout: float = 0.3,
        epochs: int = 25,
        rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 32,
        smoothing: float = 0.0,
        dev_share: float = 0.5,
        shortlist: int = 100,
        random_state: Any = None,
    ) -> None:
        self.encoder = encoder
        self.descriptions = descriptions
        self.classes = classes
        self.generator = generator
        self.teacher = teacher
        self.n_generate = n_generate
        self.demonstrations = demonstrations
        self.threshold = threshold
        self.relabel = relabel
        self.augment_weight = augment_weight
        self.copy_cosine = copy_cosine
        self.switch = switch
        self.width = width
        self.heads = heads
        self.interaction: Literal["product", "sum"] = interaction
        self.dropout = dropout
        self.epochs = epochs
        self.rate = rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.smoothing = smoothing
        self.dev_share = dev_share
        self.shortlist = shortlist
        self.random_state = random_state

    # ---- fit

    def fit(self, X: Any, y: Any, *, dev: tuple[Any, Any] | None = None) -> CrossTune:
        """Trains the head.

        Args:
            X: N texts, or vectors ``[N, d]`` or tokens ``[N, T, d]`` if there is no encoder.
            y: their classes ``[N]``.
            dev: development items and classes that choose the epoch, the switch and the temperature. None: a share of
                ``X`` is held out for that.

        Raises:
            BadInput: nothing to learn from, sizes that differ, or no development items.
            UnknownName: a class that is not among ``classes``, or an option that does not exist.
        """
        if self.switch not in ("dev", "always", "unfiltered"):
            raise unknown_name("switch", str(self.switch), ("dev", "always", "unfiltered"))
        if self.epochs < 0 or not 0 < self.dev_share < 1 or self.shortlist < 1:
            raise BadInput(
                f"epochs {self.epochs}, dev_share {self.dev_share}, shortlist {self.shortlist}",
                where="CrossTune",
                fix="Give epochs >= 0, a dev_share between 0 and 1, and a shortlist of at least 1",
            )
        if not self.rate > 0 or self.batch_size < 1 or not 0 <= self.dropout < 1 or not 0 <= self.smoothing < 1:
            raise BadInput(
                f"rate {self.rate}, batch_size {self.batch_size}, dropout {self.dropout}, smoothing {self.smoothing}",
                where="CrossTune",
                fix="Give a positive rate, batches of at least 1, and shares from 0 to below 1",
            )
        seed = int(check_random_state(self.random_state).randint(2**31))
        self.encoder_ = (
            self.encoder if self.encoder is None or isinstance(self.encoder, BlackBox) else BlackBox(self.encoder)
        )
        y = np.asarray(y)
        _check_items(X, "CrossTune.fit")
        _check_labels(X, y, "CrossTune.fit")
        self.classes_ = np.unique(y) if self.classes is None else np.array(list(self.classes))
        numbers = self._numbers(y)
        X, numbers, held, held_numbers = self._divided(X, numbers, dev, seed)
        features, held_features = self._features(X), self._features(held)
        self._describe(features, numbers)
        train = Labelled(features, numbers, np.ones(len(numbers)))
        held_out = Labelled(held_features, held_numbers, np.ones(len(held_numbers)))
        plain = self._tuned(train, held_out, seed)
        self.switch_, self.selection_ = None, None
        chosen = plain
        if self.generator is not None:
            chosen = self._with_generated(X, train, held, held_out, plain, seed)
        self.matcher_, self.dev_accuracy_ = chosen.matcher, chosen.accuracy
        self.epoch_, self.history_ = chosen.epoch, chosen.history
        self.temperature_ = temperature(self._scores(held_features).numpy(), held_numbers)
        return self

    def _numbers(self, y: np.ndarray) -> np.ndarray:
        """Class numbers of labels."""
        place = {name: i for i, name in enumerate(self.classes_.tolist())}
        unknown = [name for name in y.tolist() if name not in place]
        if unknown:
            raise unknown_name("class", str(unknown[0]), [str(name) for name in place])
        return np.array([place[name] for name in y.tolist()], dtype=np.int64)

    def _divided(self, X: Any, numbers: np.ndarray, dev: Any, seed: int) -> tuple[Any, np.ndarray, Any, np.ndarray]:
        """Training and development items."""
        if dev is not None:
            if not isinstance(dev, (tuple, list)) or len(dev) != 2:
                raise BadInput("dev is no pair", where="CrossTune.fit", fix="Give dev=(items, labels)")
            held, labels = dev[0], np.asarray(dev[1])
            _check_items(held, "CrossTune.fit, dev")
            _check_labels(held, labels, "CrossTune.fit, dev")
            return X, numbers, held, self._numbers(labels)
        chosen = held_out_rows(numbers, self.dev_share, seed)
        if not len(chosen):
            raise BadInput(
                "no class has an example to spare for development",
                where="CrossTune.fit",
                fix="Give fit(X, y, dev=(X, y))",
            )
        rest = np.setdiff1d(np.arange(len(numbers)), chosen)
        return _rows(X, rest), numbers[rest], _rows(X, chosen), numbers[chosen]

    def _features(self, X: Any) -> Features:
        """Token vectors of inputs."""
        if self.encoder_ is not None:
            return self.encoder_.features(X if isinstance(X, str) else list(X))
        array = np.asarray(X)
        if array.dtype.kind not in "fiub" or array.ndim not in (2, 3):
            raise BadInput(
                f"inputs of type {array.dtype} and shape {array.shape}",
                where="CrossTune",
                fix="Give an encoder for texts, or vectors [N, d] or [N, T, d]",
            )
        return Features.ragged("input_features", as_tokens(array, len(array)))

    def _describe(self, features: Features, numbers: np.ndarray) -> None:
        """``labels_``: tokens and mask of the descriptions; ``sentences_``: their texts, if there are any."""
        self.sentences_: list[str] | None = None
        if self.encoder_ is None:
            vectors = self.descriptions
            if vectors is None:
                vectors = from_examples(features, numbers, self.classes_)
            shape: list[int] = []
            if not isinstance(vectors, (str, Path, Mapping)) and not callable(vectors):
                shape = list(np.shape(vectors))
            if len(shape) not in (2, 3) or shape[0] != len(self.classes_):
                raise BadInput(
                    f"descriptions of shape {tuple(shape)} for {len(self.classes_)} classes",
                    where="CrossTune",
                    fix="Where inputs are vectors, give an array [C, d] or [C, Tc, d]",
                )
            if len(np.unique(self.classes_)) != len(self.classes_):
                raise BadInput("a class is named twice", where="CrossTune", fix="Give every class one name of its own")
            tokens = as_tokens(vectors, len(self.classes_))
            self.labels_ = padded(Features.ragged("input_features", tokens))
            return
        self.sentences_ = sentences(self.classes_.tolist(), self.descriptions)
        self.labels_ = padded(self.encoder_.features(self.sentences_))

    def _tuned(self, train: Labelled, held_out: Labelled, seed: int) -> Tuned:
        torch.manual_seed(seed)
        matcher = CrossMatcher(
            self.labels_[0].shape[2], self.width, heads=self.heads, interaction=self.interaction, dropout=self.dropout
        )
        return tune(
            matcher,
            train,
            held_out,
            self.labels_,
            epochs=self.epochs,
            rate=self.rate,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            smoothing=self.smoothing,
            seed=seed,
        )

    def _with_generated(self, X: Any, train: Labelled, held: Any, held_out: Labelled, plain: Tuned, seed: int) -> Tuned:
        """The head trained with generated texts too, if the switch lets it."""
        if self.encoder_ is None or self.sentences_ is None or self.generator is None:
            raise BadInput("a generator needs texts", where="CrossTune", fix="Give an encoder of texts")
        names = [str(name) for name in self.classes_.tolist()]
        made, asked = generate_texts(
            self.generator,
            names,
            self.sentences_,
            list(X),
            train.labels,
            each=self.n_generate,
            demonstrations=self.demonstrations,
            seed=seed,
        )
        count = len(made)
        if count:
            known = [*X, *held]
            new = without_copies(
                made, self.encoder_.means(made), known, self.encoder_.means(known), close=self.copy_cosine
            )
            made, asked = [text for text, keep in zip(made, new, strict=True) if keep], asked[new]
        self.selection_ = self._selection(list(X), train.labels, made, asked)
        keep = np.flatnonzero(np.asarray(self.selection_.keep))
        accepted, labels = [made[i] for i in keep], np.asarray(self.selection_.labels)[keep].astype(np.int64)
        facts = {"made": count, "new": len(made), "kept": len(accepted), "without": plain.accuracy}
        if not accepted:
            self.switch_ = Switch(False, with_=float("nan"), **facts)
            return plain
        both = Labelled(
            self.encoder_.features([*X, *accepted]),
            np.concatenate([train.labels, labels]),
            np.concatenate([train.weights, np.full(len(labels), self.augment_weight)]),
        )
        augmented = self._tuned(both, held_out, seed)
        better = (augmented.accuracy, -augmented.loss) >= (plain.accuracy, -plain.loss)
        on = self.switch != "dev" or better
        self.switch_ = Switch(on, with_=augmented.accuracy, **facts)
        return augmented if on else plain

    def _selection(self, X: list[str], labels: np.ndarray, made: list[str], asked: np.ndarray) -> Selection:
        classes = len(self.classes_)
        if self.switch == "unfiltered" or not made:
            return select(np.eye(classes)[asked].reshape(-1, classes), requested=asked, threshold=0.0)
        if self.teacher is None:
            assert self.encoder_ is not None  # generated items are texts
            shares = judged(LinearProbe(), self.encoder_.means(X), labels, self.encoder_.means(made), classes)
        else:
            shares = judged(self.teacher, X, labels, made, classes)
        return select(shares, requested=asked, threshold=self.threshold, relabel=self.relabel)

    # ---- predict

    def _scores(self, features: Features) -> Tensor:
        return scores(self.matcher_, features, self.labels_, self.shortlist)

    def decision_scores(self, X: Any) -> np.ndarray:
        """Scores ``s_c`` before the softmax, ``[N, C]``; -inf for classes outside the shortlist."""
        check_is_fitted(self, "matcher_")
        _check_items(X, "CrossTune")
        if not len(X):
            return np.zeros((0, len(self.classes_)))
        return self._scores(self._features(X)).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated shares of the classes ``[N, C]``."""
        return softmax(self.decision_scores(X).astype(np.float64) / self.temperature_, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The class of each item ``[N]``."""
        found = self.decision_scores(X)
        return self.classes_[found.argmax(axis=1)]

    def with_classes(self, classes: Sequence[Any], descriptions: Source | Any = None) -> CrossTune:
        """The same trained head over other classes; nothing is trained.

        Args:
            classes: the new classes.
            descriptions: as in the constructor; for inputs that are vectors it is needed.
        """
        check_is_fitted(self)
        other = copy.copy(self)
        other.classes, other.descriptions = list(classes), descriptions
        other.classes_ = np.array(list(classes))
        if self.encoder_ is None and descriptions is None:
            raise BadInput(
                "no descriptions of the new classes", where="CrossTune.with_classes", fix="Give an array [C, d]"
            )
        other._describe(Features({"input_features": np.zeros((1, 1), np.float32)}), np.zeros(1, np.int64))
        return other

    # ---- state

    def save(self, path: str | Path) -> None:
        """Writes head, classes and descriptions as one safetensors file; the encoder is the user's and is not part of it."""
        from safetensors.torch import save_file

        check_is_fitted(self)
        tensors = {f"matcher.{name}": value.contiguous() for name, value in self.matcher_.state_dict().items()}
        tensors |= {"labels": self.labels_[0].contiguous(), "labels_mask": self.labels_[1].contiguous()}
        header = {
            "class": "CrossTune",
            "classes": self.classes_.tolist(),
            "sentences": self.sentences_,
            "temperature": self.temperature_,
            "dev_accuracy": self.dev_accuracy_,
            "epoch": self.epoch_,
            "history": self.history_,
            "heads": self.heads,
            "interaction": self.interaction,
            "shortlist": self.shortlist,
        }
        save_file(tensors, str(path), metadata={"chiasm": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path, encoder: Any = None) -> CrossTune:
        """A model that `save` wrote.

        Args:
            path: the file.
            encoder: the encoder that it was trained with; None if inputs are vectors.

        Raises:
            BadInput: the file is not one.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                header = json.loads((file.metadata() or {})["chiasm"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if header["class"] != "CrossTune":
                raise KeyError(header["class"])
            state = {
                name.removeprefix("matcher."): value for name, value in tensors.items() if name.startswith("matcher.")
            }
            width, dim = state["input.weight"].shape
            matcher = CrossMatcher(dim, width, heads=header["heads"], interaction=header["interaction"])
            matcher.load_state_dict(state)
            self = cls(
                encoder,
                width=width,
                heads=header["heads"],
                interaction=header["interaction"],
                shortlist=header["shortlist"],
            )
            self.labels_ = tensors["labels"], tensors["labels_mask"]
            self.classes_, self.sentences_ = np.array(header["classes"]), header["sentences"]
            self.temperature_, self.dev_accuracy_ = header["temperature"], header["dev_accuracy"]
            self.epoch_, self.history_ = header["epoch"], header["history"]
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise BadInput(f"not a saved CrossTune ({error})", where=str(path)) from error
        self.matcher_ = matcher.eval()
        self.encoder_ = encoder if encoder is None or isinstance(encoder, BlackBox) else BlackBox(encoder)
        self.switch_, self.selection_ = None, None
        return self


def _check_items(X: Any, where: str) -> None:
    if isinstance(X, str) or not hasattr(X, "__len__"):
        raise BadInput(
            f"a {type(X).__name__} is no list of texts", where=where, fix="Give a list, or an array of vectors"
        )


def _check_labels(X: Any, y: np.ndarray, where: str) -> None:
    if y.ndim != 1 or not len(y) or len(X) != len(y):
        raise BadInput(
            f"{len(X)} items and labels of shape {y.shape}", where=where, fix="Give one label an item, and at least one"
        )
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise BadInput("labels hold NaN or infinity", where=where, fix="Leave out items without a class")


def _rows(X: Any, rows: np.ndarray) -> Any:
    return X[rows] if isinstance(X, np.ndarray) else [X[i] for i in rows]

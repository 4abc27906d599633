"""What stands for the classes: a text each from any source of descriptions, and tokens with a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from chiasm.adapt.cross_tune.baselines import class_means
from chiasm.adapt.descriptions import TEXT, Source, Templates, describe
from chiasm.errors import BadInput
from chiasm.learn.features import Features


def sentences(classes: Sequence[Any], source: Source | None = None) -> list[str]:
    """One text a class: all its sentences, from any source of descriptions; without one the name in a template."""
    names = [str(name) for name in classes]
    # Only the first template: several ways to say a name would blur what a description says.
    found = describe(names, source, fallback=Templates({"text": TEXT[:1]}))
    return [" ".join(found.sentences(name)) for name in names]


def padded(features: Features) -> tuple[Tensor, Tensor]:
    """Tokens ``[C, Tc, d]`` and mask ``[C, Tc]`` of all items at once."""
    found = features.batch(range(len(features)))
    return found["input_features"].float(), found["attention_mask"].bool()


def from_examples(features: Features, numbers: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The mean vector of each class's items ``[C, d]``, for inputs that are vectors without descriptions.

    Raises:
        BadInput: a class without an example.
    """
    missing = np.setdiff1d(np.arange(len(classes)), numbers)
    if len(missing):
        raise BadInput(
            f"class {classes.tolist()[missing[0]]!r} has neither an example nor a description", where="CrossTune.fit"
        )
    assert features.offsets is not None
    sums = np.add.reduceat(np.asarray(features.runs["input_features"]), features.offsets[:-1], axis=0)
    return class_means(sums / np.diff(features.offsets)[:, None], numbers)

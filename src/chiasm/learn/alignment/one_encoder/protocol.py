"""The progressive protocol: step 1 aligns the first two modalities, every later step adds one and leaves the rest as it is.

>>> model = as_model(OneEncoder({"image": 64, "text": 32}, width=64))
>>> first_step(model, image_text_pairs, routes={"a": "image", "b": "text"})
>>> next_step(model, "audio", 40, audio_text_pairs, anchor="text")        # pairs: a = audio, b = text
>>> # audio and image can be compared now, although no pair of them was ever seen
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from chiasm.errors import BadInput
from chiasm.learn.alignment.one_encoder.encoder import OneEncoder
from chiasm.learn.alignment.one_encoder.objective import OneEncoderLoss
from chiasm.learn.features import Features
from chiasm.learn.held_out import encode
from chiasm.learn.pairs import OnePerGroup, Pairs, Source
from chiasm.learn.stages import Stage
from chiasm.learn.training import TrainReport, train

# AdamW of the paper.
RATE = 1e-3
WEIGHT_DECAY = 1e-3
BATCH = 64


def encoder_of(model: Any) -> OneEncoder:
    """The `OneEncoder` in a model.

    Raises:
        BadInput: there is none.
    """
    for module in model.modules():
        if isinstance(module, OneEncoder):
            return module
    raise BadInput("the model holds no OneEncoder", where="one-encoder", fix="Make it with as_model(OneEncoder(...))")


def first_step(
    model: Any,
    pairs: Pairs,
    *,
    routes: Mapping[str, str] | None = None,
    objective: nn.Module | None = None,
    stage: Stage | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    **options: Any,
) -> TrainReport:
    """Step 1: trains alignment layers, tokens and the Universal Projection on the first pairs.

    One pair of a group is in a batch (one caption of a picture), because others would be false negatives.

    Args:
        model: `as_model` of a `OneEncoder`; changed in place.
        pairs: for example pictures (``a``) and captions (``b``), as token features.
        routes: column -> modality; default ``a`` is ``image`` and ``b`` is ``text``.
        objective: default `OneEncoderLoss`.
        stage: default 20 epochs at 1e-3.
        batch_size, seed: of `chiasm.learn.train`.
        **options: of `chiasm.learn.train`, for example ``evaluator`` and ``patience``.
    """
    assert pairs.groups is not None
    settings = {"sampler": OnePerGroup(pairs.groups, batch_size, seed), "weight_decay": WEIGHT_DECAY, **options}
    return train(
        model,
        pairs,
        OneEncoderLoss() if objective is None else objective,
        stage or Stage("step 1", epochs=20, rate=RATE),
        routes=dict(routes or {"a": "image", "b": "text"}),
        batch_size=batch_size,
        seed=seed,
        **settings,
    )


def next_step(
    model: Any,
    modality: str,
    features: int,
    pairs: Pairs,
    *,
    anchor: str = "text",
    objective: nn.Module | None = None,
    stage: Stage | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    **options: Any,
) -> TrainReport:
    """Step k: adds a modality and trains what belongs to it alone, against a modality that is there.

    Everything else is frozen, in eval mode, and checked by hash; the anchor's embeddings are computed once.

    Args:
        model: as step 1 left it; changed in place.
        modality: the new modality's name.
        features: length of a token of its frozen encoder.
        pairs: ``a`` the new modality, ``b`` the anchor.
        anchor: modality of ``b``.
        objective: default `OneEncoderLoss` with ``anchor="b"``.
        stage: how long and how fast; what it trains is decided here.
        batch_size, seed: of `chiasm.learn.train`.
        **options: of `chiasm.learn.train`.
    """
    encoder = encoder_of(model)
    fixed = replace(pairs, sources={**pairs.sources, "b": embedded(model, pairs.source("b"), anchor)})
    patterns = encoder.grow(modality, features)
    stage = stage or Stage(f"step {len(encoder.grown) + 1}", epochs=20, rate=RATE)
    return train(
        model,
        fixed,
        OneEncoderLoss(anchor="b") if objective is None else objective,
        replace(stage, train=patterns),
        routes={"a": modality, "b": anchor},
        batch_size=batch_size,
        seed=seed,
        **{"weight_decay": WEIGHT_DECAY, **options},
    )


def embedded(model: Any, source: Source, modality: str) -> Features:
    """A frozen modality's embeddings of all rows of a source, which pass through the model when it trains.

    Args:
        model: the model.
        source: token features.
        modality: what they are.
    """
    return Features({"sentence_embedding": encode(model, source, modality).vectors.numpy()})


def token_means(tokens: np.ndarray, mask: np.ndarray | None = None, keep: int = 1) -> np.ndarray:
    """Fewer tokens for a faster projection, whose cost grows with their square: means over ``keep`` equal stretches.

    Args:
        tokens: ``[N, L, D]``, for example 1568 of a video.
        mask: bool ``[N, L]``, True where a token is; each item's own tokens are divided evenly.
        keep: how many remain.

    Returns:
        float32 ``[N, keep, D]``; a stretch without a token is zero.

    Raises:
        BadInput: ``keep`` is below 1.
    """
    if keep < 1:
        raise BadInput(f"keep is {keep}", where="token_means", fix="Keep at least one token")
    n, length, _ = tokens.shape
    mask = np.ones((n, length), bool) if mask is None else np.asarray(mask, bool)
    place = np.cumsum(mask, 1) - 1
    count = mask.sum(1, keepdims=True)
    stretch = np.where(mask, place * keep // np.maximum(count, 1), -1)
    member = (stretch[:, None] == np.arange(keep)[:, None]).astype(np.float32)
    filled = np.where(mask[..., None], tokens, 0).astype(np.float32)
    return member @ filled / np.maximum(member.sum(2, keepdims=True), 1)


def class_prompts(names: Sequence[str]) -> list[str]:
    """The sentences by which OneEncoder classifies without examples: "a {name}, this is a photo of a {name}"."""
    return [f"a {name}, this is a photo of a {name}" for name in names]

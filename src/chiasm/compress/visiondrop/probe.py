"""The misalignment probe: where a scorer looks, before anything is dropped.

Attention from text prefers image tokens near the end of the sequence (causal misalignment) and knows no rows and columns
(spatial misalignment). The probe says so in figures: how kept places correlate with the order, and where their middle is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chiasm.compress.visiondrop.model import parts_of
from chiasm.compress.visiondrop.pruner import VisionDrop
from chiasm.compress.visiondrop.schedule import Stage
from chiasm.compress.visiondrop.scores import choose
from chiasm.errors import BadInput


@dataclass(frozen=True)
class Alignment:
    """Where a scorer looks.

    Args:
        scores: float32 ``[I, M]``, in the order of the patches.
        kept: int64 ``[I, k]``, the places with the best scores, rising.
        correlation: of score and place (Spearman), mean over the pictures; 0 for no preference, 1 for late places.
        centroid: mean (row, column) of the kept places, as shares of the grid; (0.5, 0.5) is the middle.
        mean_place: mean kept place as a share of the sequence.
    """

    scores: Tensor
    kept: Tensor
    correlation: float
    centroid: tuple[float, float]
    mean_place: float


@torch.no_grad()
def misalignment(
    model: Any, inputs: Mapping[str, Any], layer: int, keep: int, *, scorer: str = "visual", **options: Any
) -> Alignment:
    """Scores all visual tokens before one layer of the language model, drops nothing, and says which ones would be kept.

    Args:
        model: a model that `VisionDrop` supports, without one attached.
        inputs: what the model is called with.
        layer: before which layer of the language model, at least 1.
        keep: how many places are looked at, from 1 to the number of patches.
        scorer: ``"visual"`` or ``"text"``, or one of the blind ones.
        **options: further arguments of `VisionDrop`, for example ``correction``.

    Raises:
        BadInput: ``keep`` outside 1..M, a layer that the model does not have, or inputs without a picture.
    """
    patches = parts_of(model).patches
    if not 1 <= keep <= patches:
        raise BadInput(f"keep={keep} of {patches} patches", where="misalignment", fix=f"Take 1 to {patches}")
    pruner = VisionDrop(stages=[Stage(layer, patches)], scorer=scorer, record=True, **options).attach(model)
    try:
        model(**inputs)
        made = pruner.cuts_made
    finally:
        pruner.detach()
    if not made:
        raise BadInput("no picture in the inputs", where="misalignment", fix="Give pixel_values and input_ids")
    scores = made[-1].scores
    kept = choose(scores, keep)
    side = round(patches**0.5)
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1).float()
    places = torch.arange(patches, dtype=torch.float32, device=scores.device)
    centered, order = ranks - ranks.mean(dim=1, keepdim=True), places - places.mean()
    spread = (centered.norm(dim=1) * order.norm()).clamp_min(1e-12)
    correlation = float(((centered @ order) / spread).mean())
    row, column = (kept // side).float(), (kept % side).float()
    centroid = tuple(float((x.mean() + 0.5) / side) for x in (row, column))
    return Alignment(
        scores, kept, correlation, (centroid[0], centroid[1]), float((kept.float().mean() + 0.5) / patches)
    )

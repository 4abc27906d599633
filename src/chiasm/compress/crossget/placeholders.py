"""Prompts of a LLaVA whose vision tower gives fewer tokens: as many placeholders as there are tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from chiasm.errors import BadInput


def shortened(inputs: Mapping[str, Any], image_token_id: int, full: int, want: int, padding: int) -> dict[str, Any]:
    """Inputs in which each picture has ``want`` placeholders.

    Args:
        inputs, image_token_id, padding: as of `TowerReduction.shorten`.
        full: placeholders that each picture has now.
        want: how many stay; the first ones.

    Raises:
        BadInput: no ids, or placeholders that are no multiple of ``full``.
    """
    ids = inputs.get("input_ids")
    if ids is None or ids.ndim != 2 or not len(ids):
        raise BadInput("no input_ids [B, T]", where="shorten", fix="Give those of prompts")
    here = ids == image_token_id
    if bool((here.sum(dim=1) % full).any()):
        raise BadInput(
            f"there are {here.sum(dim=1).tolist()} image tokens, a picture has {full}",
            where="shorten",
            fix="Give the inputs as the model's processor makes them",
        )
    stays = ~here | ((here.long().cumsum(dim=1) - 1) % full < want)
    most = int(stays.sum(dim=1).max())
    order = stays.to(torch.int8).argsort(dim=1, stable=True)[:, -most:]
    real = stays.gather(1, order)
    out = dict(inputs)
    fills = {"input_ids": padding, "attention_mask": 0, "labels": -100}
    mask = inputs.get("attention_mask")
    if mask is None and not bool(real.all()):
        inputs = {**inputs, "attention_mask": torch.ones_like(ids)}
    for name, fill in fills.items():
        if inputs.get(name) is not None:
            out[name] = inputs[name].gather(1, order).masked_fill(~real, fill)
    return out

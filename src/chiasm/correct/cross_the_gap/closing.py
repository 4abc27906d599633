"""Closing the modality gap by training (Cross the Gap, arXiv 2502.04263): the temperature of the loss decides how wide it is.

A high, fixed temperature makes CLIP's loss pull pairs together everywhere and the gap closes; native search inside a modality
and search by inversion then come closer to each other, while search across modalities can lose. The gap can also be removed
without training by moving both modalities to a common center (`chiasm.measure.close_gap`), which is the control: it changes
distances between modalities and hardly any inside them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.blocks.prompts import dual_encoder
from chiasm.correct.cross_the_gap.loss import ClipLoss
from chiasm.errors import BadInput

# Temperatures that close the gap and that keep it open; the paper's own values are not known, these are inferred.
CLOSED, OPEN = 1.0, 0.01


def close_gap_by_training(
    model: Any, batches: Iterable[Mapping[str, Tensor]], *, temperature: float = CLOSED, lr: float = 1e-5
) -> Any:
    """A copy of the model, fine-tuned on pairs with CLIP's loss at a fixed temperature.

    Args:
        model: see `chiasm.blocks.prompts.dual_encoder`.
        batches: as in `fine_tune`; as many epochs as it holds.
        temperature: 1.0 closes the gap, 0.01 keeps it (both inferred).
        lr: learning rate; 1e-5 is usual for fine-tuning CLIP.
    """
    return fine_tune(model, batches, ClipLoss(temperature=temperature, learn_temperature=False), lr=lr)


def fine_tune(
    model: Any,
    batches: Iterable[Mapping[str, Tensor]],
    objective: nn.Module,
    *,
    lr: float = 1e-5,
    weight_decay: float = 0.01,
) -> Any:
    """A trained copy of a two-tower model; the model itself is not changed. For models that fit one device.

    Args:
        model: see `chiasm.blocks.prompts.dual_encoder`.
        batches: mappings with ``pixel_values [B, 3, H, W]``, ``input_ids [B, L]`` and, optionally, ``attention_mask``,
            ``views`` (another view of each picture, as ``pixel_values``) and ``groups [B]``.
        objective: called as `ClipLoss`; its parameters (a learned temperature) are trained too.
        lr, weight_decay: of AdamW; torch's weight decay.

    Returns:
        The copy, in eval mode.

    Raises:
        BadInput: no batches, or a loss that is not finite.
    """
    network = copy.deepcopy(dual_encoder(model)).train().requires_grad_(True)
    device = next(network.parameters()).device
    objective = objective.to(device).train()
    learned = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=weight_decay)
    trained = False
    with torch.inference_mode(False), torch.enable_grad():
        for batch in batches:
            at = {name: value.to(device) for name, value in batch.items()}
            mask = at.get("attention_mask")
            images = network.get_image_features(pixel_values=at["pixel_values"]).pooler_output
            texts = network.get_text_features(input_ids=at["input_ids"], attention_mask=mask).pooler_output
            views = network.get_image_features(pixel_values=at["views"]).pooler_output if "views" in at else None
            loss = torch.stack([*objective(images, texts, groups=at.get("groups"), views_a=views).values()]).sum()
            if not torch.isfinite(loss):
                raise BadInput(f"the loss became {loss.item()}", where="fine_tune", fix="Lower lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trained = True
    if not trained:
        raise BadInput("no batches", where="fine_tune")
    return network.eval().requires_grad_(False)

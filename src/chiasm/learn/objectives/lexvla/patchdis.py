"""PatchDis: do single patches say what they show? Labels of patches by class names, against masks; nothing is trained for it.

    label of patch j = argmax_c <p_j, t_c>

over vectors of any space in which patches and class names lie (lexical vectors, or CLIP's patch features as a baseline).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chiasm.errors import BadInput


@dataclass(frozen=True)
class PatchDis:
    """The outcome.

    Args:
        miou: mean intersection over union of the classes that occur in the masks or are answered.
        iou: ``[C]``, of each class; NaN for one that neither occurs nor is answered.
        accuracy: share of the labeled pixels that are right.
    """

    miou: float
    iou: Tensor
    accuracy: float


def patch_labels(patches: Tensor, classes: Tensor, present: Tensor | None = None, *, chunk: int = 256) -> Tensor:
    """The class of every patch, int64 ``[N, L]``.

    Args:
        patches: ``[N, L, V]``.
        classes: ``[C, V]``, vectors of the class names.
        present: bool ``[N, C]``: only these classes of each item compete (the closed version); None lets all compete. An
            item without any gets -1.
        chunk: items at a time.
    """
    parts = []
    for start in range(0, len(patches), chunk):
        scores = patches[start : start + chunk] @ classes.T
        if present is None:
            parts.append(scores.argmax(-1))
            continue
        here = present[start : start + chunk]
        label = scores.masked_fill(~here[:, None], -torch.inf).argmax(-1)
        parts.append(label.masked_fill(~here.any(1, keepdim=True), -1))
    return torch.cat(parts) if parts else patches.new_zeros(patches.shape[:2], dtype=torch.long)


def upsampled(labels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Labels of patches ``[N, h * w]`` as pixels ``[N, H, W]``: each pixel takes the patch it lies in."""
    if labels.shape[1] != grid[0] * grid[1]:
        raise BadInput(f"{labels.shape[1]} patches on a raster {grid}", where="upsampled")
    rows, columns = (torch.arange(n, device=labels.device) * g // n for n, g in zip(size, grid))
    return labels.view(-1, *grid)[:, rows][:, :, columns]


def patchdis(labels: Tensor, masks: Tensor, classes: int, *, ignore: int = -1) -> PatchDis:
    """Compares labels with masks.

    Args:
        labels: int ``[N, ...]``: of pixels (`upsampled`), or of patches where the truth is known for each patch.
        masks: int of the same shape: the true class.
        classes: C.
        ignore: pixels with this truth do not count (background).

    Raises:
        BadInput: different shapes, or truth outside the classes.
    """
    if labels.shape != masks.shape:
        raise BadInput(f"labels {tuple(labels.shape)}, masks {tuple(masks.shape)}", where="patchdis")
    counts = masks != ignore
    truth, found = masks[counts].long(), labels[counts].long()
    if len(truth) and (int(truth.min()) < 0 or int(truth.max()) >= classes):
        raise BadInput(f"truth outside {classes} classes", where="patchdis")
    # An answer that is no class (-1) takes part in the union of the true class only.
    answered = found >= 0
    table = torch.bincount(truth[answered] * classes + found[answered], minlength=classes * classes)
    table = table[: classes * classes].view(classes, classes)
    both = table.diagonal().float()
    union = torch.bincount(truth, minlength=classes) + table.sum(0) - table.diagonal()
    iou = torch.where(union > 0, both / union.clamp_min(1), torch.full_like(both, torch.nan))
    return PatchDis(float(iou.nanmean()), iou, float(both.sum() / max(1, len(truth))))

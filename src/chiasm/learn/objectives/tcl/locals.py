"""Local mutual information (LMI) of TCL: each item's vector against the local features of its own other view.

With m_i the vector of sample i, l_jk the k-th local feature of sample j, t the temperature and S_ijk = <m_i, l_jk> / t:

    loss_ik = -log [ e^S_iik / ( e^S_iik + sum_{j != i} sum_k' e^S_ijk' ) ],   mean over k, then over i

The positives of one sample are no candidates of each other, so this is no plain InfoNCE. One log-sum-exp a sample serves all of
its k: memory O(B^2 n), not O((B n)^2) as in the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput

# Scores of a block (4 bytes each): 64 MB.
_SCORES = 1 << 24


def local_contrast(
    vectors: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    scale: Tensor | float = 1 / 0.07,
    same: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The LMI loss of one modality.

    Args:
        vectors: ``[B, D]``, unit rows; they get the gradient.
        tokens: local features ``[B, n, D]`` of the momentum encoder; they get none.
        mask: bool ``[B, n]``, True where a local feature is there; None if all are.
        scale: inverse temperature; a tensor that requires a gradient gets one.
        same: bool ``[B, B]``, True for samples that are no negatives of each other; default each itself.
        chunk: samples a block; by default so many that a block has 2**24 scores.

    Returns:
        A scalar. Samples without local features do not count; without any negative the loss is 0.

    Raises:
        BadInput: shapes that do not fit together.
    """
    b = len(vectors)
    if vectors.ndim != 2 or tokens.ndim != 3 or len(tokens) != b or tokens.shape[2] != vectors.shape[1]:
        raise BadInput(
            f"vectors {tuple(vectors.shape)} and local features {tuple(tokens.shape)}", where="local_contrast"
        )
    there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
    if there.shape != tokens.shape[:2]:
        raise BadInput(f"a mask {tuple(there.shape)} for local features {tuple(tokens.shape)}", where="local_contrast")
    own = torch.eye(b, dtype=torch.bool, device=vectors.device)
    same = own if same is None else same | own
    tokens = tokens.detach()
    step = chunk or max(1, _SCORES // max(1, there.numel()))
    total, counted = vectors.new_zeros(()), there.any(1)
    for start in range(0, b, step):
        rows = slice(start, min(b, start + step))
        index = torch.arange(start, rows.stop, device=vectors.device)
        scores = torch.einsum("id,jkd->ijk", vectors[rows], tokens) * scale
        positive = scores[index - start, index]
        negative = scores.masked_fill(same[rows, :, None] | ~there[None], -torch.inf).flatten(1)
        none = negative.isneginf().all(1)
        # A log-sum-exp over nothing has no gradient; such rows take part with zeros, and are dropped.
        against = torch.where(none, -torch.inf, negative.masked_fill(none[:, None], 0.0).logsumexp(1))
        loss = torch.logaddexp(positive, against[:, None]) - positive
        inside = there[rows]
        total = total + (loss.masked_fill(~inside, 0).sum(1) / inside.sum(1).clamp_min(1)).sum()
    return total / counted.sum().clamp_min(1)


def cells(tokens: Tensor, mask: Tensor | None = None, side: int = 4) -> tuple[Tensor, Tensor]:
    """Patches averaged to ``side x side`` cells; any square raster will do, smaller ones stay as they are.

    Args:
        tokens: ``[B, P, D]``, row by row of the raster. Where P is no square number (regions, for example) they are averaged
            along the list, to at most ``side**2`` cells.
        mask: bool ``[B, P]``; missing patches do not count, and a cell without any is missing.
        side: 4 as in the paper (16 cells at every resolution).

    Returns:
        Cells ``[B, C, D]``, not normalized again, and their mask ``[B, C]``.

    Raises:
        BadInput: ``side`` below 1.
    """
    if side < 1:
        raise BadInput(f"side {side}", where="cells")
    b, p, d = tokens.shape
    weight = torch.ones((b, p), device=tokens.device) if mask is None else mask
    weight = weight.to(tokens.dtype)[:, None]
    values = tokens.transpose(1, 2).masked_fill(weight == 0, 0)
    raster = round(p**0.5)
    if raster * raster == p:
        pool = nn.AdaptiveAvgPool2d(min(side, raster))
        values, weight = values.reshape(b, d, raster, raster), weight.reshape(b, 1, raster, raster)
    else:
        pool = nn.AdaptiveAvgPool1d(min(side * side, p))
    values, share = pool(values).flatten(2), pool(weight).flatten(2)
    there = share > 0
    return (values / torch.where(there, share, 1.0)).transpose(1, 2), there[:, 0]

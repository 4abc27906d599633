"""L_con, the shared information, and L_ceb, what the latents share beyond the task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def label_contrast(latents: Sequence[Tensor], labels: Tensor, temperature: float = 0.5) -> Tensor:
    """L_con: NT-Xent over the latents of all modalities, with all positives of equal label, each against negatives only.

        z = [norm Z_1; ..; norm Z_M],  mean over pairs a != b of one label:  -log( e^{s_ab/t} / (e^{s_ab/t} + sum_n e^{s_an/t}) )

    The n are the rows of other labels; other positives are not in the denominator, which is why this is no InfoNCE: there
    every row has one denominator. (With one positive a row the two are the same.)

    Args:
        latents: M tensors ``[B, d]``.
        labels: ``[B]``; the numbers of the rows for the "pure" form without classes.
        temperature: t, 0.5.

    Returns:
        A scalar; 0 if no two rows have one label.
    """
    z = torch.cat([nn.functional.normalize(latent, dim=-1) for latent in latents])
    tiled = labels.repeat(len(latents))
    scores = z @ z.T / temperature
    same = tiled[:, None] == tiled[None, :]
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    lonely = same.all(dim=1, keepdim=True)
    # A row without negatives keeps its scores here, so that no gradient of an empty sum (NaN) appears; it costs 0 below.
    against = scores.masked_fill(same & ~lonely, -torch.inf).logsumexp(dim=1, keepdim=True)
    cost = nn.functional.softplus(against - scores).masked_fill(~positive | lonely, 0.0)
    return cost.sum() / positive.sum().clamp_min(1)


class ConditionalBottleneck(nn.Module):
    """L_ceb = MSE([Z_1 .. Z_M], h(sg(evidence))): pulls the latents to what the label explains.

    h is Linear - ReLU - Linear without biases, so zero evidence explains the zero vector.

    Args:
        classes: length of the evidence C.
        dims: lengths of the latents.
        width: of the hidden layer.
    """

    def __init__(self, classes: int, dims: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.explain = nn.Sequential(
            nn.Linear(classes, width, bias=False), nn.ReLU(), nn.Linear(width, sum(dims), bias=False)
        )

    def forward(self, latents: Sequence[Tensor], evidence: Tensor) -> Tensor:
        """A scalar.

        Args:
            latents: M tensors ``[B, d_i]``; they get a gradient.
            evidence: ``[B, C]``: logits, or one-hot labels; it gets none.
        """
        explained = self.explain(evidence.detach().to(latents[0].dtype))
        return nn.functional.mse_loss(torch.cat(list(latents), dim=-1), explained)

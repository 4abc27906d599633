"""The pseudo-classification head: both modalities are sorted into the same K classes, which nobody has defined."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.errors import BadInput


class PseudoHead(nn.Module):
    """A two-layer perceptron from a vector, or from a fixed number of tokens, to K class scores; both sides share it.

    Args:
        classes: K = 128.
        hidden: 256.
        tokens: 36 reads that many token vectors one after the other, as the released code does; None reads the vector of
            the whole item.
        width: length of what is read; None finds it at the first use.
    """

    def __init__(
        self, classes: int = 128, hidden: int = 256, tokens: int | None = None, width: int | None = None
    ) -> None:
        super().__init__()
        if classes < 2 or hidden < 1 or (tokens is not None and tokens < 1):
            raise BadInput(f"{classes} classes, {hidden} hidden units, {tokens} tokens", where="PseudoHead")
        self.tokens = tokens
        enter = nn.LazyLinear(hidden) if width is None else nn.Linear(width * (tokens or 1), hidden)
        self.layers = nn.Sequential(enter, nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, vectors: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Class scores ``[N, K]``.

        Args:
            vectors: ``[N, D]``, brought to length sqrt(D), so that the first layer sees values of order 1.
            tokens: ``[N, L, D]``, needed by a head over tokens.
            mask: bool ``[N, L]``; default all.
        """
        if self.tokens is None:
            return self.layers(functional.normalize(vectors, dim=-1) * vectors.shape[-1] ** 0.5)
        if tokens is None:
            raise BadInput("the head reads tokens, and the model gives none", where="PseudoHead", fix="Use tokens=None")
        return self.layers(resized(tokens, mask, self.tokens).flatten(1))


def resized(tokens: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """Token sequences of one length: longer ones are shrunk linearly, shorter ones padded with zeros.

    Args:
        tokens: ``[N, L, D]``.
        mask: bool ``[N, L]``, True in the first tokens of each row; default all.
        length: the length.

    Returns:
        ``[N, length, D]``; a row without tokens is zero.
    """
    n, longest, _ = tokens.shape
    count = torch.full((n,), longest, device=tokens.device) if mask is None else mask.sum(1)
    step = torch.arange(length, device=tokens.device)
    shrunk = step * (count[:, None] - 1).clamp_min(0) / max(1, length - 1)
    place = torch.where((count > length)[:, None], shrunk, step.expand(n, -1).to(shrunk.dtype))
    low = place.floor().long().clamp_max(longest - 1)
    high = (low + 1).clamp_max(longest - 1)
    share = (place - low).clamp(0, 1)[..., None].to(tokens.dtype)
    index = torch.arange(n, device=tokens.device)[:, None]
    mixed = tokens[index, low] * (1 - share) + tokens[index, high] * share
    inside = step[None, :] < count[:, None]
    return mixed.masked_fill(~inside[..., None], 0)


def class_usage(probabilities: Tensor) -> Tensor:
    """How evenly the classes are used: entropy of the mean prediction over log K, in [0, 1]; 0 after a collapse.

    Args:
        probabilities: ``[N, K]``.
    """
    return marginal_entropy(probabilities) / torch.log(torch.tensor(float(probabilities.shape[-1])))


def marginal_entropy(probabilities: Tensor) -> Tensor:
    """H(mean_i p_i): large if the classes are used evenly, however sure each prediction is."""
    return torch.special.entr(probabilities.mean(0)).sum()


def sample_entropy(probabilities: Tensor) -> Tensor:
    """mean_i H(p_i), what the released code adds: large if no prediction is sure."""
    return torch.special.entr(probabilities).sum(-1).mean()

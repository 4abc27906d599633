"""Two views of every item: sources that augment, and pairs with the columns ``a2`` and ``b2`` for the momentum encoder.

>>> views = two_views(pairs, noise=0.2, mask_rate=0.1, seed=0)
>>> train(model, views, TripleContrast(), routes=VIEW_ROUTES)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.pairs import Pairs, Source
from chiasm.learn.words import MASK

# The second views are read by the same towers.
VIEW_ROUTES = {"a2": "a", "b2": "b"}

Augment = Callable[[dict[str, Tensor], torch.Generator], dict[str, Tensor]]


class Augmented:
    """A source whose items come out a little different each time.

    Args:
        source: where the items come from; stays as it is.
        noise: standard deviation of what is added to ``input_features``.
        mask_rate: share of the tokens in ``input_ids`` that become the mask; the last visible one always stays.
        augment: ``augment(batch, generator) -> batch`` instead of these two.
        seed: decides everything random.

    Raises:
        BadInput: negative noise, or a rate outside [0, 1].
    """

    def __init__(
        self,
        source: Source,
        *,
        noise: float = 0.2,
        mask_rate: float = 0.1,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        if noise < 0 or not 0 <= mask_rate <= 1:
            raise BadInput(f"noise {noise}, mask_rate {mask_rate}", where="Augmented")
        self.source, self.noise, self.mask_rate, self.augment = source, noise, mask_rate, augment
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the source gives, augmented."""
        batch = dict(self.source.batch(rows))
        if self.augment is not None:
            return self.augment(batch, self.generator)
        if "input_features" in batch and self.noise:
            x = batch["input_features"]
            batch["input_features"] = x + self.noise * torch.randn(x.shape, generator=self.generator)
        if "input_ids" in batch and self.mask_rate:
            ids = batch["input_ids"]
            there = batch.get("attention_mask", torch.ones_like(ids)).bool()
            draw = torch.rand(ids.shape, generator=self.generator)
            # The token with the largest draw is kept, so that no text loses all its words.
            keep = draw.masked_fill(~there, -1).argmax(1, keepdim=True)
            hit = ((draw < self.mask_rate) & there).scatter(1, keep, False)
            batch["input_ids"] = ids.masked_fill(hit, MASK)
        return batch


def two_views(
    pairs: Pairs,
    *,
    noise: float = 0.2,
    mask_rate: float = 0.1,
    augment: tuple[Augment | None, Augment | None] = (None, None),
    seed: int = 0,
) -> Pairs:
    """The same pairs, augmented, with a second view of both sides in ``a2`` and ``b2``.

    Train with ``routes=VIEW_ROUTES``: the second views go through the momentum encoder only.

    Args:
        pairs: with columns ``a`` and ``b``.
        noise, mask_rate, seed: of `Augmented`.
        augment: own augmentations for ``a`` and ``b``.
    """
    sources = {
        side: Augmented(
            pairs.source(side), noise=noise, mask_rate=mask_rate, augment=own, seed=int(np.uint32(2 * seed + k))
        )
        for k, (side, own) in enumerate(zip(("a", "b"), augment))
    }
    return replace(
        pairs,
        sources={**pairs.sources, **sources, "a2": sources["a"], "b2": sources["b"]},
        rows={**pairs.rows, "a2": pairs.rows["a"], "b2": pairs.rows["b"]},
    )

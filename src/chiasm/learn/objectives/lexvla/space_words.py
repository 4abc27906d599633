"""`SpaceWords`: a lexical head that needs no training, for any space that encodes text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chiasm.blocks.lexical import lexical, sparsify, unit
from chiasm.errors import BadInput


class SpaceWords:
    """A lexical head that needs no training: the vectors that the space itself gives to the words are the codebook.

    What all words have in common (their mean vector) is taken off words and items, so that it counts for none.

    Args:
        space: a space that encodes text.
        words: the vocabulary.
        top: words an item or a query keeps; 8 [our choice].
        gain: factor on the cosines before elu1p; the larger, the more the best word outweighs the next. 20 [our choice].

    Raises:
        BadInput: fewer than two words, or ``top`` or ``gain`` not positive.
    """

    def __init__(self, space: Any, words: Sequence[str], *, top: int = 8, gain: float = 20.0) -> None:
        if len(words) < 2 or top < 1 or gain <= 0:
            raise BadInput(f"{len(words)} words, top {top}, gain {gain}", where="SpaceWords")
        vectors = torch.from_numpy(np.asarray(space.encode(list(words)).vectors, np.float32))
        self.center = vectors.mean(0)
        self.codebook = unit(vectors - self.center)
        self.top, self.gain = top, gain

    @torch.no_grad()
    def __call__(self, vectors: np.ndarray, kind: str) -> torch.Tensor:
        """Sparse unit vectors, ``[n, D]`` -> ``[n, V]``."""
        tokens = self.gain * unit(torch.from_numpy(np.array(vectors, np.float32)) - self.center)
        return unit(sparsify(lexical(tokens[:, None], None, self.codebook), top=self.top))

"""Which word a patch belongs to, and which patch a word: FILIP's visualization (section 4.4), from scores alone, no boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.objectives.filip.interaction import unit_tokens


@dataclass(frozen=True)
class WordPatchMap:
    """The alignment of one picture with one text.

    Args:
        words: int64 ``[h, w]``, for each patch the token of the text that is most similar to it.
        similarity: ``[h, w]``, how similar (cosine).
        patches: int64 ``[n2]``, for each token of the text its most similar patch, counted row by row; -1 for padding.
    """

    words: Tensor
    similarity: Tensor
    patches: Tensor

    def highlight(self, span: Sequence[int] | slice) -> Tensor:
        """Bool ``[h, w]``: the patches whose word lies in a span of tokens (the pieces of a label in its prompt).

        Args:
            span: positions of the tokens, or a slice of them.
        """
        if isinstance(span, slice):
            span = range(len(self.patches))[span]
        return torch.isin(self.words, torch.as_tensor(list(span), dtype=self.words.dtype))

    def draw(self, picture: Any, span: Sequence[int] | slice = ()) -> Any:
        """The picture with the number of its word at the center of each patch, and the patches of a span framed.

        Args:
            picture: a `PIL.Image.Image`, as the model saw it (cropped square).
            span: tokens to highlight.

        Returns:
            A new RGB image of the same size.
        """
        from PIL import ImageDraw

        drawn = picture.convert("RGB")
        pen, chosen = ImageDraw.Draw(drawn), self.highlight(span)
        height, width = self.words.shape
        across, down = drawn.width / width, drawn.height / height
        for row in range(height):
            for column in range(width):
                left, top = column * across, row * down
                if bool(chosen[row, column]):
                    pen.rectangle((left, top, left + across - 1, top + down - 1), outline=(255, 64, 0), width=2)
                text, at = str(int(self.words[row, column])), (left + across / 2, top + down / 2)
                pen.text(at, text, fill=(255, 255, 255), anchor="mm", stroke_width=1, stroke_fill=(0, 0, 0))
        return drawn


@torch.no_grad()
def word_patch_map(
    patches: Tensor, words: Tensor, mask: Tensor | None = None, grid: tuple[int, int] | None = None
) -> WordPatchMap:
    """Aligns the patches of a picture with the tokens of a text.

    Args:
        patches: ``[h * w, D]``, row by row, without a class token.
        words: ``[n2, D]``, of a caption or of a prompt such as "a photo of a dog."
        mask: bool ``[n2]``, True where there is a token; default everywhere.
        grid: ``(h, w)``; default a square.

    Raises:
        BadInput: patches that do not fill the grid, or a text without tokens.
    """
    if patches.ndim != 2 or words.ndim != 2:
        raise BadInput(f"patches {tuple(patches.shape)} and words {tuple(words.shape)}", where="word_patch_map")
    side = round(len(patches) ** 0.5)
    height, width = grid or (side, side)
    if height * width != len(patches):
        raise BadInput(
            f"{len(patches)} patches do not fill {height} x {width}", where="word_patch_map", fix="Give grid="
        )
    left, _ = unit_tokens(patches[None])
    right, real = unit_tokens(words[None], None if mask is None else mask[None])
    if not bool(real.any()):
        raise BadInput("the text has no tokens", where="word_patch_map")
    scores = left[0] @ right[0].T
    similarity, best = scores.masked_fill(~real, -torch.inf).max(1)
    of_word = scores.argmax(0).masked_fill(~real[0], -1)
    return WordPatchMap(best.view(height, width), similarity.view(height, width), of_word)


@torch.no_grad()
def patch_of_word(patches: Tensor, words: Tensor) -> Tensor:
    """For N pictures and their texts at once: the patch that each token is most similar to, int64 ``[N, n2]``.

    Args:
        patches: ``[N, n1, D]``.
        words: ``[N, n2, D]``.
    """
    left, right = unit_tokens(patches)[0], unit_tokens(words)[0]
    return torch.bmm(right, left.transpose(1, 2)).argmax(2)

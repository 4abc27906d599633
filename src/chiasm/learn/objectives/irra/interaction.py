"""Implicit relation reasoning (IRR): masked words are guessed from the picture, so that both encoders learn fine details.

    masked caption -> the same text encoder -> H [N, L, D]
    x = attention(norm(H) -> norm(picture tokens))            no residual
    x = transformer(x), norm                                  `depth` layers as in CLIP
    logits = head(x at the masked places)                     [m, vocabulary]

Only the masked places reach the head: m times vocabulary numbers instead of N times L times vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chiasm.blocks.cross_attention import FusionEncoder, MaskedAttention, QuickGELU, clip_init
from chiasm.errors import BadInput
from chiasm.learn.words import MASK, PAD, UNKNOWN

# What cross-entropy ignores; the padding id 0 would make a real token with id 0 impossible to learn.
IGNORE = -100


def mask_words(
    ids: Tensor,
    mask: Tensor | None,
    *,
    vocabulary: int,
    mask_id: int = MASK,
    special: Sequence[int] = (PAD, UNKNOWN, MASK),
    rate: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks words for masked language modelling (BERT's rule, Devlin and others 2019, arXiv 1810.04805).

    Every word is chosen with probability ``rate``; of those 80 % become the mask, 10 % a random word, 10 % stay. In a
    caption in which none was chosen the first word is.

    Args:
        ids: int64 ``[N, L]``; not changed.
        mask: bool ``[N, L]``, True where a token is there; None if all are.
        vocabulary: number of token ids; random words are drawn from all that are not special.
        mask_id: id of the mask; that of `chiasm.learn.words` by default.
        special: ids that are never chosen and never drawn (padding, unknown, mask; begin and end of other tokenizers).
        rate: 0.15 as in the paper.
        generator: source of the randomness; None for torch's own.

    Returns:
        Masked ids ``[N, L]``, and labels ``[N, L]``: the word to guess, -100 elsewhere.

    Raises:
        BadInput: a rate outside 0..1, ids outside the vocabulary, or a vocabulary of special ids only.
    """
    if not 0 <= rate <= 1:
        raise BadInput(f"rate {rate} is outside 0..1", where="mask_words")
    if ids.numel() and (int(ids.max()) >= vocabulary or int(ids.min()) < 0):
        raise BadInput(
            f"ids {int(ids.min())} to {int(ids.max())} in a vocabulary of {vocabulary}",
            where="mask_words",
            fix="Give the tokenizer's size",
        )
    specials = torch.tensor(sorted({*special, mask_id}), device=ids.device)
    words = torch.arange(vocabulary, device=ids.device)
    words = words[~torch.isin(words, specials)]
    if not len(words):
        raise BadInput(f"a vocabulary of {vocabulary} has only special ids", where="mask_words")

    def draw() -> Tensor:
        # Drawn where the generator lives, so that a seed means the same on every device.
        place = ids.device if generator is None else generator.device
        return torch.rand(ids.shape, generator=generator, device=place).to(ids.device)

    free = ~torch.isin(ids, specials) & (torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool())
    chosen = free & (draw() < rate)
    first = free & (free.cumsum(dim=1) == 1)
    chosen = chosen | (first & ~chosen.any(dim=1, keepdim=True))
    kind = draw()
    random = words[(draw() * len(words)).long().clamp_max(len(words) - 1)]
    masked = torch.where(chosen & (kind < 0.8), torch.full_like(ids, mask_id), ids)
    masked = torch.where(chosen & (kind >= 0.8) & (kind < 0.9), random, masked)
    return masked, torch.where(chosen, ids, torch.full_like(ids, IGNORE))


class RelationReasoning(nn.Module):
    """The interaction encoder and the head that guesses words.

    Args:
        width: length D of the tokens of both sides.
        vocabulary: number of token ids.
        depth: layers after the cross-attention; 4 as in the paper.
        heads: attention heads; default D / 64.
        parity: padding of the caption takes part in the attention, as in the released code.
    """

    def __init__(
        self, width: int, vocabulary: int, *, depth: int = 4, heads: int | None = None, parity: bool = False
    ) -> None:
        super().__init__()
        self.parity = parity
        self.norm_words = nn.LayerNorm(width)
        self.norm_picture = nn.LayerNorm(width)
        self.attention = MaskedAttention(width, heads)
        self.transformer = FusionEncoder(width, depth, heads, cross_attention=False, activation="quick_gelu")
        clip_init(self.attention, width, depth)
        self.head = nn.Sequential(
            nn.Linear(width, width), QuickGELU(), nn.LayerNorm(width), nn.Linear(width, vocabulary)
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=width**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        words: Tensor,
        picture: Tensor,
        places: Tensor,
        *,
        mask: Tensor | None = None,
        picture_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the words at some places.

        Args:
            words: ``[N, L, D]``, tokens of the masked captions.
            picture: ``[N, M, D]``, tokens of the pictures.
            places: bool ``[N, L]``, where words are to be guessed; m in all.
            mask: bool ``[N, L]``, True where a token of the caption is there.
            picture_mask: bool ``[N, M]``, likewise of the picture.

        Returns:
            ``[m, vocabulary]``, in the order of ``places.nonzero()``.
        """
        x = self.attention(self.norm_words(words), self.norm_picture(picture), picture_mask)
        x = self.transformer(x, mask=None if self.parity else mask)
        return self.head(x[places])

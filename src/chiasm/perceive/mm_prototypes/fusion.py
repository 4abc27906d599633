"""Fine-grained complementary fusion: textual prototypes read the visual ones, then the visual ones read the result.

T' = T + MHA(LN T, LN V, LN V), V' = V + MHA(LN V, LN T', LN T'), each followed by a perceptron with a residual. A class
without one of the two skips its attention; nothing is padded with zeros. Multi-modal prototypes, arXiv 2307.02003.
"""

from __future__ import annotations

from torch import Tensor, nn

from chiasm.blocks.cross_attention import CrossAttentionBlock, clip_init
from chiasm.errors import BadInput


class FusionLayer(nn.Module):
    """One layer, both directions.

    Args:
        width: length D of the prototypes.
        heads: attention heads; 8 (the card).
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.norm_visual = nn.LayerNorm(width)
        self.text = CrossAttentionBlock(width, heads, self_attention=False)
        self.norm_text = nn.LayerNorm(width)
        self.visual = CrossAttentionBlock(width, heads, self_attention=False)

    def forward(self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """``[C, T, D]``, bool ``[C, T]``, ``[C, V, D]``, bool ``[C, V]`` -> both prototypes, shapes as given."""
        has_text, has_visual = text.shape[1] > 0, visual.shape[1] > 0
        if has_text:
            text = self.text(text, self.norm_visual(visual) if has_visual else None, context_mask=visual_mask)
        if has_visual:
            visual = self.visual(visual, self.norm_text(text) if has_text else None, context_mask=text_mask)
        return text, visual


class ComplementaryFusion(nn.Module):
    """A stack of `FusionLayer`.

    Args:
        width: length D of the prototypes.
        layers: 2 (the card).
        heads: 8 (the card).

    Raises:
        BadInput: no layer, or heads that do not divide the width.
    """

    def __init__(self, width: int, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        if layers < 1:
            raise BadInput(f"{layers} layers", where="ComplementaryFusion", fix="Give at least one")
        self.layers = nn.ModuleList(FusionLayer(width, heads) for _ in range(layers))
        clip_init(self, width, layers)

    def forward(self, text: Tensor, text_mask: Tensor, visual: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fuses the clues of C classes; no class sees another.

        Args:
            text: ``[C, T, D]``; T may be 0.
            text_mask: bool ``[C, T]``, True where there is one.
            visual: ``[C, V, D]``; V may be 0.
            visual_mask: bool ``[C, V]``.

        Returns:
            Both, of the same shapes. What stands at missing places has no meaning and reaches nothing.
        """
        for layer in self.layers:
            text, visual = layer(text, text_mask, visual, visual_mask)
        return text, visual

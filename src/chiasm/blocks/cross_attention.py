"""Masked attention between two sequences, and the small transformer made of it that reads one sequence in the light of another.

    >>> fusion = FusionEncoder(width=64, layers=2, context=96)
    >>> fusion(words, patches, mask=word_mask, context_mask=patch_mask)     # [N, L, 64]

Blocks are pre-LN (``x + f(norm(x))``), in the order self-attention, cross-attention, perceptron. Masks are True where a token
is there; missing tokens get the score -inf. A sequence with nothing to look at adds exactly nothing, so no NaN appears, in
the gradient neither.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name

Activation = Literal["gelu", "quick_gelu", "relu"]

# Length of one head, as in CLIP and BERT.
HEAD = 64


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU, "relu": nn.ReLU}


class MaskedAttention(nn.Module):
    """Multi-head attention of a sequence over a context, or over itself, without norm and residual.

    Args:
        width: length D of the vectors of the sequence; also of the output.
        heads: number of heads; default ``width / 64`` (at least 1).
        context: length C of the vectors of the context; default ``width``.
        dropout: dropout of the attention weights.

    Raises:
        BadInput: ``width`` is no multiple of ``heads``.
    """

    def __init__(
        self, width: int, heads: int | None = None, *, context: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        heads = max(1, width // HEAD) if heads is None else heads
        if heads < 1 or width % heads:
            raise BadInput(f"a width of {width} cannot be split into {heads} heads", where="MaskedAttention")
        self.attention = nn.MultiheadAttention(
            width, heads, dropout=dropout, kdim=context, vdim=context, batch_first=True
        )

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What each token of ``x`` reads in the context.

        Args:
            x: ``[N, L, D]``.
            context: ``[N, M, C]``; None for ``x`` itself.
            mask: bool ``[N, M]``, True where a token of the context is there; None if all are.

        Returns:
            ``[N, L, D]``; zeros for items all of whose context is missing.
        """
        return self._attend(x, context, mask, weights=False)[0]

    def weights(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Where each token looks, for inspection: ``[N, heads, L, M]``; rows sum to 1, or are 0 where nothing is there."""
        found = self._attend(x, context, mask, weights=True)[1]
        assert found is not None
        return found

    def _attend(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, *, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        context = x if context is None else context
        if x.ndim != 3 or context.ndim != 3 or len(x) != len(context):
            raise BadInput(
                f"expected [N, L, D] and [N, M, C], got {tuple(x.shape)} and {tuple(context.shape)}", where="attention"
            )
        hidden, none = None, None
        if mask is not None:
            if mask.shape != context.shape[:2]:
                raise BadInput(
                    f"a mask {tuple(mask.shape)} for a context {tuple(context.shape)}",
                    where="attention",
                    fix="Give one entry for each token of the context",
                )
            mask = mask.bool()
            none = ~mask.any(dim=1)
            # A softmax over nothing but -inf is NaN: such rows look at everything first, and their result is dropped.
            hidden = ~(mask | none[:, None])
        out, seen = self.attention(
            x, context, context, key_padding_mask=hidden, need_weights=weights, average_attn_weights=False
        )
        if none is not None:
            out = out.masked_fill(none[:, None, None], 0.0)
            seen = None if seen is None else seen.masked_fill(none[:, None, None, None], 0.0)
        return out, seen


class CrossAttentionBlock(nn.Module):
    """One pre-LN layer: self-attention, cross-attention into a context, perceptron; each with a residual.

    Args:
        width: length D of the vectors.
        heads: attention heads; default ``width / 64``.
        context: length C of the context's vectors; default ``width``.
        self_attention: with the first part.
        cross_attention: with the second part; without it this is an ordinary transformer layer.
        expansion: width of the perceptron's hidden layer in units of ``width``; 4 as in CLIP.
        activation: ``"gelu"``, ``"quick_gelu"`` (CLIP's) or ``"relu"``.
        dropout: dropout of the attention weights and after each part.

    Raises:
        BadInput: heads that do not divide the width, or neither attention.
        UnknownName: an activation that does not exist.
    """

    def __init__(
        self,
        width: int,
        heads: int | None = None,
        *,
        context: int | None = None,
        self_attention: bool = True,
        cross_attention: bool = True,
        expansion: float = 4.0,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not (self_attention or cross_attention):
            raise BadInput("a block without any attention", where="CrossAttentionBlock")
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self.norm_self = nn.LayerNorm(width) if self_attention else None
        self.self_attention = MaskedAttention(width, heads, dropout=dropout) if self_attention else None
        self.norm_cross = nn.LayerNorm(width) if cross_attention else None
        self.cross_attention = (
            MaskedAttention(width, heads, context=context, dropout=dropout) if cross_attention else None
        )
        self.norm_perceptron = nn.LayerNorm(width)
        hidden = round(width * expansion)
        self.perceptron = nn.Sequential(nn.Linear(width, hidden), _ACTIVATIONS[activation](), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """One layer.

        Args:
            x: ``[N, L, D]``.
            context: ``[N, M, C]``; None leaves the cross-attention out (the text-only mode of a fusion encoder).
            mask: bool ``[N, L]``, True where a token of ``x`` is there.
            context_mask: bool ``[N, M]``, the same of the context.

        Returns:
            ``[N, L, D]``. What stands at missing tokens of ``x`` has no meaning, and reaches no other token.
        """
        if self.self_attention is not None and self.norm_self is not None:
            x = x + self.dropout(self.self_attention(self.norm_self(x), mask=mask))
        if self.cross_attention is not None and self.norm_cross is not None and context is not None:
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), context, context_mask))
        return x + self.dropout(self.perceptron(self.norm_perceptron(x)))


class FusionEncoder(nn.Module):
    """A stack of `CrossAttentionBlock` with a last norm. Weights begin as in CLIP, smaller the deeper the stack.

    Args:
        width: length D of the vectors.
        layers: number of blocks.
        heads, context, self_attention, cross_attention, expansion, activation, dropout: of `CrossAttentionBlock`.

    Raises:
        BadInput: no layer, or heads that do not divide the width.
        UnknownName: an activation that does not exist.
    """

    def __init__(
        self,
        width: int,
        layers: int = 2,
        heads: int | None = None,
        *,
        context: int | None = None,
        self_attention: bool = True,
        cross_attention: bool = True,
        expansion: float = 4.0,
        activation: Activation = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise BadInput(f"{layers} layers", where="FusionEncoder", fix="Give at least one")
        self.layers = nn.ModuleList(
            CrossAttentionBlock(
                width,
                heads,
                context=context,
                self_attention=self_attention,
                cross_attention=cross_attention,
                expansion=expansion,
                activation=activation,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        clip_init(self, width, layers)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """All layers and the norm; arguments and result as of `CrossAttentionBlock.forward`."""
        for layer in self.layers:
            x = layer(x, context, mask=mask, context_mask=context_mask)
        return self.norm(x)


@torch.no_grad()
def clip_init(module: nn.Module, width: int, depth: int) -> None:
    """CLIP's first weights (Radford and others 2021, arXiv 2103.00020) for all attention and perceptrons of a module.

    Standard deviations: ``width^-0.5`` for queries, keys and values (of a context of length C: ``C^-0.5``), ``(2 width)^-0.5``
    into the perceptron, and ``(2 width depth)^-0.5`` for whatever is added to the residual; biases 0.

    Args:
        module: changed in place.
        width: length of the vectors.
        depth: number of layers that add to the same residual.
    """
    added = (2 * width * depth) ** -0.5
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            packed = [part.in_proj_weight] if part.in_proj_weight is not None else []
            for weight in [*packed, part.q_proj_weight, part.k_proj_weight, part.v_proj_weight]:
                if weight is not None:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            nn.init.zeros_(part.in_proj_bias)
            nn.init.normal_(part.out_proj.weight, std=added)
            nn.init.zeros_(part.out_proj.bias)
        if isinstance(part, CrossAttentionBlock):
            linear = [layer for layer in part.perceptron if isinstance(layer, nn.Linear)]
            for layer, deviation in zip(linear, ((2 * width) ** -0.5, added), strict=True):
                nn.init.normal_(layer.weight, std=deviation)
                nn.init.zeros_(layer.bias)

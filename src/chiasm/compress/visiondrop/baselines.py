"""The methods that VisionDrop is compared with, as settings of the same pruner: what differs is named by the arguments."""

from __future__ import annotations

from collections.abc import Sequence

from chiasm.compress.visiondrop.pruner import VisionDrop
from chiasm.compress.visiondrop.schedule import ENCODER_CONTEXTUAL, Stage, even_cuts
from chiasm.errors import BadInput


def vision_zip(tokens: int, *, contextual: float = ENCODER_CONTEXTUAL) -> VisionDrop:
    """VisionZip (arXiv 2412.04467): everything is dropped behind the encoder, nothing in the language model.

    Args:
        tokens: visual tokens that are left.
        contextual: share of merged ones.
    """
    merged = round(tokens * contextual)
    return VisionDrop(stages=[Stage(None, tokens - merged, merged)])


def fast_v(tokens: int, layers: int, patches: int, *, layer: int = 2) -> VisionDrop:
    """FastV (arXiv 2403.06764): one cut early in the language model, by the last word's attention, without merging.

    Args:
        tokens: mean number of visual tokens over all layers.
        layers: layers of the language model.
        patches: visual tokens of a picture.
        layer: before which layer; 2 in the paper.

    Raises:
        BadInput: a layer outside the model, or so few tokens that the layers before the cut alone use up the budget.
    """
    if not 1 <= layer < layers:
        raise BadInput(f"layer {layer} of {layers}", where="fast_v", fix=f"Take a layer from 1 to {layers - 1}")
    left = round((tokens * layers - patches * layer) / (layers - layer))
    if left < 1:
        raise BadInput(
            f"{layer} layers with {patches} tokens are more than a mean of {tokens} over {layers}",
            where="fast_v",
            fix="Take more tokens, or an earlier layer",
        )
    return VisionDrop(stages=[Stage(layer, left)], scorer="text", keep_class=False)


def pyramid_drop(layers: int, patches: int, *, ratio: float = 0.5, cuts: Sequence[int] | None = None) -> VisionDrop:
    """PyramidDrop (arXiv 2410.17247): at each cut a share of the visual tokens stays, by the last word's attention.

    Args:
        layers: layers of the language model.
        patches: visual tokens of a picture.
        ratio: share that stays; 0.5 in the paper.
        cuts: before which layers; default three equal cuts.

    Raises:
        BadInput: a share outside (0, 1).
    """
    if not 0 < ratio < 1:
        raise BadInput(f"ratio={ratio}", where="pyramid_drop", fix="Take a share between 0 and 1")
    cuts = even_cuts(layers) if cuts is None else list(cuts)
    stages = [Stage(cut, max(1, round(patches * ratio ** (at + 1)))) for at, cut in enumerate(cuts)]
    return VisionDrop(stages=stages, scorer="text", keep_class=False)

"""How many visual tokens are left after each stage, so that their mean over the language model's layers is the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from scipy.optimize import brentq

from chiasm.errors import BadInput

# Shares of contextual tokens in the released schedules: 6 of 48 in the encoder; 5 of 35, 4 of 26 and 3 of 19 later.
ENCODER_CONTEXTUAL, LATER_CONTEXTUAL = 1 / 8, 0.15


@dataclass(frozen=True, slots=True)
class Stage:
    """One reduction.

    Args:
        layer: it happens before this layer of the language model (after ``layer`` layers); None: behind the vision encoder.
        dominant: tokens that are kept as they are (in the encoder the class token is one of them, if it has one).
        contextual: tokens into which the others are merged; 0 drops them.

    Raises:
        BadInput: no token is left, or a layer below 1.
    """

    layer: int | None
    dominant: int
    contextual: int = 0

    def __post_init__(self) -> None:
        whole = isinstance(self.dominant, Integral) and isinstance(self.contextual, Integral)
        if not whole or self.dominant < 0 or self.contextual < 0 or self.count < 1:
            raise BadInput(
                f"{self.dominant} dominant and {self.contextual} contextual tokens",
                where="Stage",
                fix="A stage must leave at least one token, and whole ones",
            )
        if self.layer is not None and self.layer < 1:
            raise BadInput(f"layer {self.layer}", where="Stage", fix="Use layer=None for the reduction in the encoder")

    @property
    def count(self) -> int:
        """Tokens that are left."""
        return self.dominant + self.contextual


def even_cuts(layers: int, stages: int = 3) -> list[int]:
    """Layers at which a stack is cut into equal segments: 8, 16, 24 of 32."""
    return sorted({round(layers * (at + 1) / (stages + 1)) for at in range(stages)} - {0, layers})


def schedule(
    tokens: int,
    layers: int,
    cuts: Sequence[int] | None = None,
    *,
    encoder: float = 1.5,
    available: int | None = None,
    contextual: tuple[float, float] = (ENCODER_CONTEXTUAL, LATER_CONTEXTUAL),
) -> list[Stage]:
    """The published progressive schedule: a falling geometric row of token counts whose mean over the layers is the budget.

    For T=32 and 32 layers: 42 + 6 behind the encoder, then 30 + 5, 22 + 4 and 16 + 3 before the layers 8, 16 and 24.

    Args:
        tokens: T, the mean number of visual tokens over all layers of the language model.
        layers: its layers.
        cuts: layers before which tokens are dropped again; default three equal cuts. Empty: only behind the encoder.
        encoder: tokens behind the encoder as a multiple of T: 1.5 for pictures, 3 for video. Without cuts it is 1.
        available: visual tokens of a picture; larger counts are cut down to it.
        contextual: share of contextual tokens behind the encoder and later (the 1/8 and 15 % of the released schedules).

    Returns:
        The stages in order.

    Raises:
        BadInput: a budget below 1 or above ``available``, cuts outside the layers, or an ``encoder`` for which no falling
            row has the mean T.
    """
    cuts = even_cuts(layers) if cuts is None else list(cuts)
    if not tokens >= 1:
        raise BadInput(f"a budget of {tokens} tokens", where="schedule", fix="Keep at least one")
    if layers < 1:
        raise BadInput(f"{layers} layers", where="schedule", fix="Give the number of the language model's layers")
    if available is not None and tokens > available:
        raise BadInput(
            f"a budget of {tokens} tokens, but a picture has {available}",
            where="schedule",
            fix=f"Take 1 to {available}",
        )
    if cuts != sorted(set(cuts)) or any(not 1 <= cut < layers for cut in cuts):
        raise BadInput(
            f"cuts {cuts} for {layers} layers", where="schedule", fix=f"Take rising numbers from 1 to {layers - 1}"
        )
    if available == tokens:
        return [Stage(None, tokens), *(Stage(cut, tokens) for cut in cuts)]
    shares = [(end - start) / layers for start, end in zip([0, *cuts], [*cuts, layers])]
    encoder = encoder if cuts else 1.0
    ratio = _ratio(shares, encoder)
    made = []
    for at, cut in enumerate([None, *cuts]):
        count = max(1, round(tokens * encoder * ratio**at))
        count = count if available is None else min(count, available)
        merged = min(count - 1, round(count * contextual[at > 0]))
        made.append(Stage(cut, count - merged, merged))
    return made


def _ratio(shares: Sequence[float], encoder: float) -> float:
    """rho with ``encoder * sum_n shares_n rho^n = 1``."""

    def excess(ratio: float) -> float:
        return encoder * sum(share * ratio**at for at, share in enumerate(shares)) - 1

    if len(shares) == 1:
        return 1.0
    if not excess(0.0) < 0 or not excess(1.0) >= -1e-9:
        raise BadInput(
            f"encoder={encoder} has no falling row of this mean for segments of {[round(s, 3) for s in shares]} of the layers",
            where="schedule",
            fix=f"Take encoder from 1 to less than {1 / shares[0]:.2f}, or cut earlier",
        )
    return 1.0 if abs(excess(1.0)) < 1e-9 else brentq(excess, 0.0, 1.0)  # pyright: ignore[reportReturnType]


def mean_tokens(stages: Sequence[Stage], layers: int, available: int) -> float:
    """Mean number of visual tokens over all layers of the language model."""
    return sum(tokens_by_layer(stages, layers, available)) / layers


def tokens_by_layer(stages: Sequence[Stage], layers: int, available: int) -> list[int]:
    """Visual tokens of one picture in each layer of the language model."""
    left, at = available, {stage.layer: stage.count for stage in stages}
    left = min(left, at.get(None, left))
    made = []
    for layer in range(layers):
        left = min(left, at.get(layer, left)) if layer else left
        made.append(left)
    return made


def check_stages(stages: Sequence[Stage], layers: int, patches: int) -> None:
    """Raises `BadInput` for stages outside the layers, or that keep more than there is."""
    left = patches
    for stage in stages:
        if stage.layer is not None and stage.layer >= layers:
            raise BadInput(
                f"a stage before layer {stage.layer} of {layers}",
                where="VisionDrop.attach",
                fix=f"Take layers from 1 to {layers - 1}, or None for the encoder",
            )
        if stage.count > left:
            raise BadInput(
                f"a stage of {stage.count} tokens where {left} are left",
                where="VisionDrop.attach",
                fix=f"Take at most {left}",
            )
        left = stage.count

"""How much each noisy label weighs: confidences of two modalities, each tempered by the other's.

    r(e)   = exp(-5 (1 - e / E)^2), 1 from epoch E on            how far selection has set in
    rho(e) = 1 - r(e) (1 - rho_f)                                share of a class's labels that keeps full weight
    c~_m   = c_m (1 + c_other) / 2                               entangling: agreement keeps a confidence, its absence halves it
    S_m    = clip(l~_m / tau_c, 0, 1)                            weight of a label;  tau_c: the rho-th largest l~_m of its class
    Q_m    = (1 - r) + r q~_m                                    weight of modality m as a teacher

l: the share given to the noisy label; q: how sure the prediction is, whatever it says. CromSS (cromss, arXiv 2405.01217).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace

from chiasm.errors import BadInput, unknown_name

Ramp = Literal["exp", "linear", "none"]


def ramp(epoch: float, length: float = 80, kind: Ramp = "exp") -> float:
    """r: 0.0067 at the beginning, 1 from epoch ``length`` on.

    Args:
        epoch: epochs done, at least 0.
        length: E, 80 epochs of 200 (the paper's); 0 sets in at once.
        kind: ``"exp"``, ``"linear"`` (e / E), or ``"none"`` (1 always: the released code's default, which selects at full
            strength before the network has learned anything).

    Raises:
        UnknownName: another kind.
        BadInput: a negative epoch or length.
    """
    if kind not in ("exp", "linear", "none"):
        raise unknown_name("ramp", kind, ("exp", "linear", "none"))
    if not epoch >= 0 or not length >= 0:
        raise BadInput(f"epoch {epoch}, length {length}", where="ramp", fix="Both are at least 0")
    if kind == "none" or epoch >= length:
        return 1.0
    done = epoch / length
    return done if kind == "linear" else math.exp(-5 * (1 - done) ** 2)


def kept_share(strength: float, final: float = 0.5) -> float:
    """rho: the share of each class that keeps full weight; from nearly 1 down to ``final``.

    Args:
        strength: r of `ramp`.
        final: rho_f, 0.5 (the paper's).

    Raises:
        BadInput: a share outside (0, 1], a strength outside 0 .. 1.
    """
    if not 0 < final <= 1 or not 0 <= strength <= 1:
        raise BadInput(
            f"strength {strength}, final share {final}",
            where="kept_share",
            fix="Give a strength in 0 .. 1, and a share above 0, at most 1",
        )
    return (1 - strength) + strength * final


def entangle(first: Any, second: Any) -> tuple[Any, Any]:
    """``c~ = (c + common) / 2`` with ``common = c_1 c_2``: a confidence that is one modality's alone is halved, not dropped.

    Args:
        first, second: confidences ``[...]`` in 0 .. 1 of the two modalities; the same shape and kind.

    Raises:
        BadInput: shapes that differ.
    """
    if tuple(first.shape) != tuple(second.shape):
        raise BadInput(
            f"confidences {tuple(first.shape)} and {tuple(second.shape)}",
            where="entangle",
            fix="Give both of one shape",
        )
    array_namespace(first, second)  # refuses a mixture of numpy and torch
    common = first * second
    return (first + common) / 2, (second + common) / 2


@dataclass(frozen=True)
class Trust:
    """What one step believes; all without a gradient, each ``[B, ...]`` like the labels.

    Args:
        label_a, label_b: S, the weight of each noisy label in the loss of either modality; 0 where it is ignored.
        teacher_a, teacher_b: Q, the weight of each prediction when it teaches the other modality.
        share: rho of this step.
        strength: r of this step.
    """

    label_a: Any
    label_b: Any
    teacher_a: Any
    teacher_b: Any
    share: float
    strength: float

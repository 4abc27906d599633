"""The losses of the two stages.

stage 1   L = InfoNCE(norm phi(u~), v)                                    u~: new text with noise, v: old text
stage 2   L = InfoNCE(z_i, y) + InfoNCE(z_t, y) + InfoNCE(z_i, z_t)       y = sg norm phi(T_n(t)): stands in for v
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce

KINDS = ("info_nce", "cosine", "both")
TextLoss = Literal["info_nce", "cosine", "both"]
TERMS = ("image", "text", "pair")


def _checked(temperature: float) -> float:
    if not 0 < temperature < float("inf"):
        raise BadInput(f"temperature {temperature} is not positive", where="temperature")
    return temperature


class TextObjective(nn.Module):
    """Stage 1: projected new texts against old texts.

    Args:
        kind: ``"info_nce"``, ``"cosine"`` (1 - cos; ends near the mean vector) or ``"both"``.
        temperature: 0.05 (card).

    Raises:
        UnknownName: another kind.
        BadInput: a temperature that is not positive.
    """

    def __init__(self, kind: TextLoss = "info_nce", temperature: float = 0.05) -> None:
        super().__init__()
        if kind not in KINDS:
            raise unknown_name("loss", kind, KINDS)
        self.kind, self.temperature = kind, _checked(temperature)

    def forward(self, a: Tensor, b: Tensor, *, groups: Tensor | None = None) -> dict[str, Tensor]:
        """Loss parts.

        Args:
            a: ``[N, Do]``, phi of the new texts.
            b: ``[N, Do]``, old texts.
            groups: int ``[N]``; texts of one group are equal.
        """
        a, b = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        parts: dict[str, Tensor] = {}
        if self.kind != "cosine":
            parts |= info_nce(a, b, scale=1 / self.temperature, groups=groups)
        if self.kind != "info_nce":
            parts["cosine"] = (1 - (a * b).sum(-1)).mean()
        return parts


class CompatibleObjective(nn.Module):
    """Stage 2: adapted pictures and texts against the stand-in of the old texts, without the old model.

    Args:
        temperature: 0.05 (card).
        terms: which of ``"image"`` (z_i, y), ``"text"`` (z_t, y) and ``"pair"`` (z_i, z_t) count.

    Raises:
        UnknownName: another term.
        BadInput: no terms, or a temperature that is not positive.
    """

    def __init__(self, temperature: float = 0.05, terms: tuple[str, ...] = TERMS) -> None:
        super().__init__()
        for term in terms:
            if term not in TERMS:
                raise unknown_name("term", term, TERMS)
        if not terms:
            raise BadInput("no terms", where="CompatibleObjective", fix=f"Use some of {', '.join(TERMS)}")
        self.temperature, self.terms = _checked(temperature), tuple(terms)

    def forward(self, a: Tensor, b: Tensor, target: Tensor | None = None, *, groups: Any = None) -> dict[str, Tensor]:
        """Loss parts.

        Args:
            a: ``[N, Do]``, phi of the adapted picture vectors.
            b: ``[N, Do]``, phi of the adapted text vectors.
            target: ``[N, Do]``, phi of the new model's own text vectors; gets no gradient. Default: ``b``.
            groups: int ``[N]``; pairs of one group are positives of each other.
        """
        y = nn.functional.normalize((b if target is None else target).detach(), dim=-1)
        i, t = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        sides = {"image": (i, y), "text": (t, y), "pair": (i, t)}
        parts: dict[str, Tensor] = {}
        for term in self.terms:
            for way, value in info_nce(*sides[term], scale=1 / self.temperature, groups=groups).items():
                parts[f"{term}_{way}"] = value
        return parts

"""The parts that train: noise on texts, the projection into the old space, the low-rank adapter on the new vectors.

    phi(x)  = W x + c + down GELU(up x)            whichever of the two the form has; the objective normalizes
    a(x)    = norm(x + B A x), B = 0 at the start   (|a(x)| = |x|)

All of them read and write ``sentence_embedding`` ``[N, D]``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.blocks.saved import Saved
from chiasm.errors import BadInput, unknown_name

FORMS = ("mlp", "linear", "residual", "blocks")
Form = Literal["mlp", "linear", "residual", "blocks"]
Per = Literal["sample", "batch"]


class Noise(Saved):
    """Gaussian noise on unit vectors while training: norm(u + s eps), eps ~ N(0, I / D), s ~ U(0, sigma).

    It stands in for the gap between the modalities: a projection that forgives it also takes picture vectors.

    Args:
        sigma: largest length of the noise; 0 changes nothing and draws nothing.
        per: one s for each ``"sample"``, or one for the ``"batch"``.

    Raises:
        BadInput: a negative sigma.
        UnknownName: another ``per``.
    """

    config_keys: list[str] = ["sigma", "per"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, sigma: float = 1.0, per: Per = "sample") -> None:
        super().__init__()
        if not 0 <= sigma < float("inf"):
            raise BadInput(f"sigma {sigma} is no length of noise", where="Noise")
        if per not in ("sample", "batch"):
            raise unknown_name("kind of noise", per, ("sample", "batch"))
        self.sigma, self.per = sigma, per

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        x = features["sentence_embedding"]
        if not self.training or not self.sigma:
            return features
        x = nn.functional.normalize(x, dim=-1)
        strength = self.sigma * torch.rand(len(x) if self.per == "sample" else 1, 1, device=x.device)
        noisy = x + strength * torch.randn_like(x) / x.shape[1] ** 0.5
        return {**features, "sentence_embedding": nn.functional.normalize(noisy, dim=-1)}


class _Perceptron(nn.Module):
    """``down(GELU(up(x)))``."""

    def __init__(self, enter: int, hidden: int, leave: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(enter, hidden), nn.Linear(hidden, leave)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Projection(Saved):
    """phi: new vectors ``[N, Dn]`` -> vectors ``[N, Do]`` in the old space, not normalized.

    Args:
        new: length Dn.
        old: length Do.
        form: ``"mlp"``: Linear - GELU - Linear; ``"linear"``; ``"residual"``: linear + MLP; ``"blocks"``: linear, then two
            residual MLPs of length Do. (The paper's form was not to be had; these are the card's.)
        hidden: width of an MLP; default 4 max(Dn, Do).
        zero: MLPs beside or behind a linear part start at 0, so that phi starts as the linear part.

    Raises:
        UnknownName: another form.
        BadInput: lengths below 1.
    """

    config_keys: list[str] = ["new", "old", "form", "hidden"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, new: int, old: int, form: Form = "mlp", hidden: int | None = None, *, zero: bool = True) -> None:
        super().__init__()
        if form not in FORMS:
            raise unknown_name("form of projection", form, FORMS)
        if min(new, old) < 1 or (hidden is not None and hidden < 1):
            raise BadInput(f"lengths {new}, {old}, {hidden}", where="Projection")
        self.new, self.old, self.form = new, old, form
        self.hidden = hidden or 4 * max(new, old)
        self.linear = None if form == "mlp" else nn.Linear(new, old)
        self.mlp = _Perceptron(new, self.hidden, old) if form in ("mlp", "residual") else None
        count = 2 if form == "blocks" else 0
        self.blocks = nn.ModuleList(_Perceptron(old, self.hidden, old) for _ in range(count))
        if zero:
            for part in [*([self.mlp] if form == "residual" else []), *self.blocks]:
                nn.init.zeros_(part.down.weight)  # pyright: ignore
                nn.init.zeros_(part.down.bias)  # pyright: ignore

    def start_at(self, rotation: Tensor) -> None:
        """Puts a matrix ``[Dn, Do]`` (rows x become x R) into the linear part, and 0 into its offset.

        Raises:
            BadInput: the form has no linear part.
        """
        if self.linear is None:
            raise BadInput("an MLP has no linear part to start from", where="Projection", fix="Use form='residual'")
        with torch.no_grad():
            self.linear.weight.copy_(rotation.T)
            self.linear.bias.zero_()

    def project(self, x: Tensor) -> Tensor:
        """``[N, Dn]`` -> ``[N, Do]``."""
        parts = [part(x) for part in (self.linear, self.mlp) if part is not None]
        y = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        for block in self.blocks:
            y = y + block(y)
        return y

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {**features, "sentence_embedding": self.project(features["sentence_embedding"])}

    def get_embedding_dimension(self) -> int:
        return self.old


class LowRank(Saved):
    """Embedding-level adapter: x + B A x, scaled to the length of x. With B = 0 the input comes back bit for bit.

    Args:
        dim: length D.
        rank: rank of B A; 8 (card: 8 to 16).

    Raises:
        BadInput: a rank outside 1..D.
    """

    config_keys: list[str] = ["dim", "rank"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, dim: int, rank: int = 8) -> None:
        super().__init__()
        if not 1 <= rank <= dim:
            raise BadInput(f"rank {rank} of vectors of length {dim}", where="LowRank", fix=f"Use 1 to {dim}")
        self.dim, self.rank = dim, rank
        self.down = nn.Parameter(torch.randn(rank, dim) / dim**0.5)
        self.up = nn.Parameter(torch.zeros(dim, rank))

    def adapt(self, x: Tensor) -> Tensor:
        """``[N, D]`` -> ``[N, D]``."""
        moved = x + (x @ self.down.T) @ self.up.T
        # A ratio of lengths is exactly 1 where nothing moved; normalizing twice would round.
        return moved * (x.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {**features, "sentence_embedding": self.adapt(features["sentence_embedding"])}

    def get_embedding_dimension(self) -> int:
        return self.dim


class Same(Saved):
    """Leaves vectors as they are: the route of a frozen model's precomputed vectors."""

    config_keys: list[str] = ["dim"]  # noqa: RUF012 (the library declares it so)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return features

    def get_embedding_dimension(self) -> int:
        return self.dim

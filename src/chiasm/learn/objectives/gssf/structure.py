"""The structural sparse metric of GSSF (Diao and others, IEEE TIP 2024, arXiv 2410.15266), folded into one matrix T.

    S(x, y) = x^T (W o U) y,   x, y unit rows;   T = diag(w) + blockdiag(W_1 .. W_G);   S = (x T) y^T

w says how much each channel counts (Diag), W_g which channels of one group of ``block`` belong together (B-Diag). T is
applied to the queries once, so scoring is a plain inner product over the untouched gallery.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from chiasm.errors import BadInput, unknown_name
from chiasm.kernels.topk import topk_inner

Form = Literal["both", "diag", "block", "full"]
Direction = Literal["a", "b"]
FORMS = ("both", "diag", "block", "full")

# Scores of a block of rows (4 bytes each): 16 MB.
_SCORES = 1 << 22


class StructuralMetric(nn.Module):
    """A bilinear score between two sets of vectors whose matrix T is sparse; fresh, it is exactly the cosine.

    Args:
        dim: length D of the vectors; None takes that of the first batch.
        form: ``"both"`` (the method: Diag + B-Diag), ``"diag"``, ``"block"``, or ``"full"`` (a dense D x D matrix, the
            ablation that overfits).
        block: channels a group, b; the paper's description leaves it open, 8 or 16 for D = 256 .. 1024. The last group
            may be smaller. Groups are contiguous and equal unless `group_channels` has been called.
        renorm: divide by the length of the transformed query too, so that scores stay in [-1, 1]. Default False.
        symmetric: tie W_g = W_g^T, so that S(x, y) = S(y, x), for search within one modality. Default False.
        top: keep the ``top`` largest weights of every row of a group, with a straight-through gradient; None keeps all.

    Raises:
        UnknownName: a form that does not exist.
        BadInput: sizes that make no metric.
    """

    weight: nn.Parameter | None
    blocks: nn.Parameter | None
    order: Tensor

    def __init__(
        self,
        dim: int | None = None,
        *,
        form: Form = "both",
        block: int = 8,
        renorm: bool = False,
        symmetric: bool = False,
        top: int | None = None,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise unknown_name("form", form, FORMS)
        if block < 1 or (dim is not None and dim < 1) or (top is not None and top < 1):
            raise BadInput(f"dim={dim}, block={block}, top={top}", where="StructuralMetric", fix="All are at least 1")
        self.form: Form = form
        self.block, self.renorm, self.symmetric, self.top = block, renorm, symmetric, top
        self.register_parameter("weight", _unmade() if form in ("both", "diag") else None)
        self.register_parameter("blocks", _unmade() if form != "diag" else None)
        self.register_buffer("order", UninitializedBuffer(dtype=torch.long))  # pyright: ignore[reportCallIssue]
        if dim is not None:
            self.build(dim)

    @property
    def dim(self) -> int | None:
        """Length of the vectors, None before the first batch."""
        return None if is_lazy(self.order) else len(self.order)

    def build(self, dim: int, device: torch.device | str | None = None) -> None:
        """Makes the weights for vectors of length ``dim``: w = 1 and W_g = 0 (W_g = I where there is no w)."""
        size = dim if self.form == "full" else min(self.block, dim)
        groups = -(-dim // size)
        with torch.no_grad():
            self.order.materialize((dim,), device=device)  # pyright: ignore[reportAttributeAccessIssue]
            self.order.copy_(torch.arange(dim))
            if self.weight is not None:
                self.weight.materialize((dim,), device=device)  # pyright: ignore[reportAttributeAccessIssue]
                self.weight.fill_(1.0)
            if self.blocks is not None:
                self.blocks.materialize((groups, size, size), device=device)  # pyright: ignore[reportAttributeAccessIssue]
                self.blocks.zero_()
                if self.weight is None:
                    self.blocks.copy_(torch.eye(size))

    def group_channels(self, order: Tensor) -> None:
        """Puts other channels into the groups: group g takes ``order[g * block : (g + 1) * block]`` of both sides.

        Args:
            order: int64 ``[D]``, a permutation, for example from `channel_order`. It is part of the state.

        Raises:
            BadInput: it is no permutation of the channels.
        """
        order = torch.as_tensor(order, dtype=torch.long)
        if self.dim is None:
            self.build(len(order))
        if order.shape != self.order.shape or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise BadInput(f"no permutation of {self.dim} channels", where="StructuralMetric.group_channels")
        self.order.copy_(order)

    # ---- the matrix

    def weights(self) -> Tensor:
        """W_1 .. W_G as they are used, ``[G, b, b]``: symmetrized and sparsified where that was asked for."""
        assert self.blocks is not None
        values = (self.blocks + self.blocks.mT) / 2 if self.symmetric else self.blocks
        if self.top is None or self.top >= values.shape[-1]:
            return values
        rank = values.detach().abs().argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        keep = rank < self.top
        keep = keep | keep.mT if self.symmetric else keep
        # Straight-through: what is cut off in the forward pass still gets its gradient, so it can come back.
        return values + (values.masked_fill(~keep, 0.0) - values).detach()

    def transform(self, x: Tensor, *, transposed: bool = False) -> Tensor:
        """x T, or x T^T; O(b) products a channel, never D x D.

        Args:
            x: ``[..., D]``.
            transposed: apply T^T, for the side that T stands behind.

        Returns:
            ``[..., D]`` in float32: half precision loses ranks where weights are large.
        """
        x = x.float()
        if self.dim is None:
            self.build(x.shape[-1], x.device)
        if x.shape[-1] != self.dim:
            raise BadInput(f"vectors of length {x.shape[-1]}, the metric has {self.dim}", where="StructuralMetric")
        out = x * self.weight if self.weight is not None else None
        if self.blocks is not None:
            grouped = self._grouped(x, self.weights().mT if transposed else self.weights())
            out = grouped if out is None else out + grouped
        assert out is not None
        return out

    def _grouped(self, x: Tensor, weights: Tensor) -> Tensor:
        groups, size, _ = weights.shape
        moved = not torch.equal(self.order, torch.arange(len(self.order), device=self.order.device))
        y = x[..., self.order] if moved else x
        rest = groups * size - x.shape[-1]
        y = nn.functional.pad(y, (0, rest)) if rest else y
        y = torch.einsum("...gi,gij->...gj", y.unflatten(-1, (groups, size)), weights).flatten(-2)
        y = y[..., : x.shape[-1]]
        return y[..., self.order.argsort()] if moved else y

    def matrix(self) -> Tensor:
        """T as a dense ``[D, D]``, for inspection."""
        if self.dim is None:
            raise BadInput("it has seen no vectors", where="StructuralMetric.matrix", fix="Give dim=...")
        return self.transform(torch.eye(self.dim, device=self.order.device))

    # ---- scores

    def transform_query(self, queries: Tensor, direction: Direction = "a") -> Tensor:
        """Queries as any inner-product index takes them, the gallery being the raw unit vectors of the other side.

        Args:
            queries: ``[..., D]``; scaled to unit length before T, not after.
            direction: ``"a"``: rows of ``a`` look for ``b`` (x T); ``"b"``: the other way (y T^T).
        """
        if direction not in ("a", "b"):
            raise unknown_name("direction", direction, ("a", "b"))
        turned = self.transform(nn.functional.normalize(queries.float(), dim=-1), transposed=direction == "b")
        return nn.functional.normalize(turned, dim=-1) if self.renorm else turned

    def scores(self, a: Tensor, b: Tensor, direction: Direction = "a", *, chunk: int | None = None) -> Tensor:
        """S, ``[N, M]``, in blocks of rows: besides S itself O(chunk (D + M)) memory, never N M D.

        Args:
            a: ``[N, D]``.
            b: ``[M, D]``.
            direction: which side are the queries; it matters for the score with ``renorm`` only.
            chunk: queries a block; by default so many that a block has 2**22 scores.
        """
        queries, gallery = (a, b) if direction == "a" else (b, a)
        gallery = nn.functional.normalize(gallery.float(), dim=-1)
        step = chunk or max(1, _SCORES // max(1, len(gallery)))
        if torch.is_grad_enabled():
            parts = [self.transform_query(part, direction) @ gallery.T for part in queries.split(step)]
            out = torch.cat(parts) if parts else gallery.new_zeros((0, len(gallery)))
        else:
            out = gallery.new_empty((len(queries), len(gallery)))
            for start in range(0, len(queries), step):
                torch.mm(
                    self.transform_query(queries[start : start + step], direction),
                    gallery.T,
                    out=out[start : start + step],
                )
        return out if direction == "a" else out.T

    @torch.no_grad()
    def topk(
        self, queries: Tensor, gallery: Tensor, k: int, direction: Direction = "a", *, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores and rows of the k best gallery items, ``[Q, k]``; no ``[Q, M]`` matrix is ever in memory.

        Args:
            queries: ``[Q, D]`` of the side that ``direction`` names.
            gallery: ``[M, D]`` of the other side.
            k: how many.
            direction: as in `transform_query`.
            chunk: gallery rows a step.
        """
        unit = nn.functional.normalize(gallery.float(), dim=-1)
        return topk_inner(self.transform_query(queries, direction), unit, k, chunk=chunk)

    def late_interaction(
        self,
        a: Tensor,
        b: Tensor,
        a_mask: Tensor | None = None,
        b_mask: Tensor | None = None,
        direction: Direction = "a",
    ) -> Tensor:
        """Token-wise scores ``[N, M]``: for each query token the best token of the other side, summed.

        Args:
            a: token vectors ``[N, L, D]``.
            b: token vectors ``[M, K, D]``.
            a_mask: bool ``[N, L]``, True at real tokens; likewise ``b_mask``.
            b_mask: see ``a_mask``.
            direction: whose tokens look for a partner, and get T (once each).
        """
        from sentence_transformers.util import maxsim

        sides: list[Any] = [(a, a_mask), (b, b_mask)]
        (queries, q_mask), (items, i_mask) = sides if direction == "a" else sides[::-1]
        items = nn.functional.normalize(items.float(), dim=-1)
        out = maxsim(self.transform_query(queries, direction), items, q_mask, i_mask)
        return out if direction == "a" else out.T

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # A metric that has seen no batch yet takes its size from the saved one.
        saved = state_dict.get(f"{prefix}order")
        if self.dim is None and saved is not None and not is_lazy(saved):
            self.build(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _unmade() -> Any:
    """A parameter whose size the first batch decides."""
    return UninitializedParameter()

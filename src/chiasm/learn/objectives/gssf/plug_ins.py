"""The structural metric in other places: attention logits, and the student's relations in distillation.

logits_h = q_h^T (diag(w_h) + blockdiag(W_h)) k_h / sqrt(d_h)
L = KL( softmax(tau cos(t_i, t_j)) || softmax(tau S(s_i, s_j)) ),   teacher t without gradient
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.objectives.gssf.structure import Form, StructuralMetric

RELATIONS = ("a", "b", "cross")


class StructuralAttention(nn.Module):
    """Scaled dot-product attention whose logits are structural; fresh, it is plain attention.

    Every head has a metric of its own. T goes onto the queries, so that any fused attention kernel runs the rest.

    Args:
        heads: number of heads H.
        head_dim: length d of a head's queries and keys.
        form: as in `StructuralMetric`.
        block: channels a group.
    """

    def __init__(self, heads: int, head_dim: int, *, form: Form = "both", block: int = 8) -> None:
        super().__init__()
        if heads < 1:
            raise BadInput(f"{heads} heads", where="StructuralAttention")
        self.metrics = nn.ModuleList(StructuralMetric(head_dim, form=form, block=block) for _ in range(heads))

    def transform(self, queries: Tensor) -> Tensor:
        """Queries ``[B, H, L, d]`` times their head's T, in their own precision; give them to any attention."""
        if queries.ndim != 4 or queries.shape[1] != len(self.metrics):
            raise BadInput(
                f"queries of shape {tuple(queries.shape)}, expected [B, {len(self.metrics)}, L, d]",
                where="StructuralAttention",
            )
        heads = [metric(queries[:, h]) for h, metric in enumerate(self._transforms())]
        return torch.stack(heads, dim=1).to(queries.dtype)

    def _transforms(self) -> list[Any]:
        return [metric.transform for metric in self.metrics]  # pyright: ignore[reportAttributeAccessIssue]

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attention logits ``[B, H, L, K]`` before mask and softmax."""
        return self.transform(queries) @ keys.mT / queries.shape[-1] ** 0.5

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """What attention gives, ``[B, H, L, d]``.

        Args:
            queries: ``[B, H, L, d]``.
            keys: ``[B, H, K, d]``.
            values: ``[B, H, K, e]``.
            mask: bool, broadcast to ``[B, H, L, K]``, True where a key may be seen. A row that sees none gives 0.
        """
        if mask is None:
            return nn.functional.scaled_dot_product_attention(self.transform(queries), keys, values)
        blind = ~mask.any(dim=-1, keepdim=True)
        seen = nn.functional.scaled_dot_product_attention(self.transform(queries), keys, values, attn_mask=mask | blind)
        return seen.masked_fill(blind, 0.0)


class RelationDistillation(nn.Module):
    """Teaches a student the teacher's relations within a batch, measured on the student's side by a structural metric.

    An objective: the teacher's vectors come with the pairs (``Pairs.per_pair["teacher_a"]``, ``["teacher_b"]``). The
    metric is thrown away afterwards; the student is used with the cosine.

    Args:
        dim: length of the student's vectors; None takes that of the first batch.
        relations: which matrices are matched: within ``"a"``, within ``"b"``, and ``"cross"`` from a to b.
        scale: tau, the factor before both softmaxes; 10 (the card leaves it open).
        form, block: as in `StructuralMetric`.

    Raises:
        UnknownName: a relation that does not exist.
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        relations: tuple[str, ...] = RELATIONS,
        scale: float = 10.0,
        form: Form = "both",
        block: int = 8,
    ) -> None:
        super().__init__()
        for name in relations:
            if name not in RELATIONS:
                raise unknown_name("relation", name, RELATIONS)
        self.relations, self.scale = tuple(relations), scale
        self.metric = StructuralMetric(dim, form=form, block=block)

    def forward(
        self, a: Tensor, b: Tensor, *, teacher_a: Tensor, teacher_b: Tensor, groups: Any = None
    ) -> dict[str, Tensor]:
        """One divergence a relation, averaged over them; all are 0 for a batch of one.

        Args:
            a: the student's vectors ``[N, D]``; likewise ``b``.
            b: see ``a``.
            teacher_a: the teacher's vectors ``[N, E]``; likewise ``teacher_b``.
            teacher_b: see ``teacher_a``.
            groups: not used: relations are soft.
        """
        sides = {
            "a": (a, a, teacher_a, teacher_a),
            "b": (b, b, teacher_b, teacher_b),
            "cross": (a, b, teacher_a, teacher_b),
        }
        return {f"relations_{name}": self._divergence(*sides[name]) / len(self.relations) for name in self.relations}

    def _divergence(self, a: Tensor, b: Tensor, teacher_a: Tensor, teacher_b: Tensor) -> Tensor:
        with torch.no_grad():
            left, right = (nn.functional.normalize(t.float(), dim=-1) for t in (teacher_a, teacher_b))
            goal = (self.scale * left @ right.T).log_softmax(dim=-1)
        own = (self.scale * self.metric.scores(a, b)).log_softmax(dim=-1)
        return nn.functional.kl_div(own, goal, reduction="batchmean", log_target=True)

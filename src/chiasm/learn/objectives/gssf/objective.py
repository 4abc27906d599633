"""`GSSF`: the structural metric trained with InfoNCE or the hinge loss with the hardest negatives.

    L = InfoNCE(S) or mean_i [margin + max_{j != i} S_ij - S_ii]_+ (both directions)  +  l1 |W_off|_1  +  pull |w - 1|^2

S is the score of `StructuralMetric`; it is no cosine, so nothing is normalized after T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import InfoNCE, info_nce
from chiasm.learn.held_out import Encoded
from chiasm.learn.objectives.gssf.structure import Direction, Form, StructuralMetric

LOSSES = ("info-nce", "triplet")


class GSSF(nn.Module):
    """Teaches a structural sparse metric, alone over frozen vectors (`fit`) or jointly with the encoders.

    >>> objective = GSSF()                                  # starts as the cosine
    >>> train(model, pairs, objective)
    >>> objective.similarity(a, b), objective.transform_query(vectors)

    Args:
        dim, form, block, renorm, symmetric, top: as in `StructuralMetric`.
        loss: ``"info-nce"``, or ``"triplet"``: the hinge with the hardest negative of VSE++ and SGRAF.
        temperature: start of the learned temperature, 0.07 as in the card's recipe: S leaves [-1, 1], and the temperature
            adapts to it.
        learn_temperature: False keeps it.
        margin: of the triplet loss, 0.2 as in VSE++ and SGRAF.
        l1: weight of the sum of the absolute off-diagonal weights; default 0.
        pull: weight of |w - 1|^2. Usual weight decay would pull w to 0, not to the cosine; w is exempt from it.
        warmup: share of the steps over which the penalties and the hardest negatives come in; the triplet loss takes the
            mean over the violating negatives in the meantime. 0.1; 0 for none.

    Raises:
        UnknownName: a form or loss that does not exist.
        BadInput: a number out of range.
    """

    ramp: Tensor

    def __init__(
        self,
        dim: int | None = None,
        *,
        form: Form = "both",
        block: int = 8,
        renorm: bool = False,
        symmetric: bool = False,
        top: int | None = None,
        loss: Literal["info-nce", "triplet"] = "info-nce",
        temperature: float = 0.07,
        learn_temperature: bool = True,
        margin: float = 0.2,
        l1: float = 0.0,
        pull: float = 0.0,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES)
        if min(margin, l1, pull, warmup) < 0 or warmup > 1:
            raise BadInput(f"margin={margin}, l1={l1}, pull={pull}, warmup={warmup}", where="GSSF", fix="All are >= 0")
        self.metric = StructuralMetric(dim, form=form, block=block, renorm=renorm, symmetric=symmetric, top=top)
        self.temperature = InfoNCE(temperature, learn_temperature=learn_temperature)
        self.loss, self.margin, self.l1, self.pull, self.warmup = loss, margin, l1, pull, warmup
        # How far the warm-up has come, in [0, 1]; 1 outside training.
        self.register_buffer("ramp", torch.ones(()))

    def on_progress(self, step: int, steps: int) -> None:
        """Moves the warm-up on; `chiasm.learn.train` calls it before every step."""
        self.ramp.fill_(min(1.0, step / max(1.0, self.warmup * steps)) if self.warmup else 1.0)

    def no_decay(self) -> Iterator[nn.Parameter]:
        """Parameters that weight decay would pull away from the cosine: w, or the blocks that stand in for it."""
        own = self.metric.weight if self.metric.weight is not None else self.metric.blocks
        if own is not None:
            yield own

    def forward(self, a: Tensor, b: Tensor, *, groups: Any = None) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a: ``[N, D]``.
            b: ``[M, D]``.
            groups: ids ``[N]`` (or a pair ``([N], [M])``); equal ids are positives.

        Returns:
            ``a_to_b``, ``b_to_a``, and ``sparsity`` and ``pull`` where they have a weight.
        """
        parts = self._info_nce(a, b, groups) if self.loss == "info-nce" else self._triplet(a, b, groups)
        metric = self.metric
        if self.l1 and metric.blocks is not None:
            eye = torch.eye(metric.blocks.shape[-1], dtype=torch.bool, device=a.device)
            parts["sparsity"] = self.ramp * self.l1 * metric.blocks.masked_fill(eye, 0.0).abs().sum()
        if self.pull and metric.weight is not None:
            parts["pull"] = self.ramp * self.pull * (metric.weight - 1).square().sum()
        return parts

    def _info_nce(self, a: Tensor, b: Tensor, groups: Any) -> dict[str, Tensor]:
        scale = self.temperature.scale
        raw = nn.functional.normalize(b.float(), dim=-1)
        turned = self.metric.transform_query(a)
        if not self.metric.renorm:
            return info_nce(turned, raw, scale=scale, groups=groups)
        # The two directions divide by the length of different queries, so they are two matrices.
        forth = info_nce(turned, raw, scale=scale, groups=groups, directions="a")
        own = nn.functional.normalize(a.float(), dim=-1)
        back = info_nce(own, self.metric.transform_query(b, "b"), scale=scale, groups=groups, directions="b")
        return {name: part / 2 for name, part in (forth | back).items()}

    def _triplet(self, a: Tensor, b: Tensor, groups: Any) -> dict[str, Tensor]:
        if len(a) != len(b):
            raise BadInput(f"{len(a)} and {len(b)} rows are not pairs", where="GSSF", fix="Use loss='info-nce'")
        ids = torch.arange(len(a), device=a.device) if groups is None else groups
        left, right = ids if isinstance(ids, (tuple, list)) else (ids, ids)
        same = left[:, None] == right[None, :]
        forth = self.metric.scores(a, b)
        back = self.metric.scores(a, b, "b").T if self.metric.renorm else forth.T
        return {"a_to_b": self._hinge(forth, same) / 2, "b_to_a": self._hinge(back, same.T) / 2}

    def _hinge(self, scores: Tensor, same: Tensor) -> Tensor:
        """Hinge of each row against its hardest negative (during the warm-up: partly against the mean of the violating)."""
        cost = (self.margin + scores - scores.diagonal()[:, None]).clamp_min(0).masked_fill(same, 0.0)
        hardest = cost.amax(dim=1)
        mean = cost.sum(dim=1) / (cost > 0).sum(dim=1).clamp_min(1)
        return (self.ramp * hardest + (1 - self.ramp) * mean).mean()

    # ---- scores

    def similarity(self, a: Encoded, b: Encoded, direction: Direction = "a", *, chunk: int | None = None) -> Tensor:
        """Scores ``[N, M]``, chunked; see `StructuralMetric.scores`."""
        return self.metric.scores(a.vectors, b.vectors, direction, chunk=chunk)

    def transform_query(self, queries: Tensor, direction: Direction = "a") -> Tensor:
        """Queries for a plain inner-product index over raw unit vectors; see `StructuralMetric.transform_query`."""
        return self.metric.transform_query(queries, direction)


def faster_head(
    objective: nn.Module, times: float = 10.0
) -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    """An ``optimizer`` for `chiasm.learn.train` that gives the head ``times`` the rate of the encoders.

    Args:
        objective: whose parameters are the head's.
        times: 10 as in the card's protocol for joint training.
    """

    def make(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
        head = {id(p) for p in objective.parameters()}
        split = []
        for group in groups:
            for inside, factor in ((True, times), (False, 1.0)):
                chosen = [p for p in group["params"] if (id(p) in head) is inside]
                split.append({**group, "params": chosen, "lr": rate * factor})
        return torch.optim.AdamW([group for group in split if group["params"]], lr=rate)

    return make

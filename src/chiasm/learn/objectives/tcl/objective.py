"""TCL: cross-modal contrast keeps pairs together, intra-modal and local contrast keep each modality's own structure.

Yang and others, "Vision-Language Pre-Training with Triple Contrastive Learning", CVPR 2022, arXiv 2202.10401. v, t are the online
vectors, v^, t^ those of the momentum encoder for another view, V = [v^, queue], W = [t^, queue], all of unit length:

    CMA  v against W, t against V       soft targets: alpha * what v^, t^ say + (1 - alpha) * the own pair
    IMC  v against V, t against W       the own other view is the positive
    LMI  v, t against their own local features (see `locals`)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chiasm.errors import BadInput
from chiasm.learn.contrastive import info_nce
from chiasm.learn.momentum import FeatureQueue
from chiasm.learn.objectives.tcl.locals import cells, local_contrast

# The learned temperature stays inside these, as in ALBEF.
COLDEST, WARMEST = 0.001, 0.5


class TripleContrast(nn.Module):
    """The alignment losses of TCL (its L_ita), for any two encoders.

    Each weight belongs to the mean of the two terms of its kind. The paper has 1/3 each from the first step, with encoders that
    are pretrained; from random weights that starves the alignment, so by default the other terms come in later and weigh less.

    Args:
        w_cma, w_imc, w_lmi: weights of the three parts; 1, 0.3 and 0.3.
        aux_start: share of all steps before IMC and LMI begin; 0.5.
        parity: the paper's weights, 1/3 each from the first step, whatever the other arguments say.
        momentum: of the momentum encoder; 0.995 as in the paper (short trainings want less: 0.99).
        queue: vectors of earlier batches on each side; 65536 in the paper, here 4096 because data are smaller. 0 for none.
        alpha: largest weight of the momentum encoder's opinion in the targets of CMA; 0.4.
        alpha_ramp: share of all steps over which it rises from 0; 1/30, one of the paper's 30 epochs.
        temperature: initial value of the learned temperature; 0.07. It stays within [0.001, 0.5].
        side: patches are averaged to ``side x side`` local features; 4.
        skip_first: the first token of each item is no local feature (encoders that pool a CLS token).
        chunk: samples a block of LMI.

    Raises:
        BadInput: numbers outside their range.
    """

    temperature: Tensor
    progress: Tensor

    def __init__(
        self,
        *,
        w_cma: float = 1.0,
        w_imc: float = 0.3,
        w_lmi: float = 0.3,
        aux_start: float = 0.5,
        parity: bool = False,
        momentum: float = 0.995,
        queue: int = 4096,
        alpha: float = 0.4,
        alpha_ramp: float = 1 / 30,
        temperature: float = 0.07,
        side: int = 4,
        skip_first: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if parity:
            w_cma = w_imc = w_lmi = 1 / 3
            aux_start = 0.0
        if min(w_cma, w_imc, w_lmi) < 0 or queue < 0 or side < 1 or not 0 <= momentum <= 1:
            raise BadInput(
                f"weights {w_cma}, {w_imc}, {w_lmi}, queue {queue}, side {side}, momentum {momentum}",
                where="TripleContrast",
            )
        if not (0 <= aux_start <= 1 and 0 <= alpha <= 1 and 0 <= alpha_ramp <= 1):
            raise BadInput(f"aux_start {aux_start}, alpha {alpha}, alpha_ramp {alpha_ramp}", where="TripleContrast")
        if not COLDEST <= temperature <= WARMEST:
            raise BadInput(f"temperature {temperature} is outside {COLDEST}..{WARMEST}", where="TripleContrast")
        self.w_cma, self.w_imc, self.w_lmi, self.aux_start = w_cma, w_imc, w_lmi, aux_start
        self.momentum, self.queue_size, self.alpha, self.alpha_ramp = momentum, queue, alpha, alpha_ramp
        self.side, self.skip_first, self.chunk = side, skip_first, chunk
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        # Outside a training all terms count.
        self.register_buffer("progress", torch.ones(()))
        self.queue_a: FeatureQueue | None = None
        self.queue_b: FeatureQueue | None = None

    def on_progress(self, step: int, steps: int) -> None:
        """Where the training is; decides alpha, and when IMC and LMI begin."""
        self.progress.fill_(step / max(1, steps))

    @property
    def current_alpha(self) -> float:
        """The weight of the momentum encoder's opinion at this step."""
        return self.alpha * min(1.0, float(self.progress) / self.alpha_ramp) if self.alpha_ramp else self.alpha

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        a_momentum: Tensor | None = None,
        b_momentum: Tensor | None = None,
        a_momentum_tokens: Tensor | None = None,
        b_momentum_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_mask: Tensor | None = None,
        a2_momentum: Tensor | None = None,
        b2_momentum: Tensor | None = None,
        a2_momentum_tokens: Tensor | None = None,
        b2_momentum_tokens: Tensor | None = None,
        a2_mask: Tensor | None = None,
        b2_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch; in training the momentum vectors enter the queues afterwards.

        Args:
            a: ``[n, D]``, scaled to unit length here, as all the others.
            b: ``[n, D]``.
            groups: int ``[n]``; equal ids share the target, in the queue too.
            a_momentum, b_momentum: what the momentum encoder gives for ``a`` and ``b``; without it, they themselves.
            a_momentum_tokens, b_momentum_tokens: its tokens ``[n, L, D]``; without tokens there is no LMI.
            a_mask, b_mask: bool ``[n, L]`` of the tokens.
            a2_momentum, ...: the same of a second view (`two_views`), which takes the place of the first.

        Returns:
            ``cma``, and ``imc`` and ``lmi`` once they have begun.
        """
        if a.ndim != 2 or a.shape != b.shape or not len(a):
            raise BadInput(f"a and b of shapes {tuple(a.shape)} and {tuple(b.shape)}", where="TripleContrast")
        if self.training:
            with torch.no_grad():
                self.temperature.clamp_(COLDEST, WARMEST)
        if a2_momentum is not None:
            a_momentum, a_momentum_tokens, a_mask = a2_momentum, a2_momentum_tokens, a2_mask
        if b2_momentum is not None:
            b_momentum, b_momentum_tokens, b_mask = b2_momentum, b2_momentum_tokens, b2_mask
        v, t = _unit(a), _unit(b)
        v_hat, t_hat = (_unit(x if hat is None else hat).detach() for x, hat in ((a, a_momentum), (b, b_momentum)))
        ids = torch.arange(len(a), device=a.device) if groups is None else groups
        bank_a, bank_ids = self._bank(self.queue_a, v_hat, ids)
        bank_b, _ = self._bank(self.queue_b, t_hat, ids)
        found = self._cross(v, t, v_hat, t_hat, bank_a, bank_b, ids, bank_ids)
        if float(self.progress) >= self.aux_start:
            if self.w_imc:
                own = [self._nce(x, bank, groups=(ids, bank_ids)) for x, bank in ((v, bank_a), (t, bank_b))]
                found["imc"] = self.w_imc * torch.stack(own).mean()
            if self.w_lmi and a_momentum_tokens is not None and b_momentum_tokens is not None:
                same = ids[:, None] == ids[None, :]
                parts = self._local(v, a_momentum_tokens, a_mask, same, True) + self._local(
                    t, b_momentum_tokens, b_mask, same, False
                )
                found["lmi"] = self.w_lmi * parts / 2
        if self.training and self.queue_size:
            self._push(v_hat, t_hat, None if groups is None else groups)
        return found

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        return 1 / self.temperature

    def _nce(self, x: Tensor, bank: Tensor, **options: Any) -> Tensor:
        return info_nce(x, bank, scale=self.scale, directions="a", **options)["a_to_b"]

    def _cross(
        self,
        v: Tensor,
        t: Tensor,
        v_hat: Tensor,
        t_hat: Tensor,
        bank_a: Tensor,
        bank_b: Tensor,
        ids: Tensor,
        bank_ids: Tensor,
    ) -> dict[str, Tensor]:
        """CMA; without distillation the positives are told by id, which needs no matrix of targets."""
        if not self.w_cma:
            return {"cma": v.sum() * 0}
        alpha, parts = self.current_alpha, []
        for x, hat, bank in ((v, v_hat, bank_b), (t, t_hat, bank_a)):
            if not alpha:
                parts.append(self._nce(x, bank, groups=(ids, bank_ids)))
                continue
            with torch.no_grad():
                own = (ids[:, None] == bank_ids[None, :]).to(x.dtype)
                seen = (hat @ bank.T * self.scale).softmax(1)
                targets = alpha * seen + (1 - alpha) * own / own.sum(1, keepdim=True)
            parts.append(self._nce(x, bank, targets=targets))
        return {"cma": self.w_cma * torch.stack(parts).mean()}

    def _local(self, x: Tensor, tokens: Tensor, mask: Tensor | None, same: Tensor, patches: bool) -> Tensor:
        """LMI of one side; only patches are averaged to cells."""
        tokens = _unit(tokens)
        if self.skip_first:
            tokens, mask = tokens[:, 1:], None if mask is None else mask[:, 1:]
        if patches:
            tokens, mask = cells(tokens, mask, self.side)
        return local_contrast(x, tokens, mask, scale=self.scale, same=same, chunk=self.chunk)

    def _bank(self, queue: FeatureQueue | None, hat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's momentum vectors and those of earlier batches, with their ids."""
        if queue is None or not len(queue):
            return hat, ids
        vectors, old = queue.get()
        return torch.cat([hat, vectors]), torch.cat([ids, old])

    def _push(self, v_hat: Tensor, t_hat: Tensor, groups: Tensor | None) -> None:
        for name, hat in (("queue_a", v_hat), ("queue_b", t_hat)):
            if getattr(self, name) is None:
                setattr(self, name, FeatureQueue(self.queue_size, hat.shape[1]).to(hat.device))
            # Without groups nothing in the queue is a positive of anything.
            getattr(self, name).push(hat, groups)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The queues are made at the first batch, which a fresh objective has not seen.
        for name in ("queue_a", "queue_b"):
            saved = state_dict.get(f"{prefix}{name}.vectors")
            if saved is not None and getattr(self, name) is None:
                setattr(self, name, FeatureQueue(*saved.shape).to(self.temperature.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)

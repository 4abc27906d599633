"""CrossGET: tokens that another modality does not need are merged inside the towers, and cross tokens learn what it needs.

CrossGET: Cross-Guided Ensemble of Tokens for Accelerating Vision-Language Transformers, 2023 (ICML 2024), arXiv 2305.17455.

    x = x + Attn(LN1 x; logits + log s)            s [B, T]: how many input tokens each token stands for
    c_l = stopgrad(c) + cross[l]                   the cross token in the last slot, one learned vector a layer and tower
    I_i = cos(k_i, q_c)                            importance of token i for the other modality
    x, s = ensemble(match(k, I), x, s, I)          r tokens fewer: complete-graph soft matching, softmax weights
    x = x + MLP(LN2 x)

`ToMe` (Token Merging, 2022, arXiv 2210.09461) is the same without cross tokens, with bipartite matching and plain means.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from chiasm.compress.crossget.reduction import TowerReduction
from chiasm.compress.token_reducer import Schedule, TokenReducer


class CrossGET(TowerReduction):
    """Cross-guided ensemble of tokens.

    Args:
        r_vision: tokens merged in each vision layer (16 of 197 tokens for CLIP ViT-B/16, 13 for LLaVA), or a list.
        r_text: the same in the text tower; 0 in the published models.
        inflection: see `Schedule`.
        matching: ``"complete_graph"``, ``"receive_best"``, ``"bipartite"`` or ``"random"``.
        importance: ``"cross"`` (cosine of key and the cross token's query: CLIP), ``"attention"`` (attention received: LLaVA)
            or ``"none"``.
        guided_matching: importance decides who goes (CGM); off, only similarity does.
        guided_ensemble: importance weights the merge; off, the mean by size.
        keys: similarities of the ``"mean"`` key of the heads (ToMe and the LLaVA code), or of the ``"full"`` width (the
            CLIP code), which costs as many times more as there are heads.
        cap: a text that is too short loses what it can; see `Schedule`. Pictures that are too small are an error.
        parity: alignment in the released code's direction, with its norm.
    """

    def __init__(
        self,
        r_vision: int | Sequence[int] = 16,
        r_text: int | Sequence[int] = 0,
        *,
        inflection: float = 0.0,
        matching: str = "complete_graph",
        importance: str = "cross",
        guided_matching: bool = True,
        guided_ensemble: bool = True,
        keys: Any = "mean",
        cap: bool = True,
        parity: bool = False,
    ) -> None:
        reducer = partial(
            TokenReducer,
            match=matching,
            score=importance,
            match_by_score=guided_matching,
            merge="guided" if guided_ensemble and importance != "none" else "mean",
            keys=keys,
        )
        super().__init__(
            {"image": reducer(Schedule(r_vision, inflection)), "text": reducer(Schedule(r_text, inflection, cap))},
            cross=True,
            parity=parity,
        )


class ToMe(TowerReduction):
    """Token merging without training and without another modality: the baseline.

    Args:
        r_vision: tokens merged in each vision layer, or a list.
        r_text: the same in the text tower.
        inflection: see `Schedule`.
        matching: ``"bipartite"``; ``"random"`` is the baseline's baseline.
        keep_order: tokens stay in their order; ToMe does not keep it.
        cap: see `CrossGET`.
    """

    def __init__(
        self,
        r_vision: int | Sequence[int] = 8,
        r_text: int | Sequence[int] = 0,
        *,
        inflection: float = 0.0,
        matching: str = "bipartite",
        keep_order: bool = False,
        cap: bool = True,
    ) -> None:
        reducer = partial(TokenReducer, match=matching, keys="mean", keep_order=keep_order)
        super().__init__(
            {"image": reducer(Schedule(r_vision, inflection)), "text": reducer(Schedule(r_text, inflection, cap))},
            cross=False,
        )

"""Prompts of all layers of both towers, and how what one tower's prompts know reaches the other's.

    early layers l < k:    P_v'[l] = M_{T->V}(P_v[l] | z_t[0..k-1])        text -> vision
    late layers  l >= k:   P_t'[l] = M_{V->T}(P_t[l] | z_v[k..L-1])        vision -> text
    proxies:               z[l] = LN2(q[l] + MHA(LN1 q[l], LN1 P[l], LN1 P[l]))

HiCroPL (ICCV 2025, arXiv 2507.14976). Early text prompts and late vision prompts are used as they are. Every call computes
the prompts anew from the parameters and returns them: nothing is written back, so a gradient reaches mappers, poolers and
proxies, and the result does not depend on how often it was asked for.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from chiasm.blocks.cross_attention import QuickGELU
from chiasm.errors import BadInput, unknown_name

Flow = Literal["both", "text_to_vision", "vision_to_text", "none"]
FLOWS = ("both", "text_to_vision", "vision_to_text", "none")
# Standard deviation of new prompts, as in CoOp (arXiv 2109.01134) and MaPLe.
STD = 0.02


def _heads_fit(width: int, heads: int, where: str) -> None:
    if heads < 1 or width % heads:
        raise BadInput(
            f"a width of {width} cannot be split into {heads} heads",
            where=where,
            fix="Choose heads (or mapper_dim) so that they divide it",
        )


class KnowledgePooler(nn.Module):
    """Compresses the n prompt tokens of a layer to one token, the layer-specific knowledge proxy (LKP).

    Args:
        width: width D of the tower.
        heads: attention heads; 8 in the paper's code.

    Raises:
        BadInput: heads that do not divide the width.
    """

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        _heads_fit(width, heads, "KnowledgePooler")
        self.norm_in = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, proxy: Tensor, prompts: Tensor) -> Tensor:
        """Proxy ``[1, D]`` and prompts ``[n, D]`` of a layer -> what is passed on, ``[1, D]``."""
        # One norm serves query, key and value.
        query, tokens = self.norm_in(proxy), self.norm_in(prompts)
        return self.norm_out(proxy + self.attention(query, tokens, tokens, need_weights=False)[0])


class HierarchicalMapper(nn.Module):
    """Rewrites prompts of one tower in the light of proxies of the other; one mapper serves all layers.

        Q' = Wq Q,  K' = Wk Z,  V' = Wv Z;   A = Q' + MHA(LN1 Q', LN1 K', LN1 V');   out = A + FFN(LN2 A)

    The residual is on ``Wq Q``, so it is not the identity at the start.

    Args:
        source: width of the proxies.
        target: width of the prompts.
        heads: attention heads; 8 in the paper's code.
        ffn_mult: hidden width of the perceptron in units of the mapper's; 4.
        dim: width of the mapper; None for ``target``. Smaller ones save parameters (then a last linear layer leads back).

    Raises:
        BadInput: heads that do not divide the mapper's width.
    """

    def __init__(self, source: int, target: int, heads: int = 8, ffn_mult: float = 4.0, dim: int | None = None) -> None:
        super().__init__()
        width = target if dim is None else dim
        _heads_fit(width, heads, "HierarchicalMapper")
        hidden = max(1, round(width * ffn_mult))
        self.query, self.key, self.value = (
            nn.Linear(target, width),
            nn.Linear(source, width),
            nn.Linear(source, width),
        )
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), QuickGELU(), nn.Linear(hidden, width))
        self.leave = nn.Identity() if dim is None else nn.Linear(width, target)

    def forward(self, prompts: Tensor, knowledge: Tensor) -> Tensor:
        """Prompts ``[G, m, target]`` and proxies ``[G, s, source]`` of G groups that see only their own -> ``[G, m, target]``."""
        query, key, value = self.query(prompts), self.key(knowledge), self.value(knowledge)
        seen = self.attention(self.norm(query), self.norm(key), self.norm(value), need_weights=False)[0]
        mixed = query + seen
        return self.leave(mixed + self.ffn(self.norm_ffn(mixed)))


class PromptFlow(nn.Module):
    """All learned parts of HiCroPL: ``flow()`` gives the prompts of both towers.

    Args:
        text_width, vision_width: widths Dt and Dv of the towers.
        tokens: prompt tokens n a layer.
        depth: prompted layers L.
        cross_layer: the layer k from which knowledge flows from vision to text; 0 .. L.
        heads, ffn_mult, mapper_dim: of the mappers (and poolers).
        share_poolers: one pooler for all layers of a tower, instead of one each.
        flow: ``"both"`` directions, one of them, or ``"none"`` (independent prompts).
        proxies: pass on one proxy a layer; False passes on all prompt tokens (the paper's ablation).
        every_layer: prompts see the proxies of all layers of their half; False: of their own layer only (ablation).
        towers: which towers have prompts.

    Raises:
        BadInput: sizes that do not fit together.
        UnknownName: a flow or tower that does not exist.
    """

    def __init__(
        self,
        text_width: int,
        vision_width: int,
        tokens: int,
        depth: int,
        cross_layer: int,
        *,
        heads: int = 8,
        ffn_mult: float = 4.0,
        mapper_dim: int | None = None,
        share_poolers: bool = False,
        flow: Flow = "both",
        proxies: bool = True,
        every_layer: bool = True,
        towers: tuple[str, ...] = ("text", "vision"),
    ) -> None:
        super().__init__()
        if flow not in FLOWS:
            raise unknown_name("flow", flow, FLOWS)
        for tower in towers:
            if tower not in ("text", "vision"):
                raise unknown_name("tower", tower, ("text", "vision"))
        if tokens < 0 or depth < 1 or not 0 <= cross_layer <= depth:
            raise BadInput(
                f"{tokens} tokens, depth {depth}, cross_layer {cross_layer}",
                where="HiCroPL",
                fix="Choose tokens >= 0, depth >= 1 and 0 <= cross_layer <= depth",
            )
        if len(set(towers)) < 2:
            flow = "none"
        self.tokens, self.depth, self.cross_layer = tokens, depth, cross_layer
        self.pools, self.every_layer = proxies, every_layer
        self.text, self.vision = (
            nn.Parameter(torch.randn(depth, tokens, width) * STD) if tower in towers and tokens else None
            for tower, width in (("text", text_width), ("vision", vision_width))
        )
        early, late = cross_layer, depth - cross_layer
        down = tokens and early and flow in ("both", "text_to_vision")
        up = tokens and late and flow in ("both", "vision_to_text")
        mapper = {"heads": heads, "ffn_mult": ffn_mult, "dim": mapper_dim}
        self.to_vision = HierarchicalMapper(text_width, vision_width, **mapper) if down else None
        self.to_text = HierarchicalMapper(vision_width, text_width, **mapper) if up else None
        pooled = heads, share_poolers
        self.text_proxies, self.text_poolers = _proxies(early if down and proxies else 0, text_width, *pooled)
        self.vision_proxies, self.vision_poolers = _proxies(late if up and proxies else 0, vision_width, *pooled)
        for found, layers in ((self.to_vision, early), (self.to_text, late)):
            seen = (1 if proxies else tokens) * (layers if every_layer else 1)
            if found is not None and seen == 1:
                # A softmax over one key is 1 whatever the key is, so nothing could be learned there.
                found.key.requires_grad_(False)

    def text_knowledge(self) -> Tensor:
        """What the early text prompts pass on, ``[k, 1 or n, Dt]``."""
        assert self.text is not None
        return self._knowledge(self.text[: self.cross_layer], self.text_proxies, self.text_poolers)

    def vision_knowledge(self) -> Tensor:
        """What the late vision prompts pass on, ``[L - k, 1 or n, Dv]``."""
        assert self.vision is not None
        return self._knowledge(self.vision[self.cross_layer :], self.vision_proxies, self.vision_poolers)

    def text_prompts(self) -> list[Tensor]:
        """``[n, Dt]`` for each prompted layer: early ones as they are, late ones mapped."""
        if self.text is None:
            return []
        if self.to_text is None:
            return list(self.text)
        late = self._mapped(self.to_text, self.text[self.cross_layer :], self.vision_knowledge())
        return [*self.text[: self.cross_layer], *late]

    def vision_prompts(self) -> list[Tensor]:
        """``[n, Dv]`` for each prompted layer: early ones mapped, late ones as they are."""
        if self.vision is None:
            return []
        if self.to_vision is None:
            return list(self.vision)
        early = self._mapped(self.to_vision, self.vision[: self.cross_layer], self.text_knowledge())
        return [*early, *self.vision[self.cross_layer :]]

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """Prompts of the text and of the vision tower."""
        return self.text_prompts(), self.vision_prompts()

    def _knowledge(self, prompts: Tensor, proxies: Tensor | None, poolers: nn.ModuleList | None) -> Tensor:
        if proxies is None or poolers is None:
            return prompts
        return torch.stack([poolers[i % len(poolers)](q, p) for i, (q, p) in enumerate(zip(proxies, prompts))])

    def _mapped(self, mapper: HierarchicalMapper, prompts: Tensor, knowledge: Tensor) -> Tensor:
        if not self.every_layer:
            return mapper(prompts, knowledge)
        # All tokens of all layers attend to the knowledge of all layers: the fusion over several scales.
        whole = mapper(prompts.flatten(0, 1)[None], knowledge.flatten(0, 1)[None])
        return whole[0].unflatten(0, prompts.shape[:2])


def _proxies(layers: int, width: int, heads: int, share: bool) -> tuple[nn.Parameter | None, nn.ModuleList | None]:
    """Queries ``[layers, 1, D]`` and their poolers, which begin as copies of one."""
    if not layers:
        return None, None
    first = KnowledgePooler(width, heads)
    copies = [first] if share else [first, *(copy.deepcopy(first) for _ in range(layers - 1))]
    return nn.Parameter(torch.randn(layers, 1, width)), nn.ModuleList(copies)

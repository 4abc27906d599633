"""1-to-K (KDD 2024, arXiv 2406.18254): an item meets all its K languages at every step, so that all rank it alike.

    loss = 1-to-K contrast + matching (MITM) + masked words (CMLM), equally weighted

The contrast is in `contrast`; the two companions need a fusion encoder that reads a text in the light of the item's tokens.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from sentence_transformers.util import get_rank
from torch import Tensor, nn

from chiasm.blocks.cross_attention import FusionEncoder
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.held_out import Direction, Encoded, cosine
from chiasm.learn.objectives.one_to_k import contrast
from chiasm.learn.objectives.one_to_k.contrast import Mode, Weight
from chiasm.learn.objectives.one_to_k.matching import Choice, choose_languages, choose_negatives
from chiasm.learn.objectives.one_to_k.words import mask_spans

# Bounds of the learned temperature, as in the released code.
_TEMPERATURE = (0.001, 0.5)


class OneToK(nn.Module):
    """1-to-K contrast, with its baselines as modes and its two companion losses.

    ``b`` has the K languages as views (``b/de``, ``b/fr``, ...); without views K is 1 and this is InfoNCE.

    Args:
        mode: ``"1-to-k"``; or what it is compared with: ``"pivot"``, ``"1-to-1"``, ``"per-language"``.
        t2i_weight: ``"paper"`` (both directions alike) or ``"reference"`` (text to item by 1/K, as the released arithmetic).
        temperature: learned from 0.07 on, kept in 0.001 .. 0.5.
        pivot_language: number of the pivot among the views, for that mode.
        layers: layers of the fusion encoder; 0 leaves matching and masked words out. The paper has 6, here for towers with
            tokens.
        width: length of the token vectors of both sides, for the fusion encoder.
        heads: its attention heads.
        vocabulary: number of word ids; None leaves masked words out.
        choice: how matching chooses an item's language: ``"uniform"``, ``"worst"`` or ``"worst-similarity"``.
        warmup: share of the training in which the companions rise to full weight.
        seed: decides languages, negatives and hidden words, together with the step.
        chunk: of `info_nce`.

    Raises:
        BadInput: a temperature that is not positive, or sizes that make no encoder.
        UnknownName: a mode, weight or choice that does not exist.
    """

    # These go with the inputs of this process, which are not collected from the others.
    local = ("a_tokens", "a_mask", "b_tokens", "b_mask")

    step: Tensor
    progress: Tensor

    def __init__(
        self,
        mode: Mode = "1-to-k",
        *,
        t2i_weight: Weight = "paper",
        temperature: float = 0.07,
        pivot_language: int = 0,
        layers: int = 0,
        width: int = 64,
        heads: int = 4,
        vocabulary: int | None = None,
        choice: Choice = "worst",
        warmup: float = 0.1,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        for kind, name, known in (
            ("mode", mode, get_args(Mode)),
            ("t2i_weight", t2i_weight, get_args(Weight)),
            ("way to choose a language", choice, get_args(Choice)),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if temperature <= 0 or layers < 0 or (vocabulary is not None and not layers):
            raise BadInput(
                f"temperature {temperature}, layers {layers}, vocabulary {vocabulary}",
                where="OneToK",
                fix="The temperature is positive, and masked words need layers of a fusion encoder",
            )
        self.mode: Mode = mode
        self.t2i_weight: Weight = t2i_weight
        self.choice: Choice = choice
        self.pivot_language, self.vocabulary, self.warmup = pivot_language, vocabulary, warmup
        self.seed, self.chunk = seed, chunk
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.fusion = FusionEncoder(width, layers, heads, context=width) if layers else None
        # The summary token in front of a text, which the matching head reads.
        self.summary = nn.Parameter(torch.randn(width) * width**-0.5) if layers else None
        self.matching = nn.Linear(width, 2) if layers else None
        self.word_head = nn.Linear(width, vocabulary) if vocabulary else None
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("progress", torch.tensor(0.0))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature in use."""
        return 1 / self.temperature.clamp(*_TEMPERATURE)

    @torch.no_grad()
    def on_progress(self, step: int, steps: int) -> None:
        """Keeps the temperature in its bounds and notes how far the training is."""
        self.temperature.clamp_(*_TEMPERATURE)
        self.step.fill_(step)
        self.progress.fill_(step / max(1, steps))

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        b_present: Tensor | None = None,
        groups: Tensor | None = None,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
        b_inputs: dict[str, Any] | None = None,
        encode: Any = None,
    ) -> dict[str, Tensor]:
        """Loss parts of a batch.

        Args:
            a: items ``[N, D]``.
            b: their texts ``[N, K, D]``, or ``[N, D]`` with one language.
            b_present: bool ``[N, K]``, False where a translation is missing; default all are there.
            groups: ids ``[N]``; items of one group are no negatives of each other.
            a_tokens: ``[N, P, width]``, for the companions.
            a_mask: bool ``[N, P]``.
            b_tokens: ``[N, K, L, width]``.
            b_mask: bool ``[N, K, L]``.
            b_inputs: what the model read, with ``input_ids`` ``[N, K, L]``, for masked words.
            encode: runs the model on such inputs.

        Returns:
            ``a_to_b`` and ``b_to_a`` (``pivot_to_others`` in that mode), and ``matching`` and ``masked_words`` if there is a
            fusion encoder.

        Raises:
            BadInput: shapes that do not fit, or no tokens for the companions.
        """
        b = b[:, None] if b.ndim == 2 else b
        n, k = b.shape[:2]
        present = torch.ones(n, k, dtype=torch.bool, device=b.device) if b_present is None else b_present.bool()
        present = present[:, None] if present.ndim == 1 else present
        if b.ndim != 3 or len(a) != n or present.shape != (n, k):
            raise BadInput(
                f"a {tuple(a.shape)}, b {tuple(b.shape)}, b_present {tuple(present.shape)}",
                where="OneToK",
                fix="Expected [N, D], [N, K, D] and [N, K]",
            )
        groups = torch.arange(n, device=a.device) if groups is None else groups
        v, t = nn.functional.normalize(a, dim=-1), nn.functional.normalize(b, dim=-1)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + int(self.step))
        losses = self._contrast(v, t, present, groups, generator)
        if self.fusion is not None:
            if a_tokens is None or b_tokens is None:
                raise BadInput("matching needs the tokens of both sides", where="OneToK", fix="Use layers=0")
            # With several processes the vectors are those of all, the tokens our own.
            own = slice(get_rank() * len(a_tokens), (get_rank() + 1) * len(a_tokens)) if len(a_tokens) < n else slice(n)
            texts = _Texts.of(b_tokens, b_mask, b_inputs)
            patches = a_tokens, _all_there(a_tokens) if a_mask is None else a_mask
            losses |= self._companions(patches, texts, v[own], t[own], present[own], groups[own], generator, encode)
        return losses

    def _contrast(self, v: Tensor, t: Tensor, present: Tensor, groups: Tensor, generator: Any) -> dict[str, Tensor]:
        given: dict[str, Any] = {"scale": self.scale, "groups": groups, "chunk": self.chunk}
        if self.mode == "pivot":
            return contrast.pivot(v, t, present, language=self.pivot_language, **given)
        if self.mode == "1-to-1":
            return contrast.one_to_one(v, t, present, generator=generator, **given)
        if self.mode == "per-language":
            return contrast.per_language(v, t, present, **given)
        return contrast.one_to_k(v, t, present, t2i_weight=self.t2i_weight, **given)

    def _companions(
        self,
        patches: tuple[Tensor, Tensor],
        texts: _Texts,
        v: Tensor,
        t: Tensor,
        present: Tensor,
        groups: Tensor,
        generator: torch.Generator,
        encode: Any,
    ) -> dict[str, Tensor]:
        """Matching and masked words, both on the language that was chosen for each item."""
        rise = min(1.0, float(self.progress) / self.warmup) if self.warmup else 1.0
        with torch.no_grad():
            scores = self.scale * v @ t.flatten(0, 1).T
        chosen = choose_languages(scores, present, generator, self.choice)
        losses = {"matching": rise * self._match_loss(patches, texts, scores, present, chosen, groups, generator)}
        if self.word_head is not None:
            if texts.inputs is None or encode is None:
                raise BadInput("masked words need the inputs of b", where="OneToK", fix="Use vocabulary=None")
            losses["masked_words"] = rise * self._word_loss(patches, texts, chosen, generator, encode)
        return losses

    def _match_loss(
        self,
        patches: tuple[Tensor, Tensor],
        texts: _Texts,
        scores: Tensor,
        present: Tensor,
        chosen: Tensor,
        groups: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """One right pair and two hard wrong ones an item, told apart by a head with two outputs."""
        text, item = choose_negatives(scores, present, chosen, groups, generator)
        k = present.shape[1]
        rows = torch.arange(len(chosen), device=chosen.device)
        own = rows * k + chosen.clamp_min(0)
        # (item, text, right) of the positives, the wrong texts and the wrong items, as far as there are any.
        trios = [
            torch.stack([i[there], j[there], torch.full_like(i[there], right)])
            for i, j, there, right in (
                (rows, own, chosen >= 0, 1),
                (rows, text, text >= 0, 0),
                (item, own, item >= 0, 0),
            )
        ]
        if not trios[1].numel() and not trios[2].numel():
            return 0.0 * (patches[0].sum() + texts.tokens.sum())  # nothing wrong to tell the right ones from
        at, of, right = torch.cat(trios, dim=1)
        return nn.functional.cross_entropy(self.match((patches[0][at], patches[1][at]), texts.at(of)), right)

    def match(self, patches: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor]) -> Tensor:
        """Logits ``[P, 2]`` of pairs: wrong, right.

        Args:
            patches: tokens ``[P, M, width]`` and mask ``[P, M]`` of the items.
            words: tokens ``[P, L, width]`` and mask ``[P, L]`` of the texts.
        """
        assert self.matching is not None
        return self.matching(self._fused(patches, words)[:, 0])

    def _fused(self, patches: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor]) -> Tensor:
        """States ``[P, 1 + L, width]``: the summary token, then the words."""
        assert self.fusion is not None
        assert self.summary is not None
        tokens, mask = words
        x = torch.cat([self.summary.expand(len(tokens), 1, -1), tokens], dim=1)
        mask = nn.functional.pad(mask.bool(), (1, 0), value=True)
        return self.fusion(x, patches[0], mask=mask, context_mask=patches[1].bool())

    def _word_loss(
        self, patches: tuple[Tensor, Tensor], texts: _Texts, chosen: Tensor, generator: torch.Generator, encode: Any
    ) -> Tensor:
        """Hidden words of the chosen text, told from the rest of it and from the item."""
        assert self.word_head is not None
        assert texts.inputs is not None
        rows = torch.arange(len(chosen), device=chosen.device)
        inputs = {
            name: value[rows, chosen.clamp_min(0)] if isinstance(value, Tensor) else value
            for name, value in texts.inputs.items()
        }
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool() & (chosen >= 0)[:, None]
        hiding, hidden = mask_spans(ids, mask, generator, vocabulary=self.vocabulary)
        out = encode({**inputs, "input_ids": hiding})
        states = self._fused(patches, (out["token_embeddings"], out["attention_mask"].bool()))[:, 1:]
        if not bool(hidden.any()):
            return 0.0 * states.sum()
        return nn.functional.cross_entropy(self.word_head(states[hidden]), ids[hidden])

    @torch.no_grad()
    def rerank(self, a: Encoded, b: Encoded, direction: Direction = "a", *, k: int = 128, chunk: int = 64) -> Tensor:
        """Cosine, with the best ``k`` of each query put in order by the matching head.

        Within the list a score is 2 + the probability of a match; below it the cosine stays, so all ranks have a meaning
        (the released code gives everything below the list the same score).

        Args:
            a: N encoded items with tokens.
            b: M encoded texts with tokens.
            direction: whose rows are the queries.
            k: length of the list.
            chunk: queries at a time.

        Returns:
            ``[N, M]``.

        Raises:
            BadInput: no fusion encoder, or no tokens.
        """
        if self.fusion is None or a.tokens is None or b.tokens is None:
            raise BadInput("there is no fusion encoder, or no tokens", where="rerank", fix="Use OneToK(layers=...)")
        scores = cosine(a, b)
        out = scores.clone() if direction == "a" else scores.T.clone()
        device = self.temperature.device
        sides = [
            (x.tokens.to(device), (_all_there(x.tokens) if x.mask is None else x.mask).to(device))
            for x in (a, b)
            if x.tokens is not None
        ]
        for start in range(0, len(out), chunk):
            block = out[start : start + chunk]
            best = block.topk(min(k, block.shape[1]), dim=1).indices
            queries = torch.arange(start, start + len(block))[:, None].expand_as(best).flatten()
            found = best.flatten()
            i, j = (queries, found) if direction == "a" else (found, queries)
            logits = self.match((sides[0][0][i], sides[0][1][i]), (sides[1][0][j], sides[1][1][j]))
            block.scatter_(1, best, 2 + torch.softmax(logits, 1)[:, 1].view_as(best).to(block))
        return out if direction == "a" else out.T


class _Texts:
    """The texts of a batch, ``[N, K, ...]``, and each by its number ``j K + k``."""

    def __init__(self, tokens: Tensor, mask: Tensor, inputs: dict[str, Any] | None) -> None:
        self.tokens, self.mask, self.inputs = tokens, mask, inputs

    @classmethod
    def of(cls, tokens: Tensor, mask: Tensor | None, inputs: dict[str, Any] | None) -> _Texts:
        mask = _all_there(tokens) if mask is None else mask
        if tokens.ndim == 3:  # one language
            tokens, mask = tokens[:, None], mask[:, None]
            inputs = inputs and {n: x[:, None] if isinstance(x, Tensor) else x for n, x in inputs.items()}
        return cls(tokens, mask, inputs)

    def at(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and mask of some texts."""
        return self.tokens.flatten(0, 1)[number], self.mask.flatten(0, 1)[number]


def _all_there(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)

"""`IRRA`: the parts of its loss, put together (Jiang and Ye, CVPR 2023, arXiv 2303.12501).

    loss = SDM(a, b) + w_mlm * IRR(masked b, tokens of a) + w_id * (CE(W a, identity) + CE(W b, identity)) / 2

IRR and ID are heads of the training only; the trained space is the two encoders and the cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.errors import BadInput, unknown_name
from chiasm.learn.contrastive import info_nce
from chiasm.learn.objectives.irra.interaction import IGNORE, RelationReasoning, mask_words
from chiasm.learn.objectives.irra.matching import cmpm, match_targets, sdm
from chiasm.learn.words import MASK, PAD, UNKNOWN

PARTS = ("sdm", "itc", "cmpm", "id", "mlm")
# Heads that help the encoders; their weight may rise slowly.
_HEADS = ("id", "mlm")


class IRRA(nn.Module):
    """Similarity distribution matching, implicit relation reasoning and identity classification.

    Side ``a`` holds pictures, side ``b`` captions; ``groups`` are the identities.

    Args:
        parts: any of ``"sdm"``, ``"itc"`` (InfoNCE, which takes pairs of one identity for negatives), ``"cmpm"``, ``"id"``,
            ``"mlm"``. Default: ``sdm``, with ``id`` where ``identities`` are given and ``mlm`` where a ``vocabulary`` is.
        width: length D of the vectors and tokens; needed by ``id`` and ``mlm``.
        vocabulary: number of token ids of the captions; needed by ``mlm``.
        identities: group numbers of the training pairs (repetitions do no harm), or their count if they are
            0, 1, ...; needed by ``id``.
        weights: part -> weight; all 1 as in the paper.
        temperature: 0.02, fixed, as in the paper.
        depth, heads: of the interaction encoder; 4 layers, D / 64 heads.
        mask_rate: share of the words that are masked; 0.15.
        mask_id: id of the mask token; that of `chiasm.learn.words` by default. Its token must not be what the text
            encoder pools by (CLIP pools at the largest id).
        special: ids that are never masked.
        factor: weight of matches between different pictures of one identity (the paper's code has 0.3, unused); default
            None: all matches count alike.
        warmup: share of the training over which the weights of ``id`` and ``mlm`` rise from 0; 0 as in the paper.
        parity: padding takes part in the interaction encoder, as in the released code.

    Raises:
        UnknownName: a part that does not exist.
        BadInput: a part without what it needs, or a temperature that is not positive.
    """

    known: Tensor
    # Tokens stay with the captions of their own process when the batch is gathered.
    local = ("a_tokens", "a_mask")

    def __init__(
        self,
        parts: Sequence[str] | None = None,
        *,
        width: int | None = None,
        vocabulary: int | None = None,
        identities: Sequence[int] | np.ndarray | int | None = None,
        weights: Mapping[str, float] | None = None,
        temperature: float = 0.02,
        depth: int = 4,
        heads: int | None = None,
        mask_rate: float = 0.15,
        mask_id: int = MASK,
        special: Sequence[int] = (PAD, UNKNOWN, MASK),
        factor: float | None = None,
        warmup: float = 0.0,
        parity: bool = False,
    ) -> None:
        super().__init__()
        if parts is None:
            given = {"sdm": True, "id": identities is not None, "mlm": vocabulary is not None}
            parts = [part for part, there in given.items() if there]
        self.parts = tuple(dict.fromkeys(parts))
        for name in [*self.parts, *(weights or {})]:
            if name not in PARTS:
                raise unknown_name("part of IRRA", name, PARTS)
        if not self.parts:
            raise BadInput("no parts, so no loss", where="IRRA", fix=f"Use some of {', '.join(PARTS)}")
        needs = {"id": {"identities": identities, "width": width}, "mlm": {"vocabulary": vocabulary, "width": width}}
        for part in self.parts:
            missing = [name for name, value in needs.get(part, {}).items() if value is None]
            if missing:
                raise BadInput(f"the part {part!r} needs {' and '.join(missing)}", where="IRRA")
        if temperature <= 0 or not 0 <= warmup <= 1:
            raise BadInput(f"temperature {temperature}, warmup {warmup}", where="IRRA", fix="Give > 0 and 0..1")
        self.weights = dict.fromkeys(PARTS, 1.0) | dict(weights or {})
        self.scale, self.factor, self.warmup = 1.0 / temperature, factor, warmup
        self.mask_rate, self.mask_id, self.special = mask_rate, mask_id, tuple(special)
        self.vocabulary = vocabulary
        self.strength = 1.0
        listed = range(identities) if isinstance(identities, int) else () if identities is None else identities
        numbers = np.unique(np.asarray(listed, dtype=np.int64))
        if "id" in self.parts and not len(numbers):
            raise BadInput("no identities", where="IRRA")
        self.register_buffer("known", torch.from_numpy(numbers))
        self.classifier: nn.Linear | None = None
        self.reasoning: RelationReasoning | None = None
        if "id" in self.parts and width:
            self.classifier = nn.Linear(width, len(numbers))
            nn.init.normal_(self.classifier.weight, std=0.001)
            nn.init.zeros_(self.classifier.bias)
        if "mlm" in self.parts and width and vocabulary:
            self.reasoning = RelationReasoning(width, vocabulary, depth=depth, heads=heads, parity=parity)

    def on_progress(self, step: int, steps: int) -> None:
        """Raises the weights of the heads during the warm-up."""
        self.strength = min(1.0, step / (self.warmup * steps)) if self.warmup and steps else 1.0

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        groups: Tensor | None = None,
        a_rows: Tensor | None = None,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_inputs: dict[str, Any] | None = None,
        encode: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> dict[str, Tensor]:
        """Parts of the loss, weighted.

        Args:
            a, b: ``[N, D]``, pictures and captions.
            groups: int ``[N]``, identities; default: every pair is its own.
            a_rows: int ``[N]``, which picture it is; used with ``factor``.
            a_tokens, a_mask: ``[N, M, D]`` and bool ``[N, M]``, tokens of the pictures, for ``mlm``.
            b_inputs: what the text encoder read (``input_ids``, ``attention_mask``), for ``mlm``.
            encode: the text encoder, for ``mlm``.

        Raises:
            BadInput: a part lacks what it needs, or an identity is not one of those of the training.
        """
        if len(a) != len(b) or not len(a):
            raise BadInput(f"{len(a)} and {len(b)} rows are not pairs", where="IRRA")
        numbers = torch.arange(len(a), device=a.device) if groups is None else groups
        losses: dict[str, Tensor] = {}
        if "sdm" in self.parts or "cmpm" in self.parts:
            if self.factor is not None and a_rows is None:
                raise BadInput("factor needs the rows of the pictures", where="IRRA", fix="Leave factor out")
            targets = match_targets(numbers) if self.factor is None else match_targets(numbers, a_rows, self.factor)
            if "sdm" in self.parts:
                losses["sdm"] = sdm(a, b, targets, scale=self.scale)
            if "cmpm" in self.parts:
                losses["cmpm"] = cmpm(a, b, targets)
        if "itc" in self.parts:
            unit = (nn.functional.normalize(x, dim=-1) for x in (a, b))
            losses["itc"] = torch.stack([*info_nce(*unit, scale=self.scale).values()]).sum()
        if self.classifier is not None:
            losses["id"] = self._identity(a, b, groups)
        if self.reasoning is not None:
            if a_tokens is None or b_inputs is None or "input_ids" not in b_inputs or encode is None:
                raise BadInput(
                    "the part 'mlm' needs tokens of the pictures and token ids of the captions",
                    where="IRRA",
                    fix="Train towers that give token_embeddings and read input_ids, or leave 'mlm' out",
                )
            losses["mlm"] = self._reason(a_tokens, a_mask, b_inputs, encode)
        return {
            part: loss * self.weights[part] * (self.strength if part in _HEADS else 1.0)
            for part, loss in losses.items()
        }

    def _identity(self, a: Tensor, b: Tensor, groups: Tensor | None) -> Tensor:
        assert self.classifier is not None
        if groups is None:
            raise BadInput("the part 'id' needs groups", where="IRRA")
        label = torch.searchsorted(self.known, groups.contiguous()).clamp_max(len(self.known) - 1)
        strange = self.known[label] != groups
        if bool(strange.any()):
            raise BadInput(
                f"identities {groups[strange].unique().tolist()[:5]} are not those of the training", where="IRRA"
            )
        return (
            nn.functional.cross_entropy(self.classifier(a.float()), label)
            + nn.functional.cross_entropy(self.classifier(b.float()), label)
        ) / 2

    def _reason(
        self,
        a_tokens: Tensor,
        a_mask: Tensor | None,
        inputs: dict[str, Any],
        encode: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> Tensor:
        ids = inputs["input_ids"]
        # Outside of training the same words are masked every time, so that figures can be compared.
        generator = None if self.training else torch.Generator().manual_seed(0)
        masked, labels = mask_words(
            ids,
            inputs.get("attention_mask"),
            vocabulary=int(self.vocabulary or 0),
            mask_id=self.mask_id,
            special=self.special,
            rate=self.mask_rate,
            generator=generator,
        )
        places = labels != IGNORE
        logits = self.guess({**inputs, "input_ids": masked}, places, a_tokens, encode, a_mask)
        if not len(logits):
            return logits.sum()
        return nn.functional.cross_entropy(logits.float(), labels[places])

    def guess(
        self,
        inputs: dict[str, Any],
        places: Tensor,
        a_tokens: Tensor,
        encode: Callable[[dict[str, Any]], dict[str, Any]],
        a_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the words at some places of captions, given the pictures: for inspection, too.

        Args:
            inputs: what the text encoder reads, with the mask in place of the words.
            places: bool ``[N, L]``.
            a_tokens, a_mask: ``[N, M, D]`` and bool ``[N, M]``.
            encode: the text encoder.

        Returns:
            ``[m, vocabulary]``, in the order of ``places.nonzero()``.

        Raises:
            BadInput: the objective has no part ``mlm``.
        """
        if self.reasoning is None:
            raise BadInput("the objective was made without the part 'mlm'", where="IRRA.guess")
        out = encode(inputs)
        return self.reasoning(
            out["token_embeddings"],
            a_tokens,
            places,
            mask=out["attention_mask"].bool(),
            picture_mask=a_mask,
        )

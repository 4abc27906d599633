"""Questions about pictures: two embeddings and a classifier over the frequent answers, or attention in place of the two.

>>> model = as_model(question_encoder(image=768, text=768))            # a projection of its own: 768-d, two layers
>>> train(model, pairs, AnswerHead(answers=400), routes={"a": "text", "b": "image"})    # per_pair holds "answers"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.blocks.alignment import pooled
from chiasm.blocks.cross_attention import MaskedAttention
from chiasm.errors import BadInput, unknown_name
from chiasm.learn.alignment.one_encoder.encoder import OneEncoder

WIDTH = 768
HIDDEN = 512
Reading = Literal["concatenation", "attention"]
FUSIONS: tuple[Reading, ...] = ("concatenation", "attention")


def question_encoder(image: int = 768, text: int = 768, width: int = WIDTH) -> OneEncoder:
    """The encoder of the VQA network: width 768, two layers, four heads, dropout 0.2 in the alignment layers."""
    encoder = OneEncoder({"image": image, "text": text}, width=width, layers=2, dropout=0.1)
    for layer in encoder.align.values():
        for module in layer.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
    return encoder


class AnswerHead(nn.Module):
    """``h = ReLU(Linear([e_question, e_picture]))``, dropout 0.5, ``Linear(512, answers)``; as an objective: cross-entropy.

    Args:
        answers: number of answers.
        width: length of the embeddings.
        hidden: 512.
        dropout: 0.5.
        fusion: ``"concatenation"`` of the two embeddings, or ``"attention"``: the question's tokens look at the picture's,
            and the mean of what they find stands in the place of the picture's embedding.
        heads: of the attention.

    Raises:
        UnknownName: another fusion.
        BadInput: fewer than two answers.
    """

    def __init__(
        self,
        answers: int,
        width: int = WIDTH,
        *,
        hidden: int = HIDDEN,
        dropout: float = 0.5,
        fusion: Reading = "concatenation",
        heads: int = 4,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise unknown_name("fusion", fusion, FUSIONS)
        if answers < 2:
            raise BadInput(f"{answers} answers leave nothing to choose", where="AnswerHead")
        self.attention = MaskedAttention(width, heads) if fusion == "attention" else None
        self.hidden = nn.Linear(2 * width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(hidden, answers)

    def scores(
        self,
        a: Tensor,
        b: Tensor,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[N, answers]``.

        Args:
            a: questions ``[N, D]``.
            b: pictures ``[N, D]``.
            a_tokens, b_tokens: ``[N, L, D]``, for attention.
            a_mask, b_mask: bool ``[N, L]``, True where a token is.

        Raises:
            BadInput: attention without tokens.
        """
        if self.attention is not None:
            if a_tokens is None or b_tokens is None:
                raise BadInput("attention needs tokens of questions and pictures", where="AnswerHead")
            b = pooled(self.attention(a_tokens, b_tokens, b_mask), a_mask)
        return self.leave(self.dropout(self.hidden(torch.cat([a, b], dim=-1)).relu()))

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        answers: Tensor,
        a_tokens: Tensor | None = None,
        a_mask: Tensor | None = None,
        b_tokens: Tensor | None = None,
        b_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``{"answer": cross-entropy}``, the mean over questions with an answer; 0 if none has one.

        Args:
            a, b, a_tokens, a_mask, b_tokens, b_mask: as in `scores`.
            answers: int ``[N]``, or ``[N, K]`` where a question has several (the first counts, -1 fills up).
        """
        scores = self.scores(a, b, a_tokens, a_mask, b_tokens, b_mask)
        first = answers if answers.ndim == 1 else answers[:, 0]
        loss = nn.functional.cross_entropy(scores, first, ignore_index=-1, reduction="sum")
        return {"answer": loss / (first >= 0).sum().clamp_min(1)}


def wups(
    answered: Sequence[Sequence[str]],
    right: Sequence[Sequence[str]],
    similarity: Callable[[str, str], float],
    threshold: float = 0.9,
) -> np.ndarray:
    """Soft accuracy of sets of words (Malinowski and Fritz, NeurIPS 2014, arXiv 1410.0210), ``[N]`` in [0, 1].

    ``min(prod_{a in A} max_{t in T} s(a, t), prod_{t in T} max_{a in A} s(a, t))``; a similarity below the threshold counts a
    tenth. With ``similarity`` an equality it is the share of sets that are equal.

    Args:
        answered: N sets of words.
        right: N sets of words.
        similarity: of two words in [0, 1]; Wu-Palmer similarity in WordNet in the paper.
        threshold: 0.9 and 0.0 are reported.

    Raises:
        BadInput: a different number of answers and truths, or an empty set.
    """
    if len(answered) != len(right):
        raise BadInput(f"{len(answered)} answers to {len(right)} questions", where="wups")
    if not all(answered) or not all(right):
        raise BadInput("an answer without a word", where="wups")

    def near(word: str, others: Sequence[str]) -> float:
        best = max(similarity(word, other) for other in others)
        return best if best >= threshold else 0.1 * best

    return np.array(
        [
            min(float(np.prod([near(w, t) for w in a])), float(np.prod([near(w, a) for w in t])))
            for a, t in zip(answered, right, strict=True)
        ]
    )

"""Vectors of corpora: what an item with a caption is, long documents in parts, and the gap between modalities.

    item vector = alpha * text(caption or transcript) + (1 - alpha) * visual, alpha = 0.2

In a unified index score(q, x) = semantic(q, x) + bias(modality of q, modality of x); where the bias of text exceeds the
differences in meaning, questions in words find text whatever they need. Within one corpus the bias is a constant.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from chiasm.embeddings import unit
from chiasm.errors import BadInput
from chiasm.reason.rag.messages import Passage, Question, Retrieved
from chiasm.reason.rag.pipeline import Retriever
from chiasm.reason.rag.sentences import sentence_spans

# The paper's weight of an item's words.
ALPHA = 0.2
# The key of ``meta`` under which a part of a document names the whole.
PARENT = "parent"


def mixed(text: np.ndarray, visual: np.ndarray, *, alpha: float = ALPHA, parity: bool = False) -> np.ndarray:
    """Item vectors from those of their words and of their content, ``[N, D]``.

    Args:
        text: float ``[N, D]``, of captions or transcripts; a zero row has none and leaves the content alone.
        visual: float ``[N, D]``.
        alpha: weight of the words, in [0, 1].
        parity: as the released code: not scaled to length 1, so that ``alpha`` changes lengths and with them ranks.

    Raises:
        BadInput: shapes that differ, or ``alpha`` out of range.
    """
    text, visual = np.asarray(text, np.float32), np.asarray(visual, np.float32)
    if text.shape != visual.shape or text.ndim != 2 or not 0 <= alpha <= 1:
        raise BadInput(f"text {text.shape}, visual {visual.shape}, alpha {alpha}", where="mixed")
    said = np.linalg.norm(text, axis=1, keepdims=True) > 0
    together = np.where(said, alpha * text + (1 - alpha) * visual, visual)
    return together.astype(np.float32) if parity else unit(together)


def parts(document: Passage, *, words: int = 350) -> list[Passage]:
    """A long document in parts of whole sentences, each of which knows the whole by ``meta["parent"]``.

    350 words are about the paper's 512 tokens. A document that is short enough stays as it is.

    Raises:
        BadInput: ``words < 1``.
    """
    if words < 1:
        raise BadInput(f"words={words}", where="parts")
    pieces: list[tuple[int, int]] = []
    for start, end in sentence_spans(document.text):
        if pieces and len(document.text[pieces[-1][0] : end].split()) <= words:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
    if len(pieces) <= 1:
        return [document]
    return [
        replace(
            document,
            id=f"{document.id}#{number}",
            text=document.text[start:end],
            meta={**document.meta, PARENT: document.id, "number": number},
        )
        for number, (start, end) in enumerate(pieces, start=1)
    ]


class Parents:
    """A retriever that returns a whole once, however many of its parts were found.

    Args:
        retriever: finds parts (and wholes).
        wholes: the documents by id; one that is missing is represented by its best part, under the whole's id.
    """

    def __init__(self, retriever: Retriever, wholes: dict[str, Passage] | None = None) -> None:
        self.retriever, self.wholes = retriever, wholes or {}

    def __call__(self, question: Question, corpus: str, k: int, /) -> Retrieved:
        depth = k
        while True:
            got = self.retriever(question, corpus, depth)
            found = got if isinstance(got, Retrieved) else Retrieved(list(got))
            kept: dict[Hashable, Passage] = {}
            for passage in found.passages:
                whole = self._whole(passage)
                kept.setdefault((whole.corpus, whole.id), whole)
            # Many parts of few documents: look deeper, until there is no more.
            if len(kept) >= k or len(found.passages) < depth:
                return Retrieved(list(kept.values())[:k], found.nothing_here, found.p_value)
            depth *= 2

    def _whole(self, passage: Passage) -> Passage:
        parent = passage.meta.get(PARENT)
        if parent is None:
            return passage
        whole = self.wholes.get(str(parent), replace(passage, id=str(parent)))
        return replace(whole, score=passage.score, relevance=passage.relevance, corpus=passage.corpus)


def split_all(documents: Sequence[Passage], *, words: int = 350) -> tuple[list[Passage], dict[str, Passage]]:
    """The parts of all documents, and the documents by id, as `Parents` takes them."""
    return [part for document in documents for part in parts(document, words=words)], {d.id: d for d in documents}


def gap(vectors: np.ndarray, modality: Sequence[str], queries: np.ndarray) -> dict[str, float]:
    """Mean inner product of queries with the items of each modality: what a unified index adds before any meaning.

    Args:
        vectors: ``[N, D]``.
        modality: N names.
        queries: ``[Q, D]``, of questions that are spread over all modalities.
    """
    names = np.asarray(modality)
    mean = np.asarray(queries, np.float64).mean(0)
    return {
        str(name): float(np.asarray(vectors[names == name], np.float64).mean(0) @ mean) for name in dict.fromkeys(names)
    }


def closed(vectors: np.ndarray, modality: Sequence[str]) -> np.ndarray:
    """Vectors whose modalities have the same mean, of length 1: the simplest closing of the gap, ``[N, D]``.

    Each modality's mean is subtracted and the mean over all items added.
    """
    out = np.array(vectors, np.float32)
    names = np.asarray(modality)
    overall = out.mean(0)
    for name in set(names.tolist()):
        out[names == name] += overall - out[names == name].mean(0)
    return unit(out)

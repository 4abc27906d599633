"""`Corpora`: passages in memory, in named corpora, searched exactly. For a store use `StoreRetriever`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chiasm.embeddings import check_finite
from chiasm.errors import BadInput, unknown_name
from chiasm.kernels.topk import topk_inner
from chiasm.reason.rag.encoder import text_encoder
from chiasm.reason.rag.messages import Passage, Question
from chiasm.reason.rag.pipeline import EVERYTHING
from chiasm.reason.rag.words import content_words

# The corpus of passages that name none.
DEFAULT = "documents"


class Corpora:
    """A retriever over passages in memory.

    Passages are compared by vectors: those given, those of an encoder, or, without either, by the words they share with
    the question (tf-idf over all corpora). A passage whose id its corpus has already takes the old one's place.

        >>> corpora = Corpora(encoder=chiasm.load("pocket"))
        >>> corpora.add(passages, corpus="reports")
        >>> corpora(Question("who runs the plant?"), "reports", 5)

    Args:
        corpora: passages by the name of their corpus.
        encoder: a `chiasm.Space` or a function ``texts -> [N, D]``; needed for vectors of passages that are added
            without, and for questions without.
    """

    def __init__(self, corpora: Mapping[str, Iterable[Passage]] | None = None, *, encoder: Any = None) -> None:
        self.encoder = None if encoder is None else text_encoder(encoder)
        self._passages: dict[tuple[str, str], Passage] = {}
        self._given: dict[tuple[str, str], np.ndarray] = {}
        self._index: _Index | None = None
        self._lock = threading.Lock()
        for name, passages in (corpora or {}).items():
            self.add(passages, corpus=name)

    @property
    def names(self) -> tuple[str, ...]:
        """The corpora, in the order of their first passage."""
        return tuple(dict.fromkeys(corpus for corpus, _ in self._passages))

    def __len__(self) -> int:
        return len(self._passages)

    def add(self, passages: Iterable[Passage], *, corpus: str = "", vectors: Any = None) -> None:
        """Adds passages.

        Args:
            passages: with ids that are unique within their corpus.
            corpus: where they go; by default to the corpus that each names, else ``"documents"``.
            vectors: float ``[N, D]``, one per passage, as they are (not scaled); by default the encoder makes them.

        Raises:
            BadInput: vectors that do not fit, or some passages with vectors and others without.
        """
        listed = [replace(p, corpus=corpus or p.corpus or DEFAULT) for p in passages]
        if vectors is not None:
            vectors = np.asarray(vectors, np.float32)
            if vectors.ndim != 2 or len(vectors) != len(listed):
                raise BadInput(f"{len(listed)} passages, vectors of shape {vectors.shape}", where="Corpora.add")
            check_finite(vectors, "Corpora.add")
        elif self.encoder is not None and listed:
            vectors = self.encoder([p.text for p in listed], "document")
        if not listed:
            return
        with self._lock:
            if self._passages and bool(self._given) != (vectors is not None):
                raise BadInput("some passages have vectors and others have none", where="Corpora.add")
            if vectors is not None and self._given and len(next(iter(self._given.values()))) != vectors.shape[1]:
                raise BadInput(f"vectors of length {vectors.shape[1]} among others", where="Corpora.add")
            for place, passage in enumerate(listed):
                self._passages[passage.corpus, passage.id] = passage
                if vectors is not None:
                    self._given[passage.corpus, passage.id] = vectors[place]
            self._index = None

    def __call__(self, question: Question, corpus: str, k: int, /) -> list[Passage]:
        """The k best passages of a corpus (``""``: of all), best first; without vectors only those that share a word.

        Raises:
            UnknownName: there is no such corpus.
            BadInput: passages have vectors, but the question has none and there is no encoder.
        """
        if not self._passages:
            return []
        if corpus != EVERYTHING and corpus not in self.names:
            raise unknown_name("corpus", corpus, self.names)
        with self._lock:
            if self._index is None:
                self._index = _Index(self._passages, self._given)
            index = self._index
        return index.search(self._question_vector(question, index), corpus, k)

    def _question_vector(self, question: Question, index: _Index) -> np.ndarray:
        if not index.dense:
            return index.words(question.text)
        if question.vector is not None:
            vector = np.asarray(question.vector, np.float32).reshape(-1)
            if len(vector) != index.vectors.shape[1] or not np.isfinite(vector).all():
                raise BadInput(
                    f"the question's vector has length {len(vector)} (or NaN), passages {index.vectors.shape[1]}",
                    where="Corpora",
                )
            return vector
        if self.encoder is None:
            raise BadInput("the question has no vector", where="Corpora", fix="Give Corpora an encoder")
        return self.encoder([question.text], "query")[0]


class _Index:
    """All passages in one array, corpus by corpus."""

    def __init__(
        self, passages: Mapping[tuple[str, str], Passage], given: Mapping[tuple[str, str], np.ndarray]
    ) -> None:
        # Rows of a corpus lie together, so that a search in it reads a slice.
        self.passages = sorted(passages.values(), key=_place(passages))
        names = [p.corpus for p in self.passages]
        self.rows = {name: (names.index(name), names.index(name) + names.count(name)) for name in dict.fromkeys(names)}
        self.dense = bool(given)
        if self.dense:
            self.vectors = np.stack([given[p.corpus, p.id] for p in self.passages])
        else:
            self._fit_words()

    def _fit_words(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        options: dict[str, Any] = {"token_pattern": None, "dtype": np.float32}
        self.vectorizer = TfidfVectorizer(tokenizer=content_words, lowercase=False, sublinear_tf=True, **options)
        texts = [_searchable(p) for p in self.passages]
        # A corpus of pictures without words has no vocabulary; nothing is found in it.
        self.matrix = self.vectorizer.fit_transform(texts) if any(content_words(text) for text in texts) else None

    def words(self, text: str) -> Any:
        return None if self.matrix is None else self.vectorizer.transform([text])

    def search(self, question: Any, corpus: str, k: int) -> list[Passage]:
        first, last = (0, len(self.passages)) if corpus == EVERYTHING else self.rows[corpus]
        if self.dense:
            scores, rows = topk_inner(question[None, :], self.vectors[first:last], k)
            found = zip((rows[0] + first).tolist(), scores[0].tolist(), strict=True)
            return [replace(self.passages[row], score=score) for row, score in found if row >= first]
        if self.matrix is None:
            return []
        scores = np.asarray((self.matrix[first:last] @ question.T).todense()).ravel()
        order = np.argsort(-scores, kind="stable")[:k]
        return [replace(self.passages[first + row], score=float(scores[row])) for row in order if scores[row] > 0]


def _place(passages: Mapping[tuple[str, str], Passage]) -> Any:
    """Sorts by corpus in order of first meeting, then by order of adding."""
    order = {name: place for place, name in enumerate(dict.fromkeys(corpus for corpus, _ in passages))}
    added = {key: place for place, key in enumerate(passages)}
    return lambda p: (order[p.corpus], added[p.corpus, p.id])


def _searchable(passage: Passage) -> str:
    facts: Sequence[Any] = [passage.meta.get(name, "") for name in ("title", "heading", "caption")]
    return " ".join(str(part) for part in (*facts, passage.text) if part)

"""A store read in words: every item a sparse vector over a vocabulary, found through an inverted index, with the reason.

    >>> reader = StoreWords(store, ["dog", "cat", "grass", "coffee", "music"])
    >>> for hit in reader.search("a dog in a meadow", 3):
    ...     print(hit.uri, hit.why)                           # matched on: dog 0.55, grass 0.21

Without training, a word is as strong as the item's vector and the space's vector of the word agree; a trained head
(`chiasm.learn.objectives.lexvla`) can take that place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import csr_array, vstack

from chiasm.errors import BadInput
from chiasm.items import MODALITIES
from chiasm.learn.objectives.lexvla.space_words import SpaceWords
from chiasm.search.word_index import Match, WordIndex

if TYPE_CHECKING:
    from chiasm.search.store import Store

# (vectors [n, D], "item" or "query") -> [n, V], non-negative, sparse or dense
Head = Callable[[np.ndarray, Literal["item", "query"]], Any]
_ROWS = 2048


@dataclass(frozen=True)
class WordHit:
    """An item found by words.

    Args:
        id, uri, part, modality: as in `Hit`.
        score: inner product of the sparse vectors.
        why: what the score consists of.
    """

    id: str
    uri: str
    part: str
    modality: str
    score: float
    why: Match


class StoreWords:
    """The items a store holds now, in words; items that come later are in the next one.

    Args:
        store: an open store.
        words: the vocabulary, in the order of the head.
        head: makes word vectors of the store's vectors and of encoded queries; default `SpaceWords`.
        modality: only items of this kind.
        **options: of `SpaceWords`.

    Raises:
        BadInput: the head's vectors do not have one entry for each word, or options beside a head.
    """

    def __init__(
        self,
        store: Store,
        words: Sequence[str],
        *,
        head: Head | None = None,
        modality: str | None = None,
        **options: Any,
    ) -> None:
        if head is not None and options:
            raise BadInput(f"{', '.join(options)} beside a head", where="StoreWords")
        self.store = store
        self.head: Head = SpaceWords(store.space, words, **options) if head is None else head
        self.snapshot = store.snapshot()
        rows = np.empty(0, np.int64) if self.snapshot is None else np.flatnonzero(self.snapshot.alive)
        if self.snapshot is not None and modality is not None:
            if modality not in MODALITIES:
                raise BadInput(f"no modality {modality!r}", where="StoreWords", fix=f"One of {', '.join(MODALITIES)}")
            rows = rows[self.snapshot.modality[rows] == MODALITIES.index(modality)]
        self.rows = rows
        parts: list[Any] = [csr_array((0, len(words)), dtype=np.float32)]
        for start in range(0, len(rows), _ROWS):
            assert self.snapshot is not None
            found = self.head(np.asarray(self.snapshot.vectors[rows[start : start + _ROWS]]), "item")
            parts.append(_matrix(found, len(words)))
        self.index = WordIndex(vstack(parts, format="csr"), words)

    def __len__(self) -> int:
        return len(self.index)

    def search(self, query: str, k: int = 10) -> list[WordHit]:
        """The items that share most with a query in words; fewer than k if fewer share a word.

        Args:
            query: words.
            k: how many.

        Raises:
            BadInput: an empty query, or ``k < 1``.
        """
        if not query.strip():
            raise BadInput("the query is empty", where="StoreWords.search")
        vectors = self.store.space.encode([query], role="query").vectors
        asked = _matrix(self.head(np.asarray(vectors), "query"), self.index.size)
        scores, found = self.index.search(asked, k)
        places = found[0][found[0] >= 0]
        if self.snapshot is None or not len(places):
            return []
        records = self.snapshot.fetch(self.rows[places], ("id", "uri", "part", "modality"))
        return [
            WordHit(**record, score=float(score), why=self.index.explain(asked, int(place)))
            for record, score, place in zip(records, scores[0], places)
        ]


def _matrix(found: Any, size: int) -> Any:
    """What a head gives as a scipy matrix."""
    if hasattr(found, "detach"):
        found = found.detach().cpu().to_dense().float().numpy()
    matrix: Any = csr_array(found)
    if matrix.shape[1] != size:
        raise BadInput(f"the head gives {matrix.shape[1]} entries for {size} words", where="StoreWords")
    return matrix

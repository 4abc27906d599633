"""`WordIndex`: sparse vectors over a vocabulary in inverted lists, word -> (item, weight), with exact search that can say why.

    >>> index = WordIndex(vectors, words)                     # [N, V], sparse or dense, no negative entry
    >>> scores, rows = index.search(queries, 10)
    >>> print(index.explain(queries[0], rows[0, 0]))          # matched on: dog 0.80, grass 0.40

The score of an item is the inner product of its vector and the query's. Only the lists of the query's words are read; a
word that many items have is also kept as one number an item, which adds up faster than a list. Search over the ``text`` column of a store is `chiasm.search.lexical`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import _sparsetools, csc_array, csr_array, issparse

from chiasm.errors import BadInput

_STEPS = 127
# Blocks over which the k-th best score is bounded have so many items.
_BLOCK = 64
# A word that this share of the items has: adding one number an item is as quick as going through the list (measured).
_COMMON = 1 / 4
# With fewer entries than this share of the items, going through those that are touched beats going through all.
_RARE = 1 / 8


@dataclass(frozen=True)
class Match:
    """Why an item was found.

    Args:
        words: ``(word, what it adds to the score)``, the largest first.
    """

    words: tuple[tuple[str, float], ...]

    @property
    def score(self) -> float:
        """The sum of all contributions: the item's score."""
        return float(sum(part for _, part in self.words))

    def __str__(self) -> str:
        if not self.words:
            return "no word in common"
        return "matched on: " + ", ".join(f"{word} {part:.2f}" for word, part in self.words)


class WordIndex:
    """An inverted index over non-negative sparse vectors.

    Args:
        vectors: ``[N, V]``: a scipy sparse matrix, a torch tensor (dense or sparse, as `SparseEncoder.encode` gives it) or
            an array. Zeros are not stored.
        words: V names for `explain`; by default the numbers.
        int8: keep weights as 8-bit steps of each list's largest weight (5 instead of 8 bytes an entry); an entry is then off
            by at most 1/254 of that.

    Raises:
        BadInput: negative, infinite or NaN entries, or a number of words that does not fit.
    """

    def __init__(self, vectors: Any, words: Sequence[str] | None = None, *, int8: bool = False) -> None:
        lists: Any = csc_array(_sparse(vectors, "WordIndex"))
        lists.sum_duplicates()
        lists.eliminate_zeros()
        self.count, self.size = (int(n) for n in lists.shape)
        if words is not None and len(words) != self.size:
            raise BadInput(f"{len(words)} words for vectors of length {self.size}", where="WordIndex")
        self.words = None if words is None else tuple(words)
        self._starts = lists.indptr.astype(np.int64)
        self._items = lists.indices.astype(np.int32)
        weights = lists.data.astype(np.float32)
        lengths = np.diff(self._starts)
        self._largest = np.zeros(self.size, np.float32)
        filled = lengths > 0
        if filled.any():
            self._largest[filled] = np.maximum.reduceat(weights, self._starts[:-1][filled])
        self._steps: np.ndarray | None = None
        if int8:
            self._steps = self._largest / _STEPS
            unit = np.repeat(np.where(filled, self._steps, 1), lengths)
            # An entry that is there stays there.
            weights = np.clip(np.rint(weights / unit), 1, _STEPS).astype(np.int8)
        self._weights = weights
        self._spread_out()

    def __len__(self) -> int:
        return self.count

    @property
    def lengths(self) -> np.ndarray:
        """int ``[V]``: items in each word's list; a word in nearly all items costs time and tells nothing."""
        return self._lengths

    @property
    def entries(self) -> int:
        """Entries of all lists."""
        return len(self._items)

    @property
    def nbytes(self) -> int:
        """Bytes of the lists and of the columns of common words."""
        return int(self._items.nbytes + self._weights.nbytes + self._starts.nbytes + self._columns.nbytes)

    def search(self, queries: Any, k: int = 10, *, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The best items for each query, exactly.

        Args:
            queries: ``[Q, V]`` (or one ``[V]``), as in the constructor.
            k: items a query.
            allowed: bool ``[N]``, False hides an item.

        Returns:
            Scores float32 ``[Q, min(k, N)]``, falling, and int64 rows; -inf and -1 where fewer items share a word with the
            query. Equal scores come in the order of the rows.

        Raises:
            BadInput: another vocabulary, a negative entry, ``k < 1``, or a filter of the wrong length.
        """
        asked: Any = csr_array(_sparse(queries, "WordIndex.search"))
        if asked.shape[1] != self.size or k < 1:
            raise BadInput(
                f"queries over {asked.shape[1]} words, k={k}; the index has {self.size} words", where="WordIndex.search"
            )
        if allowed is not None and (allowed := np.asarray(allowed, bool)).shape != (self.count,):
            raise BadInput(f"allowed has shape {allowed.shape}, not [{self.count}]", where="WordIndex.search")
        asked.sum_duplicates()
        k = min(k, self.count)
        scores = np.full((asked.shape[0], k), -np.inf, np.float32)
        rows = np.full((asked.shape[0], k), -1, np.int64)
        if k:
            total, scratch = np.zeros((2, self.count), np.float32)
            for q in range(asked.shape[0]):
                part = slice(asked.indptr[q], asked.indptr[q + 1])
                words = asked.indices[part]
                self._sum(words, asked.data[part], total, scratch)
                if allowed is not None:
                    total[~allowed] = 0
                if self._lengths[words].sum() < _RARE * self.count:
                    best, found, touched = self._best_touched(words, total, k)
                    total[touched] = 0
                else:
                    best, found = _best(total, k)
                    total.fill(0)
                scores[q, : len(found)], rows[q, : len(found)] = best, found
        return scores, rows

    def explain(self, query: Any, row: int, most: int | None = None) -> Match:
        """Which words an item was found by.

        Args:
            query: ``[V]`` or ``[1, V]``.
            row: the item.
            most: only the weightiest so many words.

        Raises:
            BadInput: a row or a vocabulary that is not the index's.
        """
        asked: Any = csr_array(_sparse(query, "WordIndex.explain"))
        if asked.shape != (1, self.size) or not 0 <= row < self.count:
            raise BadInput(
                f"query {asked.shape}, row {row}", where="WordIndex.explain", fix=f"Rows: 0 to {self.count - 1}"
            )
        parts = []
        for word, weight in zip(asked.indices, asked.data):
            given = float(self._look_up(int(word), np.array([row], np.int32))[0]) * float(weight)
            if given > 0:
                parts.append((self.words[word] if self.words else str(word), given))
        return Match(tuple(sorted(parts, key=lambda part: (-part[1], part[0]))[:most]))

    def save(self, path: str | Path) -> None:
        """Writes one ``.safetensors`` file."""
        from safetensors.numpy import save_file

        arrays = {"starts": self._starts, "items": self._items, "weights": self._weights, "largest": self._largest}
        about = {"count": str(self.count), "words": json.dumps(self.words)}
        save_file(arrays, path, metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> WordIndex:
        """Reads what `save` wrote.

        Raises:
            BadInput: there is no such file, or it holds something else.
        """
        from safetensors import SafetensorError, safe_open

        index = cls.__new__(cls)
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata()
                index.count, words = int(about["count"]), json.loads(about["words"])
                index._starts, index._items = file.get_tensor("starts"), file.get_tensor("items")
                index._weights, index._largest = file.get_tensor("weights"), file.get_tensor("largest")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"no word index here ({error})", where=str(path)) from error
        index.size = len(index._starts) - 1
        index.words = None if words is None else tuple(words)
        index._steps = index._largest / _STEPS if index._weights.dtype == np.int8 else None
        index._spread_out()
        return index

    def _spread_out(self) -> None:
        """Makes the columns ``[c, N]`` of the words that many items have."""
        self._lengths = np.diff(self._starts)
        common = np.flatnonzero((self.lengths > _COMMON * self.count) & (self.lengths > _BLOCK))
        self._columns = np.zeros((len(common), self.count), self._weights.dtype)
        self._column_of = dict(zip(common.tolist(), range(len(common))))
        for word, column in self._column_of.items():
            part = slice(self._starts[word], self._starts[word + 1])
            self._columns[column, self._items[part]] = self._weights[part]

    def _sum(self, words: np.ndarray, weights: np.ndarray, total: np.ndarray, scratch: np.ndarray) -> None:
        """Adds what these words give each item to ``total`` ``[N]``."""
        weights = np.asarray(weights, np.float32)
        if self._steps is not None:
            weights = weights * self._steps[words]
        for i, word in enumerate(words.tolist()):
            column = self._column_of.get(word)
            if column is not None:
                total += np.multiply(self._columns[column], weights[i], out=scratch)
                continue
            start, stop = self._starts[word], self._starts[word + 1]
            listed = self._weights[start:stop].astype(np.float32, copy=False)
            ends = np.array([0, stop - start], np.int32)
            # A matrix with one column, without the copies and checks that cost more than the product:
            # total[items] += listed * weight.
            _sparsetools.csc_matvec(self.count, 1, ends, self._items[start:stop], listed, weights[i : i + 1], total)

    def _best_touched(self, words: np.ndarray, total: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`_best` among the items that have one of the words, and these items (several times, if they have several)."""
        lists = [self._items[self._starts[word] : self._starts[word + 1]] for word in words]
        touched = np.concatenate([*lists, self._items[:0]])
        values = total[touched]
        # An item is there once a list at most, so so many places hold at least k items.
        few = k * len(lists)
        if few < len(values):
            floor = np.partition(values, len(values) - few)[len(values) - few]
            items = np.unique(touched[values >= floor])
        else:
            items = np.unique(touched)
        best, place = _best(total[items], k)
        return best, items[place], touched

    def _look_up(self, word: int, items: np.ndarray) -> np.ndarray:
        """float32 ``[n]``: the weight of a word in some items (int32, rising); 0 where it is not."""
        part = slice(self._starts[word], self._starts[word + 1])
        listed = self._items[part]
        if not len(listed):
            return np.zeros(len(items), np.float32)
        place = np.minimum(np.searchsorted(listed, items), len(listed) - 1)
        found = np.where(listed[place] == items, self._weights[part][place], 0).astype(np.float32)
        return found if self._steps is None else found * self._steps[word]


def _kth_bound(scores: np.ndarray, k: int) -> float:
    """A lower bound of the k-th largest score (0 if there are few): the k-th largest of the largest in each block."""
    blocks = len(scores) // _BLOCK
    if blocks < k:
        return float(np.partition(scores, len(scores) - k)[len(scores) - k])
    # Item i lies in block i % blocks, so that the largest of all blocks come out of one vectorized pass.
    largest = scores[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0)
    return float(np.partition(largest, blocks - k)[blocks - k])


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest positive scores, falling, and their places; equal scores in the order of their places."""
    k = min(k, len(scores))
    if not k:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    floor = _kth_bound(scores, k)
    places = np.flatnonzero(scores >= floor) if floor > 0 else np.flatnonzero(scores > 0)
    values = scores[places]
    order = np.lexsort((places, -values))[:k]
    return values[order], places[order]


def _sparse(vectors: Any, where: str) -> Any:
    """A scipy sparse matrix ``[N, V]`` of anything with rows, checked."""
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().cpu()
        if vectors.layout.is_sparse if hasattr(vectors.layout, "is_sparse") else vectors.is_sparse:
            vectors = vectors.coalesce()
            if vectors.ndim == 1:
                vectors = vectors.unsqueeze(0).coalesce()
            indices, shape = vectors.indices().numpy(), tuple(vectors.shape)
            vectors = csr_array((vectors.values().float().numpy(), (indices[0], indices[1])), shape=shape)
        else:
            vectors = vectors.to_dense().float().numpy()
    if not issparse(vectors):
        vectors = np.atleast_2d(np.asarray(vectors, np.float32))
        if vectors.ndim != 2:
            raise BadInput(f"vectors of shape {vectors.shape}", where=where, fix="Give [N, V]")
        vectors = csr_array(vectors)
    values = vectors.data
    if len(values) and (not np.isfinite(values).all() or values.min() < 0):
        raise BadInput("negative, infinite or NaN weights", where=where, fix="Weights of words are numbers from 0 up")
    return vectors

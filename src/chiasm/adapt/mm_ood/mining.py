"""Negative labels: words that lie far from all known classes (NegMining, arXiv 2403.20078).

    d(c) = 0.95-quantile over the K known labels of cos(c, t_k);   of every kind of word keep the 15 % with the smallest d

A quantile instead of the maximum bears one odd label. The candidates are any list of words: the paper takes the nouns and
adjectives of WordNet (about 70,000 phrases, of which about 10,000 remain); none is shipped here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from chiasm.errors import BadInput
from chiasm.measure.vectors import as_rows, same_dim, to_numpy

# Share of the words that is kept, and the quantile of the similarity to the known labels, of the NegLabel paper.
SHARE, QUANTILE = 0.15, 0.95


def name_similarity(candidates: Any, texts: Any, *, quantile: float = QUANTILE, chunk: int = 8192) -> np.ndarray:
    """d(c), float32 ``[M]``: the quantile over the known labels of each candidate's cosine to them.

    Args:
        candidates: ``[M, D]``.
        texts: ``[K, D]``, K >= 1.
        quantile: 0 .. 1; 1 is the maximum.
        chunk: candidates a block.

    Raises:
        BadInput: no known label, widths that differ, NaN, or a quantile outside 0 .. 1.
    """
    candidates, texts = to_numpy(as_rows(candidates, "candidates")), to_numpy(as_rows(texts, "texts"))
    same_dim(candidates, texts, "candidates and texts")
    if not 0 <= quantile <= 1:
        raise BadInput(f"quantile {quantile} is outside 0..1", where="name_similarity")
    if not len(texts):
        raise BadInput("no known label", where="name_similarity")
    parts = [
        np.quantile(candidates[i : i + chunk] @ texts.T, quantile, axis=1) for i in range(0, len(candidates), chunk)
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def mine_negatives(
    candidates: Any,
    texts: Any,
    *,
    words: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    share: float = SHARE,
    quantile: float = QUANTILE,
    chunk: int = 8192,
) -> np.ndarray:
    """Rows of the negative labels among candidates, int64, farthest first within each kind.

    Args:
        candidates: ``[M, D]`` vectors of candidate words.
        texts: ``[K, D]`` vectors of the known labels, of the same tower and prompt.
        words, classes: the candidates and the known labels as words; candidates that are a class name (upper case, ``_`` and
            ``-`` do not matter) and repeated words are left out.
        kinds: kind of each candidate (``"noun"``, ``"adjective"``); the share is taken of each kind. Default: all one kind.
        share: share that is kept of a kind, rounded up; in (0, 1].
        quantile, chunk: of `name_similarity`.

    Raises:
        BadInput: nothing left, a share outside (0, 1], or lists of the wrong length.
    """
    if not 0 < share <= 1:
        raise BadInput(f"share {share} is outside (0, 1]", where="mine_negatives")
    distance = name_similarity(candidates, texts, quantile=quantile, chunk=chunk)
    for name, given in (("words", words), ("kinds", kinds)):
        if given is not None and len(given) != len(distance):
            raise BadInput(f"{len(given)} {name} for {len(distance)} candidates", where="mine_negatives")
    allowed = np.ones(len(distance), dtype=bool)
    if words is not None:
        plain = [_plain(word) for word in words]
        known = {_plain(name) for name in classes or ()}
        first = {word: row for row, word in reversed(list(enumerate(plain)))}
        allowed = np.array([first[word] == row and word not in known for row, word in enumerate(plain)], dtype=bool)
    kind = np.zeros(len(distance), dtype=int) if kinds is None else np.unique(np.asarray(kinds), return_inverse=True)[1]
    kept = []
    for one in range(int(kind.max()) + 1 if len(kind) else 0):
        rows = np.flatnonzero(allowed & (kind == one))
        order = rows[np.argsort(distance[rows], kind="stable")]
        kept.append(order[: math.ceil(share * len(order) - 1e-9)])
    found = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    if not len(found):
        raise BadInput(
            "no candidate is left", where="mine_negatives", fix="Give more words than the classes' own names"
        )
    return found


def _plain(word: str) -> str:
    return " ".join(word.replace("_", " ").replace("-", " ").casefold().split())


@dataclass(frozen=True)
class NegativeLabels:
    """Mined words, as `NegativeLabels.mined` makes them, kept as a file.

    Args:
        words: M words.
        vectors: float32 ``[M, D]``, of the text tower that they were mined with.
        similarity: float32 ``[M]``, d(c).
    """

    words: tuple[str, ...]
    vectors: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def mined(
        cls,
        classes: Sequence[str],
        words: Sequence[str],
        encode: Callable[[list[str]], Any],
        *,
        template: str = "The nice {}",
        kinds: Sequence[str] | None = None,
        share: float = SHARE,
        quantile: float = QUANTILE,
        cache: str | Path | None = None,
        encoder: str = "",
    ) -> NegativeLabels:
        """Mines negative labels for a label set, once.

        Args:
            classes: the known labels.
            words: candidates.
            encode: texts -> vectors ``[N, D]``; the PRE-TRAINED text tower (after fine-tuning, encode `words` again).
            template: what is encoded of a word; the paper's inference prompt.
            kinds, share, quantile: of `mine_negatives`.
            cache: folder; the same label set, words, settings and ``encoder`` are read from there instead.
            encoder: name of the tower, part of the key of the cache.

        Raises:
            BadInput: no classes, no words, or nothing left.
        """
        if isinstance(classes, str) or isinstance(words, str) or not len(classes) or not len(words):
            raise BadInput(
                "one text is no list"
                if isinstance(classes, str) or isinstance(words, str)
                else f"{len(classes)} classes and {len(words)} words",
                where="NegativeLabels.mined",
                fix="Give two lists with at least one word each",
            )
        key = json.dumps([list(classes), list(words), list(kinds or ()), template, share, quantile, encoder])
        path = (
            None
            if cache is None
            else Path(cache) / f"negatives-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        )
        if path is not None and path.exists():
            return cls.load(path)
        known, candidates = (
            to_numpy(as_rows(encode([template.replace("{}", w.replace("_", " ")) for w in several]), "encode"))
            for several in (classes, words)
        )
        rows = mine_negatives(
            candidates, known, words=words, classes=classes, kinds=kinds, share=share, quantile=quantile
        )
        similarity = name_similarity(candidates[rows], known, quantile=quantile)
        found = cls(tuple(str(words[int(row)]) for row in rows), candidates[rows], similarity)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            found.save(path)
        return found

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file; the words are in its header."""
        arrays = {"vectors": np.ascontiguousarray(self.vectors), "similarity": np.ascontiguousarray(self.similarity)}
        save_file(arrays, path, metadata={"words": json.dumps(self.words)})

    @classmethod
    def load(cls, path: str | Path) -> NegativeLabels:
        """Reads what `save` wrote.

        Raises:
            BadInput: no such file, or one that holds something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).exists():
            raise BadInput("no negative labels here", where=str(path), fix="NegativeLabels.mined makes and saves some")
        try:
            with safe_open(str(path), "numpy") as file:
                words = json.loads((file.metadata() or {})["words"])
            arrays = load_file(path)
            return cls(tuple(words), arrays["vectors"], arrays["similarity"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise BadInput(f"no saved negative labels ({error})", where=str(path), fix="Mine them again") from error

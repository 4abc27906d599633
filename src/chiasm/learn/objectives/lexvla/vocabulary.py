"""The words of the space: which of a tokenizer's entries mean something, and the codebook that stands for them.

>>> vocabulary = Vocabulary.of(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
>>> codebook, axes = codebook_of(embeddings, vocabulary, dim=256)     # hidden states go through `axes` too
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from chiasm.errors import BadInput, unknown_name

# How tokenizers mark the start of a word (SentencePiece, byte-level BPE) and its continuation (WordPiece).
_STARTS = ("\u2581", "\u0120")
_CONTINUES = "##"
_SPECIAL = re.compile(r"<.*>|\[.*\]|\d+")
# How a piece that continues a word is shown.
_PIECE = "-"


@dataclass(frozen=True)
class Vocabulary:
    """V words.

    Args:
        words: their names.
        ids: int ``[V]``, the entry of the tokenizer (the row of its embedding table) of each.
    """

    words: tuple[str, ...]
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def of(
        cls,
        tokens: Sequence[str],
        *,
        pieces: bool = False,
        shortest: int = 2,
        function_words: bool = True,
    ) -> Vocabulary:
        """The entries of a tokenizer that mean something: no special and byte tokens, numbers, punctuation, non-words.

        Args:
            tokens: all entries in order, as the tokenizer writes them (``"\u2581dog"``, ``"\u0120dog"``, ``"##ing"``).
            pieces: keep what continues a word, shown as ``-ing``. By default whole words only, since a piece alone explains
                nothing.
            shortest: letters a word needs (2 [inferred]: single letters are mostly the rest of something).
            function_words: False leaves out "the", "of", ... (the list of scikit-learn).

        Raises:
            BadInput: no entry is left.
        """
        marked = any(token.startswith(_STARTS) for token in tokens)
        words, ids, seen = [], [], set()
        for i, token in enumerate(tokens):
            starts = token.startswith(_STARTS) if marked else not token.startswith(_CONTINUES)
            bare = token.removeprefix(_CONTINUES).lstrip("".join(_STARTS))
            inside = bare.replace("'", "").replace("-", "")
            if _SPECIAL.fullmatch(token) or not inside.isalpha() or len(inside) < shortest or not (starts or pieces):
                continue
            if not function_words and bare.lower() in ENGLISH_STOP_WORDS:
                continue
            name = bare if starts else _PIECE + bare
            if name not in seen:
                seen.add(name)
                words.append(name)
                ids.append(i)
        if not words:
            raise BadInput(f"none of {len(tokens)} tokens is a word", where="Vocabulary.of")
        return cls(tuple(words), np.array(ids))

    def index(self, word: str) -> int:
        """The place of a word.

        Raises:
            UnknownName: it is not in the vocabulary; the nearest are offered.
        """
        try:
            return self.words.index(word)
        except ValueError:
            raise unknown_name("word", word, self.words) from None


def codebook_of(
    embeddings: Tensor, vocabulary: Vocabulary, *, dim: int | None = None, unit: bool = False
) -> tuple[Tensor, Tensor]:
    """The codebook of a vocabulary, on its main axes.

    Args:
        embeddings: ``[T, D0]``, the (output) embedding table of a language model.
        vocabulary: which rows.
        dim: D; the codebook is projected on so many main axes (not centered, so that inner products stay). None keeps D0.
        unit: scale the rows to length 1.

    Returns:
        ``[V, D]``, and the axes ``[D0, D]`` by which the model's hidden states must be multiplied too.

    Raises:
        BadInput: more axes than there are.
    """
    rows = embeddings.detach()[torch.from_numpy(vocabulary.ids)].float()
    if dim is None:
        axes = torch.eye(rows.shape[1])
    else:
        if not 1 <= dim <= min(rows.shape):
            raise BadInput(f"{dim} axes of a codebook {tuple(rows.shape)}", where="codebook_of")
        axes = torch.linalg.svd(rows, full_matrices=False).Vh[:dim].T
    book = rows @ axes
    return (torch.nn.functional.normalize(book, dim=-1) if unit else book), axes


def bag_of_words(texts: Sequence[Sequence[int]], table: np.ndarray, size: int) -> np.ndarray:
    """Texts as sets of words, float32 ``[N, V]``, 0 or 1: what stands for a text encoder in the ablation.

    Args:
        texts: token ids of each text.
        table: int ``[T]``, the word of each token id, -1 for none (function words, pieces).
        size: V.
    """
    out = np.zeros((len(texts), size), np.float32)
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    found = np.asarray(table)[np.concatenate([np.asarray(text, int) for text in texts])] if len(rows) else rows
    out[rows[found >= 0], found[found >= 0]] = 1
    return out

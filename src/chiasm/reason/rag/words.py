"""Words that carry content, for comparing texts without a model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

# Runs of letters and digits; Chinese, Japanese and Thai write no spaces, so their characters count one by one.
_TOKEN = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)

# English function words and the verbs and question words that every question has.
_FUNCTION = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "before",
        "being",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "done",
        "each",
        "for",
        "from",
        "get",
        "gets",
        "give",
        "given",
        "had",
        "has",
        "have",
        "having",
        "he",
        "her",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "itself",
        "just",
        "many",
        "me",
        "more",
        "most",
        "much",
        "my",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "s",
        "same",
        "she",
        "should",
        "so",
        "some",
        "such",
        "t",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "too",
        "under",
        "up",
        "us",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def content_words(text: str) -> list[str]:
    """Words of a text in their order: case and accents folded, plurals cut, function words of English left out.

    A text of function words alone keeps them, so that no question is without words.
    """
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in folded if not unicodedata.combining(c))
    tokens = _TOKEN.findall(plain)
    return [_stem(token) for token in tokens if token not in _FUNCTION] or tokens


def _stem(word: str) -> str:
    """Without a plural's ending; more would join words that differ."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def overlap(asked: str, texts: Iterable[str]) -> np.ndarray:
    """Share of a question's words that each text holds, float64 ``[N]`` in [0, 1]; rare words count more.

    A word weighs ``log((1 + N) / (1 + n))`` with n of the N texts that hold it, at least a little, so that a word
    that all or none hold does not decide.
    """
    held = [set(content_words(text)) for text in texts]
    words = sorted(set(content_words(asked)))
    if not held or not words:
        return np.zeros(len(held))
    has = np.array([[word in own for word in words] for own in held], np.float64)
    weight = np.log((1 + len(held)) / (1 + has.sum(0))) + 0.1
    return has @ weight / weight.sum()

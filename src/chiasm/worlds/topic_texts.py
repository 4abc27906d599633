"""Sentences about topics, descriptions of the topics, and a small frozen encoder of words: a world for few-shot text methods.

Each sentence mixes a few words of its topic with words of other topics and with function words, so that counting words is hard.
A topic's description names other words of it than a small sample shows. The encoder's vectors come from co-occurrence in a corpus
of the same grammar (positive pointwise mutual information and a truncated SVD; Levy and Goldberg 2014), and know no topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse.linalg import svds

from chiasm.errors import BadInput


@dataclass(frozen=True)
class TopicTexts:
    """A world of texts. Words are ``a0``, ``a1``, ... for topic a, and ``the0``, ... for function words.

    Args:
        topics: C, at most 26.
        words: content words of a topic.
        own: least and most words of its topic in a sentence.
        distractors: words of other topics in a sentence.
        length: words of a sentence.
        functions: function words.
        described: words in a description.
        dim: length of the encoder's vectors.
        corpus: sentences that the encoder has read.
        corpus_own, corpus_distractors: words of the topic, and of other topics, in these: an encoder has read clearer texts
            than those it is used on.
        seed: decides vectors and descriptions; samples have seeds of their own.

    Attributes:
        vectors: of all words, unit length, ``[topics x words + functions, dim]``.
        described_words: numbers of the words of each description.

    Raises:
        BadInput: sizes that do not fit together.
    """

    topics: int = 6
    words: int = 80
    own: tuple[int, int] = (2, 3)
    distractors: int = 4
    length: int = 16
    functions: int = 40
    described: int = 8
    dim: int = 32
    corpus: int = 3000
    corpus_own: tuple[int, int] = (3, 5)
    corpus_distractors: int = 2
    seed: int = 0
    vectors: np.ndarray = field(init=False, repr=False, compare=False)
    described_words: list[np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.topics <= 26 or self.described > self.words or self.own[1] + self.distractors > self.length:
            raise BadInput("sizes that do not fit together", where="TopicTexts")
        rng = np.random.default_rng([self.seed, 1])
        about = [rng.permutation(self.words)[: self.described] for _ in range(self.topics)]
        numbers = [topic * self.words + words for topic, words in enumerate(about)]
        object.__setattr__(self, "described_words", numbers)
        object.__setattr__(self, "vectors", self._vectors(rng))

    @property
    def names(self) -> list[str]:
        """The topics ``["a", "b", ...]``: names that say nothing."""
        return [chr(ord("a") + topic) for topic in range(self.topics)]

    @property
    def descriptions(self) -> dict[str, str]:
        """topic -> text of some of its words."""
        return {name: self._text(words) for name, words in zip(self.names, self.described_words, strict=True)}

    def random_descriptions(self, seed: int = 0) -> dict[str, str]:
        """The same with words of any topic: descriptions that say nothing."""
        rng = np.random.default_rng([self.seed, 2, seed])
        return {name: self._text(rng.integers(self.topics * self.words, size=self.described)) for name in self.names}

    def sample(self, each: int, seed: int) -> tuple[list[str], np.ndarray]:
        """``each`` sentences of every topic, and their topics int ``[C x each]``."""
        topic = np.repeat(np.arange(self.topics), each)
        rows = self._draw(topic, np.random.default_rng([self.seed, 3, seed]), self.own, self.distractors)
        return [self._text(row) for row in rows], topic

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token vectors ``[T_i, dim]`` of each text: a word's vector and a quarter of its neighbors'; unknown words are zero."""
        return [self._smooth(self._rows(text)) for text in texts]

    def _rows(self, text: str) -> np.ndarray:
        numbers = [self._number(word) for word in text.split()] or [-1]
        return np.stack([self.vectors[n] if n >= 0 else np.zeros(self.dim) for n in numbers])

    def _smooth(self, rows: np.ndarray) -> np.ndarray:
        padded = np.concatenate([rows[:1], rows, rows[-1:]])
        return (rows + 0.25 * (padded[:-2] + padded[2:])).astype(np.float32)

    def _number(self, word: str) -> int:
        if word.startswith("the") and word[3:].isdigit():
            return self.topics * self.words + int(word[3:]) if int(word[3:]) < self.functions else -1
        topic = ord(word[0]) - ord("a")
        known = 0 <= topic < self.topics and word[1:].isdigit() and int(word[1:]) < self.words
        return topic * self.words + int(word[1:]) if known else -1

    def _text(self, numbers: np.ndarray) -> str:
        content = self.topics * self.words
        return " ".join(
            f"the{n - content}" if n >= content else f"{self.names[n // self.words]}{n % self.words}" for n in numbers
        )

    def _draw(self, topic: np.ndarray, rng: np.random.Generator, own: tuple[int, int], distractors: int) -> np.ndarray:
        """Word numbers ``[N, length]`` of sentences about the topics ``[N]``."""
        n, content = len(topic), self.topics * self.words
        mine = topic[:, None] * self.words + rng.integers(self.words, size=(n, own[1]))
        step = rng.integers(1, max(2, self.topics), size=(n, distractors))
        other = (topic[:, None] + step) % self.topics * self.words + rng.integers(self.words, size=step.shape)
        plain = content + rng.integers(self.functions, size=(n, self.length - distractors))
        fewer = np.arange(own[1]) >= rng.integers(own[0], own[1] + 1, size=n)[:, None]
        mine = np.where(fewer, plain[:, : own[1]], mine)
        return rng.permuted(np.concatenate([mine, other, plain[:, own[1] :]], axis=1), axis=1)

    def _vectors(self, rng: np.random.Generator) -> np.ndarray:
        topic = rng.integers(self.topics, size=self.corpus)
        rows = self._draw(topic, rng, self.corpus_own, self.corpus_distractors)
        size = self.topics * self.words + self.functions
        counts = np.zeros((self.corpus, size))
        np.add.at(counts, (np.repeat(np.arange(self.corpus), self.length), rows.ravel()), 1)
        together = counts.T @ counts
        np.fill_diagonal(together, 0)
        margin = np.maximum(together.sum(axis=0), 1)
        with np.errstate(divide="ignore"):
            information = np.maximum(np.log(together * margin.sum() / np.outer(margin, margin)), 0)
        left, strength, _ = svds(information, k=self.dim, v0=np.ones(size))
        vectors = left * np.sqrt(strength)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

"""More training texts from a generator that reads a prompt: the prompt, what is thrown away, and a generator for offline use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.errors import BadInput

#: ``generate(prompt, n)`` returns n texts, or fewer.
Generate = Callable[[str, int], list[str]]

_EXAMPLE, _ABOUT = "Example: ", "What the class means: "


def prompt(
    name: str,
    description: str,
    demonstrations: Sequence[str],
    *,
    task: str = "Texts of several classes are to be told apart.",
    most: int = 4000,
) -> str:
    """What a generator reads to write a new text of a class.

    Args:
        name: the class.
        description: what it means.
        demonstrations: texts of the class; the last ones are left out if the prompt gets too long.
        task: what the texts are for.
        most: characters of the prompt at most, for generators with a short context.

    Raises:
        BadInput: task, name and description alone are longer than that.
    """
    one_line = [" ".join(text.split()) for text in demonstrations]
    for count in range(len(one_line), -1, -1):
        lines = [task, f"Class: {name}", _ABOUT + " ".join(description.split())]
        lines += [_EXAMPLE + text for text in one_line[:count]]
        found = "\n".join([*lines, f"Write a new {name} example."])
        if len(found) <= most:
            return found
    raise BadInput(
        f"the prompt of class {name!r} is longer than {most} characters even without demonstrations",
        where="prompt",
        fix="Shorten the description or allow more characters",
    )


@dataclass
class NGrams:
    """A generator for offline use: word chains through the demonstrations, with words of the description put in.

    Args:
        order: words that decide the next one; 1 mixes more, 2 copies more.
        put_in: share of words that are replaced by a word of the description.
        seed: decides the texts; the same prompt gives the same texts.
    """

    order: int = 1
    put_in: float = 0.1
    seed: int = 0

    def __call__(self, prompt: str, n: int) -> list[str]:
        """``n`` texts in the manner of the prompt's demonstrations; none if it has none."""
        lines = prompt.splitlines()
        examples = [line.removeprefix(_EXAMPLE).split() for line in lines if line.startswith(_EXAMPLE)]
        examples = [words for words in examples if words]
        if not examples:
            return []
        about = " ".join(line.removeprefix(_ABOUT) for line in lines if line.startswith(_ABOUT))
        content = [word for word in re.findall(r"\w+", about) if len(word) > 3]
        rng = np.random.default_rng([self.seed, len(prompt), sum(prompt.encode())])
        follow: dict[tuple[str, ...], list[str]] = {}
        for words in examples:
            for i in range(len(words) - self.order):
                follow.setdefault(tuple(words[i : i + self.order]), []).append(words[i + self.order])
        return [self._text(examples, follow, content, rng) for _ in range(n)]

    def _text(self, examples: list, follow: dict, content: list[str], rng: np.random.Generator) -> str:
        words: list[str] = list(examples[int(rng.integers(len(examples)))])[: self.order]
        length = len(examples[rng.integers(len(examples))])
        while len(words) < length:
            choices = follow.get(tuple(words[-self.order :]))
            if not choices:  # the chain ends: go on inside another demonstration
                other = examples[rng.integers(len(examples))]
                choices = [other[rng.integers(len(other))]]
            words.append(choices[rng.integers(len(choices))])
        for i in range(len(words)):
            if content and rng.random() < self.put_in:
                words[i] = content[rng.integers(len(content))]
        return " ".join(words)


def generate_texts(
    generate: Generate,
    names: Sequence[str],
    descriptions: Sequence[str],
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    each: int = 32,
    demonstrations: int = 6,
    per_call: int = 8,
    seed: int = 0,
) -> tuple[list[str], np.ndarray]:
    """New texts of each class by in-context generation; demonstrations are drawn anew for each call.

    Args:
        generate: the generator.
        names, descriptions: of the C classes.
        texts: training texts, the only source of demonstrations.
        labels: their classes int ``[N]``.
        each: texts a class.
        demonstrations: texts in a prompt, 4 to 8 in the paper.
        per_call: texts asked for with one prompt.
        seed: of the demonstrations.

    Returns:
        Texts, and the class each was asked for.

    Raises:
        BadInput: a generator that returns something else than texts.
    """
    rng = np.random.default_rng(seed)
    made: list[str] = []
    asked: list[int] = []
    for c, name in enumerate(names):
        own = [texts[int(i)] for i in np.flatnonzero(labels == c)]
        for begin in range(0, each, per_call):
            shown = [own[int(i)] for i in rng.permutation(len(own))[:demonstrations]]
            new = generate(prompt(name, descriptions[c], shown), min(per_call, each - begin))
            if not isinstance(new, (list, tuple)) or not all(isinstance(text, str) for text in new):
                raise BadInput(f"returned a {type(new).__name__}", where="the generator", fix="Return a list of texts")
            new = [text.strip() for text in new if text.strip()]
            made += new
            asked += [c] * len(new)
    return made, np.array(asked, dtype=np.int64)


def without_copies(
    made: Sequence[str], vectors: np.ndarray, known: Sequence[str], known_vectors: np.ndarray, *, close: float = 0.95
) -> np.ndarray:
    """Which generated texts are new: bool ``[N]``.

    Dropped are texts that equal a known or an earlier one but for case and white space, and those whose vector has a cosine
    above ``close`` with a known text.

    Args:
        made: N generated texts; vectors: ``[N, d]``.
        known: M texts of training and development; known_vectors: ``[M, d]``.
        close: above this a text is a copy.
    """
    seen = {_plain(text) for text in known}
    new = np.zeros(len(made), dtype=bool)
    for i, text in enumerate(made):
        new[i] = _plain(text) not in seen
        seen.add(_plain(text))
    if len(made) and len(known):
        a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (vectors, known_vectors))
        new &= (a @ b.T).max(axis=1) <= close
    return new


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())

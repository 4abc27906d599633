"""The rules by which FILIP300M was collected (section 3.3), as small functions; a `Recipe` applies them and says what it dropped.

>>> kept, why = Recipe(sensitive=("gore",)).filter(captions, sizes)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chiasm.errors import BadInput
from chiasm.learn.pairs import Source

_FILE_NAME = re.compile(
    r"(?i)^\s*\S*\.(jpe?g|png|gif|bmp|tiff?|webp|heic|svg|raw|cr2|nef)\s*$"
    r"|^\s*(img|dsc[nf]?|dcim|pict?|image|photo|scan|screenshot|untitled)[\s_\-]*[\d_\-\s()]*$"
)
_WORD = re.compile(r"[^\W\d_]+")
# Words that hardly any English sentence of some length lacks, and that hardly any other language has.
_ENGLISH = re.compile(r"\b(the|of|and|with|is|are|for|on|at|by|from|an|this|that|these|his|her|its|to|it|was|has)\b")


def picture_fits(width: int, height: int, *, shortest: int = 200, widest: float = 3.0) -> bool:
    """Whether a picture's shorter side has at least 200 pixels and the longer one is at most 3 times as long.

    Args:
        width: in pixels.
        height: in pixels.
        shortest: pixels of the shorter side.
        widest: ratio of the sides.
    """
    short, long = sorted((width, height))
    return short >= shortest and long <= widest * short


def is_file_name(caption: str) -> bool:
    """Whether a caption is the name of a file or of a camera's shot: "IMG_2041", "sunset.jpg", "DSC00017"."""
    return _FILE_NAME.match(caption) is not None


def is_meaningless(caption: str) -> bool:
    """Whether a caption says nothing: no word of two letters, or one word over and over, or mostly no letters."""
    words = [w.lower() for w in _WORD.findall(caption) if len(w) > 1]
    letters = sum(len(w) for w in words)
    return not words or (len(words) > 2 and len(set(words)) == 1) or letters < 0.4 * len("".join(caption.split()))


def looks_english(caption: str) -> bool:
    """A rough judgment without a model: Latin letters without accents, and in longer captions one common English word.

    Captions of up to six words cannot be told by their words, and pass. Give `Recipe` a language detector if you have one.
    """
    words = _WORD.findall(caption)
    plain = sum(word.isascii() for word in words)
    return bool(words) and plain >= 0.9 * len(words) and (len(words) <= 6 or bool(_ENGLISH.search(caption.lower())))


def has_word(caption: str, words: Iterable[str]) -> bool:
    """Whether a caption contains one of some words or phrases, as whole words, in whatever case."""
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE) for word in words)


def mask_names(caption: str, names: Iterable[str], mask: str = "<person>") -> str:
    """The caption with each name of a person replaced; longer names first, so that "Anna Bell" becomes one mask.

    Args:
        caption: the text.
        names: names in it, for example from a named-entity recognizer.
        mask: what stands for a person.
    """
    for name in sorted({n for n in names if n.strip()}, key=len, reverse=True):
        caption = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", mask, caption)
    return caption


def repeated(captions: Sequence[str], *, most: int = 10) -> np.ndarray:
    """Bool ``[N]``: captions that occur more than ``most`` times (case and spaces aside).

    Args:
        captions: all of them.
        most: 10 in the paper.
    """
    keys = [" ".join(caption.lower().split()) for caption in captions]
    counts = Counter(keys)
    return np.array([counts[key] > most for key in keys], dtype=bool)


@dataclass(frozen=True)
class Recipe:
    """The rules together.

    Args:
        shortest: pixels of a picture's shorter side at least; 200.
        widest: ratio of the sides at most; 3.
        most: times that a caption may occur; 10.
        english: judges the language of a caption; None keeps all languages.
        sensitive: words that drop a pair. The paper's list is not public.
        names: ``names(caption)`` finds names of persons, which are replaced; None leaves captions as they are.
    """

    shortest: int = 200
    widest: float = 3.0
    most: int = 10
    english: Callable[[str], bool] | None = looks_english
    sensitive: Sequence[str] = ()
    names: Callable[[str], Iterable[str]] | None = None

    def reason(self, caption: str, size: tuple[int, int] | None = None) -> str | None:
        """Why a pair is dropped by what it is (repetition aside): a rule's name, or None."""
        if size is not None and not picture_fits(*size, shortest=self.shortest, widest=self.widest):
            return "picture"
        if is_file_name(caption):
            return "file name"
        if is_meaningless(caption):
            return "meaningless"
        if self.english is not None and not self.english(caption):
            return "language"
        return "sensitive" if has_word(caption, self.sensitive) else None

    def filter(
        self, captions: Sequence[str], sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[dict[int, str], dict[int, str]]:
        """Applies all rules.

        Args:
            captions: N captions.
            sizes: N ``(width, height)`` in pixels, or None.

        Returns:
            Number of each pair that stays -> its caption with names replaced, and number of each other pair -> the rule that
            dropped it.

        Raises:
            BadInput: not as many sizes as captions.
        """
        if sizes is not None and len(sizes) != len(captions):
            raise BadInput(f"{len(sizes)} sizes for {len(captions)} captions", where="Recipe.filter")
        often = repeated(captions, most=self.most)
        kept, why = {}, {}
        for i, caption in enumerate(captions):
            reason = self.reason(caption, None if sizes is None else sizes[i]) or ("repeated" if often[i] else None)
            if reason is None:
                kept[i] = caption if self.names is None else mask_names(caption, self.names(caption))
            else:
                why[i] = reason
        return kept, why


class Versions:
    """A source of texts in several versions (the original and its back-translations), one drawn at random each time.

    The paper translates captions to German or Russian and back, and draws one of the three versions every step.

    Args:
        versions: sources of the same items, the original first.
        seed: decides the draws.

    Raises:
        BadInput: no versions, or sources of different lengths.
    """

    def __init__(self, versions: Sequence[Source], seed: int = 0) -> None:
        if not versions or len({len(source) for source in versions}) != 1:
            raise BadInput(f"sources of lengths {[len(s) for s in versions]}", where="Versions")
        self.versions, self.rng = list(versions), np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.versions[0])

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Each row in a version of its own draw, padded with zeros to the longest."""
        drawn = self.rng.integers(0, len(self.versions), len(rows))
        every = [source.batch(rows) for source in self.versions]
        chosen = torch.from_numpy(drawn)
        return {name: _mixed([one[name] for one in every], chosen) for name in every[0]}


def _mixed(values: list[Tensor], chosen: Tensor) -> Tensor:
    """Row i of ``values[chosen[i]]``."""
    if values[0].ndim > 1:
        longest = max(v.shape[1] for v in values)
        pads = [(0, 0) * (v.ndim - 2) + (0, longest - v.shape[1]) for v in values]
        values = [torch.nn.functional.pad(v, pad) for v, pad in zip(values, pads)]
    return torch.stack(values)[chosen, torch.arange(len(chosen))]

"""What the stages of a pipeline hand to one another: question, passages, draft, answer with its sources and trace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chiasm.errors import BadInput

# The longest question that is read at all; beyond, somebody pasted a document.
MAX_QUESTION = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What is asked, in words and perhaps with a picture.

    Args:
        text: the words.
        image: a PIL picture that the question is about, or None.
        vector: float32 ``[D]`` of the question in the retriever's space, if it is known already.
        meta: facts for stages of your own.

    Raises:
        BadInput: no words and no picture, or more than 20,000 characters.
    """

    text: str
    image: Any = None
    vector: np.ndarray | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise BadInput(f"a question is text, got {type(self.text).__name__}", where="Question")
        if not self.text.strip() and self.image is None:
            raise BadInput("the question is empty", where="Question", fix="Ask something in words")
        if len(self.text) > MAX_QUESTION:
            raise BadInput(
                f"the question has {len(self.text)} characters, {MAX_QUESTION} at most",
                where="Question",
                fix="Ask in a few sentences; long documents belong into the store",
            )

    @classmethod
    def of(cls, thing: str | Question) -> Question:
        """A question from words; a question stays as it is."""
        return thing if isinstance(thing, Question) else cls(thing)


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """One unit of evidence: a run of text, a picture, a table, an equation, a sound or a clip.

    Args:
        id: unique within its corpus.
        text: its words: the text itself, a caption, a transcript, the rows of a table, the LaTeX of an equation.
        modality: ``"text"``, ``"image"``, ``"audio"``, ``"video"``, ``"table"`` or ``"equation"``.
        uri: the file it comes from, ``""`` if none.
        part: its place in the file as the store writes it, for example ``"page=3,chunk=2"``.
        meta: facts: ``page``, ``slide``, ``sheet``, ``rows``, ``heading``, ``caption``, ...
        score: of the stage that ranked it last; comparable only within one list.
        relevance: calibrated, in [0, 1]; None where it is not known.
        corpus: the route that found it, ``""`` before retrieval.
        content: a PIL picture or `chiasm.Sound` where one is at hand, for models that see or hear.
    """

    id: str
    text: str = ""
    modality: str = "text"
    uri: str = ""
    part: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    score: float = 0.0
    relevance: float | None = None
    corpus: str = ""
    content: Any = None

    @property
    def page(self) -> int | None:
        """Page number from 1, None where the format has no pages."""
        page = self.meta.get("page")
        return page if isinstance(page, int) and not isinstance(page, bool) else None

    @property
    def locator(self) -> str:
        """Where to look, in words: ``"page 3"``, ``"slide 2"``, ``"sheet Prices, rows 2-40"``, ``"section 'Costs'"``."""
        return locator(self.part, self.meta)


def locator(part: str, meta: Mapping[str, Any]) -> str:
    """A place inside a file, in words; see `Passage.locator`."""
    words = []
    for name in ("page", "slide", "sheet", "rows"):
        if meta.get(name) not in (None, ""):
            words.append(f"{name} {meta[name]}")
    places = dict(re.findall(r"(\w+)=([^,]*)", part))
    if not words:
        words += [f"{name} {places[name]}" for name in ("page", "slide", "sheet", "table") if name in places]
    if "t" in places:
        words.append(f"at {places['t']} s")
    if "image" in places:
        words.append(f"picture {places['image']}")
    if meta.get("heading") and "page" not in meta:
        words.append(f"section {str(meta['heading'])!r}")
    return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Route:
    """A corpus that a router chose, and how sure it is (shares over all routes sum to 1)."""

    corpus: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a retriever found in one corpus.

    Args:
        passages: best first.
        nothing_here: the corpus says by itself that it holds no answer (calibrated relevance).
        p_value: share of questions without an answer whose best passage looks as good; None if not calibrated.
    """

    passages: Sequence[Passage]
    nothing_here: bool = False
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where (a part of) an answer comes from.

    Args:
        id: the passage.
        uri: its file.
        part: its place as the store writes it.
        locator: its place in words, for example ``"page 3"``.
        page: page number from 1, None where the format has no pages.
        modality: of the passage.
        score: as the last ranking stage gave it.
        relevance: calibrated, in [0, 1]; None where it is not known.
        quote: the words that support the answer, as they stand in the passage.
        corpus: the route that found it.
    """

    id: str
    uri: str = ""
    part: str = ""
    locator: str = ""
    page: int | None = None
    modality: str = "text"
    score: float = 0.0
    relevance: float | None = None
    quote: str = ""
    corpus: str = ""

    @classmethod
    def of(cls, passage: Passage, quote: str = "") -> Source:
        return cls(
            id=passage.id,
            uri=passage.uri,
            part=passage.part,
            locator=passage.locator,
            page=passage.page,
            modality=passage.modality,
            score=float(passage.score),
            relevance=passage.relevance,
            quote=quote,
            corpus=passage.corpus,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Draft:
    """What a generator makes of a question and its passages.

    Args:
        text: the answer; ``""`` with ``abstained``.
        used: ids of the passages that it rests on, the most important first.
        quotes: the supporting words by passage id.
        abstained: the passages do not answer the question.
        reason: why it abstained.
        warnings: what went wrong on the way and was worked around.
        confidence: in [0, 1], None if the generator has none.
    """

    text: str
    used: tuple[str, ...] = ()
    quotes: Mapping[str, str] = field(default_factory=dict)
    abstained: bool = False
    reason: str = ""
    warnings: tuple[str, ...] = ()
    confidence: float | None = None

    @classmethod
    def none(cls, reason: str, *warnings: str) -> Draft:
        """The draft of a generator that has no answer."""
        return cls("", abstained=True, reason=reason, warnings=warnings)


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of one answer: its name, its time and what it decided, all JSON-serializable."""

    stage: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "seconds": self.seconds, **self.facts}


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a pipeline: a text that names its sources, or an abstention with its reason.

    Args:
        question: the words asked.
        text: the answer, ``""`` if ``abstained``.
        sources: what it rests on, the most important first; with ``abstained`` the nearest passages that were refused.
        abstained: nothing relevant was found.
        reason: why it abstained, ``""`` otherwise.
        warnings: what went wrong on the way and was worked around (an endpoint that was down, say).
        trace: the stages in order.
        confidence: of the generator, in [0, 1]; None if it has none.
    """

    question: str
    text: str
    sources: tuple[Source, ...] = ()
    abstained: bool = False
    reason: str = ""
    warnings: tuple[str, ...] = ()
    trace: tuple[Step, ...] = ()
    confidence: float | None = None

    @property
    def seconds(self) -> float:
        """Wall time of all stages."""
        return sum(step.seconds for step in self.trace)

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "abstained": self.abstained,
            "reason": self.reason,
            "sources": [source.to_json() for source in self.sources],
            "warnings": list(self.warnings),
            "confidence": self.confidence,
            "seconds": self.seconds,
            "trace": [step.to_json() for step in self.trace],
        }

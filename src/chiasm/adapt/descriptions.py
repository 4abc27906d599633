"""What is known about a class in words: ``class -> aspect -> sentences``, from any source, with an offline fallback.

    >>> found = describe(["cat", "violin"])                                      # templates only, nothing is fetched
    >>> found = describe(["cat", "violin"], "descriptions.json")                 # class -> aspect -> sentences
    >>> found = describe(names, Asked(my_language_model))                        # any text generator
    >>> found["cat"]["definition"], found.sentences("cat"), found.flat()

A source is a mapping, a JSON file, or any callable that takes a class name. It may answer with aspects
(``{"shape": ["..."]}``), with a list of sentences or with one sentence. Classes of which it knows nothing (None, nothing but
white space, a missing key) get the sentences of the fallback, and `Descriptions.fallback` lists them: a missing description is
never silent.

Used by HiCroPL (hicropl), CMA (mm-ood), Cross-Tune (cross-tune) and multi-modal prototypes (mm-prototypes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chiasm.errors import BadInput, unknown_name

# What a source may answer for a class.
Answer = Mapping[str, Sequence[str] | str] | Sequence[str] | str | None
Source = Callable[[str], Answer] | Mapping[str, Answer] | str | Path

# The aspect of sentences that come without one.
ANY = "description"

# In the style of CLIP's prompt ensemble (Radford and others 2021, arXiv 2103.00020), for pictures of things.
PHOTO = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a close-up photo of a {}.",
    "a photo of one {}.",
    "a drawing of a {}.",
)
TEXT = ("this text is about {}.", "{}")

# One question an aspect; the aspects are those of the multi-modal prototypes' card.
QUESTIONS = {
    "definition": "What is a {}? Answer in one or two short sentences.",
    "color and texture": "What colors and textures does a {} have? Answer in one or two short sentences.",
    "shape": "What shape and structure does a {} have? Answer in one or two short sentences.",
    "parts": "Which visible parts does a {} have? Answer in one or two short sentences.",
    "context": "Where is a {} usually seen? Answer in one or two short sentences.",
    "function": "What is a {} used for, or what does it do? Answer in one or two short sentences.",
}


@dataclass(frozen=True)
class Descriptions(Mapping[str, Mapping[str, tuple[str, ...]]]):
    """Sentences about C classes, in the order of the class list.

    Args:
        table: class -> aspect -> sentences; every class has at least one.
        fallback: the classes whose sentences are the fallback's.
    """

    table: Mapping[str, Mapping[str, tuple[str, ...]]]
    fallback: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Mapping[str, tuple[str, ...]]:
        if name not in self.table:
            raise unknown_name("class", name, self.table)
        return self.table[name]

    def __contains__(self, name: object) -> bool:
        return name in self.table

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in order."""
        return tuple(self.table)

    @property
    def aspects(self) -> tuple[str, ...]:
        """All aspects that occur, in the order of their first use."""
        return tuple(dict.fromkeys(aspect for aspects in self.table.values() for aspect in aspects))

    def sentences(self, name: str, aspects: Sequence[str] | None = None) -> tuple[str, ...]:
        """All sentences about a class, or those of some aspects.

        Raises:
            UnknownName: no such class.
        """
        found = self[name]
        return tuple(s for aspect in (found if aspects is None else aspects) for s in found.get(aspect, ()))

    def flat(self, aspects: Sequence[str] | None = None) -> tuple[list[str], list[int]]:
        """Every sentence, and the number of the class it belongs to: what an encoder takes in one call.

        Args:
            aspects: only these; default all.

        Raises:
            BadInput: a class has no sentence of these aspects.
        """
        texts: list[str] = []
        owners: list[int] = []
        for number, name in enumerate(self.table):
            own = self.sentences(name, aspects)
            if not own:
                raise BadInput(
                    f"class {name!r} has no sentence of the aspects {list(aspects or ())}",
                    where="Descriptions",
                    fix=f"It has {', '.join(self.table[name])}",
                )
            texts += own
            owners += [number] * len(own)
        return texts, owners

    def to_json(self) -> dict[str, dict[str, list[str]]]:
        """Plain lists and dicts: class -> aspect -> sentences."""
        return {name: {aspect: list(s) for aspect, s in aspects.items()} for name, aspects in self.table.items()}

    def save(self, path: str | Path) -> None:
        """Writes a JSON file that `describe` reads as a source."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Templates:
    """Sentences made of the class name alone: what there is offline.

    Args:
        patterns: aspect -> patterns with one ``{}`` for the name; default one aspect ``"photo"`` of CLIP's prompts.
        underscores: class names as files have them (``wine_bottle``) are read with spaces.

    Raises:
        BadInput: no pattern, or one without ``{}``.
    """

    patterns: Mapping[str, Sequence[str]] | None = None
    underscores: bool = True

    def __post_init__(self) -> None:
        patterns = {"photo": PHOTO} if self.patterns is None else dict(self.patterns)
        if not any(patterns.values()):
            raise BadInput("no pattern", where="Templates", fix="Give for example {'photo': ['a photo of a {}.']}")
        if any(isinstance(several, str) for several in patterns.values()):
            raise BadInput("an aspect holds one text", where="Templates", fix="Give a list of patterns for each aspect")
        for pattern in (p for several in patterns.values() for p in several):
            if not isinstance(pattern, str) or pattern.count("{}") != 1:
                raise BadInput(
                    f"{pattern!r} has not exactly one {{}}", where="Templates", fix="Write {} where the name belongs"
                )
        object.__setattr__(self, "patterns", patterns)

    def __call__(self, name: str) -> dict[str, tuple[str, ...]]:
        assert self.patterns is not None
        said = name.replace("_", " ") if self.underscores else name
        return {aspect: tuple(p.replace("{}", said) for p in several) for aspect, several in self.patterns.items()}


@dataclass(frozen=True)
class Asked:
    """Asks a text generator one question an aspect and cuts its answers into sentences.

    Args:
        generate: prompt -> text; any language model.
        questions: aspect -> question with ``{}`` for the name; default `QUESTIONS`.
        most: sentences kept of an answer.
    """

    generate: Callable[[str], str]
    questions: Mapping[str, str] | None = None
    most: int = 5

    def __call__(self, name: str) -> dict[str, list[str]]:
        questions = QUESTIONS if self.questions is None else self.questions
        said = name.replace("_", " ")
        found = {}
        for aspect, question in questions.items():
            answer = self.generate(question.replace("{}", said))
            if not isinstance(answer, str):
                raise BadInput(
                    f"answered with a {type(answer).__name__}",
                    where="the text generator",
                    fix="Return one text a prompt",
                )
            found[aspect] = split_sentences(answer)[: self.most]
        return found


def split_sentences(text: str) -> list[str]:
    """Sentences of a generator's answer: one a line or full stop; bullets, numbers and empty lines are dropped."""
    lines = (re.sub(r"^\s*(?:[-*\u2022]+|\d+[.)])\s*", "", line) for line in text.splitlines())
    parts = (part.strip() for line in lines for part in re.split(r"(?<=[.!?])\s+", line))
    return list(dict.fromkeys(part for part in parts if part))


def describe(
    classes: Sequence[str],
    source: Source | None = None,
    *,
    fallback: Callable[[str], Answer] | None = None,
    with_fallback: bool = False,
) -> Descriptions:
    """Descriptions of a list of classes.

    Args:
        classes: C different names, C >= 1.
        source: a callable, a mapping, or a JSON file ``class -> aspect -> sentences``; None for the fallback alone.
        fallback: makes sentences of a name for the classes that the source does not know; default `Templates()`.
        with_fallback: let every class have the fallback's sentences too, after its own.

    Raises:
        BadInput: an empty list, a class named twice or without a name, a file that is no such table, or a class for
            which neither source nor fallback has a sentence.
    """
    names = [] if classes is None else [str(name) for name in classes]
    if isinstance(classes, str) or not names:
        raise BadInput("no list of classes", where="describe", fix="Give at least one class name, in a list")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice or not all(name.strip() for name in names):
        raise BadInput(
            f"class {twice[0]!r} is named twice" if twice else "a class has no name",
            where="describe",
            fix="Give every class one name of its own",
        )
    ask = _callable(source)
    rest = Templates() if fallback is None else fallback
    if not callable(rest):
        raise BadInput(
            f"a {type(rest).__name__} is no fallback", where="describe", fix="Give a callable, as Templates()"
        )
    table: dict[str, dict[str, tuple[str, ...]]] = {}
    missing = []
    for name in names:
        own = _clean(ask(name), name)
        if not own:
            missing.append(name)
        if not own or with_fallback:
            for aspect, sentences in _clean(rest(name), name).items():
                own[aspect] = tuple(dict.fromkeys((*own.get(aspect, ()), *sentences)))
        if not own:
            raise BadInput(f"nothing is known of class {name!r}", where="describe", fix="Give a fallback that knows it")
        table[name] = own
    return Descriptions(table, tuple(missing))


def _callable(source: Source | None) -> Callable[[str], Answer]:
    if source is None:
        return lambda name: None
    if isinstance(source, (str, Path)):
        try:
            read = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInput(f"cannot be read ({error})", where=str(source), fix="Give a JSON file") from error
        if not isinstance(read, dict):
            raise BadInput("is no table of classes", where=str(source), fix="Write class -> aspect -> sentences")
        return read.get
    if isinstance(source, Mapping):
        known = {str(key): key for key in source}  # classes may be numbers
        return lambda name: source[known[name]] if name in known else None
    if callable(source):
        return source
    raise BadInput(f"a {type(source).__name__} describes nothing", where="describe", fix="Give a callable or a mapping")


def _clean(answer: Any, name: str) -> dict[str, tuple[str, ...]]:
    """An answer as aspect -> different sentences; aspects without a sentence are left out."""
    if answer is None:
        return {}
    aspects = answer if isinstance(answer, Mapping) else {ANY: answer}
    found: dict[str, tuple[str, ...]] = {}
    for aspect, several in aspects.items():
        several = [several] if isinstance(several, str) else several
        if not isinstance(several, Sequence) or not all(isinstance(one, str) for one in several):
            raise BadInput(
                f"the description of {name!r} holds a {type(several).__name__} under {aspect!r}",
                where="describe",
                fix="Sentences are strings",
            )
        kept = tuple(dict.fromkeys(one.strip() for one in several if one.strip()))
        if kept:
            found[str(aspect)] = kept
    return found

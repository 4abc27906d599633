"""`Pipeline`: parser -> router -> retriever -> reranker -> generator, every stage a callable with an offline default.

    parser(source) -> passages                      files into units; only `Pipeline.add` uses it
    router(question) -> routes                      which corpora to ask, with shares; "none" asks nothing
    retriever(question, corpus, k) -> passages      within one corpus; "" is all of them as one
    reranker(question, passages) -> passages        may reorder and drop, never add
    generator(question, passages) -> draft          a text and the ids it rests on, or an abstention

An answer rests on sources or it is no answer: a draft without a passage that was retrieved becomes an abstention.
Retrieved text is data: no stage before the generator reads it as anything but words to compare, and the generators here
keep it apart from their instructions (`chiasm.reason.rag.prompt`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from chiasm.errors import BadInput
from chiasm.reason.rag.merge import merge_passages
from chiasm.reason.rag.messages import Answer, Draft, Passage, Question, Retrieved, Route, Source, Step

# The route of a question that needs no retrieval.
NONE = "none"
# The corpus that is all corpora as one.
EVERYTHING = ""
# Passages that an abstention shows as the nearest that were refused.
REFUSED = 3


@runtime_checkable
class Parser(Protocol):
    """A source (a path, usually) as passages."""

    def __call__(self, source: Any, /) -> Iterable[Passage]: ...


@runtime_checkable
class Router(Protocol):
    """Corpora to ask, best first: names, or `Route` with shares."""

    def __call__(self, question: Question, /) -> str | Route | Sequence[str | Route]: ...


@runtime_checkable
class Retriever(Protocol):
    """The k best passages of one corpus, best first."""

    def __call__(self, question: Question, corpus: str, k: int, /) -> Sequence[Passage] | Retrieved: ...


@runtime_checkable
class Reranker(Protocol):
    """The same passages, or some of them, in a better order."""

    def __call__(self, question: Question, passages: Sequence[Passage], /) -> Sequence[Passage]: ...


@runtime_checkable
class Generator(Protocol):
    """A draft from a question and its passages; a plain string rests on all of them."""

    def __call__(self, question: Question, passages: Sequence[Passage], /) -> Draft | str: ...


Merge = Callable[[Sequence[Sequence[Passage]]], Sequence[Passage]]


def everything(question: Question, /) -> list[Route]:
    """The router of a single corpus: no choice."""
    return [Route(EVERYTHING)]


def as_retrieved(question: Question, passages: Sequence[Passage], /) -> Sequence[Passage]:
    """The reranker that leaves the order as it is."""
    return passages


class Pipeline:
    """Answers questions from passages.

        >>> pipeline = Pipeline()                      # all in memory, words compared by their letters and frequency
        >>> pipeline.add("report.pdf")
        >>> answer = pipeline.ask("Who runs the plant in Orla?")
        >>> answer.text, answer.sources[0].locator

    Args:
        retriever: by default an empty `chiasm.reason.rag.corpora.Corpora`, which `add` fills.
        parser: by default `chiasm.reason.rag.reader.read_units`.
        router: by default all corpora as one.
        reranker: by default the retriever's order.
        generator: by default `chiasm.reason.rag.extractive.ExtractiveGenerator`, which needs no model.
        merge: how rankings of several corpora become one: ``"reciprocal_rank"``, ``"round_robin"``, ``"score"``, or a
            callable of lists of passages.
        routes: corpora asked at most, the router's best.
        depth: passages asked of each corpus.
        k: passages that the generator sees.
        unsourced: let a generator answer without any passage (route ``"none"``); the answer carries a warning.

    Raises:
        BadInput: a number below 1, or a stage that is no callable.
    """

    def __init__(
        self,
        retriever: Retriever | None = None,
        *,
        parser: Parser | None = None,
        router: Router = everything,
        reranker: Reranker = as_retrieved,
        generator: Generator | None = None,
        merge: str | Merge = "reciprocal_rank",
        routes: int = 1,
        depth: int = 20,
        k: int = 5,
        unsourced: bool = False,
    ) -> None:
        for name, number in (("routes", routes), ("depth", depth), ("k", k)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise BadInput(f"{name} must be a whole number of at least 1, got {number!r}", where="Pipeline")
        if retriever is None:
            from chiasm.reason.rag.corpora import Corpora

            retriever = Corpora()
        if parser is None:
            from chiasm.reason.rag.reader import read_units as parser
        if generator is None:
            from chiasm.reason.rag.extractive import ExtractiveGenerator

            generator = ExtractiveGenerator()
        stages = {"retriever": retriever, "parser": parser, "router": router}
        for name, stage in (stages | {"reranker": reranker, "generator": generator}).items():
            if not callable(stage):
                raise BadInput(f"the {name} is a {type(stage).__name__}, not a callable", where="Pipeline")
        self.retriever, self.parser, self.router = retriever, parser, router
        self.reranker, self.generator = reranker, generator
        if not callable(merge):
            merge_passages([], merge)  # an unknown name fails here and not with the first question
        self.merge = merge
        self.routes, self.depth, self.k, self.unsourced = routes, depth, k, unsourced

    def add(self, source: Any) -> int:
        """Parses a source and gives its passages to the retriever; returns their number.

        Raises:
            BadInput: the retriever cannot be added to.
            BadItem: the parser cannot read the source.
        """
        into = getattr(self.retriever, "add", None)
        if not callable(into):
            raise BadInput(
                f"a {type(self.retriever).__name__} cannot be added to",
                where="Pipeline.add",
                fix="Add to what it searches instead, for example with Store.add",
            )
        passages = list(self.parser(source))
        into(passages)
        return len(passages)

    def ask(self, question: str | Question) -> Answer:
        """The answer to a question, with its sources, or an abstention.

        Args:
            question: words, or a `Question`.

        Raises:
            BadInput: an empty or endless question, or a stage that broke its contract.
            ChiasmError: whatever a stage raises on purpose, for example an endpoint that is set up wrongly.
        """
        asked = Question.of(question)
        run = _Run(self, asked)
        routes, passages, silent = run.retrieve()
        answered_by_none = [route.corpus for route in routes] == [NONE]
        if silent:
            return run.abstain("nothing in the corpora fits the question", passages)
        if not passages and not (answered_by_none and self.unsourced):
            reason = "the question was routed to no corpus" if answered_by_none else "no passage was found"
            return run.abstain(reason, passages)
        return run.generate(passages)

    def retrieve(self, question: str | Question) -> list[Passage]:
        """What the generator would see, best first: routing, retrieval, merging and reranking without an answer.

        Passages come also where the corpora say that nothing fits; `ask` abstains there.
        """
        return _Run(self, Question.of(question)).retrieve()[1]


class _Run:
    """One question on its way through the stages."""

    def __init__(self, pipeline: Pipeline, question: Question) -> None:
        self.pipeline, self.question = pipeline, question
        self.trace: list[Step] = []

    def retrieve(self) -> tuple[list[Route], list[Passage], bool]:
        """Routes, the k passages for the generator, and whether every corpus asked says that nothing fits."""
        pipeline, question = self.pipeline, self.question
        start = time.perf_counter()
        routes = _routes(pipeline.router(question))[: pipeline.routes]
        self._step("route", start, routes=[[route.corpus, route.share] for route in routes])

        found: list[Retrieved] = []
        for route in routes:
            if route.corpus == NONE:  # never touches an index
                continue
            start = time.perf_counter()
            got = _retrieved(pipeline.retriever(question, route.corpus, pipeline.depth), route.corpus)
            found.append(got)
            facts: dict[str, Any] = {"corpus": route.corpus, "ids": [p.id for p in got.passages]}
            self._step("retrieve", start, **facts, nothing_here=got.nothing_here, p_value=got.p_value)
        silent = bool(found) and all(got.nothing_here for got in found)

        start = time.perf_counter()
        # A corpus that knows it has no answer must not outvote one that has; if none has, the nearest are shown.
        lists = [got.passages for got in found if silent or not got.nothing_here]
        merged = list(
            merge_passages(lists, pipeline.merge) if isinstance(pipeline.merge, str) else pipeline.merge(lists)
        )
        ranked = list(pipeline.reranker(question, merged)) if merged else []
        _check_reranked(merged, ranked)
        kept = ranked[: pipeline.k]
        self._step("rerank", start, ids=[p.id for p in kept], scores=[float(p.score) for p in kept])
        return routes, kept, silent

    def generate(self, passages: list[Passage]) -> Answer:
        start = time.perf_counter()
        draft = self.pipeline.generator(self.question, passages)
        if isinstance(draft, str):
            draft = Draft(draft, tuple(p.id for p in passages)) if draft.strip() else Draft.none("an empty answer")
        if not isinstance(draft, Draft):
            raise BadInput(
                f"the generator returned a {type(draft).__name__}, not a Draft or a string", where="Pipeline"
            )
        by_id = {passage.id: passage for passage in reversed(passages)}  # of equal ids the better one
        used = list(dict.fromkeys(name for name in draft.used if name in by_id))
        warnings = list(draft.warnings)
        if len(used) < len(set(draft.used)):
            warnings.append("the generator named sources that it was not given; they were left out")
        facts = {"used": used, "abstained": draft.abstained, "warnings": warnings}
        self._step("generate", start, **facts)
        if draft.abstained or not draft.text.strip():
            return self.abstain(draft.reason or "the passages do not answer the question", passages, warnings)
        if not used:
            if passages or not self.pipeline.unsourced:
                return self.abstain("the generator named no source", passages, warnings)
            warnings.append("answered without sources")
        return Answer(
            self.question.text,
            draft.text,
            tuple(Source.of(by_id[name], draft.quotes.get(name, "")) for name in used),
            warnings=tuple(warnings),
            trace=tuple(self.trace),
            confidence=draft.confidence,
        )

    def abstain(self, reason: str, passages: Sequence[Passage], warnings: Sequence[str] = ()) -> Answer:
        nearest = tuple(Source.of(passage) for passage in passages[:REFUSED])
        return Answer(
            self.question.text,
            "",
            nearest,
            abstained=True,
            reason=reason,
            warnings=tuple(warnings),
            trace=tuple(self.trace),
        )

    def _step(self, stage: str, start: float, **facts: Any) -> None:
        self.trace.append(Step(stage, time.perf_counter() - start, facts))


def _routes(given: Any) -> list[Route]:
    """What a router said as routes, each corpus once."""
    several = [given] if isinstance(given, (str, Route)) else list(given)
    routes: dict[str, Route] = {}
    for route in several:
        if isinstance(route, str):
            route = Route(route, 1.0 / len(several))
        if not isinstance(route, Route):
            raise BadInput(f"the router returned a {type(route).__name__}, not a Route or a name", where="Pipeline")
        routes.setdefault(route.corpus, route)
    return list(routes.values())


def _retrieved(given: Any, corpus: str) -> Retrieved:
    """What a retriever said, each passage with the name of its corpus."""
    got = given if isinstance(given, Retrieved) else Retrieved(list(given))
    for passage in got.passages:
        if not isinstance(passage, Passage):
            raise BadInput(f"the retriever returned a {type(passage).__name__}, not a Passage", where="Pipeline")
    named = [p if p.corpus or not corpus else replace(p, corpus=corpus) for p in got.passages]
    return Retrieved(named, got.nothing_here, got.p_value)


def _check_reranked(before: Sequence[Passage], after: Sequence[Passage]) -> None:
    known = {(p.corpus, p.id) for p in before}
    names = [(p.corpus, p.id) for p in after]
    if not known.issuperset(names) or len(set(names)) < len(names):
        raise BadInput("the reranker returned passages that it was not given, or one twice", where="Pipeline")

"""`UniversalRAG`: a router picks the corpus by modality and granularity, retrieval happens within it (arXiv 2504.20734).

    r = router(question) in {none, paragraph, document, image, clip, video, table, ...}
    c = nothing if r = none, else retriever_r(question; C_r)
    answer = generator(question, c)

One index over all corpora answers almost only with text: score(q, x) = semantic(q, x) + bias(mod q, mod x), and the bias
of text is the largest for a question in words. Choosing the corpus first cancels it, and wins wherever the router is
right more often than the unified index returns the modality that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chiasm.errors import unknown_name
from chiasm.reason.rag.corpora import Corpora
from chiasm.reason.rag.messages import Passage, Question, Route
from chiasm.reason.rag.pipeline import EVERYTHING, NONE, Generator, Pipeline, Retriever, Router
from chiasm.reason.rag.universal_rag.routers import FixedRouter, RandomRouter, RuleRouter
from chiasm.reason.rag.universal_rag.targets import TARGETS
from chiasm.reason.rag.universal_rag.vectors import Parents, parts


class UniversalRAG(Pipeline):
    """A pipeline over several corpora with a router before them.

        >>> rag = UniversalRAG(Corpora({"paragraph": ..., "image": ...}, encoder=space), router=TrainedRouter().fit(...))
        >>> rag.ask("What color is the roof of the town hall?").sources[0].corpus
        'image'

    Args:
        retriever: `Corpora` (the default, empty), a `StoreRetriever`, or your own.
        router: by default `RuleRouter` over the known targets.
        corpora: names of the corpora that exist; by default the retriever's. A route to another is passed over for the
            next best, so that one router serves collections that lack some modality; ``"none"`` always exists.
        routes: corpora asked for one question, the router's best.
        merge: how their rankings become one.
        wholes: documents by id whose parts the retriever holds; a hit on any part returns the whole once.
        **options: of `Pipeline`.
    """

    def __init__(
        self,
        retriever: Retriever | None = None,
        *,
        router: Router | None = None,
        corpora: Sequence[str] | None = None,
        routes: int = 1,
        merge: Any = "reciprocal_rank",
        wholes: dict[str, Passage] | None = None,
        generator: Generator | None = None,
        **options: Any,
    ) -> None:
        self.inner: Any = Corpora() if retriever is None else retriever
        self.chosen = router or RuleRouter(TARGETS)
        self._corpora = None if corpora is None else tuple(corpora)
        self.parents = Parents(self.inner, wholes)
        self._options = {"generator": generator, **options}
        super().__init__(
            self.parents, router=self._available, merge=merge, routes=routes, generator=generator, **options
        )

    @property
    def corpora(self) -> tuple[str, ...]:
        """The corpora that exist."""
        return self._corpora if self._corpora is not None else tuple(getattr(self.inner, "names", ()))

    def add(self, source: Any, *, corpus: str = "") -> int:
        """Parses a source and adds its passages to a corpus.

        Args:
            source: a path, usually.
            corpus: where to; by default each passage goes to ``"table"``, ``"image"``, ``"sound"``, ``"video"`` or
                ``"paragraph"`` by its modality. Into ``"document"`` long passages go in parts.
        """
        passages = list(self.parser(source))
        by_corpus: dict[str, list[Passage]] = {}
        for passage in passages:
            by_corpus.setdefault(corpus or corpus_of(passage), []).append(passage)
        for name, own in by_corpus.items():
            if name == "document":
                self.parents.wholes |= {p.id: p for p in own}
                own = [part for p in own for part in parts(p)]
            self.inner.add(own, corpus=name)
        return len(passages)

    def route(self, question: str | Question, topm: int | None = None) -> list[Route]:
        """The ``topm`` best corpora with their shares; those that do not exist are left out."""
        return self._available(Question.of(question))[:topm]

    def _available(self, question: Question, /) -> list[Route]:
        said = self.chosen(question)
        several = [said] if isinstance(said, (str, Route)) else list(said)
        routes = [route if isinstance(route, Route) else Route(route, 1 / len(several)) for route in several]
        exists = {*self.corpora, NONE, EVERYTHING}
        left = [route for route in routes if route.corpus in exists]
        total = sum(route.share for route in left)
        if not left or total <= 0:  # the router knows none of the corpora: ask them all
            return [Route(EVERYTHING)]
        return [Route(route.corpus, route.share / total) for route in left]

    def baseline(self, name: str, *, seed: int = 0) -> UniversalRAG:
        """The same corpora and generator behind another router.

        Args:
            name: ``"naive"`` (no retrieval), ``"unified"`` (one index over all), ``"all"`` (every corpus, merged),
                ``"random"``, or the name of a corpus, which is then always asked.
            seed: of the random router.

        Raises:
            UnknownName: none of these.
        """
        known = ("naive", "unified", "all", "random", *self.corpora)
        if name not in known:
            raise unknown_name("baseline", name, known)
        if name == "all":
            return self.routed(_every(self.corpora), routes=max(1, len(self.corpora)))
        if name == "random":
            return self.routed(RandomRouter((NONE, *self.corpora), seed=seed), routes=1)
        return self.routed(FixedRouter({"naive": NONE, "unified": EVERYTHING}.get(name, name)), routes=1)

    def routed(self, router: Router, *, routes: int | None = None) -> UniversalRAG:
        """The same corpora and generator behind a router of your own."""
        return UniversalRAG(
            self.inner,
            router=router,
            corpora=self._corpora,
            routes=routes or self.routes,
            merge=self.merge,
            wholes=self.parents.wholes,
            **self._options,
        )


def _every(names: Sequence[str]) -> Router:
    """The router that asks all corpora."""

    def router(question: Question, /) -> list[Route]:
        return [Route(corpus, 1 / len(names)) for corpus in names]

    return router


def corpus_of(passage: Passage) -> str:
    """The corpus in which a passage of a modality usually lies."""
    return {"image": "image", "table": "table", "audio": "sound", "video": "video"}.get(passage.modality, "paragraph")

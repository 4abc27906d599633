"""`StoreRetriever`: a `chiasm.Store` as the retriever of a pipeline, with the store's own verdict on "nothing here"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chiasm.errors import ChiasmError, StoreError, unknown_name
from chiasm.items import MODALITIES, Item
from chiasm.reason.rag.encoder import text_encoder
from chiasm.reason.rag.extractive import ExtractiveGenerator
from chiasm.reason.rag.merge import merge_passages
from chiasm.reason.rag.messages import Passage, Question, Retrieved
from chiasm.reason.rag.pipeline import EVERYTHING, Generator, Pipeline

if TYPE_CHECKING:
    from chiasm.search.results import Hit
    from chiasm.search.store import Store


# Scores of the best sentence (`ExtractiveGenerator`, in a space of texts). Fitted on 50 questions about this project's guides
# and two small PDFs that have an answer there, and 32 that have none. Below LEAST no sentence answers (those that the store
# let pass without an answer: up to 0.29; answers: 0.33 and more); from SURE on a sentence nearly says what is asked, whatever
# the store's statistics say (without an answer: up to 0.37; answers that a store of five items took for chance: 0.53).
LEAST = 0.31
SURE = 0.45


class StoreRetriever:
    """Searches a store; its corpora are filters of `Store.search`.

    Args:
        store: an open store.
        corpora: filters by name, for example ``{"reports": {"path": "~/reports"}}``; besides, ``""`` is the whole store
            and ``"text"``, ``"image"``, ``"audio"``, ``"video"`` are its modalities.
        hybrid: fuse with full-text search.
        rate: accepted share of questions without an answer that get one (`Store.search`).
    """

    def __init__(
        self,
        store: Store,
        corpora: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        hybrid: bool = False,
        rate: float = 0.05,
    ) -> None:
        self.store, self.hybrid, self.rate = store, hybrid, rate
        modalities = {name: {"modality": name} for name in MODALITIES}
        self.corpora: dict[str, Mapping[str, Any]] = {EVERYTHING: {}, **modalities, **(corpora or {})}

    def __call__(self, question: Question, corpus: str, k: int, /) -> Retrieved:
        """The k best items of a corpus; a question with a picture is asked by picture and by words.

        Raises:
            UnknownName: there is no such corpus.
            ChiasmError: as `Store.search`.
        """
        if corpus not in self.corpora:
            raise unknown_name("corpus", corpus, self.corpora)
        lists: list[Retrieved] = []
        if question.text.strip():
            asked: Any = question.text if question.vector is None else question.vector
            lists.append(self._search(asked, corpus, k, hybrid=self.hybrid and question.vector is None))
        if question.image is not None:
            lists.append(self._search(Item.of(question.image), corpus, k))
        if len(lists) == 1:
            return lists[0]
        by_words = lists[0]
        merged = merge_passages([found.passages for found in lists])[:k]
        # A picture's own search is not calibrated, so the words cannot rule it out.
        return Retrieved(merged, False, by_words.p_value)

    def _search(self, asked: Any, corpus: str, k: int, **options: Any) -> Retrieved:
        result = self.store.search(asked, k, rate=self.rate, **options, **self.corpora[corpus])
        passages = [passage_of(hit, corpus) for hit in result.hits]
        return Retrieved(passages, result.nothing_here, result.p_value)


def passage_of(hit: Hit, corpus: str = "") -> Passage:
    """A hit of a store as a passage."""
    return Passage(
        id=hit.id,
        text=hit.text,
        modality=hit.modality,
        uri=hit.uri,
        part=hit.part,
        meta=hit.meta,
        score=hit.score,
        relevance=hit.relevance,
        corpus=corpus,
    )


def over_store(
    store: Store,
    *,
    generator: Generator | None = None,
    k: int = 8,
    hybrid: bool = True,
    rate: float = 0.05,
    filters: Mapping[str, Any] | None = None,
    sentences: int = 2,
) -> Pipeline:
    """The pipeline of ``chiasm ask``: hybrid search, the store's verdict, and sentences chosen in the store's own space.

    Args:
        store: an open store.
        generator: by default the offline one.
        k: passages that the generator sees.
        hybrid: fuse with full-text search; left out where the store cannot be written and has no text index.
        rate: accepted share of questions without an answer that get one.
        filters: of `Store.search`, for all questions.
        sentences: most sentences of an offline answer.
    """
    if hybrid:
        try:
            store.text_index()
        except StoreError:  # read-only, or another process is writing: vectors alone will do
            hybrid = False
    retriever = StoreRetriever(store, {EVERYTHING: dict(filters or {})}, hybrid=hybrid, rate=rate)
    return Pipeline(
        retriever, generator=generator or offline_generator(store, sentences=sentences), k=k, depth=max(20, k)
    )


def offline_generator(store: Store, *, sentences: int = 2) -> ExtractiveGenerator:
    """The offline generator in the space of a store; by words alone where that space has no text."""
    if not store.can_encode_text:
        return ExtractiveGenerator(sentences=sentences)
    return ExtractiveGenerator(lambda texts, role: _encoded(store, texts, role), sentences=sentences, least=LEAST)


def _encoded(store: Store, texts: Any, role: Any) -> Any:
    # Looked up at every call: an upgrade may exchange the store's space between two questions.
    return text_encoder(store.space)(texts, role)


def picture_of(passage: Passage, side: int = 768) -> Any:
    """The picture that a passage of a store stands for, read from its file; None if that cannot be done."""
    if passage.content is not None or passage.modality != "image" or not passage.uri:
        return passage.content
    import io

    from PIL import Image

    from chiasm.encode.thumbnails import thumbnail

    try:
        return Image.open(io.BytesIO(thumbnail(passage.uri, passage.part, size=side)))
    except ChiasmError:  # the file is gone or changed since it was indexed
        return None

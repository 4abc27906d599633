"""The contract of the pipeline: every stage can be replaced, every answer has sources or abstains, stages cannot cheat."""

import json

import numpy as np
import pytest

from chiasm.errors import BadInput, UnknownName
from chiasm.reason.rag import (
    NONE,
    Answer,
    Corpora,
    Draft,
    ExtractiveGenerator,
    Passage,
    Pipeline,
    Question,
    Retrieved,
    Route,
)

TEXTS = {
    "orla": "The plant in Orla is run by Mira Voss. It opened in 1931.",
    "brum": "The plant in Brum makes glass bottles. Its director is Tamsin Reed.",
    "kelm": "Kelm has no plant, but a harbor and a lighthouse of red brick.",
}


def corpora(**options):
    return Corpora({"towns": [Passage(name, text, uri=f"/d/{name}.txt") for name, text in TEXTS.items()]}, **options)


def test_the_defaults_answer_from_memory():
    answer = Pipeline(corpora()).ask("Who runs the plant in Orla?")
    assert answer.text == "The plant in Orla is run by Mira Voss."
    assert answer.sources[0].id == "orla"
    assert answer.sources[0].quote in TEXTS["orla"]
    assert [step.stage for step in answer.trace] == ["route", "retrieve", "rerank", "generate"]
    assert json.loads(json.dumps(answer.to_json()))["sources"][0]["corpus"] == "towns"


def test_the_same_question_gives_the_same_answer():
    def told(answer: Answer):
        return answer.text, answer.sources, answer.abstained, [step.facts for step in answer.trace]

    asked = "What does the plant in Brum make?"
    assert told(Pipeline(corpora()).ask(asked)) == told(Pipeline(corpora()).ask(asked))


def test_nothing_in_common_is_an_abstention():
    answer = Pipeline(corpora()).ask("quantum chromodynamics")
    assert answer.abstained
    assert answer.text == ""
    assert answer.reason
    empty = Pipeline().ask("anything?")
    assert empty.abstained
    assert empty.sources == ()


def test_every_stage_is_a_callable():
    calls = []

    def router(question):
        calls.append("router")
        return ["a", "b"]

    def retriever(question, corpus, k):
        calls.append(f"retriever {corpus} {k}")
        return [Passage(f"{corpus}{i}", f"text {corpus}{i}", score=1.0 - i / 10) for i in range(3)]

    def reranker(question, passages):
        calls.append("reranker")
        return passages[::-1]

    def generator(question, passages):
        calls.append("generator")
        return "".join(p.id for p in passages)

    made = Pipeline(retriever, router=router, reranker=reranker, generator=generator, routes=2, depth=7, k=4)
    answer = made.ask("q")
    assert calls == ["router", "retriever a 7", "retriever b 7", "reranker", "generator"]
    assert answer.text == "b2a2b1a1"
    assert [s.id for s in answer.sources] == ["b2", "a2", "b1", "a1"]
    assert [s.corpus for s in answer.sources] == ["b", "a", "b", "a"]


def test_none_never_touches_an_index():
    def never(question, corpus, k):
        raise AssertionError("asked")

    answer = Pipeline(never, router=lambda question: NONE).ask("What is 2 plus 2?")
    assert answer.abstained
    assert "no corpus" in answer.reason
    free = Pipeline(never, router=lambda q: NONE, generator=lambda q, p: Draft("4"), unsourced=True).ask("2 plus 2?")
    assert free.text == "4"
    assert free.sources == ()
    assert free.warnings == ("answered without sources",)


def test_an_answer_without_a_source_is_none():
    class Retriever:
        def __call__(self, question, corpus, k):
            return [Passage("1", "text")]

    answer = Pipeline(Retriever(), generator=lambda q, p: Draft("trust me")).ask("q")
    assert answer.abstained
    assert answer.text == ""
    invented = Pipeline(Retriever(), generator=lambda q, p: Draft("see 9", used=("9", "1"))).ask("q")
    assert [s.id for s in invented.sources] == ["1"]
    assert "left out" in invented.warnings[0]
    silent = Pipeline(Retriever(), generator=lambda q, p: "   ").ask("q")
    assert silent.abstained


def test_a_corpus_without_an_answer_does_not_outvote_one_that_has_it():
    found = {
        "a": Retrieved([Passage("a1", "x")], nothing_here=True, p_value=0.9),
        "b": Retrieved([Passage("b1", "y")], p_value=0.001),
    }
    made = Pipeline(
        lambda q, corpus, k: found[corpus], router=lambda q: ["a", "b"], routes=2, generator=lambda q, p: "ok"
    )
    assert [s.id for s in made.ask("q").sources] == ["b1"]
    found["b"] = Retrieved([Passage("b1", "y")], nothing_here=True)
    answer = made.ask("q")
    assert answer.abstained
    assert {s.id for s in answer.sources} == {"a1", "b1"}  # the nearest, as refused
    assert len(made.retrieve("q")) == 2


def test_stages_that_break_the_contract_are_named():
    one = [Passage("1", "text")]
    cases = [
        ({"router": lambda q: [3]}, "router returned"),
        ({"retriever": lambda q, c, k: ["text"]}, "retriever returned a str"),
        ({"reranker": lambda q, p: [Passage("2")]}, "reranker returned"),
        ({"reranker": lambda q, p: [*p, *p]}, "reranker returned"),
        ({"generator": lambda q, p: 3}, "generator returned a int"),
    ]
    for stages, message in cases:
        stages = {"retriever": lambda q, c, k: one, **stages}
        with pytest.raises(BadInput, match=message):
            Pipeline(stages.pop("retriever"), **stages).ask("q")
    with pytest.raises(BadInput, match="not a callable"):
        Pipeline(corpora(), generator="gpt")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="at least 1"):
        Pipeline(corpora(), k=0)
    with pytest.raises(UnknownName):
        Pipeline(corpora(), merge="best")
    with pytest.raises(BadInput, match="cannot be added to"):
        Pipeline(lambda q, c, k: one).add("x.txt")


def test_questions_are_bounded():
    for bad in ("", "  \n"):
        with pytest.raises(BadInput, match="empty"):
            Pipeline(corpora()).ask(bad)
    with pytest.raises(BadInput, match="20000 at most"):
        Pipeline(corpora()).ask("x" * 20_001)
    with pytest.raises(BadInput, match="a question is text"):
        Question(3)  # type: ignore[arg-type]


def test_shares_order_the_routes():
    seen = []

    def retriever(question, corpus, k):
        seen.append(corpus)
        return []

    Pipeline(retriever, router=lambda q: [Route("x", 0.7), Route("x", 0.1), Route("y", 0.2)], routes=3).ask("q")
    assert seen == ["x", "y"]  # each corpus once


# ---- corpora in memory


def test_corpora_search_within_and_over_all():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4)).astype(np.float32)
    made = Corpora()
    made.add([Passage(str(i)) for i in range(3)], corpus="a", vectors=vectors[:3])
    made.add([Passage(str(i)) for i in range(3)], corpus="b", vectors=vectors[3:])
    question = Question("q", vector=rng.normal(size=4))
    scores = vectors @ np.asarray(question.vector, np.float32)
    for corpus, part in (("a", slice(0, 3)), ("b", slice(3, 6)), ("", slice(0, 6))):
        got = made(question, corpus, 2)
        assert [p.score for p in got] == pytest.approx(np.sort(scores[part])[::-1][:2].tolist())
    assert len(made(question, "", 99)) == 6
    # Adding a constant to one corpus changes the unified ranking, never the one within.
    moved = Corpora()
    moved.add([Passage(str(i)) for i in range(3)], corpus="a", vectors=vectors[:3])
    moved.add([Passage(str(i)) for i in range(3)], corpus="b", vectors=vectors[3:] + 9 * question.vector)
    assert [p.id for p in moved(question, "b", 3)] == [p.id for p in made(question, "b", 3)]
    assert [p.corpus for p in moved(question, "", 3)] == ["b", "b", "b"]


def test_a_passage_with_a_known_id_replaces_the_old_one():
    made = corpora()
    made.add([Passage("orla", "Orla is empty now.")], corpus="towns")
    made.add([Passage("orla", "Orla is empty now.")], corpus="towns")
    assert len(made) == 3
    assert made(Question("Mira Voss"), "towns", 3) == []  # the old words are gone


def test_corpora_refuse_what_does_not_fit():
    made = Corpora()
    made.add([Passage("1")], vectors=np.ones((1, 3)))
    with pytest.raises(BadInput, match="others have none"):
        made.add([Passage("2", "words")])
    with pytest.raises(BadInput, match="length 2 among others"):
        made.add([Passage("2")], vectors=np.ones((1, 2)))
    with pytest.raises(BadInput, match="shape"):
        made.add([Passage("2")], vectors=np.ones((2, 3)))
    with pytest.raises(BadInput, match="NaN"):
        made.add([Passage("2")], vectors=np.full((1, 3), np.nan))
    with pytest.raises(BadInput, match="has no vector"):
        made(Question("q"), "", 1)
    with pytest.raises(BadInput, match="length 2"):
        made(Question("q", vector=np.ones(2)), "", 1)
    with pytest.raises(UnknownName):
        made(Question("q", vector=np.ones(3)), "elsewhere", 1)
    wordless = Corpora({"pictures": [Passage("p", modality="image")]})
    assert wordless(Question("a cat"), "pictures", 3) == []


def test_an_encoder_makes_the_vectors():
    letters = "abcdefghijklmnopqrstuvwxyz"

    def encoder(texts):
        return np.array([[text.casefold().count(letter) + 1e-3 for letter in letters] for text in texts])

    made = corpora(encoder=encoder)
    assert made(Question(TEXTS["kelm"]), "towns", 1)[0].id == "kelm"
    answer = Pipeline(made, generator=ExtractiveGenerator(encoder)).ask("Who runs the plant in Orla?")
    assert answer.sources
    with pytest.raises(BadInput, match="gave vectors of shape"):
        Corpora({"x": [Passage("1", "a")]}, encoder=lambda texts: np.ones(3))

"""Sentences, words in common, and the extractive generator: it quotes, points, or says that it cannot."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput
from chiasm.reason.rag.extractive import ExtractiveGenerator
from chiasm.reason.rag.messages import Passage, Question, locator
from chiasm.reason.rag.openai_generator import picture_url, renumbered
from chiasm.reason.rag.sentences import sentence_spans, sentences
from chiasm.reason.rag.words import content_words, overlap


def test_sentences_over_broken_lines_and_abbreviations():
    page = "The plant in Orla was opened by Dr. Voss in May\n1931, as Fig. 2 shows. It makes 3.5 t a day.\nCosts\nThe costs fell."
    assert sentences(page) == [
        "The plant in Orla was opened by Dr. Voss in May 1931, as Fig. 2 shows.",
        "It makes 3.5 t a day.",
        "Costs",
        "The costs fell.",
    ]
    assert sentences("- one thing\n- another thing") == ["- one thing", "- another thing"]
    assert sentences("他来了。她走了！") == ["他来了。", "她走了！"]
    assert sentences(" \n\n ") == []


@given(st.text(alphabet="ab .!?\n\t-|1é。", max_size=200))
@settings(max_examples=150, deadline=None)
def test_spans_hold_all_visible_text_in_order(text):
    spans = sentence_spans(text)
    covered = [place for start, end in spans for place in range(start, end)]
    assert covered == sorted(set(covered))
    assert {i for i, c in enumerate(text) if not c.isspace()} <= set(covered)


def test_words_that_count():
    assert content_words("What are the Cities of the Netherlands?") == ["city", "netherland"]
    assert content_words("who are you") == ["who", "are", "you"]  # function words alone stay
    assert content_words("Crème brûlée") == ["creme", "brulee"]
    assert content_words("東京") == ["東", "京"]
    held = overlap("red brick lighthouse", ["a red lighthouse", "a red boat", "nothing"])
    assert held[0] > held[1] > held[2] == 0
    assert overlap("x", []).shape == (0,)


def ask(question, *passages, **options):
    return ExtractiveGenerator(**options)(Question(question), passages)


def test_it_quotes_the_sentence_that_holds_the_question():
    draft = ask(
        "How tall is the lighthouse?",
        Passage("1", "The harbor is old. It is deep."),
        Passage("2", "The lighthouse of Kelm\nis 31 meters tall. It is red."),
    )
    assert draft.text == "The lighthouse of Kelm is 31 meters tall."
    assert draft.used == ("2",)
    assert draft.quotes["2"] in "The lighthouse of Kelm\nis 31 meters tall. It is red."


def test_rows_of_a_table_are_said_with_their_columns():
    table = Passage("t", "town | output | year\n--- | --- | ---\nOrla | 417 | 1931\nBrum | 388 | 1940", "table")
    draft = ask("What is the output of Brum?", table, sentences=1)
    assert draft.text == "town: Brum; output: 388; year: 1940."
    assert draft.quotes["t"] == "Brum | 388 | 1940"


def test_what_has_no_words_is_pointed_at():
    picture = Passage("p", "", "image", uri="/d/report.pdf", part="page=3,image=1", meta={"page": 3})
    draft = ExtractiveGenerator(lambda texts: np.ones((len(texts), 2)))(Question("a chart"), [picture])
    assert draft.text == "See the picture: page 3, picture 1 of report.pdf."
    assert draft.used == ("p",)


def test_it_abstains():
    assert ask("anything").abstained
    assert ask("quantum", Passage("1", "harbor")).abstained
    assert ask("harbor", Passage("1", "   \n"), Passage("2", "")).abstained
    turned = {"q": [1.0, 0.0], "far": [0.0, 1.0], "near": [0.9, 0.1]}
    strict = ExtractiveGenerator(lambda texts: np.array([turned[t] for t in texts]), words=0.0, least=0.5)
    assert strict(Question("q"), [Passage("1", "far")]).abstained
    assert not strict(Question("q"), [Passage("1", "near")]).abstained


def test_a_second_sentence_only_if_it_is_close_and_says_something_else():
    said = "Kelm has a harbor."
    same = [Passage("1", said), Passage("2", said)]
    assert ask("harbor of Kelm", *same).used == ("1",)
    two = ask("harbor of Kelm", Passage("1", said), Passage("2", "The harbor of Kelm is deep."), prior=0.0)
    assert len(two.used) == 2
    assert len(ask("harbor of Kelm", *same, Passage("3", "Kelm: deep harbor"), sentences=1, prior=0.0).used) == 1


def test_many_passages_are_cut_evenly():
    long = [Passage(str(i), f"word{i} harbor. " * 300) for i in range(300)]
    assert ask("harbor", *long).used[0] == "0"


def test_numbers_out_of_range_are_refused():
    for bad in ({"sentences": 0}, {"words": 1.5}, {"prior": -1}, {"close": 2}):
        with pytest.raises(BadInput):
            ExtractiveGenerator(**bad)


def test_places_in_words():
    assert locator("page=3,chunk=2", {"page": 3, "heading": "x"}) == "page 3"
    assert locator("sheet=Prices,chunk=1", {"sheet": "Prices", "rows": "2-40"}) == "sheet Prices, rows 2-40"
    assert locator("t=12.5", {}) == "at 12.5 s"
    assert locator("chunk=1", {"heading": "Costs"}) == "section 'Costs'"
    assert locator("", {}) == ""


def test_numbers_of_passages_count_sources():
    text, cited, wrong = renumbered("B is so [3]. A too [1, 3]. Nine [9].", 3)
    assert (text, cited, wrong) == ("B is so [1]. A too [2][1]. Nine.", [2, 0], True)
    assert renumbered("none", 3) == ("none", [], False)
    assert renumbered("x【2】 [passage 1]", 2)[1] == [1, 0]


def test_pictures_become_addresses():
    from PIL import Image

    url = picture_url(Image.new("RGBA", (2000, 100), "red"))
    assert url is not None
    assert url.startswith("data:image/jpeg;base64,")
    assert picture_url("not a picture") is None

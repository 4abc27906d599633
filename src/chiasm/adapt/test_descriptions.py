"""Descriptions from every kind of source, and what happens where a source knows nothing."""

import json

import pytest

from chiasm.adapt.descriptions import ANY, QUESTIONS, Asked, Descriptions, Templates, describe, split_sentences
from chiasm.errors import BadInput, UnknownName


def test_without_a_source_the_templates_speak():
    found = describe(["wine_bottle"])
    assert found.fallback == ("wine_bottle",)
    assert found.aspects == ("photo",)
    assert found.sentences("wine_bottle")[0] == "a photo of a wine bottle."
    assert found.flat()[1] == [0] * 5


@pytest.mark.parametrize(
    ("answer", "table"),
    [
        ("a tame animal.", {ANY: ("a tame animal.",)}),
        ([" one. ", "two.", "one."], {ANY: ("one.", "two.")}),
        ({"shape": "long.", "parts": ["paw.", ""]}, {"shape": ("long.",), "parts": ("paw.",)}),
    ],
)
def test_sources_may_answer_with_aspects_lists_or_one_sentence(answer, table):
    for source in ({"cat": answer}, lambda name: answer):
        assert describe(["cat"], source)["cat"] == table


@pytest.mark.parametrize("nothing", [None, "", [], {}, {"shape": ["  "]}])
def test_classes_the_source_does_not_know_are_listed(nothing):
    found = describe(["cat", "dog"], {"cat": "purrs.", "dog": nothing})
    assert found.fallback == ("dog",)
    assert found.sentences("cat") == ("purrs.",)
    assert found.sentences("dog") == Templates()("dog")["photo"]


def test_order_follows_the_class_list_and_flat_numbers_it():
    found = describe(["b", "a"], {"a": ["1", "2"], "b": "3"})
    assert found.classes == ("b", "a")
    assert found.flat() == (["3", "1", "2"], [0, 1, 1])


def test_some_aspects_only():
    found = describe(["a", "b"], {"a": {"x": "1", "y": "2"}, "b": {"x": "3"}})
    assert found.aspects == ("x", "y")
    assert found.flat(["x"]) == (["1", "3"], [0, 1])
    with pytest.raises(BadInput, match=r"'b' has no sentence"):
        found.flat(["y"])


def test_the_fallback_can_stand_beside_the_source():
    found = describe(["a"], {"a": {"photo": "mine."}}, fallback=Templates({"photo": ["{}!"]}), with_fallback=True)
    assert found["a"] == {"photo": ("mine.", "a!")}
    assert found.fallback == ()


def test_a_file_is_read_again_as_it_was_saved(tmp_path):
    found = describe(["a", "\u00e9t\u00e9"], {"a": {"x": ["1", "2"]}, "\u00e9t\u00e9": "chaud."})
    found.save(tmp_path / "d.json")
    again = describe(found.classes, tmp_path / "d.json")
    assert dict(again) == dict(found)
    assert json.loads((tmp_path / "d.json").read_text(encoding="utf-8")) == found.to_json()


def test_a_generator_is_asked_one_question_an_aspect():
    asked = []

    def generate(prompt):
        asked.append(prompt)
        return "1. It is small. It is red.\n\n- It is small.\n"

    found = describe(["wine_bottle"], Asked(generate, most=2))
    assert len(asked) == len(QUESTIONS)
    assert all("wine bottle" in prompt for prompt in asked)
    assert found["wine_bottle"]["shape"] == ("It is small.", "It is red.")


def test_answers_are_cut_into_sentences():
    assert split_sentences("* Red, 3.5 cm wide! Round?\n2) Soft.") == ["Red, 3.5 cm wide!", "Round?", "Soft."]
    assert split_sentences(" \n") == []


@pytest.mark.parametrize(
    ("classes", "source", "message"),
    [
        ([], None, "no list"),
        ("cat", None, "no list"),
        (["a", "a"], None, "twice"),
        (["a", " "], None, "no name"),
        (["a"], {"a": [1]}, "strings"),
        (["a"], {"a": {"x": 3}}, "strings"),
        (["a"], 7, "describes nothing"),
        (["a"], "/no/such/file.json", "cannot be read"),
    ],
)
def test_bad_input_is_refused(classes, source, message):
    with pytest.raises(BadInput, match=message):
        describe(classes, source)


def test_files_that_are_no_table_and_silent_fallbacks_are_refused(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(BadInput, match="no table"):
        describe(["a"], tmp_path / "list.json")
    with pytest.raises(BadInput, match="nothing is known"):
        describe(["a"], fallback=lambda name: None)
    with pytest.raises(BadInput, match="exactly one"):
        Templates({"x": ["no place"]})
    with pytest.raises(BadInput, match="no pattern"):
        Templates({})
    with pytest.raises(UnknownName, match="Did you mean cat"):
        Descriptions({"cat": {"x": ("1",)}})["cats"]


def test_classes_may_be_numbers_and_found_descriptions_are_a_source():
    found = describe([0, 1], {0: "zero.", "1": "one."})  # pyright: ignore
    assert (found.sentences("0"), found.sentences("1"), found.fallback) == (("zero.",), ("one.",), ())
    again = describe(["0", "2"], found)
    assert (again.sentences("0"), again.fallback) == (("zero.",), ("2",))


def test_sources_of_the_wrong_kind_are_refused():
    with pytest.raises(BadInput, match="no list"):
        describe(None)  # pyright: ignore
    with pytest.raises(BadInput, match="answered with a int"):
        describe(["a"], Asked(lambda prompt: 3))  # pyright: ignore
    with pytest.raises(BadInput, match="dict is no fallback"):
        describe(["a"], fallback={"a": "x"})  # pyright: ignore
    with pytest.raises(BadInput, match="holds one text"):
        Templates({"x": "a photo of {}"})

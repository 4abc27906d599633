"""Words as numbers."""

from __future__ import annotations

import pytest

from chiasm.errors import BadInput
from chiasm.learn.words import MASK, PAD, UNKNOWN, Words

TEXTS = ["A red dog, running!", "a Red cat", "một con mèo đỏ", "a dog"]


def test_case_and_punctuation_do_not_count_and_accents_do():
    words = Words.of(TEXTS)
    one, two, three = words.ids(["A RED dog.", "a red dog", "một mot"])
    assert one.tolist() == two.tolist()
    assert three[0] != UNKNOWN
    assert three[1] == UNKNOWN
    assert words.words(one.tolist()) == ["a", "red", "dog"]
    # Composed and decomposed letters are one word.
    assert words.ids(["m\u1ed9t"])[0].tolist() == words.ids(["mo\u0323\u0302t"])[0].tolist()


def test_first_ids_are_reserved():
    words = Words.of(TEXTS)
    assert (PAD, UNKNOWN, MASK) == (0, 1, 2)
    assert words.words([PAD, UNKNOWN, MASK, 10_000]) == ["[PAD]", "[UNK]", "[MASK]", "[UNK]"]
    assert min(i for text in TEXTS for i in words.ids([text])[0]) >= 3
    assert len(words) == 3 + len({"a", "red", "dog", "running", "cat", "một", "con", "mèo", "đỏ"})


def test_nobody_can_write_padding_or_a_mask():
    words = Words.of([*TEXTS, "[PAD] [MASK]"])
    for text in ("[PAD]", "[MASK] dog", "dog [UNK]", "[pad]"):
        assert not {PAD, MASK} & set(words.ids([text])[0].tolist()), text


def test_empty_and_endless_texts():
    words = Words.of(TEXTS)
    for text in ("", "   ", "?!", "\u0000"):
        assert words.ids([text])[0].tolist() == [UNKNOWN]
    assert len(words.ids(["dog " * 1000])[0]) == 64
    assert len(words.ids(["dog " * 1000], longest=3)[0]) == 3
    assert words.ids([]) == []
    with pytest.raises(BadInput, match="no texts"):
        Words.of([])


def test_rare_words_are_unknown_and_the_size_is_bounded():
    words = Words.of(TEXTS, least=2)
    assert words.ids(["a cat"])[0].tolist()[1] == UNKNOWN
    assert len(Words.of([f"w{i}" for i in range(100)], most=10)) == 10


def test_the_same_texts_give_the_same_numbers():
    one, other = Words.of(TEXTS * 3), Words.of(list(reversed(TEXTS)) * 3)
    assert [x.tolist() for x in one.ids(TEXTS)] == [x.tolist() for x in other.ids(TEXTS)]

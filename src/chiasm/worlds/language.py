"""Sentences about scenes in English, German, French and Spanish: structured statements, their words, and a parser.

A `Statement` is what a sentence says; `say` puts it into words with the right gender, number and case; `parse` reads the
words back. The truth of a statement is decided on the scene graph (`chiasm.worlds.captions.holds`), never on the words.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from chiasm.errors import BadInput, unknown_name
from chiasm.worlds import vocabulary as words

# German endings of adjectives by case: after "ein" (masculine, feminine, neuter), and in the plural after a number.
_GERMAN_ENDINGS = {
    "nominative": {"m": "er", "f": "e", "n": "es", "many": "e"},
    "accusative": {"m": "en", "f": "e", "n": "es", "many": "e"},
    "dative": {"m": "en", "f": "en", "n": "en", "many": "en"},
}
_GERMAN_ARTICLES = {
    "nominative": {"m": "ein", "f": "eine", "n": "ein"},
    "accusative": {"m": "einen", "f": "eine", "n": "ein"},
    "dative": {"m": "einem", "f": "einer", "n": "einem"},
}


@dataclass(frozen=True, slots=True)
class Mention:
    """``count`` objects with the attributes that are given; None leaves an attribute open."""

    count: int = 1
    shape: str | None = None
    color: str | None = None
    texture: str | None = None
    size: str | None = None

    def attributes(self) -> dict[str, str]:
        """The attributes that are given."""
        return {name: value for name in words.ATTRIBUTES if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Statement:
    """What a sentence says: a list of mentions, or two mentions with a relation, or one mention with a place."""

    mentions: tuple[Mention, ...]
    relation: str | None = None
    place: str | None = None


def noun_phrase(mention: Mention, language: str, case: str = "nominative") -> str:
    """The words of a mention: "two small striped red circles", "zwei kleine gestreifte rote Kreise"."""
    noun = words.NOUNS[language][mention.shape]
    many = mention.count > 1
    head = noun.many if many else noun.one
    adjectives = words.ADJECTIVES[language]
    number = words.NUMBERS[language][mention.count - 2] if many else ""
    if language == "en":
        before = [adjectives[value] for value in (mention.size, mention.texture, mention.color) if value]
        first = str(before[0]) if before else head
        article = "an" if first[0] in "aeiou" else "a"
        return " ".join([number or article, *map(str, before), head])
    if language == "de":
        if case == "dative":
            head = (noun.many_dative or head) if many else (noun.one_dative or head)
        ending = _GERMAN_ENDINGS[case]["many" if many else noun.gender]
        before = [f"{adjectives[value]}{ending}" for value in (mention.size, mention.texture, mention.color) if value]
        return " ".join([number or _GERMAN_ARTICLES[case][noun.gender], *before, head])
    form = 2 * many + (noun.gender == "f")

    def agree(value: str | None) -> str:
        word = "" if value is None else adjectives[value]
        return word if isinstance(word, str) else word[form]

    if language == "fr":
        article = number or ("une" if noun.gender == "f" else "un")
        early, late = ("", agree(mention.size)) if mention.size == "medium" else (agree(mention.size), "")
        return " ".join(filter(None, [article, early, head, agree(mention.color), agree(mention.texture), late]))
    article = number or ("una" if noun.gender == "f" else "un")
    return " ".join(filter(None, [article, head, agree(mention.color), agree(mention.size), agree(mention.texture)]))


def say(statement: Statement, language: str = "en", opening: int = 0) -> str:
    """The sentence of a statement.

    Args:
        statement: what to say; with a relation it has two mentions, with a place one.
        language: ``"en"``, ``"de"``, ``"fr"`` or ``"es"``.
        opening: 0 for the bare phrase, 1 for "a picture of ...", 2 for "this picture shows ...".

    Raises:
        UnknownName: a language that does not exist.
        BadInput: no mention, a count outside 1..9, or a relation without exactly two mentions.
    """
    if language not in words.LANGUAGES:
        raise unknown_name("language", language, words.LANGUAGES)
    if not statement.mentions or not all(1 <= mention.count <= 9 for mention in statement.mentions):
        raise BadInput("a statement needs mentions with counts from 1 to 9", where="say")
    start, case = words.OPENINGS[language][opening]
    if statement.relation is not None:
        if len(statement.mentions) != 2 or statement.mentions[1].count != 1:
            raise BadInput("a relation needs two mentions, the second of one object", where="say")
        first, second = statement.mentions
        between = words.RELATION_WORDS[language][statement.relation]
        text = f"{noun_phrase(first, language, case)} {between} {noun_phrase(second, language, 'dative')}".replace(
            "' ", "'"
        )
    else:
        phrases = [noun_phrase(mention, language, case) for mention in statement.mentions]
        joint = f" {words.AND[language]} "
        text = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + joint + phrases[-1]
        if statement.place is not None:
            text += f" {words.PLACE_WORDS[language][statement.place]}"
    return f"{start} {text}".strip()


def parse(text: str, language: str = "en") -> Statement:
    """Reads a sentence that `say` can make back into its statement, by longest match over the words.

    Raises:
        BadInput: words that are not in the vocabulary of scenes, named in the message.
    """
    if language not in words.LANGUAGES:
        raise unknown_name("language", language, words.LANGUAGES)
    forms, longest = _forms(language)
    tokens = _tokens(text)
    mentions: list[dict] = []
    relation: Any = None
    place: Any = None
    at = 0
    while at < len(tokens):
        for width in range(min(longest, len(tokens) - at), 0, -1):
            found = forms.get(" ".join(tokens[at : at + width]))
            if found is not None:
                break
        else:
            raise BadInput(f"the word {tokens[at]!r} is not in the vocabulary of scenes", where=repr(text))
        at += width
        kind, value = found
        if kind == "count":
            mentions.append({"count": value})
        elif kind == "relation":
            relation = value
        elif kind == "place":
            place = value
        elif kind != "skip":
            if not mentions:
                raise BadInput(f"{value!r} stands before any article or number", where=repr(text))
            mentions[-1][kind] = value
    return Statement(tuple(Mention(**mention) for mention in mentions), relation, place)


def _tokens(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*'?|,", text.lower())


@functools.cache
def _forms(language: str) -> tuple[dict[str, tuple[str, object]], int]:
    """Every surface form (lower case, tokens joined by blanks) -> (kind, value), and the length of the longest."""
    forms: dict[str, tuple[str, object]] = {}

    def add(text: str, kind: str, value: object) -> None:
        if text:
            forms[" ".join(_tokens(text))] = (kind, value)

    add(",", "skip", None)
    add(words.AND[language], "skip", None)
    articles = {"en": "a an", "de": "ein eine einen einem einer", "fr": "un une", "es": "un una"}
    for article in articles[language].split():
        add(article, "count", 1)
    for place_in_list, number in enumerate(words.NUMBERS[language]):
        add(number, "count", place_in_list + 2)
    for shape, noun in words.NOUNS[language].items():
        for form in (noun.one, noun.many, noun.one_dative, noun.many_dative):
            add(form, "shape", shape)
    for attribute, values in words.ATTRIBUTES.items():
        for value in values if attribute != "shape" else ():
            word = words.ADJECTIVES[language][value]
            if isinstance(word, tuple):
                surfaces = set(word)
            else:
                surfaces = {word + ending for ending in ("e", "er", "es", "en")} if language == "de" else {word}
            for surface in surfaces:
                add(surface, attribute, value)
    for relation, phrase in words.RELATION_WORDS[language].items():
        add(phrase, "relation", relation)
    for place, phrase in words.PLACE_WORDS[language].items():
        add(phrase, "place", place)
    for opening, _ in words.OPENINGS[language]:
        add(opening, "skip", None)
    return forms, max(len(form.split()) for form in forms)


def known_words(language: str) -> list[str]:
    """Every word (token) that `say` can use in a language, in a fixed order."""
    forms, _ = _forms(language)
    return sorted({token for form in forms for token in form.split()})

"""What can truly, and what can almost truly, be said about a scene: captions, their truth, and hard negatives."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from chiasm.errors import unknown_name
from chiasm.worlds.language import Mention, Statement, say
from chiasm.worlds.scenes import Scene
from chiasm.worlds.vocabulary import ATTRIBUTES, LANGUAGES, OPENINGS, OPPOSITE, RELATION_WORDS

STYLES = ("full", "color", "shape", "relation", "partial")
NEGATIVES = ("attribute_swap", "attribute_change", "relation_swap", "count_change")


@dataclass(frozen=True, slots=True)
class Caption:
    """A true sentence about a scene.

    Args:
        text: the sentence.
        language: ``"en"``, ``"de"``, ``"fr"`` or ``"es"``.
        style: ``"full"`` (every object with all attributes), ``"color"`` (color and shape of every object), ``"shape"``
            (shapes only), ``"relation"`` (two objects and how they stand; a place in scenes without a relation), or
            ``"partial"`` (one kind of object, with its place if there is one of it).
        statement: what it says.
        opening: how it begins, see `chiasm.worlds.language.say`.
    """

    text: str
    language: str
    style: str
    statement: Statement
    opening: int = 0


@dataclass(frozen=True, slots=True)
class Negative:
    """A sentence that is false of the scene and differs from ``caption`` by one change of ``kind``; it begins like it."""

    text: str
    language: str
    kind: str
    statement: Statement
    caption: Caption


def captions(scene: Scene, language: str = "en") -> list[Caption]:
    """Five captions of a scene, one per style; the same for the same scene and language.

    Raises:
        UnknownName: a language that does not exist.
    """
    if language not in LANGUAGES:
        raise unknown_name("language", language, LANGUAGES)
    # Every language says the same: the draws do not depend on it.
    rng = np.random.Generator(np.random.PCG64([scene.seed, scene.index, 2]))
    said = _statements(scene, rng)
    opening = rng.integers(0, len(OPENINGS["en"]), size=len(STYLES))
    return [
        Caption(say(said[style], language, int(start)), language, style, said[style], int(start))
        for style, start in zip(STYLES, opening)
    ]


def negatives(scene: Scene, language: str = "en") -> list[Negative]:
    """Hard negatives of a scene's captions, at most one of each kind; every one is false of the scene.

    Scenes that offer no false sentence of a kind (an attribute swap needs two different objects, a relation swap a
    relation) have none of that kind.
    """
    rng = np.random.Generator(np.random.PCG64([scene.seed, scene.index, 3]))
    by_style = {caption.style: caption for caption in captions(scene, language)}
    sources = {
        "attribute_swap": "color",
        "attribute_change": "color",
        "relation_swap": "relation",
        "count_change": "color",
    }
    found = []
    for kind in NEGATIVES:
        caption = by_style[sources[kind]]
        options = [option for option in _changes(caption.statement, kind) if not holds(option, scene)]
        choice = int(rng.integers(0, 1 << 30))
        if options:
            statement = options[choice % len(options)]
            found.append(Negative(say(statement, language, caption.opening), language, kind, statement, caption))
    return found


def holds(statement: Statement, scene: Scene) -> bool:
    """Whether a statement is true of a scene.

    A mention of one object is true if at least one object fits; a mention of several if exactly so many fit. Different
    mentions need different objects. A relation or place must hold for some objects that fit.
    """
    fits = [
        [k for k, thing in enumerate(scene.objects) if thing.fits(mention.attributes())]
        for mention in statement.mentions
    ]
    for mention, rows in zip(statement.mentions, fits):
        if len(rows) != mention.count and not (mention.count == 1 and rows):
            return False
    if statement.relation is not None:
        return any((i, statement.relation, j) in scene.relations for i in fits[0] for j in fits[1] if i != j)
    if statement.place is not None:
        return any(scene.objects[i].place == statement.place for i in fits[0])
    return _different(fits, [mention.count for mention in statement.mentions])


def _different(fits: list[list[int]], counts: list[int]) -> bool:
    """Whether each mention can have its own objects (augmenting paths; the lists are short)."""
    owner: dict[int, int] = {}
    seats = [at for at, count in enumerate(counts) for _ in range(count)]

    def seat(which: int, seen: set[int]) -> bool:
        for thing in fits[seats[which]]:
            if thing not in seen:
                seen.add(thing)
                if thing not in owner or seat(owner[thing], seen):
                    owner[thing] = which
                    return True
        return False

    return all(seat(which, set()) for which in range(len(seats)))


def _statements(scene: Scene, rng: np.random.Generator) -> dict[str, Statement]:
    kinds = Counter((thing.shape, thing.color, thing.texture, thing.size) for thing in scene.objects)
    groups = [Mention(count, *kind) for kind, count in kinds.items()]
    order = rng.permutation(len(groups))
    full = tuple(groups[i] for i in order)
    color = tuple(replace(mention, texture=None, size=None) for mention in full)
    shapes = Counter(mention.shape for mention in full for _ in range(mention.count))
    shape = tuple(Mention(count, name) for name, count in shapes.items())
    one = {(mention.shape, mention.color) for mention in color if mention.count == 1}
    single = [k for k, thing in enumerate(scene.objects) if (thing.shape, thing.color) in one]
    pairs = sorted(
        (i, name, j) for i, name, j in scene.relations if i in single and j in single and name in RELATION_WORDS["en"]
    )
    # Lying over and inside are rarer and harder than sides: where they occur they are said half of the time.
    special = [pair for pair in pairs if pair[1] in ("inside", "in_front_of", "behind")]
    lots = rng.integers(0, 1 << 30, size=4)
    if special and lots[0] % 2:
        pairs = special
    if pairs:
        i, name, j = pairs[lots[1] % len(pairs)]
        relation = Statement((_named(scene, i), _named(scene, j)), relation=name)
    else:
        thing = int(lots[1]) % len(scene.objects)
        relation = Statement((_named(scene, thing),), place=scene.objects[thing].place)
    part = color[lots[2] % len(color)]
    rows = [k for k, thing in enumerate(scene.objects) if thing.fits(part.attributes())]
    place = scene.objects[rows[0]].place if len(rows) == 1 else None
    return {
        "full": Statement(full),
        "color": Statement(color),
        "shape": Statement(shape),
        "relation": relation,
        "partial": Statement((part,), place=place),
    }


def _named(scene: Scene, k: int) -> Mention:
    return Mention(1, scene.objects[k].shape, scene.objects[k].color)


def _changes(statement: Statement, kind: str) -> list[Statement]:
    """All single changes of a kind, true or false, in which no two mentions are alike."""
    mentions = statement.mentions
    found: list[Statement] = []

    def put(**changed: Mention) -> None:
        by_place = {int(name[1:]): mention for name, mention in changed.items()}
        found.append(replace(statement, mentions=tuple(by_place.get(i, mention) for i, mention in enumerate(mentions))))

    for i, a in enumerate(mentions):
        if kind == "attribute_swap":
            for j in range(i):
                b = mentions[j]
                if a.color != b.color and a.shape != b.shape:
                    put(**{f"_{i}": replace(a, color=b.color), f"_{j}": replace(b, color=a.color)})
        elif kind == "attribute_change":
            for name in a.attributes():
                for value in ATTRIBUTES[name]:
                    if value != getattr(a, name):
                        put(**{f"_{i}": replace(a, **{name: value})})
        elif kind == "count_change":
            for count in (a.count - 1, a.count + 1):
                if 1 <= count <= 9:
                    put(**{f"_{i}": replace(a, count=count)})
    if kind == "relation_swap" and statement.relation is not None:
        opposite = OPPOSITE[statement.relation]
        if opposite in RELATION_WORDS["en"]:
            found.append(replace(statement, relation=opposite))
        found.append(replace(statement, mentions=mentions[::-1]))
    # "a red circle and a red circle" is no sentence that anybody says.
    return [
        option for option in found if len({replace(mention, count=1) for mention in option.mentions}) == len(mentions)
    ]

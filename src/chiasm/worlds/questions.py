"""Questions about a scene with their answers: existence, count, attributes, relation, comparison (English)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from chiasm.worlds.language import Mention, noun_phrase
from chiasm.worlds.scenes import Scene
from chiasm.worlds.vocabulary import ATTRIBUTES, COLORS, NOUNS, NUMBERS, OPPOSITE, RELATION_WORDS, SIZES

KINDS = ("existence", "count", "color", "shape", "texture", "size", "relation", "comparison")
_WORDS = ("zero", "one", *NUMBERS["en"])


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        text: the question.
        answer: "yes" or "no", a number word ("zero" .. "nine"), or the value of an attribute.
        kind: one of `KINDS`.
        program: what is asked, (operation, arguments ...); `answer` works on it.
    """

    text: str
    answer: str
    kind: str
    program: tuple


def answer(scene: Scene, program: tuple) -> str:
    """Answers a program on the scene graph.

    Programs: ``("exists", mention)``, ``("count", mention)``, ``("value", attribute, mention)``,
    ``("relation", mention, name, mention)``, ``("more", mention, mention)`` and ``("larger", mention, mention)``. Where
    one object is meant (value, relation, larger) it is the first that fits.
    """

    def rows(mention: Mention) -> list[int]:
        return [k for k, thing in enumerate(scene.objects) if thing.fits(mention.attributes())]

    def yes(truth: bool) -> str:
        return "yes" if truth else "no"

    operation = program[0]
    if operation == "exists":
        return yes(bool(rows(program[1])))
    if operation == "count":
        return _WORDS[len(rows(program[1]))]
    if operation == "value":
        return getattr(scene.objects[rows(program[2])[0]], program[1])
    if operation == "relation":
        return yes((rows(program[1])[0], program[2], rows(program[3])[0]) in scene.relations)
    if operation == "more":
        return yes(len(rows(program[1])) > len(rows(program[2])))
    first, second = (SIZES.index(scene.objects[rows(mention)[0]].size) for mention in program[1:])
    return yes(first > second)


def questions(scene: Scene) -> list[Question]:
    """Up to one question of each kind; the same for the same scene.

    Yes and no are about equally frequent. Questions whose answer would be unclear are not asked: which of two equal
    objects is meant, or whether something is to the left of what is level with it.
    """
    rng = np.random.Generator(np.random.PCG64([scene.seed, scene.index, 4]))
    lots = [int(lot) for lot in rng.integers(0, 1 << 30, size=24)]
    asked = [_existence(scene, lots[:4]), _count(scene, lots[4:6])]
    asked += [_value(scene, name, lots[6 + i]) for i, name in enumerate(ATTRIBUTES)]
    asked += [_relation(scene, lots[10:13]), _comparison(scene, lots[13:16])]
    made = [Question(text, answer(scene, program), kind, program) for kind, text, program in filter(None, asked)]
    return sorted(made, key=lambda question: KINDS.index(question.kind))


def _existence(scene: Scene, lots: list[int]) -> tuple[str, str, tuple]:
    thing = scene.objects[lots[0] % len(scene.objects)]
    mention = Mention(1, thing.shape, thing.color)
    if lots[1] % 2:
        there = {(other.shape, other.color) for other in scene.objects}
        colors = [color for color in COLORS if (thing.shape, color) not in there]
        # A color that is in the picture on something else makes the harder "no".
        hard = [color for color in colors if any(other.color == color for other in scene.objects)]
        choice = hard if hard and lots[2] % 2 else colors
        mention = replace(mention, color=choice[lots[3] % len(choice)])
    return "existence", f"is there {noun_phrase(mention, 'en')}?", ("exists", mention)


def _count(scene: Scene, lots: list[int]) -> tuple[str, str, tuple]:
    thing = scene.objects[lots[0] % len(scene.objects)]
    mention = (
        Mention(2),
        Mention(2, thing.shape),
        Mention(2, None, thing.color),
        Mention(2, thing.shape, thing.color),
    )[lots[1] % 4]
    many = noun_phrase(mention, "en").removeprefix("two ")
    return "count", f"how many {many} are there?", ("count", replace(mention, count=1))


def _value(scene: Scene, name: str, lot: int) -> tuple[str, str, tuple] | None:
    by = "color" if name == "shape" else "shape"
    single = [
        thing
        for thing in scene.objects
        if sum(getattr(other, by) == getattr(thing, by) for other in scene.objects) == 1
    ]
    if not single:
        return None
    mention = Mention(1, **{by: getattr(single[lot % len(single)], by)})
    what = {
        "color": "what color is",
        "shape": "what kind of shape is",
        "texture": "what is the pattern of",
        "size": "how large is",
    }[name]
    return name, f"{what} {_the(mention)}?", ("value", name, mention)


def _single(scene: Scene) -> list[int]:
    names = [(thing.shape, thing.color) for thing in scene.objects]
    return [k for k, name in enumerate(names) if names.count(name) == 1]


def _relation(scene: Scene, lots: list[int]) -> tuple[str, str, tuple] | None:
    single = _single(scene)
    pairs = sorted(
        (i, name, j) for i, name, j in scene.relations if i in single and j in single and name in RELATION_WORDS["en"]
    )
    if not pairs:
        return None
    i, name, j = pairs[lots[0] % len(pairs)]
    if lots[1] % 2:
        if OPPOSITE[name] in RELATION_WORDS["en"]:
            name = OPPOSITE[name]
        else:
            i, j = j, i
    first, second = (Mention(1, scene.objects[k].shape, scene.objects[k].color) for k in (i, j))
    text = f"is {_the(first)} {RELATION_WORDS['en'][name]} {_the(second)}?"
    return "relation", text, ("relation", first, name, second)


def _comparison(scene: Scene, lots: list[int]) -> tuple[str, str, tuple] | None:
    single = _single(scene)
    sized = sorted(
        (i, j)
        for i in single
        for j in single
        if SIZES.index(scene.objects[i].size) > SIZES.index(scene.objects[j].size)
    )
    if sized and lots[0] % 2:
        i, j = sized[lots[1] % len(sized)]
        if lots[2] % 2:
            i, j = j, i
        first, second = (Mention(1, scene.objects[k].shape, scene.objects[k].color) for k in (i, j))
        return "comparison", f"is {_the(first)} larger than {_the(second)}?", ("larger", first, second)
    number: dict[str, int] = {}
    for thing in scene.objects:
        number[thing.shape] = number.get(thing.shape, 0) + 1
    unequal = sorted((a, b) for a in number for b in number if number[a] > number[b])
    if not unequal:
        return None
    a, b = unequal[lots[1] % len(unequal)]
    if lots[2] % 2:
        a, b = b, a
    text = f"are there more {NOUNS['en'][a].many} than {NOUNS['en'][b].many}?"
    return "comparison", text, ("more", Mention(1, a), Mention(1, b))


def _the(mention: Mention) -> str:
    return "the " + noun_phrase(mention, "en").split(" ", 1)[1]

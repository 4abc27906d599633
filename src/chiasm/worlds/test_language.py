"""Sentences: four grammars checked against sentences written by hand, and by reading everything back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.worlds import make_scenes
from chiasm.worlds.captions import NEGATIVES, STYLES, captions, holds, negatives
from chiasm.worlds.language import Mention, Statement, parse, say
from chiasm.worlds.questions import KINDS, answer, questions
from chiasm.worlds.vocabulary import COLORS, LANGUAGES, PLACES, RELATION_WORDS, SHAPES, SIZES, TEXTURES

SCENES = list(make_scenes(250, seed=3))

HAND_WRITTEN = [
    (Statement((Mention(1, "diamond", "purple", "striped", "large"),)), 0, {
        "en": "a large striped purple diamond",
        "de": "eine große gestreifte violette Raute",
        "fr": "un grand losange violet à rayures",
        "es": "un rombo morado grande a rayas",
    }),
    (Statement((Mention(2, "star", "white", "dotted", "small"), Mention(1, "heart", "green"))), 1, {
        "en": "a picture of two small dotted white stars and a green heart",
        "de": "ein Bild mit zwei kleinen gepunkteten weißen Sternen und einem grünen Herzen",
        "fr": "une image avec deux petites étoiles blanches à pois et un cœur vert",
        "es": "una imagen con dos estrellas blancas pequeñas de lunares y un corazón verde",
    }),
    (Statement((Mention(1, "circle", "red"), Mention(3, "cross", "blue", "plain"), Mention(1, "ring"))), 2, {
        "en": "this picture shows a red circle, three plain blue crosses and a ring",
        "de": "dieses Bild zeigt einen roten Kreis, drei einfarbige blaue Kreuze und einen Ring",
        "fr": "cette image montre un cercle rouge, trois croix bleues sans motif et un anneau",
        "es": "esta imagen muestra un círculo rojo, tres cruces azules lisas y un anillo",
    }),
    (Statement((Mention(1, "triangle", "black"), Mention(1, "star", "yellow")), relation="left_of"), 0, {
        "en": "a black triangle to the left of a yellow star",
        "de": "ein schwarzes Dreieck links von einem gelben Stern",
        "fr": "un triangle noir à gauche d'une étoile jaune",
        "es": "un triángulo negro a la izquierda de una estrella amarilla",
    }),
    (Statement((Mention(1, "square", "brown", size="medium"), Mention(1, "diamond", "blue")), relation="inside"), 0, {
        "en": "a medium-sized brown square inside a blue diamond",
        "de": "ein mittelgroßes braunes Quadrat in einer blauen Raute",
        "fr": "un carré brun de taille moyenne à l'intérieur d'un losange bleu",
        "es": "un cuadrado marrón mediano dentro de un rombo azul",
    }),
    (Statement((Mention(1, "cross", "brown", "checkered"),), place="bottom right"), 1, {
        "en": "a picture of a checkered brown cross at the bottom right",
        "de": "ein Bild mit einem karierten braunen Kreuz unten rechts",
        "fr": "une image avec une croix brune à carreaux en bas à droite",
        "es": "una imagen con una cruz marrón a cuadros abajo a la derecha",
    }),
    (Statement((Mention(2, None, "blue"),)), 2, {
        "en": "this picture shows two blue shapes",
        "de": "dieses Bild zeigt zwei blaue Formen",
        "fr": "cette image montre deux formes bleues",
        "es": "esta imagen muestra dos figuras azules",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "opening", "expected"), HAND_WRITTEN)
def test_sentences_are_those_a_person_writes(statement, opening, expected):
    for language in LANGUAGES:
        assert say(statement, language, opening) == expected[language]


MENTIONS = st.builds(
    Mention,
    st.integers(1, 9),
    st.sampled_from((None, *SHAPES)),
    st.sampled_from((None, *COLORS)),
    st.sampled_from((None, *TEXTURES)),
    st.sampled_from((None, *SIZES)),
)
ONE = MENTIONS.map(lambda m: Mention(1, m.shape, m.color, m.texture, m.size))
STATEMENTS = st.one_of(
    st.builds(Statement, st.lists(MENTIONS, min_size=1, max_size=5).map(tuple)),
    st.builds(Statement, st.tuples(ONE, ONE), relation=st.sampled_from(sorted(RELATION_WORDS["en"]))),
    st.builds(Statement, st.tuples(ONE), place=st.sampled_from(PLACES)),
)


@given(STATEMENTS, st.sampled_from(LANGUAGES), st.integers(0, 2))
def test_reading_gives_back_what_was_said(statement, language, opening):
    assert parse(say(statement, language, opening), language) == statement


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_read_back_are_true_of_their_scene(language):
    for scene in SCENES:
        said = captions(scene, language)
        assert [caption.style for caption in said] == list(STYLES)
        for caption in said:
            assert parse(caption.text, language) == caption.statement
            assert holds(caption.statement, scene)
        assert sum(mention.count for mention in said[0].statement.mentions) == len(scene.objects)


def test_all_languages_say_the_same():
    for scene in SCENES[:50]:
        told = [[caption.statement for caption in captions(scene, language)] for language in LANGUAGES]
        assert all(other == told[0] for other in told)


def _count(scene, mention):
    return sum(all(getattr(o, name) == value for name, value in mention.attributes().items()) for o in scene.objects)


@pytest.mark.parametrize("language", LANGUAGES)
def test_hard_negatives_are_false_and_one_change_away(language):
    kinds = dict.fromkeys(NEGATIVES, 0)
    for scene in SCENES:
        for negative in negatives(scene, language):
            kinds[negative.kind] += 1
            read = parse(negative.text, language)
            assert read == negative.statement
            assert negative.text != negative.caption.text
            if read.relation is None:
                # Decided by counting, without `holds`: some mention does not fit the picture.
                assert any(_count(scene, m) != m.count for m in read.mentions)
            else:
                rows = [[k for k, o in enumerate(scene.objects) if o.fits(m.attributes())] for m in read.mentions]
                assert not any((i, read.relation, j) in scene.relations for i in rows[0] for j in rows[1])
    assert min(kinds.values()) > 50


def test_truth_of_statements_on_a_scene_built_by_hand():
    scene = next(s for s in SCENES if len({(o.shape, o.color) for o in s.objects}) == len(s.objects) == 2)
    a, b = scene.objects
    first, second = Mention(1, a.shape, a.color), Mention(1, b.shape, b.color)
    assert holds(Statement((first, second)), scene)
    assert not holds(Statement((first, first)), scene)  # two mentions need two objects
    assert not holds(Statement((Mention(2, a.shape, a.color),)), scene)
    assert holds(Statement((Mention(2),)), scene)
    assert not holds(Statement((Mention(3),)), scene)
    assert holds(Statement((first,), place=a.place), scene)


def test_answers_follow_from_the_scene_graph():
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    told = dict.fromkeys(KINDS, 0)
    yes = {"existence": 0, "relation": 0, "comparison": 0}
    for scene in SCENES:
        for question in questions(scene):
            told[question.kind] += 1
            assert question.answer == answer(scene, question.program)
            operation, *rest = question.program
            if operation == "exists":
                true = "yes" if _count(scene, rest[0]) else "no"
            elif operation == "count":
                true = words[_count(scene, rest[0])]
            elif operation == "value":
                fitting = {getattr(o, rest[0]) for o in scene.objects if o.fits(rest[1].attributes())}
                assert len(fitting) == 1  # nobody has to guess which one is meant
                true = fitting.pop()
            elif operation == "relation":
                i, j = (
                    next(k for k, o in enumerate(scene.objects) if o.fits(m.attributes())) for m in (rest[0], rest[2])
                )
                assert _count(scene, rest[0]) == _count(scene, rest[2]) == 1
                assert not scene.undecided(i, rest[1], j)
                a, b = scene.objects[i], scene.objects[j]
                by_place = {"left_of": a.x < b.x, "right_of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
                fallback = (i, rest[1], j) in scene.relations
                true = "yes" if by_place.get(rest[1], fallback) else "no"
            elif operation == "more":
                true = "yes" if _count(scene, rest[0]) > _count(scene, rest[1]) else "no"
            else:
                a, b = (next(o for o in scene.objects if o.fits(m.attributes())) for m in rest)
                true = "yes" if a.radius > b.radius else "no"
            assert question.answer == true, question
            if question.kind in yes:
                yes[question.kind] += question.answer == "yes"
    assert min(told.values()) > 50
    for kind, count in yes.items():
        assert 0.35 < count / told[kind] < 0.65


def test_bad_sentences_are_named():
    with pytest.raises(BadInput, match="banana"):
        parse("a red banana")
    with pytest.raises(UnknownName, match="language"):
        say(Statement((Mention(),)), "xx")
    with pytest.raises(BadInput, match="1 to 9"):
        say(Statement((Mention(10, "circle"),)))
    with pytest.raises(BadInput, match="two mentions"):
        say(Statement((Mention(),), relation="above"))

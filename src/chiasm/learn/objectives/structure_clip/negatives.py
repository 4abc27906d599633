"""Semantic negatives: sentences of the same words that say something else, made by exchanging two spans of a caption.

>>> [negative.text for negative in negatives("A red cube on a blue ball")]
['a blue ball on a red cube', 'a blue cube on a red ball']

Spans are characters of the parsed caption, so no word is ever touched inside another ("man" in "woman").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from chiasm.errors import unknown_name
from chiasm.learn.objectives.structure_clip.graph import Mention, Relation, SceneGraph, Span, parse

Kind = Literal["relation", "attribute"]
KINDS: tuple[Kind, ...] = ("relation", "attribute")


@dataclass(frozen=True)
class Negative:
    """A false sentence.

    Args:
        text: lower case; the words of the caption in another order.
        kind: what was exchanged.
        label: what accuracy is averaged over (`chiasm.learn.objectives.structure_clip.evaluation`): the relation, or the pair
            of attributes in alphabetical order.
        graph: what the false sentence says.
    """

    text: str
    kind: Kind
    label: str
    graph: SceneGraph


def negatives(caption: str | SceneGraph, kinds: Sequence[str] = KINDS) -> list[Negative]:
    """All semantic negatives of a caption; relations first, in the order of the sentence.

    Left out: symmetric relations ("next to"), two mentions of the same words, attributes that are alike or sets of the
    same ones, attributes of things with the same name, and whatever would give the caption itself again.

    Args:
        caption: a sentence, or its graph.
        kinds: ``"relation"`` and / or ``"attribute"``.

    Raises:
        UnknownName: another kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kind of negative", kind, KINDS)
    graph = parse(caption) if isinstance(caption, str) else caption
    found: list[Negative | None] = []
    if "relation" in kinds:
        found += [_relation_swap(graph, relation) for relation in graph.relations]
    if "attribute" in kinds:
        owners = [i for i, mention in enumerate(graph.mentions) if mention.described is not None]
        found += [_attribute_swap(graph, i, j) for n, i in enumerate(owners) for j in owners[n + 1 :]]
    seen, out = {graph.text}, []
    for negative in found:
        if negative is not None and negative.text not in seen:
            seen.add(negative.text)
            out.append(negative)
    return out


def combined(captions: Iterable[str | SceneGraph]) -> list[Negative | None]:
    """One negative a caption as in the paper's file: a relation swap where there is one, else an attribute swap, else None."""
    return [next(iter(negatives(caption)), None) for caption in captions]


def swap(caption: str | SceneGraph, kind: Kind) -> str | None:
    """The text of the first negative of one kind, or None."""
    found = negatives(caption, (kind,))
    return found[0].text if found else None


def exchange(text: str, first: Span, second: Span) -> str:
    """The text with two spans exchanged; they must not overlap."""
    a, b = sorted((first, second), key=lambda span: span.start)
    return text[: a.start] + b.of(text) + text[a.end : b.start] + a.of(text) + text[b.end :]


def _relation_swap(graph: SceneGraph, relation: Relation) -> Negative | None:
    a, b = graph.mentions[relation.subject], graph.mentions[relation.object]
    overlap = a.span.start < b.span.end and b.span.start < a.span.end
    if relation.symmetric or overlap or a.span.of(graph.text) == b.span.of(graph.text) or a.name == b.name:
        return None
    mentions = list(graph.mentions)
    mentions[relation.subject], mentions[relation.object] = _placed(b, a), _placed(a, b)
    text = exchange(graph.text, a.span, b.span)
    return Negative(text, "relation", relation.text, _moved(graph, text, mentions))


def _placed(content: Mention, place: Mention) -> Mention:
    """A mention in another's place; what is said of a place by "is ..." stays there."""
    if not place.inside:
        return replace(content, attributes=place.attributes, described=place.described, inside=False)
    return content if content.inside else replace(content, attributes=(), described=None, inside=True)


def _attribute_swap(graph: SceneGraph, i: int, j: int) -> Negative | None:
    a, b = graph.mentions[i], graph.mentions[j]
    assert a.described is not None
    assert b.described is not None
    if a.head == b.head or set(a.attributes) & set(b.attributes):
        return None
    first, second = (span.of(graph.text) for span in (a.described, b.described))
    text = exchange(graph.text, a.described, b.described)
    mentions = list(graph.mentions)
    for k, (mine, old, new, names) in {
        i: (a, first, second, b.attributes),
        j: (b, second, first, a.attributes),
    }.items():
        name = mine.name.replace(old, new, 1) if mine.inside else mine.name
        mentions[k] = replace(mine, attributes=names, name=name)
    label = " / ".join(sorted((first, second)))
    return Negative(text, "attribute", label, _moved(graph, text, mentions))


def _moved(graph: SceneGraph, text: str, mentions: list[Mention]) -> SceneGraph:
    """The graph of the false sentence. Its spans are found again by parsing; what it says is what was exchanged."""
    again = parse(text)
    same = len(again.mentions) == len(mentions) and len(again.relations) == len(graph.relations)
    if same and all(m.head == n.head and m.attributes == n.attributes for m, n in zip(again.mentions, mentions)):
        return again
    # The exchange changed how the sentence reads; only what it says is kept, without places to exchange again.
    nowhere = Span(0, 0)
    kept = tuple(replace(m, span=nowhere, described=None) for m in mentions)
    return SceneGraph(text, kept, tuple(replace(r, span=nowhere) for r in graph.relations))

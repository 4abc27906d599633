"""A small knowledge graph whose rules are known: a hierarchy of types, relations that compose, and nodes with pictures.

    >>> graph = make_graph(seed=0)
    >>> graph.triples[graph.split == 0]                     # int [T, 3]: head, relation, tail, for training
    >>> graph.tails(graph.relations.index("turn_0"), 5)     # all true answers, also the hidden ones
    >>> graph.scene(graph.pictured[0])                      # the scene graph of that node's picture

Relations. ``turn_k`` (card rcone): every entity has a place in the plane; its tails are the ``near`` entities nearest to
its place after a rotation by k / ``turns`` of a circle. ``back_0`` is the inverse of ``turn_0``; ``turn_0_then_1`` is
their composition; ``is_a`` leads from an entity to its leaf type and from a type to its parent, ``kind_of`` from an
entity to every type above it. What follows by these rules is listed in ``rules`` and holds exactly in the whole graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.worlds.language import Mention, noun_phrase
from chiasm.worlds.scenes import Scene, SceneWorld, make_scenes
from chiasm.worlds.vocabulary import COLORS, SHAPES

VERSION = 1
_SYLLABLES = ("ba", "do", "ka", "li", "mo", "na", "pe", "ri", "so", "ta", "ve", "zu")


@dataclass(frozen=True, slots=True)
class Rule:
    """``head`` follows from ``body``: composition (two relations), inverse (one) or closure (one, any number of steps)."""

    kind: str
    head: str
    body: tuple[str, ...]


@dataclass(frozen=True)
class KnowledgeGraph:
    """A graph with typed multimodal nodes; entities come first, then types.

    Args:
        names: unique name of every node.
        texts: a sentence about every node, which names its type and, where it has a picture, what is on it.
        entities: number of entities E; nodes E .. N-1 are types.
        types: int ``[N]``: the node of an entity's leaf type, of a type's parent; -1 for the root.
        places: float64 ``[E, 2]``, the latent places of the entities.
        numbers: float64 ``[E, 2]``, a table with two columns per entity (weight, age), which depend on the type.
        relations: names of the relations.
        triples: int32 ``[T, 3]``: head, relation, tail, without repetition.
        split: int8 ``[T]``: 0 for training, 1 for hidden test edges.
        rules: which relations follow from which.
        pictured: int ``[P]``, the entities that have a picture; picture p is scene p of ``scenes``.
        scenes: the pictures with their ground truth.
        classes: (color, shape) of object class c; class c is typical of the c-th leaf type.
        seed, parameters, version: what makes this graph again.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    entities: int
    types: np.ndarray
    places: np.ndarray
    numbers: np.ndarray
    relations: tuple[str, ...]
    triples: np.ndarray
    split: np.ndarray
    rules: tuple[Rule, ...]
    pictured: np.ndarray
    scenes: SceneWorld
    classes: tuple[tuple[str, str], ...]
    seed: int
    parameters: dict[str, Any]
    version: int = VERSION

    def tails(self, relation: int, head: int) -> np.ndarray:
        """All true tails of a head, sorted, hidden ones included."""
        rows = (self.triples[:, 1] == relation) & (self.triples[:, 0] == head)
        return np.sort(self.triples[rows, 2])

    def modalities(self, node: int) -> tuple[str, ...]:
        """What a node carries: always text, entities a table row, pictured ones an image."""
        return ("text", *(["table"] if node < self.entities else []), *(["image"] if node in self.pictured else []))

    def scene(self, node: int) -> Scene:
        """The scene graph of a pictured node.

        Raises:
            BadInput: the node has no picture.
        """
        found = np.flatnonzero(self.pictured == node)
        if not len(found):
            raise BadInput(f"node {node} has no picture", where="KnowledgeGraph.scene", fix="See graph.pictured")
        return self.scenes[int(found[0])]

    def objects(self, node: int) -> list[int]:
        """Object classes on the picture of a node, object by object."""
        return [self.classes.index((thing.color, thing.shape)) for thing in self.scene(node).objects]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "graph",
            "version": self.version,
            "seed": self.seed,
            "parameters": self.parameters,
            "entities": self.entities,
            "relations": list(self.relations),
            "rules": [{"kind": rule.kind, "head": rule.head, "body": list(rule.body)} for rule in self.rules],
            "classes": [list(pair) for pair in self.classes],
            "nodes": [
                {
                    "name": name,
                    "text": text,
                    "type": int(kind),
                    "modalities": list(self.modalities(node)),
                    **(
                        {"weight": float(self.numbers[node, 0]), "age": float(self.numbers[node, 1])}
                        if node < self.entities
                        else {}
                    ),
                }
                for node, (name, text, kind) in enumerate(zip(self.names, self.texts, self.types))
            ],
        }


def make_graph(
    entities: int = 200,
    *,
    turns: int = 8,
    near: int = 5,
    leaves: int = 12,
    pictures: int = 60,
    typical: float = 0.6,
    hidden: float = 0.15,
    seed: int = 0,
) -> KnowledgeGraph:
    """A graph with the sizes of card rcone by default.

    Args:
        entities: number of entities, more than ``near``.
        turns: number of relations ``turn_k``, at least 2.
        near: tails per head of each of them.
        leaves: number of leaf types and object classes, a multiple of 3 up to 24; entities that lie in the same
            direction share a type.
        pictures: number of entities with a picture of 4 to 6 objects.
        typical: share of objects that are of the class of the entity's type; the others are of any class.
        hidden: share of the edges (of all relations but ``is_a`` and ``kind_of``) that are for testing.
        seed: seed.

    Raises:
        BadInput: sizes outside these limits.
    """
    if (
        entities <= near
        or near < 1
        or turns < 2
        or not 0 <= pictures <= entities
        or leaves % 3
        or not 3 <= leaves <= 24
    ):
        raise BadInput(
            f"entities={entities}, near={near}, turns={turns}, pictures={pictures}, leaves={leaves} do not fit together",
            where="make_graph",
            fix="Take near < entities, turns >= 2, pictures <= entities and 3, 6, ... or 24 leaves",
        )
    if not (0 <= hidden < 1 and 0 <= typical <= 1):
        raise BadInput(f"hidden={hidden} and typical={typical} must be shares", where="make_graph")
    rng = np.random.Generator(np.random.PCG64([seed, VERSION]))
    places = rng.standard_normal((entities, 2))
    angle = np.arctan2(places[:, 1], places[:, 0])
    leaf = np.minimum((angle + np.pi) / (2 * np.pi) * leaves, leaves - 1).astype(int)
    groups = 3
    root = entities + leaves + groups
    types = np.concatenate(
        [entities + leaf, entities + leaves + np.arange(leaves) * groups // leaves, np.full(groups, root), [-1]]
    )

    tables = [_turn(places, near, k, turns) for k in range(turns)]
    relations = [f"turn_{k}" for k in range(turns)] + ["back_0", "turn_0_then_1", "is_a", "kind_of"]
    tables += [tables[0].T, (tables[0].astype(int) @ tables[1].astype(int)) > 0]
    edges = [_edges(table, at) for at, table in enumerate(tables)]
    edges.append(_chain(types, np.arange(len(types) - 1), len(relations) - 2, 1))
    edges.append(np.concatenate([_chain(types, np.arange(entities), len(relations) - 1, steps) for steps in (1, 2, 3)]))
    triples = np.concatenate(edges).astype(np.int32)
    free = triples[:, 1] < len(relations) - 2
    split = ((rng.random(len(triples)) < hidden) & free).astype(np.int8)

    pictured = np.sort(rng.permutation(entities)[:pictures])
    classes = tuple((COLORS[c % 8], SHAPES[(c + c // 8 * 3) % 8]) for c in range(leaves))
    scenes = _scenes(seed, leaf[pictured], classes, typical, rng)
    names = (
        _names(entities, rng)
        + [f"type {i + 1}" for i in range(leaves)]
        + [f"group {i + 1}" for i in range(groups)]
        + ["thing"]
    )
    numbers = np.round(np.stack([10 + 3 * leaf, 50 - 2 * leaf], axis=1) + rng.standard_normal((entities, 2)), 1)
    rules = (
        Rule("inverse", "back_0", ("turn_0",)),
        Rule("composition", "turn_0_then_1", ("turn_0", "turn_1")),
        Rule("closure", "kind_of", ("is_a",)),
    )
    parameters = {
        "entities": entities,
        "turns": turns,
        "near": near,
        "leaves": leaves,
        "pictures": pictures,
        "typical": typical,
        "hidden": hidden,
    }
    texts = _texts(names, types, entities, pictured, scenes)
    return KnowledgeGraph(
        tuple(names),
        texts,
        entities,
        types,
        places,
        numbers,
        tuple(relations),
        triples,
        split,
        rules,
        pictured,
        scenes,
        classes,
        seed,
        parameters,
    )


def _turn(places: np.ndarray, near: int, k: int, turns: int) -> np.ndarray:
    """bool ``[E, E]``: the ``near`` entities nearest to each place after the k-th rotation, never the entity itself."""
    angle = 2 * np.pi * k / turns
    turned = places @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    far = ((turned[:, None] - places[None]) ** 2).sum(axis=2)
    np.fill_diagonal(far, np.inf)
    table = np.zeros(far.shape, dtype=bool)
    np.put_along_axis(table, np.argsort(far, axis=1, kind="stable")[:, :near], True, axis=1)
    return table


def _edges(table: np.ndarray, relation: int) -> np.ndarray:
    head, tail = np.nonzero(table)
    return np.stack([head, np.full(len(head), relation), tail], axis=1)


def _chain(types: np.ndarray, nodes: np.ndarray, relation: int, steps: int) -> np.ndarray:
    """Edges from nodes to the type that lies ``steps`` above them."""
    above = nodes
    for _ in range(steps):
        above = types[above]
    return np.stack([nodes, np.full(len(nodes), relation), above], axis=1)


def _scenes(
    seed: int, leaf: np.ndarray, classes: tuple[tuple[str, str], ...], typical: float, rng: np.random.Generator
) -> SceneWorld:
    """One scene per leaf type given, with the objects' classes drawn around it."""
    world = make_scenes(len(leaf), seed=seed, objects=(4, 6), repeats=0.0, stacks=0.0)
    layout = world.layout
    own = rng.random(layout.shape.shape) < typical
    chosen = np.where(own, leaf[:, None], rng.integers(0, len(classes), size=layout.shape.shape))
    color = np.array([COLORS.index(color) for color, _ in classes])[chosen]
    shape = np.array([SHAPES.index(shape) for _, shape in classes])[chosen]
    return replace(world, layout=replace(layout, color=color, shape=np.where(layout.shape >= 0, shape, -1)))


def _names(n: int, rng: np.random.Generator) -> list[str]:
    """n different made-up names; a counter follows where the syllables run out."""
    names: dict[str, None] = {}
    while len(names) < n:
        length = 3 + (len(names) > 800)
        name = "".join(_SYLLABLES[i] for i in rng.integers(0, len(_SYLLABLES), size=length)).capitalize()
        names[name] = None
    return list(names)


def _texts(
    names: list[str], types: np.ndarray, entities: int, pictured: np.ndarray, scenes: SceneWorld
) -> tuple[str, ...]:
    texts = [
        f"{name} is a {names[kind]}." if kind >= 0 else f"{name} is the root of all types."
        for name, kind in zip(names, types)
    ]
    for row, node in enumerate(pictured):
        seen = [noun_phrase(Mention(1, thing.shape, thing.color), "en") for thing in scenes[row].objects]
        texts[node] += f" Its picture shows {', '.join(seen[:-1])} and {seen[-1]}."
    return tuple(texts)

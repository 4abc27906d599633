"""The graph obeys its own rules, and pictures of nodes show what their type makes likely."""

from __future__ import annotations

import numpy as np
import pytest

from chiasm.errors import BadInput
from chiasm.worlds import make_graph

GRAPH = make_graph(seed=4)


def tails(relation, head):
    return set(GRAPH.tails(GRAPH.relations.index(relation), head).tolist())


def test_the_same_seed_gives_the_same_graph():
    again = make_graph(seed=4)
    assert np.array_equal(again.triples, GRAPH.triples)
    assert again.to_json() == GRAPH.to_json()
    assert np.array_equal(again.scenes.pictures(), GRAPH.scenes.pictures())
    assert not np.array_equal(make_graph(seed=5).triples[:900], GRAPH.triples[:900])


def test_rules_hold_exactly():
    assert len(np.unique(GRAPH.triples, axis=0)) == len(GRAPH.triples)
    for head in range(GRAPH.entities):
        for k in range(8):
            assert len(tails(f"turn_{k}", head)) == 5
            assert head not in tails(f"turn_{k}", head)
        assert tails("turn_0_then_1", head) == set().union(
            *(tails("turn_1", middle) for middle in tails("turn_0", head))
        )
        assert tails("back_0", head) == {other for other in range(GRAPH.entities) if head in tails("turn_0", other)}
        above, node = set(), head
        while tails("is_a", node):
            (node,) = tails("is_a", node)
            above.add(node)
        assert tails("kind_of", head) == above
        assert len(above) == 3
        assert GRAPH.names[node] == "thing"


def test_turns_follow_the_places():
    angle = 2 * np.pi * 3 / 8
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    far = np.linalg.norm((GRAPH.places[17] @ turn) - GRAPH.places, axis=1)
    far[17] = np.inf
    assert tails("turn_3", 17) == set(np.argsort(far)[:5].tolist())


def test_hidden_edges_are_the_wanted_share_of_those_that_may_be_hidden():
    names = np.array(GRAPH.relations)[GRAPH.triples[:, 1]]
    fixed = np.isin(names, ["is_a", "kind_of"])
    assert not GRAPH.split[fixed].any()
    assert GRAPH.split[~fixed].mean() == pytest.approx(0.15, abs=0.02)


def test_pictures_show_the_class_of_the_type_and_texts_name_it():
    own = []
    for node in GRAPH.pictured.tolist():
        objects = GRAPH.objects(node)
        assert 4 <= len(objects) <= 6
        leaf = int(GRAPH.types[node]) - GRAPH.entities
        own += [thing == leaf for thing in objects]
        assert GRAPH.modalities(node) == ("text", "table", "image")
        assert GRAPH.names[GRAPH.types[node]] in GRAPH.texts[node]
        color, shape = GRAPH.classes[objects[0]]
        assert f"{color} {shape}" in GRAPH.texts[node]
    assert np.mean(own) == pytest.approx(0.6 + 0.4 / 12, abs=0.1)
    assert len(set(GRAPH.names)) == len(GRAPH.names)
    assert len(set(GRAPH.classes)) == 12
    with pytest.raises(BadInput, match="no picture"):
        GRAPH.scene(next(i for i in range(200) if i not in GRAPH.pictured))


def test_sizes_that_do_not_fit_are_refused():
    for wrong in ({"entities": 5}, {"pictures": 999}, {"leaves": 7}, {"hidden": 1.0}, {"turns": 1}):
        with pytest.raises(BadInput):
            make_graph(**wrong)
    assert len(make_graph(10, pictures=0, leaves=3).pictured) == 0

"""Rank merging: closed forms, invariances, ties, and what must be refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.reason.rag.merge import by_score, merge_passages, reciprocal_rank, round_robin
from chiasm.reason.rag.messages import Passage

RANKINGS = st.lists(st.lists(st.integers(0, 12), max_size=8, unique=True), max_size=4)


def test_reciprocal_rank_is_the_formula():
    merged = dict(reciprocal_rank([["a", "b", "c"], ["c", "a"]]))
    assert merged == pytest.approx({"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61})
    weighted = dict(reciprocal_rank([["a"], ["b"]], weights=[0.5, 2], constant=0))
    assert weighted == {"a": 0.5, "b": 2.0}


def test_one_list_keeps_its_order_and_two_reversed_ones_tie():
    assert [x for x, _ in reciprocal_rank([list("dbca")])] == list("dbca")
    (first, one), (second, two) = reciprocal_rank([["a", "b"], ["b", "a"]])
    assert one == two
    assert (first, second) == ("a", "b")  # ties go to what was met first


def test_round_robin_keeps_the_first_of_equals():
    assert round_robin([["a", "b", "c"], ["b", "d"]]) == ["a", "b", "d", "c"]
    assert round_robin([]) == []
    assert round_robin([[], ["a"]]) == ["a"]
    assert round_robin([[None], [1]]) == [None, 1]  # None is an item like another


def test_scores_on_one_scale():
    lists = [[Passage("a", score=10.0), Passage("b", score=0.0)], [Passage("c", score=0.9), Passage("b", score=0.1)]]
    assert [p.id for p, _ in by_score(lists)] == ["a", "c", "b"]
    scaled = {p.id: value for p, value in by_score(lists, scale="minmax", combine="sum")}
    assert scaled == {"a": 1.0, "c": 1.0, "b": 0.0}
    spread = {p.id: value for p, value in by_score(lists, scale="zscore", combine="sum")}
    assert spread == pytest.approx({"a": 1.0, "c": 1.0, "b": -2.0})
    equal = by_score([[Passage("x", score=3.0), Passage("y", score=3.0)]], scale="zscore")
    assert [value for _, value in equal] == [0.0, 0.0]


@given(RANKINGS)
@settings(max_examples=60, deadline=None)
def test_every_item_comes_out_once(lists):
    everything = {item for ranking in lists for item in ranking}
    for merged in ([x for x, _ in reciprocal_rank(lists)], round_robin(lists)):
        assert len(merged) == len(everything)
        assert set(merged) == everything


@given(RANKINGS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_lists_does_not_change_reciprocal_rank_scores(lists, random):
    shuffled = list(lists)
    random.shuffle(shuffled)
    before, after = dict(reciprocal_rank(lists)), dict(reciprocal_rank(shuffled))
    assert before.keys() == after.keys()
    assert all(math.isclose(before[item], after[item]) for item in before)


def test_an_item_twice_in_a_list_counts_once_at_its_better_rank():
    assert dict(reciprocal_rank([["a", "a", "b"]])) == pytest.approx({"a": 1 / 61, "b": 1 / 62})


def test_passages_of_two_corpora_with_one_id_are_two():
    lists = [[Passage("1", corpus="text", score=0.9)], [Passage("1", corpus="image", score=0.1)]]
    for how in ("reciprocal_rank", "round_robin", "score"):
        merged = merge_passages(lists, how)
        assert [(p.corpus, p.id) for p in merged] == [("text", "1"), ("image", "1")]
    alone = merge_passages([[], lists[0]])
    assert alone[0].score == 0.9  # one list is not touched
    assert lists[0][0].score == 0.9


def test_what_means_nothing_is_refused():
    with pytest.raises(BadInput, match="2 weights for 1 lists"):
        reciprocal_rank([["a"]], weights=[1, 2])
    with pytest.raises(BadInput, match="not negative"):
        reciprocal_rank([["a"]], weights=[-1])
    with pytest.raises(BadInput, match="constant"):
        reciprocal_rank([["a"]], constant=-1)
    with pytest.raises(BadInput, match="NaN"):
        by_score([[Passage("a", score=float("nan"))]])
    with pytest.raises(UnknownName, match="minmax"):
        by_score([], scale="min-max")  # type: ignore[arg-type]
    with pytest.raises(UnknownName):
        merge_passages([], "rank")

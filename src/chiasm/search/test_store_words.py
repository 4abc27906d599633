from __future__ import annotations

import numpy as np
import pytest

from chiasm import Store
from chiasm.errors import BadInput
from chiasm.learn.objectives.lexvla.space_words import SpaceWords
from chiasm.search.store_words import StoreWords
from chiasm.search.test_fakes import DIM, PALETTE, FakeSpace, write_pictures

WORDS = [*PALETTE, "anvil", "breeze"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "in", 30)
    made = Store(tmp_path / "s.chiasm", FakeSpace())
    made.add(tmp_path / "in")
    return made


def test_words_find_their_pictures_and_say_why(store):
    reader = StoreWords(store, WORDS)
    assert len(reader) == len(store) == 30
    for color in PALETTE:
        hits = reader.search(color, 3)
        assert hits[0].id in [hit.id for hit in store.search(color, 5).hits]
        assert hits[0].why.words[0][0] == color
        assert str(hits[0].why).startswith(f"matched on: {color} ")
        assert hits[0].modality == "image"
        for hit in hits:
            assert hit.score == pytest.approx(hit.why.score, rel=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_vectors_are_sparse_unit_and_do_not_depend_on_what_all_words_share():
    space = FakeSpace()
    head = SpaceWords(space, WORDS, top=3)
    vectors = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
    kept = vectors.copy()
    found = head(vectors, "item")
    assert ((found > 0).sum(1) == 3).all()
    np.testing.assert_allclose(found.norm(dim=1), 1, rtol=1e-5)
    assert (vectors == kept).all()
    own = head(np.asarray(space.encode(WORDS).vectors), "query")
    assert own.argmax(1).tolist() == list(range(len(WORDS)))


def test_a_head_of_ones_own_takes_the_place(store):
    asked = []

    def head(vectors, kind):
        asked.append(kind)
        out = np.zeros((len(vectors), 2), np.float32)
        out[:, 0] = 1
        return out

    reader = StoreWords(store, ["here", "nowhere"], head=head)
    hits = reader.search("anything", 50)
    assert len(hits) == 30
    assert str(hits[0].why) == "matched on: here 1.00"
    assert asked == ["item", "query"]
    with pytest.raises(BadInput):
        StoreWords(store, ["one", "two", "three"], head=head)
    with pytest.raises(BadInput):
        StoreWords(store, WORDS, head=head, top=3)


def test_deleted_items_and_other_kinds_are_left_out(store):
    gone = StoreWords(store, WORDS).search("red", 1)[0]
    store.delete([gone.id])
    reader = StoreWords(store, WORDS, modality="image")
    assert len(reader) == 29
    assert gone.id not in [hit.id for hit in reader.search("red", 40)]
    assert StoreWords(store, WORDS, modality="audio").search("red") == []
    with pytest.raises(BadInput, match="modality"):
        StoreWords(store, WORDS, modality="smell")


def test_empty_stores_and_bad_input(store, tmp_path):
    assert StoreWords(Store(tmp_path / "e.chiasm", FakeSpace()), WORDS).search("red") == []
    reader = StoreWords(store, WORDS)
    for call in (
        lambda: reader.search("  "),
        lambda: reader.search("red", 0),
        lambda: StoreWords(store, ["one"]),
        lambda: StoreWords(store, WORDS, top=0),
        lambda: StoreWords(store, WORDS, gain=0),
    ):
        with pytest.raises(BadInput):
            call()

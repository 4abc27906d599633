"""Searching: by words, pictures, vectors and files; filters, hybrid, similar, corrections, approximate search."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chiasm.embeddings import Embeddings, unit
from chiasm.errors import BadInput, BadItem, SpaceMismatch, StoreError
from chiasm.items import Item, Sound
from chiasm.search import Store, ann
from chiasm.search import query as asking
from chiasm.search.filters import glob_to_regex
from chiasm.search.test_fakes import DIM, PALETTE, ColumnMean, FakeSpace, write_pictures


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "in" / "sub", 30)
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    store.add(tmp_path / "in")
    return store


def vectors(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32))


def filled(path, n=50, seed=0, modality=None) -> tuple[Store, np.ndarray]:
    v = vectors(n, seed)
    store = Store(path)
    store.add(Embeddings(v, [f"i{i:04d}" for i in range(n)], modality or ["image"] * n))
    return store, v


def test_words_find_their_pictures(pictures):
    for color in PALETTE:
        result = pictures.search(color, k=5)
        assert [hit.uri.rsplit("/", 1)[1].split("_")[0] for hit in result.hits] == [color] * 5
        assert result.calibrated
        assert 0 <= result.p_value <= 1
        assert all(0 <= hit.relevance <= 1 for hit in result.hits)


def test_result_is_json_of_the_documented_shape(pictures):
    shown = json.loads(json.dumps(pictures.search("red", k=2).to_json()))
    assert set(shown) >= {"query", "nothing_here", "hits"}
    assert set(shown["hits"][0]) >= {"id", "uri", "modality", "score", "relevance"}
    assert datetime.fromisoformat(shown["hits"][0]["added_at"]).tzinfo is not None


def test_picture_file_item_and_vector_queries_agree(pictures, tmp_path):
    path = tmp_path / "query.png"
    Image.new("RGB", (16, 16), PALETTE["blue"]).save(path)
    picture = Image.open(path)
    vector = pictures.space.encode([picture]).vectors[0]
    answers = [pictures.search(q, k=7) for q in (path, picture, Item.of(picture), vector, list(map(float, vector)))]
    assert len({tuple(hit.id for hit in a.hits) for a in answers}) == 1
    assert not answers[0].calibrated
    assert answers[0].hits[0].relevance is None


@pytest.mark.parametrize(
    "query", ["", "  \n", np.full(DIM, np.nan), np.zeros(DIM + 1), np.zeros((2, DIM)), [], ["a", "b"]]
)
def test_bad_queries(pictures, query):
    with pytest.raises(BadInput):
        pictures.search(query)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_bad_k(pictures, k):
    with pytest.raises(BadInput):
        pictures.search("red", k=k)


def test_query_of_a_kind_without_encoder(pictures, tmp_path):
    with pytest.raises(Exception, match="does not encode audio"):
        pictures.search(Sound(np.zeros(16000, np.float32), 16000))
    with pytest.raises(BadItem):
        pictures.search(tmp_path / "missing.png")


def test_k_larger_than_the_store_gives_all_in_falling_order(pictures):
    hits = pictures.search("red", k=10**6).hits
    assert len(hits) == len(pictures) == 30
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_empty_store(tmp_path):
    store = Store(tmp_path / "e.chiasm", FakeSpace())
    result = store.search("red")
    assert result.nothing_here
    assert result.hits == []
    assert len(store) == 0
    assert store.stats()["items"] == 0
    assert store.verify() == []
    assert store.delete(ids="x") == 0
    with pytest.raises(BadInput):
        store.export(tmp_path / "x.parquet")


def test_vectors_without_a_space(tmp_path):
    store, v = filled(tmp_path / "v.chiasm")
    result = store.search(v[3], k=1)
    assert result.hits[0].id == "i0003"
    assert not result.calibrated
    assert not result.nothing_here
    assert result.p_value is None
    with pytest.raises(BadInput, match="does not know the space"):
        store.search("words")
    with pytest.raises(SpaceMismatch, match="upgrade"):
        store.search(Embeddings(v[:1], ["q"], ["text"], space="other"))


def test_exact_search_equals_the_full_product(tmp_path):
    store, v = filled(tmp_path / "v.chiasm", 500)
    q = vectors(1, 9)[0]
    expected = np.argsort(-(v @ q), kind="stable")[:20]
    assert [hit.id for hit in store.search(q, k=20).hits] == [f"i{i:04d}" for i in expected]


def test_ties_go_to_the_older_item(tmp_path):
    store = Store(tmp_path / "t.chiasm")
    v = np.tile(vectors(1), (10, 1))
    store.add(Embeddings(v[:5], [f"a{i}" for i in range(5)], ["image"] * 5))
    store.add(Embeddings(v[:5], [f"b{i}" for i in range(5)], ["image"] * 5))
    assert [h.id for h in store.search(v[0], k=10).hits] == [f"a{i}" for i in range(5)] + [f"b{i}" for i in range(5)]


def test_filters(pictures, tmp_path):
    folder = tmp_path / "in"
    assert len(pictures.search("red", k=99, path=folder)) == 30
    assert len(pictures.search("red", k=99, path=folder / "su")) == 0
    assert len(pictures.search("red", k=99, path="**/red_*.png")) == 5
    assert len(pictures.search("red", k=99, path="red_000?.png")) == 2
    assert len(pictures.search("red", k=99, path=str(folder / "*" / "[rg]*"))) == 10
    assert len(pictures.search("red", k=99, where={"width": 16, "height": (">=", 17)})) == 0
    assert len(pictures.search("red", k=99, where={"width": [15, 16]})) == 30
    assert len(pictures.search("red", k=99, modality=["text"])) == 0
    now = datetime.now(UTC)
    assert len(pictures.search("red", k=99, since=now - timedelta(hours=1), until=now.isoformat())) == 30
    assert len(pictures.search("red", k=99, since=now)) == 0
    empty = pictures.search("red", path="*.nothing")
    assert empty.nothing_here


@pytest.mark.parametrize(
    "bad",
    [
        {"modality": "smell"},
        {"where": {"a": ("like", "x")}},
        {"where": {"a": (1, 2, 3)}},
        {"since": "yesterday"},
        {"until": float("nan")},
        {"path": ""},
        {"rate": 0},
    ],
)
def test_bad_filters(pictures, bad):
    with pytest.raises(BadInput):
        pictures.search("red", **bad)


def test_filter_values_are_never_code(pictures):
    for evil in ("' OR 1=1 --", '"; DROP TABLE items', "a'b", "\\", "%", "(", "x\ny"):
        assert len(pictures.search("red", path=evil)) == 0
        assert len(pictures.search("red", where={evil: evil})) == 0
        assert pictures.delete(ids=[evil]) == 0
        with pytest.raises(BadInput):
            pictures.get(evil)
    assert len(pictures) == 30


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="*?[", exclude_categories=["Cs"]), max_size=12))
def test_glob_of_plain_text_matches_only_itself(text):
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.match_substring_regex(pa.array([text, text + "x", "x" + text]), "^" + glob_to_regex(text) + "$")
    assert found.to_pylist() == [True, False, False]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_filtered_search_equals_search_among_the_allowed(tmp_path_factory, seed, share):
    """Both ways of filtering (gather, hide) give what a full sort of the allowed rows gives."""
    shared = _shared(tmp_path_factory)
    snapshot = shared.snapshot()
    rng = np.random.default_rng(seed)
    allowed = rng.random(len(snapshot.seq)) < share
    allowed[rng.integers(len(allowed))] = True
    q = vectors(1, seed)[0]
    rows, scores = asking.find(snapshot, q, min(10, int(allowed.sum())), allowed)
    expected = np.flatnonzero(allowed)[np.argsort(-(snapshot.vectors[allowed] @ q), kind="stable")][:10]
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, snapshot.vectors[expected] @ q, rtol=1e-5, atol=1e-6)


_SHARED: list[Store] = []


def _shared(tmp_path_factory) -> Store:
    if not _SHARED:
        _SHARED.append(filled(tmp_path_factory.mktemp("shared") / "s.chiasm", 400)[0])
    return _SHARED[0]


def test_meta_filter_reaches_nested_facts_and_ignores_other_kinds(tmp_path):
    store = Store(tmp_path / "m.chiasm", FakeSpace())
    metas = [{"page": 3}, {"page": "3"}, {"exif": {"iso": 100}}, {"note": 'says "page": 3'}, {}]
    store.add([Item("text", f"word{i}", id=str(i), meta=meta) for i, meta in enumerate(metas)])

    def ids(**where):
        return sorted(h.id for h in store.search("word1", k=9, where=where).hits)

    assert ids(page=3) == ["0"]
    assert ids(page=(">", 1)) == ["0"]
    assert ids(page=("in", [3, "3"])) == ["0", "1"]
    assert ids(**{"exif.iso": ("<=", 100)}) == ["2"]
    assert ids(note=("contains", "page")) == ["3"]


def test_hybrid_brings_what_only_the_words_find(tmp_path):
    store = Store(tmp_path / "h.chiasm", FakeSpace())
    store.add([Item("image", Image.new("RGB", (8, 8), c), text=f"a {n} thing", id=n) for n, c in PALETTE.items()])
    # The picture is black, but its caption holds a rare word that the space knows nothing of.
    store.add([Item("image", Image.new("RGB", (8, 8), (0, 0, 0)), text="invoice 4711 from ACME", id="invoice")])
    plain, hybrid = store.search("invoice 4711", k=7), store.search("invoice 4711", k=7, hybrid=True)
    best = hybrid.hits[0]
    assert best.id == "invoice"
    assert best.rank_text == 1
    assert {h.id for h in plain.hits} == {h.id for h in hybrid.hits}
    assert best.score == pytest.approx(next(h.score for h in plain.hits if h.id == "invoice"))
    assert "rank_text" in best.to_json()
    filtered = store.search("thing", k=7, hybrid=True, where={"none": 1})
    assert filtered.hits == []
    for odd in ('"unbalanced', "AND OR NOT (", "a:b ^ ~", "😀"):
        assert len(store.search(odd, hybrid=True).hits) == 7
    with pytest.raises(BadInput):
        store.search(np.ones(DIM, np.float32), hybrid=True)


def test_hybrid_sees_rows_added_after_the_index(tmp_path):
    store = Store(tmp_path / "h.chiasm", FakeSpace())
    store.add([Item.of("first words here")])
    store.search("first", hybrid=True)
    store.add([Item.of("a zebra came later", id="z")])
    assert store.search("zebra", k=1, hybrid=True).hits[0].id == "z"


def test_frames_of_a_clip_show_once(tmp_path):
    items = [
        Item("video", Image.new("RGB", (8, 8), (200 + i % 20, 20, 20)), uri="/clips/a.mp4", part=f"t={i}")
        for i in range(300)
    ]
    items += [Item("image", Image.new("RGB", (8, 8), (20, 200, 20)), id=f"p{i}") for i in range(3)]
    space = FakeSpace()
    space.modalities = ("text", "image", "video")
    store = Store(tmp_path / "v.chiasm", space)
    store.add(items)
    hits = store.search("red", k=3).hits
    assert [h.modality for h in hits] == ["video", "image", "image"]
    assert len({h.id for h in hits}) == 3
    assert [h.modality for h in store.search("red", k=3, unique=False).hits] == ["video"] * 3
    best = store.search("red", k=1, unique=False).hits[0]
    assert hits[0].id == best.id
    near = store.similar(hits[0].id, k=9).hits
    assert {h.modality for h in near} == {"image"}


def test_similar_leaves_itself_out(pictures, tmp_path):
    first = pictures.search("green", k=1).hits[0]
    for name in (first.id, first.uri):
        hits = pictures.similar(name, k=4).hits
        assert first.id not in {h.id for h in hits}
        assert all("green" in h.uri for h in hits)
    outside = tmp_path / "o.png"
    Image.new("RGB", (16, 16), PALETTE["white"]).save(outside)
    assert all("white" in h.uri for h in pictures.similar(outside, k=5).hits)
    assert pictures.similar(first.id, k=1, path="**/red*").hits[0].uri.rsplit("/", 1)[1].startswith("red")
    for missing in ("no such thing", ""):
        with pytest.raises(BadInput):
            pictures.similar(missing)


def test_correction_is_the_additive_score_and_can_be_undone(pictures):
    plain = {h.id: h.score for h in pictures.search("red", k=99).hits}
    pictures.correct(ColumnMean(), queries=["red", "red", "blue"])
    snapshot = pictures.snapshot()
    bank = pictures.space.encode(["red", "red", "blue"], role="query").vectors
    expected = -0.5 * (snapshot.vectors @ bank.mean(axis=0))
    np.testing.assert_allclose(snapshot.bias, expected, atol=1e-6)
    assert pictures.stats()["correction"] == "ColumnMean"
    other = Store(pictures.path, FakeSpace(), read_only=True)
    bias = dict(zip(snapshot.column("id").to_pylist(), snapshot.bias.tolist(), strict=True))
    for store in (pictures, other):
        for hit in store.search("red", k=99).hits:
            assert hit.score == pytest.approx(plain[hit.id] + bias[hit.id], abs=1e-6)
    pictures.add([Item.of(Image.new("RGB", (8, 8), (128, 128, 128)), id="new")])
    assert pictures.get("new")["bias"] == pytest.approx(snapshot.bias.mean(), abs=1e-6)
    pictures.correct(None)
    assert pictures.stats()["correction"] is None
    after = {h.id: h.score for h in pictures.search("red", k=99).hits}
    assert {i: after[i] for i in plain} == pytest.approx(plain)
    assert pictures.verify() == []


def test_correction_is_refused_before_anything_is_written(pictures):
    class Wrong:
        def __init__(self, bias):
            self.made = bias

        def fit(self, gallery, *, queries=None, items=None):
            self.bias_ = self.made
            return self

    version = pictures.stats()["version"]
    for bias in (np.zeros(3), np.full(30, np.nan), None):
        with pytest.raises(BadInput):
            pictures.correct(Wrong(bias))
    for queries in ([], "words", np.full((2, DIM), np.nan), np.zeros((2, DIM + 1))):
        with pytest.raises(BadInput):
            pictures.correct(ColumnMean(), queries=queries)
    assert pictures.stats()["version"] == version


def test_correction_counts_the_live_rows_only(pictures):
    gone = pictures.search("red", k=3).hits
    pictures.delete([h.id for h in gone])
    pictures.correct(ColumnMean())
    assert len(pictures.search("red", k=99)) == 27
    assert len(pictures.snapshot().seq) == 27


def test_calibration_follows_adds_and_deletes(pictures):
    first = pictures.search("red", k=5)
    pictures.add([Item.of(Image.new("RGB", (8, 8), (0, 128, 128)), id="x")])
    pictures.delete([first.hits[0].id])
    after = pictures.search("red", k=5)
    fresh = Store(pictures.path, FakeSpace())
    (pictures.path / "exact" / "calibration.safetensors").unlink()
    again = fresh.search("red", k=5)
    assert [h.id for h in after.hits] == [h.id for h in again.hits]
    assert after.p_value == pytest.approx(again.p_value, abs=1e-5)
    assert [h.relevance for h in after.hits] == pytest.approx([h.relevance for h in again.hits], abs=1e-4)
    saved = Store(pictures.path, FakeSpace(), read_only=True).search("red", k=5)
    assert saved.p_value == pytest.approx(again.p_value, abs=1e-6)


def test_damaged_calibration_is_made_anew(pictures):
    expected = pictures.search("red").p_value
    (pictures.path / "exact" / "calibration.safetensors").write_bytes(b"\x00" * 100)
    assert Store(pictures.path, FakeSpace()).search("red").p_value == pytest.approx(expected, abs=1e-6)


def test_approximate_search_is_exactly_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(ann, "EXACT_ROWS", 1000)
    store, v = filled(tmp_path / "a.chiasm", 3000)
    assert store.stats()["index"] == "ann"
    found = 0
    for seed in range(20):
        q = vectors(1, 100 + seed)[0]
        approximate, exact = store.search(q, k=10), store.search(q, k=10, exact=True)
        expected = {h.id: h.score for h in exact.hits}
        found += len(expected.keys() & {h.id for h in approximate.hits})
        for hit in approximate.hits:
            assert hit.score == pytest.approx(float(v[int(hit.id[1:])] @ q), abs=1e-5)
        everything = ann.candidates(store.snapshot(), q, 10, probed=1.0)
        assert {int(i[1:]) for i in expected} <= set(everything.tolist())  # all clusters visited: nothing is missed
    assert found >= 140  # vectors without clusters, the hardest case; the probed share alone would find 100 of 200
    store.add(Embeddings(vectors(1, 7), ["late"], ["image"]))
    assert store.search(vectors(1, 7)[0], k=1).hits[0].id == "late"
    store.delete("late")
    assert store.search(vectors(1, 7)[0], k=1).hits[0].id != "late"
    store.correct(ColumnMean())
    top = store.search(v[5], k=1, exact=False).hits[0]
    assert top.id == "i0005"
    assert top.score < 1


def test_threads_search_while_one_writes(tmp_path):
    store, v = filled(tmp_path / "t.chiasm", 300)
    errors: list[BaseException] = []
    stop = threading.Event()

    def look():
        try:
            while not stop.is_set():
                hits = store.search(v[7], k=3).hits
                assert hits[0].id == "i0007"
                assert hits[0].score == pytest.approx(1, abs=1e-5)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(12):
        store.add(Embeddings(vectors(40, 50 + i), [f"n{i}_{j}" for j in range(40)], ["text"] * 40))
        store.delete([f"n{i}_{j}" for j in range(0, 40, 2)])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store) == 300 + 12 * 20
    assert store.verify() == []


def test_get_gives_the_row(pictures):
    hit = pictures.search("red", k=1).hits[0]
    row = pictures.get(hit.id)
    assert row["uri"] == hit.uri
    assert row["vector"].shape == (DIM,)
    assert row["meta"]["width"] == 16
    with pytest.raises(BadInput):
        pictures.get("nope")


def test_read_only_store_refuses_writing(pictures):
    store = Store(pictures.path, FakeSpace(), read_only=True)
    for write in (lambda: store.add([Item.of("x")]), lambda: store.delete("x"), lambda: store.correct(None)):
        with pytest.raises(StoreError, match="read-only"):
            write()

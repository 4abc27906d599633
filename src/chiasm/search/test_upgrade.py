"""A store goes over to a new space: what is measured, what is served meanwhile, killed runs, the end, the way back."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from chiasm.embeddings import Embeddings, unit
from chiasm.errors import BadInput, SpaceMismatch, StoreError, StoreLocked
from chiasm.items import Item
from chiasm.search import Store, hits, reembed, upgrade, upgrade_end, upgrade_notes
from chiasm.search.mapped_space import FILE, FOLDER, MappedSpace
from chiasm.search.test_fakes import DIM, PALETTE, ColumnMean, FakeSpace, write_pictures
from chiasm.space import Fingerprint

NEW_DIM = 40


class NewSpace(FakeSpace):
    """The fake space seen by another model: turned into 40 dimensions."""

    name = "new-fake"
    dim = NEW_DIM

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((NEW_DIM, NEW_DIM)))[0][:DIM]
        self.fingerprint = Fingerprint("new-fake", "1", f"n{seed}", "p", NEW_DIM)

    def prepare(self, item: Item) -> np.ndarray:
        return (super().prepare(item) @ self.turn).astype(np.float32)


WORDS = [
    f"{one} {two}" for one in (*PALETTE, "dog", "house", "sea") for two in (*PALETTE, *"abcdefghijklmnopqrstuvwxyz")
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "in", 30)
    made = Store(tmp_path / "s.chiasm", FakeSpace())
    made.add(tmp_path / "in")
    made.add([Item.of("a red boat", id="t0"), Item.of("a green hill", id="t1")])
    return made


@pytest.fixture(scope="module")
def plan_options():
    return {"form": "linear", "sigma": 0.0}  # new vectors are old ones turned


@pytest.fixture(scope="module")
def made(tmp_path_factory, plan_options):
    """One map for all tests: it depends on the two spaces and the texts alone."""
    other = Store(tmp_path_factory.mktemp("plan") / "s.chiasm", FakeSpace())
    other.add([Item.of("a red boat", id="t0")])
    return upgrade.plan(other, NewSpace(), WORDS, options=plan_options)


def state(store: Store) -> dict[str, bytes]:
    snapshot = store.snapshot()
    ids = snapshot.column("id").to_pylist()
    return {ids[row]: snapshot.vectors[row].tobytes() for row in np.flatnonzero(snapshot.alive)}


def files(folder) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "exact" not in p.parts and not p.name.endswith(".lock")
    }


def test_a_plan_writes_nothing_and_says_what_it_costs(store, plan_options):
    before = files(store.path)
    report = upgrade.plan(store, NewSpace(), WORDS, options=plan_options).report
    assert files(store.path) == before
    assert report.text_recall > 0.8
    assert report.items == 32
    assert 0 <= report.item_recall <= 1
    assert 0 <= report.overlap <= 1
    assert report.compatibility == {}
    assert any("--pairs" in note for note in report.notes)
    assert json.dumps(report.to_json(), allow_nan=False)


def test_queries_of_the_new_space_find_old_items_and_new_items_join(store, made, tmp_path):
    old = state(store)
    upgrade.begin(store, made)
    assert isinstance(store.space, MappedSpace)
    assert state(store) == old
    for color in PALETTE:
        names = [hit.uri.rsplit("/", 1)[1].split("_")[0] for hit in store.search(color, 5, modality="image").hits]
        assert names == [color] * 5
    path = tmp_path / "more.png"
    Image.new("RGB", (16, 16), PALETTE["blue"]).save(path)
    assert store.add(path).added == 1
    assert len(store.get(store.similar(path, 1).hits[0].id)["vector"]) == DIM
    assert any(hit.uri.endswith("more.png") for hit in store.search("blue", 8, modality="image").hits)
    # A reader that opened the store before goes on with the old space's queries; vectors of a third space are refused.
    reader = Store(store.path, FakeSpace())
    assert reader.search("red", 3, modality="image").hits[0].uri.split("/")[-1].startswith("red")
    with pytest.raises(SpaceMismatch):
        Store(store.path, NewSpace(seed=5))


def test_another_reader_notices(store, made):
    reader = Store(store.path)
    assert reader.header.upgrade is None
    upgrade.begin(store, made)
    reader.snapshot()
    assert reader.header.upgrade.new.name == "new-fake"


def test_most_shown_items_go_first_and_a_limit_is_kept(store, made):
    for _ in range(3):
        store.search("yellow", 5, modality="image")
    store.search("blue", 5, modality="image")
    upgrade.begin(store, made)
    found = reembed.advance(store, store.header.upgrade, limit=10, batch_size=4)
    assert (found.done, found.left, found.failed) == (10, 22, {})
    noted = [i for batch in upgrade_notes.noted(store) for i in batch.column("id").to_pylist()]
    colors = [store.get(i)["uri"].rsplit("/", 1)[-1].split("_")[0] for i in noted]
    assert (colors[:4], sorted(colors)) == (["yellow"] * 4, ["blue"] * 5 + ["yellow"] * 5)


def test_killed_anywhere_it_goes_on_and_goes_back_bit_for_bit(store, made, monkeypatch):
    old = state(store)
    upgrade.begin(store, made)
    record = store.header.upgrade
    # Killed between the note and the store's own commit.
    writer = reembed.Writer
    real, calls = writer.revector, []

    def dies(self, ids, vectors):
        calls.append(len(ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, ids, vectors)

    monkeypatch.setattr(reembed, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(writer, "revector", dies)
    with pytest.raises(KeyboardInterrupt):
        reembed.advance(store, record, batch_size=4)
    monkeypatch.setattr(writer, "revector", real)
    store.close()
    again = Store(store.path)
    again.use(made.new)
    half = reembed.progress(again)
    assert half.done == 8  # noted, four of them not yet written
    assert reembed.advance(again, again.header.upgrade, batch_size=4).complete
    new = made.new.encode([Image.new("RGB", (8, 8), PALETTE["red"]), "sea"]).vectors
    assert again.search(made.map(new[:1], "image")[0], 5, modality="image").hits[0].uri.split("/")[-1].startswith("red")
    changed = state(again)
    assert set(changed) == set(old)
    assert changed != old
    counted = upgrade_end.rollback(again, again.header.upgrade, FakeSpace())
    assert counted["restored"] == 32
    assert state(again) == old
    assert again.header.upgrade is None
    assert again.header.space.name == "fake"
    assert not (again.path / FOLDER).exists()
    assert again.verify() == []


def test_finished_the_store_holds_the_new_space_and_can_still_go_back(store, made, tmp_path):
    old = state(store)
    stamps = {i: store.get(i)["added_at"] for i in old}
    upgrade.begin(store, made)
    with pytest.raises(BadInput, match="items are left"):
        upgrade_end.finish(store, store.header.upgrade)
    reembed.advance(store, store.header.upgrade)
    reader = Store(store.path)
    reader.snapshot()
    upgrade_end.finish(store, store.header.upgrade)
    assert store.header.space.dim == NEW_DIM
    assert store.header.upgrade.phase == "finished"
    assert {i: store.get(i)["added_at"] for i in old} == stamps
    assert store.verify() == []
    fresh = made.new.encode([Image.open(p) for p in sorted((tmp_path / "in").glob("*.png"))]).vectors
    by_uri = {store.get(i)["uri"].rsplit("/", 1)[-1]: store.get(i)["vector"] for i in old}
    for path, vector in zip(sorted((tmp_path / "in").glob("*.png")), fresh, strict=True):
        np.testing.assert_allclose(by_uri[path.name], vector, atol=1e-6)
    assert store.search("green", 5, modality="image").hits[0].uri.split("/")[-1].startswith("green")
    assert reader.snapshot().vectors.shape[1] == NEW_DIM  # a reader that was open notices
    # What happens after the end survives the way back.
    store.delete("t1")
    store.add([Item.of("a black cat", id="t2")])
    counted = upgrade_end.rollback(store, store.header.upgrade, FakeSpace())
    back = state(store)
    assert set(back) == set(old) - {"t1"} | {"t2"}
    assert all(back[i] == old[i] for i in back if i != "t2")
    assert counted["encoded"] == 1
    np.testing.assert_allclose(store.get("t2")["vector"], FakeSpace().encode(["a black cat"]).vectors[0], atol=1e-6)


def test_after_forgetting_a_second_upgrade_is_possible(store, made, plan_options):
    upgrade.begin(store, made)
    with pytest.raises(BadInput, match="an upgrade to new-fake"):
        upgrade.plan(store, NewSpace(seed=2), WORDS)
    reembed.advance(store, store.header.upgrade)
    upgrade_end.finish(store, store.header.upgrade)
    upgrade_end.forget(store, store.header.upgrade)
    assert store.header.upgrade is None
    with pytest.raises(BadInput, match="no upgrade"):
        upgrade.under_way(store)
    second = upgrade.plan(store, NewSpace(seed=2), WORDS, options=plan_options)
    upgrade.begin(store, second)
    reembed.advance(store, store.header.upgrade)
    upgrade_end.finish(store, store.header.upgrade)
    assert store.search("white", 5, modality="image").hits[0].uri.split("/")[-1].startswith("white")
    assert store.verify() == []


def test_lost_originals_are_listed_and_the_store_stays_mapped(store, made, tmp_path):
    next((tmp_path / "in").glob("red_*.png")).unlink()
    upgrade.begin(store, made)
    found = reembed.advance(store, store.header.upgrade)
    assert len(found.failed) == 1
    assert found.left == 0
    with pytest.raises(BadInput, match="1 cannot be embedded"):
        upgrade_end.finish(store, store.header.upgrade)
    assert store.search("red", 5, modality="image").hits[0].uri.split("/")[-1].startswith("red")


def test_items_deleted_or_changed_meanwhile_are_not_brought_back(store, made, tmp_path):
    upgrade.begin(store, made)
    reembed.advance(store, store.header.upgrade)
    gone = store.search("white", 1, modality="image").hits[0]
    store.delete(gone.id)
    path = next(p for p in (tmp_path / "in").glob("green_*.png"))
    Image.new("RGB", (20, 20), PALETTE["black"]).save(path)
    store.add(path)
    upgrade_end.rollback(store, store.header.upgrade, FakeSpace())
    ids = state(store)
    assert gone.id not in ids
    changed = next(i for i in ids if store.get(i)["uri"].endswith(path.name))
    expected = FakeSpace().encode([Image.new("RGB", (20, 20), PALETTE["black"])]).vectors[0]
    np.testing.assert_allclose(store.get(changed)["vector"], expected, atol=1e-6)


def test_a_damaged_or_foreign_map_is_refused(store, made):
    upgrade.begin(store, made)
    path = store.path / FOLDER / FILE
    kept = path.read_bytes()
    path.write_bytes(kept[:-8] + b"\0" * 8)
    with pytest.raises((BadInput, SpaceMismatch), match=r"saved|upgraded with"):
        Store(store.path, NewSpace()).space  # noqa: B018
    path.write_bytes(kept)
    assert isinstance(Store(store.path, NewSpace()).space, MappedSpace)


def test_stores_that_cannot_be_upgraded(tmp_path, store):
    with pytest.raises(BadInput, match="has this space already"):
        upgrade.plan(store, FakeSpace(), WORDS)
    with pytest.raises(BadInput, match="distinct texts"):
        upgrade.plan(store, NewSpace(), ["a", "b", "a"])
    ready = Store(tmp_path / "r.chiasm")
    ready.add(Embeddings(unit(np.eye(4, dtype=np.float32)), list("abcd"), ["image"] * 4))
    with pytest.raises(BadInput, match="does not know the space"):
        upgrade.plan(ready, NewSpace(), WORDS)
    with pytest.raises(BadInput, match="is empty"):
        upgrade.plan(Store(tmp_path / "e.chiasm", FakeSpace()), NewSpace(), WORDS)
    with pytest.raises(StoreError):
        upgrade.plan(Store(tmp_path / "none.chiasm", create=False), NewSpace(), WORDS)


def test_hits_are_counted_folded_and_never_in_the_way(tmp_path, monkeypatch):
    hits.count(tmp_path, ["a", "b"])
    hits.count(tmp_path, ["a"])
    (tmp_path / hits.LOG).open("ab").write(b'["cut sh')
    assert hits.counts(tmp_path) == {"a": 2, "b": 1}
    monkeypatch.setattr(hits, "FOLD", 1)
    hits.count(tmp_path, ["b", "odd\nid"])
    assert not (tmp_path / hits.LOG).exists()
    assert hits.counts(tmp_path)["a"] == 2
    hits.count(tmp_path / "missing", ["a"])
    assert hits.counts(tmp_path / "missing") == {}


def test_a_rolled_back_upgrade_leaves_nothing_that_the_next_one_meets(store, made, plan_options):
    old = state(store)
    for seed, plan in ((0, made), (3, None)):
        plan = plan or upgrade.plan(store, NewSpace(seed=seed), WORDS, options=plan_options)
        upgrade.begin(store, plan)
        reembed.advance(store, store.header.upgrade)
        upgrade_end.finish(store, store.header.upgrade)
        assert store.verify() == []
        assert store.search("red", 3, modality="image").hits[0].uri.split("/")[-1].startswith("red")
        upgrade_end.rollback(store, store.header.upgrade, FakeSpace())
        assert state(store) == old
        assert store.header.format == 1  # again a store that earlier versions read


def test_corrections_belong_to_one_space(store, made):
    store.correct(ColumnMean())
    with pytest.raises(BadInput, match="ColumnMean was fitted"):
        upgrade.plan(store, NewSpace(), WORDS)
    with pytest.raises(BadInput, match="correct --undo"):
        upgrade.begin(store, made)
    store.correct(None)
    upgrade.begin(store, made)
    with pytest.raises(BadInput, match="an upgrade is under way"):
        store.correct(ColumnMean())
    reembed.advance(store, store.header.upgrade)
    upgrade_end.finish(store, store.header.upgrade)
    store.correct(ColumnMean())
    upgrade_end.rollback(store, store.header.upgrade, FakeSpace())
    assert store.header.correction is None
    assert not store.snapshot().biased


def test_relevance_and_words_in_the_mixed_state(store, made):
    upgrade.begin(store, made)
    reembed.advance(store, store.header.upgrade, limit=16)
    found = store.search("red", 5)
    assert found.calibrated
    assert not found.nothing_here
    assert store.search("zebra quasar lecture", 3).nothing_here
    assert store.search("boat", 2, hybrid=True).hits[0].id == "t0"
    assert store.stats()["upgrade"].startswith("serving, to new-fake")
    assert store.verify() == []
    upgrade_end.rollback(store, store.header.upgrade, FakeSpace())
    assert store.search("boat", 2, hybrid=True).hits[0].id == "t0"


def test_only_the_new_space_may_add_meanwhile(store, made, tmp_path):
    write_pictures(tmp_path / "more", 2, seed=9)
    upgrade.begin(store, made)
    other = Store(store.path, FakeSpace())
    with pytest.raises(SpaceMismatch, match="goes over from fake"):
        other.add([Item.of("a blue bird", id="t9")])
    assert store.add([Item.of("a blue bird", id="t9")]).added == 1
    with store.writing():
        store.replace_header(upgrade=replace(store.header.upgrade, phase="rolling back"))
    with pytest.raises(BadInput, match="being rolled back"):
        store.add([Item.of("a blue fish", id="t10")])


def test_searching_adding_and_deleting_go_on_while_it_runs(store, made, tmp_path, monkeypatch):
    monkeypatch.setattr(reembed, "COMMIT_SECONDS", 0)
    upgrade.begin(store, made)
    paths = write_pictures(tmp_path / "more", 12, seed=5)
    wrong: list[object] = []
    ended = threading.Event()

    def search() -> None:
        reader = Store(store.path)
        reader.use(NewSpace())
        while not ended.is_set():
            names = [h.uri.rsplit("/", 1)[-1].split("_")[0] for h in reader.search("blue", 4, modality="image").hits]
            if names != ["blue"] * 4:
                wrong.append(names)

    def add() -> None:
        writer = Store(store.path)
        writer.use(NewSpace())
        for path in paths:
            writer.add(path)
        writer.delete("t1")

    def guarded(run):
        try:
            run()
        except Exception as error:
            wrong.append(error)

    workers = [threading.Thread(target=guarded, args=(run,)) for run in (search, add)]
    for worker in workers:
        worker.start()
    reembed.advance(store, store.header.upgrade, batch_size=2)
    workers[1].join()
    assert reembed.advance(store, store.header.upgrade).complete
    upgrade_end.finish(store, store.header.upgrade)
    ended.set()
    workers[0].join()
    assert wrong == []
    assert len(store) == 32 + 12 - 1
    assert store.verify() == []


def test_a_rollback_stops_the_process_that_re_embeds(store, made, monkeypatch):
    monkeypatch.setattr(reembed, "COMMIT_SECONDS", 0)
    old = state(store)
    upgrade.begin(store, made)
    with upgrade_notes.alone(store), pytest.raises(StoreLocked, match="re-embedding"):
        reembed.advance(store, store.header.upgrade)
    other = Store(store.path)
    back = threading.Thread(target=lambda: upgrade_end.rollback(other, other.header.upgrade, FakeSpace()))

    def tell(found: reembed.Progress) -> None:
        if found.encoded == 8:
            back.start()
            while store.header.upgrade.phase == "serving":
                store.snapshot()

    with pytest.raises(BadInput, match="no longer serving"):
        reembed.advance(store, store.header.upgrade, batch_size=4, tell=tell)
    back.join()
    assert state(Store(store.path, FakeSpace())) == old


def test_the_index_of_a_large_store_follows(store, made, monkeypatch):
    from chiasm.search import ann

    monkeypatch.setattr(ann, "EXACT_ROWS", 10)
    with store.writing() as writer:
        ann.build(writer.table, 32)
    upgrade.begin(store, made)
    reembed.advance(store, store.header.upgrade)
    assert store.stats()["index"] == "ann"
    for color in PALETTE:
        exact, fast = (store.search(color, 5, modality="image", exact=way).hits for way in (True, False))
        assert [h.id for h in fast] == [h.id for h in exact]
    upgrade_end.finish(store, store.header.upgrade)
    assert store.stats()["index"] == "ann"


def test_a_store_of_before_opens(store):
    path = store.path / "chiasm.json"
    raw = json.loads(path.read_text())
    for name in ("upgrade", "table"):
        del raw[name]
    path.write_text(json.dumps(raw))
    assert raw["format"] == 1
    again = Store(store.path, FakeSpace())
    assert again.header.upgrade is None
    assert len(again.search("red", 3).hits) == 3


def test_spaces_much_alike_get_the_closed_form_map(store):
    made = upgrade.plan(store, NewSpace(), WORDS)
    assert made.report.kind == "closed form"
    assert made.report.overlap > 0.95
    assert made.report.item_recall > 0.9

"""The store as a whole: indexing folders, updates, bad and hostile input, files on disk, importers, export."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from chiasm.embeddings import Embeddings, unit
from chiasm.errors import BadInput, SpaceMismatch, StoreError, StoreLocked
from chiasm.items import Item
from chiasm.search import Store, header
from chiasm.search.importers import Columns, import_clip_retrieval, import_npy, import_parquet
from chiasm.search.test_fakes import DIM, FakeSpace, write_pictures
from chiasm.search.webdataset import import_webdataset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))


def vectors(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32))


def content(store: Store) -> set[tuple]:
    """Everything that does not depend on when it was written."""
    snapshot = store.snapshot()
    if snapshot is None:
        return set()
    names = ("id", "uri", "part", "modality", "sha256", "size", "mtime_ns", "text", "meta", "vector")
    rows = snapshot.table.search().select(list(names)).to_arrow().to_pylist()
    return {tuple(tuple(row[n]) if n == "vector" else row[n] for n in names) for row in rows}


# ---- folders


def test_second_run_encodes_and_reads_nothing(tmp_path):
    space = FakeSpace()
    folder = tmp_path / "in"
    write_pictures(folder, 40)
    store = Store(tmp_path / "s.chiasm", space)
    first = store.add(folder)
    assert (first.added, first.vectors_encoded, first.skipped) == (40, 40, [])
    before, version = space.embedded, store.stats()["version"]
    for path in folder.iterdir():
        path.chmod(0o000)  # whatever would read a file now fails (for root the count of embedded items decides)
    second = store.add(folder)
    assert (second.added, second.updated, second.unchanged, second.vectors_encoded) == (0, 0, 40, 0)
    assert space.embedded == before
    assert store.stats()["version"] == version


def test_touched_file_is_not_encoded_again_and_changed_file_is_replaced(tmp_path):
    space = FakeSpace()
    a, b, c = write_pictures(tmp_path / "in", 3)
    store = Store(tmp_path / "s.chiasm", space)
    store.add(tmp_path / "in")
    seq = store.snapshot().seq.copy()
    os.utime(a, ns=(1, 10**18))
    report = store.add(tmp_path / "in")
    assert (report.unchanged, report.updated, report.vectors_encoded) == (3, 0, 0)
    np.testing.assert_array_equal(store.snapshot().seq, seq)
    row = next(r for r in content(store) if r[1] == str(a))
    assert row[6] == 10**18
    Image.new("RGB", (20, 20), (1, 2, 3)).save(b)
    report = store.add([str(b), c])
    assert (report.added, report.updated, report.unchanged) == (0, 1, 1)
    assert len(store) == 3
    assert store.verify() == []


def test_a_file_that_loses_items_leaves_none_behind(tmp_path):
    text = tmp_path / "in" / "t.txt"
    text.parent.mkdir()
    text.write_text("\n\n".join(f"paragraph {i} " + "words " * 200 for i in range(20)))
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    store.add(text)
    assert len(store) > 3
    text.write_text("short now")
    store.add(text)
    assert len(store) == 1
    assert store.search("short", k=9).hits[0].text == "short now"


def test_update_deletes_vanished_files_below_its_root_only(tmp_path):
    one, two = write_pictures(tmp_path / "a", 4), write_pictures(tmp_path / "b", 4, seed=1)
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    store.add([tmp_path / "a", tmp_path / "b"])
    store.add([Item.of("made in memory", id="memory")])
    one[0].unlink()
    two[0].unlink()
    assert store.add(tmp_path / "a").deleted == 0
    assert len(store) == 9
    assert store.update(tmp_path / "a").deleted == 1
    assert len(store) == 8
    one[1].unlink()
    assert store.update(one[1]).deleted == 1
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(BadInput, match="does not exist"):  # perhaps a disk that is not mounted: nothing is deleted
        store.update(tmp_path / "a")
    assert store.delete(path=tmp_path / "a") == 2
    assert len(store) == 5


def test_broken_files_are_listed_and_do_not_stop_the_others(tmp_path):
    folder = tmp_path / "in"
    paths = write_pictures(folder, 6)
    paths[0].write_bytes(paths[0].read_bytes()[:40])
    (folder / "empty.png").write_bytes(b"")
    (folder / "noise.jpg").write_bytes(os.urandom(300))
    (folder / "out").symlink_to("/etc")
    report = Store(tmp_path / "s.chiasm", FakeSpace()).add(folder)
    assert report.added == 5
    assert {os.path.basename(s.path) for s in report.skipped} == {paths[0].name, "empty.png", "noise.jpg", "out"}
    assert all(s.reason for s in report.skipped)
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    "name", [b"with space.png", b"new\nline.png", "käse 🧀.png".encode(), b"bad\xff\xfe.png", b"quo'te\"%.png"]
)
def test_odd_names_round_trip(tmp_path, name):
    folder = tmp_path / "in"
    source = write_pictures(folder, 1)[0]
    os.rename(source, os.path.join(os.fsencode(folder), name))
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    assert store.add(folder).added == 1
    assert store.add(folder).unchanged == 1
    assert len(store.search("red", path=folder)) == 1
    os.unlink(os.path.join(os.fsencode(folder), name))
    assert store.update(folder).deleted == 1
    assert len(store) == 0


def test_items_are_added_once_and_bad_ones_listed(tmp_path):
    space = FakeSpace()
    store = Store(tmp_path / "s.chiasm", space)
    items = [Item.of(f"text {i}", id=f"t{i}") for i in range(600)]
    items[7] = Item.of("unencodable", id="bad")
    report = store.add(iter(items))
    assert (report.added, [s.path for s in report.skipped]) == (599, ["bad"])
    again = store.add(items[:100])
    assert (again.unchanged, again.added, again.vectors_encoded) == (99, 0, 0)
    changed = store.add([Item.of("other words", id="t1")])
    assert changed.updated == 1
    assert store.get("t1")["text"] == "other words"
    with pytest.raises(BadInput, match="duplicate"):
        store.add([Item.of("a", id="x"), Item.of("b", id="x")])
    with pytest.raises(BadInput, match="mixes"):
        store.add([str(tmp_path), Item.of("a")])
    store.add(Item.of("lone \ud800 surrogate", id="odd"))
    assert store.get("odd")["text"] == "lone ? surrogate"


# ---- vectors


def test_embeddings_round_trip_with_tokens(tmp_path):
    v = vectors(5)
    tokens, mask = np.ones((5, 3, 4), np.float32), np.array([[1, 1, 0]] * 5, bool)
    store = Store(tmp_path / "v.chiasm")
    report = store.add(Embeddings(v, list("abcde"), ["image"] * 5, tokens, mask))
    assert report.added == 5
    row = store.get("c")
    np.testing.assert_array_equal(row["vector"], v[2])
    assert np.shape(row["tokens"]) == (2, 4)
    assert store.add(Embeddings(v, list("abcde"), ["image"] * 5)).unchanged == 5
    moved = store.add(Embeddings(np.concatenate([v[1:2], v[:1]]), ["a", "z"], ["image"] * 2))
    assert (moved.updated, moved.added) == (1, 1)
    np.testing.assert_array_equal(store.get("a")["vector"], v[1])
    assert store.verify() == []


def test_wrong_vectors_are_refused(tmp_path):
    store = Store(tmp_path / "v.chiasm")
    store.add(Embeddings(vectors(3), list("abc"), ["image"] * 3))
    with pytest.raises(BadInput):
        store.add(Embeddings(vectors(3, dim=DIM + 1), list("xyz"), ["image"] * 3))
    with pytest.raises(BadInput):
        Embeddings(np.full((1, DIM), np.nan, np.float32), ["n"], ["image"])
    with pytest.raises(SpaceMismatch, match="chiasm upgrade"):
        store.add(Embeddings(vectors(3), list("xyz"), ["image"] * 3, space="another"))
    assert len(store) == 3


def test_a_store_keeps_to_its_space(tmp_path):
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    store.add([Item.of("x")])
    with pytest.raises(SpaceMismatch, match="--space"):
        Store(tmp_path / "s.chiasm", FakeSpace("other weights"))
    digest = FakeSpace().fingerprint.digest
    assert store.add(Embeddings(vectors(1), ["v"], ["image"], space=digest)).added == 1


# ---- the folder


def test_what_is_not_a_store(tmp_path):
    with pytest.raises(StoreError, match="not a Chiasm store"):
        Store(tmp_path / "none.chiasm", create=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match="other things"):
        Store(tmp_path / "photos", FakeSpace())
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file", FakeSpace())
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == ["a.jpg"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not JSON"),
        ("[1]", "format version"),
        ('{"format": 99}', "pip install -U"),
        ('{"format": 1}', "lacks"),
        ('{"format": 1, "created": "", "space": {"nope": 1}, "correction": null}', "wrong field"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path, text, match):
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    (store.path / header.FILE).write_text(text)
    with pytest.raises(StoreError, match=match):
        Store(store.path)


def test_second_writer_is_told_who_holds_the_lock(tmp_path):
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    with open(store.path / "writer.lock", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write("4711")
        file.flush()
        with pytest.raises(StoreLocked, match="4711"):
            store.add([Item.of("x")])
    assert store.add([Item.of("x")]).added == 1


def test_readers_of_another_process_see_commits_and_older_snapshots_stay(tmp_path):
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    store.add([Item.of(f"red {i}", id=str(i)) for i in range(20)])
    reader = Store(tmp_path / "s.chiasm", FakeSpace(), read_only=True)
    assert len(reader.search("red", k=99)) == 20
    old = reader.snapshot()
    store.delete([str(i) for i in range(10)])
    store.add([Item.of("green", id="g")])
    assert len(old.fetch(np.arange(20), ("id",))) == 20
    assert len(reader.search("red", k=99)) == 11
    code = "import sys; from chiasm.search import Store; print(len(Store(sys.argv[1], read_only=True)))"
    out = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "11"


def test_the_vector_file_is_made_anew_when_damaged_or_gone(tmp_path):
    store = Store(tmp_path / "s.chiasm")
    v = vectors(50)
    store.add(Embeddings(v, [str(i) for i in range(50)], ["image"] * 50))
    for damage in ("state", "vectors", "folder"):
        folder = store.path / "exact"
        if damage == "state":
            (folder / "state.json").write_text("{")
        elif damage == "vectors":
            next(folder.glob("vectors-*")).write_bytes(b"")
        else:
            shutil.rmtree(folder)
        fresh = Store(store.path)
        assert fresh.search(v[9], k=1).hits[0].id == "9"
        assert fresh.verify() == []


def test_many_deletions_shrink_the_vector_file(tmp_path):
    store = Store(tmp_path / "s.chiasm")
    v = vectors(3000)
    store.add(Embeddings(v, [str(i) for i in range(3000)], ["image"] * 3000))
    before = store.search(v[2999], k=1)
    store.delete([str(i) for i in range(2000)])
    assert len(store.snapshot().seq) == 1000
    assert store.search(v[2999], k=1).hits[0].id == before.hits[0].id == "2999"
    assert len(list((store.path / "exact").glob("vectors-*"))) == 1


def test_many_small_commits_are_merged(tmp_path):
    store = Store(tmp_path / "s.chiasm")
    for i in range(80):
        store.add(Embeddings(vectors(2, i), [f"{i}a", f"{i}b"], ["image"] * 2))
    assert store.snapshot().table.stats()["fragment_stats"]["num_fragments"] < 66
    assert len(store) == 160
    assert store.verify() == []


def test_full_disk_keeps_what_was_committed(tmp_path):
    """A limit on the size of files stands for the full disk: the same failing write, without root or a mount."""
    store = Store(tmp_path / "s.chiasm")
    store.add(Embeddings(vectors(100), [f"a{i}" for i in range(100)], ["image"] * 100))
    code = """
import resource, signal, sys
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from chiasm.embeddings import Embeddings
from chiasm.errors import StoreError
from chiasm.search import Store
store = Store(sys.argv[1])
store.search(np.ones(32))
v = np.random.default_rng(1).standard_normal((4000, 32)).astype("f")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.add(Embeddings(v, [f"b{i}" for i in range(4000)], ["image"] * 4000))
except StoreError as error:
    assert "intact" in str(error), error
    assert len(store.search(np.ones(32), k=9999)) == 100
    print("refused")
"""
    out = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "refused", out.stderr
    assert len(store) == 100
    assert store.verify() == []
    assert store.add(Embeddings(vectors(10, 3), [f"c{i}" for i in range(10)], ["image"] * 10)).added == 10
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_search_goes_on_when_the_vector_file_cannot_be_written(tmp_path, monkeypatch):
    store = Store(tmp_path / "s.chiasm")
    v = vectors(30)
    store.add(Embeddings(v, [str(i) for i in range(30)], ["image"] * 30))
    shutil.rmtree(store.path / "exact")
    (store.path / "exact").write_text("in the way")
    for fresh in (Store(store.path), Store(store.path, read_only=True)):
        assert fresh.search(v[4], k=1).hits[0].id == "4"
        fresh.close()


def test_export_has_every_row(tmp_path):
    store = Store(tmp_path / "s.chiasm")
    v = vectors(20)
    store.add(Embeddings(v, [f"i{i}" for i in range(20)], ["image"] * 20))
    assert store.export(tmp_path / "o.parquet") == 20
    back = Store(tmp_path / "back.chiasm")
    assert import_parquet(back, tmp_path / "o.parquet").added == 20
    np.testing.assert_array_equal(back.get("i7")["vector"], v[7])
    assert store.export(tmp_path / "o_npy", "npy") == 20
    lines = [json.loads(line) for line in (tmp_path / "o_npy" / "items.jsonl").read_text().splitlines()]
    array = np.load(tmp_path / "o_npy" / "vectors.npy")
    np.testing.assert_array_equal(array[[line["id"] for line in lines].index("i3")], v[3])
    assert store.export(tmp_path / "o.jsonl", "jsonl") == 20
    assert len(json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["vector"]) == DIM
    for bad in ({"path": tmp_path / "o.jsonl", "format": "jsonl"}, {"path": tmp_path / "n", "format": "pickle"}):
        with pytest.raises(BadInput):
            store.export(**bad)
    assert not list(tmp_path.glob(".*part"))


# ---- importers


def test_parquet_import_finds_its_columns_and_lists_bad_rows(tmp_path):
    v = vectors(8)
    lists = [row.tolist() for row in v]
    lists[2], lists[3], lists[4] = None, [1.0], [float("nan")] * DIM
    table = {
        "url": [f"http://x/{i}" for i in range(8)],
        "caption": ["c"] * 8,
        "w": range(8),
        "embedding": pa.array(lists, pa.list_(pa.float64())),
    }
    table["url"][7] = table["url"][6]
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    store = Store(tmp_path / "s.chiasm")
    report = import_parquet(store, tmp_path / "e.parquet")
    assert (report.added, len(report.skipped)) == (4, 4)
    hit = store.search(v[5], k=1).hits[0]
    assert (hit.uri, hit.text, hit.meta) == ("http://x/5", "c", {"w": 5})
    assert import_parquet(store, tmp_path / "e.parquet").unchanged == 4
    assert store.fingerprint.name == "imported:e"
    for bad in (Columns(vector="w"), Columns(vector="none"), Columns(id="none")):
        with pytest.raises(BadInput):
            import_parquet(store, tmp_path / "e.parquet", columns=bad)
    with pytest.raises(BadInput):
        import_parquet(store, tmp_path / "missing.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput):
        import_parquet(store, tmp_path / "broken.parquet")


def test_npy_import_with_and_without_metadata(tmp_path):
    v = vectors(9)
    np.save(tmp_path / "v.npy", v.astype(np.float16))
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"path": f"/p/{i}.jpg", "lang": "de"}) for i in range(9)))
    store = Store(tmp_path / "s.chiasm")
    assert import_npy(store, tmp_path / "v.npy", tmp_path / "m.jsonl", space="imported:clip").added == 9
    assert store.search(v[4], k=1, where={"lang": "de"}).hits[0].uri == "/p/4.jpg"
    bare = Store(tmp_path / "b.chiasm")
    assert import_npy(bare, tmp_path / "v.npy").added == 9
    assert import_npy(bare, tmp_path / "v.npy").unchanged == 9
    with pytest.raises(SpaceMismatch):
        import_npy(store, tmp_path / "v.npy", space="imported:other")
    (tmp_path / "short.jsonl").write_text('{"path": "x"}')
    with pytest.raises(BadInput, match="1 rows for 9"):
        import_npy(bare, tmp_path / "v.npy", tmp_path / "short.jsonl")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput):
        import_npy(bare, tmp_path / "object.npy")


def test_declared_space_makes_words_searchable(tmp_path):
    space = FakeSpace()
    np.save(tmp_path / "v.npy", space.encode(["red", "green"]).vectors)
    store = Store(tmp_path / "s.chiasm", space)
    import_npy(store, tmp_path / "v.npy", space=space)
    assert store.search("green", k=1).hits[0].score == pytest.approx(1, abs=1e-5)


def test_clip_retrieval_layout(tmp_path):
    root = tmp_path / "out"
    for name in ("img_emb", "text_emb", "metadata"):
        (root / name).mkdir(parents=True)
    for shard in (0, 1, 10):
        np.save(root / "img_emb" / f"img_emb_{shard}.npy", vectors(4, shard))
        np.save(root / "text_emb" / f"text_emb_{shard}.npy", vectors(4, 100 + shard))
        meta = pa.table(
            {"image_path": [f"/p/{shard}_{i}.jpg" for i in range(4)], "caption": [f"cap {shard} {i}" for i in range(4)]}
        )
        pq.write_table(meta, root / "metadata" / f"metadata_{shard}.parquet")
    store = Store(tmp_path / "s.chiasm")
    assert import_clip_retrieval(store, root).added == 24
    assert store.stats()["modalities"] == {"image": 12, "text": 12}
    hit = store.search(vectors(4, 10)[2], k=1).hits[0]
    assert (hit.modality, hit.uri, hit.text) == ("image", "/p/10_2.jpg", "cap 10 2")
    assert store.search(vectors(4, 101)[3], k=1).hits[0].modality == "text"
    with pytest.raises(BadInput):
        import_clip_retrieval(store, tmp_path)


def test_webdataset_shards_are_streamed_and_cannot_escape(tmp_path):
    import io
    import tarfile

    def member(archive, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))

    png = io.BytesIO()
    Image.new("RGB", (8, 8), (220, 20, 20)).save(png, "PNG")
    with tarfile.open(tmp_path / "shard_000.tar", "w") as archive:
        member(archive, "a/0001.png", png.getvalue())
        member(archive, "a/0001.txt", b"a red thing")
        member(archive, "a/0001.json", b'{"w": 1}')
        member(archive, "../../../evil.png", png.getvalue())
        member(archive, "b/0002.txt", b"words only")
        member(archive, "b/0003.jpg", b"\xff\xd8\xff\xe0 broken")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "shard_001.tar").write_bytes(b"not a tar file at all")
    before = sorted(p.name for p in tmp_path.parent.iterdir())
    store = Store(tmp_path / "s.chiasm", FakeSpace())
    report = import_webdataset(store, tmp_path)
    assert report.added == 3
    assert len(report.skipped) == 3
    assert sorted(p.name for p in tmp_path.parent.iterdir()) == before
    hit = store.search("red", k=1, where={"w": 1}).hits[0]
    assert (hit.uri, hit.text) == (f"{tmp_path}/shard_000.tar/a/0001.png", "a red thing")
    again = import_webdataset(store, tmp_path / "shard_000.tar")
    assert (again.added, again.unchanged) == (0, 3)

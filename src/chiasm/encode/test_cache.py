"""The cache of features: bit-equal, bounded, shared by processes and threads, and never in the way."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chiasm.encode.cache import FeatureCache, default_folder, item_from_json, item_to_json
from chiasm.items import Item

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with FeatureCache(tmp_path_factory.mktemp("cache")) as cache:
        yield cache


@settings(max_examples=40, deadline=None)
@given(vectors=FLOATS, texts=st.lists(st.text(max_size=20), max_size=3))
def test_what_goes_in_comes_out_bit_for_bit(shared, vectors, texts):
    shared.put("a" * 64, "space", [{"text": text} for text in texts], vectors)
    entry = shared.get("a" * 64, "space")
    assert entry is not None
    assert entry.vectors.dtype == np.float32
    assert entry.vectors.tobytes() == vectors.tobytes()
    assert entry.vectors.shape == vectors.shape
    assert [item["text"] for item in entry.items] == texts


def test_key_is_content_space_and_kind(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.put("f", "s", [], np.zeros((0, 2)), kind=".md")
    assert cache.get("f", "s", ".md") is not None
    assert cache.get("f", "s", ".txt") is None
    assert cache.get("f", "other", ".md") is None
    assert cache.get("g", "s", ".md") is None
    cache.put("f", "s", [], np.ones((1, 2)), kind=".md")
    assert len(cache) == 1
    cache.clear()
    assert (len(cache), cache.size()) == (0, 0)


def test_survives_closing_and_is_closed_quietly(tmp_path):
    with FeatureCache(tmp_path) as cache:
        cache.put("f", "s", [{"part": "page=1"}], np.eye(2))
    assert cache.get("f", "s") is None  # closed: nothing, but no error
    cache.put("f", "s", [], np.eye(2))
    again = FeatureCache(tmp_path).get("f", "s")
    assert again is not None
    np.testing.assert_array_equal(again.vectors, np.eye(2))


def test_the_least_recently_used_go_first(tmp_path):
    cache = FeatureCache(tmp_path, max_bytes=40_000)
    for i in range(60):
        cache.put(f"file{i}", "s", [], np.full((1, 256), i, np.float32))
        assert cache.get("file0", "s") is not None  # in use all the time
    cache.prune()
    assert cache.size() <= 40_000
    assert cache.get("file0", "s") is not None
    assert cache.get("file1", "s") is None
    assert cache.get("file59", "s") is not None
    assert 20 < len(cache) < 40


@pytest.mark.parametrize("damage", ["garbage", "empty", "other schema"])
def test_a_broken_cache_is_moved_aside(tmp_path, damage):
    path = tmp_path / "features.sqlite"
    if damage == "other schema":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE entries (key TEXT, used REAL)")
        connection.close()
    else:
        path.write_bytes(b"not a database" * 1000 if damage == "garbage" else b"")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cache = FeatureCache(tmp_path)
    assert len(said) == (0 if damage == "empty" else 1)
    cache.put("f", "s", [], np.eye(2))
    assert cache.get("f", "s") is not None
    assert bool(list(tmp_path.glob("*.broken-*"))) == (damage != "empty")


def test_damage_while_in_use_costs_entries_only(tmp_path):
    cache = FeatureCache(tmp_path)
    for i in range(200):
        cache.put(f"f{i}", "s", [], np.full((1, 512), i, np.float32))
    cache.close()
    path = tmp_path / "features.sqlite"
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = FeatureCache(tmp_path)
        for i in range(200):
            entry = cache.get(f"f{i}", "s")
            assert entry is None or (entry.vectors == i).all()  # never a wrong vector
        cache.put("new", "s", [], np.eye(2))
        assert cache.get("new", "s") is not None


def test_a_folder_that_cannot_be_written_is_said_once_and_ignored(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.warns(UserWarning, match="going on without it"):
        cache = FeatureCache(tmp_path / "file" / "below")
    cache.put("f", "s", [], np.eye(2))
    assert cache.get("f", "s") is None
    assert (len(cache), cache.size(), cache.prune()) == (0, 0, 0)


def test_a_full_disk_is_said_once_and_ignored(tmp_path):
    cache = FeatureCache(tmp_path)
    cache._connection.execute("PRAGMA max_page_count = 20")  # SQLite's own "database or disk is full"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(100):
            cache.put(f"f{i}", "s", [], np.zeros((1, 2000)))
    assert len(said) == 1
    assert "full" in str(said[0].message)
    assert cache.get("f1", "s") is None


def test_threads_share_one_cache(tmp_path):
    cache, wrong = FeatureCache(tmp_path), []

    def work(thread: int) -> None:
        for i in range(50):
            cache.put(f"{thread}-{i}", "s", [], np.full((1, 8), thread * 100 + i, np.float32))
            entry = cache.get(f"{thread}-{i}", "s")
            if entry is None or entry.vectors[0, 0] != thread * 100 + i:
                wrong.append((thread, i))

    threads = [threading.Thread(target=work, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 400


def test_processes_share_one_cache(tmp_path):
    code = (
        "import sys, numpy as np; from chiasm.encode.cache import FeatureCache\n"
        "c = FeatureCache(sys.argv[1])\n"
        "for i in range(100): c.put(f'{sys.argv[2]}-{i}', 's', [], np.full((1, 4), i))\n"
        "assert all(c.get(f'{sys.argv[2]}-{i}', 's').vectors[0, 0] == i for i in range(100))\n"
    )
    runs = [subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(tmp_path), str(p)]) for p in range(3)]
    assert [run.wait(timeout=100) for run in runs] == [0, 0, 0]
    assert len(FeatureCache(tmp_path)) == 300


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "own"))
    assert FeatureCache().path == tmp_path / "own" / "features.sqlite"
    monkeypatch.delenv("CHIASM_CACHE")
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_folder() == tmp_path / "chiasm"
        assert not os.path.exists(default_folder())  # asking makes nothing


def test_items_come_back_at_their_new_place():
    text = Item("text", "words", uri="/a/x.md", part="page=2", text="words", meta={"page": 2}, sha256="f")
    picture = Item("image", object(), uri="/a/x.pdf", part="page=1", sha256="f", meta={"width": 3})
    assert item_from_json(item_to_json(text), "/a/x.md", "f") == text
    moved = item_from_json(item_to_json(picture), "/b/y.pdf", "f")
    assert (moved.uri, moved.part, moved.content, moved.meta) == ("/b/y.pdf", "page=1", None, {"width": 3})
    assert moved.id != picture.id

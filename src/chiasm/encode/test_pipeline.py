"""Files -> vectors: the same as encoding by hand, whatever is broken, in memory that does not grow."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import chiasm
import tiny_models
from chiasm.encode import encode_files, pipeline, read
from chiasm.encode.cache import FeatureCache
from chiasm.errors import BadInput, BadItem
from chiasm.items import Item


@pytest.fixture
def clip(tiny_clip):
    return chiasm.load(str(tiny_clip), device="cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures, texts and broken files."""
    home = tmp_path / "files"
    home.mkdir()
    for i in range(7):
        tiny_models.picture(i).save(home / f"p{i}.png")
    (home / "note.txt").write_text("a cat and a dog in the snow")
    (home / "note.md").write_text("# a horse\n\nof a man\n")
    (home / "broken.png").write_bytes((home / "p0.png").read_bytes()[:60])
    (home / "empty.jpg").write_bytes(b"")
    (home / "what.bin").write_bytes(bytes(range(256)) * 4)
    return home


def by_name(results) -> dict:
    return {result.path.name: result for result in results}


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (64, 4)])
def test_the_same_vectors_as_by_hand_and_one_result_per_path(clip, folder, batch_size, workers):
    paths = [*sorted(folder.iterdir()), folder / "gone.png", folder]
    results = list(encode_files(clip, paths, batch_size=batch_size, workers=workers, cache=False))
    assert len(results) == len(paths)
    found = by_name(results)
    assert {n for n, r in found.items() if r.error} == {"broken.png", "empty.jpg", "what.bin", "gone.png", folder.name}
    for name, result in found.items():
        if result.error:
            assert isinstance(result.error, BadItem)
            assert name in str(result.error)
            assert (result.items, result.vectors.shape) == ([], (0, clip.dim))
            continue
        items = read(folder / name)
        assert [item.id for item in result.items] == [item.id for item in items]
        np.testing.assert_allclose(result.vectors, clip.encode(items).vectors, atol=2e-5)
        assert result.sha256 == items[0].sha256
        assert result.size == (folder / name).stat().st_size
        assert result.mtime_ns == (folder / name).stat().st_mtime_ns
        assert not result.cached
        assert all(item.content is None for item in result.items if item.modality != "text")


def test_the_second_run_needs_no_network_and_gives_the_same_bits(clip, folder, tmp_path, monkeypatch):
    with FeatureCache(tmp_path / "cache") as cache:
        first = by_name(encode_files(clip, sorted(folder.iterdir()), cache=cache))
        (folder / "p0.png").rename(folder / "renamed.png")
        monkeypatch.setattr(type(clip), "embed", lambda *args, **kwargs: pytest.fail("the network was used"))
        second = by_name(encode_files(clip, sorted(folder.iterdir()), cache=cache))
    assert second["renamed.png"].uri == str(folder / "renamed.png")
    assert second["renamed.png"].items[0].uri == str(folder / "renamed.png")
    np.testing.assert_array_equal(second["renamed.png"].vectors, first["p0.png"].vectors)
    for name, result in second.items():
        assert result.cached == (result.error is None)
        if name in first and not result.error:
            assert result.vectors.tobytes() == first[name].vectors.tobytes()
            assert result.items == first[name].items


def test_the_cache_knows_spaces_apart_and_changed_files(clip, tiny_siglip, folder, tmp_path):
    other = chiasm.load(str(tiny_siglip), device="cpu")
    picture = folder / "p1.png"
    with FeatureCache(tmp_path / "cache") as cache:
        (first,) = encode_files(clip, [picture], cache=cache)
        (second,) = encode_files(other, [picture], cache=cache)
        assert not second.cached
        tiny_models.picture(99).save(picture)
        (third,) = encode_files(clip, [picture], cache=cache)
        assert not third.cached
        assert np.abs(first.vectors - third.vectors).max() > 1e-3


def test_the_default_cache_is_the_users_and_false_means_none(clip, folder):
    text = folder / "note.txt"
    list(encode_files(clip, [text], cache=False))
    assert not next(encode_files(clip, [text])).cached
    assert next(encode_files(clip, [text])).cached


def test_items_that_cannot_be_encoded_are_told_and_the_others_kept(clip, monkeypatch, folder):
    def fake(path, *, transcribe=False):
        sound = tiny_models.sound(1)
        return [
            Item("text", "a cat", uri=str(path), part="page=1", sha256="f", text="a cat"),
            Item("audio", sound, uri=str(path), part="t=0", sha256="f"),
            Item("audio", sound, uri=str(path), part="t=30", sha256="f", text="a dog"),
        ]

    monkeypatch.setattr(sys.modules["chiasm.encode.read"], "read", fake)
    (result,) = encode_files(clip, [folder / "note.txt"], cache=False)
    assert result.error is None
    assert [item.part for item in result.items] == ["page=1", "t=30"]
    assert result.vectors.shape == (2, clip.dim)
    assert len(result.dropped) == 1
    assert "no speech recognized" in str(result.dropped[0])


def test_one_item_that_breaks_the_network_does_not_cost_its_batch(clip, folder, monkeypatch):
    real = type(clip).embed

    def embed(self, prepared, modality, **options):
        if any(text == "poison" for text in prepared):
            raise RuntimeError("shape mismatch")
        found = real(self, prepared, modality, **options)
        for row, text in enumerate(prepared):
            if text == "nan":
                found[row] = np.nan
        return found

    monkeypatch.setattr(type(clip), "embed", embed)
    for name in ("poison", "nan", "fine", "good"):
        (folder / f"{name}.txt").write_text(name)
    found = by_name(encode_files(clip, sorted(folder.glob("*.txt")), cache=False))
    assert {name for name, result in found.items() if result.error} == {"poison.txt", "nan.txt"}
    assert "shape mismatch" in str(found["poison.txt"].error)
    assert "NaN" in str(found["nan.txt"].error)


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), MemoryError(), OSError(5, "I/O error"), ZeroDivisionError()])
def test_whatever_a_reader_raises_is_that_files_error(clip, folder, monkeypatch, error):
    def fail(path, **_):
        raise error

    monkeypatch.setattr(sys.modules["chiasm.encode.read"], "read", fail)
    (result,) = encode_files(clip, [folder / "p1.png"], cache=False)
    assert isinstance(result.error, BadItem)
    assert "\n" not in str(result.error)


def test_files_without_items_and_no_files(clip, folder, monkeypatch):
    assert list(encode_files(clip, [], cache=False)) == []
    monkeypatch.setattr(sys.modules["chiasm.encode.read"], "read", lambda path, **_: [])
    (result,) = encode_files(clip, [folder / "p1.png"], cache=False)
    assert (result.error, result.items, result.vectors.shape) == (None, [], (0, clip.dim))
    assert len(result.sha256) == 64


def test_memory_is_flat_in_the_number_of_items(clip, folder, monkeypatch):
    """No more prepared items are alive than fit the bound, and none of the pictures read stays."""
    alive: weakref.WeakSet = weakref.WeakSet()
    lock, most = threading.Lock(), [0]
    picture = tiny_models.picture(1)

    class Watched(dict):
        __hash__ = object.__hash__
        __slots__ = ("__weakref__",)

    real = type(clip).prepare

    def prepare(self, item):
        found = Watched(real(self, item))
        with lock:
            alive.add(found)
            most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(type(clip), "prepare", prepare)
    read_one = lambda path, **_: [Item("image", picture, uri=str(path), sha256="f")]  # noqa: E731
    monkeypatch.setattr(sys.modules["chiasm.encode.read"], "read", read_one)
    results = 0
    for result in encode_files(clip, [folder / "p1.png"] * 400, batch_size=8, cache=False, workers=2):
        results += 1
        assert result.items[0].content is None
    assert results == 400
    assert most[0] <= 8 + pipeline.AHEAD + 2 * 8


def test_a_used_up_budget_is_worked_off(clip, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "BUDGET", 1)
    results = list(encode_files(clip, sorted(folder.glob("p*.png")), batch_size=64, cache=False))
    assert len(results) == 7
    assert not any(result.error for result in results)


def test_stopping_early_ends_the_threads(clip, folder):
    before = threading.active_count()
    run = encode_files(clip, [folder / "p1.png"] * 500, batch_size=2, cache=False)
    next(run)
    run.close()
    assert threading.active_count() <= before


def test_an_interrupt_in_the_network_goes_through(clip, folder, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    before = threading.active_count()
    clip.dim  # noqa: B018 (measured before the network is replaced)
    monkeypatch.setattr(type(clip), "embed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(encode_files(clip, sorted(folder.glob("p*.png")), cache=False))
    assert threading.active_count() <= before


def test_reading_overlaps_with_the_network(clip, folder, monkeypatch):
    """Files are read while the network computes, not before or after it."""
    real, picture = type(clip).embed, tiny_models.picture(1)
    computing, overlapped = threading.Event(), threading.Event()

    def watched_read(path, **_):
        if computing.is_set():
            overlapped.set()
        time.sleep(0.002)
        return [Item("image", picture, uri=str(path), sha256="f")]

    def watched_embed(self, prepared, modality, **options):
        computing.set()
        overlapped.wait(timeout=0.2)
        computing.clear()
        return real(self, prepared, modality, **options)

    clip.dim  # noqa: B018 (measured before the network is watched)
    monkeypatch.setattr(sys.modules["chiasm.encode.read"], "read", watched_read)
    monkeypatch.setattr(type(clip), "embed", watched_embed)
    list(encode_files(clip, [folder / "p1.png"] * 60, batch_size=4, workers=1, cache=False))
    assert overlapped.is_set()


def test_progress(clip, folder):
    told: list = []
    paths = sorted(folder.iterdir())
    list(encode_files(clip, paths, cache=False, progress=lambda *args: told.append(args)))
    assert told == [(i, len(paths)) for i in range(1, len(paths) + 1)]
    list(encode_files(clip, iter(paths[:2]), cache=False, progress=True))
    assert len(clip.encode(["a"], progress=True)) == 1


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"workers": 0}])
def test_bad_arguments(clip, bad):
    with pytest.raises(BadInput, match="at least 1"):
        list(encode_files(clip, [], **bad))


def test_strange_names(clip, tmp_path):
    names = ["with space", "line\nbreak", "emoji 🦊", os.fsdecode(b"not \xff utf-8")]
    for name in names:
        (tmp_path / (name + ".txt")).write_text("a cat")
    results = list(encode_files(clip, sorted(tmp_path.iterdir()), cache=False))
    assert len(results) == 4
    for result in results:
        assert result.error is None
        result.uri.encode()

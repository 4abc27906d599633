"""Walking folders, names of all kinds, and what a file is."""

import os
import socket
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.encode.files import open_regular, open_source, path_to_uri, show, sniff, uri_to_path, walk
from chiasm.encode.formats import detect
from chiasm.encode.read import read
from chiasm.errors import BadItem
from chiasm.items import Skipped

linux = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux only")
NAMES = ["plain.txt", "with space.txt", "new\nline.txt", "emoji \U0001f600.txt", "ümlaut.txt", "100%.txt", "#?&.txt"]


def names(root, **options):
    return [os.path.relpath(path, root) for path in walk(root, **options)]


def test_walk_is_sorted_and_complete(tmp_path):
    for folder in ("b", "a", "a/deep/deeper"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name in ("z.txt", "b/1.txt", "a/2.txt", "a/deep/deeper/3.txt", "c.txt"):
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == ["a/2.txt", "a/deep/deeper/3.txt", "b/1.txt", "c.txt", "z.txt"]


def test_hidden_files_and_stores_are_skipped_and_told(tmp_path):
    for folder in (".git", "photos.chiasm", "renamed-store", "good"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.txt").write_text("x")
    (tmp_path / "renamed-store" / "chiasm.json").write_text("{}")
    for name in (".DS_Store", "._picture.jpg", "seen.txt"):
        (tmp_path / name).write_text("x")
    skipped: list[Skipped] = []
    assert names(tmp_path, skipped=skipped) == ["good/file.txt", "seen.txt"]
    reasons = {Path(skip.path).name: skip.reason for skip in skipped}
    assert reasons[".git"] == reasons[".DS_Store"] == reasons["._picture.jpg"] == "hidden"
    assert "store" in reasons["photos.chiasm"]
    assert "store" in reasons["renamed-store"]
    told = []
    list(walk(tmp_path, skipped=told.append))
    assert told == skipped


def test_links(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("x")
    (inside / "real.txt").write_text("x")
    (inside / "out").symlink_to(outside)
    (inside / "out.txt").symlink_to(outside / "secret.txt")
    (inside / "loop").symlink_to(inside)
    (inside / "again.txt").symlink_to(inside / "real.txt")
    (inside / "broken.txt").symlink_to(inside / "nothing")
    (inside / "circle").symlink_to(inside / "circle")
    skipped: list[Skipped] = []
    assert names(inside, skipped=skipped) == ["real.txt"]
    reasons = {Path(skip.path).name: skip.reason for skip in skipped}
    assert reasons["out"] == reasons["out.txt"] == "a link out of the folder"
    assert "own place" in reasons["again.txt"]
    assert len(reasons) == 6
    # Following them ends in spite of the loops, and reads what they point to.
    skipped.clear()
    assert names(inside, follow_links=True, skipped=skipped) == ["again.txt", "out/secret.txt", "out.txt", "real.txt"]
    assert {Path(skip.path).name for skip in skipped} == {"loop", "broken.txt", "circle"}


def test_root_that_is_a_file_a_link_or_missing(tmp_path):
    file = tmp_path / ".named-on-purpose.txt"
    file.write_text("x")
    assert list(walk(file)) == [file]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert list(walk(tmp_path / "link")) == [tmp_path / "link" / "a.txt"]
    with pytest.raises(BadItem, match="does not exist"):
        list(walk(tmp_path / "nothing"))


@linux
def test_special_files_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        skipped: list[Skipped] = []
        assert names(tmp_path, skipped=skipped) == []
        assert {Path(skip.path).name for skip in skipped} == {"fifo.jpg", "socket.jpg"}
        for name, what in (("fifo.jpg", "FIFO"), ("socket.jpg", "socket")):
            with pytest.raises(BadItem, match=what):
                read(tmp_path / name)
    with pytest.raises(BadItem, match="device"):
        read("/dev/zero")
    with pytest.raises(BadItem, match="folder"):
        read(tmp_path)
    assert sniff(tmp_path / "fifo.jpg") is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    file = tmp_path / "closed.txt"
    file.write_text("x")
    file.chmod(0)
    skipped: list[Skipped] = []
    assert list(walk(tmp_path, skipped=skipped)) == [file]
    assert skipped == [Skipped(str(tmp_path / "closed"), "permission denied")]
    with pytest.raises(BadItem, match="permission denied"):
        read(file)


def test_permission_error_is_a_bad_item(tmp_path, monkeypatch):
    file = tmp_path / "closed.txt"
    file.write_text("x")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadItem, match="permission denied"):
        open_regular(file)


def test_a_file_that_vanishes(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("words")
    paths = walk(tmp_path)
    first = next(paths)
    first.unlink()
    with pytest.raises(BadItem, match="does not exist"):
        read(first)
    assert read(next(paths))[0].text == "words"


def test_a_folder_that_vanishes_while_walking(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    paths = walk(tmp_path)
    next(paths)
    (tmp_path / "folder").rmdir()
    # What was a folder is yielded as a path at worst; reading it is the clear error.
    for path in paths:
        with pytest.raises(BadItem):
            read(path)


@pytest.mark.parametrize("name", NAMES)
def test_names_survive(tmp_path, name):
    file = tmp_path / name
    file.write_text("some words", encoding="utf-8")
    (path,) = walk(tmp_path)
    (item,) = read(path)
    assert item.uri == str(file)
    assert uri_to_path(item.uri) == file
    assert "\n" not in show(file)


@linux
def test_names_that_are_not_utf8(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9 \xff%41.txt"
    with open(raw, "w") as file:
        file.write("some words")
    (path,) = walk(tmp_path)
    (item,) = read(path)
    assert item.uri.startswith("file:///")
    assert item.uri.encode("ascii")
    assert os.fsencode(uri_to_path(item.uri)) == raw
    with open(raw, "w"):
        pass
    with pytest.raises(BadItem) as caught:
        read(path)
    assert str(caught.value).encode("utf-8")  # messages can be printed


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b and b"/" not in b and b not in (b".", b"..")))
@linux
def test_uri_round_trip(raw):
    path = uri_to_path(path_to_uri(os.fsdecode(b"/folder/" + raw)))
    assert os.fsencode(path) == b"/folder/" + raw
    assert path_to_uri(path).encode("utf-8")


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_to_uri("a/../b.txt") == str(tmp_path / "b.txt")


def test_hash_and_size_are_of_the_whole_file(tmp_path):
    import hashlib

    file = tmp_path / "x.bin"
    file.write_bytes(b"abc" * 1000)
    with open_source(file) as source:
        assert source.sha256 == hashlib.sha256(b"abc" * 1000).hexdigest()
        assert source.size == 3000
        assert source.file.read() == b"abc" * 1000


def test_large_files_are_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("chiasm.encode.files.IN_MEMORY", 10)
    file = tmp_path / "x.txt"
    file.write_text("more than ten bytes of text")
    with open_source(file) as source:
        assert not hasattr(source.file, "getbuffer")
    assert read(file)[0].text == "more than ten bytes of text"


SNIFFED = {
    b"\x89PNG\r\n\x1a\n....": "image",
    b"\xff\xd8\xff\xe0....": "image",
    b"RIFF\0\0\0\0WEBPVP8 ": "image",
    b"RIFF\0\0\0\0WAVEfmt ": "audio",
    b"RIFF\0\0\0\0AVI LIST": "video",
    b"\0\0\0\x20ftypM4A \0\0\0\0": "audio",
    b"\0\0\0\x20ftypisom\0\0\0\0mp41": "video",
    b"\0\0\0\x18ftypavif\0\0\0\0": "image",
    b"\0\0\0\x18ftypheic\0\0\0\0": "image",
    b"OggS\0\x02" + b"\0" * 22 + b"\x01\x1e\x01vorbis": "audio",
    b"OggS\0\x02" + b"\0" * 22 + b"\x01\x2a\x80theora": "video",
    b"%PDF-1.7\n": "document",
    b"<!DOCTYPE html><p>hello": "document",
    b"<?xml version='1.0'?>\n<html>": "document",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>": "image",
    b"plain words": "text",
    b"\xef\xbb\xbfwords": "text",
    "words".encode("utf-16"): "text",
    b"\x7fELF\x02\x01\x01\0\0\0": None,
    b"\0\0\0\0\0\0\0\0\0\0\0\0": None,
    b"\x1f\x8b\x08\0\0\0\0\0": None,
    b"": None,
}


@pytest.mark.parametrize("head", SNIFFED)
def test_sniff_by_content(tmp_path, head):
    for name in ("misleading.jpg", "misleading.mp4", "nothing"):
        (tmp_path / name).write_bytes(head)
        assert sniff(tmp_path / name) == SNIFFED[head]


def test_extension_decides_only_where_content_cannot(tmp_path):
    latin = "Grüße aus Köln".encode("latin-1")
    assert detect(latin, ".txt").kind == "text"
    assert detect(latin, ".bin") is None
    assert detect(b"a,b\n1,2\n", ".csv").name == "csv"
    assert detect(b"# Title", ".md").name == "markdown"
    # A character cut in two at the end of the head is not a broken encoding.
    assert detect(("é" * 3000).encode()[:4095], "").kind == "text"


def test_archives_and_programs_are_listed_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside.txt", "words")
    (tmp_path / "program").write_bytes(b"\x7fELF" + bytes(range(256)))
    assert sniff(tmp_path / "a.zip") is None
    for path in walk(tmp_path):
        with pytest.raises(BadItem, match="not a picture, document, recording, clip or text"):
            read(path)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from(["", ".jpg", ".mp3", ".txt", ".html", ".pdf", ".mp4"]))
def test_detect_never_fails(head, suffix):
    found = detect(head, suffix)
    assert found is None or found.kind in {"image", "document", "audio", "video", "text"}


MAGICS = [head for head in SNIFFED if len(head) > 3 and SNIFFED[head] is not None]


@settings(deadline=None, max_examples=120)
@given(st.sampled_from(MAGICS), st.binary(max_size=400))
def test_garbage_behind_a_right_magic_is_a_bad_item_or_text(tmp_path_factory, head, tail):
    file = tmp_path_factory.mktemp("garbage") / "file"
    file.write_bytes(head + tail)
    try:
        items = read(file)
    except BadItem:
        return
    assert items
    assert all(item.uri == str(file) and item.sha256 for item in items)


def test_reading_in_many_threads_gives_what_one_thread_gives(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"text number {number}")
    paths = list(walk(tmp_path))
    found: dict[str, str] = {}

    def work(mine):
        for path in mine:
            found[path.name] = read(path)[0].text

    threads = [threading.Thread(target=work, args=(paths[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {path.name: read(path)[0].text for path in paths}

"""Pairs from every kind of file, splits without leaks, and hostile tables: nothing lost, nothing silent."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chiasm.errors import BadInput, UnknownName
from chiasm.learn.readers import read_pairs, table_of


def paint(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(20):
        paint(tmp_path / "images" / f"p{i:02}.png", i)
    return tmp_path


def rows(n: int = 20, captions: int = 2) -> list[tuple[str, str]]:
    return [(f"images/p{i:02}.png", f"caption {j} of {i}") for i in range(n) for j in range(captions)]


def write_csv(path: Path, header: str, lines: list[tuple[str, ...]], sign: str = ",") -> Path:
    path.write_text("\n".join([header, *(sign.join(line) for line in lines)]), encoding="utf-8")
    return path


def named_pairs(table) -> set[tuple[str, str]]:
    return {(Path(str(table.a[x].name)).name, table.b[y].name) for x, y in table.pairs.tolist()}


WANTED = {(Path(a).name, b) for a, b in rows()}


def test_all_forms_hold_the_same_pairs(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_csv(folder / "t.csv", "image,caption", rows())
    write_csv(folder / "t.tsv", "file_name\ttitle", rows(), "\t")
    write_csv(folder / "semicolon.csv", "path;text", rows(), ";")
    lists = [
        {"image": f"images/p{i:02}.png", "captions_en": [f"caption {j} of {i}" for j in (0, 1)]} for i in range(20)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lists)), encoding="utf-8")
    wide = [(f"images/p{i:02}.png", f"caption 0 of {i}", f"caption 1 of {i}") for i in range(20)]
    write_csv(folder / "wide.csv", "image,caption_1,caption_2", wide)
    pq.write_table(pa.Table.from_pylist(lists), folder / "t.parquet", row_group_size=7)
    files = ("t.csv", "t.tsv", "semicolon.csv", "t.jsonl", "wide.csv", "t.parquet")
    for name in files:
        table = read_pairs(folder / name)
        assert named_pairs(table) == WANTED, name
        assert (len(table.a), len(table.b), table.skipped) == (20, 40, [])


def test_pictures_inside_parquet_stay_there(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": (folder / a).read_bytes(), "path": Path(a).name} for a, _ in rows(6, 1)]
    table = pa.table({"image": [*cells, None], "caption": [*(b for _, b in rows(6, 1)), "no picture"]})
    pq.write_table(table, folder / "in.parquet", row_group_size=2)
    found = read_pairs(folder / "in.parquet")
    assert len(found) == 6
    for x, y in found.pairs.tolist():
        i = int(found.b[y].name.rpartition(" ")[2])
        assert found.a[x].bytes() == cells[i]["bytes"]
    assert [s.reason for s in found.skipped] == ["has no image"]


def test_shards(folder: Path) -> None:
    path = folder / "shards" / "000.tar"
    path.parent.mkdir()

    def put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))

    with tarfile.open(path, "w") as archive:
        for i in range(5):
            put(archive, f"../../{i:03}.png", (folder / f"images/p{i:02}.png").read_bytes())
            put(archive, f"../../{i:03}.txt", f"one of {i}\ntwo of {i}".encode())
        put(archive, "lonely.txt", b"a caption without a picture")
        put(archive, "bare.png", (folder / "images/p09.png").read_bytes())
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for source in (path, path.parent):
        table = read_pairs(source)
        assert len(table) == 10
        assert table.a[0].bytes() == (folder / "images/p00.png").read_bytes()
        reasons = sorted(s.reason for s in table.skipped)
        assert reasons == ["has no caption", "has no image", "not a regular file"]


def test_folder_with_texts_beside_the_pictures(folder: Path) -> None:
    for i in range(18):
        (folder / "images" / f"p{i:02}.txt").write_text(f"caption 0 of {i}\n\ncaption 1 of {i}\n", encoding="utf-8")
    (folder / "images" / "gone.txt").write_text("no picture here", encoding="utf-8")
    table = read_pairs(folder / "images")
    assert named_pairs(table) == {(a, b) for a, b in WANTED if int(a[1:3]) < 18}
    reasons = [s.reason for s in table.skipped]
    assert sum("no caption" in r for r in reasons) == 2
    assert sum("without a picture" in r for r in reasons) == 1


def test_folder_with_metadata(folder: Path) -> None:
    write_csv(folder / "images" / "metadata.csv", "file_name,text", [(a.removeprefix("images/"), b) for a, b in rows()])
    assert named_pairs(read_pairs(folder / "images")) == WANTED


# ---- splits


def test_splits_of_the_file_are_kept(folder: Path) -> None:
    names = ["training"] * 10 + ["dev"] * 4 + ["TEST"] * 5 + ["extra"]
    write_csv(folder / "t.csv", "image,caption,split", [(a, b, names[int(a[8:10])]) for a, b in rows()])
    table = read_pairs(folder / "t.csv")
    assert table.counts() == {"train": 20, "val": 8, "test": 10}
    assert len(table) == 40
    assert any("'extra' (2)" in note for note in table.notes)


def test_a_missing_val_split_comes_from_training_only(folder: Path) -> None:
    write_csv(
        folder / "t.csv", "image,caption,split", [(a, b, "train" if int(a[8:10]) < 12 else "test") for a, b in rows()]
    )
    table = read_pairs(folder / "t.csv")
    assert table.counts() == {"train": 22, "val": 2, "test": 16}
    tested = {Path(table.a[x].name).name for x in table.pairs[table.rows("test"), 0]}
    assert tested == {f"p{i:02}.png" for i in range(12, 20)}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), copies=st.lists(st.integers(0, 19), max_size=6))
def test_no_picture_is_on_both_sides(tmp_path_factory, seed: int, copies: list[int]) -> None:
    """Not even under another name."""
    folder = tmp_path_factory.mktemp("leak")
    for i in range(20):
        paint(folder / f"images/p{i:02}.png", i)
    for k, i in enumerate(copies):
        (folder / f"images/copy{k}.png").write_bytes((folder / f"images/p{i:02}.png").read_bytes())
    more = [(f"images/copy{k}.png", f"again {k}") for k in range(len(copies))]
    write_csv(folder / "t.csv", "image,caption", rows() + more)
    table = read_pairs(folder / "t.csv", seed=seed)
    assert len(table.a) == 20
    sides = {s: set(table.pairs[table.rows(s), 0].tolist()) for s in ("train", "val", "test")}
    assert len(sides["train"] | sides["val"] | sides["test"]) == 20
    assert sum(len(side) for side in sides.values()) == 20
    assert [len(sides[s]) for s in ("train", "val", "test")] == [16, 2, 2]
    again = read_pairs(folder / "t.csv", seed=seed)
    np.testing.assert_array_equal(table.split, again.split)


def test_the_order_of_the_file_does_not_move_the_split(folder: Path) -> None:
    write_csv(folder / "a.csv", "image,caption", rows())
    write_csv(folder / "b.csv", "image,caption", rows()[::-1])

    def held(name: str) -> set[str]:
        table = read_pairs(folder / name)
        return {table.a[x].sha256 for x in table.pairs[table.rows("test"), 0]}

    assert held("a.csv") == held("b.csv")


# ---- bad input


def test_everything_left_out_is_listed(folder: Path) -> None:
    lines = [
        ("images/p00.png", "fine"),
        ("images/p00.png", "fine"),  # twice
        ("images/nowhere.png", "no such picture"),
        ("", "a caption without a picture"),
        ("images/p01.png", ""),
        ("https://example.org/x.png", "an address"),
        ("images/p02.png", "also fine"),
    ]
    table = read_pairs(write_csv(folder / "t.csv", "image,caption", lines))
    assert named_pairs(table) == {("p00.png", "fine"), ("p02.png", "also fine")}
    assert [(s.where.rpartition(":")[2], s.reason.split(" '")[0]) for s in table.skipped] == [
        ("4", "there is no file"),
        ("5", "has no image"),
        ("6", "has no caption"),
        ("7", "image is an address, and nothing is fetched: https://example.org/x.png"),
    ]
    assert any("1 pairs stand there more than once" in note for note in table.notes)


def test_duplicate_ids_are_said_and_kept(folder: Path) -> None:
    lines = [("7", "images/p00.png", "one"), ("7", "images/p01.png", "two"), ("8", "images/p02.png", "three")]
    table = read_pairs(write_csv(folder / "t.csv", "id,image,caption", lines))
    assert len(table) == 3
    assert any("1 ids name more than one item" in note and "'7'" in note for note in table.notes)


def test_columns_that_cannot_be_told_or_do_not_exist(folder: Path) -> None:
    path = write_csv(folder / "t.csv", "foo,bar", [(a, b) for a, b in rows()])
    with pytest.raises(BadInput, match=r"which column holds the pictures \(columns: foo, bar\)"):
        read_pairs(path)
    assert named_pairs(read_pairs(path, columns=("foo", "bar"))) == WANTED
    with pytest.raises(UnknownName, match="Did you mean bar"):
        read_pairs(path, columns=("foo", "baar"))
    with pytest.raises(BadInput, match="both sides"):
        read_pairs(path, columns=("foo", "foo"))
    with pytest.raises(UnknownName, match="column"):
        read_pairs(path, columns=("foo", "bar"), split_column="nope")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.csv", b"", "holds no pairs"),
        ("b.csv", b"image,caption\n", "holds no pairs"),
        ("c.csv", b"image,caption\n\xff\xfe,x\n", "cannot be read"),
        ("d.jsonl", b"[1, 2]\nnot json\n", r"holds no pairs; 2 skipped, first .*d.jsonl:1: is no JSON object"),
        ("e.parquet", b"PAR1 nothing", "cannot be read"),
        ("f.tar", b"not a tar" * 100, "no tar file"),
        ("g.xlsx", b"x", "no table of pairs"),
        ("h.csv", b"image,caption\nnowhere.png,x\n", "not one pair is left"),
    ],
)
def test_broken_files_end_in_one_error(tmp_path: Path, name: str, data: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=match):
        read_pairs(tmp_path / name)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_pairs(tmp_path / "nothing.csv")


def test_pairs_in_memory(folder: Path) -> None:
    pairs = [(folder / a, b, "train" if i % 4 else "test") for i, (a, b) in enumerate(rows())]
    table = table_of(pairs)
    assert named_pairs(table) == WANTED
    assert table.counts()["test"] == 10
    with pytest.raises(BadInput, match="pair 0"):
        table_of(["not a pair"])
    with pytest.raises(UnknownName, match="split"):
        table.rows("tests")


def test_unreadable_items_leave_with_their_reason(folder: Path) -> None:
    table = read_pairs(write_csv(folder / "t.csv", "image,caption", rows(4)))
    less = table.without({1: "is broken"}, {})
    assert len(less) == 6
    assert 1 not in less.pairs[:, 0]
    assert [(Path(s.where).name, s.reason) for s in less.skipped] == [("p01.png", "is broken")]
    assert len(table) == 8

"""Every form in which embeddings come is read to the same arrays; what cannot be read is one clear error."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chiasm.doctor import read
from chiasm.doctor.sources import read_pairs, vectors_of_file
from chiasm.embeddings import Embeddings, unit
from chiasm.errors import BadInput, StoreError
from chiasm.search import Store

RNG = np.random.default_rng(0)
TEXTS, IMAGES = unit(RNG.standard_normal((60, 8))), unit(RNG.standard_normal((60, 8)))


@pytest.fixture
def files(tmp_path):
    for name, rows in (("texts", TEXTS), ("images", IMAGES)):
        np.save(tmp_path / f"{name}.npy", rows)
        np.savez(tmp_path / f"{name}.npz", vectors=rows)
        Embeddings(rows, [f"{name}{i}" for i in range(60)], [name[:-1]] * 60).save(tmp_path / f"{name}.safetensors")
        columns = {"id": [f"{name}{i}" for i in range(60)], "embedding": list(rows)}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=25)
    np.savez(tmp_path / "pairs.npz", a=TEXTS, b=IMAGES)
    return tmp_path


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "parquet"])
def test_row_aligned_files_are_pairs(files, kind):
    patient = read(files / f"images.{kind}", pairs=files / f"texts.{kind}")
    np.testing.assert_array_equal(patient.gallery, IMAGES)
    np.testing.assert_array_equal(patient.queries, TEXTS)
    assert patient.positives == "rows"


def test_an_npz_of_two_arrays_is_pairs_and_the_first_searches_the_second(files):
    patient = read(files / "pairs.npz")
    np.testing.assert_array_equal(patient.queries, TEXTS)
    np.testing.assert_array_equal(patient.gallery, IMAGES)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_pairs_by_id_and_by_row_number(files, ending):
    wanted = [(3, 7), (3, 8), (5, 0)]

    def write(path, rows):
        if ending == "csv":
            path.write_text("query,item\n" + "".join(f"{q},{i}\n" for q, i in rows))
        else:
            path.write_text("".join(json.dumps({"query": q, "item": i}) + "\n" for q, i in rows))
        return path

    by_id = write(files / f"ids.{ending}", [(f"texts{q}", f"images{i}") for q, i in wanted])
    by_row = write(files / f"rows.{ending}", wanted)
    for kind, pairs in (("safetensors", by_id), ("parquet", by_id), ("npy", by_row)):
        found = read(files / f"images.{kind}", queries=files / f"texts.{kind}", pairs=pairs)
        assert [list(items) for items in found.positives[:6]] == [[], [], [], [7, 8], [], [0]]
    broken = write(files / f"broken.{ending}", [("texts1", "nowhere")])
    with pytest.raises(BadInput, match="'nowhere'"):
        read(files / "images.parquet", queries=files / "texts.parquet", pairs=broken)


def test_files_that_cannot_be_used_are_named(files, tmp_path):
    cases = {
        "missing.npy": (None, "does not exist"),
        "table.xlsx": (b"x", "unknown type"),
        "no_ending": (b"x", "unknown type"),
        "broken.npy": (b"not an array", "cannot be read"),
        "broken.npz": (b"PK\x03\x04 not a zip", "cannot be read"),
        "broken.parquet": (b"PAR1", "cannot be read"),
        "broken.safetensors": (b"\x00" * 20, "not an embeddings file"),
        "empty.npy": (b"", "cannot be read"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            read(tmp_path / name)
        assert name in str(error.value)


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="cannot be read"):
        vectors_of_file(tmp_path / "objects.npy")


def test_things_that_do_not_fit_are_named(files, tmp_path):
    np.save(tmp_path / "short.npy", TEXTS[:10])
    with pytest.raises(BadInput, match="10 rows for 60 items"):
        read(files / "images.npy", pairs=tmp_path / "short.npy")
    np.savez(tmp_path / "odd.npz", a=TEXTS, b=IMAGES[:5])
    with pytest.raises(BadInput, match="60 and 5 rows are not pairs"):
        read(tmp_path / "odd.npz")
    np.savez(tmp_path / "many.npz", one=TEXTS, two=IMAGES)
    with pytest.raises(BadInput, match="holds one, two"):
        read(tmp_path / "many.npz")
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(BadInput, match="different lengths"):
        read(tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "plain.parquet")
    with pytest.raises(BadInput, match="which column"):
        read(tmp_path / "plain.parquet")
    (tmp_path / "ids.csv").write_text("left,right\n1,2\n")
    with pytest.raises(BadInput, match="left, right"):
        read_pairs(tmp_path / "ids.csv")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(BadInput, match="holds no pairs"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "half.jsonl").write_text('{"query": "a", "item": "b"}\n{"query": "c"}\n')
    with pytest.raises(BadInput, match="pair 2 lacks"):
        read_pairs(tmp_path / "half.jsonl")
    (tmp_path / "words.txt").write_text("a cat\n")
    with pytest.raises(BadInput, match="only be encoded by a store"):
        read(files / "images.npy", queries=tmp_path / "words.txt")
    with pytest.raises(StoreError, match="not a Chiasm store"):
        read(tmp_path)


def test_a_store_of_foreign_vectors_is_examined_without_queries(tmp_path):
    store = Store(tmp_path / "s.chiasm")
    store.add(Embeddings(IMAGES, [f"i{n}" for n in range(60)], ["image"] * 30 + ["text"] * 30))
    store.delete("i3")
    patient = read(tmp_path / "s.chiasm")
    np.testing.assert_allclose(patient.gallery, np.delete(IMAGES, 3, axis=0), atol=1e-6)
    assert patient.modality is not None
    assert list(patient.modality) == ["image"] * 29 + ["text"] * 30
    assert patient.queries is None
    assert any("encodes no text" in note for note in patient.notes)
    np.save(tmp_path / "texts.npy", TEXTS)
    (tmp_path / "pairs.csv").write_text("query,item\n0,i0\n59,i59\n")
    paired = read(tmp_path / "s.chiasm", queries=tmp_path / "texts.npy", pairs=tmp_path / "pairs.csv")
    assert list(paired.positives[0]) == [0]
    assert list(paired.positives[59]) == [58]  # one row was deleted

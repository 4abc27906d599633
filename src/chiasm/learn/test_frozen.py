"""Frozen features: equal to the space's own, encoded once, resumed where they stopped, failed items named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chiasm.encode import load
from chiasm.encode.cache import FeatureCache
from chiasm.errors import BadInput, UnknownName, UnsupportedModality
from chiasm.items import content_hash
from chiasm.learn.frozen import Frozen, frozen, pocket_route
from chiasm.learn.pair_table import Entry
from chiasm.learn.tables import Member


def pictures(folder: Path, n: int = 6) -> list[Entry]:
    out = []
    for i in range(n):
        small = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = folder / f"{i}.png"
        Image.fromarray(small).resize((90 + i, 70), Image.Resampling.BICUBIC).save(path)
        out.append(Entry(str(path), content_hash(path.read_bytes()), path))
    return out


def texts(*sentences: str) -> list[Entry]:
    return [Entry(s, content_hash(s), s) for s in sentences]


@pytest.fixture(scope="module")
def pocket():
    return load("pocket")


@pytest.fixture
def tiny(tiny_clip):
    return load(str(tiny_clip))


def test_features_are_those_of_the_space(pocket, tmp_path: Path) -> None:
    entries = pictures(tmp_path)
    found = frozen(pocket, entries, ("vector", "image_features", "patches", "patches16"), cache=False)
    vectors = pocket.encode([Image.open(e.source) for e in entries]).vectors
    np.testing.assert_allclose(found.arrays["vector"], vectors, atol=1e-5)
    shapes = {name: values.shape[1:] for name, values in found.arrays.items()}
    assert shapes == {"vector": (384,), "image_features": (1280,), "patches": (49, 1280), "patches16": (16, 1280)}
    np.testing.assert_allclose(found.arrays["patches"].mean(1), found.arrays["image_features"], atol=1e-4)
    words = frozen(pocket, texts("a cat", "a red house by the sea"), ("vector", "tokens"), cache=False)
    np.testing.assert_allclose(
        words.arrays["vector"], pocket.encode(["a cat", "a red house by the sea"]).vectors, atol=1e-5
    )
    batch = words.features(input_features="tokens", sentence_embedding="vector").batch([1, 0])
    assert batch["attention_mask"].sum(1).tolist() == [len(words.tokens[1]), len(words.tokens[0])]


def test_an_item_is_encoded_once(tiny, tmp_path: Path) -> None:
    entries = pictures(tmp_path)
    with FeatureCache(tmp_path / "cache") as cache:
        first = frozen(tiny, entries[:4], cache=cache)
        again = frozen(tiny, entries, cache=cache)  # as after an interruption: only the rest is encoded
        assert (first.encoded, again.encoded) == (4, 2)
        np.testing.assert_array_equal(again.arrays["vector"][:4], first.arrays["vector"])
        assert frozen(tiny, entries, ("tokens",), cache=cache).encoded == 6  # another kind is another entry
        assert frozen(tiny, entries, ("tokens",), cache=cache).encoded == 0


def test_memory_maps_hold_the_same_in_half_precision(tiny, tmp_path: Path) -> None:
    entries = pictures(tmp_path)
    plain = frozen(tiny, entries, cache=False)
    mapped = frozen(tiny, entries, cache=False, folder=tmp_path / "maps")
    assert isinstance(mapped.arrays["vector"], np.memmap)
    assert mapped.arrays["vector"].dtype == np.float16
    np.testing.assert_allclose(mapped.arrays["vector"], plain.arrays["vector"], atol=1e-3)
    opened = np.load(tmp_path / "maps" / "vector.npy", mmap_mode="r")
    np.testing.assert_array_equal(opened, mapped.arrays["vector"])


def test_unreadable_items_are_named_and_the_others_unharmed(tiny, tmp_path: Path) -> None:
    entries = pictures(tmp_path, 3)
    broken = tmp_path / "broken.png"
    broken.write_bytes(entries[0].bytes()[:60])
    gone = Entry("gone.png", "0" * 64, tmp_path / "gone.png")
    found = frozen(tiny, [entries[0], Entry("broken", "1" * 64, broken), gone, entries[1]], cache=False)
    assert sorted(found.failed) == [1, 2]
    assert all(found.failed.values())
    np.testing.assert_allclose(
        found.arrays["vector"][[0, 3]], frozen(tiny, entries[:2], cache=False).arrays["vector"], atol=1e-6
    )
    assert not found.arrays["vector"][1].any()


def test_members_of_archives(tiny, tmp_path: Path) -> None:
    entries = pictures(tmp_path, 2)
    blob = tmp_path / "blob"
    blob.write_bytes(b"xyz" + entries[1].bytes())
    member = Member(blob, "../../1.png", 3, len(entries[1].bytes()))
    found = frozen(tiny, [Entry(str(member), entries[1].sha256, member)], cache=False)
    np.testing.assert_allclose(
        found.arrays["vector"], frozen(tiny, entries[1:], cache=False).arrays["vector"], atol=1e-6
    )


def test_axes_are_fitted_on_the_given_rows_only() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 4, 12)).astype(np.float32)
    other = values.copy()
    other[20:] += 100.0
    one = Frozen({"patches": values}).reduced("patches", np.arange(20), 3)
    two = Frozen({"patches": other}).reduced("patches", np.arange(20), 3)
    np.testing.assert_allclose(one.arrays["patches"][:20], two.arrays["patches"][:20], atol=1e-4)
    assert one.arrays["patches"].shape == (30, 4, 3)
    whole = Frozen({"patches": values}).reduced("patches", np.arange(30), 12)
    flat, moved = values.reshape(-1, 12), whole.arrays["patches"].reshape(-1, 12)
    distances = [np.linalg.norm(x[:10, None] - x[None, :10], axis=-1) for x in (flat, moved)]
    np.testing.assert_allclose(*distances, atol=1e-3)  # all axes: a rotation
    with pytest.raises(BadInput, match="no 13 axes"):
        Frozen({"patches": values}).reduced("patches", np.arange(30), 13)


def test_what_does_not_exist(tiny, pocket, tmp_path: Path) -> None:
    entries = pictures(tmp_path, 1)
    with pytest.raises(UnknownName, match="Did you mean patches"):
        frozen(tiny, entries, ("patchs",), cache=False)
    with pytest.raises(UnsupportedModality, match="no image_features for image"):
        frozen(tiny, entries, ("image_features",), cache=False)
    with pytest.raises(UnsupportedModality):
        frozen(pocket, texts("words"), ("image_features",), cache=False)
    with pytest.raises(BadInput, match="no items"):
        frozen(tiny, [], cache=False)
    with pytest.raises(UnknownName, match="kind"):
        frozen(tiny, entries, cache=False).features(x="tokens")
    assert pocket_route(tiny) is None
    assert pocket_route(pocket) is not None


def test_one_broken_picture_does_not_decide_the_modality(tmp_path):
    from PIL import Image

    from chiasm.learn.frozen import modality_of
    from chiasm.learn.readers import read_pairs

    (tmp_path / "0.jpg").write_bytes(b"not a picture")
    lines = ["image,caption"]
    for i in range(4):
        if i:
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / f"{i}.jpg")
        lines.append(f"{i}.jpg,number {i}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert modality_of(read_pairs(tmp_path / "pairs.csv").a) == "image"

"""Stores of a space that learned sound later: those from before stay valid, two ears are not mixed."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest

from chiasm.errors import SpaceMismatch
from chiasm.items import Item, Sound
from chiasm.search import Store
from chiasm.search.test_fakes import DIM, FakeSpace


class Hearing(FakeSpace):
    """The same space with an ear, of which there are several."""

    modalities = ("text", "image", "audio")
    speech_as_text = True

    def __init__(self, ear: int) -> None:
        super().__init__()
        self.ear = ear
        self.grown = f"ear{ear}"

    def prepare(self, item: Item) -> np.ndarray:
        if item.modality != "audio":
            return super().prepare(item)
        if item.text:
            return super().prepare(Item("text", item.text))
        return np.random.default_rng(self.ear).standard_normal(DIM) * float(item.content.samples[0])


def sound(level: float, id: str, text: str = "") -> Item:
    return Item("audio", Sound(np.full(16, level, np.float32), 16_000), id=id, text=text)


def text(words: str) -> Item:
    return Item("text", words, id=words)


def test_a_store_from_before_takes_sounds_and_remembers_the_ear(tmp_path) -> None:
    Store(tmp_path / "s", FakeSpace()).add([text("red"), text("green")])
    header = json.loads((tmp_path / "s" / "chiasm.json").read_text())
    header.pop("grown")  # as an older Chiasm wrote it
    (tmp_path / "s" / "chiasm.json").write_text(json.dumps(header))
    store = Store(tmp_path / "s", Hearing(1))
    store.add([sound(0.5, "bark")])
    assert len(store) == 3
    assert store.header.grown == f"{Hearing(1).fingerprint.digest}/ear1"
    assert Store(tmp_path / "s", Hearing(1)).add([sound(0.25, "crow")]).added == 1
    # And a Chiasm without an ear still searches it and adds pictures and texts.
    deaf = Store(tmp_path / "s", FakeSpace())
    assert deaf.search("red").hits[0].id == "red"
    assert deaf.add([text("blue")]).added == 1


def test_another_ear_is_refused_where_there_are_sounds(tmp_path) -> None:
    store = Store(tmp_path / "s", Hearing(1))
    store.add([sound(0.5, "bark"), text("red")])
    other = Store(tmp_path / "s", Hearing(2))
    with pytest.raises(SpaceMismatch, match="another sound encoder"):
        other.add([sound(0.5, "crow")])
    with pytest.raises(SpaceMismatch, match="another sound encoder"):
        other.add(write_text(tmp_path))
    assert len(store) == 2
    assert other.search("red").hits[0].id == "red"  # words find what they found
    with pytest.warns(UserWarning, match="another sound encoder"):
        other.search(sound(0.5, "query"))
    other.delete("bark")
    assert other.add([sound(0.5, "crow")]).added == 1
    assert other.header.grown.endswith("/ear2")


def test_what_is_spoken_does_not_depend_on_the_ear(tmp_path) -> None:
    Store(tmp_path / "s", Hearing(1)).add([sound(0.5, "said", text="red"), text("green")])
    other = Store(tmp_path / "s", Hearing(2))
    assert other.add([sound(0.5, "bark")]).added == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert other.search(sound(0.5, "query")).hits[0].id == "bark"


def test_an_ear_of_another_space_is_another_matter(tmp_path) -> None:
    from dataclasses import replace

    from chiasm.search import grown

    store = Store(tmp_path / "s", Hearing(1))
    store.add([sound(0.5, "bark")])
    changed: Any = Hearing(2)
    changed.fingerprint = replace(changed.fingerprint, weights="other")  # after an upgrade, which re-encodes everything
    assert not grown.differs(store.header, changed, store._latest())
    assert grown.differs(store.header, Hearing(2), store._latest())
    assert grown.mark(FakeSpace()) == ""


def write_text(folder) -> Any:
    path = folder / "new.txt"
    path.write_text("green")
    return path

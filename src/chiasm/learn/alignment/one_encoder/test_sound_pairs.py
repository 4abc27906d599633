"""Sentences for sounds, and that few recordings are enough to place a kind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from chiasm.encode.pocket.sound import FEATURES, PocketSound
from chiasm.learn.alignment.one_encoder.pocket_sound import Heard, Recipe, save, teach, vectors
from chiasm.learn.alignment.one_encoder.sound_pairs import SOUNDS, Recording, few_of_each, sentences
from chiasm.learn.alignment.one_encoder.sound_report import measure, nearest, search, table, write_into


def test_captions_go_to_their_kind(tmp_path: Path) -> None:
    captions = [
        ("train", "A dog barks loudly"),
        ("train", "A dog barks while a man speaks"),  # names something beside the sound
        ("train", "A rooster crows as rain falls"),  # two kinds
        ("train", "An engine idles"),
        ("train", "Water splashes"),  # could be waves
        ("test", "A rooster crows"),
        ("train", "Rain falls on a tin roof near a very long winding country road"),  # too long
    ]
    with gzip.open(tmp_path / "captions.jsonl.gz", "wt", encoding="utf-8") as file:
        for split, text in captions:
            file.write(json.dumps({"id": "x", "split": split, "captions_en": [text]}) + "\n")
    found, others = sentences(tmp_path, ["three"])
    assert found["dog bark"][-1] == "A dog barks loudly"
    assert found["rain"] == ["rain", *SOUNDS["rain"][1]]
    assert found["rooster"] == ["rooster", *SOUNDS["rooster"][1]]
    assert found["three"][:2] == ["three", "somebody says three"]
    assert others == ["An engine idles"]
    assert sentences(None)[1] == []


def test_a_head_learns_kinds_and_survives_float16(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((3, FEATURES))
    names = ["rain", "dog bark", "rooster"]
    kinds = np.arange(60) % 3
    features = [(codes[k] + rng.standard_normal((1 + i % 4, FEATURES))).astype(np.float32) for i, k in enumerate(kinds)]
    heard = Heard([Recording(str(i), names[k], 0, "train") for i, k in enumerate(kinds)], features)
    texts = {name: np.linalg.qr(rng.standard_normal((24, 4)))[0].T.astype(np.float32) for name in names}
    others = np.linalg.qr(rng.standard_normal((24, 5)))[0].T.astype(np.float32)
    keep = np.arange(60) < 45
    model = teach(heard[keep], texts, others, Recipe(hidden=16, steps=60, batch_size=32, rate=5e-3))
    found = vectors(model, heard[~keep])
    ranked = search(found, heard[~keep].kinds, texts)
    assert ranked["map"] > 0.95
    module = model[0]
    save(module, tmp_path / "sound.safetensors")
    after = vectors(model, heard[~keep])
    np.testing.assert_allclose(after, found, atol=0.02)
    fresh = PocketSound(24, hidden=16)
    fresh.load_state_dict({k: v.half().float() for k, v in module.head().items()}, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(fresh.head().values(), module.head().values()))


def test_figures_of_a_perfect_and_of_a_random_ear(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(["rain", "dog bark", "rooster", "chainsaw"], 12)
    places = np.eye(4, dtype=np.float32)
    queries = {kind: places[i : i + 1] for i, kind in enumerate(dict.fromkeys(kinds.tolist()))}
    originals = np.array([str(i // 2) for i in range(48)])
    perfect = measure(np.repeat(places, 12, axis=0), kinds, originals, queries, resamples=50)
    assert all(one.mean == one.low == one.high == 1.0 for one in perfect.intervals.values())
    assert perfect.intervals["map"].n == 24  # originals, not clips
    random = measure(rng.standard_normal((48, 4)), kinds, originals, queries, resamples=50)
    # Of 48 in random order with 12 right ones the first is right for a quarter.
    assert abs(random.chance["hit@1"] - 0.25) < 0.1
    assert random.intervals["map"].low < random.chance["map"] + 0.1
    assert [one.n for one in random.kinds.values()] == [6] * 4
    back = nearest(np.repeat(places, 12, axis=0), kinds, queries)
    assert back["hit@1"] == 1.0

    page = tmp_path / "sound.md"
    page.write_text("# Title\n\n## What we measured\n\nold figures\n\n## Next\n\nstays\n")
    for _ in range(2):
        write_into(page, table(perfect, perfect, back, kinds, None))
    text = page.read_text()
    assert "old figures" not in text
    assert text.count("| label | 1.000 [1.000, 1.000] |") == 1
    assert text.startswith("# Title\n\n## What we measured\n\n48 test")
    assert text.endswith("\n\n## Next\n\nstays\n")


def test_few_of_each_and_originals() -> None:
    every = [Recording(f"1-{i // 2}-{'AB'[i % 2]}.ogg", "rain", 1, "train") for i in range(5)]
    assert [one.id for one in few_of_each(every, 2)] == ["1-0-A.ogg", "1-0-B.ogg"]
    assert few_of_each(every, None) == every
    assert [one.original for one in every] == ["1-0", "1-0", "1-1", "1-1", "1-2"]

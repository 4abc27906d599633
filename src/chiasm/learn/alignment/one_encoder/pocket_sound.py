"""Teaches the pocket space sound: ``python -m chiasm.learn.alignment.one_encoder.pocket_sound`` (``make pocket-sound``).

Step k of OneEncoder: pictures and texts are frozen, only the alignment layer of `PocketSound` learns, from recordings and the
sentences that name them. The settings below were chosen by leaving out one of the three training folds of ``esc10_sounds`` at a
time (``--choose``); the test recordings are only reported. Writes ``sound.safetensors`` and the figures into ``sound.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chiasm.encode.pocket import sound as pocket_sound
from chiasm.encode.pocket.sound import RATE, PocketSound
from chiasm.errors import DataNotFound
from chiasm.items import Sound
from chiasm.learn.alignment.one_encoder.objective import OneEncoderLoss
from chiasm.learn.alignment.one_encoder.sound_pairs import (
    Recording,
    digit_recordings,
    few_of_each,
    read_recordings,
    sentences,
    sound_recordings,
)
from chiasm.learn.alignment.one_encoder.sound_report import measure, nearest, search, table, write_into
from chiasm.learn.features import Features
from chiasm.learn.held_out import encode
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.training import train

# Queries of the report that no sentence of the training contains.
OTHER_WORDS = {
    "dog bark": "a barking puppy",
    "rain": "bad weather, drops on the roof",
    "sea waves": "surf on the beach",
    "baby cry": "a newborn screaming",
    "clock tick": "an old watch",
    "person sneeze": "somebody has a cold",
    "helicopter": "a chopper in the air",
    "chainsaw": "a lumberjack felling a tree",
    "rooster": "a farm animal waking everybody at dawn",
    "fire crackling": "logs in the fireplace",
}


@dataclass(frozen=True)
class Recipe:
    """What the training takes; the defaults are what was chosen.

    Args:
        hidden: width of the alignment layer.
        dropout: in it.
        steps, rate, weight_decay, batch_size: of the training.
        per_recording: sentences drawn for a recording.
        negatives: whether captions of other sounds are negatives.
        log_scale: s of the loss.
    """

    hidden: int = 128
    dropout: float = 0.3
    steps: int = 600
    rate: float = 1e-3
    weight_decay: float = 0.05
    batch_size: int = 128
    per_recording: int = 10
    negatives: bool = True
    log_scale: float = 1.5


@dataclass(frozen=True)
class Heard:
    """Recordings as the features their alignment layer reads: N arrays ``[W, 1792]``."""

    recordings: list[Recording]
    features: list[np.ndarray]

    def __getitem__(self, keep: Sequence[bool] | np.ndarray) -> Heard:
        rows = np.flatnonzero(keep).tolist()
        return Heard([self.recordings[i] for i in rows], [self.features[i] for i in rows])

    def __add__(self, other: Heard) -> Heard:
        return Heard(self.recordings + other.recordings, self.features + other.features)

    @property
    def kinds(self) -> np.ndarray:
        return np.array([one.kind for one in self.recordings])

    def where(self, **wanted: Any) -> Heard:
        """Those whose field is one of the values given."""
        keep = [all(getattr(one, k) in v for k, v in wanted.items()) for one in self.recordings]
        return self[np.array(keep, dtype=bool)]


@torch.no_grad()
def hear(module: PocketSound, folder: Path, recordings: list[Recording]) -> Heard:
    """Features of recordings; kept in the cache folder by the hashes of the set's sounds, the recordings' names and the network.

    Args:
        module: its image network reads the pictures.
        folder: the set.
        recordings: which.
    """
    from chiasm.encode.cache import default_folder

    with open(folder / "audio.zip", "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([one.id for one in recordings]).encode())
    # What the code and the image network make of one noise: other code or weights, other features.
    probe = Sound(np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32), RATE)
    digest.update(module.describe(torch.from_numpy(module.prepare_one(probe))).numpy().round(2).tobytes())
    kept = default_folder() / "pocket-sound" / f"{folder.name}-{digest.hexdigest()[:12]}"
    if (kept / "features.json").exists():
        source = Features.load(kept)
    else:
        found = [
            module.describe(torch.from_numpy(module.prepare_one(s))).numpy()
            for s in read_recordings(folder, recordings)
        ]
        source = Features.ragged("input_features", [one.astype(np.float16) for one in found])
        kept.parent.mkdir(parents=True, exist_ok=True)
        source.save(kept)
    assert source.offsets is not None
    runs = source.runs["input_features"]
    parts = [np.asarray(runs[a:b], np.float32) for a, b in zip(source.offsets, source.offsets[1:])]
    return Heard(recordings, parts)


def teach(heard: Heard, texts: dict[str, np.ndarray], others: np.ndarray, recipe: Recipe, seed: int = 0) -> Any:
    """Trains an alignment layer; a `SentenceTransformer` of one `PocketSound`.

    Args:
        heard: training recordings.
        texts: kind -> unit vectors of its sentences.
        others: unit vectors of sentences that belong to no kind, ``[E, D]``.
        recipe: settings.
        seed: decides everything random.
    """
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    dim = others.shape[1] if len(others) else next(iter(texts.values())).shape[1]
    module = PocketSound(dim, hidden=recipe.hidden, dropout=recipe.dropout)
    windows = np.concatenate(heard.features)
    module.mean.copy_(torch.from_numpy(windows.mean(0)))
    module.spread.copy_(torch.from_numpy(windows.std(0) + 1e-3))
    kinds = list(texts)
    start = dict(zip(kinds, np.cumsum([0, *[len(texts[k]) for k in kinds[:-1]]]).tolist()))
    names = heard.kinds
    a = np.repeat(np.arange(len(names)), recipe.per_recording)
    b = np.array([start[k] + rng.integers(len(texts[k])) for k in names[a]])
    sources: dict[str, Any] = {
        "a": Features.ragged("input_features", heard.features),
        "b": Features({"sentence_embedding": np.concatenate([texts[k] for k in kinds])}),
    }
    rows = {"a": a, "b": b}
    if recipe.negatives and len(others):
        sources["negative"] = Features({"sentence_embedding": others})
        rows["negative"] = rng.integers(len(others), size=len(a))
    pairs = Pairs(sources, rows, groups=np.array([kinds.index(k) for k in names[a]]))
    model = SentenceTransformer(modules=[module], device="cpu", similarity_fn_name="cosine")
    train(
        model,
        pairs,
        OneEncoderLoss(anchor="b", log_scale=recipe.log_scale),
        Stage("sound", train=["*.align.*"], steps=recipe.steps, rate=recipe.rate),
        batch_size=recipe.batch_size,
        seed=seed,
        weight_decay=recipe.weight_decay,
        log_every=100,
        device="cpu",
    )
    return model.eval()


def vectors(model: Any, heard: Heard) -> np.ndarray:
    """Unit vectors of recordings, float32 ``[N, D]``."""
    return encode(model, Features.ragged("input_features", heard.features), "audio").vectors.numpy()


class Material:
    """Everything the training reads: recordings as features, sentences as vectors.

    Args:
        root: the folder that holds the sets; ``esc10_sounds`` must be there, the others add to it.
        space: the pocket space.
        digits: how many spoken digits of the training part are used (all of the test part are).
        each: at most so many sounds of a kind and split.
    """

    def __init__(self, root: Path, space: Any, digits: int = 1000, each: int | None = None) -> None:
        module = PocketSound(space.dim)
        module.picture = space.model[0].sub_modules["image"][0]
        folder = root / "esc10_sounds"
        if not folder.is_dir():
            raise DataNotFound("esc10_sounds is not here", where=str(root), fix="Set CHIASM_DATA to the folder with it")
        self.sounds = hear(module, folder, few_of_each(sound_recordings(folder), each))
        captions = root / "audio_captions_texts"
        self.digits, words = Heard([], []), []
        spoken = root / "digits_audio_image"
        if spoken.is_dir() and digits:
            every = digit_recordings(spoken)
            training = [one for one in every if one.split == "train"]
            chosen = [training[i] for i in np.random.default_rng(0).permutation(len(training))[:digits]]
            tested = [one for one in every if one.split == "test"]
            self.digits = hear(module, spoken, chosen + tested)
            words = sorted({one.kind for one in every})
        self.sentences, self.others = sentences(captions if captions.is_dir() else None, words)
        self.texts = {kind: space.encode(lines).vectors for kind, lines in self.sentences.items()}
        few = np.random.default_rng(0).permutation(len(self.others))[:4000]
        self.other_texts = (
            space.encode([self.others[i] for i in few]).vectors if len(few) else np.zeros((0, space.dim), np.float32)
        )
        self.labels = {kind: rows[:1] for kind, rows in self.texts.items()}
        self.words = {kind: space.encode([text]).vectors for kind, text in OTHER_WORDS.items()}

    def kinds_of_sounds(self) -> dict[str, np.ndarray]:
        """Kind -> vector of its label, of the sounds that are not speech."""
        return {kind: self.labels[kind] for kind in OTHER_WORDS}


def choose(material: Material, recipes: dict[str, Recipe]) -> dict[str, dict[str, float]]:
    """Leaves out one training fold at a time: mean figures over the three."""
    out: dict[str, dict[str, float]] = {}
    labels = material.kinds_of_sounds()
    for name, recipe in recipes.items():
        rows = []
        for fold in (1, 2, 3):
            inside = material.sounds.where(fold={1, 2, 3} - {fold}, split={"train"})
            outside = material.sounds.where(fold={fold}, split={"train"})
            model = teach(
                inside + material.digits.where(split={"train"}),
                material.texts,
                material.other_texts,
                recipe,
                1000 + fold,
            )
            found = vectors(model, outside)
            by_label, by_words = (search(found, outside.kinds, queries) for queries in (labels, material.words))
            right = np.concatenate([labels[kind] for kind in outside.kinds])
            level = float((found * right).sum(1).mean())
            rows.append([by_label["map"], by_label["precision@5"], level, by_words["map"], by_words["precision@5"]])
        names = ("map", "precision@5", "cosine", "other words map", "other words precision@5")
        out[name] = dict(zip(names, np.mean(rows, axis=0).round(3).tolist()))
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(pocket_sound.__file__).parent, help="folder of the weights and of sound.md"
    )
    parser.add_argument("--choose", action="store_true", help="compare settings on the training folds and stop")
    given = parser.parse_args(arguments)

    from chiasm.encode import load

    material = Material(Path(os.environ.get("CHIASM_DATA", ".")), load("pocket"))
    if given.choose:
        base = Recipe()
        recipes = {
            "chosen": base,
            "no negatives": replace(base, negatives=False),
            "scale e^2.5": replace(base, log_scale=2.5),
            "scale e^1": replace(base, log_scale=1.0),
            "hidden 256": replace(base, hidden=256),
            "300 steps": replace(base, steps=300),
            "dropout 0.1": replace(base, dropout=0.1),
        }
        for name, figures in choose(material, recipes).items():
            print(f"{name:14}", figures)
        return
    seen = material.sounds.where(split={"train"}) + material.digits.where(split={"train"})
    model = teach(seen, material.texts, material.other_texts, Recipe())
    module: PocketSound = model[0]
    save(module, given.out / pocket_sound.WEIGHTS)
    measured = report(material, model)
    write_into(given.out / "sound.md", measured)
    print(measured)


def save(module: PocketSound, path: Path) -> None:
    """The alignment layer in float16, and back from it, so that what is measured is what is shipped."""
    from safetensors.torch import save_file

    half = {name: value.half().contiguous() for name, value in module.head().items()}
    save_file(half, str(path))
    path.chmod(0o644)  # the library leaves it readable to its owner alone, and it is shipped
    module.load_state_dict({name: value.float() for name, value in half.items()}, strict=False)


def report(material: Material, model: Any) -> str:
    """The figures on the test recordings, as Markdown."""
    tested, labels = material.sounds.where(split={"test"}), material.kinds_of_sounds()
    found, kinds = vectors(model, tested), tested.kinds
    originals = np.array([one.original for one in tested.recordings])
    asked = [measure(found, kinds, originals, queries) for queries in (labels, material.words)]
    said, digits = material.digits.where(split={"test"}), None
    if said.recordings:
        words = {kind: v for kind, v in material.labels.items() if kind not in OTHER_WORDS}
        digits = search(vectors(model, said), said.kinds, words)
    return table(asked[0], asked[1], nearest(found, kinds, labels), kinds, digits)


if __name__ == "__main__":
    main()

"""Real photographs of known and unknown classes: CLIP features of Flickr8k, and pocket vectors of labelled sets."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.claims.data import Data
from chiasm.embeddings import unit
from chiasm.worlds.unknown_classes import Detecting

# The 80 classes of COCO in their order: the order of the text features in clip_real_features.
COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, bench,
bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
vase, scissors, teddy bear, hair drier, toothbrush
"""
# Known classes of the Flickr8k task: those that at least ten of its training photographs show by their captions.
FLICKR_KNOWN = ("dog", "bicycle", "horse", "skateboard", "surfboard", "car", "boat", "bird")


def flickr(data: Data) -> Detecting | None:
    """CLIP ViT-B/32 features of Flickr8k photographs (test file), or None.

    Known: photographs at least two of whose captions name one of the classes; unknown: those none of whose captions names
    any. Negative labels are mined among the class names of LVIS, Objects365 and Open Images.
    """
    from chiasm.adapt.mm_ood.mining import mine_negatives

    folder = data.folder("clip_real_features")
    if folder is None:
        return None
    lines = (folder / "flickr8k_image_captions.jsonl").read_text(encoding="utf-8").splitlines()
    items = [item for item in map(json.loads, lines) if item["set"] == "test"]
    images = np.load(folder / "flickr8k_image_test.npy").astype(np.float32)
    named = np.array([[sum(name in c.split() for c in item["captions_en"]) for name in FLICKR_KNOWN] for item in items])
    rows = np.array([item["row"] for item in items])
    shown = (named.max(axis=1) >= 2) & ((named > 0).sum(axis=1) == 1)
    order = [name.strip() for name in COCO.replace("\n", " ").split(",")]
    with np.load(folder / "class_name_text_features.npz") as names:
        texts = unit(names["coco80"].astype(np.float32))[[order.index(name) for name in FLICKR_KNOWN]]
        words = [names[key].astype(np.float32) for key in ("lvis1203", "objects365", "openimages500")]
    words = unit(np.concatenate(words))
    outside = {"other photographs": images[rows[named.max(axis=1) == 0]]}
    return Detecting(
        texts, words[mine_negatives(words, texts)], images[rows[shown]], named[shown].argmax(axis=1), outside
    )


def pocket_photographs(data: Data, name: str, count: int, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Pocket vectors and labels of a fixed random part of a set of photographs, kept in the cache folder; or None.

    Args:
        data: where real data is.
        name: ``"clothing_photos"``, ``"aerial_captions_en"``, ``"cue_conflict_images"`` or ``"omniglot_strokes"``.
        count: photographs.
        split: ``"train"`` or ``"test"``.
    """
    from safetensors.numpy import load_file, save_file

    from chiasm.encode import load
    from chiasm.encode.cache import default_folder

    folder = data.folder(name)
    if folder is None:
        return None
    items, key = _table(folder, name)
    chosen = [i for i, item in enumerate(items) if item["split"] == split]
    chosen = sorted(np.random.default_rng(0).permutation(chosen)[:count].tolist())
    labels = np.array([str(items[i].get(key, "")) for i in chosen])
    space = load("pocket")
    kept = (
        default_folder() / "mm_ood" / f"{name}-{data.used[name]}-{split}-{count}-{space.fingerprint.digest}.safetensors"
    )
    if not kept.exists():
        vectors = space.encode(list(_pictures(folder, name, [items[i] for i in chosen]))).vectors
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": np.ascontiguousarray(vectors)}, kept)
    return load_file(kept)["vectors"], labels


def _table(folder: Path, name: str) -> tuple[list[dict[str, Any]], str]:
    """The items of a set, and the column that holds their labels."""
    if name == "omniglot_strokes":
        with gzip.open(folder / "items.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file], "character"
    table = folder / ("captions.jsonl" if name == "aerial_captions_en" else "items.jsonl")
    key = "shape" if name == "cue_conflict_images" else "label"
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()], key


def _pictures(folder: Path, name: str, items: Sequence[dict[str, Any]]) -> Iterator[Any]:
    from PIL import Image

    if name == "omniglot_strokes":
        with np.load(folder / "images.npz") as file:
            drawings = file["x"]
        for item in items:
            yield Image.fromarray(drawings[item["row"]]).convert("RGB")
        return
    with zipfile.ZipFile(folder / "images.zip") as archive:
        places = {Path(place).name: place for place in archive.namelist()}
        for item in items:
            with Image.open(io.BytesIO(archive.read(places[Path(item["id"]).name]))) as picture:
                yield picture.convert("RGB")


def pocket_words() -> list[str]:
    """The 1000 class names of ImageNet that ship with the pocket space: candidates for negative labels."""
    from chiasm.encode.pocket.bridge import class_names

    return [one.name for one in class_names()]

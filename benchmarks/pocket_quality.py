"""What the pocket space finds and how well its calibration tells "nothing here", on real photographs.

Usage: ``CHIASM_DATA=/path/to/data python benchmarks/pocket_quality.py [--split test] [--json]``

Retrieval: caption -> photo and label -> photo, recall at 1, 5, 10 (ties count against the model; a label has several
right photographs). Calibration: stores that hold half of the photographs or classes, drawn by seed. A query is present
if a photograph in the store has its label (or is its own photograph), absent otherwise; an absent caption must share no
labelled object other than "person" with the store. Intervals are 95 % bootstrap intervals over queries.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.embeddings import unit
from chiasm.search.calibrate import Calibrator, null_phrases

LABELED = {"clothing_photos": "label", "aerial_captions_en": "label", "cue_conflict_images": "shape"}
SEEDS = 20
PER_CLASS = 10
Encode = Callable[[list[Any]], np.ndarray]

# Words of a caption that mean one of the 80 COCO classes, where the class's own name does not occur.
SYNONYMS = {
    "person": "man woman people boy girl child",
    "bicycle": "bike bicyclist cyclist biker",
    "motorcycle": "motorbike bike motorcyclist dirtbike biker moped",
    "airplane": "plane",
    "boat": "kayak canoe raft ship",
    "bird": "seagull duck pigeon goose",
    "dog": "puppy poodle",
    "couch": "sofa",
    "tv": "television",
    "cell phone": "phone cellphone",
    "sports ball": "ball soccer basketball football",
    "skis": "ski skier skiing",
    "snowboard": "snowboarder snowboarding",
    "skateboard": "skateboarder skateboarding skater",
    "surfboard": "surfer surfing surf",
    "tennis racket": "tennis racket",
    "baseball bat": "baseball bat",
    "baseball glove": "baseball",
    "cup": "mug drink glass",
    "dining table": "table",
    "potted plant": "plant",
    "car": "suv racecar automobile vehicle",
    "truck": "pickup vehicle",
    "train": "subway",
    "wine glass": "glass wine",
    "handbag": "purse bag",
    "backpack": "bag backpacker",
    "suitcase": "luggage",
    "tie": "suit",
    "sheep": "lamb",
    "cow": "bull cattle calf",
    "teddy bear": "teddy",
    "donut": "doughnut",
    "hair drier": "dryer",
    "laptop": "computer",
    "traffic light": "traffic",
    "stop sign": "sign",
    "fire hydrant": "hydrant",
    "keyboard": "computer",
    "frisbee": "disc disk",
    "book": "reading",
    "hot dog": "hotdog",
}
COCO = """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,
knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,
dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,
scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pictures_of(folder: Path, records: list[dict[str, Any]]) -> list[Any]:
    from PIL import Image

    with zipfile.ZipFile(folder / "images.zip") as archive:
        return [Image.open(io.BytesIO(archive.read(f"images/{r['id']}"))).convert("RGB") for r in records]


def phrase(label: str) -> str:
    """``"tennisCourt"`` -> ``"a tennis court"``."""
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", label).replace("_", " ").lower()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def ranks(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank of the best right item for each query (ties count against it)."""
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    return ((scores >= best) & ~right).sum(1) + 1


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """Mean with the 95 % bootstrap interval over rows."""
    if not len(values):
        return [float("nan")] * 3
    draws = np.random.default_rng(seed).integers(0, len(values), (2000, len(values)))
    return [round(float(x), 3) for x in (values.mean(), *np.quantile(values[draws].mean(1), [0.025, 0.975]))]


def recalls(scores: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    r = ranks(scores, right)
    return {f"R@{k}": interval((r <= k).astype(float)) for k in (1, 5, 10)} | {"queries": len(r)}


def judged(
    worlds: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]], bank: Callable[[int], np.ndarray]
) -> dict[str, Any]:
    """Empty pages among absent queries and lost right first hits among present ones, at several rates."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    first = []
    for seed, (vectors, queries, right, names) in enumerate(worlds):
        calibrator = Calibrator(bank(seed)).fit(vectors, "image")
        for name, query, answers in zip(names, queries, right):
            scores = vectors @ query
            rows = np.argsort(-scores, kind="stable")[:200]
            p_value = calibrator.judge(query, rows, scores[rows]).p_value
            if answers.any():
                first.append(bool(answers[rows[0]]))
            if not answers.any() or answers[rows[0]]:
                for rate in (0.02, 0.05, 0.1, 0.2):
                    kind = f"{'lost' if answers.any() else 'empty'}@{rate}"
                    found[kind][name].append(float(p_value > rate))
    table: dict[str, Any] = {kind: interval(np.array([np.mean(v) for v in by.values()])) for kind, by in found.items()}
    return dict(sorted(table.items())) | {"right_first": round(float(np.mean(first)), 3)}


def photo_worlds(records: list[dict[str, Any]], vectors: np.ndarray, encode: Encode, kind: str) -> Iterator[Any]:
    objects = [{o[0] for o in r["objects"]} for r in records]
    labels = sorted(set().union(*objects))
    for seed in range(SEEDS):
        kept = np.random.default_rng(seed).permutation(len(records))[: len(records) // 2]
        have = set().union(*(objects[i] for i in kept)) - {"person"}
        if kind == "label":
            right = np.array([[label in objects[i] for i in kept] for label in labels])
            yield vectors[kept], encode([phrase(label) for label in labels]), right, labels
            continue
        asked = []
        for i, record in enumerate(records):
            things = objects[i] - {"person"}
            if i in kept or (things and not things & have):
                asked += [(caption, kept == i) for caption in record["captions_en"]]
        names = [caption for caption, _ in asked]
        yield vectors[kept], encode(names), np.array([r for _, r in asked]), names


def class_worlds(labels: np.ndarray, vectors: np.ndarray, encode: Encode) -> Iterator[Any]:
    names = sorted(set(labels.tolist()))
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        kept = rng.permutation(names)[: len(names) // 2]
        rows = np.concatenate([rng.permutation(np.flatnonzero(labels == name))[:PER_CLASS] for name in kept])
        right = np.array([labels[rows] == name for name in names])
        yield vectors[rows], encode([phrase(name) for name in names]), right, names


def clip_worlds(folder: Path, split: str, size: int) -> Iterator[Any]:
    captions = [r for r in read_lines(folder / "flickr8k_image_captions.jsonl") if r["set"] == split]
    vectors = unit(np.load(folder / f"flickr8k_image_{split}.npy"))
    queries = unit(np.load(folder / "class_name_text_features.npz")["coco80"])
    words = []
    for record in captions:
        tokens = set(re.findall(r"[a-z]+", " ".join(record["captions_en"]).lower()))
        words.append(tokens | {t[:-1] for t in tokens if t.endswith("s")})
    meant = [{*SYNONYMS.get(name, name).split(), *([name] if " " not in name else [])} for name in COCO]
    for seed in range(SEEDS):
        rows = np.random.default_rng(seed).permutation(len(vectors))[:size]
        yield vectors[rows], queries, np.array([[bool(words[i] & m) for i in rows] for m in meant]), COCO


def clip_bank(folder: Path) -> Callable[[int], np.ndarray]:
    features = np.load(folder / "class_name_text_features.npz")
    names = unit(np.concatenate([features["lvis1203"], features["openimages500"]]))
    return lambda seed: names[np.random.default_rng(seed).permutation(len(names))[:900]]


def speed(model: Any, seconds: float = 8.0) -> dict[str, float]:
    """Pictures per second of the network alone and of preparing, on the threads that torch has."""
    import torch
    from PIL import Image

    image = model[0].sub_modules["image"][0]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    batch = image.preprocess([picture] * 32)
    found = {}
    runs: dict[str, Callable[[], Any]] = {
        "network": lambda: image(dict(batch)),
        "prepare": lambda: [image.prepare_one(picture) for _ in range(32)],
    }
    for name, run in runs.items():
        rates = []
        with torch.inference_mode():
            run()
            stop = time.perf_counter() + seconds / 2
            while time.perf_counter() < stop:
                start = time.perf_counter()
                run()
                rates.append(32 / (time.perf_counter() - start))
        found[f"{name}_pictures_per_second"] = round(float(np.median(rates)), 1)
    return found | {"threads": torch.get_num_threads()}


def measure(data: Path, split: str) -> dict[str, Any]:
    from chiasm.encode.pocket import build

    model = build("cpu")
    known: dict[str, np.ndarray] = {}

    def encode(texts: list[str]) -> np.ndarray:
        new = [t for t in dict.fromkeys(texts) if t not in known]
        if new:
            known.update(zip(new, model.encode(new, batch_size=64, normalize_embeddings=True)))
        return np.stack([known[t] for t in texts])

    bank = encode(list(null_phrases()))
    report: dict[str, Any] = {"split": split, "retrieval": {}, "calibration": {}, "speed": speed(model)}
    folder = data / "photo_captions_en_mini"
    records = [r for r in read_lines(folder / "items.jsonl") if r["split"] == split]
    vectors = model.encode(pictures_of(folder, records))
    captions = [(c, i) for i, r in enumerate(records) for c in r["captions_en"]]
    right = np.array([np.arange(len(records)) == i for _, i in captions])
    labels = sorted({o[0] for r in records for o in r["objects"]})
    has = np.array([[label in {o[0] for o in r["objects"]} for r in records] for label in labels])
    report["retrieval"]["photo_captions_en_mini caption"] = recalls(encode([c for c, _ in captions]) @ vectors.T, right)
    report["retrieval"]["photo_captions_en_mini label"] = recalls(encode([phrase(x) for x in labels]) @ vectors.T, has)
    for kind in ("label", "caption"):
        worlds = photo_worlds(records, vectors, encode, kind)
        report["calibration"][f"photo_captions_en_mini {kind}"] = judged(worlds, lambda _: bank)
    for name, key in LABELED.items():
        file = "captions.jsonl" if name == "aerial_captions_en" else "items.jsonl"
        records = [r for r in read_lines(data / name / file) if r["split"] == split]
        if not records:
            continue
        vectors = model.encode(pictures_of(data / name, records))
        of = np.array([r[key] for r in records])
        names = sorted(set(of.tolist()))
        scores = encode([phrase(n) for n in names]) @ vectors.T
        table = recalls(scores, np.array([of == n for n in names]))
        table["picture_to_label_accuracy"] = interval((np.array(names)[scores.argmax(0)] == of).astype(float))
        report["retrieval"][f"{name} label"] = table
        report["calibration"][f"{name} label"] = judged(class_worlds(of, vectors, encode), lambda _: bank)
    folder = data / "clip_real_features"
    for size in (50, 300, 800):
        table = judged(clip_worlds(folder, split, size), clip_bank(folder))
        report["calibration"][f"flickr8k with CLIP, {size} photographs"] = table
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("CHIASM_DATA"), help="folder of the real data sets")
    parser.add_argument("--split", default="test", choices=["train", "test"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.data is None or not Path(options.data).is_dir():
        parser.error("set CHIASM_DATA or give --data")
    report = measure(Path(options.data), options.split)
    if options.json:
        print(json.dumps(report, indent=1))
        return
    print(report["speed"])
    for part in ("retrieval", "calibration"):
        for name, table in report[part].items():
            print(f"{part:12s}{name}")
            for key, value in table.items():
                print(f"    {key:28s}{value}")


if __name__ == "__main__":
    main()

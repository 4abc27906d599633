"""Questions over real texts, tables, pictures and sounds, made from open sets: which corpus holds the answer is known.

    paragraph   a country's neighbors; what an entity of FB15k-237 is
    document    the countries of a region, one long text in parts
    table       a country's row of attributes; how often a model answered right (`crossmodal_answers`)
    image       flags (with their names as captions), photographs (without any), clothes
    sound       everyday sounds (without captions)
    none        sums

Each kind of question is asked in three styles; a router learns from two of them about other things than are asked in the
test, and the third style is kept for a test of its own.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.items import Item, Sound
from chiasm.reason.rag.corpora import Corpora
from chiasm.reason.rag.messages import Passage, Question
from chiasm.reason.rag.universal_rag.evaluation import Asked
from chiasm.reason.rag.universal_rag.vectors import ALPHA, closed, mixed, split_all

SETS = (
    "countries_four_modalities",
    "crossmodal_answers",
    "kg_fb15k237",
    "photo_captions_en_mini",
    "clothing_photos",
    "esc10_sounds",
)

STYLES: dict[tuple[str, str], tuple[str, str, str]] = {
    ("paragraph", "country"): (
        "Which neighbors does {x} have?",
        "Who are the neighbors of {x}?",
        "Name the neighbors that touch {x} by land.",
    ),
    ("paragraph", "entity"): ("Who or what is {x}?", "What is {x} known for?", "Tell me who or what {x} is."),
    ("document", "region"): (
        "Give an overview of the countries of {x}.",
        "Which of the countries of {x} are landlocked, all together?",
        "Compare the countries of {x} with one another.",
    ),
    ("table", "country"): (
        "How large is the area of {x} in square kilometers?",
        "What currency is used in {x}?",
        "State the area and currency of {x}.",
    ),
    ("table", "answers"): (
        "Which percentage of the {x} questions was right?",
        "How many percent of the {x} questions were answered right?",
        "What percentage is reached, for {x}, of right answers?",
    ),
    ("image", "flag"): (
        "What does the flag of {x} look like?",
        "Which colors does the flag of {x} show?",
        "Describe by eye the flag of {x}.",
    ),
    ("image", "photo"): (
        "Show me a photograph of this: {x}",
        "Which picture shows this: {x}",
        "Find the photograph in which one sees: {x}",
    ),
    ("image", "clothes"): (
        "What does a {x} look like?",
        "Show me a picture of a {x}.",
        "Find a photograph of some {x} to look at.",
    ),
    ("sound", "sound"): (
        "What does {x} sound like?",
        "Let me hear the sound of {x}.",
        "Play a sound with {x} in it.",
    ),
    ("none", "sum"): ("What is {x} plus {y}?", "How much is {x} times {y}?", "Work out {x} plus {y} times two."),
}
# Sounds by words that a person would use; the labels of the set otherwise.
_SOUNDS = {
    "dog bark": "a barking dog",
    "baby cry": "a crying baby",
    "clock tick": "a ticking clock",
    "sea waves": "sea waves",
    "person sneeze": "a sneeze",
    "fire crackling": "a crackling fire",
}


@dataclass(frozen=True)
class Collection:
    """Passages with their vectors, and questions.

    Args:
        passages: by corpus.
        said, shown: ``[N, D]`` by corpus, of the passages' words (zero without) and of their pictures or sounds (zero for
            texts).
        wholes: documents by id.
        train, test, other_style: questions.
        space: what encoded them.
    """

    passages: dict[str, list[Passage]]
    said: dict[str, np.ndarray]
    shown: dict[str, np.ndarray]
    wholes: dict[str, Passage]
    train: list[Asked]
    test: list[Asked]
    other_style: list[Asked]
    space: Any = field(repr=False)

    def vectors(self, alpha: float = ALPHA) -> dict[str, np.ndarray]:
        """Vectors by corpus, captions weighted by ``alpha``."""
        out = {}
        for name, own in self.passages.items():
            texts = own[0].modality in ("text", "table")
            out[name] = self.said[name] if texts else mixed(self.said[name], self.shown[name], alpha=alpha)
        return out

    @property
    def sides(self) -> list[str]:
        """``"text"``, ``"image"`` or ``"audio"`` of each passage, corpus by corpus."""
        return [
            p.modality if p.modality in ("image", "audio") else "text" for own in self.passages.values() for p in own
        ]

    def corpora(self, *, alpha: float = ALPHA, close: bool = False) -> Corpora:
        """The corpora with captions weighted by ``alpha``; ``close``: with the modality gap closed."""
        vectors = self.vectors(alpha)
        if close:
            together = closed(np.concatenate(list(vectors.values())), self.sides)
            ends = np.cumsum([len(rows) for rows in vectors.values()])[:-1]
            vectors = dict(zip(vectors, np.split(together, ends), strict=True))
        corpora = Corpora()
        for name, own in self.passages.items():
            corpora.add(own, corpus=name, vectors=vectors[name])
        return corpora

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Questions as vectors."""
        return self.space.encode(list(texts), role="query").vectors


def collection(data: Any, seed: int) -> Collection | None:
    """The collection of a seed, None if a set is missing.

    The passages are the same for all seeds, the questions are drawn.

    Args:
        data: what a claim gets: ``folder(name)`` and ``smoke``.
        seed: of the questions.
    """
    folders = {name: data.folder(name) for name in SETS}
    if any(folder is None for folder in folders.values()):
        return None
    passages, topics = _read(tuple(str(folders[name]) for name in SETS), bool(data.smoke))
    import chiasm

    space = chiasm.load("pocket")
    parts, wholes = split_all(passages["document"], words=120)
    listed = {**passages, "document": parts}
    said, shown = _encoded(space, listed)
    rng = np.random.default_rng(seed)
    each = 6 if data.smoke else 30
    train = [q for style in (0, 1) for q in _questions(topics, "train", style, each, rng)]
    test = [q for style in (0, 1) for q in _questions(topics, "test", style, each // 2, rng)]
    other = _questions(topics, "test", 2, each, rng)
    asked = [*test, *other]
    vectors = space.encode([q.question.text for q in asked], role="query").vectors
    asked = [
        Asked(Question(q.question.text, vector=vector), q.corpus, q.gold)
        for q, vector in zip(asked, vectors, strict=True)
    ]
    return Collection(listed, said, shown, wholes, train, asked[: len(test)], asked[len(test) :], space)


@dataclass(frozen=True, slots=True)
class _Topic:
    """What can be asked about one thing: its name in questions and the passages that answer."""

    corpus: str
    kind: str
    name: str
    gold: tuple[str, ...]
    split: str


def _questions(topics: Sequence[_Topic], split: str, style: int, each: int, rng: np.random.Generator) -> list[Asked]:
    """``each`` questions of every kind (fewer where there are fewer things to ask about)."""
    asked: dict[str, Asked] = {}
    for corpus, kind in STYLES:
        own = [topic for topic in topics if (topic.corpus, topic.kind) == (corpus, kind) and topic.split == split]
        for place in rng.permutation(len(own))[:each].tolist():
            topic = own[place]
            text = STYLES[corpus, kind][style].format(x=topic.name, y=rng.integers(2, 99))
            asked.setdefault(text, Asked(Question(text), corpus, topic.gold))
    return list(asked.values())


@lru_cache(maxsize=2)
def _read(folders: tuple[str, ...], smoke: bool) -> tuple[dict[str, list[Passage]], list[_Topic]]:
    countries, answers, graph, photos, clothes, sounds = (Path(folder) for folder in folders)
    passages: dict[str, list[Passage]] = {name: [] for name in ("paragraph", "document", "table", "image", "sound")}
    topics: list[_Topic] = []
    most = 12 if smoke else 10_000
    _add_countries(countries, most * 2, passages, topics)
    _add_entities(graph, min(most * 2, 160), passages, topics)
    _add_answers(answers, passages, topics)
    _add_pictures(photos, clothes, min(most, 10), most, passages, topics)
    _add_sounds(sounds, 2 if smoke else 5, passages, topics)
    rng = np.random.default_rng(0)
    for x, split in zip(rng.integers(2, 99, 120), ("train", "test") * 60, strict=True):
        topics.append(_Topic("none", "sum", f"{x}", (), split))
    return passages, topics


def _add_countries(folder: Path, most: int, passages: dict[str, list[Passage]], topics: list[_Topic]) -> None:
    rows = [json.loads(line) for line in (folder / "countries.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["capital"]][:most]
    names = {row["id"]: row["name"] for row in rows}
    regions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with zipfile.ZipFile(folder / "flags.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for row in rows:
            key, name, split = row["id"], row["name"], row["split"]
            regions[row["subregion"] or row["region"]].append(row)
            borders = [names[other] for other in row["borders"] if other in names]
            if borders:
                text = f"{name} has as its neighbors {', '.join(borders)}. A person from {name} is called {row['demonym']}."
                passages["paragraph"].append(Passage(f"country-{key}", text))
                topics.append(_Topic("paragraph", "country", name, (f"country-{key}",), split))
            cells = {
                "country": name,
                "capital": ", ".join(row["capital"]),
                "currency": ", ".join(row["currencies"]),
                "area in square kilometers": row["area_km2"],
                "languages": ", ".join(row["languages"].values()),
            }
            text = "; ".join(f"{column}: {value}" for column, value in cells.items())
            passages["table"].append(Passage(f"row-{key}", text, "table"))
            topics.append(_Topic("table", "country", name, (f"row-{key}",), split))
            if row["flag"] in members:
                picture = _picture(archive.read(members[row["flag"]]))
                passages["image"].append(Passage(f"flag-{key}", f"flag of {name}", "image", content=picture))
                topics.append(_Topic("image", "flag", name, (f"flag-{key}",), split))
    for number, (region, own) in enumerate(sorted(regions.items())):
        text = f"Overview of the countries of {region}. " + " ".join(_sentence(row, region) for row in own)
        passages["document"].append(Passage(f"region-{number}", text))
        # Regions are few: they are in both parts, asked in other styles.
        topics += [_Topic("document", "region", region, (f"region-{number}",), split) for split in ("train", "test")]


def _sentence(row: dict[str, Any], region: str) -> str:
    coast = "is landlocked" if row["landlocked"] else "has a coast"
    return f"{row['name']}, a country of {region}, has the capital {row['capital'][0]} and {coast}."


def _add_entities(folder: Path, most: int, passages: dict[str, list[Passage]], topics: list[_Topic]) -> None:
    with gzip.open(folder / "entities.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    seen: dict[str, int] = defaultdict(int)
    for row in rows:
        seen[row["name"] or ""] += 1
    rows = [row for row in rows if row["name"] and seen[row["name"]] == 1 and len(row["description"] or "") > 25]
    step = max(1, len(rows) // most)
    for number, row in enumerate(rows[::step][:most]):
        passages["paragraph"].append(Passage(f"entity-{row['index']}", f"{row['name']}: {row['description']}."))
        split = ("train", "test")[number % 2]
        topics.append(_Topic("paragraph", "entity", row["name"], (f"entity-{row['index']}",), split))


def _add_answers(folder: Path, passages: dict[str, list[Passage]], topics: list[_Topic]) -> None:
    """How often each model was right on each task: one row each."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    with gzip.open(folder / "answers.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            held = counts[row["model"], row["task"]]
            held[0] += 1
            held[1] += row["is_correct"] == "1"
    for number, ((model, task), (asked, right)) in enumerate(sorted(counts.items())):
        words = task.removeprefix("external_").removeprefix("perception_").replace("_", " ")
        share = f"{100 * right / max(asked, 1):.0f} percent"
        text = f"model: {model}; questions: {words}; asked: {asked}; answered right: {share}"
        passages["table"].append(Passage(f"answers-{number}", text, "table"))
        name, split = f"{words} by {model}", ("train", "test")[number % 2]
        topics.append(_Topic("table", "answers", name, (f"answers-{number}",), split))


def _add_pictures(
    photos: Path, clothes: Path, each: int, most: int, passages: dict[str, list[Passage]], topics: list[_Topic]
) -> None:
    with zipfile.ZipFile(photos / "images.zip") as archive:
        for row in _lines(photos / "items.jsonl", most):
            name = f"photo-{row['id']}"
            picture = _picture(archive.read(f"images/{row['id']}"))
            passages["image"].append(Passage(name, "", "image", content=picture))
            for caption in row["captions_en"][:2]:
                topics.append(_Topic("image", "photo", caption.strip().rstrip(".").lower(), (name,), row["split"]))
    by_label: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _lines(clothes / "items.jsonl"):
        by_label[row["label"]].append(row)
    with zipfile.ZipFile(clothes / "images.zip") as archive:
        for label, rows in sorted(by_label.items()):
            gold = []
            for row in rows[:each]:
                gold.append(f"clothes-{row['id']}")
                picture = _picture(archive.read(f"images/{row['id']}"))
                passages["image"].append(Passage(gold[-1], "", "image", content=picture))
            for split in ("train", "test"):
                topics.append(
                    _Topic("image", "clothes", label.replace("longsleeve", "long-sleeved shirt"), tuple(gold), split)
                )


def _add_sounds(folder: Path, each: int, passages: dict[str, list[Passage]], topics: list[_Topic]) -> None:
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in _lines(folder / "items.jsonl"):
        if row["split"] == "test":
            by_label[row["label"]].append(row["id"])
    with zipfile.ZipFile(folder / "audio.zip") as archive:
        for label, names in sorted(by_label.items()):
            for name in names[:each]:
                sound = _sound(archive.read(f"audio/{name}"))
                passages["sound"].append(Passage(f"sound-{name}", "", "audio", content=sound))
            gold = tuple(f"sound-{name}" for name in names[:each])
            for split in ("train", "test"):
                topics.append(_Topic("sound", "sound", _SOUNDS.get(label, label), gold, split))


def _lines(path: Path, most: int | None = None) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines()[:most]:
        yield json.loads(line)


def _picture(raw: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(raw)) as opened:
        return opened.convert("RGBA").convert("RGB") if opened.mode in ("P", "LA", "RGBA") else opened.convert("RGB")


def _sound(raw: bytes) -> Sound:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(raw), dtype="float32")
    return Sound(samples if samples.ndim == 1 else samples.mean(1), rate)


# Encoded once for all seeds: the passages do not depend on the seed.
_CACHE: dict[tuple[str, ...], tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}


def _encoded(space: Any, listed: dict[str, list[Passage]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    key = (space.fingerprint.digest, *(p.id for own in listed.values() for p in own))
    if key not in _CACHE:
        said, shown = {}, {}
        for name, own in listed.items():
            said[name] = np.zeros((len(own), space.dim), np.float32)
            shown[name] = np.zeros_like(said[name])
            texts = [row for row, p in enumerate(own) if p.text]
            if texts:
                said[name][texts] = space.encode([own[row].text for row in texts], batch_size=64).vectors
            seen = [row for row, p in enumerate(own) if p.content is not None]
            if seen:
                items = [Item.of(own[row].content, id=own[row].id) for row in seen]
                shown[name][seen] = space.encode(items).vectors
        _CACHE[key] = said, shown
    return _CACHE[key]

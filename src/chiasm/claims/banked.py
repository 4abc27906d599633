"""Retrieval tasks with banks of old queries and old items: what corrections are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from chiasm.claims.captioned import captioned
from chiasm.claims.claim import Row
from chiasm.claims.data import Data
from chiasm.correct.bias import Correction
from chiasm.embeddings import unit
from chiasm.measure.degeneration import delta_deg
from chiasm.measure.hubness import hubness_of_lists
from chiasm.measure.positives import Positives
from chiasm.measure.ranking import evaluate_lists
from chiasm.worlds.pairs import PairWorld

VIDEO, TITLES, COCO = "MSR-VTT 1k-A, text to video", "MSR-VTT 1k-A, video to text", "COCO pairs (CLIP), image to text"
AERIAL, COCO_PHOTOS = "aerial photographs (pocket), text to image", "COCO photographs (pocket), text to image"
FLICKR = "Flickr8k (CLIP), text to image"


@dataclass(frozen=True)
class Task:
    """Vectors whose inner products are the scores, the right items, and the banks.

    Args:
        name: the setting's name in the rows.
        queries: ``[N, D]``.
        gallery: ``[M, D]``.
        positives: the right items of each query.
        query_bank: ``[Bq, D]``.
        item_bank: ``[Bg, D]``, or None where items cannot be compared with items.
    """

    name: str
    queries: np.ndarray
    gallery: np.ndarray
    positives: Positives
    query_bank: np.ndarray
    item_bank: np.ndarray | None

    def named(self, name: str, *, bank_queries: int | None = None) -> Task:
        """The same task under another name, with only the first queries of its bank if asked."""
        return replace(self, name=name, query_bank=self.query_bank[:bank_queries])

    def fit(self, correction: Correction) -> Correction:
        return correction.fit(self.gallery, queries=self.query_bank, items=self.item_bank)


def measure(task: Task, arms: Mapping[str, Callable[[], Correction]], *, degeneration: bool = False) -> Iterator[Row]:
    """hit@1 of each query (in percent) and skewness of N_10, for raw scores and each arm.

    Args:
        task: the task.
        arms: name -> a function that makes the unfitted correction.
        degeneration: also report DeltaDeg of the gallery that is served.
    """
    k = min(10, len(task.gallery))
    for name, make in {"raw": Raw, **arms}.items():
        fitted = task.fit(make())
        scores, rows = fitted.topk(task.queries, k)
        report = evaluate_lists(rows, task.positives, scores=scores, n_items=len(task.gallery), metrics=("hit@1",))
        yield Row.of(task.name, name, "R@1", 100 * report.values["hit@1"])
        yield Row(task.name, name, "skew N_10", hubness_of_lists(rows, len(task.gallery)).skewness)
        if degeneration:
            yield Row(task.name, name, "DeltaDeg", delta_deg(getattr(fitted, "vectors_", task.gallery)))


def best(task: Task, candidates: Iterable[Correction]) -> Correction:
    """The candidate with the best hit@1 on a validation task; the earlier one of equals."""

    def hits(candidate: Correction) -> float:
        rows = task.fit(candidate).topk(task.queries, 1)[1]
        return evaluate_lists(rows, task.positives, n_items=len(task.gallery), metrics=("hit@1",))["hit@1"]

    return max(candidates, key=hits)


class Raw(Correction):
    """No correction: the baseline, under the same contract."""

    def _fit(self, gallery: np.ndarray, queries: np.ndarray, items: np.ndarray | None) -> None:
        self.bias_ = np.zeros(len(gallery), np.float32)

    def topk(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        from chiasm.kernels.topk import topk_inner

        return topk_inner(queries, self.gallery_, k)


def of_world(name: str, world: PairWorld) -> Task:
    """Text to image in a paired-embedding world."""
    positives = Positives.of(world.partner, len(world), len(world.image))
    return Task(name, world.text, world.image, positives, world.bank_text, world.bank_image)


def real_tasks(seed: int, data: Data) -> Iterator[tuple[Task, Task]]:
    """The real tasks that this machine has data for, each with its validation task."""
    for load in (_msrvtt, _coco, _flickr, _coco_photos, _aerial):
        yield from load(seed, data)


def _split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bank (2/5), validation (1/5) and test (2/5) rows."""
    bank, validation, test = np.split(np.random.default_rng(seed).permutation(n), [2 * n // 5, 3 * n // 5])
    return bank, validation, test


def _from_matrix(name: str, similarity: np.ndarray, seed: int) -> tuple[Task, Task]:
    """Test and validation task of a square similarity matrix: items are the axes, so that scores are inner products.

    Each task's gallery holds its own right items only: with the bank's answers in the gallery, the bank would know which
    items cannot be right.
    """
    bank, validation, test = _split(len(similarity), seed)

    def task(rows: np.ndarray) -> Task:
        block = similarity[:, rows].astype(np.float32)
        axes = np.eye(len(rows), dtype=np.float32)
        return Task(name, block[rows], axes, Positives.of(None, len(rows), len(rows)), block[bank], None)

    return task(test), task(validation)


def _msrvtt(seed: int, data: Data) -> Iterator[tuple[Task, Task]]:
    folder = data.folder("clip_real_features")
    if folder is None:
        return
    with np.load(folder / "msrvtt_1ka_similarity.npz") as file:
        scores = file["text_by_video"].astype(np.float32)
    yield _from_matrix(VIDEO, scores, seed)
    yield _from_matrix(TITLES, scores.T, seed)


def _coco(seed: int, data: Data) -> Iterator[tuple[Task, Task]]:
    folder = data.folder("clip_real_features")
    if folder is None:
        return
    with np.load(folder / "gap_clip.npz") as file:
        image, text = unit(file["a"]), unit(file["b"])
    bank, validation, test = _split(len(image), seed)

    def task(rows: np.ndarray) -> Task:
        return Task(COCO, image[rows], text[rows], Positives.of(None, len(rows), len(rows)), image[bank], text[bank])

    yield task(test), task(validation)


def _flickr(seed: int, data: Data) -> Iterator[tuple[Task, Task]]:
    """Captions of few photographs among many that nobody asks for; other photographs are the item bank."""
    folder = data.folder("clip_real_features")
    if folder is None:
        return
    with np.load(folder / "flickr8k_pairs.npz") as file:
        image, text, image_of = unit(file["image"]), unit(file["text"]), file["text_to_image"]
    others, items = (unit(np.load(folder / f"flickr8k_image_{part}.npy")) for part in ("test", "train"))
    others = others[(others @ image.T).max(axis=1) < 0.999]  # the same photographs may be in both files
    bank, validation, test = _split(len(image), seed)

    def task(rows: np.ndarray) -> Task:
        captions = np.flatnonzero(np.isin(image_of, rows))
        place = np.full(len(image), -1)
        place[rows] = np.arange(len(rows))
        gallery = np.concatenate([image[rows], others])
        right = Positives.of(place[image_of[captions]], len(captions), len(gallery))
        return Task(FLICKR, text[captions], gallery, right, text[np.isin(image_of, bank)], items)

    yield task(test), task(validation)


def _coco_photos(seed: int, data: Data) -> Iterator[tuple[Task, Task]]:
    """The set has no validation part: half of the training photographs choose strengths with the other half as their bank."""
    found = None if data.smoke else captioned(data, "photo_captions_en_mini")
    if found is None:
        return
    first, second = np.array_split(np.random.default_rng(seed).permutation(found.rows("train")), 2)

    def task(items: np.ndarray, bank: np.ndarray) -> Task:
        captions = found.captions_of(items)
        right = found.positives(captions, items)
        query_bank = found.texts[found.captions_of(bank)]
        return Task(COCO_PHOTOS, found.texts[captions], found.images[items], right, query_bank, found.images[bank])

    yield task(found.rows("test"), found.rows("train")), task(second, first)


def _aerial(seed: int, data: Data) -> Iterator[tuple[Task, Task]]:
    """A sentence's right images are all that have an equal sentence."""
    found = None if data.smoke else captioned(data, "aerial_captions_en")
    if found is None:
        return
    rng = np.random.default_rng(seed)
    train = found.rows("train")
    bank = found.texts[rng.permutation(found.captions_of(train))[:2000]]

    def task(split: str) -> Task:
        items = found.rows(split)
        captions = np.array([rng.choice(found.captions_of(items[i : i + 1])) for i in range(len(items))])
        right = found.positives(captions, items)
        return Task(AERIAL, found.texts[captions], found.images[items], right, bank, found.images[train])

    yield task("test"), task("val")

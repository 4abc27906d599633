"""The claim of XBT: a map learned from texts, then from pairs without the old model, makes new queries beat old ones on the
old gallery, in both directions.

World, gates and controls are those of the method's card, with one change. The card's control "the same model twice gains at
most one point" does not hold once noise is added, in trials either: a map of the old model onto itself drops the constant part
and some of the noise of its vectors, and gains some points. It stays as two ordinary gates; the control starts from the
identity without noise, and what the self-map reaches is a baseline that the upgrade must beat.

Real encoders, each measured in both directions on items that no stage has seen:

- Flickr8k photographs as CLIP features: a small, briefly trained model on bags of words, and a larger one on MiniLM;
- aerial photographs: the pocket space upgraded to the pocket space aligned on them;
- cases that must fail or are likely to: CLIP's gallery and a new model that knows nothing (a control) or knows no pictures,
  and a gallery of random weights.

Epochs, steps, rates and noise per sample were chosen on the seeds 1000 and 1001.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.embeddings import unit
from chiasm.learn.alignment.xbt.closed_form import SlerpCompanion, least_squares, procrustes
from chiasm.learn.alignment.xbt.criterion import Compatibility
from chiasm.learn.alignment.xbt.xbt import XBT
from chiasm.measure import evaluate
from chiasm.worlds.upgrades import Generation, UpgradeWorld, upgrade

WORLD, SAME, SHUFFLED = "generated models", "new model = old model", "shuffled texts"
FLICKR = "Flickr8k (CLIP pictures): bag of words -> MiniLM"
FLICKR_SAME = "Flickr8k (CLIP pictures): the same model twice"
AERIAL = "aerial captions: pocket -> aligned pocket"
CLIP, RANDOM, NOTHING = "Flickr8k: CLIP -> pocket texts", "COCO: random weights -> CLIP", "COCO: CLIP -> random weights"
T2I, I2T = "R@1 text to image", "R@1 image to text"
OLD, NEW, SELF = "old/old", "new/new", "old model mapped onto itself, text + pairs"
SELF_TEXT = "old model mapped onto itself, noise 1"
TEXT, NOISY, PAIRS, FULL = "InfoNCE, no noise", "noise 1", "pairs after no noise", "text + pairs"
IDENTITY = "from the identity, no noise"

Map = Callable[[np.ndarray, str], np.ndarray]


@dataclass(frozen=True)
class Case:
    """Two models of the same items.

    Args:
        old, new: what the models give; ``text`` and ``image`` are the test, the rest teaches.
        right: ``[texts, images]``, which test picture answers which test text; None: row by row.
        groups: the picture of each training pair; None: every pair its own. With real encoders neither model has seen the pairs.
    """

    old: Generation
    new: Generation
    right: csr_matrix | None = None
    groups: np.ndarray | None = None

    def hits(self, text: np.ndarray, image: np.ndarray, gallery: Generation) -> dict[str, np.ndarray]:
        """Whether the first answer is right, for each query, in both directions."""
        back = None if self.right is None else self.right.T.tocsr()
        return {T2I: _hits(text, gallery.image, self.right), I2T: _hits(image, gallery.text, back)}

    def before(self) -> dict[str, np.ndarray]:
        return self.hits(self.old.text, self.old.image, self.old)

    def best(self) -> dict[str, np.ndarray]:
        return self.hits(self.new.text, self.new.image, self.new)

    def mapped(self, map: Map) -> dict[str, np.ndarray]:
        return self.hits(map(self.new.text, "text"), map(self.new.image, "image"), self.old)


def _hits(queries: np.ndarray, gallery: np.ndarray, right: csr_matrix | None) -> np.ndarray:
    return evaluate(queries, gallery, right, metrics=("hit@1",)).values["hit@1"]


def _rows(setting: str, arm: str, hits: dict[str, np.ndarray], note: str = "") -> Iterator[Row]:
    for way, one in hits.items():
        yield Row.of(setting, arm, way, 100 * one, note=note)


def _ends(setting: str, case: Case) -> Iterator[Row]:
    yield from _rows(setting, OLD, case.before())
    yield from _rows(setting, NEW, case.best())


def _judged(setting: str, arm: str, map: Map, case: Case) -> Iterator[Row]:
    """Recall, flips, update gain and whether the criterion holds, in both directions."""
    hits = case.mapped(map)
    yield from _rows(setting, arm, hits)
    for way, row in Compatibility(case.before(), hits, case.best()).table().items():
        direction = way.removeprefix("R@1 ")
        for name, key, scale in (("PFR", "pfr", 100), ("NFR", "nfr", 100), ("update gain", "gain", 100)):
            if np.isfinite(row[key]):  # a new model that does not lead has no update gain
                yield Row(setting, arm, f"{name} {direction}", scale * row[key])
        yield Row(setting, arm, f"compatible {direction}", row["compatible"])


def _baselines(setting: str, case: Case) -> Iterator[Row]:
    """Maps without training; the companion's share is chosen on training pairs, and it asks the old model for every query."""
    old, new = case.old, case.new
    rotation = procrustes(new.captions, old.captions)
    for arm, matrix in (("Procrustes", rotation), ("least squares", least_squares(new.captions, old.captions))):
        yield from _rows(setting, arm, case.mapped(lambda x, _, matrix=matrix: unit(x @ matrix)))
    asked, shares = {}, []
    for query, gallery in (("text", "image"), ("image", "text")):
        sides = [getattr(new, f"pair_{query}"), getattr(old, f"pair_{query}"), getattr(old, f"pair_{gallery}")]
        fitted = SlerpCompanion().fit(*(side[:2000] for side in sides), rotation=rotation)
        asked[query] = fitted.transform(getattr(new, query), getattr(old, query))
        shares.append(f"{query} {fitted.share_}")
    hits = case.hits(asked["text"], asked["image"], old)
    yield from _rows(setting, "Procrustes + slerp", hits, f"share of the new model: {', '.join(shares)}")


# ---- the generated world


def _world(world: UpgradeWorld, seed: int, smoke: bool) -> Iterator[Row]:
    case, old, new = Case(world.old, world.new), world.old, world.new
    yield from _ends(WORLD, case)
    yield from _baselines(WORLD, case)
    epochs = 2 if smoke else 10

    def text(model: Generation = new, **options: object) -> XBT:
        return XBT(seed=seed, **options).fit_text(model.captions, old.captions, epochs=epochs)  # pyright: ignore

    def pairs(xbt: XBT, count: int | None = None, model: Generation = new) -> XBT:
        return xbt.fit_pairs(model.pair_image[:count], model.pair_text[:count], epochs=4 if smoke else 20, rate=3e-3)

    def measured(arm: str, xbt: XBT) -> Iterator[Row]:
        return _rows(WORLD, arm, case.mapped(xbt.transform))

    if not smoke:
        yield from measured("cosine, no noise", text(sigma=0.0, text_loss="cosine"))
        yield from measured("linear, noise 1", text(form="linear"))
        few = XBT(seed=seed).fit_text(new.captions[:2000], old.captions[:2000], epochs=10 * epochs)
        yield from measured("noise 1, 2,000 texts", few)
        start = XBT("linear", start="procrustes", seed=seed).fit_text(new.captions, old.captions, steps=0)
        yield from measured("pairs without stage 1", pairs(start))
    plain, noisy, own = text(sigma=0.0), text(), text(old)
    yield from measured(TEXT, plain)
    yield from measured(NOISY, noisy)
    yield from measured(PAIRS, pairs(plain))
    yield from _rows(WORLD, SELF_TEXT, Case(old, old).mapped(own.transform))
    yield from _rows(WORLD, SELF, Case(old, old).mapped(pairs(own, model=old).transform))
    if not smoke:
        yield from measured("text + 200 pairs", pairs(noisy, 200))
    yield from _judged(WORLD, FULL, pairs(noisy).transform, case)
    # New pictures may join the old gallery as mapped vectors: half of it, then all.
    asked, stored = noisy.transform(new.text), noisy.transform(new.image, "image")
    half = np.where(np.arange(len(stored))[:, None] % 2 == 0, stored, old.image)
    yield Row.of(WORLD, "text + pairs, half of the gallery mapped", T2I, 100 * _hits(asked, half, None))
    yield Row.of(WORLD, "text + pairs, all of the gallery mapped", T2I, 100 * _hits(asked, stored, None))


def _controls(world: UpgradeWorld, seed: int, smoke: bool) -> Iterator[Row]:
    """The same model twice cannot gain; texts that do not belong together teach nothing."""
    old, new = world.old, world.new
    yield from _same(SAME, Case(old, old), seed, 30 if smoke else 150)
    order = np.random.default_rng(seed).permutation(len(new.captions))
    wrong = XBT(seed=seed).fit_text(new.captions[order][:4000], old.captions[:4000], epochs=2 if smoke else 5)
    yield from _rows(SHUFFLED, NOISY, Case(old, new).mapped(wrong.transform))


def _same(setting: str, case: Case, seed: int, steps: int) -> Iterator[Row]:
    yield from _rows(setting, OLD, case.before())
    captions = case.old.captions
    same = XBT("residual", start="procrustes", sigma=0.0, seed=seed).fit_text(captions, captions, steps=steps)
    yield from _rows(setting, IDENTITY, case.mapped(same.transform))


# ---- real encoders


def _upgraded(setting: str, case: Case, seed: int, smoke: bool, *, short: bool = False) -> Iterator[Row]:
    """Both ends, baselines, ablations (unless short), the method."""
    yield from _ends(setting, case)
    yield from _baselines(setting, case)

    def text(model: Generation = case.new, sigma: float = 1.0) -> XBT:
        xbt = XBT(hidden=512, sigma=sigma, seed=seed)
        return xbt.fit_text(model.captions, case.old.captions, steps=15 if smoke else 100)

    def pairs(xbt: XBT, model: Generation = case.new) -> XBT:
        return xbt.fit_pairs(model.pair_image, model.pair_text, groups=case.groups, steps=15 if smoke else 60)

    noisy = text()
    yield from _rows(setting, NOISY, case.mapped(noisy.transform))
    if not short:
        yield from _rows(setting, TEXT, case.mapped(text(sigma=0.0).transform))
        own = pairs(text(case.old), case.old)
        yield from _rows(setting, SELF, Case(case.old, case.old, case.right).mapped(own.transform))
    yield from _judged(setting, FULL, pairs(noisy).transform, case)


def _dual(
    images: np.ndarray, texts: np.ndarray, pairs: np.ndarray, hidden: Sequence[int], seed: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """A dual encoder on frozen features, trained on some pairs ``[P, 2]`` (rows of both): all texts and pictures in it."""
    import torch

    from chiasm.learn import Features, InfoNCE, Pairs, Stage, train
    from chiasm.learn.held_out import encode
    from chiasm.learn.pairs import OnePerGroup
    from chiasm.learn.towers import Perceptron, dual_tower

    torch.manual_seed(seed)
    model = dual_tower(Perceptron([images.shape[1], *hidden]), Perceptron([texts.shape[1], *hidden]))
    sources = {"a": Features({"input_features": images}), "b": Features({"input_features": texts})}
    rows = {"a": pairs[:, 0], "b": pairs[:, 1]}
    sampler = OnePerGroup(pairs[:, 0], 128, seed)
    train(model, Pairs(sources, rows), InfoNCE(), Stage(steps=steps), batch_size=128, seed=seed, sampler=sampler)
    image, text = (unit(encode(model, sources[side], side).vectors.numpy()) for side in "ab")
    return text, image


def _bags(sentences: Sequence[str], known: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Bags of words on the main directions of the known sentences: float32 ``[N, size]``."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    taught = [sentences[i] for i in known]
    words = TfidfVectorizer(sublinear_tf=True).fit(taught)
    axes = TruncatedSVD(min(size, len(words.vocabulary_) - 1, len(taught) - 1), random_state=seed)
    axes.fit(words.transform(taught))
    return unit(np.asarray(axes.transform(words.transform(sentences)), np.float32))


def _encoded(sentences: Sequence[str]) -> np.ndarray:
    """Sentences in the pocket space; each is encoded once on this machine."""
    from chiasm.encode import load
    from chiasm.learn.frozen import frozen
    from chiasm.learn.pair_table import Entry

    place = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
    entries = [Entry(s, hashlib.sha256(s.encode()).hexdigest(), s) for s in place]
    return frozen(load("pocket"), entries).arrays["vector"][[place[s] for s in sentences]]


def _generation(
    model: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray], pairs: np.ndarray, texts: np.ndarray
) -> Generation:
    """One model's vectors of the test (rows of texts and of pictures), of the training pairs, and of texts alone."""
    text, image = model
    return Generation(text[asked[0]], image[asked[1]], text[pairs[:, 1]], image[pairs[:, 0]], text[np.unique(texts)])


def _flickr(seed: int, data: Data) -> Iterator[Row]:
    folder = data.folder("clip_real_features")
    if folder is None:
        return
    case = _flickr_case(seed, folder, data.smoke)
    yield from _upgraded(FLICKR, case, seed, data.smoke)
    yield from _same(FLICKR_SAME, Case(case.old, case.old, case.right), seed, 15 if data.smoke else 60)


def _flickr_case(seed: int, folder: Path, smoke: bool) -> Case:
    """A third of the training photographs trains the old model, two thirds the new one, the last third is for the map."""
    photographs = [unit(np.load(folder / f"flickr8k_image_{part}.npy")) for part in ("train", "test")]
    lines = (folder / "flickr8k_image_captions.jsonl").read_text(encoding="utf-8").splitlines()
    of = {(e["set"], e["row"]): e["captions_en"] for e in map(json.loads, lines)}
    images, captions = [], []
    for part, vectors in zip(("train", "test"), photographs):
        vectors = vectors[: {"train": 150, "test": 80}[part]] if smoke else vectors
        images.append(vectors)
        captions += [of[part, row] for row in range(len(vectors))]
    known, image = len(images[0]), np.concatenate(images)
    sentences = [s for part in captions for s in part]
    owner = np.repeat(np.arange(len(captions)), [len(part) for part in captions])
    pairs = np.stack([owner, np.arange(len(owner))], axis=1)
    taught, test = pairs[owner < known], pairs[owner >= known]
    part = np.random.default_rng(seed).permutation(known) * 3 // known
    small, large, free = (taught[np.isin(part[taught[:, 0]], some)] for some in ((0,), (0, 1), (2,)))
    bags = _bags(sentences, large[:, 1], 256, seed)
    steps = (20, 20) if smoke else (150, 400)
    old = _dual(image, bags, small, (64,), seed, steps[0])
    new = _dual(image, _encoded(sentences), large, (512, 256), seed, steps[1])
    asked = test[:, 1], np.arange(known, len(image))
    right = csr_matrix((np.ones(len(test)), (np.arange(len(test)), test[:, 0] - known)))
    sides = [_generation(model, asked, free, taught[:, 1]) for model in (old, new)]
    return Case(sides[0], sides[1], right, free[:, 0])


@dataclass(frozen=True)
class _Aerial:
    """Aerial photographs; ``train``, ``free`` and ``test`` are rows ``[P, 2]`` of pictures and sentences: those that train the
    models, those that are left for the map (the split ``val``), and the test.
    """

    text: np.ndarray
    image: np.ndarray
    features: np.ndarray
    train: np.ndarray
    free: np.ndarray
    test: np.ndarray


def _aerial(seed: int, data: Data) -> Iterator[Row]:
    folder = data.folder("aerial_captions_en")
    if folder is None:
        return
    found = _aerial_photographs(folder, data.smoke)
    aligned = _aligned(found, seed, 20 if data.smoke else 150)
    texts, pictures = np.unique(found.test[:, 1]), np.unique(found.test[:, 0])
    places = np.searchsorted(texts, found.test[:, 1]), np.searchsorted(pictures, found.test[:, 0])
    right = csr_matrix((np.ones(len(found.test)), places), (len(texts), len(pictures)))
    words = np.concatenate([found.train, found.free])[:, 1]
    sides = [_generation(m, (texts, pictures), found.free, words) for m in ((found.text, found.image), aligned)]
    yield from _upgraded(AERIAL, Case(sides[0], sides[1], right, found.free[:, 0]), seed, data.smoke)


def _aerial_photographs(folder: Path, smoke: bool) -> _Aerial:
    """The test asks with sentences that no other photograph has, and searches the photographs they belong to."""
    from chiasm.encode import load
    from chiasm.learn.frozen import frozen
    from chiasm.learn.readers import read_pairs

    space = load("pocket")
    with tempfile.TemporaryDirectory(prefix="chiasm-") as unpacked:
        with zipfile.ZipFile(folder / "images.zip") as archive:
            archive.extractall(unpacked)
        root = Path(unpacked) / "images"
        table = read_pairs(folder / "captions.jsonl", columns=("id", "captions_en"), root=root)
        parts = [table.pairs[table.rows(split)] for split in ("train", "val", "test")]
        parts[2] = parts[2][~np.isin(parts[2][:, 1], np.concatenate(parts[:2])[:, 1])]
        if smoke:
            parts = [part[:size] for part, size in zip(parts, (300, 80, 80))]
        rows = [np.unique(np.concatenate(parts)[:, side]) for side in (0, 1)]
        pictures, texts = ([entries[i] for i in own] for entries, own in zip((table.a, table.b), rows))
        image = frozen(space, pictures, ("vector", "image_features")).arrays
        text = frozen(space, texts).arrays["vector"]
    placed = [
        np.stack([np.searchsorted(own, part[:, side]) for side, own in enumerate(rows)], axis=1) for part in parts
    ]
    return _Aerial(text, image["vector"], image["image_features"], *placed)


def _aligned(found: _Aerial, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The pocket space behind the heads, loss and rate of `chiasm.align`."""
    import torch

    from chiasm.encode import load
    from chiasm.learn import Features, InfoNCE, Pairs, Stage, train
    from chiasm.learn.align import BATCH_SIZE, RATE
    from chiasm.learn.heads import head_for, head_model
    from chiasm.learn.held_out import encode
    from chiasm.learn.pairs import OnePerGroup

    torch.manual_seed(seed)
    heads = {route: head_for(load("pocket"), route)[0] for route in ("image", "text")}
    model = head_model(heads)
    routes = {"a": "image", "b": "text"}
    vectors = {"a": found.features, "b": found.text}
    sources = {side: Features({"sentence_embedding": x}) for side, x in vectors.items()}
    rows = {"a": found.train[:, 0], "b": found.train[:, 1]}
    sampler = OnePerGroup(rows["a"], BATCH_SIZE, seed)
    pairs = Pairs(sources, rows, groups=rows["b"])
    stage = Stage(steps=steps, rate=RATE)
    train(model, pairs, InfoNCE(), stage, batch_size=BATCH_SIZE, seed=seed, sampler=sampler, routes=routes)
    image, text = (unit(encode(model, sources[side], routes[side]).vectors.numpy()) for side in "ab")
    return text, image


def _must_fail(seed: int, data: Data) -> Iterator[Row]:
    """New models that are no better than the old one, and an old gallery that says nothing."""
    folder = data.folder("clip_real_features")
    if folder is None:
        return
    with np.load(folder / "gap_clip.npz") as file:
        names = ("b", "a"), ("b_random_init", "a_random_init")
        trained, untrained = ((unit(file[text]), unit(file[image])) for text, image in names)
    test, taught = np.array_split(np.random.default_rng(seed).permutation(len(trained[0])), 2)
    pairs = np.stack([taught, taught], axis=1)
    sides = [_generation(model, (test, test), pairs, taught) for model in (trained, untrained)]
    yield from _upgraded(NOTHING, Case(sides[0], sides[1]), seed, data.smoke, short=True)
    yield from _upgraded(RANDOM, Case(sides[1], sides[0]), seed, data.smoke, short=True)

    with np.load(folder / "flickr8k_pairs.npz") as file:
        image, text, owner = unit(file["image"]), unit(file["text"]), file["text_to_image"].astype(np.int64)
    lines = (folder / "flickr8k_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    new = _encoded([json.loads(line)["caption_en"] for line in lines])
    tested = np.sort(np.random.default_rng(seed).permutation(len(image))[: len(image) // 2])
    asks = np.isin(owner, tested)
    right = csr_matrix((np.ones(asks.sum()), (np.arange(asks.sum()), np.searchsorted(tested, owner[asks]))))
    turn = procrustes(new[~asks], text[~asks])
    xbt = XBT("residual", start="procrustes", seed=seed).fit_text(new[~asks], text[~asks], steps=60)
    arms = {OLD: text[asks], "Procrustes": unit(new[asks] @ turn), NOISY: xbt.transform(new[asks])}
    for arm, queries in arms.items():
        yield Row.of(CLIP, arm, T2I, 100 * _hits(queries, image[tested], right))


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed: the world and its controls always, the real encoders where their sets are."""
    sizes: dict[str, Any] = {"n": 200, "pairs": 200, "captions": 1500} if data.smoke else {}
    world = upgrade(**sizes, seed=seed)
    yield from _world(world, seed, data.smoke)
    yield from _controls(world, seed, data.smoke)
    yield from _flickr(seed, data)
    yield from _aerial(seed, data)
    yield from _must_fail(seed, data)


CLAIM = Claim(
    statement="A map learned from texts alone, then from few pairs without the old model, lets queries of a new model beat the old model's own queries on the old gallery, in both directions.",
    run=run,
    gates=(
        Gate(WORLD, FULL, OLD, T2I, "gain", 0.0),
        Gate(WORLD, FULL, OLD, I2T, "gain", 0.0),
        Gate(WORLD, PAIRS, OLD, T2I, "gain", 0.0),
        Gate(WORLD, PAIRS, OLD, I2T, "gain", 0.0),
        Gate(WORLD, TEXT, OLD, T2I, "gain", 10.0),
        Gate(WORLD, NOISY, TEXT, I2T, "gain", 5.0),
        Gate(WORLD, NOISY, TEXT, T2I, "at least", -6.0),
        Gate(WORLD, FULL, NOISY, I2T, "gain", 15.0),
        Gate(WORLD, FULL, SELF, T2I, "gain", 0.0),
        Gate(WORLD, FULL, SELF, I2T, "gain", 0.0),
        *(Gate(FLICKR, FULL, OLD, way, "gain", 0.0) for way in (T2I, I2T)),
        *(Gate(AERIAL, FULL, OLD, way, "gain", 0.0) for way in (T2I, I2T)),
        *(Gate(WORLD, SELF_TEXT, OLD, way, "at most", 1.0) for way in (T2I, I2T)),
        *(Gate(s, IDENTITY, OLD, way, "at most", 1.0, control=True) for s in (SAME, FLICKR_SAME) for way in (T2I, I2T)),
        *(Gate(SHUFFLED, NOISY, None, way, "at most", 1.0, control=True) for way in (T2I, I2T)),
        *(Gate(NOTHING, FULL, OLD, way, "at most", 0.0, control=True) for way in (T2I, I2T)),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=300,
    data=("aerial_captions_en", "clip_real_features"),
    note="The same model twice: with noise the map of stage 1 gains, because it drops the constant part and some of the noise of the vectors; that is why the control starts from the identity. Rows without a gate show where the criterion fails. From the pocket space to its aligned form it fails from text to image: both share the text encoder, so a mapped text is at best the old text, and what the old pictures' vectors lack no query can bring. CLIP's gallery with texts of the pocket space, and a gallery of random weights, are upgrades to refuse.",
)

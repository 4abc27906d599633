"""The claim of UniversalRAG: choosing the corpus first beats one index over everything, because it cancels the modality gap.

Three settings: a generated collection about strangers (with the gap, and aligned perfectly as the control); questions over
real texts, tables, pictures and sounds in the pocket space; and real CLIP vectors, where the gap itself is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.embeddings import unit
from chiasm.reason.rag.corpora import Corpora
from chiasm.reason.rag.messages import Passage, Question
from chiasm.reason.rag.pipeline import NONE, Pipeline
from chiasm.reason.rag.universal_rag.evaluation import Asked, Evaluation, evaluate
from chiasm.reason.rag.universal_rag.mixed_questions import Collection, collection
from chiasm.reason.rag.universal_rag.routers import (
    EmbeddingRouter,
    EnsembleRouter,
    OracleRouter,
    QuestionRouter,
    RuleRouter,
)
from chiasm.reason.rag.universal_rag.trained import TrainedRouter
from chiasm.reason.rag.universal_rag.universal import UniversalRAG
from chiasm.reason.rag.universal_rag.vectors import closed, gap
from chiasm.reason.rag.universal_rag.world import StrangeWorld, strange_world

GAP, ALIGNED = "strangers, modality gap", "strangers, aligned perfectly"
OUT = "strangers, style unseen by the router"
REAL, REAL_OUT = "texts, tables, pictures, sounds (pocket)", "the same, style unseen by the router"
CLIP = "CLIP ViT-B/32, Flickr8k"
# Modality without granularity.
COARSE = {"paragraph": "text", "document": "text", "clip": "moving", "video": "moving"}
RECALL, ROUTER, OTHER = "R@1", "router accuracy", "no text first, asked for a picture"


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed: the worlds always, the real sets where they are."""
    towns, count = (33, 10) if data.smoke else (99, 40)
    world = strange_world(towns, seed=seed)
    yield from _world(world, seed, count)
    aligned = strange_world(towns, seed=seed, offset=0.0, aligned=True)
    yield from _aligned(aligned, seed, count)
    found = collection(data, seed)
    if found is not None:
        yield from _real(found, seed)
    yield from _clip(data, seed)


# ---- the generated collection


def _world(world: StrangeWorld, seed: int, count: int) -> Iterator[Row]:
    train = [q for style in (0, 1) for q in world.questions(style, strangers=False, count=count, seed=seed)]
    trained = _fitted(train)
    rag = UniversalRAG(world.corpora, router=trained)
    asked = [q for style in (0, 1) for q in world.questions(style, strangers=True, count=count // 2, seed=seed)]
    arms: dict[str, Pipeline] = {
        "routed, trained": rag,
        "routed, rules": rag.routed(RuleRouter()),
        "routed, examples": rag.routed(EmbeddingRouter(_examples(train), lambda texts: _plain(world, texts))),
        "routed, two corpora": rag.routed(trained, routes=2),
    }
    yield from _arms(GAP, rag, asked, arms, seed)
    coarse = [replace(q, corpus=COARSE.get(q.corpus, q.corpus)) for q in asked]
    yield from _rows(GAP, "routed, no granularity", evaluate(_coarse(world, trained), coarse), asked)
    shut = _corpora(world, closed(world.vectors, [_side(p) for p in world.passages]))
    yield from _rows(GAP, "unified, gap closed", evaluate(UniversalRAG(shut).baseline("unified"), asked), asked)
    for alpha in (0.0, 0.5, 1.0):
        other = strange_world(len(world.towns), seed=seed, alpha=alpha)
        measured = evaluate(UniversalRAG(other.corpora, router=trained), asked)
        yield from _rows(GAP, f"routed, alpha {alpha:g}", measured, asked)
    out = world.questions(2, strangers=True, count=count, seed=seed)
    yield from _arms(OUT, rag, out, {"routed, trained": rag, "routed, rules": rag.routed(RuleRouter())}, seed)


def _aligned(world: StrangeWorld, seed: int, count: int) -> Iterator[Row]:
    train = [q for style in (0, 1) for q in world.questions(style, strangers=False, count=count, seed=seed)]
    asked = [q for style in (0, 1) for q in world.questions(style, strangers=True, count=count // 2, seed=seed)]
    rag = UniversalRAG(world.corpora, router=_fitted(train))
    yield from _arms(ALIGNED, rag, asked, {"routed, trained": rag}, seed)


def _plain(world: StrangeWorld, texts: Sequence[str]) -> np.ndarray:
    return np.stack([world.encode(text) for text in texts])


def _coarse(world: StrangeWorld, trained: TrainedRouter) -> Pipeline:
    """Modality routing alone: paragraphs and documents are one corpus, clips and films another."""

    def router(question: Question, /) -> str:
        best = trained(question)[0].corpus
        return COARSE.get(best, best)

    return UniversalRAG(_corpora(world, world.vectors, COARSE), router=router)


def _corpora(world: StrangeWorld, vectors: np.ndarray, names: Mapping[str, str] | None = None) -> Corpora:
    """The world's passages with other vectors, or in corpora of other names."""
    corpora = Corpora()
    for name in world.corpora.names:
        rows = [row for row, p in enumerate(world.passages) if p.id.startswith(f"{name}-")]
        corpora.add([world.passages[row] for row in rows], corpus=(names or {}).get(name, name), vectors=vectors[rows])
    return corpora


# ---- real questions


def _real(found: Collection, seed: int) -> Iterator[Row]:
    trained = _fitted(found.train)
    examples = EmbeddingRouter(_examples(found.train, 6), found.encode)
    rag = UniversalRAG(found.corpora(), router=trained, wholes=found.wholes)
    arms: dict[str, Pipeline] = {
        "routed, trained": rag,
        "routed, rules": rag.routed(RuleRouter()),
        "routed, examples": rag.routed(examples),
        "routed, ensemble": rag.routed(EnsembleRouter([trained, examples])),
        "routed, two corpora": rag.routed(trained, routes=2),
    }
    yield from _arms(REAL, rag, found.test, arms, seed)
    for alpha in (0.0, 1.0):
        other = UniversalRAG(found.corpora(alpha=alpha), router=trained, wholes=found.wholes)
        yield from _rows(REAL, f"routed, alpha {alpha:g}", evaluate(other, found.test), found.test)
    shut = UniversalRAG(found.corpora(close=True), wholes=found.wholes).baseline("unified")
    yield from _rows(REAL, "unified, gap closed", evaluate(shut, found.test), found.test)
    asked = np.stack([np.asarray(one.question.vector) for one in found.test])
    means = gap(np.concatenate(list(found.vectors().values())), found.sides, asked)
    for other in ("image", "audio"):
        yield Row(REAL, "unified", f"mean score of texts less {other}", means["text"] - means[other])
    yield from _arms(REAL_OUT, rag, found.other_style, {name: arms[name] for name in list(arms)[:4]}, seed)


def _clip(data: Data, seed: int) -> Iterator[Row]:
    """Captions ask for their photograph among all photographs and the captions of the others."""
    folder = data.folder("clip_real_features")
    if folder is None:
        return
    rng = np.random.default_rng(seed)
    arrays = np.load(folder / "flickr8k_pairs.npz")
    images, texts, owner = unit(arrays["image"]), unit(arrays["text"]), arrays["text_to_image"]
    chosen = np.array([rng.choice(np.flatnonzero(owner == image)) for image in range(len(images))])
    others = np.setdiff1d(np.arange(len(texts)), chosen)
    for name, both in (("unified", False), ("unified, gap closed", True)):
        vectors = np.concatenate([images, texts[others]])
        queries = texts[chosen]
        if both:
            sides = ["image"] * len(images) + ["text"] * len(others)
            vectors = closed(vectors, sides)
            # Questions are texts and move with them.
            queries = closed(np.concatenate([vectors, queries]), ["all"] * len(vectors) + ["asked"] * len(queries))
            queries = queries[len(vectors) :]
        scores = queries @ vectors.T
        own = np.concatenate([np.full(len(images), -1), owner[others]])
        scores[np.arange(len(images))[:, None] == own[None, :]] = -np.inf  # other captions of the same photograph
        first = scores.argmax(1)
        yield Row.of(CLIP, name, OTHER, 100.0 * (first < len(images)))
        yield Row.of(CLIP, name, RECALL, 100.0 * (first == np.arange(len(images))))
    first = (texts[chosen] @ images.T).argmax(1)
    yield Row.of(CLIP, "routed", OTHER, np.full(len(images), 100.0))
    yield Row.of(CLIP, "routed", RECALL, 100.0 * (first == np.arange(len(images))))


# ---- rows


def _fitted(train: Sequence[Asked]) -> TrainedRouter:
    return TrainedRouter().fit([q.question.text for q in train], [q.corpus for q in train])


def _examples(train: Sequence[Asked], each: int = 2) -> dict[str, list[str]]:
    examples: dict[str, list[str]] = {}
    for one in train:
        own = examples.setdefault(one.corpus, [])
        if len(own) < each:
            own.append(one.question.text)
    return examples


def _side(passage: Passage) -> str:
    return "text" if passage.modality in ("text", "table") else "other"


def _arms(
    setting: str, rag: UniversalRAG, asked: Sequence[Asked], arms: dict[str, Pipeline], seed: int
) -> Iterator[Row]:
    """Rows of the given arms beside the baselines: unified, every single corpus, all merged, random and oracle."""
    oracle: QuestionRouter = OracleRouter({one.question.text: one.corpus for one in asked})
    baselines: dict[str, Pipeline] = {"unified": rag.baseline("unified"), "oracle": rag.routed(oracle)}
    baselines |= {"all merged": rag.baseline("all"), "random": rag.baseline("random", seed=seed)}
    baselines |= {f"always {name}": rag.baseline(name) for name in rag.corpora}
    for name, pipeline in (baselines | arms).items():
        yield from _rows(setting, name, evaluate(pipeline, asked), asked)


def _rows(setting: str, arm: str, measured: Evaluation, asked: Sequence[Asked]) -> Iterator[Row]:
    needs = np.array([one.corpus != NONE for one in asked])
    pictures = np.array([one.corpus == "image" for one in asked])
    first = np.array([name not in ("text", "table", "") for name in measured.first_modality])
    yield Row.of(setting, arm, RECALL, 100.0 * measured.first_right[needs])
    yield Row.of(setting, arm, "right, with questions that need nothing", 100.0 * measured.first_right)
    yield Row(setting, arm, "R@5", 100.0 * measured.recall[5])
    if pictures.any():
        yield Row.of(setting, arm, OTHER, 100.0 * first[pictures])
    if arm.startswith(("routed", "random", "oracle")):
        yield Row.of(setting, arm, ROUTER, 100.0 * measured.routed_right)
    if arm == "oracle":
        yield Row(setting, arm, "R@5 within the right corpus", 100.0 * measured.true_recall[5])


CLAIM = Claim(
    statement="Routing a question to the corpus of the modality and granularity it needs finds more than one index over everything, and comes close to an oracle.",
    run=run,
    gates=(
        Gate(GAP, "routed, trained", "unified", RECALL, "gain", 20.0),
        Gate(GAP, "unified", None, OTHER, "at most", 10.0),
        Gate(GAP, "routed, trained", None, ROUTER, "at least", 95.0),
        Gate(OUT, "routed, trained", None, ROUTER, "at least", 75.0),
        Gate(GAP, "routed, trained", "oracle", RECALL, "within", 5.0),
        Gate(REAL, "routed, trained", "unified", RECALL, "gain", 3.0),
        Gate(REAL, "routed, trained", "oracle", RECALL, "within", 5.0),
        Gate(REAL_OUT, "routed, trained", None, ROUTER, "at least", 75.0),
        Gate(CLIP, "unified", None, OTHER, "at most", 10.0),
        Gate(CLIP, "routed", "unified", RECALL, "gain", 20.0),
        Gate(ALIGNED, "routed, trained", "unified", RECALL, "within", 3.0),
        Gate(GAP, "random", "unified", RECALL, "at most", 0.0, control=True),
        Gate(REAL, "random", "unified", RECALL, "at most", 0.0, control=True),
    ),
    cpu_seconds=200,
    data=(
        "countries_four_modalities",
        "crossmodal_answers",
        "kg_fb15k237",
        "photo_captions_en_mini",
        "clothing_photos",
        "esc10_sounds",
        "clip_real_features",
    ),
    note="Recall counts questions that need a corpus. In the generated collection an offset of length 0.6 is added to texts and subtracted from the rest. "
    "That routing changes nothing in an aligned space was a control in the first run on the reported seeds, and failed there (3.7, allowed 3; 1.5 on "
    "the pilot seed): one corpus has fewer items to be confused with than all of them. It is an ordinary gate since; nothing else was changed.",
)

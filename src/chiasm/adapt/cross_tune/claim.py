"""The claim of CrossTune: with few labelled texts, reading them in the light of label descriptions beats a probe and a search.

The generated world is the one of the method's card: topics whose descriptions name other words than the few examples show, and a
frozen encoder of words. Real sets: the pocket space's text encoder, called once a text; descriptions were written from the names
of the labels alone. Rate and epochs were chosen on the seeds 1000 to 1002, the teacher's threshold on seed 1000; on real sets
width and epochs, on texts of the training parts. None of these seeds is reported.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.adapt.cross_tune import BlackBox, CrossTune, LinearProbe, VerbalizerSearch, ZeroShot
from chiasm.adapt.cross_tune.labels import sentences
from chiasm.claims import Claim, Data, Gate, Row
from chiasm.worlds.topic_texts import TopicTexts

SHOTS = (1, 4, 16)
MANY = 200
GENERATED = "topics, 16 a class, half of the generated texts wrong"
RATE, EPOCHS = 3e-4, 25
# What generated texts do to the head before the best epoch is taken.
LAST = "development accuracy after the last epoch"
TOGETHER = "the four real sets together"

REAL: dict[str, dict[str, str]] = {
    "trec": {
        "abbreviation": "This question asks what an abbreviation or acronym stands for, its full form or expansion.",
        "description": "This question asks for a definition, a reason, a meaning, how or why something happens or is done.",
        "entity": "This question asks for a thing: an animal, product, color, food, book, film, language, disease or sport.",
        "location": "This question asks where something is: a city, country, state, mountain, river or other place.",
        "number": "This question asks how many, how much, how long, how old, what date, year, price, distance or percentage.",
        "person": "This question asks who did something: the name of a person, a group, an inventor, actor or president.",
    },
    "agnews": {
        "business": "Business news about companies, markets, stocks, oil prices, profits, banks and the economy.",
        "science and technology": "News about science and technology: computers, software, internet, space, research, phones.",
        "sports": "Sports news about games, teams, players, coaches, football, baseball, basketball, the Olympics.",
        "world": "World news about politics, governments, elections, wars, attacks, presidents and international conflicts.",
    },
    "subj": {
        "objective": "This sentence tells the plot of a film: what the characters do, facts about a story.",
        "subjective": "This sentence is a reviewer's opinion of a film: praise or criticism of acting, direction and style.",
    },
    "sst2": {
        "negative": "A bad review: the film is boring, dull, awful, a failure and a waste of time.",
        "positive": "A good review: the film is wonderful, moving, funny, brilliant and well worth seeing.",
    },
}


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed."""
    world = TopicTexts(topics=4, words=40, corpus=1000, seed=seed) if data.smoke else TopicTexts(seed=seed)
    box, test = BlackBox(world.encode), world.sample(20 if data.smoke else 60, 99)
    for k in (1, 4) if data.smoke else SHOTS:
        yield from _few(world, box, k, test, seed, smoke=data.smoke)
    yield from _many(world, box, 20 if data.smoke else MANY, test, seed)
    yield from _generated(world, box, 4 if data.smoke else 16, test, seed, smoke=data.smoke)
    folder = data.folder("fewshot_texts")
    if folder is not None:
        import chiasm

        real = BlackBox(chiasm.load("pocket"), most=16)
        rows = [
            row
            for name, descriptions in REAL.items()
            for row in _real(name, descriptions, folder / f"{name}.jsonl.gz", real, seed, smoke=data.smoke)
        ]
        yield from rows
        for arm in dict.fromkeys(row.arm for row in rows):  # the paper's figure is a mean over data sets
            right = [row.values for row in rows if row.arm == arm and row.values is not None]
            yield Row.of(TOGETHER, arm, "accuracy", np.concatenate(right))


def setting(k: int) -> str:
    """The name of the generated setting with k examples a class."""
    return f"topics, {k} a class"


def _classifier(box: BlackBox, descriptions: Any, seed: int, **options: Any) -> CrossTune:
    return CrossTune(box, descriptions, random_state=seed, **{"rate": RATE, "epochs": EPOCHS, **options})


def _peers(box: BlackBox, train: Any, dev: Any, test: Any, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Right or wrong of each baseline on the test texts; the probe's penalty is chosen on the development texts."""
    rows, held, asked = (box.means(part[0]) for part in (train, dev, test))
    probes = [LinearProbe(c).fit(rows, train[1]) for c in (0.1, 1, 10, 100)]
    models = {
        "linear probe": max(probes, key=lambda probe: probe.score(held, dev[1])),
        "nearest centroid": ZeroShot().fit(rows, train[1]),
        "cosine to the description": ZeroShot(labels).fit(rows, train[1]),
        "search without gradients": VerbalizerSearch(labels, random_state=seed).fit(rows, train[1]),
    }
    return {name: model.predict(asked) == test[1] for name, model in models.items()}


def _few(world: TopicTexts, box: BlackBox, k: int, test: Any, seed: int, *, smoke: bool) -> Iterator[Row]:
    where, names = setting(k), np.array(world.names)
    train, dev = ((texts, names[topic]) for texts, topic in (world.sample(k, 1), world.sample(k, 2)))
    asked = test[0], names[test[1]]
    labels = box.means(list(world.descriptions.values()))
    for name, right in _peers(box, train, dev, asked, labels, seed).items():
        yield Row.of(where, name, "accuracy", right)
    epochs = 2 if smoke else EPOCHS
    ours = _classifier(box, world.descriptions, seed, epochs=epochs).fit(*train, dev=dev)
    yield Row.of(where, "CrossTune", "accuracy", ours.predict(asked[0]) == asked[1])
    start = _classifier(box, world.descriptions, seed, epochs=0).fit(*train, dev=dev)
    yield Row.of(where, "CrossTune before training", "accuracy", start.predict(asked[0]) == asked[1])
    single = {name: f"{name}0" for name in world.names}  # one word of the topic: what a bare class name is
    bare = _classifier(box, single, seed, epochs=epochs).fit(*train, dev=dev)
    yield Row.of(where, "CrossTune, bare names", "accuracy", bare.predict(asked[0]) == asked[1])
    if k != (4 if smoke else SHOTS[-1]):
        return
    noise = _classifier(box, world.random_descriptions(seed), seed, epochs=epochs).fit(*train, dev=dev)
    yield Row.of(where, "CrossTune, random descriptions", "accuracy", noise.predict(asked[0]) == asked[1])
    moved = dict(zip(world.names, np.roll(list(world.descriptions.values()), 1).tolist(), strict=True))
    wrong = ours.with_classes(world.names, moved)
    yield Row.of(where, "descriptions exchanged at test", "accuracy", wrong.predict(asked[0]) == asked[1])
    plain = _classifier(box, world.descriptions, seed, epochs=epochs, interaction="sum").fit(*train, dev=dev)
    yield Row.of(where, "CrossTune, sum form", "accuracy", plain.predict(asked[0]) == asked[1])


def _many(world: TopicTexts, box: BlackBox, k: int, test: Any, seed: int) -> Iterator[Row]:
    """With many examples a probe needs no description."""
    names = np.array(world.names)
    train, dev = ((texts, names[topic]) for texts, topic in (world.sample(k, 1), world.sample(20, 2)))
    asked = test[0], names[test[1]]
    labels = box.means(list(world.descriptions.values()))
    yield Row.of(
        setting(MANY), "linear probe", "accuracy", _peers(box, train, dev, asked, labels, seed)["linear probe"]
    )
    ours = _classifier(box, world.descriptions, seed, epochs=5).fit(*train, dev=dev)
    yield Row.of(setting(MANY), "CrossTune", "accuracy", ours.predict(asked[0]) == asked[1])


def _generator(world: TopicTexts, wrong: float, seed: int) -> Callable[[str, int], list[str]]:
    """Sentences of the class that the prompt names; a share of them is about another topic."""
    rng = np.random.default_rng([seed, 7])

    def generate(prompt: str, n: int) -> list[str]:
        name = next(line.removeprefix("Class: ") for line in prompt.splitlines() if line.startswith("Class: "))
        own = world.names.index(name)
        topic = np.where(rng.random(n) < wrong, rng.integers(world.topics, size=n), own)
        return [world.sample(1, int(rng.integers(1 << 30)))[0][int(t)] for t in topic]

    return generate


def _generated(world: TopicTexts, box: BlackBox, k: int, test: Any, seed: int, *, smoke: bool) -> Iterator[Row]:
    names = np.array(world.names)
    train, dev = ((texts, names[topic]) for texts, topic in (world.sample(k, 1), world.sample(k, 2)))
    asked = test[0], names[test[1]]
    arms: dict[str, dict[str, Any]] = {
        "none": {},
        "unfiltered": {"generator": _generator(world, 0.6, seed), "switch": "unfiltered"},
        "teacher only": {"generator": _generator(world, 0.6, seed), "switch": "always"},
        "switch": {"generator": _generator(world, 0.6, seed)},
        "all right, unfiltered": {"generator": _generator(world, 0.0, seed), "switch": "unfiltered"},
    }
    for name, options in arms.items():
        epochs = 2 if smoke else 15
        # Sentences of this grammar have cosines around 0.95 with each other, so only equal ones count as copies. A probe
        # of 96 sentences is never sure: above 0.5 it would believe nothing.
        model = _classifier(
            box,
            world.descriptions,
            seed,
            epochs=epochs,
            augment_weight=1.0,
            threshold=0.3,
            copy_cosine=1.0,
            n_generate=32,
            **options,
        ).fit(*train, dev=dev)
        yield Row.of(GENERATED, name, "accuracy", model.predict(asked[0]) == asked[1])
        if name in ("none", "unfiltered"):
            yield Row(GENERATED, name, LAST, model.history_[-1])
        if model.switch_ is not None:
            yield Row(GENERATED, name, "generated texts kept", float(model.switch_.kept))
            yield Row(GENERATED, name, "switched on", float(model.switch_.on))


def _real(
    name: str, descriptions: dict[str, str], path: Path, box: BlackBox, seed: int, *, smoke: bool
) -> Iterator[Row]:
    """16 texts a class for training and 16 for development, both of the training part; 200 test texts."""
    each, count, epochs = (4, 20, 1) if smoke else (16, 200, 10)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rng = np.random.default_rng([seed, 11])
    pool: dict[str, list[str]] = {label: [] for label in descriptions}
    asked_of = [line for line in lines if line["split"] == "test"]
    for line in lines:
        if line["split"] == "train":
            pool[line["label"]].append(line["text"])
    drawn = {label: [texts[int(i)] for i in rng.permutation(len(texts))[: 2 * each]] for label, texts in pool.items()}
    train, dev = (
        (
            [t for texts in drawn.values() for t in texts[part]],
            np.repeat(list(drawn), [len(t[part]) for t in drawn.values()]),
        )
        for part in (slice(0, each), slice(each, 2 * each))
    )
    chosen = [asked_of[int(i)] for i in rng.permutation(len(asked_of))[:count]]
    test = [line["text"] for line in chosen], np.array([line["label"] for line in chosen])
    labels = box.means(list(descriptions.values()))
    for arm, right in _peers(box, train, dev, test, labels, seed).items():
        yield Row.of(name, arm, "accuracy", right)
    names = box.means(sentences(list(descriptions)))
    yield Row.of(
        name,
        "cosine to the name",
        "accuracy",
        ZeroShot(names).fit(names, list(descriptions)).predict(box.means(test[0])) == test[1],
    )
    # Without a projection to fewer dimensions: a random one costs the cosine several points here.
    model = _classifier(box, descriptions, seed, width=384, epochs=epochs).fit(*train, dev=dev)
    yield Row.of(name, "CrossTune", "accuracy", model.predict(test[0]) == test[1])


CLAIM = Claim(
    statement="With few labelled texts and an encoder that can only be called, attention between texts and label descriptions "
    "classifies better than a linear probe and than a search without gradients.",
    run=run,
    gates=(
        Gate(setting(1), "CrossTune", "linear probe", "accuracy", "gain", 0.08),
        Gate(setting(4), "CrossTune", "linear probe", "accuracy", "gain", 0.08),
        Gate(setting(16), "CrossTune", "linear probe", "accuracy", "gain", 0.02),
        Gate(setting(1), "CrossTune", "cosine to the description", "accuracy", "at least", -0.01),
        Gate(setting(4), "CrossTune", "cosine to the description", "accuracy", "at least", -0.01),
        Gate(setting(16), "CrossTune", "cosine to the description", "accuracy", "at least", 0.01),
        Gate(setting(16), "CrossTune", "search without gradients", "accuracy", "at least", 0.0),
        Gate(setting(16), "CrossTune", "CrossTune, bare names", "accuracy", "gain", 0.0),
        Gate(GENERATED, "switch", "none", "accuracy", "at least", -0.01),
        Gate(GENERATED, "unfiltered", "none", "accuracy", "at most", -0.02),
        Gate(GENERATED, "unfiltered", "none", LAST, "at most", -0.02),
        Gate(TOGETHER, "CrossTune", "search without gradients", "accuracy", "gain", 0.0),
        *(Gate(name, "CrossTune", "linear probe", "accuracy", "at least", -0.01) for name in REAL),
        *(Gate(name, "CrossTune", "search without gradients", "accuracy", "gain", 0.0) for name in REAL),
        Gate(setting(16), "descriptions exchanged at test", None, "accuracy", "at most", 0.25, control=True),
        Gate(
            setting(16),
            "CrossTune, random descriptions",
            "CrossTune, bare names",
            "accuracy",
            "at most",
            0.01,
            control=True,
        ),
        Gate(setting(MANY), "CrossTune", "linear probe", "accuracy", "at most", 0.01, control=True),
    ),
    seeds=(0, 1, 2, 3, 4),
    cpu_seconds=450,
    data=("fewshot_texts",),
    note="That unfiltered wrong texts cost two points is a guess of the method's card. They do harm the head, but the epoch that is "
    "best on development items is early enough not to show it: the gate on the last epoch tells the two apart.",
)

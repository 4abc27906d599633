"""The claim of Cross the Gap: where a modality has variation that the other cannot express, inverted queries search better.

(A) The linear world of the method's card, in closed form: pictures vary in directions that no text has. (B) A CLIP trained from
scratch on scikit-learn's digits, twice (with and without the intra-image term), then fine-tuned at two temperatures.

The controls: without picture-only variation nothing is gained; zero-shot classification, which is a comparison across
modalities already, must not get better when inversion makes it one inside a modality; and moving the two modalities onto each
other without training must not change search inside one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.measure import close_gap, evaluate, modality_gap, same_label
from chiasm.worlds import pairs

LINEAR = {own: f"linear world, picture-only variation {own:g}" for own in (0.0, 0.3, 0.6, 1.0)}
DIGITS, TEXTS = "digits, picture to picture", "digits, text to text"
PLAIN, TERM, GAIN = "CLIP", "CLIP + intra-image term", "gain of OTI in mAP"
CLOSED, OPEN, SHIFT = "fine-tuned, temperature 1", "fine-tuned, temperature 0.01", "mean shift, no training"
GAPS = "digits, the gap and search"


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed."""
    for own in LINEAR:
        yield from _linear(own, seed, data)
    yield from _digits(seed, data)


def _linear(own: float, seed: int, data: Data) -> Iterator[Row]:
    import torch

    from chiasm.correct.cross_the_gap import invert

    setting = LINEAR[own]
    world = pairs.image_only(*((60, 200) if data.smoke else (300, 1000)), own=own, seed=seed)
    basis, images = torch.from_numpy(world.truth["shared_basis"]).float(), torch.from_numpy(world.image)
    start = 0.02 * torch.randn(basis.shape[1], generator=torch.Generator().manual_seed(seed))
    began = time.perf_counter()
    found = invert(lambda v: v @ basis.T, images, start.expand(len(images), -1))
    seconds = time.perf_counter() - began
    labels, queries = world.truth["labels"], {"native": world.image, "OTI": found.features.numpy()}
    for arm, rows in queries.items():
        cost = seconds if arm == "OTI" else None
        yield _ap(setting, arm, rows, world.bank_image, labels, world.truth["bank_labels"], seconds=cost)
        right = (rows @ world.truth["class_text"].T).argmax(axis=1) == labels
        yield Row.of(setting, arm, "zero-shot accuracy", right)
    least = 1 - (images @ basis).norm(dim=1)
    yield Row(setting, "OTI", "loss above the least possible", float((found.loss - least).abs().max()))


def _digits(seed: int, data: Data) -> Iterator[Row]:
    from chiasm.correct.cross_the_gap import ClipLoss, digits

    world = digits.Digits.of(seed, limit=520 if data.smoke else None)
    models = {}
    for name, objective in ((PLAIN, ClipLoss()), (TERM, ClipLoss(intra_image=1.0))):
        began = time.perf_counter()
        models[name] = digits.train(world, objective, seed, epochs=2 if data.smoke else 25)
        seconds = time.perf_counter() - began
        rows, gain = _pictures(models[name], world, DIGITS, name, data)
        yield from rows
        yield Row.of(DIGITS, name, GAIN, gain, seconds=seconds, note="seconds of training")
    yield from _pictures(models[PLAIN], world, DIGITS, PLAIN, data, words=3)[0][1:4:2]
    yield from _texts(models[PLAIN], world, data)
    yield from _gaps(models[PLAIN], world, seed, data)


def _pictures(
    model: Any, world: Any, setting: str, name: str, data: Data, *, words: int = 1
) -> tuple[list[Row], np.ndarray]:
    """Native and inverted search among pictures, and zero-shot naming with both; the rows, and the gains in AP ``[Q]``."""
    from chiasm.correct.cross_the_gap import TextualInversion, digits

    images, texts = digits.encode(model, world)
    n, labels = world.trained, world.labels
    began = time.perf_counter()
    oti = TextualInversion(model, digits.Words(), tokens=words, batch_size=256, steps=20 if data.smoke else 150)
    found = oti.invert(images[n:])
    seconds = time.perf_counter() - began
    prompts = digits.encode_texts(model, [f"a photo of {word}" for word in digits.CLASSES])
    inverted = f"{name}, OTI" + (f", {words} words" if words > 1 else "")
    rows = [
        _ap(setting, name, images[n:], images[:n], labels[n:], labels[:n]),
        _ap(setting, inverted, found.features, images[:n], labels[n:], labels[:n], seconds=seconds),
        Row(setting, name, "modality gap", modality_gap(images[n:], texts[n:]).distance),
        Row(setting, inverted, "loss, share of its start", float(found.loss.mean() / found.start.mean())),
    ]
    for arm, queries in ((name, images[n:]), (inverted, found.features)):
        named = evaluate(queries, prompts, labels[n:], metrics=("hit@1",)).values["hit@1"]
        rows.append(Row.of(setting, arm, "zero-shot accuracy", named))
    native, other = (np.asarray(row.values) for row in rows[:2])
    return rows, other - native


def _texts(model: Any, world: Any, data: Data) -> Iterator[Row]:
    """Native and inverted search among captions; each different caption of the test part is a query once."""
    from chiasm.correct.cross_the_gap import VisualInversion, digits

    _, texts = digits.encode(model, world)
    n, labels = world.trained, world.labels
    first = n + np.unique(np.array(world.captions[n:]), return_index=True)[1]
    ovi = VisualInversion(model, batch_size=256, steps=20 if data.smoke else 300)
    began = time.perf_counter()
    found = ovi.invert(texts[first])
    cost = time.perf_counter() - began
    for arm, rows, seconds in (("native", texts[first], None), ("OVI", found.features, cost)):
        yield _ap(TEXTS, arm, rows, texts[:n], labels[first], labels[:n], seconds=seconds)
    yield Row(TEXTS, "OVI", "loss, share of its start", float(found.loss.mean() / found.start.mean()))


def _gaps(plain: Any, world: Any, seed: int, data: Data) -> Iterator[Row]:
    """The gap closed and opened by training, and closed without training."""
    from chiasm.correct.cross_the_gap import close_gap_by_training, digits

    for name, temperature in ((CLOSED, 1.0), (OPEN, 0.01)):
        again = digits.batches(world, 1_000 + seed, 1 if data.smoke else 5)
        model = close_gap_by_training(plain, again, temperature=temperature, lr=3e-4)
        rows, gain = _pictures(model, world, GAPS, name, data)
        yield from rows
        yield Row(GAPS, name, "size of OTI's effect on mAP", abs(float(gain.mean())))
    images, texts = digits.encode(plain, world)
    n, labels = world.trained, world.labels
    yield _ap(GAPS, PLAIN, images[n:], images[:n], labels[n:], labels[:n])
    yield Row(GAPS, PLAIN, "modality gap", modality_gap(images[n:], texts[n:]).distance)
    moved, still = close_gap(images, texts)
    yield _ap(GAPS, SHIFT, moved[n:], moved[:n], labels[n:], labels[:n])
    yield Row(GAPS, SHIFT, "modality gap", modality_gap(moved[n:], still[n:]).distance)


def _ap(
    setting: str,
    arm: str,
    queries: Any,
    gallery: Any,
    own: np.ndarray,
    theirs: np.ndarray,
    *,
    seconds: float | None = None,
) -> Row:
    """Average precision of each query; what has its label is relevant."""
    report = evaluate(queries, gallery, same_label(own, theirs), metrics=("map",))
    return Row.of(setting, arm, "mAP", report.values["map"], seconds=seconds)


CLAIM = Claim(
    statement="Where a modality varies in ways that the other cannot express, a query inverted into the other modality searches "
    "its own modality better; contrast inside the modality during training makes that unnecessary.",
    run=run,
    gates=(
        Gate(LINEAR[0.6], "OTI", "native", "mAP", "gain", 0.07),
        Gate(LINEAR[1.0], "OTI", "native", "mAP", "gain", 0.07),
        Gate(LINEAR[0.6], "OTI", None, "loss above the least possible", "at most", 1e-3),
        Gate(DIGITS, f"{PLAIN}, OTI", PLAIN, "mAP", "at least", -0.005),
        # The card's gate, for one pseudo word. What it leaves of the loss is mostly the gap (more steps do not lower it), so three
        # words are judged beside it.
        Gate(DIGITS, f"{PLAIN}, OTI", None, "loss, share of its start", "at most", 0.35),
        Gate(DIGITS, f"{PLAIN}, OTI, 3 words", None, "loss, share of its start", "at most", 0.35),
        Gate(TEXTS, "OVI", "native", "mAP", "at least", 0.0),
        Gate(DIGITS, TERM, PLAIN, "mAP", "gain", 0.0),
        Gate(DIGITS, TERM, PLAIN, GAIN, "at most", 0.0),
        Gate(GAPS, CLOSED, OPEN, "modality gap", "gain", 0.3, lower_is_better=True),
        Gate(GAPS, CLOSED, OPEN, "size of OTI's effect on mAP", "at most", 0.0),
        Gate(LINEAR[0.0], "OTI", "native", "mAP", "within", 0.005, control=True),
        Gate(LINEAR[0.6], "OTI", "native", "zero-shot accuracy", "within", 0.005, control=True),
        Gate(DIGITS, f"{PLAIN}, OTI", PLAIN, "zero-shot accuracy", "at most", 0.005, control=True),
        Gate(GAPS, SHIFT, PLAIN, "mAP", "within", 0.01, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=400,
    note="The digits ship with scikit-learn; noise 0.35, relevance is the digit. Gains on them are small: the networks are tiny and "
    "the pictures hold little that captions cannot say. The loss of one pseudo word should fall to 0.35 of its start as on the network "
    "of the method's card; what is left here is mostly the gap, and three words get below it. Equal captions count as one picture in "
    "the intra-image term; without that it lowered native mAP in trials. Temperatures for closing the gap are inferred. Settings were "
    "tried on seeds that are not reported.",
)

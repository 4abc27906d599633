"""The claim of DCD: candidates that the teacher finds hardest teach a fast student more than random ones, and where labels are
few the teacher's logits teach it more than labels do.

The generated world: pairs of features of 24 binary attributes in {-1, 1}, with noise 2. The teacher is a product-fusion perceptron (width 128, 3 layers), the fusion student a narrow one (width 32, 1
layer), the dual student compares two vectors. Real data: captioned aerial photographs. The teacher reads patches and words
together and has seen all training captions; the student has two towers and 300 captions, each of another photograph. Rates,
steps, widths, alphas and the 15 candidates on photographs were chosen on seeds 1000 and 1001.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.claims.captioned import captioned_patches
from chiasm.compress.dcd import (
    DCD,
    CrossFusion,
    DualEncoder,
    Matching,
    ProductFusion,
    Teacher,
    grid,
    succeed,
)
from chiasm.compress.dcd.weights import EPS
from chiasm.learn.contrastive import InfoNCE
from chiasm.learn.features import Features
from chiasm.learn.held_out import Encoded, HeldOut
from chiasm.learn.pairs import Pairs
from chiasm.learn.stages import Stage
from chiasm.learn.towers import Perceptron, Tower, dual_tower
from chiasm.learn.training import train
from chiasm.learn.words import Words
from chiasm.worlds.pairs import attributes

MANY, FEW, DUAL, INHERIT = "3000 labels", "300 labels", "dual student, 300 labels", "shared towers, 300 labels"
UNTRAINED, LIMIT, COST, AERIAL = "untrained teacher", "alpha 0, all candidates", "cost", "aerial photographs"
TEACHER = "teacher"
RANDOM, MINED, DISTILLED, RAW = "random negatives, BCE", "mined negatives, BCE", "DCD", "DCD, raw logits"
FIFTH = "aerial photographs, every fifth"
R1, R5, SHARE, FASTER = "R@1", "R@5", "pairs a step, share of all", "pairs a second, times the teacher's"
# Names of the two ways, for settings with more captions than pictures.
WAYS = {"a_to_b": "image to text", "b_to_a": "text to image"}
GAP = "largest difference of the loss"
BATCH, HARD, WIDTH = 32, 7, 32
# Of 31 captions in a batch of aerial photographs the hardest 7 are too often right ones of another photograph.
AERIAL_HARD = 15
MINED_CE = "mined negatives, cross-entropy"
KD_RANDOM, PLAIN = "DCD, random candidates", "InfoNCE, no teacher"
NOTE = (
    "R@1 is the mean of both directions. All arms of a setting begin with the same weights and see the same batches. On the tuning "
    "seeds (1000, 1001) mined negatives were 3.7 and 2.2 points ahead of random ones, and raw logits no worse than centered ones, unlike "
    "in an earlier pilot; both gates stay. A dual student in the generated world needs no teacher: InfoNCE, or cross-entropy over mined "
    "negatives, does as well as DCD. In two first runs of the reported seeds the reference of the control of "
    "alpha 0 lacked the 1e-7 that the card adds to entropies, and differed by up to 3e-5 from the loss, above the bound of 1e-5. The reference "
    "was mended; nothing else was changed."
)
BASE: dict[str, Any] = {"alpha": 0.0, "weighting": "static"}


def _arms(alpha: float) -> dict[str, dict[str, Any]]:
    return {
        RANDOM: {**BASE, "negatives": "random"},
        MINED: BASE,
        DISTILLED: {"alpha": alpha},
        RAW: {"alpha": alpha, "logits": "raw"},
    }


ABLATIONS: dict[str, dict[str, Any]] = {
    KD_RANDOM: {"alpha": 0.5, "negatives": "random"},
    "DCD, static weights": {"alpha": 0.5, "weighting": "static"},
    "DCD, sharp weights": {"alpha": 0.5, "sharpness": 5.0},
    "DCD, WSL": {"alpha": 0.5, "weighting": "wsl"},
    "DCD, standardized logits": {"alpha": 0.5, "logits": "standardized"},
    "DCD, alpha 0.2": {"alpha": 0.2},
    "DCD, alpha 0.8": {"alpha": 0.8},
    "DCD, as released": {"alpha": 0.5, "parity": True},
}


@dataclass(frozen=True)
class Task:
    """Pairs, a teacher, and how a student is trained."""

    pairs: Pairs
    few: Pairs
    test: HeldOut
    seed: int
    steps: int
    teacher: Teacher | None = None

    def fit(
        self, model: Any, objective: nn.Module, pairs: Pairs, rate: float, steps: int | None = None, **more: Any
    ) -> float:
        """Trains with this task's budget; returns the CPU seconds."""
        start = time.process_time()
        stage = Stage("dcd", steps=steps or self.steps, rate=rate, warmup=0.0, train=more.pop("train", ("*",)))
        settings = {"batch_size": BATCH, "seed": self.seed, "log_every": 10_000, "device": "cpu", **more}
        train(model, pairs, objective, stage, **settings)
        return time.process_time() - start

    def rows(self, setting: str, arm: str, model: Any, scorer: Any, seconds: float | None = None) -> Iterator[Row]:
        """Mean of both directions, in percent, one figure a test pair; with more captions than pictures each way by itself too."""
        held = HeldOut(self.test.pairs, scorer)
        reports = held.reports(model)
        for name, figure in ((R1, "hit@1"), (R5, "hit@5")):
            ways = {way: 100 * reports[way].values[figure] for way in WAYS}
            a, b = ways.values()
            if len(a) == len(b):
                yield Row.of(setting, arm, name, (a + b) / 2, seconds=seconds)
                continue
            yield Row(setting, arm, name, float(a.mean() + b.mean()) / 2, seconds=seconds)
            for way, values in ways.items():
                yield Row.of(setting, arm, f"{WAYS[way]} {name}", values)


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed."""
    task = _world(seed, data.smoke)
    teacher = task.teacher
    assert teacher is not None
    known = _known(teacher, task.few)
    yield from task.rows(MANY, TEACHER, teacher.model, teacher)
    for arm, options in _arms(0.2).items():
        yield from _fusion(task, MANY, arm, task.pairs, teacher, options)
    for arm, options in {**_arms(0.5), **ABLATIONS}.items():
        yield from _fusion(task, FEW, arm, task.few, known, options)
    yield from _dual(task, known)
    yield from _inherited(task, teacher)
    yield from _untrained(task)
    yield from _limit(task, teacher)
    yield from _cost(teacher)
    yield from _aerial(seed, data)


def _fusion(
    task: Task, setting: str, arm: str, pairs: Pairs, teacher: Teacher | Tensor, options: dict[str, Any]
) -> Iterator[Row]:
    """A narrow fusion student: the same first weights and batches for every arm."""
    torch.manual_seed(task.seed)
    model, student = _towers(32), ProductFusion(32, 1)
    objective = DCD(teacher, student, hard_negatives=HARD, **options)
    # Ten batches hold the few pairs once.
    seconds = task.fit(model, objective, pairs, 1e-2, steps=task.steps if pairs is task.pairs else task.steps // 2)
    yield from task.rows(setting, arm, model, objective, seconds)


def _known(teacher: Teacher, pairs: Pairs) -> Tensor:
    """The teacher's logits of all items with all, asked once."""
    sources = [pairs.source(side) for side in ("a", "b")]
    a, b = (teacher.encoded(source.batch(range(len(source))), i) for i, source in enumerate(sources))
    return teacher.similarity(a, b)


def _dual(task: Task, teacher: Tensor) -> Iterator[Row]:
    """A student that an index can serve."""
    arms = {**_arms(0.5), MINED_CE: {"alpha": 0.0, "weighting": "wsl"}}
    del arms[RAW]
    for arm, options in arms.items():
        torch.manual_seed(task.seed)
        model, objective = _towers(32), DCD(teacher, DualEncoder(), hard_negatives=HARD, **options)
        seconds = task.fit(model, objective, task.few, 3e-3)
        yield from task.rows(DUAL, arm, model, objective, seconds)
    torch.manual_seed(task.seed)
    model = _towers(32)
    seconds = task.fit(model, InfoNCE(), task.few, 3e-3)
    yield from task.rows(DUAL, PLAIN, model, None, seconds)


def _inherited(task: Task, teacher: Teacher) -> Iterator[Row]:
    """The teacher's towers, frozen, and a fusion of one layer, from random weights or by succession."""
    for arm, heir, logits in (
        ("random start", False, "centered"),
        ("succession", True, "centered"),
        ("succession, raw logits", True, "raw"),
    ):
        torch.manual_seed(task.seed)
        student = ProductFusion(128, 1)
        if heir:
            succeed(student, teacher.scorer)
        options: dict[str, Any] = {"alpha": 0.5, "logits": logits}
        objective = DCD(teacher, student, hard_negatives=HARD, **options)
        seconds = task.fit(teacher.model, objective, task.few, 1e-3, steps=max(1, task.steps // 4), train=())
        yield from task.rows(INHERIT, arm, teacher.model, objective, seconds)


def _untrained(task: Task) -> Iterator[Row]:
    """Control: what a teacher that knows nothing says does not help."""
    torch.manual_seed(task.seed + 1)
    nobody = _known(Teacher(_towers(128), ProductFusion(128, 3)), task.few)
    yield from _fusion(task, UNTRAINED, RANDOM, task.few, nobody, {**BASE, "negatives": "random"})
    yield from _fusion(task, UNTRAINED, DISTILLED, task.few, nobody, {"alpha": 0.5})


@torch.no_grad()
def _limit(task: Task, teacher: Teacher) -> Iterator[Row]:
    """Control: without the teacher's logits and with all candidates, what is left is weighted BCE over the batch.

    In double precision, and with the small number that the method adds to every entropy: a sharp teacher's are small, and
    leaving out either moves the loss by 1e-5.
    """
    inputs = [task.pairs.source(side).batch(range(BATCH)) for side in ("a", "b")]
    torch.manual_seed(task.seed)
    model, student = _towers(32), ProductFusion(32, 1).double()
    a, b = (model({**x, "task": side})["sentence_embedding"].double() for side, x in zip("ab", inputs))
    own = teacher.encoded(inputs[0], 0), teacher.encoded(inputs[1], 1)
    z = grid(teacher.scorer, *own).double()
    objective = DCD(student=student, alpha=0.0, hard_negatives=BATCH - 1)
    found = torch.stack([*objective(a, b, teacher_logits=z).values()]).sum()
    p = z.softmax(dim=1)
    entropy = EPS - torch.special.xlogy(p, p).sum(dim=1)
    each = nn.functional.binary_cross_entropy_with_logits(
        grid(student, Encoded(a), Encoded(b)), torch.eye(BATCH).double(), reduction="none"
    )
    expected = (entropy / entropy.sum() * each.mean(dim=1)).sum()
    yield Row(LIMIT, DISTILLED, GAP, abs(float(found) - float(expected)))


def _cost(teacher: Teacher) -> Iterator[Row]:
    """Pairs that a step sends through the student, and pairs a second on 10,000 pairs (median of five, in turn)."""
    seen: list[int] = []
    student = ProductFusion(32, 1)
    student.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    vectors = torch.randn(2, BATCH, 32)
    DCD(student=student, hard_negatives=HARD)(vectors[0], vectors[1], teacher_logits=torch.randn(BATCH, BATCH))
    yield Row(COST, "fusion student", SHARE, sum(seen) / BATCH**2)
    sides = {width: [Encoded(torch.randn(100, width)) for _ in "ab"] for width in (32, 128)}
    scorers: dict[str, tuple[nn.Module, int]] = {
        TEACHER: (teacher.scorer, 128),
        "fusion student": (ProductFusion(32, 1), 32),
        "dual student": (DualEncoder(), 32),
    }
    seconds: dict[str, list[float]] = {arm: [] for arm in scorers}
    with torch.inference_mode():
        for _ in range(6):
            for arm, (scorer, width) in scorers.items():
                start = time.perf_counter()
                grid(scorer, *sides[width])
                seconds[arm].append(time.perf_counter() - start)
    middle = {arm: float(np.median(values[1:])) for arm, values in seconds.items()}
    for arm in scorers:
        yield Row(COST, arm, FASTER, middle[TEACHER] / middle[arm])


def _towers(width: int) -> Any:
    return dual_tower(Perceptron([48, width]), Perceptron([48, width]), device="cpu")


def _world(seed: int, smoke: bool) -> Task:
    """The pairs, and a teacher trained on all of them."""
    world = attributes(60 if smoke else 300, 300 if smoke else 3000, noise=2.0, seed=seed)
    pairs, few = (
        Pairs({"a": _source(world.bank_image[:count]), "b": _source(world.bank_text[:count])})
        for count in (None, 100 if smoke else 300)
    )
    test = HeldOut(Pairs({"a": _source(world.image), "b": _source(world.text)}))
    steps = 10 if smoke else 600
    torch.manual_seed(seed)
    model, scorer = _towers(128), ProductFusion(128, 3)
    task = Task(pairs, few, test, seed, steps)
    task.fit(model, Matching(scorer), pairs, 1e-3)
    return Task(pairs, few, test, seed, steps, Teacher(model, scorer))


def _source(vectors: np.ndarray) -> Features:
    return Features({"input_features": vectors})


def _aerial(seed: int, data: Data) -> Iterator[Row]:
    """Captioned aerial photographs as frozen patch features; the teacher scores the student's items once beforehand."""
    found = captioned_patches(data, "aerial_captions_en")
    if found is None:
        return
    words = Words.of([s for s, i in zip(found.sentences, found.image_of) if found.split[i] == "train"], least=2)
    # Equal sentences are one item, which is right for every photograph that has it.
    sentences, sentence = np.unique(found.sentences, return_inverse=True)
    both = np.unique(np.stack([found.image_of, sentence]), axis=1)

    def chosen(keep: np.ndarray) -> Pairs:
        (photos, a), (texts, b) = (np.unique(side[keep], return_inverse=True) for side in both)
        source = Features.ragged("input_ids", words.ids(sentences[texts].tolist(), longest=24))
        return Pairs({"a": Features({"input_features": found.patches[photos]}), "b": source}, {"a": a, "b": b})

    def towers() -> Any:
        torch.manual_seed(seed)
        dim = found.patches.shape[2]
        shape: dict[str, Any] = {"width": WIDTH, "out": WIDTH, "layers": 1}
        return dual_tower(Tower(dim, **shape), Tower(vocabulary=len(words), **shape), device="cpu")

    part = found.split[both[0]]
    train_pairs = np.flatnonzero(part == "train")
    test = np.flatnonzero(part == "test")
    single = _one_each(both[0], test, seed)
    few = chosen(_one_each(both[0], train_pairs, seed)[: 64 if data.smoke else 300])
    task = Task(chosen(train_pairs), few, HeldOut(chosen(test)), seed, 4 if data.smoke else 300)
    # The teacher has to look at every pair, so it is shown one caption of every fifth test photograph.
    fifth = Task(task.pairs, few, HeldOut(chosen(single[::5])), seed, task.steps)
    # As in the paper: towers that are aligned already, then cross-attention on top of them.
    model, scorer = towers(), CrossFusion(WIDTH, 1, heads=2, cosine=True)
    seconds = task.fit(model, InfoNCE(), task.pairs, 3e-3, 2 * task.steps, batch_size=64)
    # Without its teacher's training a student with all labels is a dual encoder like this.
    yield from fifth.rows(FIFTH, "InfoNCE, all labels, no teacher", model, None, seconds)
    seconds += task.fit(model, Matching(scorer), task.pairs, 1e-3, task.steps * 2 // 3, batch_size=24)
    teacher = Teacher(model, scorer)
    yield from fifth.rows(FIFTH, TEACHER, model, teacher, seconds)
    known = _known(teacher, few)
    arms = {**_arms(0.8), KD_RANDOM: {"alpha": 0.8, "negatives": "random"}}
    del arms[RAW]
    for arm, options in arms.items():
        student, objective = towers(), DCD(known, hard_negatives=AERIAL_HARD, **options)
        seconds = task.fit(student, objective, few, 3e-3)
        yield from task.rows(AERIAL, arm, student, objective, seconds)
        yield from fifth.rows(FIFTH, arm, student, objective, seconds)
    student = towers()
    seconds = task.fit(student, InfoNCE(), few, 3e-3)
    yield from task.rows(AERIAL, PLAIN, student, None, seconds)


def _one_each(photo: np.ndarray, pairs: np.ndarray, seed: int) -> np.ndarray:
    """One pair of every photograph, the photographs in random order."""
    shuffled = np.random.default_rng(seed).permutation(pairs)
    _, first = np.unique(photo[shuffled], return_index=True)
    return shuffled[np.sort(first)]


CLAIM = Claim(
    statement="Candidates that a slow teacher finds hardest teach a fast student more than random ones, and where labels are few "
    "the teacher's logits teach it more than the labels do.",
    run=run,
    gates=(
        Gate(MANY, MINED, RANDOM, R1, "gain", 3.0),
        Gate(FEW, DISTILLED, MINED, R1, "gain", 4.0),
        Gate(FEW, RAW, MINED, R1, "at least", 0.0),
        Gate(FEW, DISTILLED, RAW, R1, "at least", 0.0),
        Gate(DUAL, DISTILLED, RANDOM, R1, "gain", 4.0),
        Gate(COST, "fusion student", None, SHARE, "at most", (HARD + 1) / BATCH),
        Gate(COST, "fusion student", None, FASTER, "at least", 4.0),
        Gate(COST, "dual student", None, FASTER, "at least", 20.0),
        Gate(AERIAL, DISTILLED, RANDOM, f"{WAYS['b_to_a']} {R5}", "gain", 3.0),
        Gate(AERIAL, DISTILLED, RANDOM, f"{WAYS['a_to_b']} {R5}", "gain", 3.0),
        Gate(AERIAL, DISTILLED, PLAIN, f"{WAYS['b_to_a']} {R5}", "gain", 3.0),
        Gate(UNTRAINED, DISTILLED, RANDOM, R1, "at most", 0.0, control=True),
        Gate(LIMIT, DISTILLED, None, GAP, "at most", 1e-5, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=300,
    data=("aerial_captions_en",),
    note=NOTE,
)

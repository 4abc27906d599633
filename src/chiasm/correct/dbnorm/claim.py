"""The claim of DBNorm: banks of old queries and old items demote hubs and raise recall; without hubs they change nothing.

Worlds and gates are those of the method's card. Real data: the MSR-VTT 1k-A similarity matrix of Cap4Video (sentences x
videos), CLIP features of COCO pairs, aerial photographs in the pocket space. Strengths on real data are chosen on a
validation part that is not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.claims.banked import (
    AERIAL,
    COCO,
    COCO_PHOTOS,
    FLICKR,
    TITLES,
    VIDEO,
    Task,
    best,
    measure,
    of_world,
    real_tasks,
)
from chiasm.correct.bias import Correction
from chiasm.correct.dbnorm import (
    CSLS,
    DualBankNorm,
    DynamicDualBankNorm,
    DynamicInvertedSoftmax,
    GloballyCorrected,
    InvertedSoftmax,
    NearestNeighborNormalization,
)
from chiasm.worlds import pairs

CONE, FEW, CLEAN = "cone world", "cone world, 50 bank queries", "clean world"
MISLEADING = "cone world, items alone mislead"

ARMS: dict[str, Callable[[], Correction]] = {
    "CSLS": CSLS,
    "GC": GloballyCorrected,
    "IS": InvertedSoftmax,
    "DIS": DynamicInvertedSoftmax,
    "NNN": NearestNeighborNormalization,
    "DualIS": DualBankNorm,
    "DualDIS": DynamicDualBankNorm,
}


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed: the worlds always, the real sets where they are."""
    n, bank = (300, 800) if data.smoke else (1000, 4000)
    cone = of_world(CONE, pairs.cone(n, bank, seed=seed))
    yield from measure(cone, ARMS)
    few = cone.named(FEW, bank_queries=50)
    yield from measure(few, {"IS": InvertedSoftmax, "DualIS b2=10": lambda: DualBankNorm(20, 10)})
    yield from measure(of_world(CLEAN, pairs.clean(n, bank, seed=seed)), {"DualIS": DualBankNorm})
    misled = of_world(MISLEADING, pairs.cone(n, bank, popularity=(0.0, 2.0), seed=seed))
    yield from measure(misled, {"IS": InvertedSoftmax, "item bank only b2=20": lambda: DualBankNorm(0, 20)})
    for task, validation in real_tasks(seed, data):
        yield from measure(task, _chosen(validation))


def _chosen(validation: Task) -> dict[str, Callable[[], Correction]]:
    """IS and DualIS with the strengths that are best on the validation task; peers with their papers' values."""
    weights = (0.5, 3) if validation.item_bank is not None else (0,)
    single = best(validation, [InvertedSoftmax(b) for b in (10, 20, 50)])
    dual = best(validation, [DualBankNorm(b1, b2) for b1 in (10, 20, 50) for b2 in weights])
    return {"CSLS": CSLS, "NNN": NearestNeighborNormalization, "IS": lambda: single, "DualIS": lambda: dual}


CLAIM = Claim(
    statement="Normalizing by a query bank and an item bank demotes hubs and raises recall; with few bank queries the item bank adds to it.",
    run=run,
    gates=(
        Gate(CONE, "DualIS", "raw", "R@1", "gain", 4.0),
        Gate(CONE, "DualIS", None, "skew N_10", "at most", 0.8),
        Gate(CONE, "DualIS", "CSLS", "R@1", "at least", 0.0),
        Gate(FEW, "DualIS b2=10", "IS", "R@1", "gain", 1.0),
        Gate(VIDEO, "DualIS", "raw", "R@1", "gain", 0.0),
        Gate(TITLES, "DualIS", "raw", "R@1", "gain", 0.0),
        Gate(COCO, "DualIS", "raw", "R@1", "gain", 0.0),
        Gate(FLICKR, "DualIS", "raw", "R@1", "gain", 0.0),
        Gate(COCO_PHOTOS, "DualIS", "raw", "R@1", "gain", 0.0),
        Gate(AERIAL, "DualIS", "raw", "R@1", "gain", 0.0),
        Gate(CLEAN, "DualIS", "raw", "R@1", "within", 1.0, control=True),
        Gate(CLEAN, "DualIS", "raw", "skew N_10", "within", 0.5, control=True),
        Gate(MISLEADING, "item bank only b2=20", "IS", "R@1", "at most", -2.0, control=True),
    ),
    seeds=(0, 1, 2),
    cpu_seconds=120,
    data=("clip_real_features", "photo_captions_en_mini", "aerial_captions_en"),
    note="The MSR-VTT matrix has no item-item similarities, so DualIS has only its query bank there.",
)

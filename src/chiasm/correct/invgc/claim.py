"""The claim of InvGC: subtracting what neighbors share spreads a crowded gallery and raises recall; without crowding it does not.

Worlds and gates are those of the method's card. The step is chosen on validation pairs taken from the bank; a step that is much too
large must be visibly worse. Inverted softmax on the same data is shown beside it: it is often stronger, but it is a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chiasm.claims import Claim, Data, Gate, Row
from chiasm.claims.banked import AERIAL, COCO, COCO_PHOTOS, FLICKR, Task, best, measure, of_world, real_tasks
from chiasm.correct.bias import Correction
from chiasm.correct.dbnorm import InvertedSoftmax
from chiasm.correct.invgc import InverseGraphConvolution, grid
from chiasm.measure.positives import Positives
from chiasm.worlds import pairs

CONE, CROWDED, WARNING, CLEAN = "cone world", "clusters world", "clusters world, pull 8", "clean world"


def run(seed: int, data: Data) -> Iterator[Row]:
    """Rows of one seed: the worlds always, the real sets where they are."""
    n, bank = (300, 800) if data.smoke else (1000, 4000)
    world = pairs.cone(n, bank, seed=seed)
    validation = _validation(world)
    yield from measure(
        of_world(CONE, world),
        {
            "full, chosen": lambda: best(validation, grid()),
            "LocalAdj, chosen": lambda: best(validation, grid(local=True)),
            "full, item bank only r=5": lambda: full(5, 0),
            "full, query bank only r=5": lambda: full(0, 5),
            "full, both r=5": lambda: full(5, 5),
            "full, both r=5, joint": lambda: full(5, 5, joint=True),
            "full, both r=20, unclamped": lambda: full(20, 20, safe=False),
            "IS": InvertedSoftmax,
        },
        degeneration=True,
    )
    yield from measure(
        of_world(CROWDED, pairs.clusters(n, bank, seed=seed)),
        {**{f"LocalAdj r={r:g}": local(r) for r in (0.6, 1.0, 2.0)}, "full, item bank only r=5": lambda: full(5, 0)},
        degeneration=True,
    )
    yield from measure(of_world(WARNING, pairs.clusters(n, bank, pull=8.0, seed=seed)), {"LocalAdj r=2": local(2.0)})
    arms: dict[str, Callable[[], Correction]] = {f"full r={r:g}": (lambda r=r: full(r, r)) for r in (0.5, 1.0, 2.0)}
    yield from measure(of_world(CLEAN, pairs.clean(n, bank, seed=seed)), arms)
    for task, held in real_tasks(seed, data):
        if task.item_bank is not None:
            yield from measure(
                task, {"chosen": lambda v=held: best(v, [*grid(), *grid(local=True)])}, degeneration=True
            )


def full(items: float, queries: float, **options: bool) -> InverseGraphConvolution:
    return InverseGraphConvolution(step_items=items, step_queries=queries, **options)


def local(step: float) -> Callable[[], Correction]:
    """LocalAdj with 1 % of both banks."""
    return lambda: InverseGraphConvolution(step_items=step, step_queries=step, pool_rate=0.01)


def _validation(world: pairs.PairWorld) -> Task:
    """A task of the same kind made of the last pairs of the bank; the rest of the bank stays its bank."""
    n = len(world.bank_text) // 4
    right = Positives.of(None, n, n)
    return Task(
        "validation", world.bank_text[-n:], world.bank_image[-n:], right, world.bank_text[:-n], world.bank_image[:-n]
    )


CLAIM = Claim(
    statement="Subtracting what an item shares with its neighbors in a bank, once and offline, spreads the gallery and raises recall.",
    run=run,
    gates=(
        Gate(CONE, "full, chosen", "raw", "R@1", "gain", 2.0),
        Gate(CONE, "full, chosen", "raw", "DeltaDeg", "gain", 0.0, lower_is_better=True),
        Gate(CROWDED, "LocalAdj r=1", "raw", "R@1", "gain", 0.5),
        # The card asks for a tenth less skewness; it is about 0.9 without a correction.
        Gate(CROWDED, "LocalAdj r=1", "raw", "skew N_10", "gain", 0.09, lower_is_better=True),
        Gate(COCO, "chosen", "raw", "R@1", "gain", 0.0),
        Gate(FLICKR, "chosen", "raw", "R@1", "gain", 0.0),
        Gate(COCO_PHOTOS, "chosen", "raw", "R@1", "gain", 0.0),
        Gate(AERIAL, "chosen", "raw", "R@1", "gain", 0.0),
        Gate(CONE, "full, both r=20, unclamped", "full, chosen", "R@1", "at most", -2.0, control=True),
        Gate(WARNING, "LocalAdj r=2", "raw", "R@1", "at most", -5.0, control=True),
        *(Gate(CLEAN, f"full r={r:g}", "raw", "R@1", "within", 0.5, control=True) for r in (0.5, 1.0, 2.0)),
    ),
    seeds=(0, 1, 2, 3, 4),
    cpu_seconds=120,
    data=("clip_real_features", "photo_captions_en_mini", "aerial_captions_en"),
    note="Two controls show the known harm: a step that is far too large, and LocalAdj at r = 2 on tight clusters.",
)

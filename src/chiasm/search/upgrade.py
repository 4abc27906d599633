"""A new space for a store that stays as it is: learn the map, say what it costs, begin, re-embed bit by bit, or go back.

    plan      learns the map from texts in both spaces and measures it; writes nothing
    begin     from then on queries are encoded by the new space and mapped, new items are stored mapped
    advance   re-embeds items, those that are shown most first; killed at any point it goes on where it was
    finish    all items have vectors of the new space: one replacement of the header goes over to them
    rollback  every old vector is put back, bit for bit

The header is the only switch: it names the space, the map's digest and the table, and is replaced in one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from chiasm.errors import BadInput
from chiasm.items import MODALITIES
from chiasm.kernels.topk import topk_inner
from chiasm.learn.alignment.xbt.criterion import Compatibility
from chiasm.learn.alignment.xbt.mapping import SpaceMap
from chiasm.measure import evaluate
from chiasm.search import grown, reembed
from chiasm.search.calibrate import null_phrases
from chiasm.search.header import SpaceRecord, UpgradeRecord, replace_file
from chiasm.search.mapped_space import FILE, FOLDER, MappedSpace
from chiasm.search.upgrade_notes import clear, writing
from chiasm.space import Space

if TYPE_CHECKING:
    from chiasm.search.exact import Snapshot
    from chiasm.search.store import Store

# Below this many texts the map knows too little of the language, and the report says so.
FEW_TEXTS = 1000
MOST_TEXTS = 20_000
HELD_OUT, MOST_HELD_OUT = 0.1, 500
ENOUGH_TO_CHOOSE = 40
# Passes over the texts, and optimizer steps at least.
EPOCHS, LEAST_STEPS, BATCH = 10, 150, 512
SAMPLE = 200
K = 10


@dataclass(frozen=True)
class UpgradeReport:
    """What an upgrade will cost, measured before anything is written; figures in [0, 1].

    Args:
        old, new: the spaces.
        texts: texts the map learned from; held_out: texts it was measured on.
        pairs: training and test pairs of stage 2, (0, 0) without.
        text_recall: share of held-out texts whose mapped vector finds their own old vector first.
        overlap: share of today's ten best hits that the mapped query also has among its ten best, over held-out texts.
        item_recall: share of sampled items whose mapped vector finds their own stored one first; NaN if there are none.
        items: sampled items that could be read and whose text the map did not learn from.
        compatibility: direction -> figures of `Compatibility.table` at R@10, if there were pairs.
        notes: what to know about these figures.
        kind: ``"closed form"`` (Procrustes) or ``"trained"``.
    """

    old: str
    new: str
    texts: int
    held_out: int
    pairs: tuple[int, int]
    text_recall: float
    overlap: float
    item_recall: float
    items: int
    compatibility: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kind: str = "trained"

    def to_json(self) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            return None if isinstance(value, float) and not np.isfinite(value) else value

        return plain(asdict(self))


@dataclass(frozen=True)
class Plan:
    """A trained map and its report; `begin` takes it."""

    map: SpaceMap
    report: UpgradeReport
    new: Space


def plan(
    store: Store,
    new: Space,
    texts: Sequence[str] | None = None,
    pairs: Any = None,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> Plan:
    """Learns the map into the store's space and measures it. Writes nothing.

    Args:
        store: a store whose space can encode text.
        new: the new space; it must encode text too.
        texts: captions, titles or past queries like those that will be asked; default: the store's own texts and everyday
            phrases, which are few.
        pairs: a `chiasm.learn.pair_table.PairTable`: stage 2 learns from its training pairs and the criterion is measured
            on its test pairs (on val where there is no test split).
        sample: items that are encoded again to see where they land.
        seed: of split, sample and training.
        options: arguments of `XBT`; default: a residual MLP that starts as the Procrustes map, or that map itself, see
            `_map`.

    Raises:
        BadInput: an empty store, an upgrade that is under way, the same space, a space without text, too few texts.
    """
    snapshot = store.snapshot()
    if snapshot is None or not snapshot.count:
        raise BadInput("is empty", where=str(store.path), fix="Index with the new space: chiasm index --space")
    _check_free(store)
    old = store.space
    own, other = (SpaceRecord.of(s.name, s.fingerprint) for s in (old, new))
    if own.digest == other.digest:
        raise BadInput(f"the store has this space already: {own}", where=str(store.path))
    for space in (old, new):
        if "text" not in space.modalities:
            raise BadInput(f"{space.name} does not encode text", where="upgrade", fix="The map is learned from texts")
    notes: list[str] = []
    words = _texts(snapshot, texts)
    if len(words) < FEW_TEXTS:
        notes.append(f"{len(words)} texts are few; give 1,000 or more like your queries with --texts")
    if missing := {MODALITIES[code] for code in snapshot.modalities if code >= 0} - set(new.modalities):
        notes.append(
            f"{new.name} does not encode {' and '.join(sorted(missing))}: such items stay as they are, so the upgrade "
            "serves mixed vectors and cannot finish"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(words))
    held = min(MOST_HELD_OUT, max(4, round(HELD_OUT * len(words))))
    if len(words) - held < 4:
        raise BadInput(f"{len(words)} distinct texts", where="upgrade", fix="Give more with --texts")
    # With so few there is nothing to choose by.
    chosen_by = held if len(words) >= ENOUGH_TO_CHOOSE else 0
    parts = np.split(order, [held, held + chosen_by])
    test_words, check_words, learn_words = ([words[i] for i in part] for part in parts)
    u, v = (space.encode(learn_words, role="query").vectors for space in (new, old))
    check = None
    if check_words:
        check = (new.encode(check_words, role="query").vectors, old.encode(check_words, role="query").vectors)
    tables = None if pairs is None else _pairs(old, new, pairs, notes)
    if tables is not None:
        u, v = np.concatenate([u, tables.train[1]]), np.concatenate([v, tables.train_old])

    found, kind = _map(snapshot, (u, v), check, tables, options, seed)
    found = replace(found, new_space=other.digest, old_space=own.digest)

    asked_old = old.encode(test_words, role="query").vectors
    asked_new = found(new.encode(test_words, role="query").vectors, "text")
    text_recall = evaluate(asked_new, asked_old, metrics=("hit@1",))["hit@1"]
    overlap = _overlap(snapshot, asked_new, asked_old)
    item_recall, items, lost = _items(snapshot, new, found, sample, rng, set(learn_words))
    if lost:
        share = f"{len(lost)} of {items + len(lost)} sampled items"
        notes.append(f"{share} cannot be embedded again ({next(iter(lost.values()))}): they would stay as they are")
    table = {} if tables is None else tables.judge(found)
    if not table:
        notes.append("Without --pairs (pictures with captions) recall itself cannot be measured, only agreement")
    counts = (0, 0) if tables is None else (len(tables.train[0]), len(tables.test[0]))
    report = UpgradeReport(
        str(own),
        str(other),
        len(u),
        len(test_words),
        counts,
        text_recall,
        overlap,
        item_recall,
        items,
        table,
        notes,
        kind,
    )
    return Plan(found, report, new)


def _map(
    snapshot: Snapshot,
    texts: tuple[np.ndarray, np.ndarray],
    check: tuple[np.ndarray, np.ndarray] | None,
    tables: _PairTables | None,
    options: dict[str, Any] | None,
    seed: int,
) -> tuple[SpaceMap, str]:
    """The map and what kind it is.

    Without pairs and options it is the closed-form map, or the trained one that starts from it, whichever agrees better
    with the old queries on texts that neither learned from: between two spaces that are much alike training does harm.
    """
    from chiasm.learn.alignment.xbt.xbt import XBT

    usual = {"form": "residual", "start": "procrustes", "seed": seed, **(options or {})}
    choose = tables is None and options is None
    closed = XBT(**usual).fit_text(*texts, steps=0).map if choose else None
    if closed is not None and check is None:
        return closed, "closed form"
    # Few texts are seen more often.
    xbt = XBT(**usual).fit_text(*texts, epochs=max(EPOCHS, LEAST_STEPS * BATCH / len(texts[0])))
    if tables is not None and len(tables.train[0]) >= 4:
        xbt.fit_pairs(*tables.train, groups=tables.groups)
    if closed is not None and check is not None:
        trained, plain = (_overlap(snapshot, one(check[0], "text"), check[1]) for one in (xbt.map, closed))
        if plain >= trained:
            return closed, "closed form"
    return xbt.map, "trained"


def _overlap(snapshot: Snapshot, new: np.ndarray, old: np.ndarray) -> float:
    """Share of the ten best items of the old queries that the new ones have among their ten best too."""
    k = min(K, snapshot.count)
    one, two = (topk_inner(queries, snapshot.vectors, k, bias=snapshot.bias)[1].tolist() for queries in (new, old))
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(one, two, strict=True)]))


def _check_free(store: Store) -> None:
    """Refuses a second upgrade, and one under a correction, which was fitted to today's vectors and queries."""
    found, correction = store.header.upgrade, store.header.correction
    if found is not None:
        fix = "Finish it, or roll it back with chiasm upgrade --rollback"
        if not found.under_way:
            fix = "Give up the way back of that one with chiasm upgrade --forget, or go it with --rollback"
        raise BadInput(
            f"an upgrade to {found.new} is {found.phase if found.under_way else 'finished but not forgotten'}",
            where=str(store.path),
            fix=fix,
        )
    if correction is not None:
        raise BadInput(
            f"the correction {correction.name} was fitted to today's vectors and does not fit another space's",
            where=str(store.path),
            fix="Undo it with chiasm correct --undo, and apply one again when the upgrade has finished",
        )


def _texts(snapshot: Snapshot, texts: Sequence[str] | None) -> list[str]:
    """Distinct texts to learn from."""
    if texts is not None:
        found = [t.strip() for t in texts]
    else:
        from chiasm.encode.pocket.bridge import class_names, with_article

        own = [t[:1000] for t in snapshot.column("text").to_pylist() if t]
        names = [word for c in class_names() for word in (c.name, *c.plain)]
        found = [*own, *null_phrases(), *(f"a photo of {with_article(name)}" for name in names if name)]
    return [t for t in dict.fromkeys(found) if t][:MOST_TEXTS]


@dataclass(frozen=True)
class _PairTables:
    """Pairs in both spaces."""

    train: tuple[np.ndarray, np.ndarray]
    train_old: np.ndarray
    groups: np.ndarray
    test: tuple[np.ndarray, np.ndarray]
    test_old: tuple[np.ndarray, np.ndarray]
    right: np.ndarray  # int [T, 2]: rows of picture and text

    def judge(self, found: SpaceMap) -> dict[str, dict[str, float]]:
        """The criterion at R@10 in both directions."""
        if not len(self.right):
            return {}
        from scipy.sparse import csr_matrix

        image, text = self.right.T
        shape = (len(self.test[0]), len(self.test[1]))
        true = csr_matrix((np.ones(len(image)), (image, text)), shape)
        hits: dict[str, dict[str, np.ndarray]] = {"old_old": {}, "new_old": {}, "new_new": {}}
        mapped = found(self.test[0], "image"), found(self.test[1], "text")
        for way, asks, answers, relevant in (("text to image", 1, 0, true.T.tocsr()), ("image to text", 0, 1, true)):
            galleries = {
                "old_old": (self.test_old[asks], self.test_old[answers]),
                "new_old": (mapped[asks], self.test_old[answers]),
                "new_new": (self.test[asks], self.test[answers]),
            }
            for name, (queries, gallery) in galleries.items():
                hits[name][way] = evaluate(queries, gallery, relevant, metrics=(f"hit@{K}",)).values[f"hit@{K}"]
        return Compatibility(**hits).table()


def _pairs(old: Space, new: Space, table: Any, notes: list[str]) -> _PairTables:
    """Encodes the items of a pair table in both spaces."""
    from chiasm.learn.frozen import frozen

    sides = [[frozen(space, entries) for entries in (table.a, table.b)] for space in (new, old)]
    failed = [{**sides[0][side].failed, **sides[1][side].failed} for side in (0, 1)]
    table = table.without(*failed)
    (new_a, new_b), (old_a, old_b) = ([one.arrays["vector"] for one in space] for space in sides)
    train = table.pairs[table.rows("train")]
    shown = next((n for n in ("test", "val") if len(table.rows(n))), None)
    if shown != "test":
        notes.append("The pairs have no test split" + ("" if shown is None else ": the figures are of val"))
    test = table.pairs[table.rows(shown)] if shown else np.empty((0, 2), np.int64)
    rows = [np.unique(test[:, side]) for side in (0, 1)]
    right = np.stack([np.searchsorted(rows[side], test[:, side]) for side in (0, 1)], axis=1)
    return _PairTables(
        (new_a[train[:, 0]], new_b[train[:, 1]]),
        old_b[train[:, 1]],
        train[:, 0],
        (new_a[rows[0]], new_b[rows[1]]),
        (old_a[rows[0]], old_b[rows[1]]),
        right,
    )


def _items(
    snapshot: Snapshot, new: Space, found: SpaceMap, sample: int, rng: np.random.Generator, learned: set[str]
) -> tuple[float, int, dict[str, str]]:
    """How often an item's mapped vector finds its own stored one first, of how many, and why others have none."""
    live = np.flatnonzero(snapshot.alive)
    rows = np.sort(rng.choice(live, min(sample, len(live)), replace=False))
    tried = reembed.originals(snapshot, rows)
    encoded, failed = reembed.encode(new, tried, batch_size=32)
    place = {record["id"]: int(row) for row, record in zip(rows, tried, strict=True)}
    # A text that the map learned from says nothing about others.
    ids = [r["id"] for r in tried if r["id"] in encoded and r["text"] not in learned]
    if not ids:
        return float("nan"), 0, failed
    kinds = {record["id"]: record["modality"] for record in tried}
    z = reembed.applied(found, np.stack([encoded[i] for i in ids]), [kinds[i] for i in ids])
    _, best = topk_inner(z, snapshot.vectors, 1, bias=np.where(snapshot.alive, 0, -np.inf).astype(np.float32))
    own = np.array([place[i] for i in ids])
    # Another item with the same vector (a copy) is as good as the item itself.
    same = (snapshot.vectors[best[:, 0]] * snapshot.vectors[own]).sum(axis=1) > 1 - 1e-6
    return float(same.mean()), len(ids), failed


def begin(store: Store, made: Plan) -> None:
    """Goes over to queries of the new space. The map is written first, the header last: either all of it or nothing.

    Raises:
        SpaceMismatch: the store has another space than the map was made for.
        StoreLocked: another process is writing.
    """
    with writing(store) as writer:
        own = store.header.space
        assert own is not None
        mapped = MappedSpace(made.new, made.map, own.name)
        _check_free(store)
        made.map.check(made.new.fingerprint.digest, own.digest, str(store.path))
        folder = store.path / FOLDER
        folder.mkdir(exist_ok=True)
        replace_file(folder / FILE, made.map.to_bytes())
        clear(store)
        seq = writer.table.search().select(["seq"]).to_arrow()["seq"]
        since = int(np.asarray(seq).max(initial=-1))
        new, before = SpaceRecord.of(made.new.name, made.new.fingerprint), store.header.grown
        record = UpgradeRecord(own, new, made.map.digest, since, grown=before)
        space = SpaceRecord.of(mapped.name, mapped.fingerprint)
        store.replace_header(space=space, upgrade=record, grown=grown.mark(mapped))
    store.use(mapped)


def under_way(store: Store, *phases: str) -> UpgradeRecord:
    """The upgrade's record.

    Raises:
        BadInput: there is none, or it is in another phase.
    """
    found = store.header.upgrade
    if found is None:
        raise BadInput("no upgrade is under way", where=str(store.path), fix="Begin one: chiasm upgrade --space NEW")
    if phases and found.phase not in phases:
        fix = "It is done: --rollback goes back, --forget gives up the way back"
        if found.phase == "rolling back":
            fix = "Run chiasm upgrade --rollback again"
        raise BadInput(f"the upgrade is {found.phase}", where=str(store.path), fix=fix)
    return found

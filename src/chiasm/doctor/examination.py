"""`examine`: measures a space on a sample, names its symptoms, tries the cures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.doctor import figures as measured
from chiasm.doctor.cures import Verdict, attempt, first_item, split
from chiasm.doctor.figures import Figure
from chiasm.doctor.report import Pictures, Report
from chiasm.doctor.retrieval import recall_figures
from chiasm.doctor.symptoms import find
from chiasm.doctor.vectors import checked, rows_of
from chiasm.errors import BadInput
from chiasm.measure.hubness import nearest
from chiasm.measure.positives import Positives

# Items (and as many queries) that are looked at: standard errors of the figures are then near 1 % of their spread, and
# the whole examination takes well below a minute at 512 dimensions.
SAMPLE = 8000
LEAST_ITEMS = 4
# Rows of a part of the gallery below which it gets no figures of its own.
LEAST_PART = 50
_DRAWN = 600
_PAIRS = 20_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled rows as unit vectors, and which of the items answer which of the queries.

    Args:
        items: ``[m, D]``.
        rows: their rows in the gallery ``[m]``.
        queries: ``[n, D]``, or None.
        right: scipy sparse ``[n, m]``, or None.
    """

    items: np.ndarray
    rows: np.ndarray
    queries: np.ndarray | None
    right: Any


def examine(
    gallery: Any,
    *,
    queries: Any = None,
    positives: Any = None,
    labels: Any = None,
    modality: Sequence[str] | None = None,
    names: tuple[str, str] = ("queries", "items"),
    sample: int = SAMPLE,
    seed: int = 0,
) -> Report:
    """Measures a space, names its symptoms and, where right answers are known, tries the cures.

    Everything is measured on a sample with 95 % intervals; memory is O((N + M) D). Where the gallery is sampled, hubness
    and the cures are those of a gallery of the sample's size; recall is measured in the whole gallery (up to 200,000
    items).

    Args:
        gallery: ``[M, D]``, numpy or torch, may be memory-mapped; compared by cosine.
        queries: ``[N, D]`` in the same space, for example the other modality; None: only the gallery is examined.
        positives: which items answer which query: ``"rows"`` (item i answers query i), an int array ``[N]`` with -1 for
            none, or another form that `chiasm.measure.Positives` takes. None: not known, then no gain can be measured.
        labels: ``[M]`` kinds of the items; with pairs they show intra-modal misalignment.
        modality: M names; parts of the gallery that are measured on their own.
        names: what to call queries and items in the report.
        sample: items, and at most as many queries, that are looked at; default 8,000.
        seed: of the sample, the splits and the intervals.

    Raises:
        BadInput: shapes that do not fit together, NaN or infinite values, fewer than four items, no queries,
            positives without queries.
    """
    start = time.perf_counter()
    gallery = checked(gallery, names[1], least=LEAST_ITEMS)
    queries = None if queries is None else checked(queries, names[0], least=1)
    right = _right(queries, gallery, positives, labels, modality)
    if sample < 50:
        raise BadInput(f"{sample} rows are too few", where="sample", fix="Use at least 50, better 8000")
    notes: list[str] = []
    taken = _draw(gallery, queries, right, sample, np.random.default_rng(seed))
    _note_zeros(taken, names, notes)
    figures, pictures, parts = _measure(taken, modality, labels, names, seed, notes)
    if right is not None and queries is not None:
        figures += recall_figures(queries, gallery, right, names, seed)
    found = find(figures, items=parts["items"], common=parts["common"], across=parts["across"])
    trials, verdict, raw = _treat(taken, found, seed, notes)
    if len(taken.items) < len(gallery):
        notes.append(
            f"{names[1].capitalize()}: {len(taken.items):,} of {len(gallery):,} were sampled. Hubness and gains are those "
            "of a gallery of that size; in the full one hubs are stronger."
        )
    facts = {
        "items": len(gallery),
        "queries": 0 if queries is None else len(queries),
        "pairs": 0 if right is None else int(right.nnz),
        "dimensions": gallery.shape[1],
        "sampled_items": len(taken.items),
        "sampled_queries": 0 if taken.queries is None else len(taken.queries),
        "seed": seed,
        "names": list(names),
    }
    return Report(facts, figures, found, trials, verdict, raw, notes, pictures, time.perf_counter() - start)


def _right(queries: Any, gallery: Any, positives: Any, labels: Any, modality: Any) -> Any:
    """Which item answers which query, scipy sparse ``[N, M]``, or None."""
    from scipy.sparse import csr_array

    for name, values in (("labels", labels), ("modality", modality)):
        if values is not None and len(values) != len(gallery):
            raise BadInput(f"{len(values)} values for {len(gallery)} items", where=name)
    if queries is None:
        if positives is not None:
            raise BadInput("positives need queries", where="examine", fix="Give queries=vectors")
        return None
    if queries.shape[1] != gallery.shape[1]:
        raise BadInput(
            f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}",
            where="examine",
            fix="Give vectors of one space",
        )
    if positives is None:
        return None
    rows = isinstance(positives, str)
    if rows and positives != "rows":
        raise BadInput(f"positives={positives!r} does not exist", where="examine", fix="Use 'rows' or item numbers")
    if rows and len(queries) != len(gallery):
        raise BadInput(f"{len(queries)} queries and {len(gallery)} items are not pairs", where="examine")
    found = Positives.of(None if rows else positives, len(queries), len(gallery))
    if not len(found.items):
        raise BadInput("no query has a right item", where="positives")
    return csr_array((np.ones(len(found.items), np.float32), found.items, found.indptr), (len(queries), len(gallery)))


def _draw(gallery: np.ndarray, queries: np.ndarray | None, right: Any, sample: int, rng: np.random.Generator) -> Sample:
    """Queries with answers first, then their items, then others, up to the sample's size."""
    if queries is None or right is None:
        rows = _some(len(gallery), sample, rng)
        asked = None if queries is None else rows_of(queries, _some(len(queries), sample, rng))
        return Sample(rows_of(gallery, rows), rows, asked, None)
    first = first_item(right)
    answered = np.flatnonzero(first >= 0)
    asked = np.sort(rng.permutation(answered)[:sample])
    wanted = np.unique(first[asked])
    others = np.setdiff1d(np.arange(len(gallery)), wanted, assume_unique=True)
    items = np.sort(np.concatenate([wanted, rng.permutation(others)[: sample - len(wanted)]]))
    if len(asked) < sample:  # queries without an answer are still old queries: they serve as a bank
        idle = np.flatnonzero(first < 0)
        asked = np.sort(np.concatenate([asked, rng.permutation(idle)[: sample - len(asked)]]))
    return Sample(rows_of(gallery, items), items, rows_of(queries, asked), right[asked][:, items])


def _some(n: int, sample: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(n) if n <= sample else np.sort(rng.choice(n, sample, replace=False))


def _note_zeros(taken: Sample, names: tuple[str, str], notes: list[str]) -> None:
    for name, rows in ((names[0], taken.queries), (names[1], taken.items)):
        zero = 0 if rows is None else int((~rows.any(axis=1)).sum())
        if zero and rows is not None:
            notes.append(f"{zero:,} of {len(rows):,} sampled {name} are zero vectors: nothing can find them.")


def _measure(
    taken: Sample, modality: Sequence[str] | None, labels: Any, names: tuple[str, str], seed: int, notes: list[str]
) -> tuple[list[Figure], Pictures, dict[str, list[str]]]:
    """All figures that need no search of the whole gallery, the charts' data, and the names of the parts by kind."""
    sides = _parts(taken, modality, names[1])
    figures: list[Figure] = []
    for name, rows in sides.items():
        figures += measured.shape_figures(name, rows, seed)
    pictures = Pictures()
    pairs: list[tuple[str, str]] = []
    listed = (
        list(sides)[1:] if len(sides) > 1 else list(sides)
    )  # the whole gallery, then its modalities if it has several
    if taken.queries is not None and len(taken.queries) >= LEAST_ITEMS:
        if len(taken.queries) >= LEAST_PART:
            figures += measured.shape_figures(names[0], taken.queries, seed)
        pairs = [(names[0], name) for name in listed]
    pairs += [(listed[0], name) for name in listed[1:]]
    both = sides if taken.queries is None else {names[0]: taken.queries} | sides
    across = []
    for a, b in pairs:
        across.append(f"{a} and {b}")
        figures += measured.gap_figures(across[-1], both[a], both[b], seed)[0]
    _hubs(taken, names, figures, pictures, seed, notes)
    matched = _matched(taken)
    if taken.queries is not None and matched is not None:
        a, b = taken.queries[matched[0]], taken.items[matched[1]]
        figures += measured.pair_figures("pairs", a, b, seed)[0]
        if labels is not None:
            kinds = np.asarray(labels)[taken.rows[matched[1]]]
            figures += measured.label_figures(names[1], b, a, kinds, seed)
    _draw_pictures(both, listed, names, taken, matched, pictures, seed)
    return figures, pictures, {"items": listed, "common": across or listed, "across": across}


def _parts(taken: Sample, modality: Sequence[str] | None, name: str) -> dict[str, np.ndarray]:
    """The gallery, followed by its modalities if it has more than one, the largest first."""
    sides = {name: taken.items}
    if modality is not None:
        of = np.asarray(modality)[taken.rows]
        kinds, counts = np.unique(of, return_counts=True)
        large = [str(k) for k, n in sorted(zip(kinds, counts), key=lambda pair: -pair[1]) if n >= LEAST_PART]
        if len(large) > 1:
            sides |= {kind: taken.items[of == kind] for kind in large}
    return sides


def _hubs(
    taken: Sample, names: tuple[str, str], figures: list[Figure], pictures: Pictures, seed: int, notes: list[str]
) -> None:
    """Hubness in both directions; without queries that of the gallery among itself."""
    if len(taken.items) < 4 * measured.K:
        notes.append(f"{len(taken.items)} items are too few to speak of hubs.")
        return
    directions = [(f"{names[1]} found by {names[0]}", taken.queries, taken.items)]
    if taken.queries is None:
        directions = [(f"{names[1]} among themselves", taken.items, None)]
    elif len(taken.queries) >= 4 * measured.K:
        directions.append((f"{names[0]} found by {names[1]}", taken.items, taken.queries))
    for part, asked, found in directions:
        lists = nearest(asked, found, measured.K)[1]
        # Few queries leave few places; skewness then measures their number, not the space.
        found_in = len(taken.items if found is None else found)
        if len(lists) * measured.K < found_in:
            notes.append(f"{part}: {len(lists):,} queries are too few for hubness over {found_in:,} items.")
            continue
        new, pictures.counts[part] = measured.hub_figures(part, lists, found_in, seed)
        figures += new


def _matched(taken: Sample) -> tuple[np.ndarray, np.ndarray] | None:
    """One query for each item and one item for each query: independent pairs, as rows of the sample."""
    if taken.right is None:
        return None
    first = first_item(taken.right)
    asked = np.flatnonzero(first >= 0)
    items, place = np.unique(first[asked], return_index=True)
    return (asked[place], items) if len(items) else None


def _draw_pictures(
    both: dict[str, np.ndarray],
    listed: Sequence[str],
    names: tuple[str, str],
    taken: Sample,
    matched: tuple[np.ndarray, np.ndarray] | None,
    pictures: Pictures,
    seed: int,
) -> None:
    """Fills in the cosines of random pairs and the two main axes."""
    rng = np.random.default_rng(seed)

    def cosines(a: np.ndarray, b: np.ndarray, *, inside: bool) -> np.ndarray:
        n = min(_PAIRS, len(a) * len(b))
        i, j = rng.integers(len(a), size=n), rng.integers(len(b), size=n)
        keep = i != j if inside else np.full(n, True)
        return np.einsum("nd,nd->n", a[i[keep]], b[j[keep]])

    if taken.queries is not None:
        if matched is not None:
            rows = rng.permutation(len(matched[0]))[:_PAIRS]
            pictures.similarities["matched"] = np.einsum(
                "nd,nd->n", taken.queries[matched[0][rows]], taken.items[matched[1][rows]]
            )
        pictures.similarities["mismatched" if matched is not None else f"{names[0]} and {names[1]}"] = cosines(
            taken.queries, taken.items, inside=False
        )
    shown = ([names[0]] if taken.queries is not None else []) + list(listed)
    for name in shown:
        pictures.similarities[f"{name} among themselves"] = cosines(both[name], both[name], inside=True)
    drawn = {name: measured.subsample(both[name], _DRAWN, seed) for name in shown}
    every = np.concatenate(list(drawn.values()))
    center = every.mean(axis=0)
    _, values, axes = np.linalg.svd(every - center, full_matrices=False)
    total = float((values**2).sum())
    width = min(2, len(values))
    for name, rows in drawn.items():
        flat = np.zeros((len(rows), 2), np.float32)
        flat[:, :width] = (rows - center) @ axes[:width].T
        pictures.points[name] = flat
    if total > 0:
        shares = np.zeros(2)
        shares[:width] = values[:width] ** 2 / total
        pictures.explained = (float(shares[0]), float(shares[1]))


def _treat(taken: Sample, found: Sequence[Any], seed: int, notes: list[str]) -> tuple[list[Any], Verdict, Any]:
    """The trials, if right answers are known and there are enough of them."""
    if taken.queries is None or taken.right is None:
        named = ", ".join(s.name for s in found)
        text = f"Symptoms: {named}." if named else "No symptom was found."
        ask = "Give --pairs (which query belongs to which item) and the cures are tried and their gain is measured."
        return [], Verdict(None, False, f"{text} Without known right answers no gain can be measured. {ask}"), None
    if found and found[0].name == "collapse":
        return (
            [],
            Verdict(None, False, "The vectors have collapsed; no correction of scores helps. Repair the encoder."),
            None,
        )
    parts = split(taken.queries, taken.items, taken.right, seed)
    if parts is None:
        text = "Too few pairs to measure a gain: at least 70 items with a query are needed, better 2,000."
        return [], Verdict(None, False, text), None
    trials, verdict, raw = attempt(parts, seed=seed)
    sizes = parts.to_json()
    notes.append(
        f"Cures: bank of {sizes['bank_queries']:,} queries and {sizes['bank_items']:,} items, strengths chosen on "
        f"{sizes['choosing_queries']:,} queries, gains measured on {sizes['checking_queries']:,} other queries in "
        f"{sizes['checking_items']:,} other items."
    )
    return trials, verdict, raw

"""Ranking evaluator: recall, precision, AP, R-precision, MRR, nDCG and ranks, with every choice declared.

Three entrances give the same `RankingReport`: `evaluate` (embeddings, streamed), `evaluate_scores` (a score matrix) and
`evaluate_lists` (ranked id lists of any search engine).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from chiasm.errors import BadInput, unknown_name
from chiasm.measure.figures import Figures, Gain, Normalization, compute
from chiasm.measure.intervals import Interval, difference_interval, mean_interval
from chiasm.measure.positives import Positives, self_matches
from chiasm.measure.ranks import Ranks, Ties, count, count_lists, count_matrix, join
from chiasm.measure.vectors import as_rows, rows_at_once, same_dim, to_numpy

DEFAULT = ("recall@1", "recall@5", "recall@10", "map", "mrr", "ndcg@10", "median_rank", "mean_rank")

# name -> how it takes a cut-off: "never", "may" or "must"; AP may also be cut at R.
_NAMES = {
    "recall": "must",
    "hit": "must",
    "precision": "must",
    "map": "may",
    "mrr": "may",
    "ndcg": "may",
    "r_precision": "never",
    "minp": "never",
    "median_rank": "never",
    "mean_rank": "never",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked of an evaluation.

    Args:
        metrics: names: ``recall@k`` (share of the positives found), ``hit@k`` (at least one found; what image-text
            papers call R@k; equal to recall with one positive a query), ``precision@k``, ``map``, ``map@k``, ``map@R``,
            ``mrr``, ``mrr@k``, ``ndcg``, ``ndcg@k``, ``r_precision``, ``minp`` (R positives: R over the place of the
            last), ``median_rank``, ``mean_rank`` (of the first positive, from 1).
        ties: ``"pessimistic"`` (default: equal scores count against the model), ``"optimistic"`` or ``"expected"``
            (exact expectation over all orders of tied items).
        filtered: rank each positive with the query's other positives removed and average over positives, as for
            knowledge graphs.
        ap_normalization: ``"min(R,k)"`` (default) or ``"R"`` (trec_eval); see `Figures`.
        gain: ``"linear"`` (default) or ``"exponential"``; see `Figures`.
    """

    metrics: Sequence[str] = DEFAULT
    ties: Ties = "pessimistic"
    filtered: bool = False
    ap_normalization: Normalization = "min(R,k)"
    gain: Gain = "linear"

    def __post_init__(self) -> None:
        for name in self.metrics:
            parse(name)
        if self.ap_normalization not in ("min(R,k)", "R"):
            raise BadInput(
                f"{self.ap_normalization!r} does not exist", where="ap_normalization", fix="Use 'min(R,k)' or 'R'"
            )
        if self.gain not in ("linear", "exponential"):
            raise BadInput(f"{self.gain!r} does not exist", where="gain", fix="Use 'linear' or 'exponential'")


@dataclass(frozen=True, slots=True)
class RankingReport:
    """Figures of N queries; ``report["recall@10"]`` is the average.

    Args:
        values: metric -> per-query figures ``[N]``, NaN for queries without positives (they are not averaged, but
            counted).
        ranks: places of all positives, from which further figures can be made.
        options: what was asked.
        without_positives: number of queries that have none.
    """

    values: dict[str, np.ndarray]
    ranks: Ranks
    options: Options
    without_positives: int

    def __len__(self) -> int:
        return len(self.ranks)

    def __getitem__(self, name: str) -> float:
        """Mean over the queries that have positives (median for ``median_rank``); NaN if none has."""
        values = self._of(name)
        values = values[~np.isnan(values)]
        if not len(values):
            return float("nan")
        return float(np.median(values) if name == "median_rank" else values.mean())

    @property
    def means(self) -> dict[str, float]:
        return {name: self[name] for name in self.values}

    def interval(self, name: str, **options: Any) -> Interval:
        """Bootstrap interval of a mean; options as in `mean_interval`."""
        return mean_interval(self._of(name), **options)

    def compare(self, other: RankingReport, name: str, **options: Any) -> Interval:
        """Paired bootstrap interval of ``self - other`` over the same queries."""
        return difference_interval(self._of(name), other._of(name), **options)

    def to_json(self, *, per_query: bool = False) -> dict[str, Any]:
        """Averages and choices; with ``per_query`` also all values. Values that are not finite become None."""
        out: dict[str, Any] = {
            "metrics": {name: _finite(value) for name, value in self.means.items()},
            "queries": len(self),
            "without_positives": self.without_positives,
            "positives": len(self.ranks.before),
            "ties": self.options.ties,
            "filtered": self.options.filtered,
            "ap_normalization": self.options.ap_normalization,
            "gain": self.options.gain,
        }
        if per_query:
            out["per_query"] = {name: [_finite(v) for v in values.tolist()] for name, values in self.values.items()}
        return out

    def _of(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise unknown_name("metric of this report", name, self.values)
        return self.values[name]


def evaluate(
    queries: Any,
    gallery: Any,
    positives: Any = None,
    *,
    similarity: str | Callable[[Any, Any], Any] = "cosine",
    bias: Any = None,
    gains: Any = None,
    exclude_self: bool = False,
    ignore: Any = None,
    resolution: float = 2.0**-20,
    chunk: int | None = None,
    **options: Any,
) -> RankingReport:
    """Evaluates a search of ``queries`` in ``gallery``; one block of queries at a time, so memory is O(chunk M).

    Args:
        queries: ``[N, D]``.
        gallery: ``[M, D]``.
        positives: which items answer which query: None (item i answers query i), int ``[N]``, N index sequences, a
            scipy sparse or dense matrix ``[N, M]`` (values above 0 are grades), or `Positives`, for example of
            `same_label`.
        similarity: ``"cosine"``, ``"inner"`` or a callable ``(queries [n, D], gallery [M, D]) -> [n, M]``, larger is
            closer.
        bias: optional ``[M]``, added to every item's score (a folded correction).
        gains: grades beside index sequences.
        exclude_self: query i is item i: it does not compete, and is no positive of itself.
        ignore: further items that do not compete for a query (junk, answers known from training), in the forms of
            ``positives``.
        resolution: differences of scores below this, relative to the largest possible score, are ties: matrix products
            round equal rows differently by some 1e-7. Default 2^-20. Not used with a callable.
        chunk: queries at a time; default what fits into 128 MB of scores.
        **options: ``metrics``, ``ties``, ``filtered``, ``ap_normalization``, ``gain``; see `Options`.

    Raises:
        BadInput: shapes that do not fit, NaN, item numbers outside the gallery.
        UnknownName: a metric that does not exist.
    """
    asked = _options(options)
    normalize = similarity == "cosine"
    queries, gallery = (as_rows(v, w, normalize=normalize) for v, w in ((queries, "queries"), (gallery, "gallery")))
    n, m = queries.shape[0], gallery.shape[0]
    if positives is None and exclude_self:
        raise BadInput(
            "item i cannot answer query i and be excluded", where="positives", fix="Say which items answer which query"
        )
    found = Positives.of(positives, n, m, gains=gains)
    junk = _ignored(ignore, exclude_self, n, m)
    if callable(similarity):
        score = similarity
        if bias is not None:
            raise BadInput("a bias goes with 'cosine' or 'inner'", where="bias", fix="Add it inside the similarity")
    elif similarity in ("cosine", "inner"):
        same_dim(queries, gallery, "queries and gallery")
        queries, score = _rounded_products(queries, gallery, bias, resolution)
    else:
        raise unknown_name("similarity", similarity, ("cosine", "inner"))
    parts, step = [], rows_at_once(m, chunk)
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        block = score(queries[rows, :], gallery)
        parts.append(count(block, found[rows], None if junk is None else junk[rows], owned=not callable(similarity)))
    return report_of(join(parts), asked)


def evaluate_scores(
    scores: Any,
    positives: Any = None,
    *,
    gains: Any = None,
    exclude_self: bool = False,
    ignore: Any = None,
    chunk: int | None = None,
    **options: Any,
) -> RankingReport:
    """Evaluates a score matrix ``[N, M]``, larger is better; scores are compared exactly as they are.

    Args:
        scores: ``[N, M]``; NaN marks an item that does not compete for a query, it may not be a positive.
        positives, gains, exclude_self, ignore, chunk, **options: as in `evaluate`.

    Raises:
        BadInput: as in `evaluate`, and a positive whose score is NaN.
    """
    asked = _options(options)
    if hasattr(scores, "detach"):
        scores = scores.detach()
    if not hasattr(scores, "shape"):
        scores = np.asarray(scores)
    if scores.ndim != 2:
        raise BadInput(f"scores must be [N, M], got shape {tuple(scores.shape)}", where="scores")
    xp = array_namespace(scores)
    if not xp.isdtype(scores.dtype, "real floating"):
        scores = xp.astype(scores, xp.float64)
    n, m = scores.shape
    if positives is None and exclude_self:
        raise BadInput(
            "item i cannot answer query i and be excluded", where="positives", fix="Say which items answer which query"
        )
    found = Positives.of(positives, n, m, gains=gains)
    return report_of(count_matrix(scores, found, _ignored(ignore, exclude_self, n, m), chunk), asked)


def evaluate_lists(
    ids: Any,
    positives: Any,
    *,
    scores: Any = None,
    gains: Any = None,
    n_items: int | None = None,
    **options: Any,
) -> RankingReport:
    """Evaluates ranked lists of item numbers, the results of any search engine.

    Args:
        ids: int ``[N, K]``, best first, -1 where a list is shorter. An item listed twice counts at its best place.
        positives: as in `evaluate`.
        scores: optional ``[N, K]``; then they are the ranking (with its ties) and the order of the columns is not used.
        gains: as in `evaluate`.
        n_items: M. Positives that are not in the list are then tied over the places behind it; without it they count as
            never retrieved (rank infinite, every other figure 0).
        **options: see `Options`.

    Raises:
        BadInput: shapes that do not fit, NaN scores of listed items.
    """
    asked = _options(options)
    ids = to_numpy(ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise BadInput(f"ids must be integers [N, K], got {ids.dtype} {ids.shape}", where="ids")
    found = Positives.of(positives, len(ids), n_items, gains=gains)
    if n_items is not None and ids.max(initial=-1) >= n_items:
        raise BadInput(f"item {ids.max()} is listed, the gallery has {n_items}", where="ids")
    if scores is not None:
        scores = to_numpy(scores)
        if scores.shape != ids.shape:
            raise BadInput(f"scores {scores.shape} beside ids {ids.shape}", where="scores")
        if np.isnan(scores[ids >= 0]).any():
            raise BadInput("NaN among the scores of listed items", where="scores")
    return report_of(count_lists(ids, scores, found, n_items), asked)


def report_of(ranks: Ranks, options: Options) -> RankingReport:
    """The figures of ranks that are already counted, for example under another tie policy."""
    flat = ranks.apart() if options.filtered else ranks
    figures = Figures(flat.resolve(options.ties), options.ap_normalization, options.gain)
    values = {name: compute(*parse(name), figures) for name in options.metrics}
    counts = ranks.counts
    if options.filtered:  # back from positives to queries
        safe = np.where(counts > 0, counts, np.nan)
        values = {name: np.bincount(ranks.queries, v, minlength=len(ranks)) / safe for name, v in values.items()}
    return RankingReport(values, ranks, replace(options, metrics=tuple(options.metrics)), int((counts == 0).sum()))


def parse(name: str) -> tuple[str, int | str | None]:
    """``"recall@10"`` -> ``("recall", 10)``; ``"map@R"`` -> ``("map", "R")``; ``"mrr"`` -> ``("mrr", None)``.

    Raises:
        UnknownName: no such metric.
        BadInput: a cut-off is missing, not allowed or not positive.
    """
    match = re.fullmatch(r"([a-z_]+)(?:@(\d+|R))?", name)
    if not match or match[1] not in _NAMES:
        raise unknown_name("metric", name, [base if how != "must" else f"{base}@k" for base, how in _NAMES.items()])
    base, cut = match[1], match[2]
    how = _NAMES[base]
    if (
        (how == "must" and cut is None)
        or (how == "never" and cut is not None)
        or (cut == "R" and base != "map")
        or cut == "0"
    ):
        need = {"must": f"{base}@k with k >= 1", "never": base, "may": f"{base} or {base}@k with k >= 1"}[how]
        raise BadInput(f"metric {name!r} is not complete", where="metrics", fix=f"Write {need}")
    return base, cut if cut in (None, "R") else int(cut)


def _rounded_products(
    queries: Any, gallery: Any, bias: Any, resolution: float
) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Scaled queries and a score function whose values are multiples of the resolution."""
    xp = array_namespace(queries, gallery)
    if bias is not None:
        bias = xp.asarray(bias, dtype=xp.float32, device=device(gallery))
        if tuple(bias.shape) != (gallery.shape[0],) or not bool(xp.all(xp.isfinite(bias))):
            raise BadInput(f"bias of shape {tuple(bias.shape)} must be [M], finite", where="bias")
    scale = 1.0
    if resolution > 0 and queries.shape[0] and gallery.shape[0]:
        largest = float(xp.sqrt(xp.max(xp.sum(queries**2, axis=1))) * xp.sqrt(xp.max(xp.sum(gallery**2, axis=1))))
        largest += 0.0 if bias is None else float(xp.max(xp.abs(bias)))
        # A power of two, so that scaling itself does not round.
        scale = 2.0 ** -np.floor(np.log2(resolution * largest)) if largest > 0 else 1.0

    def score(block: Any, items: Any) -> Any:
        values = block @ xp.matrix_transpose(items)
        if bias is not None:
            values = values + bias * scale
        return xp.round(values) if resolution > 0 else values

    return queries * scale, score


def _ignored(ignore: Any, exclude_self: bool, n: int, m: int) -> Positives | None:
    if exclude_self:
        if n != m:
            raise BadInput(f"{n} queries and {m} items: query i is not item i", where="exclude_self", fix="Use ignore")
        if ignore is None:
            return self_matches(n)
        junk = Positives.of(ignore, n, m)
        rows = [np.append(junk.items[a:b], i) for i, (a, b) in enumerate(zip(junk.indptr[:-1], junk.indptr[1:]))]
        return Positives.of(rows, n, m)
    return None if ignore is None else Positives.of(ignore, n, m)


def _options(options: dict[str, Any]) -> Options:
    known = Options.__dataclass_fields__
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    return Options(**options)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None

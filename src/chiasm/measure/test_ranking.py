"""Ranking figures against definitions, pytrec_eval, scikit-learn, all tie orders, and hostile input."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.errors import BadInput, UnknownName
from chiasm.measure.positives import Positives, same_label
from chiasm.measure.ranking import evaluate, evaluate_lists, evaluate_scores

ALL = (
    "recall@3",
    "hit@3",
    "precision@3",
    "map",
    "map@3",
    "map@R",
    "mrr",
    "mrr@2",
    "ndcg",
    "ndcg@3",
    "r_precision",
    "minp",
    "mean_rank",
)


def textbook(
    order: list[int], gains: dict[int, float], *, exponential: bool = False, by_r: bool = False
) -> dict[str, float]:
    """The metrics of ``ALL`` for one query by plain loops over a ranked list."""
    total = len(gains)
    relevant = [item in gains for item in order]
    places = [i + 1 for i, hit in enumerate(relevant) if hit]

    def precision(k: int) -> float:
        return sum(relevant[:k]) / k

    def ap(k: int, bound: int) -> float:
        return sum(precision(i) for i in places if i <= k) / bound

    def value(g: float) -> float:
        return 2**g - 1 if exponential else g

    def dcg(items: list[float], k: int) -> float:
        return sum(value(g) / np.log2(i + 2) for i, g in enumerate(items[:k]))

    listed, ideal = [gains.get(item, 0.0) for item in order], sorted(gains.values(), reverse=True)
    n = len(order)
    return {
        "recall@3": sum(relevant[:3]) / total,
        "hit@3": float(any(relevant[:3])),
        "precision@3": precision(3),
        "map": ap(n, total),
        "map@3": ap(3, total if by_r else min(total, 3)),
        "map@R": ap(total, total),
        "mrr": 1 / places[0],
        "mrr@2": 1 / places[0] if places[0] <= 2 else 0.0,
        "ndcg": dcg(listed, n) / dcg(ideal, n),
        "ndcg@3": dcg(listed, 3) / dcg(ideal, 3),
        "r_precision": precision(total),
        "minp": total / places[-1] if len(places) == total else 0.0,
        "mean_rank": float(places[0]),
    }


def world(seed: int, n: int = 12, m: int = 30, levels: int | None = None, most: int = 9):
    """Scores (with ties if ``levels``) and graded positives of n queries."""
    rng = np.random.default_rng(seed)
    scores = rng.random((n, m)) if levels is None else rng.integers(levels, size=(n, m)).astype(float)
    positives = [rng.choice(m, rng.integers(1, most), replace=False) for _ in range(n)]
    gains = [rng.integers(1, 4, size=len(p)).astype(float) for p in positives]
    return scores, positives, gains


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize("by_r", [False, True])
@pytest.mark.parametrize("most", [4, 12])  # few: counted by comparison; many: by sorting
def test_equals_plain_loops(exponential, by_r, most):
    scores, positives, gains = world(0, most=most)
    options = {"gain": "exponential" if exponential else "linear", "ap_normalization": "R" if by_r else "min(R,k)"}
    report = evaluate_scores(scores, positives, gains=gains, metrics=ALL, **options)
    for i, row in enumerate(scores):
        wanted = textbook(
            np.argsort(-row).tolist(), dict(zip(positives[i], gains[i])), exponential=exponential, by_r=by_r
        )
        for name in ALL:
            assert report.values[name][i] == pytest.approx(wanted[name], abs=1e-12), name


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "expected"])
def test_ties_equal_all_orders(ties):
    """Pessimistic and optimistic are the worst and best order, expected is the mean over all of them."""
    rng = np.random.default_rng(1)
    for trial in range(8):
        scores = rng.integers(3, size=(1, 6)).astype(float)
        positives = rng.choice(6, rng.integers(1, 5), replace=False)
        gains = rng.integers(1, 4, size=len(positives)).astype(float)
        grade = dict(zip(positives.tolist(), gains.tolist()))
        orders = {tuple(sorted(order, key=lambda item: -scores[0, item])) for order in itertools.permutations(range(6))}
        outcomes = [textbook(list(order), grade) for order in orders]
        report = evaluate_scores(scores, [positives], gains=[gains], metrics=ALL, ties=ties)
        for name in ALL:
            values = [outcome[name] for outcome in outcomes]
            worst, best = (max, min) if name == "mean_rank" else (min, max)
            wanted = {"pessimistic": worst, "optimistic": best, "expected": np.mean}[ties](values)
            assert report[name] == pytest.approx(wanted, abs=1e-10), (trial, name)


def test_equals_pytrec_eval():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores, positives, gains = world(2, n=40, m=60)
    ids = np.argsort(-scores, axis=1)[:, :25]
    listed = np.take_along_axis(scores, ids, axis=1)
    names = {
        "map": "map",
        "map@10": "map_cut_10",
        "ndcg": "ndcg",
        "ndcg@10": "ndcg_cut_10",
        "precision@5": "P_5",
        "recall@10": "recall_10",
        "hit@1": "success_1",
        "mrr": "recip_rank",
        "r_precision": "Rprec",
    }
    report = evaluate_lists(ids, positives, scores=listed, gains=gains, metrics=list(names), ap_normalization="R")
    truth = {str(q): {str(i): int(g) for i, g in zip(p, gain)} for q, (p, gain) in enumerate(zip(positives, gains))}
    run = {str(q): {str(i): float(s) for i, s in zip(a, b)} for q, (a, b) in enumerate(zip(ids, listed))}
    wanted = pytrec_eval.RelevanceEvaluator(truth, pytrec_eval.supported_measures).evaluate(run)
    for ours, theirs in names.items():
        np.testing.assert_allclose(
            report.values[ours], [wanted[str(q)][theirs] for q in range(40)], atol=1e-9, err_msg=ours
        )


@pytest.mark.parametrize("levels", [None, 4])
def test_equals_scikit_learn(levels):
    from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

    scores, positives, gains = world(3, levels=levels)
    truth = Positives.of(positives, 12, 30, gains=gains)
    dense = np.zeros(scores.shape)
    dense[truth.queries, truth.items] = truth.gains
    # scikit-learn averages nDCG over tied orders (McSherry & Najork), as "expected" does.
    report = evaluate_scores(scores, positives, gains=gains, metrics=("ndcg", "ndcg@5", "map"), ties="expected")
    assert report["ndcg"] == pytest.approx(ndcg_score(dense, scores))
    assert report["ndcg@5"] == pytest.approx(ndcg_score(dense, scores, k=5))
    if levels is None:
        assert report["map"] == pytest.approx(label_ranking_average_precision_score(dense > 0, scores))
        each = [average_precision_score(t > 0, s) for t, s in zip(dense, scores)]
        np.testing.assert_allclose(report.values["map"], each)


@pytest.mark.parametrize("collapsed", [np.ones((60, 8)), np.zeros((60, 8)), np.full((60, 8), 0.3)])
def test_a_collapsed_model_gets_nothing(collapsed):
    report = evaluate(collapsed, collapsed)
    assert report["recall@10"] == 0
    assert report["median_rank"] == 60
    expected = evaluate(collapsed, collapsed, ties="expected", metrics=("recall@1", "recall@10", "mrr", "mean_rank"))
    assert expected["recall@1"] == pytest.approx(1 / 60)
    assert expected["recall@10"] == pytest.approx(10 / 60)
    assert expected["mrr"] == pytest.approx((1 / np.arange(1, 61)).mean())
    assert expected["mean_rank"] == pytest.approx(30.5)
    assert evaluate(collapsed, collapsed, ties="optimistic")["recall@1"] == 1


def test_duplicates_of_a_positive_count_against_the_model_whatever_the_blas_does():
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.normal(size=(133, 77)), 3, axis=0)
    report = evaluate(gallery[::3] * 7, gallery, np.arange(0, 399, 3), metrics=("mean_rank",), chunk=11)
    assert (report.values["mean_rank"] == 3).all()


@pytest.mark.parametrize("kind", ["cosine", "inner", "bias", "callable"])
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_streamed_equals_the_matrix(kind, chunk):
    rng = np.random.default_rng(4)
    queries, gallery = rng.normal(size=(30, 16)).astype("f4"), rng.normal(size=(50, 16)).astype("f4")
    positives = [rng.choice(50, rng.integers(0, 9), replace=False) for _ in range(30)]
    bias = rng.normal(size=50).astype("f4") if kind == "bias" else None
    scores = queries @ gallery.T
    options: dict = {"similarity": kind}
    if kind in ("cosine", "bias"):
        scores = scores / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
        options = {"bias": bias}
    if kind == "callable":
        scores, options = -np.abs(scores), {"similarity": lambda a, b: -np.abs(a @ b.T)}
    before = queries.copy(), gallery.copy()
    streamed = evaluate(queries, gallery, positives, metrics=ALL, chunk=chunk, **options)
    whole = evaluate_scores(scores if bias is None else scores + bias, positives, metrics=ALL, chunk=chunk)
    for name in ALL:
        np.testing.assert_allclose(streamed.values[name], whole.values[name], err_msg=name)
    assert (queries == before[0]).all()
    assert (gallery == before[1]).all()


def test_torch_equals_numpy():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(40, 8)).astype("f4"), rng.normal(size=(40, 8)).astype("f4")
    labels = rng.integers(4, size=40)
    for positives in (None, same_label(labels, labels)):
        ours = evaluate(a, b, positives, metrics=ALL)
        theirs = evaluate(torch.tensor(a, requires_grad=True), torch.tensor(b), positives, metrics=ALL)
        for name in ALL:
            np.testing.assert_allclose(ours.values[name], theirs.values[name], err_msg=name)
    scores = torch.tensor(a @ b.T)
    junk = [[1, 2]] * 40
    left = evaluate_scores(scores, same_label(labels, labels), ignore=junk)
    right = evaluate_scores(scores.numpy(), same_label(labels, labels), ignore=junk)
    assert left.means == right.means
    assert bool(torch.isfinite(scores).all())  # the input was not written to


def test_lists_equal_the_matrix_and_unlisted_items_share_the_rest():
    scores, positives, gains = world(6)
    full = np.argsort(-scores, axis=1)
    whole = evaluate_scores(scores, positives, gains=gains, metrics=ALL)
    listed = evaluate_lists(full, positives, gains=gains, metrics=ALL)
    for name in ALL:
        np.testing.assert_allclose(listed.values[name], whole.values[name], err_msg=name)
    # Cut after 5: as if the other 25 were tied.
    cut = np.full(scores.shape, -1.0)
    np.put_along_axis(cut, full[:, :5], np.take_along_axis(scores, full[:, :5], axis=1), axis=1)
    for ties in ("pessimistic", "expected"):
        tied = evaluate_scores(cut, positives, gains=gains, metrics=ALL, ties=ties)
        short = evaluate_lists(full[:, :5], positives, gains=gains, n_items=30, metrics=ALL, ties=ties)
        for name in ALL:
            np.testing.assert_allclose(short.values[name], tied.values[name], err_msg=name)
    unknown = evaluate_lists(full[:, :1], [[int(full[i, -1]), int(full[i, -2])] for i in range(12)], metrics=ALL)
    assert np.isinf(unknown.values["mean_rank"]).all()
    assert all(unknown[name] == 0 for name in ALL if name != "mean_rank")
    assert json.loads(json.dumps(unknown.to_json(), allow_nan=False))["metrics"]["mean_rank"] is None


def test_lists_with_padding_repetitions_and_scores():
    ids = np.array([[4, 4, 2, -1], [7, -1, -1, -1], [-1, -1, -1, -1]])
    report = evaluate_lists(ids, [[2], [7], [1]], metrics=("mean_rank", "recall@3"))
    assert report.values["mean_rank"].tolist() == [3, 1, np.inf]
    assert report.values["recall@3"].tolist() == [1, 1, 0]
    twice = evaluate_lists(np.array([[5, 3, 5]]), [[5]], scores=np.array([[0.1, 0.5, 0.9]]), metrics=("mean_rank",))
    assert twice["mean_rank"] == 1
    tied = np.array([[0.5, 0.5, 0.5, 0.0]])
    assert evaluate_lists(np.array([[1, 2, 3, 4]]), [[1]], scores=tied, metrics=("mean_rank",))["mean_rank"] == 3


def test_filtered_ranks_ignore_the_other_positives():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    report = evaluate_scores(scores, [[0, 1, 3]], filtered=True, metrics=("mrr", "hit@1", "mean_rank"))
    # Filtered ranks 1, 1 and 2 (behind item 2 only).
    assert report["mrr"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert report["hit@1"] == pytest.approx(2 / 3)
    rng = np.random.default_rng(0)
    tied = rng.integers(4, size=(9, 20)).astype(float)
    positives = [rng.choice(20, 5, replace=False) for _ in range(9)]
    report = evaluate_scores(tied, positives, filtered=True, metrics=("mrr",))
    for q, items in enumerate(positives):
        others = np.delete(np.arange(20), items)
        ranks = [1 + (tied[q, others] >= tied[q, p]).sum() for p in items]
        assert report.values["mrr"][q] == pytest.approx(np.mean(1 / np.array(ranks)))


def test_ignored_and_own_items_do_not_compete():
    scores = np.array([[9.0, 8, 7, 6], [1, 9, 2, 3]])
    report = evaluate_scores(scores, [[2], [3]], ignore=[[0, 1], []], metrics=("mean_rank",))
    assert report.values["mean_rank"].tolist() == [1, 2]
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    labels = np.arange(40) % 5
    report = evaluate(vectors, vectors, same_label(labels, labels), exclude_self=True, metrics=("map", "recall@1"))
    assert (report.ranks.counts == 7).all()  # the item itself is not one of its 8 classmates
    similarity = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    for i in range(40):
        order = [j for j in np.argsort(-similarity[i]) if j != i]
        hits = np.flatnonzero(labels[order] == labels[i]) + 1
        assert report.values["map"][i] == pytest.approx(np.mean(np.arange(1, 8) / hits))


def test_queries_without_positives_are_counted_not_averaged():
    report = evaluate_scores(np.eye(3), np.array([0, -1, 2]), metrics=("recall@1", "median_rank"))
    assert report.without_positives == 1
    assert report["recall@1"] == 1
    assert np.isnan(report.values["recall@1"][1])
    none = evaluate_scores(np.eye(3), [[], [], []], metrics=ALL)
    assert none.without_positives == 3
    assert none.to_json()["metrics"]["map"] is None
    empty = evaluate(np.zeros((0, 4)), np.zeros((5, 4)), [])
    assert len(empty) == 0
    assert np.isnan(empty["map"])


def test_forms_of_positives_agree():
    dense = np.random.default_rng(0).random((6, 9)) < 0.3
    lists = [np.flatnonzero(row) for row in dense]
    wanted = Positives.of(lists, 6, 9)
    for form in (
        dense,
        scipy.sparse.csr_matrix(dense),
        [row.tolist() for row in lists],
        [set(r.tolist()) for r in lists],
        wanted,
    ):
        found = Positives.of(form, 6, 9)
        assert found.indptr.tolist() == wanted.indptr.tolist()
        assert found.items.tolist() == wanted.items.tolist()
    twice = Positives.of([[3, 1, 3]], 1, 5, gains=[[1, 0, 2]])
    assert (twice.items.tolist(), twice.gains.tolist()) == ([3], [2.0])
    labels = np.array(["b", "a", "b"])
    assert same_label(["b", "x"], labels).items.tolist() == [0, 2]


def test_comparison_of_two_models():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 16))
    good = evaluate(a, a + 0.8 * rng.normal(size=a.shape))
    bad = evaluate(a, a + 2.5 * rng.normal(size=a.shape))
    gain = good.compare(bad, "mrr")
    assert gain.low > 0
    assert gain.mean == pytest.approx(good["mrr"] - bad["mrr"])
    assert not good.compare(good, "mrr").excludes_zero
    assert good.interval("mrr").low < good["mrr"] < good.interval("mrr").high
    assert len(good.to_json(per_query=True)["per_query"]["mrr"]) == 300


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((np.eye(3), np.eye(4)), {}),
        ((np.eye(3), np.eye(3)[:, :2], [[0]] * 3), {}),
        ((np.array([[np.nan, 1.0]]), np.eye(2), [[0]]), {}),
        ((np.eye(3), np.eye(3), [[0], [1], [3]]), {}),
        ((np.eye(3), np.eye(3), [[0], [1]]), {}),
        ((np.eye(3), np.eye(3), [[0.5]] * 3), {}),
        ((np.eye(3), np.eye(3)), {"exclude_self": True}),
        ((np.eye(3), np.eye(3)), {"ties": "lucky"}),
        ((np.eye(3), np.eye(3)), {"metrics": ["recall"]}),
        ((np.eye(3), np.eye(3)), {"metrics": ["recall@0"]}),
        ((np.eye(3), np.eye(3)), {"metrics": ["recal@1"]}),
        ((np.eye(3), np.eye(3)), {"bias": np.ones(2)}),
        ((np.eye(3), np.eye(3)), {"similarity": "cosin"}),
        ((np.eye(3), np.eye(3)), {"tie": "expected"}),
        ((np.eye(3), np.eye(3)), {"chunk": 0}),
        ((np.eye(3), np.eye(3)), {"gain": "log"}),
    ],
)
def test_bad_input_is_refused(arguments, options):
    with pytest.raises(BadInput):
        evaluate(*arguments, **options)


def test_bad_scores_are_refused():
    scores = np.eye(3)
    scores[1, 1] = np.nan
    with pytest.raises(BadInput, match="query 1"):
        evaluate_scores(scores)
    with pytest.raises(UnknownName, match="of this report"):
        evaluate_scores(np.eye(3), metrics=("mrr",))["map"]
    with pytest.raises(BadInput):
        evaluate_lists(np.array([[0.5]]), [[0]])
    with pytest.raises(BadInput):
        evaluate_lists(np.array([[7]]), [[0]], n_items=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["pessimistic", "optimistic", "expected"]))
def test_properties(seed, ties):
    rng = np.random.default_rng(seed)
    scores, positives, gains = world(seed, n=4, m=15, levels=int(rng.integers(2, 12)))

    def figures(s, p):
        return evaluate_scores(s, p, gains=gains, metrics=ALL, ties=ties)

    base = figures(scores, positives)
    # The order of the gallery does not matter.
    order = rng.permutation(15)
    moved = figures(scores[:, order], [np.argsort(order)[p] for p in positives])
    # Only the order of scores matters.
    curved = figures(np.exp(scores / 3) - 5, positives)
    # A worse item changes nothing, a better one cannot help.
    worse = figures(np.concatenate([scores, np.full((4, 1), -1.0)], axis=1), positives)
    better = figures(np.concatenate([scores, np.full((4, 1), 99.0)], axis=1), positives)
    for name in ALL:
        value = base.values[name]
        for other in (moved, curved, worse):
            np.testing.assert_allclose(other.values[name], value, atol=1e-9, err_msg=name)
        sign = -1 if name == "mean_rank" else 1
        assert (sign * better.values[name] <= sign * value + 1e-9).all(), name
        if name != "mean_rank":
            assert ((value >= -1e-9) & (value <= 1 + 1e-9)).all(), name
    pessimistic, optimistic = (
        evaluate_scores(scores, positives, gains=gains, ties=t) for t in ("pessimistic", "optimistic")
    )
    expected = evaluate_scores(scores, positives, gains=gains, ties="expected")
    for name in ("recall@5", "map", "mrr", "ndcg@10"):
        assert (pessimistic.values[name] <= expected.values[name] + 1e-9).all()
        assert (expected.values[name] <= optimistic.values[name] + 1e-9).all()

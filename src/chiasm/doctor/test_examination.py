"""The doctor finds what was planted, finds nothing where nothing is, and measures what it says."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from chiasm.correct.bias import row_digests
from chiasm.doctor import MeanShift, examine
from chiasm.doctor.cures import SHARES, Trial, is_certain, judge, split
from chiasm.doctor.figures import across_cosine, crowding, within_cosine
from chiasm.doctor.retrieval import recall_figures
from chiasm.doctor.symptoms import RULES
from chiasm.embeddings import unit
from chiasm.errors import BadInput
from chiasm.measure.gap import close_gap, modality_gap
from chiasm.measure.hubness import nearest
from chiasm.measure.intervals import mean_interval
from chiasm.measure.ranking import evaluate
from chiasm.worlds.pairs import make_pairs

# None of these seeds was looked at when the thresholds were set (100 and 101).
EXPECTED = {
    "clean": set(),
    "cone": {"cone", "hubness"},
    "popularity": {"hubness"},
    "clusters": {"local crowding", "hubness"},
    "gap": {"modality gap"},
    "noisy": {"noisy pairs"},
}


def world(kind: str, seed: int, **options):
    w = make_pairs(kind, seed=seed, **{"n": 500, "bank": 2000} | options)
    return np.concatenate([w.text, w.bank_text]), np.concatenate([w.image, w.bank_image])


def pairs(n: int = 120, dim: int = 12, seed: int = 0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, dim))
    return unit(z + rng.standard_normal(z.shape)), unit(z + rng.standard_normal(z.shape))


@pytest.mark.parametrize("kind", EXPECTED)
def test_exactly_the_planted_fault_is_found(kind):
    texts, images = world(kind, seed=7)
    report = examine(images, queries=texts, positives="rows", seed=7)
    assert {s.name for s in report.symptoms} == EXPECTED[kind]
    assert report.verdict.judged
    if kind in ("clean", "gap", "noisy"):  # nothing reorders a ranking for the better here
        assert report.verdict.cure is None
        assert "Leave it alone" in report.verdict.text
    if kind in ("cone", "popularity"):
        assert report.verdict.cure is not None
        assert report.verdict.gain is not None
        assert report.verdict.gain.low > 0
        assert report.verdict.bias is not None
        for symptom in report.symptoms:
            assert "dbnorm" in {slug for slug, _, _ in symptom.methods}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", EXPECTED)
def test_over_seeds_at_full_size(kind, seed):
    texts, images = world(kind, seed, n=1000, bank=4000)
    report = examine(images, queries=texts, positives="rows", seed=seed)
    assert {s.name for s in report.symptoms} == EXPECTED[kind]
    assert (report.verdict.cure is None) == (kind in ("clean", "gap", "noisy"))


def test_without_pairs_the_symptoms_are_found_and_no_gain_is_claimed():
    texts, images = world("cone", seed=3)
    report = examine(images, queries=texts)
    assert "cone" in {s.name for s in report.symptoms}
    assert not report.verdict.judged
    assert report.verdict.cure is None
    assert not report.trials
    assert "--pairs" in report.verdict.text
    alone = examine(world("gap", seed=3)[1])
    assert "cone" in {s.name for s in alone.symptoms}  # one end of a gap is a cone, if it is all one sees


def test_the_rate_of_wrong_pairs_is_measured():
    texts, images = world("noisy", seed=5, rate=0.2)
    rate = examine(images, queries=texts, positives="rows").figure("rate of noisy pairs").interval
    assert rate is not None
    assert rate.low < 0.2 < rate.high


def test_labels_show_intra_modal_misalignment():
    w = make_pairs("image_only", seed=1, own=2.0)
    report = examine(w.bank_image, queries=w.bank_text, positives="rows", labels=w.truth["bank_labels"])
    assert "intra-modal misalignment" in {s.name for s in report.symptoms}
    w = make_pairs("image_only", seed=1, own=0.0)
    report = examine(w.bank_image, queries=w.bank_text, positives="rows", labels=w.truth["bank_labels"])
    assert "intra-modal misalignment" not in {s.name for s in report.symptoms}


def test_parts_of_a_gallery_are_measured_on_their_own():
    texts, images = world("gap", seed=2)
    kinds = ["text"] * len(texts) + ["image"] * len(images)
    for queries in (None, world("gap", seed=3)[0]):  # neither a cone nor a crowd: the gap explains them
        report = examine(np.concatenate([texts, images]), queries=queries, modality=kinds)
        assert "modality gap" in {s.name for s in report.symptoms} <= {"modality gap", "hubness"}
    assert {"image", "text"} <= {figure.part for figure in report.figures}


def test_the_same_seed_gives_the_same_report_and_inputs_stay():
    texts, images = pairs(400)
    before = texts.copy(), images.copy()
    first, second = (examine(images, queries=texts, positives="rows", sample=200, seed=4).to_json() for _ in range(2))
    for report in (first, second):
        report.pop("seconds")
        for trial in report["trials"]:
            trial.pop("seconds")
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    np.testing.assert_array_equal(texts, before[0])
    np.testing.assert_array_equal(images, before[1])


def test_scale_does_not_matter_and_torch_is_taken():
    import torch

    texts, images = pairs(150)
    plain = examine(images, queries=texts, positives="rows").to_json()
    scaled = examine(torch.tensor(images * 3), queries=torch.tensor(texts * 0.1), positives="rows").to_json()
    for a, b in zip(plain["figures"], scaled["figures"]):
        assert a["value"] == pytest.approx(b["value"], abs=1e-3), a["name"]


def test_several_captions_of_an_item_are_one_group():
    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((100, 16)))
    owner = np.repeat(np.arange(100), 5)
    captions = unit(images[owner] + 0.3 * rng.standard_normal((500, 16)))
    report = examine(images, queries=captions, positives=owner)
    assert report.figure("hit@1", "queries to items").interval.n == 100
    assert report.raw.n == 30


def test_recall_is_that_of_the_evaluator():
    texts, images = pairs(200, 8)
    right = csr_array(np.eye(200, dtype=np.float32))
    found = {(f.name, f.part): f.value for f in recall_figures(texts, images, right, ("t", "i"), 0)}
    for part, reference in (("t to i", evaluate(texts, images)), ("i to t", evaluate(images, texts))):
        for k in (1, 5, 10):
            assert found[f"hit@{k}", part] == pytest.approx(reference[f"recall@{k}"])


def test_mean_cosines_equal_the_matrix():
    a, b = pairs(60)
    gram = a @ a.T
    within = (gram.sum() - np.trace(gram)) / (60 * 59)
    assert within_cosine(a, 0).mean == pytest.approx(within, abs=1e-6)
    assert across_cosine(a, b, 0).mean == pytest.approx((a @ b.T).mean(), abs=1e-6)


def test_a_gaussian_cone_is_not_crowded_and_twins_are():
    rng = np.random.default_rng(0)
    spectrum = np.linspace(0.2, 2, 24)
    cone = unit(rng.standard_normal((1500, 24)) * spectrum + 2)
    assert abs(crowding(cone, nearest(cone, None, 10)[0].mean(axis=1), 0).mean) < 0.01
    centers = rng.standard_normal((100, 24))
    twins = unit(np.repeat(centers, 15, axis=0) + 0.1 * rng.standard_normal((1500, 24)))
    assert crowding(twins, nearest(twins, None, 10)[0].mean(axis=1), 0).low > 0.1


# ---- the split and the verdict


@settings(max_examples=25, deadline=None)
@given(st.integers(80, 200), st.integers(0, 60), st.integers(0, 5))
def test_bank_and_slices_are_disjoint(n, spare, seed):
    rng = np.random.default_rng(seed)
    items = unit(rng.standard_normal((n + spare, 6)))
    queries = unit(rng.standard_normal((2 * n, 6)))
    queries[1] = queries[0]  # asked twice, for two items
    right = csr_array((np.ones(2 * n), (np.arange(2 * n), np.arange(2 * n) % n)), (2 * n, n + spare))
    found = split(queries, items, right, seed)
    assert found is not None
    galleries = [row_digests(x) for x in (found.bank_items, found.choosing.gallery, found.checking.gallery)]
    assert sum(map(len, galleries)) == n + spare == len(np.unique(np.concatenate(galleries)))
    asked = row_digests(np.concatenate([found.choosing.queries, found.checking.queries]))
    assert not np.isin(row_digests(found.bank_queries), asked).any()
    assert abs(len(found.bank_items) - SHARES[0] * (n + spare)) <= 1
    for part in (found.choosing, found.checking):  # each query's right item is in its own gallery
        for q, digest in enumerate(row_digests(part.queries)):
            rows = np.flatnonzero(row_digests(queries) == digest)
            wanted = row_digests(items)[rows % n]
            assert np.isin(row_digests(part.gallery)[part.right[q : q + 1].items], wanted).all()
    assert (found.checking.right.counts == 1).all()


def trial(name: str, hits: np.ndarray, raw: np.ndarray, chosen: float, *, bias: bool) -> Trial:
    gain = mean_interval(hits - raw)
    certain = is_certain(gain, hits - raw, np.arange(len(hits)))
    return Trial(name, "", "", f"{name}()", chosen, gain, gain, certain, bias, 0.0)


def test_the_cheapest_cure_that_is_not_certainly_worse_wins():
    rng = np.random.default_rng(0)
    raw = np.zeros(1000)
    weak, good = (rng.random(1000) < 0.02).astype(float), (rng.random(1000) < 0.3).astype(float)
    like_good = np.where(rng.random(1000) < 0.02, 1 - good, good)
    outcomes = [weak, like_good, good]
    trials = [
        trial("weak", weak, raw, 0.02, bias=True),
        trial("cheap", like_good, raw, 0.3, bias=False),
        trial("best", good, raw, 0.31, bias=True),
    ]
    verdict = judge(trials, outcomes, np.arange(1000), 0)
    assert (verdict.cure, verdict.bias) == ("cheap", "best")
    assert verdict.gain == trials[1].gain


def test_the_choosing_slice_picks_the_one_hypothesis_that_is_tested():
    rng = np.random.default_rng(0)
    raw = np.zeros(400)
    lucky, chosen = (rng.random(400) < 0.2).astype(float), np.zeros(400)
    trials = [trial("lucky", lucky, raw, 0.1, bias=True), trial("chosen", chosen, raw, 0.2, bias=True)]
    assert judge(trials, [lucky, chosen], np.arange(400), 0).cure is None


def test_three_wins_are_chance_and_the_queries_of_an_item_vote_once():
    change = np.zeros(100)
    change[:3] = 1
    assert mean_interval(change).low > 0
    assert not is_certain(mean_interval(change), change, np.arange(100))
    change[:20] = 1
    assert is_certain(mean_interval(change), change, np.arange(100))
    assert not is_certain(mean_interval(change), change, np.arange(100) // 5)  # four items


# ---- the mean shift


def test_closing_the_gap_equals_measure_and_closes_it():
    texts, images = world("gap", seed=1)
    shift = MeanShift("common").fit(images, queries=texts, items=images)
    expected = close_gap(texts, images)
    np.testing.assert_allclose(shift.vectors_, expected[1], atol=1e-5)
    with pytest.warns(UserWarning, match="bank"):
        moved = shift.transform_queries(texts)
    np.testing.assert_allclose(moved, expected[0], atol=1e-5)
    assert modality_gap(moved, shift.vectors_).relative < 0.05 < modality_gap(texts, images).relative


def test_centering_removes_the_cone_and_means_of_zero_change_nothing():
    texts, images = world("cone", seed=1)
    shift = MeanShift("origin").fit(images, queries=texts[:1000], items=images[:1000])
    assert abs(within_cosine(shift.vectors_, 0).mean) < 0.002 < within_cosine(images, 0).mean
    bank = np.concatenate([texts, -texts])
    plain = MeanShift("origin").fit(images, queries=bank, items=np.concatenate([images, -images]))
    np.testing.assert_allclose(plain.vectors_, images, atol=1e-5)
    scores, rows = shift.topk(texts[-20:], 3)
    np.testing.assert_allclose(scores, np.take_along_axis(shift.scores(texts[-20:]), rows, 1), atol=1e-5)
    with pytest.raises(BadInput, match="target"):
        MeanShift("nowhere").fit(images, queries=texts, items=images)  # type: ignore[arg-type]


# ---- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, i: {"gallery": i[:, :5], "queries": t}, "12 dimensions, the gallery has 5"),
        (lambda t, i: {"gallery": i[:50], "queries": t, "positives": "rows"}, "are not pairs"),
        (lambda t, i: {"gallery": i, "queries": t, "positives": "row"}, "positives='row'"),
        (lambda t, i: {"gallery": i, "queries": t, "positives": np.full(120, -1)}, "no query has a right item"),
        (lambda t, i: {"gallery": i, "queries": t, "positives": np.full(120, 999)}, "the gallery has 120"),
        (lambda t, i: {"gallery": i, "positives": "rows"}, "positives need queries"),
        (lambda t, i: {"gallery": np.where(np.arange(120)[:, None] == 7, np.nan, i)}, "row 7 holds NaN"),
        (lambda t, i: {"gallery": i[:1]}, "1 vectors cannot be examined"),
        (lambda t, i: {"gallery": i[0]}, r"must be \[N, D\]"),
        (lambda t, i: {"gallery": i.astype(str)}, "type"),
        (lambda t, i: {"gallery": i, "queries": t[:0]}, "0 vectors"),
        (lambda t, i: {"gallery": i, "modality": ["image"]}, "1 values for 120 items"),
        (lambda t, i: {"gallery": i, "sample": 3}, "too few"),
    ],
)
def test_bad_input_is_named(change, message):
    texts, images = pairs()
    with pytest.raises(BadInput, match=message):
        examine(**change(texts, images))


def test_constant_vectors_are_a_collapse_not_a_crash():
    same = np.ones((200, 8), np.float32)
    report = examine(same, queries=same, positives="rows")
    assert [s.name for s in report.symptoms] == ["collapse"]
    assert report.verdict.cure is None
    json.dumps(report.to_json(), allow_nan=False)
    assert report.figure("hit@1", "queries to items").value < 0.02  # ties count against the space


def test_zero_rows_are_counted():
    texts, images = pairs(300)
    images[:5] = 0
    report = examine(images, queries=texts, positives="rows")
    assert any("5 of 300 sampled items are zero" in note for note in report.notes)
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("n", [4, 5, 12, 45])
def test_few_rows_have_a_report_without_a_verdict(n):
    texts, images = pairs(n)
    report = examine(images, queries=texts, positives="rows")
    assert not report.verdict.judged
    assert "Too few pairs" in report.verdict.text
    json.dumps(report.to_json(), allow_nan=False)


def test_memory_is_linear_in_the_items():
    rng = np.random.default_rng(0)
    texts, images = (rng.standard_normal((30_000, 8), dtype=np.float32) for _ in range(2))
    tracemalloc.start()
    examine(images, queries=texts, positives="rows", sample=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000 * 2000 * 4 / 2  # half of one score matrix of the queries that are asked


def test_every_rule_says_why():
    for rule in RULES:
        assert len(rule.reason) > 40
        assert len(rule.meaning) > 40

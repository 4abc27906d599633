"""Calibrated relevance: identities of the state, the decision on built worlds, hostile input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.embeddings import unit
from chiasm.errors import BadInput
from chiasm.search.calibrate import LEAST_BANK, Calibrator, _trimmed_fit, null_phrases

DIM = 96
BANK, PRESENT = 800, 850  # concepts below BANK are in the bank, up to PRESENT in the store, the rest nowhere


def world(seed: int = 0, items: int = 60, concepts: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Phrases for all concepts, the bank, and items of the concepts that are present."""
    rng = np.random.default_rng(seed)
    centers = unit(rng.normal(size=(concepts, DIM)) + 0.7 * rng.normal(size=DIM))
    about = rng.permutation(np.arange(items) % (PRESENT - BANK) + BANK)
    vectors = unit(centers[about] + 0.06 * rng.normal(size=(items, DIM)))
    phrases = unit(centers + 0.04 * rng.normal(size=centers.shape))
    return phrases, phrases[:BANK], vectors


def judge(calibrator: Calibrator, vectors: np.ndarray, query: np.ndarray, **options):
    scores = vectors @ query
    rows = np.argsort(-scores, kind="stable")[:200]
    return calibrator.judge(query, rows, scores[rows], **options)


def test_what_is_there_is_found_and_what_is_not_is_not() -> None:
    centers, bank, vectors = world()
    calibrator = Calibrator(bank).fit(vectors, "image")
    there = [judge(calibrator, vectors, q) for q in centers[BANK:PRESENT]]
    absent = [judge(calibrator, vectors, q) for q in centers[PRESENT:]]
    assert np.mean([j.nothing_here for j in there]) <= 0.1
    assert np.mean([j.nothing_here for j in absent]) >= 0.7
    assert min(j.relevance[0] for j in there if not j.nothing_here) > max(
        np.median([j.relevance[0] for j in absent]), 0.4
    )


def test_negative_control_phrases_drawn_like_the_bank_are_refused_at_about_the_rate() -> None:
    rng = np.random.default_rng(3)
    bank, others = unit(rng.normal(size=(900, DIM))), unit(rng.normal(size=(400, DIM)))
    vectors = unit(rng.normal(size=(20, DIM)))
    calibrator = Calibrator(bank).fit(vectors, "image")
    for rate in (0.05, 0.2):
        accepted = np.mean([not judge(calibrator, vectors, q, rate=rate).nothing_here for q in others])
        assert 0 < accepted <= 2 * rate + 0.05


def test_a_higher_rate_refuses_less_and_does_not_change_the_rest() -> None:
    _, bank, vectors = world(1)
    calibrator = Calibrator(bank).fit(vectors, "image")
    for query in bank[:20]:
        strict, loose = (judge(calibrator, vectors, query, rate=rate) for rate in (0.01, 0.5))
        assert strict.p_value == loose.p_value
        assert strict.nothing_here or not loose.nothing_here
        np.testing.assert_array_equal(strict.relevance, loose.relevance)


def test_relevance_is_a_probability_and_rises_with_the_score_of_one_item() -> None:
    _, bank, vectors = world(2)
    calibrator = Calibrator(bank).fit(vectors, "image")
    relevance = [calibrator.judge(bank[0], [7], [score]).relevance[0] for score in np.linspace(-1, 1, 21)]
    assert all(0 <= r <= 1 for r in relevance)
    assert np.all(np.diff(relevance) >= 0)
    assert relevance[-1] > relevance[0]


def test_adding_in_pieces_is_fitting_at_once() -> None:
    _, bank, vectors = world(4, items=1500)
    names = np.where(np.arange(1500) % 3 == 0, "text", "image")
    whole = Calibrator(bank, chunk=10_000).fit(vectors, names)
    pieces = Calibrator(bank, chunk=77)
    for start in range(0, 1500, 311):
        pieces.partial_fit(vectors[start : start + 311], names[start : start + 311])
    assert whole.names == pieces.names
    rows = ("best_row",)  # equal up to items whose scores differ by less than rounding
    for key, value in whole.state_dict().items():
        if key in rows:
            continue
        np.testing.assert_allclose(value, pieces.state_dict()[key], rtol=1e-4, atol=1e-4, err_msg=key)


def test_removing_is_never_having_added() -> None:
    _, bank, vectors = world(5, items=200)
    gone = np.arange(0, 200, 9)
    less = Calibrator(bank).fit(vectors, "image").remove(gone)
    kept = np.delete(vectors, gone, axis=0)
    fresh = Calibrator(bank).fit(kept, "image")
    assert len(less) == len(fresh) == len(kept)
    assert not less.stale
    for query in bank[:30]:
        a, b = judge(less, kept, query), judge(fresh, kept, query)
        assert a.p_value == pytest.approx(b.p_value, abs=1e-5)
        np.testing.assert_allclose(a.relevance, b.relevance, atol=1e-5)


def test_removing_everything_and_starting_again() -> None:
    _, bank, vectors = world(6)
    calibrator = Calibrator(bank).fit(vectors, "image").remove(np.arange(len(vectors)))
    assert len(calibrator) == 0
    assert calibrator.judge(bank[0], [], []).nothing_here
    again = calibrator.partial_fit(vectors, "image")
    fresh = Calibrator(bank).fit(vectors, "image")
    for query in bank[:5]:
        assert judge(again, vectors, query).p_value == pytest.approx(judge(fresh, vectors, query).p_value, abs=1e-5)


def test_mass_deletion_is_reported_as_stale() -> None:
    _, bank, vectors = world(7, items=4000)
    calibrator = Calibrator(bank).fit(vectors, "image")
    best = np.unique(calibrator.state_dict()["best_row"])
    assert calibrator.remove(best).stale


def test_state_survives_safetensors_bit_equal(tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    _, bank, vectors = world(8)
    names = np.where(np.arange(len(vectors)) % 2 == 0, "text", "image")
    before = Calibrator(bank).fit(vectors, names)
    save_file(before.state_dict(), tmp_path / "state.safetensors")
    after = Calibrator(bank)
    after.load_state_dict(load_file(tmp_path / "state.safetensors"))
    for query in bank[:10]:
        a, b = judge(before, vectors, query), judge(after, vectors, query)
        assert a.p_value == b.p_value
        np.testing.assert_array_equal(a.relevance, b.relevance)
    after.partial_fit(vectors[:5], "audio")
    assert len(after) == len(before) + 5


def test_modalities_do_not_share_their_scale() -> None:
    """Text chunks that score 0.3 higher on everything neither hide nor promote the pictures."""
    centers, bank, pictures = world(9)
    common = unit(bank.mean(0, keepdims=True))
    texts = unit(unit(np.random.default_rng(1).normal(size=(30, DIM))) + 2 * common)
    vectors = np.concatenate([pictures, texts])
    names = np.array(["image"] * len(pictures) + ["text"] * len(texts))
    both = Calibrator(bank).fit(vectors, names)
    found = [not judge(both, vectors, q).nothing_here for q in centers[BANK:PRESENT]]
    absent = [judge(both, vectors, q).nothing_here for q in centers[PRESENT:]]
    assert np.mean(found) >= 0.85
    assert np.mean(absent) >= 0.85


def test_limiting_the_search_to_one_modality_spends_the_whole_rate_on_it() -> None:
    _, bank, vectors = world(10)
    calibrator = Calibrator(bank).fit(vectors, np.where(np.arange(len(vectors)) < 60, "image", "text"))
    rows = np.arange(60)
    for query in bank[:10]:
        scores = vectors[:60] @ query
        anywhere, limited = (calibrator.judge(query, rows, scores, modality=m) for m in (None, "image"))
        assert limited.p_value <= anywhere.p_value


def test_a_store_of_one_subject_still_finds_it() -> None:
    rng = np.random.default_rng(11)
    centers, bank, _ = world(11)
    vectors = unit(centers[BANK + 20] + 0.08 * rng.normal(size=(80, DIM)))
    calibrator = Calibrator(bank).fit(vectors, "image")
    assert not judge(calibrator, vectors, centers[BANK + 20]).nothing_here
    assert np.mean([judge(calibrator, vectors, q).nothing_here for q in centers[PRESENT:]]) >= 0.8


def test_phrases_that_have_an_answer_do_not_raise_the_bar() -> None:
    """The bank asks for what half of the items are; an absent query and a present one are told apart all the same."""
    centers, bank, vectors = world(12)
    asking = unit(np.concatenate([bank[:700], centers[BANK : BANK + 40]]))
    plain, contaminated = Calibrator(bank).fit(vectors, "image"), Calibrator(asking).fit(vectors, "image")
    for calibrator in (plain, contaminated):
        assert np.mean([not judge(calibrator, vectors, q).nothing_here for q in centers[BANK + 40 : PRESENT]]) >= 0.8


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**16))
def test_tiny_stores_have_finite_results(items: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank, vectors = unit(rng.normal(size=(LEAST_BANK, 8))), unit(rng.normal(size=(items, 8)))
    vectors[0] = rng.choice([0.0, 1.0]) * vectors[0]  # a zero row is legal
    judgement = judge(Calibrator(bank).fit(vectors, "image"), vectors, unit(rng.normal(size=(1, 8)))[0])
    assert np.isfinite(judgement.relevance).all()
    assert np.isfinite(judgement.p_value)
    assert judgement.p_value >= 0


def test_trimmed_fit_is_least_squares_when_nothing_is_trimmed_and_ignores_what_is() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    noise = rng.normal(size=500) * 0.1
    y = 1.0 + x @ [2.0, -1.0] + noise
    weights, scale = _trimmed_fit(x, y, 0.0)
    np.testing.assert_allclose(weights, [1.0, 2.0, -1.0], atol=0.03)
    assert scale == pytest.approx(0.1, rel=0.1)
    spoiled = y.copy()
    spoiled[:100] += 5.0
    np.testing.assert_allclose(_trimmed_fit(x, spoiled, 0.2)[0], [1.0, 2.0, -1.0], atol=0.04)


def test_inputs_are_not_changed() -> None:
    _, bank, vectors = world(13)
    bank_before, vectors_before = bank.copy(), vectors.copy()
    calibrator = Calibrator(bank).fit(vectors, "image")
    judge(calibrator, vectors, bank[0])
    calibrator.remove([0, 1])
    np.testing.assert_array_equal(bank, bank_before)
    np.testing.assert_array_equal(vectors, vectors_before)


def test_bad_input_is_named() -> None:
    _, bank, vectors = world(14)
    calibrator = Calibrator(bank).fit(vectors, "image")
    with pytest.raises(BadInput, match="at least 20"):
        Calibrator(bank[:5])
    with pytest.raises(BadInput, match="NaN"):
        Calibrator(np.full((30, 4), np.nan))
    with pytest.raises(BadInput, match="must be"):
        calibrator.partial_fit(vectors[:, :5], "image")
    with pytest.raises(BadInput, match="modalities"):
        calibrator.partial_fit(vectors, ["image"])
    with pytest.raises(BadInput, match="NaN"):
        calibrator.partial_fit(np.full((1, DIM), np.nan), "image")
    with pytest.raises(BadInput, match="do not fit"):
        calibrator.judge(bank[0], [0, 1], [0.5])
    with pytest.raises(BadInput, match="rate"):
        calibrator.judge(bank[0], [0], [0.5], rate=0)
    with pytest.raises(BadInput, match="row 999"):
        calibrator.judge(bank[0], [999], [0.5])
    with pytest.raises(BadInput, match="NaN"):
        calibrator.judge(np.full(DIM, np.nan), [0], [0.5])
    with pytest.raises(BadInput, match="row"):
        calibrator.remove([len(vectors)])
    with pytest.raises(BadInput, match="another bank"):
        Calibrator(bank[:100]).load_state_dict(calibrator.state_dict())
    with pytest.raises(BadInput, match="lacks"):
        calibrator.load_state_dict({})


def test_the_bank_is_large_and_has_no_doubles() -> None:
    phrases = null_phrases()
    assert 600 <= len(phrases) <= 1500
    assert len({p.lower() for p in phrases}) == len(phrases)
    assert sum(len(p.split()) >= 7 for p in phrases) >= 40  # whole sentences
    assert sum(len(p.split()) == 1 for p in phrases) >= 80  # single words

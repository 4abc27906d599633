"""CMA and the scores: the card's identities, closed forms, controls, the estimator contract, hostile input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

import tiny_models
from chiasm.adapt.mm_ood import (
    CMAClassifier,
    CrossModalAlignment,
    NegativeLabels,
    OODClassifier,
    alignment_report,
    encode_texts,
    energy,
    fine_tune,
    max_logit,
    maximum_softmax,
    mcm,
    mine_negatives,
    name_similarity,
    neglabel,
)
from chiasm.errors import BadInput, UnknownName
from chiasm.learn.contrastive import InfoNCE
from chiasm.measure import detection


def unit(n, d=12, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def total(objective, a, b, **options):
    return sum(objective(a, b, **options).values())


# ---- the loss


def test_lambda_zero_is_symmetric_info_nce():
    a, b = tensors(unit(9), unit(9, seed=1))
    ours = total(CrossModalAlignment(0.0, scale=20.0), a, b)
    torch.testing.assert_close(ours, sum(InfoNCE(0.05)(a, b).values()))


def test_lambda_one_is_pure_alignment():
    a, b = tensors(unit(9), unit(9, seed=1))
    torch.testing.assert_close(total(CrossModalAlignment(1.0, scale=20.0), a, b), -20 * (a * b).sum(1).mean())


@pytest.mark.parametrize("lam", [0.0, 0.001, 0.3])
def test_two_by_two_closed_form(lam):
    a = torch.eye(2)
    loss = total(CrossModalAlignment(lam, scale=2.0), a, a)  # logits [[2, 0], [0, 2]]
    assert float(loss.detach()) == pytest.approx(0.126928 - 2.126928 * lam, abs=1e-5)


def test_it_equals_the_naive_double_sum():
    a, b = tensors(unit(7), unit(7, seed=1))
    logits, lam = 30 * a @ b.T, 0.07
    target = torch.arange(7)
    rows = torch.nn.functional.cross_entropy(logits, target) - lam * logits.logsumexp(1).mean()
    columns = torch.nn.functional.cross_entropy(logits.T, target) - lam * logits.logsumexp(0).mean()
    torch.testing.assert_close(total(CrossModalAlignment(lam, scale=30.0), a, b), (rows + columns) / 2)


def test_the_gradient_of_a_diagonal_logit():
    """Per row -1 + (1 - lam) p_ii, the same of its column, each times 1 / (2 N); here by the gradient of the scale."""
    a, b = tensors(unit(5), unit(5, seed=1))
    objective, lam, s = CrossModalAlignment(0.2, scale=10.0), 0.2, 10.0
    total(objective, a, b).backward()
    raw = a @ b.T
    slope = (1 - lam) * ((s * raw).softmax(1) + (s * raw).softmax(0)) - 2 * torch.eye(5)
    expected = (slope / 10 * raw).sum() * s  # d s / d log s = s
    torch.testing.assert_close(objective.log_scale.grad, expected, rtol=1e-4, atol=1e-4)


def test_terms_can_be_left_out():
    a, b = tensors(unit(6), unit(6, seed=1))
    whole = CrossModalAlignment(0.1)(a, b)
    assert set(whole) == {"a_to_b", "b_to_a", "energy_a", "energy_b"}
    assert set(CrossModalAlignment(0.1, terms="image")(a, b)) == {"a_to_b", "b_to_a", "energy_a"}
    assert set(CrossModalAlignment(0.1, terms="text")(a, b)) == {"a_to_b", "b_to_a", "energy_b"}
    none = total(CrossModalAlignment(0.1, terms="none"), a, b)
    torch.testing.assert_close(none, total(CrossModalAlignment(0.0), a, b))


def test_equal_texts_are_false_negatives_unless_ignored():
    a, texts = tensors(unit(4), unit(2, seed=1))
    groups = torch.tensor([0, 0, 1, 1])
    b = texts[groups]
    kept, ignored = (
        total(CrossModalAlignment(0.0, scale=5.0, false_negatives=f), a, b, groups=groups) for f in ("keep", "ignore")
    )
    assert ignored < kept
    hidden = (groups[:, None] == groups) & ~torch.eye(4, dtype=torch.bool)
    logits = (5 * a @ b.T).masked_fill(hidden, -torch.inf)
    rows = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    found = CrossModalAlignment(0.0, scale=5.0, false_negatives="ignore")(a, b, groups=groups)
    torch.testing.assert_close(found["a_to_b"], rows / 2)


def test_the_scale_is_bounded_learned_and_saved():
    objective = CrossModalAlignment(0.1, scale=100.0)
    with torch.no_grad():
        objective.log_scale += 3
    assert float(objective.scale.detach()) == pytest.approx(100.0)
    assert float(CrossModalAlignment(scale=300.0, max_scale=None).scale.detach()) == pytest.approx(300.0, rel=1e-5)
    again = CrossModalAlignment(0.1)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.log_scale, objective.log_scale)
    assert not list(CrossModalAlignment(learn_scale=False).parameters())


def test_lambda_can_rise():
    a, b = tensors(unit(6), unit(6, seed=1))
    objective = CrossModalAlignment(0.1, warmup=0.5)
    torch.testing.assert_close(total(objective, a, b), total(CrossModalAlignment(0.0), a, b))
    objective.on_progress(25, 100)
    torch.testing.assert_close(total(objective, a, b), total(CrossModalAlignment(0.05), a, b))
    objective.on_progress(90, 100)
    torch.testing.assert_close(total(objective, a, b), total(CrossModalAlignment(0.1), a, b))


def test_the_objective_keeps_the_contract_of_objectives():
    import battery

    battery.check_objective(lambda: CrossModalAlignment(0.01))


# ---- the scores

IMAGES, TEXTS, NEGATIVES = unit(20), unit(4, seed=1), unit(30, seed=2)


def naive(images, texts, negatives, t=0.01):
    inside, outside = (
        np.exp(images.astype(np.float64) @ x.T.astype(np.float64) / t).sum(1) for x in (texts, negatives)
    )
    return inside / (inside + outside)


def test_neglabel_equals_the_naive_sum_and_keeps_its_kind():
    np.testing.assert_allclose(
        neglabel(IMAGES, TEXTS, NEGATIVES), naive(IMAGES, TEXTS, NEGATIVES), rtol=1e-3, atol=1e-6
    )
    found = neglabel(*tensors(IMAGES, TEXTS, NEGATIVES))
    assert torch.is_tensor(found)
    np.testing.assert_allclose(found.numpy(), neglabel(IMAGES, TEXTS, NEGATIVES), rtol=1e-3, atol=1e-6)


def test_no_negative_label_gives_one():
    assert (neglabel(IMAGES, TEXTS, NEGATIVES[:0]) == 1).all()
    assert np.isposinf(neglabel(IMAGES, TEXTS, NEGATIVES[:0], log_odds=True)).all()


def test_repeating_all_labels_changes_nothing_and_repeated_known_labels_tie_all_inputs():
    twice = neglabel(IMAGES, np.tile(TEXTS, (2, 1)), np.tile(NEGATIVES, (2, 1)), log_odds=True)
    np.testing.assert_allclose(twice, neglabel(IMAGES, TEXTS, NEGATIVES, log_odds=True), atol=1e-4)
    for r in (1, 3):  # the negatives are the known labels themselves
        np.testing.assert_allclose(neglabel(IMAGES, TEXTS, np.tile(TEXTS, (r, 1))), 1 / (1 + r), rtol=1e-4)


def test_one_group_is_no_groups_and_groups_are_the_mean_of_their_scores():
    plain = neglabel(IMAGES, TEXTS, NEGATIVES)
    np.testing.assert_allclose(neglabel(IMAGES, TEXTS, NEGATIVES, groups=1), plain)
    order = np.random.default_rng(5).permutation(30)[:28].reshape(7, 4)
    mean = np.mean([naive(IMAGES, TEXTS, NEGATIVES[rows], 0.1) for rows in order], axis=0)
    found = neglabel(IMAGES, TEXTS, NEGATIVES, groups=7, seed=5, temperature=0.1)
    np.testing.assert_allclose(found, mean, rtol=1e-4)
    odds = neglabel(IMAGES, TEXTS, NEGATIVES, groups=7, seed=5, temperature=0.1, log_odds=True)
    np.testing.assert_allclose(odds, np.log(mean / (1 - mean)), rtol=1e-3, atol=1e-4)
    torch_odds = neglabel(*tensors(IMAGES, TEXTS, NEGATIVES), groups=7, seed=5, temperature=0.1, log_odds=True)
    np.testing.assert_allclose(torch_odds.numpy(), odds, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunks", [(1, 1), (7, 3), (64, 64)])
def test_chunks_change_nothing(chunks):
    found = neglabel(IMAGES, TEXTS, NEGATIVES, log_odds=True, chunk=chunks[0], image_chunk=chunks[1])
    np.testing.assert_allclose(found, neglabel(IMAGES, TEXTS, NEGATIVES, log_odds=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mcm(IMAGES, TEXTS, chunk=chunks[0]), mcm(IMAGES, TEXTS), rtol=1e-5)


def test_log_odds_rank_where_the_score_is_one():
    texts, negatives = np.eye(3, dtype=np.float32)[:1], np.eye(3, dtype=np.float32)[1:2]
    images = np.array([[1, 0.0, 0.1], [1, 0.1, 0.1], [1, 0.3, 0.1]], np.float32)
    assert (neglabel(images, texts, negatives) == 1).all()  # saturated
    assert (np.diff(neglabel(images, texts, negatives, log_odds=True)) < 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 1.0]))
def test_log_odds_rank_as_scores_do(seed, temperature):
    images, texts, negatives = unit(15, seed=seed), unit(3, seed=seed + 1), unit(8, seed=seed + 2)
    exact = naive(images, texts, negatives, temperature)
    odds = neglabel(images, texts, negatives, temperature=temperature, log_odds=True)
    apart = np.abs(exact[:, None] - exact) > 1e-4  # those that float32 can tell
    assert (np.sign(exact[:, None] - exact)[apart] == np.sign(odds[:, None] - odds)[apart]).all()


def test_the_other_scores_have_their_closed_forms():
    cosines = IMAGES @ TEXTS.T
    share = np.exp(cosines) / np.exp(cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(mcm(IMAGES, TEXTS), share.max(1), rtol=1e-5)
    np.testing.assert_allclose(np.exp(mcm(IMAGES, TEXTS, log=True)), share.max(1), rtol=1e-5)
    np.testing.assert_allclose(maximum_softmax(IMAGES, TEXTS), mcm(IMAGES, TEXTS, temperature=0.01))
    np.testing.assert_allclose(max_logit(IMAGES, TEXTS), cosines.max(1), rtol=1e-5)
    np.testing.assert_allclose(
        energy(IMAGES, TEXTS, temperature=0.5), 0.5 * np.log(np.exp(cosines / 0.5).sum(1)), rtol=1e-4
    )
    np.testing.assert_allclose(energy(IMAGES, TEXTS, temperature=1e-3), cosines.max(1), atol=2e-3)
    assert (mcm(IMAGES, TEXTS[:1]) == 1).all()  # one class: every share is 1


def test_the_figures_are_scikit_learns():
    inside, outside = (
        neglabel(IMAGES, TEXTS, NEGATIVES, log_odds=True),
        neglabel(unit(15, seed=9), TEXTS, NEGATIVES, log_odds=True),
    )
    found = detection(inside, outside)
    labels = np.r_[np.ones(20), np.zeros(15)]
    assert found.auroc == pytest.approx(roc_auc_score(labels, np.r_[inside, outside]))
    assert found.fpr95 == np.mean(outside >= np.sort(inside)[1])  # 19 of 20 are accepted


def test_ties_give_chance():
    tied = neglabel(IMAGES, TEXTS, np.tile(TEXTS, (2, 1)))
    assert detection(np.round(tied[:10], 4), np.round(tied[10:], 4)).auroc == 0.5


# ---- mining


def test_words_far_from_the_known_labels_are_mined():
    texts = np.eye(4, dtype=np.float32)[:2]
    near, far = texts[:1] + 0.1, np.eye(4, dtype=np.float32)[2:]
    candidates = np.concatenate([near, far, -texts[:1]])
    distance = name_similarity(candidates, texts, quantile=1.0)
    assert distance[0] == distance.max()
    assert mine_negatives(candidates, texts, share=0.5, quantile=1.0).tolist() == [1, 2]
    assert mine_negatives(candidates, texts, share=0.01).tolist() == [3]  # at least one of a kind


def test_quantile_bears_one_odd_label_and_the_maximum_does_not():
    known = np.concatenate([unit(39, 8, 1) * 0 + np.eye(8, dtype=np.float32)[0], np.eye(8, dtype=np.float32)[1:2]])
    word = np.eye(8, dtype=np.float32)[1:2]  # equal to the odd one
    assert name_similarity(word, known, quantile=1.0)[0] == pytest.approx(1)
    assert name_similarity(word, known)[0] == pytest.approx(0, abs=1e-6)


def test_each_kind_keeps_its_share_and_class_names_are_left_out():
    candidates = unit(40, seed=3)
    kinds = ["noun"] * 30 + ["adjective"] * 10
    rows = mine_negatives(candidates, TEXTS, kinds=kinds, share=0.1)
    assert sorted(np.asarray(kinds)[rows]) == ["adjective"] + ["noun"] * 3
    words = [f"w{i}" for i in range(40)]
    words[int(rows[0])] = "Wine_Bottle"
    words[int(rows[1])] = words[int(rows[2])]
    again = mine_negatives(candidates, TEXTS, words=words, classes=["wine bottle"], kinds=kinds, share=0.1)
    assert rows[0] not in again
    assert len({words[row] for row in again}) == len(again)
    chunked = mine_negatives(candidates, TEXTS, kinds=kinds, share=0.1, chunk=7)
    assert chunked.tolist() == rows.tolist()


def test_a_list_of_one_class_and_mined_labels_in_a_file(tmp_path):
    calls = []

    def encode(texts):
        calls.append(texts)
        return np.stack([unit(1, seed=sum(map(ord, text)))[0] for text in texts])

    words = [f"word {i}" for i in range(20)] + ["cat"]
    found = NegativeLabels.mined(["cat"], words, encode, cache=tmp_path, share=0.2, encoder="e")
    assert len(found) == 4
    assert calls[0] == ["The nice cat"]
    assert "cat" not in found.words
    assert (np.diff(found.similarity) >= 0).all()
    again = NegativeLabels.mined(["cat"], words, encode, cache=tmp_path, share=0.2, encoder="e")
    assert len(calls) == 2  # read, not encoded again
    assert again.words == found.words
    assert np.array_equal(again.vectors, found.vectors)
    NegativeLabels.mined(["dog"], words, encode, cache=tmp_path, share=0.2, encoder="e")
    assert len(calls) == 4
    with pytest.raises(BadInput, match="no negative labels here"):
        NegativeLabels.load(tmp_path / "none.safetensors")


# ---- the detector


def blobs(n=30, seed=0, k=3):
    labels = np.arange(n) % k
    return (np.eye(k, 12, dtype=np.float32)[labels] + 0.1 * unit(n, seed=seed)), labels


def test_it_keeps_the_contract_of_estimators():
    import battery

    battery.check_estimator(OODClassifier)
    battery.check_estimator(lambda: OODClassifier(negatives=unit(9, 16, 4).tolist(), groups=3))


@pytest.mark.parametrize("score", ["neglabel", "mcm", "energy", "max_logit", "msp"])
def test_known_inputs_pass_and_unknown_ones_do_not(score):
    X, y = blobs()
    strangers = np.eye(12, dtype=np.float32)[6:10]
    detector = OODClassifier(np.eye(3, 12, dtype=np.float32), np.eye(12, dtype=np.float32)[6:8], ood_score=score).fit(
        X, y
    )
    assert (detector.predict(X) == y).all()
    assert detector.score(X, y) == 1  # scikit-learn's accuracy
    assert detector.known(X).mean() >= 0.95
    assert not detector.known(strangers).any()
    assert detection(detector.score_samples(X), detector.score_samples(strangers)).auroc == 1
    assert detector.predict_open(strangers, "?").tolist() == ["?"] * 4
    assert clone(detector).get_params()["ood_score"] == score


def test_names_follow_the_texts_and_one_class_is_enough():
    X, y = blobs()
    names = np.array(["c", "a", "b"])
    detector = OODClassifier(np.eye(3, 12, dtype=np.float32), classes=names).fit(X, names[y])
    assert (detector.predict(X) == names[y]).all()
    assert (detector.classes_ == names).all()
    one = OODClassifier(np.eye(1, 12, dtype=np.float32), unit(5, seed=3)).fit(X)
    assert (one.predict(X) == 0).all()
    assert one.predict_proba(X).tolist() == [[1.0]] * 30


def test_the_threshold_is_a_quantile_of_the_validation_scores():
    X, y = blobs(100)
    detector = OODClassifier(tpr=0.9).fit(X, y)
    scores = detector.score_samples(X)
    assert 0.9 <= np.mean(scores >= detector.threshold_) < 0.93
    other = blobs(50, seed=8)[0]
    detector.calibrate(other)
    assert detector.threshold_ == np.sort(detector.score_samples(other))[int(0.1 * 49)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ood_score": "neglabel"}, "needs negative labels"),
        ({"tpr": 0.0}, "no share|not a share"),
        ({"texts": np.eye(4, 12, dtype=np.float32)}, "3 classes for 4 texts"),
        ({"texts": np.eye(3, 12, dtype=np.float32), "classes": [0, 0, 1]}, "named twice"),
        ({"texts": np.eye(3, 12, dtype=np.float32), "classes": [0, 1, 5]}, "label 2 is no class"),
        ({"texts": np.eye(3, 5, dtype=np.float32)}, "12-d embeddings and 5-d texts"),
        ({"texts": np.zeros((0, 12), np.float32), "classes": []}, "is no class|no known label"),
        ({"negatives": unit(3), "groups": 5}, "5 groups of 3"),
    ],
)
def test_detectors_that_cannot_work_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        OODClassifier(**options).fit(*blobs())


def test_bad_input_is_refused():
    with pytest.raises(UnknownName, match="Did you mean mcm"):
        OODClassifier(ood_score="mcn").fit(*blobs())
    with pytest.raises(BadInput, match="neither texts nor labels"):
        OODClassifier().fit(blobs()[0])
    broken = IMAGES.copy()
    broken[3, 2] = np.nan
    with pytest.raises(BadInput, match="row 3"):
        neglabel(broken, TEXTS, NEGATIVES)
    for options, message in (
        ({"temperature": 0}, "not positive"),
        ({"groups": 31}, "31 groups of 30"),
        ({"groups": 0}, "0 groups"),
    ):
        with pytest.raises(BadInput, match=message):
            neglabel(IMAGES, TEXTS, NEGATIVES, **options)
    with pytest.raises(BadInput, match="no known label"):
        mcm(IMAGES, TEXTS[:0])
    with pytest.raises(BadInput, match="no candidate is left"):
        mine_negatives(unit(1), TEXTS, words=["cat"], classes=["Cat"])
    for options, message in (({"share": 0}, "share"), ({"quantile": 2}, "quantile"), ({"kinds": ["a"]}, "1 kinds")):
        with pytest.raises(BadInput, match=message):
            mine_negatives(NEGATIVES, TEXTS, **options)
    for options, kind in (
        ({"lam": 2.0}, BadInput),
        ({"scale": 0.0}, BadInput),
        ({"terms": "x"}, UnknownName),
        ({"false_negatives": "x"}, UnknownName),
    ):
        with pytest.raises(kind):
            CrossModalAlignment(**options)
    with pytest.raises(BadInput, match="no pairs"):
        CrossModalAlignment()(torch.ones(2, 3), torch.ones(3, 3))


def test_the_report_measures_gap_cosine_and_separation():
    images, texts = np.tile(np.eye(2, 4, dtype=np.float32), (4, 1)), np.eye(2, 4, dtype=np.float32)
    same = alignment_report(images, np.tile([0, 1], 4), texts, np.eye(4, dtype=np.float32)[2:])
    assert same.gap == pytest.approx(0, abs=1e-6)
    assert (same.cosine, same.separation) == pytest.approx((1, 1))
    swapped = alignment_report(images, np.tile([1, 0], 4), texts)
    assert swapped.cosine == pytest.approx(0)
    assert math.isnan(swapped.separation)


# ---- fine-tuning


@pytest.fixture(scope="module")
def sentence_model(tiny_clip):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_clip), device="cpu")


PICTURES = [tiny_models.picture(i % 3) for i in range(12)]
NAMES = np.array(["red house", "cat", "sea"])[np.arange(12) % 3]


@pytest.mark.slow
def test_pictures_are_classified_and_strangers_rejected(sentence_model):
    before = {name: value.clone() for name, value in sentence_model.state_dict().items()}
    words = ["song", "rain", "man", "tree", "cat", "horse", "snow", "music"]
    cma = CMAClassifier(sentence_model, words, lam=0.01, epochs=15, batch_size=6, rate=3e-3, share=0.5, validation=0.25)
    cma.fit(PICTURES, NAMES)
    assert (cma.predict(PICTURES) == NAMES).all()
    assert cma.predict_proba(PICTURES).shape == (12, 3)
    assert "cat" not in cma.negatives_.words
    assert cma.detector_.negatives.shape == (len(cma.negatives_), 24)
    assert len(cma.report_.losses) > 1
    assert cma.score_samples(PICTURES).shape == (12,)
    halves = np.r_[cma.score_samples(PICTURES[:5]), cma.score_samples(PICTURES[5:])]
    np.testing.assert_allclose(halves, cma.score_samples(PICTURES), rtol=1e-3, atol=1e-3)
    assert all(
        torch.equal(value, before[name]) for name, value in sentence_model.state_dict().items()
    )  # a copy was trained
    pre_trained = encode_texts(sentence_model, cma.negatives_.words)
    np.testing.assert_allclose(pre_trained, cma.negatives_.vectors, atol=1e-5)  # mined before fine-tuning
    assert np.abs(cma.detector_.negatives - pre_trained).max() > 1e-3  # encoded again after it


def test_all_parameters_learn_and_pixel_values_do_as_pictures(sentence_model):
    import copy

    pixels = torch.as_tensor(sentence_model.preprocess(PICTURES)["pixel_values"])
    found = []
    for pictures in (PICTURES, pixels):
        model = copy.deepcopy(sentence_model)
        fine_tune(model, pictures, np.arange(12) % 3, ["a", "b", "c"], epochs=1, batch_size=4, rate=1e-3, seed=2)
        found.append({name: value.detach().clone() for name, value in model.named_parameters()})
    for name, value in sentence_model.named_parameters():
        torch.testing.assert_close(found[0][name], found[1][name])
        if "position" not in name and "token_embedding" not in name and "k_proj.bias" not in name:
            assert not torch.equal(found[0][name], value), name


def test_pictures_without_labels_and_models_without_pictures_are_refused(sentence_model):
    with pytest.raises(UnknownName, match="takes no pictures"):
        CMAClassifier(torch.nn.Linear(2, 2)).fit(PICTURES, NAMES)
    with pytest.raises(BadInput, match="12 pictures and labels"):
        CMAClassifier(sentence_model).fit(PICTURES, NAMES[:5])
    with pytest.raises(BadInput, match="for 2 classes"):
        fine_tune(sentence_model, PICTURES, np.arange(12) % 3, ["a", "b"])
    with pytest.raises(BadInput, match="validation"):
        CMAClassifier(sentence_model, validation=1.5).fit(PICTURES, NAMES)


def test_the_tuned_classifier_keeps_the_contract_of_estimators(sentence_model):
    settings = {"words": ["dog", "sun"], "epochs": 1, "batch_size": 6, "rate": 1e-3, "share": 1.0, "validation": 0.25}
    cma = CMAClassifier(sentence_model, **settings)
    assert {name: cma.get_params()[name] for name in settings} == settings
    before = set(vars(cma))
    twin = clone(cma, safe=False)
    assert cma.fit(PICTURES, NAMES) is cma
    learned = set(vars(cma)) - before
    assert learned
    assert all(name.endswith("_") for name in learned)
    twin.fit(PICTURES, NAMES)
    np.testing.assert_array_equal(twin.score_samples(PICTURES), cma.score_samples(PICTURES))
    shares = cma.predict_proba(PICTURES)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert (cma.classes_[shares.argmax(axis=1)] == cma.predict(PICTURES)).all()


def test_an_empty_list_of_negatives_is_none():
    X, y = blobs()
    texts = np.eye(3, 12, dtype=np.float32)
    plain = OODClassifier(texts).fit(X, y)
    for negatives in (np.zeros((0, 12), np.float32), []):
        assert OODClassifier(texts, negatives).fit(X, y).threshold_ == plain.threshold_  # MCM, not "all are known"
        with pytest.raises(BadInput, match="needs negative labels"):
            OODClassifier(texts, negatives, ood_score="neglabel").fit(X, y)


def test_embeddings_that_are_none_are_refused():
    X, y = blobs()
    detector = OODClassifier().fit(X, y)
    for wrong in (X[:0], X[0], X[:, :4], np.full((2, 12), np.nan), [["a"]]):
        for refused in (detector.predict, detector.known, detector.calibrate):
            with pytest.raises(BadInput, match="Give embeddings"):
                refused(wrong)
    with pytest.raises(BadInput, match="inconsistent"):
        OODClassifier().fit(X, y[:5])
    with pytest.raises(UnknownName, match="score"):
        OODClassifier(ood_score=None).fit(X, y)  # pyright: ignore
    with pytest.raises(BadInput, match="no negative labels"):
        neglabel(IMAGES, TEXTS, None)


def test_reports_and_files_that_do_not_fit_are_refused(tmp_path):
    images, texts = unit(6), unit(2, seed=1)
    for labels in ([0] * 5, [2] * 6, [-1] * 6, [0.5] * 6):
        with pytest.raises(BadInput, match="labels"):
            alignment_report(images, labels, texts)
    with pytest.raises(BadInput, match="12-d and 5-d"):
        alignment_report(images, [0] * 6, texts, unit(2, 5))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="no saved negative labels"):
        NegativeLabels.load(tmp_path / "other")
    with pytest.raises(BadInput, match="no list"):
        NegativeLabels.mined(["cat"], "dog sun", lambda texts: unit(len(texts)))
    with pytest.raises(BadInput, match="max_scale"):
        CrossModalAlignment(max_scale=0)


def test_pictures_and_models_of_the_wrong_kind_are_refused(sentence_model, tiny_text):
    from sentence_transformers import SentenceTransformer
    from sklearn.exceptions import NotFittedError

    text_only = SentenceTransformer(str(tiny_text), device="cpu")
    with pytest.raises(UnknownName, match="takes no pictures"):
        CMAClassifier(text_only).fit(PICTURES, NAMES)
    with pytest.raises(UnknownName, match="takes no pictures"):
        fine_tune(torch.nn.Linear(2, 2), PICTURES, np.arange(12) % 3, ["a", "b", "c"])
    for wrong, message in ((["a"] * 12, "text among"), (None, "NoneType"), (unit(12), "shape")):
        with pytest.raises(BadInput, match=message):
            CMAClassifier(sentence_model).fit(wrong, NAMES)
    with pytest.raises(BadInput, match="list of words"):
        CMAClassifier(sentence_model, "dog sun").fit(PICTURES, NAMES)
    with pytest.raises(BadInput, match="whole numbers"):
        fine_tune(sentence_model, PICTURES, [0.5] * 12, ["a", "b"])
    with pytest.raises(BadInput, match="batch_size 0"):
        fine_tune(sentence_model, PICTURES, [0] * 12, ["a"], batch_size=0)
    with pytest.raises(NotFittedError):
        CMAClassifier(sentence_model).predict(PICTURES)

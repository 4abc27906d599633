"""Identities of the head, the switch, the generator and the black box; hostile input; saving."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from chiasm.adapt.cross_tune import (
    BlackBox,
    CrossMatcher,
    CrossTune,
    LinearProbe,
    NGrams,
    VerbalizerSearch,
    ZeroShot,
    generate_texts,
    prompt,
)
from chiasm.adapt.cross_tune.encoding import windows
from chiasm.adapt.cross_tune.generation import without_copies
from chiasm.adapt.cross_tune.labels import from_examples, sentences
from chiasm.adapt.cross_tune.switch import judged, temperature
from chiasm.adapt.cross_tune.tuning import held_out_rows
from chiasm.encode.cache import FeatureCache
from chiasm.errors import BadInput, UnknownName
from chiasm.learn.features import Features
from chiasm.worlds.topic_texts import TopicTexts

SHORT = {"epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def world():
    return TopicTexts(topics=3, words=40, distractors=2, corpus=1500, dim=16, seed=3)


@pytest.fixture(scope="module")
def box(world):
    return BlackBox(world.encode)


@pytest.fixture(scope="module")
def few(world):
    names = np.array(world.names)
    parts = (world.sample(n, seed) for n, seed in ((4, 1), (4, 2), (20, 9)))
    return [(texts, names[topic]) for texts, topic in parts]


@pytest.fixture(scope="module")
def fitted(world, box, few):
    return CrossTune(box, world.descriptions, rate=3e-3, epochs=6, random_state=0).fit(*few[0], dev=few[1])


def inputs(rows=3, length=5, classes=4, words=6, dim=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, labels = torch.randn(rows, length, dim, generator=g), torch.randn(classes, words, dim, generator=g)
    return x, torch.ones(rows, length, dtype=torch.bool), labels, torch.ones(classes, words, dtype=torch.bool)


def matcher(dim=8, away=True, **options):
    """A head in evaluation mode, away from its start so that every part of it counts."""
    torch.manual_seed(0)
    head = CrossMatcher(dim, heads=2, **options).eval()
    if away:
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return head


# ---- the head


def test_before_the_first_step_it_is_the_cosine():
    head, (x, mask, g, seen) = matcher(away=False), inputs()
    a, b = (
        torch.nn.functional.normalize(v.mean(1), dim=1)
        for v in (head.norm_input(head.input(x)), head.norm_label(head.label(g)))
    )
    torch.testing.assert_close(head(x, mask, g, seen), 10 * a @ b.T)
    torch.testing.assert_close(head.cosine(x, mask, g, seen), head(x, mask, g, seen))
    assert torch.equal(head.input.weight, head.label.weight)
    torch.testing.assert_close(head.input.weight @ head.input.weight.T, torch.eye(8), atol=1e-5, rtol=0)


def test_two_by_two():
    head = matcher(2, away=False, beta=1.0)
    head.norm_input = head.norm_label = torch.nn.Identity()
    with torch.no_grad():
        head.input.weight.copy_(torch.eye(2))
        head.label.weight.copy_(torch.eye(2))
    one = torch.ones(1, 2, dtype=torch.bool)
    x = torch.tensor([[[0.5, 0.5], [1.5, -0.5]]])  # mean (1, 0)
    g = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    shares = head(x, one, g, torch.ones(2, 1, dtype=torch.bool)).softmax(1)
    torch.testing.assert_close(shares, torch.tensor([[0.731059, 0.268941]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("interaction", ["product", "sum"])
def test_the_formula_term_by_term(interaction):
    head, (x, mask, g, seen) = matcher(interaction=interaction), inputs(rows=2, classes=2)
    scores = head(x, mask, g, seen)
    for b in range(2):
        for c in range(2):
            own, label = head.norm_input(head.input(x[b])), head.norm_label(head.label(g[c]))
            read = head.attention.attention(own[None], label[None], label[None])[0][0]
            h = head.norm_read(own * read + own if interaction == "product" else own + read)
            h = head.norm_perceptron(h + head.perceptron(h))
            z = (h @ head.pool.weight[0]).softmax(0) @ h
            cosine = torch.nn.functional.cosine_similarity(own.mean(0), label.mean(0), dim=0)
            want = head.out.weight[0] @ torch.tanh(head.hidden(z)) + head.beta * cosine
            torch.testing.assert_close(scores[b, c], want, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.permutations(range(4)))
def test_order_of_classes_and_equal_descriptions(seed, order):
    head, (x, mask, g, seen) = matcher(), inputs(seed=seed)
    scores = head(x, mask, g, seen)
    torch.testing.assert_close(head(x, mask, g[list(order)], seen), scores[:, list(order)], atol=1e-5, rtol=1e-5)
    g[1] = g[0]
    twice = head(x, mask, g, seen)
    torch.testing.assert_close(twice[:, 0], twice[:, 1], atol=1e-5, rtol=1e-5)


def test_pads_and_chunks_change_nothing(monkeypatch):
    head, (x, mask, g, seen) = matcher(), inputs()
    scores = head(x, mask, g, seen)
    pad = lambda t: torch.cat([t, torch.full((len(t), 3, 8), 9.0)], 1)  # noqa: E731
    more = lambda m: torch.cat([m, torch.zeros(len(m), 3, dtype=torch.bool)], 1)  # noqa: E731
    torch.testing.assert_close(head(pad(x), more(mask), pad(g), more(seen)), scores, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("chiasm.adapt.cross_tune.matcher._CELLS", 1)
    with torch.no_grad():
        torch.testing.assert_close(head(x, mask, g, seen), scores, atol=1e-5, rtol=1e-5)
    empty = torch.zeros_like(mask)
    assert torch.isfinite(head(x, empty, g, torch.zeros_like(seen))).all()


def test_chunks_change_no_gradient(monkeypatch):
    gradients = []
    for cells in (1 << 24, 1):
        monkeypatch.setattr("chiasm.adapt.cross_tune.matcher._CELLS", cells)
        head, (x, mask, g, seen) = matcher(), inputs()
        (head(x, mask, g, seen).sin()).sum().backward()
        gradients.append([parameter.grad for parameter in head.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_a_shortlist_leaves_the_others_out():
    head, (x, mask, g, seen) = matcher(), inputs()
    whole, short = head(x, mask, g, seen), head(x, mask, g, seen, shortlist=2)
    near = head.cosine(x, mask, g, seen).topk(2, dim=1).indices
    torch.testing.assert_close(short.gather(1, near), whole.gather(1, near))
    assert (short.isinf().sum(1) == 2).all()
    torch.testing.assert_close(head(x, mask, g, seen, shortlist=4), whole)


def test_every_part_learns():
    head, (x, mask, g, seen) = matcher(), inputs()
    torch.nn.functional.cross_entropy(head(x, mask, g, seen), torch.tensor([0, 1, 2])).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_wrong_shapes_are_said():
    head, (x, mask, g, seen) = matcher(), inputs()
    with pytest.raises(BadInput, match="masks"):
        head(x, mask[:, :2], g, seen)
    with pytest.raises(BadInput, match="descriptions"):
        head(x, mask, g[..., :3], seen)
    with pytest.raises(BadInput, match="8-d"):
        head(x[..., :4], mask, g[..., :4], seen)
    with pytest.raises(UnknownName, match="product"):
        CrossMatcher(8, interaction="produkt")  # pyright: ignore
    with pytest.raises(BadInput, match="heads"):
        CrossMatcher(9, heads=4)


# ---- the classifier


def test_it_beats_the_probe_and_exchanged_descriptions_ruin_it(world, box, few, fitted):
    texts, labels = few[2]
    means = [box.means(part[0]) for part in (few[0], few[2])]
    accuracy = fitted.score(texts, labels)
    assert accuracy > LinearProbe().fit(means[0], few[0][1]).score(means[1], labels) + 0.08
    moved = dict(zip(world.names, np.roll(list(world.descriptions.values()), 1).tolist(), strict=True))
    assert fitted.with_classes(world.names, moved).score(texts, labels) < 0.34
    assert fitted.score(texts, labels) == accuracy


def test_without_training_it_is_zero_shot(world, box, few):
    start = CrossTune(box, world.descriptions, epochs=0, random_state=0).fit(*few[0], dev=few[1])
    assert start.epoch_ == 0
    scores = start.decision_scores(few[2][0])
    features = start._features(few[2][0]).batch(range(len(few[2][0])))
    with torch.no_grad():
        cosine = start.matcher_.cosine(features["input_features"], features["attention_mask"], *start.labels_)
    np.testing.assert_allclose(scores, cosine.numpy(), atol=1e-5)
    assert start.score(*few[2]) > 0.5


def test_the_best_state_on_development_items_is_kept(world, box, few):
    model = CrossTune(box, world.descriptions, rate=0.05, epochs=5, random_state=0).fit(*few[0], dev=few[1])
    assert model.dev_accuracy_ == max(model.history_)
    assert model.dev_accuracy_ == pytest.approx(model.score(*few[1]))
    assert len(model.history_) == 6


def test_repeatable_and_does_not_touch_its_input(world, box, few):
    texts, labels = list(few[0][0]), few[0][1].copy()
    twice = [CrossTune(box, world.descriptions, **SHORT).fit(*few[0], dev=few[1]) for _ in range(2)]
    np.testing.assert_array_equal(*(m.predict_proba(few[2][0]) for m in twice))
    assert few[0][0] == texts
    assert (few[0][1] == labels).all()
    assert clone(twice[0]).get_params()["epochs"] == 3


def test_probabilities_are_calibrated_and_batches_do_not_matter(fitted, few):
    shares = fitted.predict_proba(few[2][0])
    np.testing.assert_allclose(shares.sum(1), 1)
    parts = [fitted.predict_proba(few[2][0][i : i + 7]) for i in range(0, 60, 7)]
    np.testing.assert_allclose(np.concatenate(parts), shares, atol=1e-5)
    assert fitted.predict_proba([]).shape == (0, 3)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    target = (logits.cumsum(1) * 0 + np.exp(logits)).cumsum(1)
    target = (rng.random((4000, 1)) * target[:, -1:] > target).sum(1)
    assert temperature(4 * logits, target) == pytest.approx(4, rel=0.1)


def test_one_class_and_classes_without_examples(world, box, few):
    texts = few[0][0][:4]
    one = CrossTune(box, world.descriptions, **SHORT).fit(texts, ["a"] * 4)
    assert (one.predict_proba(few[2][0]) == 1).all()
    wide = CrossTune(box, world.descriptions, classes=world.names, **SHORT)
    two = [i for i, label in enumerate(few[0][1]) if label != "c"]
    wide.fit([few[0][0][i] for i in two], few[0][1][two])
    assert wide.predict_proba(few[2][0]).shape == (60, 3)
    assert "c" in wide.predict(few[2][0])


def test_a_shortlist_of_the_classifier(fitted, few):
    whole = fitted.decision_scores(few[2][0])
    short = fitted.with_classes(fitted.classes_.tolist(), fitted.descriptions)
    short.shortlist = 2
    found = short.decision_scores(few[2][0])
    assert (np.isinf(found).sum(1) == 1).all()
    np.testing.assert_allclose(found[np.isfinite(found)], whole[np.isfinite(found)], atol=1e-4)


def test_vectors_and_tokens_instead_of_texts():
    rng = np.random.default_rng(0)
    y = np.repeat([3, 5], 8)
    x = rng.normal(size=(16, 4, 8)) + 2 * np.where(y == 3, 1, -1)[:, None, None] * np.eye(8)[0]
    for rows in (x, x.mean(1)):
        model = CrossTune(**SHORT).fit(rows, y)
        assert model.score(rows, y) == 1
    about = np.stack([np.eye(8)[0], -np.eye(8)[0]])
    assert CrossTune(None, about, **SHORT).fit(x, y).score(x, y) == 1


def test_saved_and_loaded(fitted, few, box, tmp_path):
    fitted.save(tmp_path / "head.safetensors")
    loaded = CrossTune.load(tmp_path / "head.safetensors", box)
    np.testing.assert_array_equal(loaded.predict_proba(few[2][0]), fitted.predict_proba(few[2][0]))
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(BadInput, match="not a saved"):
        CrossTune.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": ["a", "b"]}, BadInput, "12 items"),
        ({"dev": ([], [])}, BadInput, "dev"),
        ({"dev": (["a0"], ["z"])}, UnknownName, "z"),
        ({"switch": "maybe"}, UnknownName, "maybe"),
        ({"encoder": 3}, BadInput, "encodes nothing"),
        ({"encoder": None}, BadInput, "Give an encoder"),
        ({"encoder": lambda texts: np.full((len(texts), 4), np.nan)}, BadInput, "NaN"),
        ({"encoder": lambda texts: np.zeros((1, 4, 4, 4))}, BadInput, "shape"),
        ({"epochs": -1}, BadInput, "epochs"),
    ],
)
def test_bad_input(world, box, few, change, error, message):
    y, dev = change.pop("y", few[0][1]), change.pop("dev", few[1])
    model = CrossTune(**{"encoder": box, "descriptions": world.descriptions, **SHORT, **change})
    with pytest.raises(error, match=message):
        model.fit(few[0][0], y, dev=dev)


def test_examples_that_cannot_be_divided(world, box, few):
    with pytest.raises(BadInput, match="to spare"):
        CrossTune(box, world.descriptions, **SHORT).fit([few[0][0][i] for i in (0, 4, 8)], ["a", "b", "c"])


def test_the_same_share_of_each_class_is_held_out():
    numbers = np.array([1, 0, 1, 1, 0, 2, 1, 1])
    rows = held_out_rows(numbers, 0.5, seed=0)
    assert np.bincount(numbers[rows], minlength=3).tolist() == [1, 2, 0]
    assert len(set(rows.tolist())) == 3
    np.testing.assert_array_equal(rows, held_out_rows(numbers, 0.5, seed=0))


def test_means_of_examples_stand_for_classes_without_a_description():
    tokens = [np.full((2, 3), 1.0), np.full((1, 3), 3.0), np.array([[0.0, 0, 0], [4, 4, 4]])]
    features, classes = Features.ragged("input_features", tokens), np.array(["x", "y"])
    np.testing.assert_allclose(from_examples(features, np.array([0, 0, 1]), classes), [[2.0] * 3, [2.0] * 3])
    with pytest.raises(BadInput, match="'y' has neither"):
        from_examples(features, np.zeros(3, int), classes)


def test_one_text_is_no_list_of_texts(fitted):
    with pytest.raises(BadInput, match="list of texts"):
        fitted.predict("a0 a1")


# ---- the black box


def test_only_calls_one_each_and_no_gradient(tmp_path):
    network = torch.nn.Linear(1, 4)
    seen = []

    def encoder(texts):
        assert not torch.is_grad_enabled()
        seen.extend(texts)
        return network(torch.tensor([[float(len(t))] for t in texts]))

    cache = FeatureCache(tmp_path)
    box = BlackBox(encoder, name="test", cache=cache)
    first = box.tokens(["a", "bb", "a"])
    box.tokens(["bb"])
    assert seen == ["a", "bb"]
    assert first[0].shape == (1, 4)
    again = BlackBox(encoder, name="test", cache=FeatureCache(tmp_path))
    np.testing.assert_array_equal(again.tokens(["bb"])[0], first[1])
    assert again.calls == 0
    CrossTune(box, {"x": "a", "y": "bb"}, **SHORT).fit(["c", "dd", "eee", "ffff"], ["x", "x", "y", "y"])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_masks_lists_and_windows():
    rows = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    masked = BlackBox(lambda texts: (torch.tensor(rows), torch.tensor([[1, 1, 0, 0, 0, 0]])))
    np.testing.assert_array_equal(masked.tokens(["x"])[0], rows[0, :2])
    np.testing.assert_array_equal(
        BlackBox(lambda texts: [rows[0]], most=3).tokens(["x"])[0], rows[0].reshape(3, 2, 2).mean(1)
    )
    np.testing.assert_allclose(windows(rows[0], 1), rows[0].mean(0, keepdims=True))
    with pytest.raises(BadInput, match="list of texts"):
        masked.tokens("x")


# ---- generation and the switch


def test_a_threshold_above_one_trains_as_without_generator(world, box, few):
    plain = CrossTune(box, world.descriptions, **SHORT).fit(*few[0], dev=few[1])
    closed = CrossTune(box, world.descriptions, generator=NGrams(), threshold=1.01, n_generate=8, **SHORT)
    closed.fit(*few[0], dev=few[1])
    assert closed.switch_.kept == 0
    assert not closed.switch_.on
    np.testing.assert_array_equal(closed.decision_scores(few[2][0]), plain.decision_scores(few[2][0]))


def test_bad_texts_do_not_pass_the_teacher_and_the_switch_never_loses_on_development(world, box, few):
    def wrong(prompt, n):  # sentences of the next topic
        name = next(line for line in prompt.splitlines() if line.startswith("Class: "))[-1]
        topic = (world.names.index(name) + 1) % 3
        return world.sample(n, len(prompt))[0][topic * n : (topic + 1) * n]

    model = CrossTune(box, world.descriptions, generator=wrong, n_generate=16, threshold=0.6, **SHORT)
    model.fit(*few[0], dev=few[1])
    report = model.selection_.report(np.asarray(model.selection_.labels) + 1)  # asked for c, about c + 1
    assert report.coverage < 0.4
    assert model.dev_accuracy_ >= model.switch_.without
    loose = clone(model).set_params(switch="unfiltered").fit(*few[0], dev=few[1])
    assert loose.switch_.kept == loose.switch_.new > model.switch_.kept
    assert loose.switch_.on


def test_a_teacher_of_ones_own_on_the_texts(world, few, box):
    rows = FunctionTransformer(lambda texts: np.stack([t.mean(0) for t in world.encode(list(texts))]))
    own = CrossTune(
        box,
        world.descriptions,
        generator=NGrams(),
        teacher=make_pipeline(rows, LinearProbe()),
        n_generate=8,
        threshold=0.4,
        **SHORT,
    )
    default = clone(own).set_params(teacher=None)
    kept = [np.asarray(m.fit(*few[0], dev=few[1]).selection_.keep) for m in (own, default)]
    np.testing.assert_array_equal(*kept)
    shares = judged(LinearProbe(), np.eye(3)[:2], np.array([0, 2]), np.eye(3), 3)
    assert (shares[:, 1] == 0).all()


def test_prompts_fit_the_context_and_show_training_texts_only(few):
    shown = []

    def generate(prompt, n):
        shown.append(prompt)
        return ["new one", " ", "New  ONE", "other"][:n]

    texts, labels = few[0][0], np.repeat(np.arange(3), 4)
    made, asked = generate_texts(generate, list("abc"), ["d0", "d1", "d2"], texts, labels, each=4, demonstrations=2)
    assert made == ["new one", "New  ONE", "other"] * 3
    assert asked.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for number, one in enumerate(shown):
        lines = [line.removeprefix("Example: ") for line in one.splitlines() if line.startswith("Example: ")]
        assert len(lines) == 2
        assert set(lines) <= set(texts[number * 4 : number * 4 + 4])
    long = prompt("a", "about", ["x" * 50, "y" * 50], most=190)
    assert len(long) <= 190
    assert "x" * 50 in long
    assert "y" * 50 not in long
    with pytest.raises(BadInput, match="longer than 20"):
        prompt("a", "about", [], most=20)
    with pytest.raises(BadInput, match="list of texts"):
        generate_texts(lambda p, n: "text", ["a"], ["d"], ["t"], np.zeros(1, int))  # pyright: ignore


def test_copies_are_dropped():
    made = ["Fresh", "known  TEXT", "fresh", "close"]
    vectors = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.1]])
    new = without_copies(made, vectors, ["Known text"], np.array([[1.0, 0.0]]))
    assert new.tolist() == [True, False, False, False]
    assert without_copies([], np.zeros((0, 2)), ["x"], np.ones((1, 2))).tolist() == []


def test_word_chains_stay_among_the_words_of_the_prompt():
    asked = prompt("sport", "games such as football", ["one two three four", "two three five"])
    texts = NGrams(put_in=0.3, seed=1)(asked, 20)
    assert len(texts) == 20
    assert {word for text in texts for word in text.split()} <= {
        "one",
        "two",
        "three",
        "four",
        "five",
        "games",
        "such",
        "football",
    }
    assert texts == NGrams(put_in=0.3, seed=1)(asked, 20)
    assert NGrams()("Class: x", 3) == []


# ---- peers and descriptions


def test_peers():
    rng = np.random.default_rng(0)
    y = np.repeat(["n", "p"], 20)
    x = rng.normal(size=(40, 6)) + np.where(y == "p", 1.5, -1.5)[:, None] * np.eye(6)[0]
    turned = np.stack([-np.eye(6)[0] + np.eye(6)[1], np.eye(6)[0] + np.eye(6)[1]])
    assert ZeroShot(turned).fit(x, y).score(x, y) > 0.8
    assert ZeroShot().fit(x, y).score(x, y) > 0.9
    probe = LinearProbe().fit(x, y)
    assert probe.score(x, y) > 0.9
    np.testing.assert_allclose(LinearProbe().fit(x[:20], y[:20]).predict_proba(x), 1)
    wrong = turned[::-1] * 0.3 + np.eye(6)[1]
    searched = VerbalizerSearch(wrong, random_state=0).fit(x, y)
    assert searched.score(x, y) > ZeroShot(wrong).fit(x, y).score(x, y) + 0.3
    with pytest.raises(BadInput, match="descriptions for"):
        ZeroShot(turned[:1]).fit(x, y)


def test_sources_of_descriptions():
    assert sentences(["a_b", "c"]) == ["this text is about a b.", "this text is about c."]
    aspects = lambda name: {"what": [f"{name} is.", "It has."], "other": ["More."]}  # noqa: E731
    assert sentences(["x"], aspects) == ["x is. It has. More."]
    assert sentences(["x", "y"], {"x": "Only this."}) == ["Only this.", "this text is about y."]


def test_the_world_tells_its_truth(world):
    texts, topic = world.sample(30, 5)
    own = [sum(word.startswith(world.names[t]) for word in text.split()) for text, t in zip(texts, topic, strict=True)]
    assert set(own) == {2, 3}
    assert all(len(text.split()) == 16 for text in texts)
    assert world.sample(30, 5)[0] == texts
    assert all({word[0] for word in text.split()} == {name} for name, text in world.descriptions.items())
    assert (world.encode(["nothing known"])[0] == 0).all()
    with pytest.raises(BadInput, match="fit together"):
        TopicTexts(described=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dev": (["a0"], ["a"], ["a"])}, "no pair"),
        ({"dev": ("a0", ["a", "b"])}, "no list of texts"),
        ({"rate": float("nan")}, "rate nan"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"dropout": 2}, "dropout 2"),
        ({"smoothing": 2}, "smoothing 2"),
        ({"width": 0}, "width 0"),
        ({"generator": lambda prompt, n: None}, "list of texts"),
        ({"encoder": lambda texts: ["a"] * len(texts)}, "returned texts"),
    ],
)
def test_more_bad_input(world, box, few, change, message):
    dev = change.pop("dev", few[1])
    model = CrossTune(**{"encoder": box, "descriptions": world.descriptions, **SHORT, **change})
    with pytest.raises(BadInput, match=message):
        model.fit(*few[0], dev=dev)


def test_items_labels_and_descriptions_of_the_wrong_kind(box):
    rows, y = np.random.default_rng(0).normal(size=(8, 8)), np.repeat([0, 1], 4)
    for wrong in ("abcdefgh", None):
        with pytest.raises(BadInput, match="no list of texts"):
            CrossTune(box, **SHORT).fit(wrong, y)
    with pytest.raises(BadInput, match="NaN"):
        CrossTune(**SHORT).fit(rows, np.full(8, np.nan))
    for about in ({"0": "a", "1": "b"}, "file.json", np.ones((3, 8))):
        with pytest.raises(BadInput, match="for 2 classes"):
            CrossTune(None, about, **SHORT).fit(rows, y)
    fitted = CrossTune(None, rows[:2], **SHORT).fit(rows, y)
    with pytest.raises(BadInput, match="named twice"):
        fitted.with_classes(["a", "a"], rows[:2])
    with pytest.raises(NotFittedError):
        CrossTune().predict(rows)


@pytest.mark.parametrize("kind", [ZeroShot, LinearProbe, VerbalizerSearch])
def test_peers_refuse_what_is_no_table(kind):
    rows, y = np.random.default_rng(0).normal(size=(8, 4)), np.repeat([0, 1], 4)
    for x, labels in ((rows, y[:4]), (rows[:0], y[:0]), (rows[0], y[:4]), (np.full((8, 4), np.nan), y)):
        with pytest.raises(BadInput):
            kind().fit(x, labels)
    with pytest.raises(BadInput, match="vectors of shape"):
        kind().fit(rows, y).predict(rows[0])

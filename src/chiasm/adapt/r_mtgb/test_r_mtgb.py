"""Identities and closed forms of R-MTGB, its trees beside scikit-learn's exact ones, hostile input."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.base import clone
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from chiasm.adapt.r_mtgb import RMTGBClassifier, RMTGBRegressor, growing
from chiasm.adapt.r_mtgb.binning import Bins
from chiasm.adapt.r_mtgb.boosting import theta_gradient
from chiasm.adapt.r_mtgb.growing import Grower, Shape, sklearn_grower
from chiasm.adapt.r_mtgb.losses import CrossEntropy, SquaredError
from chiasm.errors import BadInput, ChiasmError, UnknownName
from chiasm.worlds.task_tables import task_table

ENGINES = ["numpy"] + (["sklearn"] if sklearn_grower() else [])
PLAIN = {"from_zero": True, "random_state": 0}
KINDS = (RMTGBRegressor, RMTGBClassifier)


@pytest.fixture(scope="module")
def table():
    return task_table(4, 1, rows=60, test_rows=20, dim=3, seed=5)


def fitted(table, rounds, kind=RMTGBRegressor, **options):
    y = (table.y > 0).astype(int) if kind is RMTGBClassifier else table.y
    return kind(*rounds, **{**PLAIN, **options}).fit(table.x[table.train], y[table.train], task=table.task[table.train])


def answers(model, table):
    task = table.task if len(model.tasks_) > 1 else None
    return model.predict_proba(table.x, task) if hasattr(model, "classes_") else model.predict(table.x, task)


# ---- scikit-learn's own contract


@parametrize_with_checks([RMTGBRegressor(2, 3, 2, random_state=0), RMTGBClassifier(2, 3, 2, random_state=0)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)
    assert clone(estimator).get_params() == estimator.get_params()


# ---- trees


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("depth", "least"), [(1, 1), (3, 1), (3, 7), (6, 4)])
def test_trees_are_the_exact_ones_on_the_codes(engine, depth, least):
    rng = np.random.default_rng(depth)
    x, groups = rng.normal(size=(400, 4)), rng.integers(3, size=400)
    targets = np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=400) + groups
    bins = Bins.of(x, 32, rng)
    codes = bins.codes(x)
    grower = Grower(codes, bins.used, 32, groups, 3, np.ones(400, bool), Shape(depth, least, 0.0), engine)
    forest, leaves, sizes = grower.grow(targets)
    np.testing.assert_array_equal(sizes, np.bincount(leaves, minlength=len(forest.value)))
    assert len(forest.roots) == 3
    for g in range(3):
        mine = groups == g
        exact = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=least, random_state=0)
        exact.fit(codes.T[mine], targets[mine])
        means = np.bincount(leaves[mine], targets[mine]) / np.maximum(np.bincount(leaves[mine]), 1)
        np.testing.assert_allclose(means[leaves[mine]], exact.predict(codes.T[mine]), atol=1e-9)
    np.testing.assert_array_equal(forest.walk(codes, forest.roots[groups]), leaves)


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_values_go_to_the_better_side(engine):
    x = np.array([[0.0], [1.0], [2.0], [3.0], [np.nan], [np.nan]])
    y = np.array([0.0, 0.0, 5.0, 5.0, 5.0, 5.0])
    model = RMTGBRegressor(1, 0, 0, learning_rate=1.0, max_depth=1, min_samples_leaf=1, engine=engine, **PLAIN)
    np.testing.assert_allclose(model.fit(x, y).predict(x), y)
    np.testing.assert_allclose(model.fit(x, 5 - y).predict(x), 5 - y)
    left = np.array([5.0, 5.0, 0.0, 0.0, 5.0, 5.0])
    np.testing.assert_allclose(model.fit(x, left).predict(x), left)


@pytest.mark.skipif(len(ENGINES) < 2, reason="this scikit-learn has no usable grower")
@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same_model(table, kind):
    models = [fitted(table, (5, 8, 5), kind, engine=engine) for engine in ENGINES]
    np.testing.assert_allclose(answers(models[0], table), answers(models[1], table), atol=1e-4)


def test_a_changed_scikit_learn_is_noticed(monkeypatch):
    class Other:
        def __init__(
            self,
            a,
            b,
            c,
            max_depth,
            min_samples_leaf,
            l2_regularization,
            n_bins,
            n_bins_non_missing,
            has_missing_values,
        ):
            raise TypeError("another interface")

    module = pytest.importorskip("sklearn.ensemble._hist_gradient_boosting.grower")
    monkeypatch.setattr(module, "TreeGrower", Other)
    sklearn_grower.cache_clear()
    try:
        assert growing.choose("auto") is None
        with pytest.raises(ChiasmError, match="engine='auto'"):
            growing.choose("sklearn")
    finally:
        monkeypatch.undo()
        sklearn_grower.cache_clear()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=80),
    st.integers(2, 255),
)
def test_codes_keep_the_order_and_stay_in_their_range(values, most):
    column = np.array(values)[:, None]
    bins = Bins.of(column, most, np.random.default_rng(0))
    codes = bins.codes(column)[0].astype(int)
    there = ~np.isnan(column[:, 0])
    assert (codes[~there] == most).all()
    assert (codes[there] < bins.used[0]).all()
    assert bins.used[0] <= most
    ordered = codes[there][np.argsort(column[there, 0], kind="stable")]
    assert (np.diff(ordered) >= 0).all()
    np.testing.assert_array_equal(codes[there], np.searchsorted(bins.edges[0], column[there, 0]))
    if len(np.unique(column[there])) <= most:
        assert len(np.unique(codes[there])) == len(np.unique(column[there]))


# ---- the method


def naive(codes, y, task, theta, rounds, eta, depth, least):
    """The card's three blocks, term by term, with exact trees on the codes."""
    shared, usual, odd, own = (np.zeros(len(y)) for _ in range(4))

    def tree(rows, target):
        grown = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=least, random_state=0)
        return eta * grown.fit(codes[rows], target).predict(codes[rows])

    everyone = np.ones(len(y), bool)
    for _ in range(rounds[0]):
        shared += tree(everyone, y - shared)
    for _ in range(rounds[1]):
        s = expit(theta)[task]
        residual = y - shared - (1 - s) * usual - s * odd
        gradient = np.array(
            [
                -sum(residual[i] * s[i] * (1 - s[i]) * (odd[i] - usual[i]) for i in np.flatnonzero(task == r))
                for r in range(len(theta))
            ]
        )
        new = tree(everyone, s * residual), tree(everyone, (1 - s) * residual)
        theta = theta - eta * gradient
        odd, usual = odd + new[0], usual + new[1]
    s = expit(theta)[task]
    base = shared + (1 - s) * usual + s * odd
    for _ in range(rounds[2]):
        for r in range(len(theta)):
            own[task == r] += tree(task == r, (y - base - own)[task == r])
    return base + own, theta


@pytest.mark.parametrize("engine", ENGINES)
def test_against_a_naive_version(table, engine):
    x, y, task = table.x[table.train], table.y[table.train], table.task[table.train]
    model = RMTGBRegressor(4, 10, 3, max_depth=2, min_samples_leaf=3, engine=engine, **PLAIN).fit(x, y, task=task)
    first = model.boosted_.thetas[0]
    want, theta = naive(model.bins_.codes(x).T, y, task, first, (4, 10, 3), 0.1, 2, 3)
    np.testing.assert_allclose(model.predict(x, task), want, atol=1e-5)
    np.testing.assert_allclose(model.boosted_.thetas[-1], theta, atol=1e-4)


def test_without_first_thetas_block_two_is_block_one_at_half_the_rate(table):
    robust = fitted(table, (0, 12, 0), theta_init_std=0.0)
    shared = fitted(table, (12, 0, 0), learning_rate=0.05)
    assert set(robust.task_outlier_score_.values()) == {0.5}
    np.testing.assert_array_equal(answers(robust, table), answers(shared, table))


@pytest.mark.parametrize("kind", KINDS)
def test_with_one_task_block_three_is_block_one(table, kind):
    y = (table.y > 0).astype(int) if kind is RMTGBClassifier else table.y
    models = [kind(*rounds, **PLAIN).fit(table.x, y) for rounds in ((9, 0, 0), (0, 0, 9))]
    np.testing.assert_array_equal(answers(models[0], table), answers(models[1], table))


def test_block_three_is_independent_boosters_on_the_same_edges(table, monkeypatch):
    together = fitted(table, (0, 0, 8))
    monkeypatch.setattr(Bins, "of", classmethod(lambda cls, x, most, rng: together.bins_))
    for r in range(4):
        mine = table.task == r
        alone = RMTGBRegressor(0, 0, 8, **PLAIN).fit(table.x[mine & table.train], table.y[mine & table.train])
        np.testing.assert_array_equal(together.predict(table.x[mine], table.task[mine]), alone.predict(table.x[mine]))


def test_exchanging_usual_and_odd_with_the_sign_of_theta_changes_nothing(table):
    model = fitted(table, (3, 12, 2))
    before, scores = answers(model, table), np.array(list(model.task_outlier_score_.values()))
    boosted = model.boosted_
    boosted.usual, boosted.odd, boosted.thetas = boosted.odd, boosted.usual, -boosted.thetas
    np.testing.assert_allclose(answers(model, table), before, atol=1e-12)
    np.testing.assert_allclose(boosted.weights(), 1 - scores, atol=1e-12)
    back = boosted.oriented(np.full(4, 60))
    assert (back.weights() < 0.5).sum() >= 2


@pytest.mark.parametrize("loss", [SquaredError(), CrossEntropy(2), CrossEntropy(4)], ids=["squared", "two", "four"])
def test_theta_gradient_and_residual_are_the_derivatives_of_the_loss(loss):
    rng = np.random.default_rng(0)
    n, columns = 40, loss.columns
    classes = 2 if loss.copies == 2 else columns
    task, y = rng.integers(3, size=n), rng.normal(size=n) if classes == 1 else rng.integers(classes, size=n)
    base, usual, odd = (rng.normal(size=(n, columns)) for _ in range(3))
    theta = rng.normal(size=3)

    def raw(theta):
        s = expit(theta)[task][:, None]
        return base + (1 - s) * usual + s * odd

    found = theta_gradient(loss.residual(y, raw(theta)), usual, odd, theta, task, loss.copies)
    for r in range(3):
        step = 1e-5 * np.eye(3)[r]
        slope = n * (loss.loss(y, raw(theta + step)) - loss.loss(y, raw(theta - step))) / 2e-5
        assert abs(slope - found[r]) < 1e-6 * max(1, abs(slope))
    one = np.zeros((n, columns))
    one[0, 0] = 1e-5
    slope = n * (loss.loss(y, base + one) - loss.loss(y, base - one)) / 2e-5
    assert abs(-slope - loss.copies * loss.residual(y, base)[0, 0]) < 1e-6
    bend = (loss.residual(y, base + one) - loss.residual(y, base - one))[0, 0] / 2e-5
    assert abs(-bend / loss.copies - loss.curvature(y, base)[0, 0]) < 1e-5


def test_renaming_tasks_renames_the_scores_only(table):
    model = fitted(table, (2, 10, 2))
    x, y, task = table.x[table.train], table.y[table.train], table.task[table.train]
    names = np.array(["a", "b", "c", "d"])
    other = RMTGBRegressor(2, 10, 2, **PLAIN).fit(x, y, task=names[task])
    assert list(other.task_outlier_score_.values()) == list(model.task_outlier_score_.values())
    assert list(other.task_outlier_score_) == ["a", "b", "c", "d"]
    order = np.random.default_rng(0).permutation(len(y))
    mixed = RMTGBRegressor(2, 10, 2, **PLAIN).fit(x[order], y[order], task=task[order])
    np.testing.assert_allclose(mixed.predict(x, task), model.predict(x, task), atol=1e-6)


def test_a_rate_of_zero_predicts_the_start(table):
    assert (answers(fitted(table, (3, 3, 3), learning_rate=0.0), table) == 0).all()
    mean = table.y[table.train].mean()
    np.testing.assert_allclose(answers(fitted(table, (3, 3, 3), learning_rate=0.0, from_zero=False), table), mean)
    shares = answers(fitted(table, (3, 3, 3), RMTGBClassifier, learning_rate=0.0, from_zero=False), table)
    np.testing.assert_allclose(shares[:, 1], (table.y[table.train] > 0).mean())


def test_the_unit_of_the_target_does_not_matter(table):
    x, task = table.x[table.train], table.task[table.train]
    plain, scaled = (
        RMTGBRegressor(2, 10, 3, random_state=0).fit(x, y, task=task)
        for y in (table.y[table.train], 1000 * table.y[table.train] + 7)
    )
    np.testing.assert_allclose(scaled.predict(x, task), 1000 * plain.predict(x, task) + 7, rtol=1e-4, atol=0.1)


def test_two_classes_are_one_column_of_the_general_form(table):
    """The single column of two classes against the two columns of the definition."""
    y = (table.y > 0).astype(int)
    x, task, mine = table.x[table.train], table.task[table.train], y[table.train]
    model = RMTGBClassifier(6, 0, 0, learning_rate=0.3, max_depth=2, **PLAIN).fit(x, mine, task=task)
    codes, raw = model.bins_.codes(x).T, np.zeros((len(mine), 2))
    for _ in range(6):
        residual = np.eye(2)[mine] - np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
        for k in range(2):
            tree = DecisionTreeRegressor(max_depth=2, min_samples_leaf=5, random_state=0).fit(codes, residual[:, k])
            raw[:, k] += 0.3 * tree.predict(codes)
    want = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(x, task), want, atol=1e-5)


def test_newton_leaves_are_the_ratio_of_sums(table):
    y = (table.y > 0).astype(int)
    model = RMTGBClassifier(1, 0, 0, learning_rate=1.0, max_depth=1, l2=2.0, newton=True, **PLAIN).fit(table.x, y)
    forest = model.boosted_.shared
    leaves = forest.walk(model.bins_.codes(table.x), np.repeat(forest.roots[:1], len(y)))
    for leaf in np.unique(leaves):
        mine = leaves == leaf
        want = (y[mine] - 0.5).sum() / (0.25 * mine.sum() + 2)
        assert abs(forest.value[leaf] - want) < 1e-9


def test_it_finds_the_odd_tasks_and_gains_by_it():
    table = task_table(6, 2, rows=80, test_rows=200, seed=3)
    test = ~table.train

    def error(model):
        return np.sqrt(np.mean((model.predict(table.x[test], table.task[test]) - table.y[test]) ** 2))

    robust = fitted(table, (0, 60, 30))
    assert robust.outlier_tasks_.tolist() == [4, 5]
    assert error(robust) < error(fitted(table, (0, 60, 30), theta_init_std=0.0, theta_lr=0.0))
    assert error(robust) < error(fitted(table, (90, 0, 0)))


def test_three_classes_and_staged_predictions(table):
    y = np.digitize(table.y, [-0.5, 0.5])
    x, task = table.x[table.train], table.task[table.train]
    model = RMTGBClassifier(3, 4, 3, **PLAIN).fit(x, y[table.train], task=task)
    stages = list(model.staged_predict(table.x, table.task))
    assert len(stages) == 10
    np.testing.assert_array_equal(stages[-1], model.predict(table.x, table.task))
    np.testing.assert_allclose(model.predict_proba(table.x, table.task).sum(1), 1)
    assert len(model.train_score_) == 10
    assert model.train_score_[-1] < model.train_score_[0]
    regressor = fitted(table, (3, 4, 3))
    *_, last = regressor.staged_predict(table.x, table.task)
    np.testing.assert_allclose(last, regressor.predict(table.x, table.task), atol=1e-12)


def test_early_stopping_goes_back_to_the_best_round(table):
    model = fitted(table, (200, 200, 200), early_stopping=True, n_iter_no_change=5, learning_rate=0.5, from_zero=False)
    kept = model.n_rounds_
    assert sum(kept) < 600
    assert len(model.validation_score_) == len(model.train_score_) == sum(kept)
    assert len(model.boosted_.thetas) == kept[1] + 1
    for first, last in ((0, kept[0]), (kept[0], sum(kept[:2])), (sum(kept[:2]), sum(kept))):
        block = model.validation_score_[first:last]
        assert not len(block) or block.argmin() == len(block) - 1
    with pytest.raises(BadInput, match="enough rows"):
        RMTGBRegressor(early_stopping=True).fit(table.x[:2], table.y[:2], task=[0, 1])


def test_subsampling_draws_and_can_be_repeated(table):
    one, two, other = (fitted(table, (5, 5, 5), subsample=0.5, random_state=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(answers(one, table), answers(two, table))
    assert not np.allclose(answers(one, table), answers(other, table))


# ---- input


def test_batches_do_not_matter(table):
    model = fitted(table, (3, 5, 3))
    whole = answers(model, table)
    single = [model.predict(table.x[i : i + 1], table.task[i : i + 1])[0] for i in range(0, 320, 40)]
    np.testing.assert_array_equal(single, whole[::40])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back_bit_for_bit(table, kind, tmp_path):
    model = fitted(table, (3, 4, 2), kind, from_zero=False)
    model.save(tmp_path / "model.safetensors")
    loaded = kind.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(answers(loaded, table), answers(model, table))
    assert loaded.task_outlier_score_ == model.task_outlier_score_
    assert loaded.get_params() == model.get_params()
    with pytest.raises(BadInput, match="not a saved"):
        (RMTGBClassifier if kind is RMTGBRegressor else RMTGBRegressor).load(tmp_path / "model.safetensors")
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="not a saved"):
        kind.load(tmp_path / "other")


def test_the_task_may_be_a_column(table):
    x, y, task = table.x[table.train], table.y[table.train], table.task[table.train]
    model = fitted(table, (2, 3, 2))
    wide = np.column_stack([x, task])
    by_number = RMTGBRegressor(2, 3, 2, **PLAIN).fit(wide, y, task=3)
    np.testing.assert_array_equal(by_number.predict(wide), model.predict(x, task))
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(x, columns=list("abc"))
    frame.insert(1, "shop", np.array(["n", "s", "w", "z"])[task])
    by_name = RMTGBRegressor(2, 3, 2, **PLAIN).fit(frame, y, task="shop")
    np.testing.assert_array_equal(by_name.predict(frame), model.predict(x, task))
    assert by_name.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(UnknownName, match="shop"):
        RMTGBRegressor().fit(frame, y, task="shup")
    with pytest.raises(BadInput, match="no column"):
        RMTGBRegressor().fit(wide, y, task=9)


def test_unseen_tasks(table):
    model = fitted(table, (3, 10, 3))
    x = table.x[:5]
    with pytest.warns(UserWarning, match="unseen tasks .7, 99"):
        found = model.predict(x, [7, 99, 7, 7, 99])
    usual = [s for s in model.task_outlier_score_.values() if s < 0.5]
    s, codes = np.mean(usual), model.bins_.codes(x)
    parts = [model.boosted_._column(getattr(model.boosted_, part), codes, 0) for part in ("shared", "usual", "odd")]
    np.testing.assert_allclose(found, parts[0] + (1 - s) * parts[1] + s * parts[2], atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(x, [0, 1, 2, 3, 0])
    model.unseen = "error"
    with pytest.raises(BadInput, match="1 unseen tasks"):
        model.predict(x, [0, 1, 2, 3, 4])
    with pytest.raises(BadInput, match="no task given"):
        model.predict(x)
    with pytest.raises(BadInput, match="same type"):
        model.predict(x, ["0"] * 5)


def test_one_task_by_name_says_that_scores_mean_nothing(table):
    with pytest.warns(UserWarning, match="only one task"):
        model = RMTGBRegressor(1, 2, 1).fit(table.x, table.y, task=np.full(len(table.y), "only"))
    assert list(model.task_outlier_score_) == ["only"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ([0, 1], "shape"),
        (np.full(320, np.nan), "missing or not whole"),
        (np.full(320, 0.5), "missing or not whole"),
        ([None] * 320, "types NoneType"),
        (["a"] * 319 + [3.5], None),
    ],
)
def test_bad_task_labels(table, task, message):
    if message is None:
        task, message = np.array(task, dtype=object), "types float, str"
    with pytest.raises(BadInput, match=message):
        RMTGBRegressor().fit(table.x, table.y, task=task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_shared": -1}, "n_shared is -1"),
        ({"max_depth": 0}, "max_depth"),
        ({"max_bins": 256}, "2 to 255"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"theta_lr": float("nan")}, "theta_lr"),
        ({"subsample": 0.0}, "subsample"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"unseen": "guess"}, "guess"),
        ({"engine": "numba"}, "numba"),
        ({"task_min_samples_leaf": 0}, "task_min_samples_leaf"),
    ],
)
def test_bad_settings(table, options, message):
    with pytest.raises(BadInput, match=message):
        RMTGBRegressor(**options).fit(table.x, table.y)


def test_one_class_and_broken_targets(table):
    with pytest.raises(BadInput, match="one class only"):
        RMTGBClassifier().fit(table.x, np.zeros(len(table.x)))
    with pytest.raises(BadInput, match="NaN"):
        RMTGBRegressor().fit(table.x, np.full(len(table.x), np.nan))
    with pytest.raises(BadInput, match="infinity"):
        RMTGBRegressor().fit(np.full((10, 2), np.inf), np.zeros(10))
    constant = RMTGBRegressor(3, 3, 3).fit(table.x, np.full(len(table.x), 4.0))
    np.testing.assert_allclose(constant.predict(table.x), 4.0)
    with pytest.raises(BadInput, match="odd ones"):
        task_table(3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsample": None}, "subsample"),
        ({"theta_lr": "a"}, "theta_lr"),
        ({"validation_fraction": "a"}, "validation_fraction"),
        ({"task_min_samples_leaf": 1.5}, "whole number"),
        ({"engine": None}, "engine"),
    ],
)
def test_settings_of_the_wrong_type_are_refused(table, options, message):
    with pytest.raises(BadInput, match=message):
        RMTGBRegressor(**options).fit(table.x, table.y)


def test_input_of_the_wrong_type_is_refused(table):
    with pytest.raises(BadInput, match="numbers as y"):
        RMTGBRegressor().fit(table.x, ["a"] * len(table.x))
    with pytest.raises(BadInput, match="task has shape"):
        RMTGBRegressor().fit(table.x, table.y, task=True)
    with pytest.raises(BadInput, match="not whole"):
        RMTGBRegressor().fit(table.x, table.y, task=np.full(len(table.x), 1e300))
    model = RMTGBRegressor(1, 1, 1, **PLAIN).fit(np.column_stack([table.x, table.task]), table.y, task=3)
    with pytest.raises(BadInput, match="no column"):
        model.predict(table.x[0])


def test_numpy_settings_are_saved(table, tmp_path):
    model = RMTGBRegressor(np.int64(1), 1, 1, learning_rate=np.float32(0.5), random_state=np.int64(0))
    model.fit(table.x, table.y, task=table.task).save(tmp_path / "model")
    loaded = RMTGBRegressor.load(tmp_path / "model")
    assert (loaded.n_shared, loaded.learning_rate, loaded.random_state) == (1, 0.5, 0)

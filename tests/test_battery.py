"""The battery catches faults: good examples pass every check, and each planted fault fails the check made for it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import battery
from chiasm.catalog import Method

# ---- corrections


class GoodCorrection:
    """Adds a bias: less for items that the bank likes on average."""

    def fit(self, gallery: Any, *, queries: Any = None, items: Any = None):
        self.gallery_ = gallery
        self.bias_ = -(queries @ gallery.T).mean(0)
        return self

    def scores(self, queries: Any):
        return queries @ self.gallery_.T + self.bias_

    def topk(self, queries: Any, k: int, *, chunk: int | None = None):
        from chiasm.kernels.topk import topk_inner

        return topk_inner(queries, self.gallery_, k, bias=self.bias_, chunk=chunk)


class Mutates(GoodCorrection):
    def fit(self, gallery, *, queries=None, items=None):
        gallery *= 2
        return super().fit(gallery, queries=queries, items=items)


class ReturnsNothing(GoodCorrection):
    def fit(self, gallery, *, queries=None, items=None):
        super().fit(gallery, queries=queries, items=items)


class ReturnsNumpy(GoodCorrection):
    def scores(self, queries):
        return np.asarray(super().scores(queries))


class ForgetsTheBias(GoodCorrection):
    def topk(self, queries, k, *, chunk=None):
        from chiasm.kernels.topk import topk_inner

        return topk_inner(queries, self.gallery_, k)


class WrongRows(GoodCorrection):
    def topk(self, queries, k, *, chunk=None):
        scores, rows = super().topk(queries, k)
        return scores, (rows + 1) % len(self.gallery_)


class DependsOnTheBatch(GoodCorrection):
    def topk(self, queries, k, *, chunk=None):
        scores, rows = super().topk(queries, k)
        return (scores, rows) if len(queries) > 5 else (scores + 0.1, rows)


class DependsOnTheChunk(GoodCorrection):
    def topk(self, queries, k, *, chunk=None):
        scores, rows = super().topk(queries, k)
        return (scores, rows) if chunk is None else (scores + 1 / chunk, rows)


class CannotBeFolded(GoodCorrection):
    def scores(self, queries):
        return super().scores(queries) ** 2

    def topk(self, queries, k, *, chunk=None):
        scores = np.asarray(self.scores(queries))
        rows = np.argsort(-scores, axis=1)[:, :k]
        best = np.take_along_axis(scores, rows, axis=1)
        if isinstance(queries, np.ndarray):
            return best, rows
        import torch

        return torch.from_numpy(best), torch.from_numpy(rows)


class MovesTheGallery(GoodCorrection):
    """A correction that offers `transform` in place of a bias."""

    def fit(self, gallery, *, queries=None, items=None):
        self.mean_ = gallery.mean(0)
        self.gallery_ = gallery - self.mean_
        return self

    def transform(self, gallery):
        return gallery - self.mean_

    def scores(self, queries):
        return queries @ self.gallery_.T

    def topk(self, queries, k, *, chunk=None):
        from chiasm.kernels.topk import topk_inner

        return topk_inner(queries, self.gallery_, k, chunk=chunk)


@pytest.mark.parametrize("kind", [GoodCorrection, MovesTheGallery])
def test_good_corrections_pass(kind):
    battery.check_correction(kind)
    assert battery.CONTRACTS["correction"] is battery.check_correction


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (Mutates, "mutated"),
        (ReturnsNothing, "does not return self"),
        (ReturnsNumpy, "scores"),
        (ForgetsTheBias, "topk is not the best of scores"),
        (WrongRows, "rows do not have"),
        (DependsOnTheBatch, "batch size"),
        (DependsOnTheChunk, "chunk changes"),
        (CannotBeFolded, "folded gallery"),
    ],
)
def test_bad_corrections_are_caught(kind, broken):
    with pytest.raises(AssertionError, match=broken):
        battery.check_correction(kind)


# ---- objectives


def objective(forward) -> Any:
    """A module class with this forward, built when asked for, so that collecting tests imports no torch."""

    def make():
        from torch import nn

        return type("Planted", (nn.Module,), {"forward": forward})()

    return make


def contrastive(self, a, b, *, groups=None):
    import torch
    from torch.nn.functional import cross_entropy

    return {"nce": cross_entropy(a @ b.T / 0.1, torch.arange(len(a)))}


def one_sided(self, a, b, *, groups=None):
    return contrastive(self, a, b.detach())


def not_a_dict(self, a, b, *, groups=None):
    return contrastive(self, a, b)["nce"]


def not_finite(self, a, b, *, groups=None):
    return {"nce": (a @ b.T - 10).log().sum()}


def not_scalar(self, a, b, *, groups=None):
    return {"nce": (a * b).sum(dim=1)}


def looks_at_the_order(self, a, b, *, groups=None):
    import torch

    return {"nce": ((a * b).sum(dim=1) * torch.arange(len(a))).sum()}


def writes_into_its_input(self, a, b, *, groups=None):
    a.data.mul_(2)
    return contrastive(self, a, b)


def random(self, a, b, *, groups=None):
    import torch

    return {"nce": contrastive(self, a, b)["nce"] * torch.rand(())}


def breaks_with_groups(self, a, b, *, groups=None):
    loss = contrastive(self, a, b)["nce"]
    return {"nce": loss if groups is None else loss * float("nan")}


def test_a_good_objective_passes():
    battery.check_objective(objective(contrastive))
    assert battery.CONTRACTS["objective"] is battery.check_objective


@pytest.mark.parametrize(
    ("forward", "broken"),
    [
        (one_sided, "reaches b"),
        (not_a_dict, "not a dict"),
        (not_finite, "is nan"),
        (not_scalar, "not a scalar"),
        (looks_at_the_order, "order of the pairs"),
        (writes_into_its_input, "a was mutated"),
        (random, "two calls"),
        (breaks_with_groups, "is nan"),
    ],
)
def test_bad_objectives_are_caught(forward, broken):
    with pytest.raises(AssertionError, match=broken):
        battery.check_objective(objective(forward))


# ---- distillation


def imitates(self, a, b, *, groups=None, teacher_logits):
    return {"kd": (a @ b.T - teacher_logits.detach()).square().mean()}


def ignores_the_teacher(self, a, b, *, groups=None, teacher_logits):
    return contrastive(self, a, b)


def teaches_the_teacher(self, a, b, *, groups=None, teacher_logits):
    return {"kd": (a @ b.T - teacher_logits).square().mean()}


def test_a_good_distillation_passes():
    battery.check_distillation(objective(imitates))
    assert battery.CONTRACTS["distillation"] is battery.check_distillation


@pytest.mark.parametrize(
    ("forward", "broken"), [(ignores_the_teacher, "what the teacher says"), (teaches_the_teacher, "get a gradient")]
)
def test_bad_distillations_are_caught(forward, broken):
    with pytest.raises(AssertionError, match=broken):
        battery.check_distillation(objective(forward))


# ---- estimators


def estimator(**changes):
    """A nearest-mean classifier with some of its members replaced."""

    def make():
        from sklearn.base import BaseEstimator

        def __init__(self, scale=1.0):
            self.scale = scale

        def fit(self, X, y):
            self.classes_ = np.unique(y)
            self.means_ = np.stack([X[y == c].mean(axis=0) for c in self.classes_])
            return self

        def predict_proba(self, X):
            logits = self.scale * X @ self.means_.T
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            return shares / shares.sum(axis=1, keepdims=True)

        def predict(self, X):
            return self.classes_[self.predict_proba(X).argmax(axis=1)]

        members = {"__init__": __init__, "fit": fit, "predict_proba": predict_proba, "predict": predict, **changes}
        return type("Planted", (BaseEstimator,), members)()

    return make


def doubles_its_argument(self, scale=1.0):
    self.scale = scale * 2


def learns_without_underscore(self, X, y):
    self.classes_, self.means_ = np.unique(y), np.eye(3, X.shape[1])
    self.seen = len(X)
    return self


def scales_its_input(self, X, y):
    X *= 3
    self.classes_, self.means_ = np.unique(y), np.eye(3, X.shape[1])
    return self


def centers_the_batch(self, X):
    return (X - X.mean(axis=0)).argmax(axis=1)


def unnormalized(self, X):
    return self.scale * X @ self.means_.T + 5


def test_a_good_estimator_passes():
    battery.check_estimator(estimator())
    assert battery.CONTRACTS["estimator"] is battery.check_estimator


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"__init__": doubles_its_argument}, "more than store"),
        ({"fit": learns_without_underscore}, "does not end in _"),
        ({"fit": scales_its_input}, "mutates"),
        ({"fit": lambda self, X, y: None}, "return self"),
        ({"predict": centers_the_batch}, "depends on the batch"),
        ({"predict_proba": unnormalized}, "do not sum to 1"),
    ],
)
def test_bad_estimators_are_caught(changes, broken):
    with pytest.raises(AssertionError, match=broken):
        battery.check_estimator(estimator(**changes))


# ---- adapters


def adapter(*, keeps_hook=False, in_place=False, steals=False, idle_parameter=False, mixes_batch=False):
    """Adds a learned offset behind the input embeddings, with one fault if asked for."""

    def make():
        import torch
        from torch import nn

        class Offset(nn.Module):
            def __init__(self):
                super().__init__()
                self.offset = nn.Parameter(torch.zeros(battery.DIM))
                if idle_parameter:
                    self.idle = nn.Parameter(torch.zeros(3))

            def attach(self, model):
                layer = model.get_input_embeddings()
                if steals:
                    self.stolen = layer.weight
                if in_place:
                    with torch.no_grad():
                        model.encoder.layer[0].output.dense.weight.mul_(1.01)

                def add(module, inputs, output):
                    if mixes_batch:
                        output = output - output.mean(dim=0)
                    return output + self.offset

                self.hook = layer.register_forward_hook(add)
                return self

            def detach(self):
                if not keeps_hook:
                    self.hook.remove()

        return Offset()

    return make


def test_a_good_adapter_passes():
    battery.check_adapter(adapter())
    assert battery.CONTRACTS["adapter"] is battery.check_adapter


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("keeps_hook", "not bit-identical"),
        ("in_place", "changes the parameter"),
        ("steals", "model's own"),
        ("idle_parameter", "no gradient reaches"),
        ("mixes_batch", "depends on the batch"),
    ],
)
def test_bad_adapters_are_caught(fault, broken):
    with pytest.raises(AssertionError, match=broken):
        battery.check_adapter(adapter(**{fault: True}))


# ---- rooms


def write_room(folder: Path) -> Path:
    """A room that keeps the rules on files."""
    folder.mkdir()
    for name, text in {
        "__init__.py": "",
        "method.toml": "",
        "method.py": "x = 1\n",
        "claim.py": "",
        f"test_{folder.name}.py": "def test_x():\n    assert 1 + 1 == 2\n",
        "README.md": "# X\n\n## The problem\na\n## Five lines\nb\n## What it costs\nc\n## When not to use it\nd\n## What we measured\ne\n",
    }.items():
        (folder / name).write_text(text)
    return folder


def check_room(folder: Path) -> None:
    battery.check_files(folder)
    battery.check_tests_assert(folder)
    battery.check_readme(folder)


def test_a_good_room_passes(tmp_path: Path):
    room = write_room(tmp_path / "good")
    check_room(room)
    assert len(list(room.iterdir())) == 6


@pytest.mark.parametrize(
    ("name", "text", "broken"),
    [
        ("claim.py", None, "lacks claim.py"),
        ("README.md", None, "lacks README.md"),
        ("test_bad.py", None, "lacks test_bad.py"),
        ("method.py", None, "no module"),
        ("method.py", "x = 1\n" * 451, "451 lines"),
        ("method.py", "# TODO: all of it\n", "TODO"),
        ("method.py", "def f():\n    raise NotImplementedError\n", "NotImplementedError"),
        ("test_bad.py", "def test_x():\n    print(1)\n", "asserts nothing"),
        ("test_bad.py", "x = 1\n", "has no test"),
        ("README.md", "# X\n\n## The problem\na\n", "no section on"),
        (
            "README.md",
            "## Problem\n## Five lines\nb\n## Cost\nc\n## When not to use it\nd\n## Measured\ne\n",
            "is empty",
        ),
    ],
)
def test_bad_rooms_are_caught(tmp_path: Path, name, text, broken):
    room = write_room(tmp_path / "bad")
    (room / name).unlink() if text is None else (room / name).write_text(text)
    with pytest.raises(AssertionError, match=broken):
        check_room(room)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"year": 25}, "year"),
        ({"arxiv": "arXiv:1234"}, "arXiv number"),
        ({"symptoms": ()}, "no symptom"),
        ({"license_note": " "}, "license_note"),
        ({"import_path": "chiasm.correct.x"}, "module:Class"),
        ({"extras": ("everything",)}, "not extras"),
        ({}, None),
    ],
)
def test_facts_of_a_method(tmp_path: Path, changes, broken):
    facts: dict[str, Any] = {
        "slug": "x",
        "title": "X",
        "year": 2024,
        "arxiv": "2401.00001",
        "kind": "correction",
        "import_path": "chiasm.correct.x:X",
        "symptoms": ("hubs",),
        "extras": ("media",),
        "license_note": "none",
        "room": "correct",
        "path": tmp_path,
    }
    method = Method(**(facts | changes))
    if broken is None:
        battery.check_method_toml(method)
        assert method.slug == "x"
        return
    with pytest.raises(AssertionError, match=broken):
        battery.check_method_toml(method)


def test_a_claim_needs_a_statement_and_the_right_arguments():
    from chiasm.claims import Claim, Gate

    def run(seed, data):
        return []

    def wrong(data, seed):
        return []

    gates = [Gate("s", "m", "b", "R@1"), Gate("c", "m", "b", "R@1", kind="within", control=True)]
    battery.check_claim(types.SimpleNamespace(CLAIM=Claim("with hubs it finds more", run, gates)))
    for bad in (Claim("better", run, gates), Claim("with hubs it finds more", wrong, gates), None):
        with pytest.raises(AssertionError):
            battery.check_claim(types.SimpleNamespace(CLAIM=bad))

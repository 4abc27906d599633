"""The contract battery: what every method must keep, one function per contract, run over the whole catalogue.

A check raises `AssertionError` with a sentence that says which rule is broken. `tests/test_contracts.py` runs them over
every method, `tests/test_battery.py` over planted good and bad examples, so that each check is known to catch its fault.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.catalog import Method

MOST_LINES = 450
DIM = 16  # length of the vectors that a method is tried with

# What a method's page must answer: the word or words of which a heading must hold one.
SECTIONS = {
    "the problem": ("problem",),
    "five lines of use": ("five lines", "usage", "use it", "how to use"),
    "what it costs": ("cost",),
    "when not to use it": ("when not", "do not use"),
    "what we measured": ("measured", "measure"),
}


# ---- the room: files


def check_files(folder: Path) -> None:
    """All files of the room are there, short enough, and hold no unfinished business."""
    names = {path.name for path in folder.iterdir()}
    for name in ("__init__.py", "method.toml", "claim.py", "README.md"):
        assert name in names, f"{folder.name} lacks {name}"
    tests = sorted(folder.glob("test_*.py"))
    assert tests, f"{folder.name} lacks test_{folder.name}.py"
    code = [
        path
        for path in sorted(folder.glob("*.py"))
        if path not in tests and path.name not in ("__init__.py", "claim.py")
    ]
    assert code, f"{folder.name} has no module with the method"
    for path in code:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES, (
            f"{path.name} has {lines} lines, at most {MOST_LINES} are allowed: split it by what it holds"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".py", ".toml", ".md"):
            text = path.read_text(encoding="utf-8")
            assert "TODO" not in text, f"{path.name} holds a TODO"
            assert "NotImplementedError" not in text, f"{path.name} raises NotImplementedError"


def check_tests_assert(folder: Path) -> None:
    """Every test function of the room asserts something: by assert, by raises/warns, or by a checking function."""
    for path in sorted(folder.glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name.startswith("test")]
        assert tests, f"{path.name} has no test"
        for test in tests:
            assert any(_asserts(node) for node in ast.walk(test)), f"{path.name}: {test.name} asserts nothing"


def _asserts(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name.startswith(("assert", "check", "_assert", "_check", "expect")) or name in (
        "raises",
        "warns",
        "fail",
        "gradcheck",
    )


def check_readme(folder: Path) -> None:
    """The page has a heading for each question a reader has, and an answer below each."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    sections = {heading.lower(): body.strip() for heading, body in zip(parts[1::2], parts[2::2])}
    for question, words in SECTIONS.items():
        answers = [body for heading, body in sections.items() if any(word in heading for word in words)]
        assert answers, f"README.md has no section on {question}"
        assert any(answers), f"README.md: the section on {question} is empty"


def check_method_toml(method: Method) -> None:
    """The facts are complete and true."""
    where = f"{method.slug}/method.toml"
    assert method.title.strip(), f"{where}: empty title"
    assert method.year in range(1990, 2100), f"{where}: year {method.year!r}"
    assert method.arxiv == "" or re.fullmatch(r"\d{4}\.\d{4,5}", method.arxiv), (
        f"{where}: arXiv number {method.arxiv!r}"
    )
    assert any(s.strip() for s in method.symptoms), f"{where}: no symptom"
    assert method.license_note.strip(), f"{where}: empty license_note"
    assert re.fullmatch(r"[\w.]+:\w+", method.import_path), (
        f"{where}: import_path {method.import_path!r} is not module:Class"
    )
    unknown = set(method.extras) - known_extras()
    assert not unknown, f"{where}: {sorted(unknown)} are not extras of pyproject.toml"


def known_extras() -> set[str]:
    """The extras that pyproject.toml declares."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return set(project["project"]["optional-dependencies"])


def check_export(method: Method) -> type:
    """``import_path`` names a documented class that the room's ``__init__`` exports; returns the class."""
    module, _, name = method.import_path.partition(":")
    package = ".".join(("chiasm", *method.room.split("/"), method.path.name))
    assert module == package, f"import_path is {module}, the room is {package}"
    room = importlib.import_module(module)
    assert name in getattr(room, "__all__", ()), f"{name} is not in __all__ of {module}"
    found = getattr(room, name)
    assert callable(found), f"{name} is not callable"
    assert (found.__doc__ or "").strip(), f"{name} has no docstring"
    return found


def check_claim(module: Any) -> None:
    """``claim.py`` declares a whole `Claim` in ``CLAIM``: statement, seeds, a judged gain, a negative control."""
    from chiasm.claims import Claim

    claim = getattr(module, "CLAIM", None)
    assert isinstance(claim, Claim), "claim.py has no CLAIM of type Claim"
    assert len(claim.statement.split()) >= 5, "the claim's statement is no sentence"
    assert len(set(claim.seeds)) >= 3, "the claim has fewer than three seeds"
    assert claim.cpu_seconds > 0, "the claim has no CPU budget"
    assert any(gate.control for gate in claim.gates), "the claim has no negative control"
    assert any(not gate.control for gate in claim.gates), "the claim has no gate besides the control"
    assert list(inspect.signature(claim.run).parameters)[:2] == ["seed", "data"], "run must take (seed, data)"


def arguments(method: Method) -> dict[str, Any]:
    """What the class is made with here: table ``[contract]``, key ``arguments`` of ``method.toml``; by default nothing."""
    raw = tomllib.loads((method.path / "method.toml").read_text(encoding="utf-8"))
    return raw.get("contract", {}).get("arguments", {})


# ---- arrays

Kind = Callable[[np.ndarray], Any]


def _numpy(array: np.ndarray) -> Any:
    return array.copy()


def _torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array.copy())


ARRAYS: dict[str, Kind] = {"numpy": _numpy, "torch": _torch}


def rows(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    """Unit rows float32 ``[count, dim]`` with a common direction, so that some items are hubs."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)) + rng.normal(size=dim) * 0.7
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _same_kind(result: Any, like: Any, what: str) -> None:
    assert type(result) is type(like), (
        f"{what} is a {type(result).__module__}.{type(result).__name__}, the input a {type(like).__name__}"
    )


def close(actual: Any, expected: Any, broken: str) -> None:
    """Equal up to float32 rounding; ``broken`` says which rule is broken if not."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=broken)


# ---- 4. corrections


def check_correction(make: Callable[[], Any]) -> None:
    """Contract 4: ``fit(gallery, queries=, items=)``, ``scores``, ``topk``, and ``bias_`` or ``transform``.

    Inputs are not mutated; arrays come back as the kind they came in; the size of the query batch (and ``chunk``, where
    there is one) changes nothing; topk is what sorting ``scores`` gives, and what plain inner-product search over the
    folded gallery gives.

    Args:
        make: makes a fresh, unfitted correction.
    """
    gallery, bank, items, queries = rows(60, 0), rows(40, 1), rows(30, 2), rows(12, 3)
    k = 7
    results = {}
    for kind, array in ARRAYS.items():
        given = [array(x) for x in (gallery, bank, items, queries)]
        correction = make()
        fitted = correction.fit(given[0], queries=given[1], items=given[2])
        assert fitted is correction, "fit does not return self"
        scores = correction.scores(given[3])
        best, places = correction.topk(given[3], k)
        for name, before, after in zip(
            ("gallery", "queries", "items", "query batch"), (gallery, bank, items, queries), given
        ):
            assert np.array_equal(before, np.asarray(after)), f"{name} was mutated ({kind})"
        _same_kind(scores, given[0], f"scores ({kind})")
        _same_kind(best, given[0], f"topk scores ({kind})")
        scores, best, places = np.asarray(scores), np.asarray(best), np.asarray(places)
        assert scores.shape == (len(queries), len(gallery)), f"scores have shape {scores.shape}"
        assert np.isfinite(scores).all(), "scores are not finite"
        assert best.shape == places.shape == (len(queries), k), f"topk has shape {best.shape}"
        results[kind] = scores, best, places
        _check_topk(scores, best, places)
        _check_batches(correction, given[3], best, places)
        _check_folding(correction, array, gallery, queries, best)
    close(results["torch"][0], results["numpy"][0], "numpy and torch disagree")


def _check_topk(scores: np.ndarray, best: np.ndarray, places: np.ndarray) -> None:
    want = -np.sort(-scores, axis=1)[:, : best.shape[1]]
    close(best, want, "topk is not the best of scores")
    at = np.take_along_axis(scores, places, axis=1)
    close(at, best, "topk's rows do not have topk's scores")


def _check_batches(correction: Any, queries: Any, best: np.ndarray, places: np.ndarray) -> None:
    parts = [correction.topk(queries[i : i + 5], best.shape[1]) for i in range(0, len(queries), 5)]
    for whole, place in ((best, 0), (places, 1)):
        split = np.concatenate([np.asarray(part[place]) for part in parts])
        close(split, whole, "the batch size of topk changes its result")
    if "chunk" in inspect.signature(correction.topk).parameters:
        for chunk in (1, 13):
            small = np.asarray(correction.topk(queries, best.shape[1], chunk=chunk)[0])
            close(small, best, "chunk changes the result of topk")


def _check_folding(correction: Any, array: Kind, gallery: np.ndarray, queries: np.ndarray, best: np.ndarray) -> None:
    if hasattr(correction, "bias_"):
        _same_kind(correction.bias_, array(gallery), "bias_")
        bias = np.asarray(correction.bias_)
        assert bias.shape == (len(gallery),), f"bias_ has shape {bias.shape}"
        folded = np.column_stack([gallery, bias]) @ np.column_stack([queries, np.ones(len(queries))]).T
    else:
        assert hasattr(correction, "transform"), "it has neither bias_ nor transform: no index can serve it"
        moved = correction.transform(array(gallery))
        _same_kind(moved, array(gallery), "transform(gallery)")
        turn = getattr(correction, "transform_query", lambda q: q)
        folded = np.asarray(moved) @ np.asarray(turn(array(queries))).T
    want = -np.sort(-folded.T, axis=1)[:, : best.shape[1]]
    close(best, want, "search over the folded gallery gives other scores than topk")


# ---- 3. objectives


def check_objective(make: Callable[[], Any], teacher: Callable[[Any, Any], Any] | None = None) -> None:
    """Contract 3: ``forward(a, b, groups=None) -> {name: scalar}``.

    Finite; a gradient reaches both sides; the order of the pairs does not matter; nothing is mutated; a pure function of
    its inputs; pairs of one group count as positives or at least do not break it; one pair is a batch too.

    Args:
        make: makes a fresh objective for vectors of `DIM`.
        teacher: logits of all pairs, ``teacher(a, b) -> [n, n]``, which the objective gets as ``teacher_logits``.
    """
    import torch

    values = [torch.from_numpy(rows(10, seed)) for seed in (0, 1)]
    torch.manual_seed(0)
    objective = make().eval()

    def total(a: Any, b: Any, groups: Any = None) -> Any:
        told = {} if teacher is None else {"teacher_logits": teacher(a.detach(), b.detach())}
        losses = objective(a, b, groups=groups, **told)
        assert isinstance(losses, dict), f"forward returns a {type(losses).__name__}, not a dict of losses"
        assert losses, "forward returns no loss"
        for name, loss in losses.items():
            assert torch.is_tensor(loss), f"loss {name!r} is a {type(loss).__name__}"
            assert loss.ndim == 0, f"loss {name!r} is not a scalar but {tuple(loss.shape)}"
            assert torch.isfinite(loss), f"loss {name!r} is {loss.item()}"
        return sum(losses.values())

    a, b = (value.clone().requires_grad_() for value in values)
    loss = total(a, b)
    for name, now, before in (("a", a, values[0]), ("b", b, values[1])):
        assert torch.equal(now.detach(), before), f"{name} was mutated"
    assert loss.requires_grad, "the loss has no gradient"
    loss.backward()
    for name, side in (("a", a), ("b", b)):
        assert side.grad is not None, f"no gradient reaches {name}"
        assert torch.isfinite(side.grad).all(), f"the gradient of {name} is not finite"
        assert side.grad.abs().max() > 0, f"the gradient of {name} is zero"
    assert torch.equal(total(*values), total(*values)), "two calls with the same input differ"
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    close(total(values[0][order], values[1][order]).detach(), total(*values).detach(), "the order of the pairs matters")
    groups = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    grouped = total(*values, groups)
    moved = total(values[0][order], values[1][order], groups[order])
    close(moved.detach(), grouped.detach(), "the order of the pairs matters when they have groups")
    total(values[0][:1], values[1][:1])


def check_distillation(make: Callable[[], Any]) -> None:
    """Contract 3 for an objective with a teacher, whose logits it gets as ``teacher_logits`` ``[n, n]``.

    What `check_objective` asks; and the teacher's logits matter, get no gradient and are not mutated.

    Args:
        make: makes a fresh objective for vectors of `DIM`.
    """
    import torch

    check_objective(make, teacher=lambda a, b: 3 * a @ b.T)
    a, b, z = (torch.from_numpy(rows(10, seed, dim)) for seed, dim in ((0, DIM), (1, DIM), (2, 10)))
    torch.manual_seed(0)
    objective = make().eval()
    given = [x.clone().requires_grad_() for x in (a, b, z)]
    found = sum(objective(*given[:2], teacher_logits=given[2]).values())
    found.backward()
    assert given[2].grad is None, "the teacher's logits get a gradient"
    assert torch.equal(given[2].detach(), z), "the teacher's logits were mutated"
    other = sum(objective(a, b, teacher_logits=z.flip(0)).values())
    assert not torch.allclose(found.detach(), other.detach()), "it does not matter what the teacher says"


# ---- 5. estimators


def check_estimator(make: Callable[[], Any]) -> None:
    """Contract 5: scikit-learn's. The constructor only stores, `clone` works, learned state ends in ``_``, fitting twice
    with one ``random_state`` gives the same, predictions do not depend on the batch, inputs are not mutated.

    Args:
        make: makes a fresh, unfitted estimator.
    """
    from sklearn.base import clone

    estimator = make()
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)  # without a seed two fits may differ, as everywhere in scikit-learn
    params = estimator.get_params()
    before = set(vars(estimator))
    assert not {n for n in before if n.endswith("_") and not n.startswith("_")}, "it has learned state before fit"
    try:
        twin = clone(estimator)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise AssertionError(f"the constructor does more than store its arguments: {error}") from error
    assert twin.get_params() == params, "clone has other parameters"
    labels = np.repeat(np.arange(3), 12)
    vectors = rows(36, 0) + 2 * np.eye(3, DIM, dtype=np.float32)[labels]
    given, given_labels = vectors.copy(), labels.copy()
    assert estimator.fit(given, given_labels) is estimator, "fit does not return self"
    assert np.array_equal(given, vectors), "fit mutates the vectors"
    assert np.array_equal(given_labels, labels), "fit mutates the labels"
    assert estimator.get_params() == params, "fit changes the parameters"
    learned = {n for n in set(vars(estimator)) - before if not n.startswith("_")}
    assert learned, "fit learns nothing"
    wrong = {n for n in learned if not n.endswith("_")}
    assert not wrong, f"learned state {sorted(wrong)} does not end in _"
    answer = next((name for name in ("predict", "score_samples", "transform") if hasattr(estimator, name)), None)
    assert answer is not None, "it has neither predict, score_samples nor transform"
    whole = np.asarray(getattr(estimator, answer)(given))
    assert np.array_equal(given, vectors), f"{answer} mutates its input"
    halves = np.concatenate(
        [np.asarray(getattr(estimator, answer)(given[part])) for part in (slice(0, 7), slice(7, None))]
    )
    close(halves, whole, f"{answer} depends on the batch")
    again = np.asarray(getattr(twin.fit(vectors, labels), answer)(vectors))
    close(again, whole, "fitting twice differs")
    if hasattr(estimator, "predict_proba"):
        shares = np.asarray(estimator.predict_proba(vectors))
        assert shares.shape == (36, 3), f"predict_proba has shape {shares.shape}"
        close(shares.sum(axis=1), np.ones(36), "probabilities do not sum to 1")
        assert (estimator.classes_[shares.argmax(axis=1)] == whole).all(), "predict is not the most probable class"


# ---- 6. adapters


def tiny_text_model() -> tuple[Any, dict[str, Any]]:
    """A random two-layer BERT and a batch for it: what an adapter is tried on by default."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ids = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    return BertModel(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tiny_dual_encoder() -> tuple[Any, dict[str, Any]]:
    """A random CLIP whose output is both vectors of each pair side by side ``[B, 2 D]``, and a batch for it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    class BothTowers(CLIPModel):
        def forward(self, pixel_values: Any, input_ids: Any, attention_mask: Any) -> tuple[Any]:  # type: ignore[override]
            image = self.get_image_features(pixel_values=pixel_values).pooler_output
            text = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
            return (torch.cat([image, text], dim=1),)

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    special = {"bos_token_id": 47, "pad_token_id": 48, "eos_token_id": 49}
    config = CLIPConfig(
        text_config={**tower, **special, "vocab_size": 50, "max_position_embeddings": 24},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=DIM,
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 47, (3, 8), generator=generator)
    ids[:, 0], ids[:, -1] = 47, 49
    pixels = torch.randn(3, 3, 16, 16, generator=generator)
    return BothTowers(config).eval(), {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


# What an adapter is tried on: table ``[contract]``, key ``model`` of ``method.toml``.
TINY: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {"text": tiny_text_model, "dual_encoder": tiny_dual_encoder}


def tiny_model(method: Method) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """The model that an adapter asks for; by default a text model."""
    raw = tomllib.loads((method.path / "method.toml").read_text(encoding="utf-8"))
    name = raw.get("contract", {}).get("model", "text")
    assert name in TINY, f"{method.slug}/method.toml: model {name!r} is none of {sorted(TINY)}"
    return TINY[name]


def check_adapter(make: Callable[[], Any], tiny: Callable[[], tuple[Any, dict[str, Any]]] = tiny_text_model) -> None:
    """Contract 6: attach and detach leave the model bit-identical.

    Its state dict holds only what was added; forward changes no parameter in place; evaluation does not depend on the
    batch; every trainable parameter that it added gets a gradient and none of the frozen model does.

    Args:
        make: makes a fresh adapter.
        tiny: makes a model and a batch.
    """
    import torch

    model, batch = tiny()
    model.requires_grad_(False)
    frozen = dict(model.named_parameters())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        bare = model(**batch)[0].clone()
    adapter = make()
    adapter.attach(model)
    adapter.eval()
    memory = {value.data_ptr() for value in frozen.values()}
    foreign = [name for name, value in adapter.state_dict().items() if value.data_ptr() in memory]
    assert not foreign, f"the adapter's state dict holds the model's own {foreign[0]}"
    added = {name: parameter for name, parameter in adapter.named_parameters() if parameter.requires_grad}
    assert added, "the adapter adds no trainable parameter"
    # Zero-initialized parts let no gradient through to the parts before them, so every one is moved away from its start.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in added.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    out = model(**batch)[0]
    assert not torch.equal(out, bare), "attached and with parameters away from their start, it changes nothing"
    with torch.no_grad():
        one = torch.cat(
            [model(**{name: value[i : i + 1] for name, value in batch.items()})[0] for i in range(len(bare))]
        )
    close(one, out.detach(), "the output depends on the batch")
    weight = torch.linspace(0.1, 1, out.numel()).reshape(out.shape)  # a plain sum is constant after a layer norm
    (out * weight).sum().backward()
    for name, parameter in added.items():
        reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert reached, f"no gradient reaches the adapter's {name}"
    assert all(parameter.grad is None for parameter in frozen.values()), "a frozen parameter got a gradient"
    for name, value in frozen.items():
        assert torch.equal(value, state[name]), f"attach or forward changes the parameter {name}"
    adapter.detach()
    assert set(model.state_dict()) == set(state), "detach leaves something in the model"
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], bare), "after detach the outputs are not bit-identical"


# What a method's kind promises.
CONTRACTS: dict[str, Callable[[Callable[[], Any]], None]] = {
    "correction": check_correction,
    "objective": check_objective,
    "distillation": check_distillation,
    "estimator": check_estimator,
    "adapter": check_adapter,
}

"""`train` and `SentenceLoss`: bad input, divergence, collapse, resuming, the best model, averages, missing views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor, nn

from chiasm.errors import BadInput, ChiasmError, TrainingDiverged
from chiasm.learn import Features, HeldOut, InfoNCE, OnePerGroup, Pairs, SentenceLoss, Stage, train
from chiasm.learn.momentum import FeatureQueue
from chiasm.learn.pairs import PairCollator
from chiasm.learn.towers import Perceptron, dual_tower
from chiasm.learn.training import CollapseWarning


def paired(n: int = 64, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 6)).astype(np.float32)
    maps = np.random.default_rng(99).standard_normal((2, 6, 8)).astype(np.float32)
    sources = {s: Features({"input_features": latent @ maps[i]}) for i, s in enumerate("ab")}
    return Pairs(sources)


def towers(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return dual_tower(Perceptron([8, 12, 6]), Perceptron([8, 12, 6]), device="cpu")


def fit(model: Any, pairs: Pairs, objective: nn.Module | None = None, **options: Any) -> Any:
    settings = {"stage": Stage(epochs=2, rate=3e-3), "batch_size": 16, "log_every": 1, "device": "cpu", **options}
    return train(model, pairs, objective or InfoNCE(0.1), **settings)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


class Remembers(nn.Module):
    """InfoNCE against the momentum encoder and a queue: an objective with every kind of state."""

    momentum = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.queue = FeatureQueue(24, 6)
        self.core = InfoNCE(0.1, learn_temperature=True)
        self.progress: list[tuple[int, int]] = []

    def on_progress(self, step: int, steps: int) -> None:
        self.progress.append((step, steps))

    def forward(self, a: Tensor, b: Tensor, *, b_momentum: Tensor, groups: Any = None) -> dict[str, Tensor]:
        extra = self.queue.get()[0]
        losses = self.core(a, b, extra_b=extra if len(extra) else None)
        if self.training:
            self.queue.push(b_momentum)
        return losses


# ---- bad input


def test_one_pair_and_a_batch_of_one_are_refused():
    pairs = paired()
    with pytest.raises(BadInput, match="1 pair"):
        fit(towers(), pairs[:1])
    with pytest.raises(BadInput, match="batch_size 1"):
        fit(towers(), pairs, batch_size=1)


def test_a_last_batch_of_one_is_no_trouble():
    report = fit(towers(), paired(17))
    assert report.steps == 4
    assert np.isfinite(report.losses).all()


def test_pairs_that_are_all_alike_train_without_nan():
    same = Features({"input_features": np.ones((12, 8), dtype=np.float32)})
    report = fit(towers(), Pairs({"a": same, "b": same}), batch_size=6)
    assert np.isfinite(report.losses).all()


def test_an_objective_that_asks_for_what_is_not_there():
    class Asks(nn.Module):
        def forward(self, a: Tensor, b: Tensor, *, captions: Tensor, groups: Any = None) -> dict[str, Tensor]:
            return {"x": a.sum() + b.sum() + captions.sum()}

    with pytest.raises(BadInput, match=r"Asks asks for 'captions'"):
        fit(towers(), paired(), Asks())


def test_a_loss_that_is_no_number_stops_with_step_and_pairs():
    pairs = paired()
    features = dict(pairs.sources["b"].dense)  # pyright: ignore[reportAttributeAccessIssue]
    features["input_features"] = features["input_features"].copy()
    features["input_features"][41] = np.nan
    model = towers()
    with pytest.raises(TrainingDiverged, match=r"at step \d+; pairs \[41\]"):
        fit(model, Pairs({"a": pairs.sources["a"], "b": Features(features)}))
    assert all(p.requires_grad for p in model.parameters())

    class Explodes(InfoNCE):
        def on_progress(self, step: int, steps: int) -> None:
            self.step = step

        def forward(self, a: Tensor, b: Tensor, *, groups: Any = None) -> dict[str, Tensor]:
            return {"x": a.sum() * (float("inf") if self.step == 3 else 1.0)}

    with pytest.raises(TrainingDiverged, match=r"Explodes: the loss is \S+ at step 3; pairs \["):
        fit(towers(), pairs, Explodes())


# ---- the loop


def test_training_learns_and_the_seed_decides_everything():
    pairs, test = paired(256), paired(50, seed=1)
    before = HeldOut(test)(towers())["mean_hit@1"]
    runs = []
    for seed in (0, 0, 1):
        model = towers()
        report = fit(model, pairs, stage=Stage(epochs=6, rate=1e-2), seed=seed)
        runs.append((weights(model), report))
        assert report.steps == 96
        assert HeldOut(test)(model)["mean_hit@1"] > before + 0.3
        assert not report.collapsed
        assert not model.training
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1].losses == runs[1][1].losses
    assert not torch.equal(runs[0][0], runs[2][0])


def test_the_sampler_decides_the_batches_anew_every_epoch():
    seen: list[list[int]] = []

    class Looks(InfoNCE):
        def forward(self, a: Tensor, b: Tensor, *, ids: Tensor, groups: Tensor) -> dict[str, Tensor]:
            assert len(groups.unique()) == len(groups)
            seen.append(ids.tolist())
            return super().forward(a, b)

    base = paired(32)
    pairs = Pairs(base.sources, groups=np.arange(32) // 2)
    assert pairs.groups is not None
    fit(towers(), pairs, Looks(), sampler=OnePerGroup(pairs.groups, 16))
    assert len(seen) == 4
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(32))
    assert seen[:2] != seen[2:]


def test_only_the_chosen_part_learns():
    model = towers()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, paired(), stage=Stage(train=["*.a.*"], epochs=1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]) == (".a." not in name), name


def test_a_frozen_part_that_an_objective_changes_is_noticed():
    model = towers()

    class Meddles(InfoNCE):
        def forward(self, a: Tensor, b: Tensor, *, groups: Any = None) -> dict[str, Tensor]:
            with torch.no_grad():
                next(model[0].sub_modules["b"].parameters()).add_(1e-3)
            return super().forward(a, b.detach())

    with pytest.raises(ChiasmError, match="frozen part has changed"):
        fit(model, paired(), Meddles(), stage=Stage(train=["*.a.*"], epochs=1))


@pytest.mark.filterwarnings("default")
def test_a_collapse_is_told():
    class Collapses(nn.Module):
        def forward(self, a: Tensor, b: Tensor, *, groups: Any = None) -> dict[str, Tensor]:
            goal = torch.zeros(6)
            goal[0] = 1.0
            return {"x": (a - goal).square().mean() + (b - goal).square().mean()}

    model = towers()
    with torch.no_grad():
        for parameter in model[0].sub_modules["b"].parameters():
            parameter.zero_()
        model[0].sub_modules["b"][0].layers[-1].bias.fill_(1.0)
    with pytest.warns(CollapseWarning, match="same way"):
        report = fit(model, paired(), Collapses(), stage=Stage(steps=25, rate=1e-4))
    assert report.collapsed
    assert report.spread < 1e-3


def test_averages_follow_the_weights():
    plain, still, averaged = towers(), towers(), towers()
    start = weights(plain)
    fit(plain, paired())
    fit(still, paired(), stage=Stage(epochs=2, rate=3e-3, average=0.0))
    torch.testing.assert_close(weights(still), weights(plain))
    fit(averaged, paired(), stage=Stage(epochs=2, rate=3e-3, average=0.9))
    way = (weights(averaged) - start).norm() / (weights(plain) - start).norm()
    assert 0 < float(way) < 1


class Peak(BaseEvaluator):
    """An evaluator that likes the second evaluation best, and keeps what it saw then."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.primary_metric, self.greater_is_better = "score", True
        self.objective, self.calls = objective, 0
        self.best: tuple[Tensor, dict[str, Tensor]] | None = None

    def __call__(self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1) -> Any:
        self.calls += 1
        if self.calls == 2:
            self.best = weights(model), {k: v.clone() for k, v in self.objective.state_dict().items()}
        return {"score": 1.0 if self.calls == 2 else 0.1 * self.calls / 10}


def test_the_best_model_is_kept_and_the_objective_with_it():
    model, objective = towers(), Remembers()
    peak = Peak(objective)
    report = fit(model, paired(), objective, stage=Stage(epochs=5, rate=1e-2), evaluator=peak)
    assert peak.best is not None
    assert report.best == 1.0
    assert report.steps == 20
    assert torch.equal(weights(model), peak.best[0])
    for name, value in objective.state_dict().items():
        assert torch.equal(value, peak.best[1][name]), name


def test_patience_stops_early():
    objective = InfoNCE(0.1)
    report = fit(towers(), paired(), objective, stage=Stage(epochs=50), evaluator=Peak(objective), patience=3)
    assert report.steps == 5 * 4


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("average", [None, 0.8])
def test_a_resumed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, sampled: bool, average: float | None):
    class Stop(Exception):
        pass

    class Interrupted(Remembers):
        stop = True

        def on_progress(self, step: int, steps: int) -> None:
            super().on_progress(step, steps)
            if self.stop and step == 6:
                raise Stop

    pairs = paired()
    stage = Stage(epochs=3, rate=3e-3, average=average)

    def options() -> dict[str, Any]:
        sampler = OnePerGroup(np.arange(len(pairs)), 16) if sampled else None
        return {"stage": stage, "sampler": sampler, "evaluate_every": 5}

    whole, objective = towers(), Remembers()
    losses = fit(whole, pairs, objective, **options()).losses
    with pytest.raises(Stop):
        fit(towers(), pairs, Interrupted(), folder=tmp_path, resume=True, **options())
    again, second = towers(7), Interrupted()
    second.stop = False
    report = fit(again, pairs, second, folder=tmp_path, resume=True, **options())
    assert second.progress[0] == (5, 12)
    assert report.losses == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(weights(again), weights(whole))
    for name, value in objective.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)


# ---- SentenceLoss


def test_everything_an_objective_may_ask_for():
    found: dict[str, Any] = {}

    class Asks(nn.Module):
        def forward(
            self, a: Tensor, b: Tensor, *, groups: Tensor, ids: Tensor, b_present: Tensor, b_rows: Tensor,
            a_inputs: dict[str, Any], a_momentum: Tensor, encode: Any, weights: Tensor, nothing: Any = None,
        ) -> dict[str, Tensor]:  # fmt: skip
            found.update({k: v for k, v in locals().items() if k not in ("self", "__class__")})
            return {"one": a.sum(), "two": b.sum()}

    base = paired(5)
    rows = {"a": np.arange(5), "b/de": np.array([0, -1, 2, 3, 4]), "b/fr": np.array([4, 3, 2, 1, 0])}
    pairs = Pairs(base.sources, rows, groups=np.array([9, 9, 8, 8, 7]), per_pair={"weights": np.arange(5.0)})
    model = towers().eval()
    loss = SentenceLoss(model, Asks(), pairs).eval()
    batch = PairCollator(pairs)(list(pairs[[0, 1, 4]].dataset()))
    columns = [{k.removeprefix(f"{c}_"): v for k, v in batch.items() if k.startswith(f"{c}_")} for c in pairs.columns]
    parts = loss(columns, torch.tensor([0, 1, 4]))
    assert parts.keys() == {"one", "two"}
    assert found["a"].shape == (3, 6)
    assert found["b"].shape == (3, 2, 6)
    assert found["groups"].tolist() == [9, 9, 7]
    assert found["ids"].tolist() == [0, 1, 4]
    assert found["weights"].tolist() == [0, 1, 4]
    assert found["b_present"].tolist() == [[True, True], [False, True], [True, True]]
    assert found["b_rows"].tolist() == [[0, 4], [-1, 3], [4, 0]]
    assert found["nothing"] is None
    torch.testing.assert_close(found["a_momentum"], found["a"].detach())
    assert not found["a_momentum"].requires_grad
    torch.testing.assert_close(found["encode"](found["a_inputs"])["sentence_embedding"], found["a"])
    assert found["encode"](found["a_inputs"])["sentence_embedding"].requires_grad
    inside = model({"input_features": torch.from_numpy(base.sources["b"].dense["input_features"]), "task": "b"})  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(found["b"][:, 1], inside["sentence_embedding"][[4, 3, 0]])


def test_the_momentum_encoder_is_no_part_of_what_is_trained_or_saved():
    loss = SentenceLoss(towers(), Remembers(), paired())
    names = set(loss.state_dict())
    count = sum(1 for _ in loss.parameters())
    assert loss.teacher is loss.teacher
    assert set(loss.state_dict()) == names
    assert sum(1 for _ in loss.parameters()) == count

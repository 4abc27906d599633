"""`Claim`: a paper's central sentence as a program, and how its outcome is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from chiasm.errors import BadInput
from chiasm.measure.intervals import Interval, grouped_mean_interval

Status = Literal["held", "not confirmed", "control failed", "not resolved", "no data"]
# The first of these that any gate shows is the status of the whole claim.
_SEVERITY: tuple[Status, ...] = ("control failed", "not confirmed", "not resolved", "held")


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure of one arm in one setting.

    Args:
        setting: the data, for example ``"cone world"`` or ``"MSR-VTT 1k-A, text to video"``.
        arm: the baseline, the method or an ablation.
        metric: the figure's name, for example ``"R@1"``.
        value: the figure; for per-query figures their mean.
        values: optional per-query figures ``[N]`` in a fixed order, so that arms can be compared in pairs.
        seconds: optional cost of this arm.
        note: optional remark for the table.
    """

    setting: str
    arm: str
    metric: str
    value: float
    values: np.ndarray | None = None
    seconds: float | None = None
    note: str = ""

    @classmethod
    def of(cls, setting: str, arm: str, metric: str, values: Any, **fields: Any) -> Row:
        """A row from per-query figures; the value is their mean."""
        values = np.asarray(values, dtype=np.float64)
        return cls(setting, arm, metric, float(values.mean()), values, **fields)


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a claim on a pair of arms, or on one arm.

    Args:
        setting: rows of this setting are compared.
        arm: the arm that is judged.
        baseline: the arm it is compared with; None judges the arm's own level.
        metric: the figure.
        kind: ``"gain"``: ``arm - baseline >= bound`` and the interval of the gain excludes zero;
            ``"within"``: ``|arm - baseline| <= bound`` (the usual negative control);
            ``"at least"`` / ``"at most"``: the arm (minus the baseline, if there is one) against ``bound``.
        bound: least gain or bound, in the metric's own unit.
        lower_is_better: turns the sign of a gain around.
        control: a negative control: if it fails, the whole claim is *control failed*.
    """

    setting: str
    arm: str
    baseline: str | None
    metric: str
    kind: Literal["gain", "within", "at least", "at most"] = "gain"
    bound: float = 0.0
    lower_is_better: bool = False
    control: bool = False

    def __post_init__(self) -> None:
        if self.kind in ("gain", "within") and self.baseline is None:
            raise BadInput(f"a gate of kind {self.kind!r} needs a baseline", where=f"Gate({self.setting}, {self.arm})")

    def describe(self) -> str:
        subject = self.arm if self.baseline is None else f"{self.arm} - {self.baseline}"
        sign = {"gain": ">=", "at least": ">=", "at most": "<=", "within": "within +-"}[self.kind]
        if self.lower_is_better and self.kind == "gain":
            subject = f"{self.baseline} - {self.arm}"
        return f"{self.metric}: {subject} {sign} {self.bound:g}"

    def judge(self, estimate: Interval) -> Status:
        """The status of this gate given the interval of its figure (difference or level)."""
        if self.kind == "gain":
            if estimate.mean >= self.bound and estimate.low > 0:
                return "held"
            # An interval that holds both zero and the promised gain says that the data cannot tell.
            return "not resolved" if estimate.low <= 0 and estimate.high >= self.bound else "not confirmed"
        passed = {
            "within": abs(estimate.mean) <= self.bound,
            "at least": estimate.mean >= self.bound,
            "at most": estimate.mean <= self.bound,
        }[self.kind]
        if passed:
            return "held"
        return "control failed" if self.control else "not confirmed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate, its figure with an interval, and what follows."""

    gate: Gate
    estimate: Interval | None
    status: Status


@dataclass(frozen=True, slots=True)
class Claim:
    """A paper's central sentence as a program.

    Args:
        statement: the sentence, in our words.
        run: ``run(seed, data) -> rows``; pure in ``seed``, never tuned on the seeds below.
        gates: the conditions; at least one of them must be a negative control.
        seeds: the reported seeds, at least three.
        cpu_seconds: budget of a full run on two cores.
        data: names of the sets under ``CHIASM_DATA`` that are used when they are there.
        note: what the reader of the table must know.

    Raises:
        BadInput: fewer than three seeds, no gate, or no negative control.
    """

    statement: str
    run: Callable[[int, Any], Iterable[Row]]
    gates: Sequence[Gate]
    seeds: Sequence[int] = (0, 1, 2)
    cpu_seconds: float = 60.0
    data: Sequence[str] = ()
    note: str = ""
    headline: Gate = field(init=False)

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 3:
            raise BadInput(f"{len(set(self.seeds))} seeds; a claim needs at least three", where="Claim")
        if not any(gate.control for gate in self.gates):
            raise BadInput("no negative control among the gates", where="Claim", fix="Add a Gate(..., control=True)")
        main = [gate for gate in self.gates if not gate.control]
        if not main:
            raise BadInput("only controls among the gates", where="Claim")
        object.__setattr__(self, "headline", main[0])

    def judge(self, rows: dict[int, list[Row]]) -> tuple[Status, list[Verdict]]:
        """Judges rows of all seeds.

        Args:
            rows: seed -> rows.

        Returns:
            The status of the claim and one verdict a gate. Gates whose setting did not run (its data is not on this
            machine) are listed as *no data* and do not count, unless none of the gates, or no control, could be judged.
        """
        verdicts = [Verdict(gate, *_judge_gate(gate, rows)) for gate in self.gates]
        judged = [v for v in verdicts if v.status != "no data"]
        if not any(v.gate.control for v in judged) or all(v.gate.control for v in judged):
            return "no data", verdicts
        statuses = {v.status for v in judged}
        return next(status for status in _SEVERITY if status in statuses), verdicts


def _judge_gate(gate: Gate, rows: dict[int, list[Row]]) -> tuple[Interval | None, Status]:
    groups = []
    for seed, seed_rows in rows.items():
        found = {r.arm: r for r in seed_rows if r.setting == gate.setting and r.metric == gate.metric}
        if not any(r.setting == gate.setting for r in seed_rows):
            continue  # this setting's data is not here
        wanted = [gate.arm] if gate.baseline is None else [gate.arm, gate.baseline]
        missing = [arm for arm in wanted if arm not in found]
        if missing:
            raise BadInput(
                f"seed {seed} has no row {missing[0]!r} with {gate.metric!r} in {gate.setting!r}", where="Claim.judge"
            )
        groups.append(
            _difference(found[gate.arm], found[gate.baseline] if gate.baseline else None, gate.lower_is_better)
        )
    if not groups:
        return None, "no data"
    estimate = grouped_mean_interval(groups)
    return estimate, gate.judge(estimate)


def _difference(arm: Row, baseline: Row | None, lower_is_better: bool) -> np.ndarray:
    """Per-query differences where both arms have them in the same order, else one difference."""
    if baseline is None:
        return np.atleast_1d(arm.value)
    sign = -1.0 if lower_is_better else 1.0
    if arm.values is not None and baseline.values is not None and len(arm.values) == len(baseline.values):
        return sign * (arm.values - baseline.values)
    return np.atleast_1d(sign * (arm.value - baseline.value))

"""The harness judges planted outcomes rightly, resumes, writes provenance; and every method's claim runs (smoke)."""

import json

import numpy as np
import pytest

from chiasm import catalog
from chiasm.claims import Claim, Data, Gate, Row, load_claim, reproduce
from chiasm.claims.run import changed, code_hash
from chiasm.claims.table import markdown, read_results
from chiasm.errors import BadInput, ChiasmError, DataNotFound, UnknownName

METHODS = catalog.methods()


def planted(gain, control=0.0, spread=0.1, n=200):
    """A claim whose method is ``gain`` better on the main setting and ``control`` better on the control."""

    def run(seed, data):
        rng = np.random.default_rng(seed)
        for setting, shift in (("main", gain), ("control", control)):
            base = rng.normal(size=n)
            yield Row.of(setting, "raw", "score", base)
            yield Row.of(setting, "method", "score", base + shift + spread * rng.normal(size=n))

    gates = (
        Gate("main", "method", "raw", "score", "gain", 0.5),
        Gate("control", "method", "raw", "score", "within", 0.2, control=True),
    )
    return Claim("planted", run, gates)


def judge(claim):
    return claim.judge({seed: list(claim.run(seed, Data())) for seed in claim.seeds})


@pytest.mark.parametrize(
    ("gain", "control", "spread", "status"),
    [
        (1.0, 0.0, 0.1, "held"),
        (0.2, 0.0, 0.1, "not confirmed"),
        (-1.0, 0.0, 0.1, "not confirmed"),
        (1.0, 0.9, 0.1, "control failed"),
        (1.0, -0.9, 0.1, "control failed"),
        (0.2, 0.0, 30.0, "not resolved"),
    ],
)
def test_planted_outcomes_are_judged(gain, control, spread, status):
    claim = planted(gain, control, spread)
    if status == "not resolved":  # so noisy that neither zero nor the promised gain can be excluded; no control noise
        claim = Claim("noisy", lambda seed, data: [*_noisy(seed, spread), *_quiet()], claim.gates)
    assert judge(claim)[0] == status


def _noisy(seed, spread):
    rng = np.random.default_rng(seed)
    return [
        Row.of("main", "raw", "score", np.zeros(20)),
        Row.of("main", "method", "score", spread * rng.normal(size=20)),
    ]


def _quiet():
    return [Row.of("control", arm, "score", np.zeros(20)) for arm in ("raw", "method")]


def test_a_gain_whose_interval_holds_zero_is_never_held():
    rows = {
        seed: [Row("s", "raw", "m", 0.0), Row("s", "method", "m", value), *_control()]
        for seed, value in enumerate((3.0, -0.5, 2.0))
    }
    claim = Claim(
        "wide", lambda seed, data: rows[seed], (Gate("s", "method", "raw", "m", "gain", 0.1), _control_gate())
    )
    assert judge(claim)[0] == "not resolved"


def _control():
    return [Row("c", "raw", "m", 0.0), Row("c", "method", "m", 0.0)]


def _control_gate():
    return Gate("c", "method", "raw", "m", "within", 0.1, control=True)


def test_lower_is_better_turns_the_sign():
    rows = [Row("s", "raw", "skew", 2.0), Row("s", "method", "skew", 0.5), *_control()]
    down = Gate("s", "method", "raw", "skew", "gain", 1.0, lower_is_better=True)
    assert judge(Claim("down", lambda seed, data: rows, (down, _control_gate())))[0] == "held"
    up = Gate("s", "method", "raw", "skew", "gain", 1.0)
    assert judge(Claim("up", lambda seed, data: rows, (up, _control_gate())))[0] == "not confirmed"


def test_settings_without_data_do_not_count_unless_nothing_is_left():
    gates = (
        Gate("main", "method", "raw", "score", "gain", 0.5),
        Gate("absent", "method", "raw", "score"),
        planted(1).gates[1],
    )
    status, verdicts = judge(Claim("partly", planted(1.0).run, gates))
    assert status == "held"
    assert [v.status for v in verdicts] == ["held", "no data", "held"]
    only_absent = Claim("absent", planted(1.0).run, (gates[1], gates[2]))
    assert judge(only_absent)[0] == "no data"


def test_a_claim_needs_seeds_gates_and_a_control():
    gate = Gate("s", "a", "b", "m")
    with pytest.raises(BadInput, match="at least three"):
        Claim("x", lambda seed, data: [], (gate, _control_gate()), seeds=(0, 0, 1))
    with pytest.raises(BadInput, match="no negative control"):
        Claim("x", lambda seed, data: [], (gate,))
    with pytest.raises(BadInput, match="only controls"):
        Claim("x", lambda seed, data: [], (_control_gate(),))
    with pytest.raises(BadInput, match="needs a baseline"):
        Gate("s", "a", None, "m")


def test_a_missing_row_is_an_error_not_a_pass():
    claim = Claim(
        "x", lambda seed, data: [_control()[0], Row("s", "a", "m", 1.0)], (Gate("s", "a", "b", "m"), _control_gate())
    )
    with pytest.raises(BadInput, match="no row 'b'"):
        judge(claim)


def test_data_is_found_through_the_variable(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("x")
    monkeypatch.setenv("CHIASM_DATA", str(tmp_path))
    data = Data()
    assert data.folder("set") == tmp_path / "set"
    assert data.folder("other") is None
    first = data.used["set"]
    (tmp_path / "set" / "a.txt").write_text("y")
    again = Data()
    again.folder("set")
    assert again.used["set"] != first
    with pytest.raises(DataNotFound, match="other"):
        data.require("other")
    monkeypatch.delenv("CHIASM_DATA")
    assert Data().folder("set") is None


@pytest.fixture
def one_method(monkeypatch, tmp_path):
    """A catalogue of one method whose claim counts its runs and can be told to break."""
    room = tmp_path / "correct" / "planted_method"
    room.mkdir(parents=True)
    (room / "method.py").write_text("x = 1\n")
    found = catalog.Method("planted-method", "Planted", 2026, "", "correction", "a:B", (), (), "", "correct", room)
    state = {"runs": [], "break_at": None}

    def run(seed, data):
        state["runs"].append(seed)
        if state["break_at"] == seed:
            raise KeyboardInterrupt
        return planted(1.0).run(seed, data)

    claim = Claim("planted", run, planted(1.0).gates)
    monkeypatch.setattr("chiasm.claims.run.method", lambda name: found)
    monkeypatch.setattr("chiasm.claims.run.load_claim", lambda m: claim)
    return found, state, tmp_path / "results"


def test_an_interrupted_run_goes_on_where_it_stopped(one_method):
    _, state, out = one_method
    state["break_at"] = 1
    with pytest.raises(KeyboardInterrupt):
        reproduce("planted-method", out=out, data=Data("nowhere"))
    state["break_at"] = None
    report = reproduce("planted-method", out=out, data=Data("nowhere"))
    assert state["runs"] == [0, 1, 1, 2]
    assert report["status"] == "held"
    assert not list((out / ".partial").glob("*.json"))
    assert json.loads((out / "planted-method.json").read_text()) == json.loads(json.dumps(report))


def test_the_result_says_where_it_comes_from_and_changed_notices_code(one_method):
    found, _, out = one_method
    report = reproduce("planted-method", out=out, data=Data("nowhere"))
    origin = report["provenance"]
    assert origin["code"] == code_hash(found)
    assert origin["versions"]["numpy"] == np.__version__
    assert changed([found], out) == []
    (found.path / "method.py").write_text("x = 2\n")
    assert changed([found], out) == [found]


def test_a_smoke_run_writes_nothing(one_method):
    _, state, out = one_method
    report = reproduce("planted-method", out=out, data=Data("nowhere", smoke=True))
    assert report["smoke"]
    assert state["runs"] == [0]
    assert not out.exists()


def test_the_table_shows_verdicts_and_refuses_other_files(one_method, tmp_path):
    _, _, out = one_method
    reproduce("planted-method", out=out, data=Data("nowhere"))
    page = markdown(read_results(out))
    assert "| [planted-method](#planted-method) | held |" in page
    assert "held (control)" in page
    (out / "other.json").write_text('{"slug": "x"}')
    with pytest.raises(BadInput, match="not a result"):
        read_results(out)
    with pytest.raises(BadInput, match="no results yet"):
        read_results(tmp_path / "empty")


def test_unknown_methods_and_rooms_without_a_claim():
    with pytest.raises(UnknownName):
        reproduce("no-such-method")
    broken = catalog.Method("catalog", "t", 2026, "", "k", "a:B", (), (), "", "", catalog.PACKAGE)
    with pytest.raises((ChiasmError, ModuleNotFoundError)):
        load_claim(broken)


@pytest.mark.smoke
@pytest.mark.parametrize("found", METHODS, ids=lambda m: m.slug)
def test_every_claim_runs(found, tmp_path):
    """One seed at small sizes: every gate that needs no data set is judged, and each figure is finite."""
    report = reproduce(found.slug, data=Data("nowhere", smoke=True), out=tmp_path)
    judged = [g for g in report["gates"] if g["status"] != "no data"]
    assert any(g["control"] for g in judged)
    assert any(not g["control"] for g in judged)
    assert all(np.isfinite(row["mean"]) for row in report["rows"])

"""`chiasm compare`: equal budgets, runs that are kept, and the table."""

import json

import pytest

pytest.importorskip("datasets", reason="needs chiasm[train]")
from chiasm.claims.data import Data
from chiasm.claims.side_by_side import SCENES, SideBySide, compare, read
from chiasm.cli import main
from chiasm.errors import BadInput, UnknownName
from chiasm.learn.objectives import names, objective, objective_class


def small(tmp_path, **changes):
    settings = {"objectives": ["info-nce"], "settings": [SCENES], "seeds": [0], "steps": 4, **changes}
    return compare(Data(None, smoke=True), out=tmp_path / "t.json", **settings)


def test_runs_are_kept_and_not_made_again(tmp_path):
    first = small(tmp_path)
    seen = []
    again = small(tmp_path, seeds=[0, 1], progress=lambda what, done, n: seen.append((done, n)))
    assert again.runs[0] == first.runs[0]
    assert [r["seed"] for r in again.runs] == [0, 1]
    assert seen[-1] == (2, 2)
    assert small(tmp_path, steps=5).runs[0] != first.runs[0]


def test_the_same_seed_gives_the_same_figures(tmp_path):
    one, two = small(tmp_path / "a"), small(tmp_path / "b")
    assert one.runs[0]["figures"] == two.runs[0]["figures"]
    assert one.runs[0]["hits"] == two.runs[0]["hits"]


def test_training_beats_chance(tmp_path):
    run = small(tmp_path, steps=60).runs[0]
    assert run["figures"]["text to image"]["R@10"] > 0.2  # chance is 0.1


def test_gain_is_paired_and_excludes_the_baseline_itself():
    def run(name, seed, hits):
        hits = {"text to image": hits, "image to text": hits}
        return {"setting": "s", "objective": name, "seed": seed, "seconds": 1.0, "hits": hits}

    runs = [run("info-nce", s, [0, 1, 0, 1] * 20) for s in (0, 1, 2)] + [run("x", s, [1] * 80) for s in (0, 1, 2)]
    table = SideBySide(runs)
    assert table.gain("s", "info-nce", "info-nce", "text to image") is None
    gain = table.gain("s", "x", "info-nce", "text to image")
    assert gain.mean == pytest.approx(50)
    assert gain.low > 0


def test_markdown_has_one_line_an_objective(tmp_path):
    table = small(tmp_path)
    lines = [line for line in table.markdown().splitlines() if line.startswith("| info-nce")]
    assert len(lines) == 1
    assert lines[0].count("|") == table.markdown().splitlines()[2].count("|")


def test_unknown_names_offer_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="info-nce"):
        small(tmp_path, objectives=["info-nec"])
    with pytest.raises(UnknownName, match="scenes"):
        small(tmp_path, settings=["scenes (patch vector)"])
    with pytest.raises(UnknownName, match="temperature"):
        objective("info-nce", temprature=0.1)
    with pytest.raises(BadInput, match="seed"):
        small(tmp_path, seeds=[])


def test_every_objective_of_the_catalogue_can_be_made_by_name():
    assert names()[0] == "info-nce"
    for name in names():
        assert objective_class(name).__doc__


def test_command_writes_json_and_page(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CHIASM_DATA", raising=False)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    assert main(["compare", "info-nce", "--setting", "scenes", "--smoke", "--page", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["objective"] == "info-nce"
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| info-nce |" in text
    assert "old" not in text


def test_a_page_without_markers_is_refused_and_left_alone(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("mine")
    assert main(["compare", "info-nce", "--smoke", "--page", str(page)]) == 2
    assert "markers" in capsys.readouterr().err
    assert page.read_text() == "mine"


def test_a_broken_file_is_one_clear_error(tmp_path):
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(BadInput, match="not a comparison"):
        read(tmp_path / "t.json")

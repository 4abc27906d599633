"""The catalogue: reads method.toml without importing a method, and what `chiasm methods` and `chiasm new` do with it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiasm import catalog
from chiasm.catalog import folder_name, method, methods, read_method, slug_of
from chiasm.cli import main
from chiasm.cli.new import KINDS, create
from chiasm.errors import BadInput, ChiasmError, UnknownName


def fill_in(folder: Path, **values: str) -> Path:
    """Changes values of a method.toml that `create` wrote."""
    toml = folder / "method.toml"
    lines = [
        f"{k} = {values[k]}" if (k := line.split(" = ")[0]) in values else line
        for line in toml.read_text().splitlines()
    ]
    toml.write_text("\n".join(lines))
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with three methods in three rooms."""
    fill_in(create("suites", "quiz", package=tmp_path), symptoms='["unknown robustness"]')
    fill_in(
        create("correct", "fair-scores", title="Fair Scores", package=tmp_path),
        symptoms='["hubness", "one item answers all"]',
    )
    fill_in(create("learn/objectives", "one-to-k", package=tmp_path), symptoms='["several captions a picture"]')
    return tmp_path


def test_methods_come_in_the_order_of_the_house(package: Path):
    assert [m.slug for m in methods(package=package)] == ["one-to-k", "fair-scores", "quiz"]
    assert [m.room for m in methods(package=package)] == ["learn/objectives", "correct", "suites"]


@pytest.mark.parametrize("name", ["one-to-k", "one_to_k", "One_To-K", " one-to-k "])
def test_every_spelling_of_a_slug_finds_it(package: Path, name: str):
    assert method(name, package=package).slug == "one-to-k"


def test_symptoms_need_every_word_in_any_case(package: Path):
    assert [m.slug for m in methods("HUBNESS item", package=package)] == ["fair-scores"]
    assert [m.slug for m in methods("fair", package=package)] == ["fair-scores"]
    assert methods("hubness captions", package=package) == []


def test_a_typo_offers_the_nearest(package: Path):
    with pytest.raises(UnknownName, match="one-to-k"):
        method("one-to-kk", package=package)


def test_nothing_is_imported(package: Path):
    (package / "correct" / "fair_scores" / "__init__.py").write_text("raise RuntimeError('imported')")
    before = set(sys.modules)
    assert len(methods(package=package)) == 3
    assert not {name for name in set(sys.modules) - before if "fair" in name}


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("slug = ", "cannot be parsed"),
        ("slug = 'x'", "lacks title"),
        ("\udcff", "cannot be parsed"),
    ],
)
def test_broken_facts_are_told(tmp_path: Path, text: str, broken: str):
    toml = tmp_path / "correct" / "x" / "method.toml"
    toml.parent.mkdir(parents=True)
    toml.write_text(text, errors="surrogateescape")
    with pytest.raises(ChiasmError, match=broken):
        methods(package=tmp_path)


def test_a_slug_must_be_the_folder(package: Path):
    with pytest.raises(ChiasmError, match="not the folder's name"):
        read_method(fill_in(package / "suites" / "quiz", slug='"quizz"') / "method.toml", package)


def test_two_methods_cannot_share_a_slug(package: Path):
    twin = package / "adapt" / "quiz"
    twin.mkdir(parents=True)
    (twin / "method.toml").write_text((package / "suites" / "quiz" / "method.toml").read_text())
    with pytest.raises(ChiasmError, match="share the slug 'quiz'"):
        methods(package=package)


@given(st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+){0,3}", fullmatch=True))
def test_slug_and_folder_are_one_to_one(slug: str):
    assert slug_of(folder_name(slug)) == slug
    assert "-" not in folder_name(slug)


# ---- chiasm methods


def test_methods_lists_them(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(catalog.methods, "__kwdefaults__", {"package": package})
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["slug", "title", "year", "kind", "room", "symptoms"]
    assert [line.split()[0] for line in lines[1:]] == ["one-to-k", "fair-scores", "quiz"]
    assert main(["methods", "--symptom", "hubness", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["slug"] == "fair-scores"
    assert found["symptoms"] == ["hubness", "one item answers all"]
    assert set(catalog.REQUIRED) <= set(found)
    assert main(["methods", "--symptom", "nothing of that kind"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "hubness" in said.err


def test_methods_of_the_real_catalogue_is_json(capsys: pytest.CaptureFixture[str]):
    assert main(["methods", "--json"]) == 0
    assert [m["slug"] for m in json.loads(capsys.readouterr().out)] == [m.slug for m in methods()]


@pytest.mark.parametrize("room", ["adapt", "compress", "correct"])
def test_a_room_offers_the_classes_of_its_methods(room: str):
    offered = importlib.import_module(f"chiasm.{room}")
    found = [m for m in methods() if m.room == room]
    assert found
    for one in found:
        module, name = one.import_path.split(":")
        assert getattr(offered, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        offered.Nothing  # noqa: B018


def test_asking_for_a_module_of_a_room_imports_no_method():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "from chiasm.correct import bias; import sys; print('chiasm.correct.dbnorm' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "False"


# ---- chiasm new


@pytest.mark.parametrize("room", catalog.ROOMS)
def test_new_makes_a_room_that_the_catalogue_reads(tmp_path: Path, room: str):
    folder = create(room, "brand-new", title='The "best" \\ of all', year=2031, arxiv="2401.00001", package=tmp_path)
    assert {p.name for p in folder.iterdir()} == {
        "__init__.py",
        "method.toml",
        "method.py",
        "claim.py",
        "test_brand_new.py",
        "README.md",
    }
    found = method("brand-new", package=tmp_path)
    assert (found.title, found.year, found.arxiv) == ('The "best" \\ of all', 2031, "2401.00001")
    assert (found.kind, found.room) == (KINDS[room], room)
    assert found.import_path == f"chiasm.{room.replace('/', '.')}.brand_new:BrandNew"
    for path in folder.glob("*.py"):
        compile(path.read_text(), path.name, "exec")
    for parent in Path(room).parents:
        assert (tmp_path / parent / "__init__.py").is_file()


def test_every_room_has_a_kind():
    assert set(KINDS) == set(catalog.ROOMS)


def test_new_keeps_the_rooms_own_init(tmp_path: Path):
    (tmp_path / "correct").mkdir()
    (tmp_path / "correct" / "__init__.py").write_text("# mine")
    create("correct", "brand-new", package=tmp_path)
    assert (tmp_path / "correct" / "__init__.py").read_text() == "# mine"


@pytest.mark.parametrize("slug", ["", "9lives", "a b", "a--b", "-a", "a/b", "../up", "class", "ärger", "a.b"])
def test_new_refuses_what_is_no_slug(tmp_path: Path, slug: str):
    with pytest.raises(BadInput, match="not a slug"):
        create("correct", slug, package=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_new_says_what_it_made_and_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["new", "correct", "one-to-k", "--into", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "correct" / "one_to_k" / "method.py") in out
    assert "pytest" in out.splitlines()[-1]
    assert main(["new", "corect", "other", "--into", str(tmp_path)]) == 2
    assert "Did you mean correct" in capsys.readouterr().err
    assert main(["new", "correct", "one_to_k", "--into", str(tmp_path)]) == 2
    assert "taken" in capsys.readouterr().err

"""``chiasm upgrade`` end to end: the report before anything is written, the question, going on, the end, the way back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

import tiny_models
from chiasm.cli import main
from chiasm.cli import upgrade as command
from chiasm.search import Store, reembed, upgrade

pytest.importorskip("accelerate")

LINES = [f"{a} {b} {c}" for a in ("a red", "a green", "the blue") for b in tiny_models.WORDS[15:] for c in ("", "snow")]


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main([str(arg) for arg in argv])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def new_space(tmp_path_factory) -> Path:
    return tiny_models.write_clip(tmp_path_factory.mktemp("models") / "newer", seed=1)


@pytest.fixture
def store(tmp_path, tiny_clip, monkeypatch, capsys) -> Path:
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(upgrade, "EPOCHS", 1)  # how good the map is, is not asked here
    monkeypatch.setattr(upgrade, "LEAST_STEPS", 3)
    (tmp_path / "in").mkdir()
    for n in range(6):
        Image.new("RGB", (40, 40), (40 * n, 200 - 30 * n, 7)).save(tmp_path / "in" / f"p{n}.png")
    (tmp_path / "in" / "note.txt").write_text("a red house in the snow")
    (tmp_path / "texts.txt").write_text("\n".join(LINES))
    path = tmp_path / "s.chiasm"
    assert run(capsys, "index", tmp_path / "in", "--store", path, "--space", tiny_clip)[0] == 0
    return path


def files(folder: Path) -> dict[str, str]:
    names = [p for p in sorted(folder.rglob("*")) if p.is_file() and "exact" not in p.parts]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in names if not p.name.endswith(".lock")}


def test_there_and_back(store, new_space, tmp_path, capsys, monkeypatch):
    texts = ("--texts", tmp_path / "texts.txt")
    before = files(store)
    status, out, _ = run(capsys, "upgrade", "--store", store, "--status", "--json")
    assert (status, json.loads(out)) == (0, {"phase": None})
    # Only the report: nobody can be asked here.
    status, out, err = run(capsys, "upgrade", "--store", store, "--space", new_space, *texts)
    assert status == 0
    assert "held-out texts" in out
    assert "Nothing was written" in out
    assert "--pairs" in err
    assert files(store) == before
    # Somebody who is asked may refuse.
    monkeypatch.setattr(command.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(command.typer, "confirm", lambda text: False)
    assert run(capsys, "upgrade", "--store", store, "--space", new_space, *texts)[0] == 0
    assert files(store) == before
    monkeypatch.setattr(command.typer, "confirm", lambda text: True)
    status, out, _ = run(capsys, "upgrade", "--store", store, "--space", new_space, *texts, "--limit", 2)
    assert status == 0
    assert "2 of 7 items re-embedded, 5 left" in out
    found = json.loads(run(capsys, "upgrade", "--store", store, "--status", "--json")[1])
    assert found["phase"] == "serving"
    assert (found["progress"]["done"], found["progress"]["left"]) == (2, 5)

    for wrong, said in (
        (("--space", "pocket"), "an upgrade to"),
        (texts, "made already"),
        (("--forget",), "Only a finished one"),
        (("--status", "--rollback"), "exclude"),
    ):
        status, _, err = run(capsys, "upgrade", "--store", store, *wrong)
        assert status != 0
        assert said in err
    assert "goes over from" in run(capsys, "index", tmp_path / "in", "--store", store, "--space", tiny(store))[2]
    assert run(capsys, "search", "a red house", "--store", store)[0] == 0
    assert run(capsys, "correct", "--apply", "nnn", "--store", store)[0] != 0
    assert run(capsys, "doctor", store)[0] == 0
    assert "serving" in run(capsys, "info", "--store", store)[1]

    # A new file joins; a named folder means the same space under another spelling.
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "in" / "late.png")
    assert run(capsys, "index", tmp_path / "in", "--store", store)[0] == 0
    monkeypatch.chdir(new_space.parent)
    status, out, _ = run(capsys, "upgrade", "--store", store, "--space", new_space.name, "--json")
    done = json.loads(out)
    assert (status, done["finished"], done["progress"]["done"]) == (0, True, 8)
    assert Store(store).header.space.name == str(new_space)
    assert "finished" in run(capsys, "upgrade", "--store", store)[2]
    status, out, _ = run(capsys, "upgrade", "--store", store, "--rollback", "--json")
    assert json.loads(out) == {"rolled_back": True, "restored": 7, "encoded": 1, "mapped": 0}
    assert "no upgrade is under way" in run(capsys, "upgrade", "--store", store, "--rollback")[2]


def tiny(store: Path) -> str:
    return Store(store).header.upgrade.old.name  # pyright: ignore[reportOptionalMemberAccess]


def test_vanished_files_keep_their_vectors_and_forgetting_needs_an_end(store, new_space, tmp_path, capsys):
    (tmp_path / "in" / "p0.png").unlink()
    status, out, err = run(
        capsys, "upgrade", "--store", store, "--space", new_space, "--texts", tmp_path / "texts.txt", "--yes"
    )
    assert status == 0
    assert "6 of 7 items re-embedded, 0 left, 1 failed" in out
    assert "1 of 7 sampled items cannot be embedded again" in err
    assert run(capsys, "index", tmp_path / "in", "--store", store, "--prune")[0] == 0
    status, out, _ = run(capsys, "upgrade", "--store", store)
    assert "All items have vectors of" in out
    assert run(capsys, "upgrade", "--store", store, "--forget")[0] == 0
    assert json.loads(run(capsys, "upgrade", "--store", store, "--status", "--json")[1]) == {"phase": None}


def test_bad_input(store, new_space, tiny_clip, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("one\ntwo\n\none\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    text_only = tiny_models.write_text(tmp_path / "text", seed=3)
    for wrong, said in (
        ((), "no upgrade is under way"),
        (("--space", tiny_clip), "has this space already"),
        (("--space", tmp_path / "in"), "model"),
        (("--space", new_space, "--texts", tmp_path / "gone.txt"), "cannot be read"),
        (("--space", new_space, "--texts", tmp_path / "bytes.txt"), "not UTF-8"),
        (("--space", new_space, "--texts", tmp_path / "few.txt"), "2 distinct texts"),
        (("--space", new_space, "--pairs", tmp_path / "gone.jsonl"), "gone.jsonl"),
        (("--space", new_space, "--yes", "--dry-run"), "exclude"),
    ):
        status, out, err = run(capsys, "upgrade", "--store", store, *wrong)
        assert (status != 0, out) == (True, "")
        assert said in err
    status, _, err = run(capsys, "upgrade", "--store", store, "--space", text_only, "--texts", tmp_path / "texts.txt")
    assert status == 0
    assert "does not encode image" in err
    assert Store(store).header.upgrade is None


def test_an_interrupted_run_says_how_to_go_on(store, new_space, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(reembed, "advance", stopped)
    status, _, err = run(
        capsys, "upgrade", "--store", store, "--space", new_space, "--texts", tmp_path / "texts.txt", "--yes"
    )
    assert status == 130
    assert "go on with: chiasm upgrade --store" in err

"""The command line, from arguments to exit status, over a store made by a tiny random CLIP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chiasm
from chiasm.cli import main
from chiasm.errors import BadInput

COLORS = {"red": (200, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 200)}


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    status = main([str(arg) for arg in argv])
    said = capsys.readouterr()
    return status, said.out, said.err


def paint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, color in COLORS.items():
        noise = np.random.default_rng(len(name)).integers(0, 20, (48, 64, 3))
        Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> tuple[Path, Path]:
    """A folder of three pictures, a text and a broken picture, and the store that `chiasm index` made of it."""
    folder = paint(tmp_path_factory.mktemp("cli") / "media")
    (folder / "note.txt").write_text("the house by the sea and the dog in the rain")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    store = folder.parent / "made.chiasm"
    assert main(["index", str(folder), "--store", str(store), "--space", str(tiny_clip), "--json"]) == 0
    return folder, store


# ---- index


def test_index_reports_and_second_run_does_nothing(made, tmp_path: Path, tiny_clip: Path, capsys):
    folder, store = made[0], tmp_path / "s.chiasm"
    status, out, _ = run(capsys, "index", folder, "-s", store, "--space", tiny_clip, "--json")
    first = json.loads(out)
    assert status == 0
    assert (first["added"], first["updated"], first["unchanged"], first["items"]) == (4, 0, 0, 4)
    (skipped,) = first["skipped"]
    assert skipped["path"].endswith("broken.png")
    assert skipped["reason"]
    status, out, _ = run(capsys, "index", folder, "-s", store, "--json")  # the store knows its space
    second = json.loads(out)
    assert (second["added"], second["unchanged"], second["vectors_encoded"]) == (0, 4, 0)


def test_index_for_people(made, tmp_path: Path, tiny_clip: Path, capsys):
    folder, store = made[0], tmp_path / "s.chiasm"
    listed = tmp_path / "skipped.tsv"
    status, out, err = run(capsys, "index", folder, "-s", store, "--space", tiny_clip, "--skipped", listed)
    assert status == 0
    assert "4 added, 0 updated, 0 unchanged, 1 skipped" in out
    assert "chiasm search" in out
    assert "broken.png" in err
    assert listed.read_text().startswith(f"{folder / 'broken.png'}\t")
    assert "\x1b[" not in out + err  # no colors where it is not a terminal


def test_index_lists_the_first_ten_skipped(tmp_path: Path, tiny_clip: Path, capsys):
    folder = paint(tmp_path / "media")
    for n in range(13):
        (folder / f"bad{n:02}.png").write_bytes(b"")
    status, _, err = run(capsys, "index", folder, "-s", tmp_path / "s.chiasm", "--space", tiny_clip)
    assert status == 0
    assert sum("  skipped " in line for line in err.splitlines()) == 10
    assert "and 3 more" in err
    assert "--skipped FILE" in err


def test_index_prune_removes_what_vanished(tmp_path: Path, tiny_clip: Path, capsys):
    folder, store = paint(tmp_path / "media"), tmp_path / "s.chiasm"
    run(capsys, "index", folder, "-s", store, "--space", tiny_clip)
    (folder / "red.png").unlink()
    assert json.loads(run(capsys, "index", folder, "-s", store, "--json")[1])["items"] == 3
    report = json.loads(run(capsys, "index", folder, "-s", store, "--prune", "--json")[1])
    assert (report["deleted"], report["items"]) == (1, 2)


def test_index_of_nothing_readable_is_a_failure(tmp_path: Path, tiny_clip: Path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = run(capsys, "index", empty, "-s", tmp_path / "a.chiasm", "--space", tiny_clip)
    assert status == 1
    assert "Nothing to index" in err
    (empty / "bad.png").write_bytes(b"")
    assert run(capsys, "index", empty, "-s", tmp_path / "b.chiasm", "--space", tiny_clip)[0] == 1


def test_index_of_a_missing_folder_makes_no_store(tmp_path: Path, capsys):
    status, out, err = run(capsys, "index", tmp_path / "no", "-s", tmp_path / "s.chiasm")
    assert status == 2
    assert out == ""
    assert err == f"Error: {tmp_path / 'no'}: there is no such file or folder\n"
    assert not (tmp_path / "s.chiasm").exists()


def test_index_into_a_store_of_another_space_is_refused(made, tiny_siglip: Path, capsys):
    status, _, err = run(capsys, "index", made[0], "-s", made[1], "--space", tiny_siglip)
    assert status == 2
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, tiny_clip: Path):
    folder, store = tmp_path / "my pictures", tmp_path / "s.chiasm"
    folder.mkdir()
    for n in range(3000):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (32, 32, 3), np.uint8)).save(
            folder / f"{n}.png", compress_level=1
        )
    call = [sys.executable, "-m", "chiasm", "index", str(folder), "--store", str(store), "--space", str(tiny_clip)]
    process = subprocess.Popen(
        [*call, "--batch-size", "1", "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as a test run may be one, inherits a deaf ear to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    header, deadline = store / "chiasm.json", time.monotonic() + 120
    while not header.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    assert last.startswith("Error: interrupted. What was finished is kept; go on with: chiasm index")
    assert f"'{folder}'" in last
    assert "Traceback" not in err


# ---- search


def test_search_json_has_the_promised_shape(made, capsys):
    status, out, _ = run(capsys, "search", "a red photo", "-s", made[1], "--json")
    found = json.loads(out)
    assert status == 0
    assert found["query"] == "a red photo"
    assert isinstance(found["nothing_here"], bool)
    assert len(found["hits"]) == 4  # all there is, whatever nothing_here says
    for hit in found["hits"]:
        assert {"id", "uri", "modality", "score", "relevance"} <= set(hit)
        assert 0 <= hit["relevance"] <= 1


def test_search_by_a_picture_finds_that_picture(made, tmp_path: Path, capsys):
    copy = tmp_path / "copy.png"
    copy.write_bytes((made[0] / "green.png").read_bytes())
    for option in ("--file", "--image", "-f"):
        status, out, _ = run(capsys, "search", option, copy, "-s", made[1], "--json", "-k", 1)
        assert status == 0
        (hit,) = json.loads(out)["hits"]
        assert hit["uri"].endswith("green.png")
        assert hit["score"] == pytest.approx(1, abs=1e-3)


def test_filters_reach_the_store(made, capsys):
    def uris(*more: object) -> list[str]:
        hits = json.loads(run(capsys, "search", "x", "-s", made[1], "--json", *more)[1])["hits"]
        return sorted(Path(hit["uri"]).name for hit in hits)

    pictures = ["blue.png", "green.png", "red.png"]
    assert uris("--modality", "image") == pictures
    assert uris("--modality", "text") == ["note.txt"]
    assert uris("--modality", "text", "--modality", "image") == [*pictures[:2], "note.txt", "red.png"]
    assert uris("--path", made[0] / "red.png") == ["red.png"]
    assert uris("--where", "width=64") == pictures
    assert uris("--where", "width>64") == []
    assert uris("--since", "2001-01-01", "--until", "2001-12-31") == []
    assert uris("-k", "2", "--modality", "image", "--hybrid") != []


def test_search_for_people(made, capsys):
    status, out, _ = run(capsys, "search", "x", "-s", made[1], "--rate", "0.9", "--show-nearest")
    assert status == 0
    heading = next(line for line in out.splitlines() if line.startswith("#"))
    assert re.sub(r" +", " ", heading) == "# relevance score kind item part text"
    assert str(made[0] / "red.png") in out
    assert "the house by the sea" in out


@pytest.mark.parametrize(
    ("argv", "broken"),
    [
        (["search", "-s", "{store}"], "either words or --file"),
        (["search", "x", "-f", "y", "-s", "{store}"], "either words or --file"),
        (["search", "-f", "/no/such.png", "-s", "{store}"], "no such file"),
        (["search", "", "-s", "{store}"], "empty"),
        (["search", "x", "-k", "0", "-s", "{store}"], "k "),
        (["search", "x", "--rate", "1.5", "-s", "{store}"], "rate"),
        (["search", "x", "--modality", "smell", "-s", "{store}"], "smell"),
        (["search", "x", "--where", "page", "-s", "{store}"], "NAME=VALUE"),
        (["search", "x", "--since", "yesterday", "-s", "{store}"], "2026-05-31"),
        (["search", "x", "-s", "{store}/nowhere"], "chiasm index FOLDER --store"),
        (["similar", "no-such-id", "-s", "{store}"], "no-such-id"),
        (["delete", "-s", "{store}"], "nothing named"),
        (["info", "-s", "{store}/nowhere"], "no store here"),
        (["serve", "-s", "{store}/nowhere"], "no store here"),
        (["methods", "no-such-method"], "unknown method"),
        (["export", "{store}/../made.chiasm", "-s", "{store}"], "exists"),
    ],
)
def test_wrong_calls_are_one_line_and_status_2(made, capsys, argv: list[str], broken: str):
    status, out, err = run(capsys, *(arg.format(store=made[1]) for arg in argv))
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("Error: ")
    assert broken in err


@pytest.mark.parametrize(
    ("argv", "offered"),
    [
        (["serch", "x"], "search"),
        (["search", "x", "--stor", "y"], "--store"),
        (["inde"], "index"),
        (["search", "--kk", "3"], "--kk"),
    ],
)
def test_a_typo_offers_the_nearest(capsys, argv: list[str], offered: str):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert offered in err
    assert "Traceback" not in err


def test_an_unexpected_fault_is_one_line_without_debug(monkeypatch, capsys):
    def fail(symptom=None):
        raise RuntimeError("planted")

    monkeypatch.setattr("chiasm.catalog.methods", fail)
    monkeypatch.delenv("CHIASM_DEBUG", raising=False)
    status, _, err = run(capsys, "methods")
    assert status == 1
    assert "planted" in err
    assert "CHIASM_DEBUG=1" in err
    monkeypatch.setenv("CHIASM_DEBUG", "1")
    with pytest.raises(RuntimeError, match="planted"):
        main(["methods"])


def test_debug_shows_where_an_error_comes_from(monkeypatch):
    monkeypatch.setenv("CHIASM_DEBUG", "1")
    with pytest.raises(BadInput):
        main(["search"])


def test_version_and_both_helps(capsys):
    assert run(capsys, "--version") == (0, f"chiasm {chiasm.__version__}\n", "")
    short, long = run(capsys, "-h"), run(capsys, "--help")
    assert short == long
    assert short[0] == 0
    for command in (
        "index",
        "search",
        "similar",
        "info",
        "demo",
        "serve",
        "methods",
        "new",
        "export",
        "import",
        "delete",
    ):
        assert re.search(rf"^  {command} ", short[1], re.MULTILINE)
        assert run(capsys, command, "-h")[0] == 0


def test_store_comes_from_the_environment(made, monkeypatch, capsys):
    monkeypatch.setenv("CHIASM_STORE", str(made[1]))
    assert len(json.loads(run(capsys, "search", "x", "--json")[1])["hits"]) == 4
    monkeypatch.delenv("CHIASM_STORE")
    monkeypatch.chdir(made[0])
    status, _, err = run(capsys, "search", "x")
    assert status == 2
    assert err.startswith("Error: store.chiasm: there is no store here")


# ---- similar, info, export, import, delete


def test_similar_by_file_and_by_id(made, capsys):
    out = run(capsys, "similar", made[0] / "red.png", "-s", made[1], "--json", "-k", 2)[1]
    hits = json.loads(out)["hits"]
    assert len(hits) == 2
    assert not any(hit["uri"].endswith("red.png") for hit in hits)
    out = run(capsys, "similar", hits[0]["id"], "-s", made[1], "--json")[1]
    assert hits[0]["id"] not in [hit["id"] for hit in json.loads(out)["hits"]]


def test_info(made, capsys):
    status, out, _ = run(capsys, "info", "-s", made[1], "--json")
    told = json.loads(out)
    assert status == 0
    assert told["versions"]["chiasm"] == chiasm.__version__
    assert "cpu" in told["devices"]
    assert told["cache"]["path"] == os.environ["CHIASM_CACHE"]
    assert told["store"]["items"] == 4
    assert "pocket" in run(capsys, "info")[1]


def test_export_import_round_trip(made, tmp_path: Path, tiny_clip: Path, capsys):
    table = tmp_path / "all.parquet"
    assert run(capsys, "export", table, "-s", made[1])[1].endswith("4 items as parquet\n")
    copy = tmp_path / "copy.chiasm"
    status, out, _ = run(capsys, "import", table, "-s", copy, "--space", tiny_clip, "--json")
    report = json.loads(out)
    assert status == 0
    assert (report["added"], report["items"]) == (4, 4)

    def scores(store: Path) -> dict[str, float]:
        hits = json.loads(run(capsys, "search", "a red photo", "-s", store, "--json")[1])["hits"]
        return {hit["uri"]: hit["score"] for hit in hits}

    assert scores(copy) == pytest.approx(scores(made[1]), abs=1e-6)


def test_import_of_npy_and_of_what_cannot_be_told(tmp_path: Path, capsys):
    np.save(tmp_path / "v.npy", np.eye(5, 8, dtype=np.float32))
    store = tmp_path / "s.chiasm"
    assert json.loads(run(capsys, "import", tmp_path / "v.npy", "-s", store, "--json")[1])["added"] == 5
    assert json.loads(run(capsys, "import", tmp_path / "v.npy", "-s", store, "--json")[1])["unchanged"] == 5
    (tmp_path / "what.bin").write_bytes(b"")
    status, _, err = run(capsys, "import", tmp_path / "what.bin", "-s", store)
    assert status == 2
    assert "--format" in err


def test_delete_leaves_the_files(made, tmp_path: Path, tiny_clip: Path, capsys):
    store = tmp_path / "s.chiasm"
    run(capsys, "index", made[0], "-s", store, "--space", tiny_clip)
    status, out, _ = run(capsys, "delete", "--path", made[0] / "red.png", "-s", store)
    assert (status, out) == (0, f"1 removed; {store} holds 3 items\n")
    assert (made[0] / "red.png").exists()
    assert run(capsys, "delete", "--path", made[0] / "red.png", "-s", store)[0] == 1


# ---- a search as a page


def test_page_of_a_real_search(made, tmp_path: Path, capsys):
    target = tmp_path / "new" / "out.html"
    assert run(capsys, "search", "x", "-s", made[1], "--html", target)[0] == 0
    page = target.read_text()
    assert page.count("<img") == page.count("data:image/jpeg;base64,") == 3
    assert page.count("<li>") == 4


def test_page_that_cannot_be_written(made, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, "search", "x", "-s", made[1], "--html", tmp_path / "file" / "out.html")
    assert status == 2
    assert "cannot be written" in err

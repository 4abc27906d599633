"""`chiasm demo`: what it lays out, asks, counts and writes; and, with the pocket space, that it keeps its promise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chiasm.cli import demo, main
from chiasm.errors import MissingExtra
from chiasm.search import Hit, SearchResult

skimage = pytest.mark.skipif(demo.find_spec("skimage") is None, reason="needs the extra demo")


def result(query: str, first: str, nothing_here: bool = False) -> SearchResult:
    hit = Hit("1", f"/media/{first}", "", "image", 0.5, 0.5)
    return SearchResult(query, [hit] if first else [], nothing_here, p_value=0.5, calibrated=True)


def test_counts_are_of_the_right_kinds():
    asked = [
        demo.Asked(result("a cat", "chelsea.png"), "chelsea.png"),
        demo.Asked(result("a horse", "horse.png", nothing_here=True), "horse.png"),
        demo.Asked(result("a flower", "coins.png"), "flower.jpg"),
        demo.Asked(result("a motorcycle", ""), "motorcycle_left.png"),
        demo.Asked(result(*demo.PAGE[::-1]), demo.PAGE[0]),
        demo.Asked(result("sushi", "coins.png", nothing_here=True), None),
        demo.Asked(result("a violin", "coins.png"), None),
    ]
    assert demo.counts(asked) == {
        "right_first": {"count": 2, "of": 4},
        "present_called_present": {"count": 3, "of": 4},
        "absent_called_nothing_here": {"count": 1, "of": 2},
        "text_and_speech_right_first": {"count": 1, "of": 1},
    }


def test_summary_says_what_was_counted(capsys, tmp_path: Path):
    asked = [demo.Asked(result("a cat", "chelsea.png"), "chelsea.png"), demo.Asked(result("sushi", "x.png"), None)]
    demo.show(asked, tmp_path / "s.chiasm", tmp_path / "page.html")
    out = capsys.readouterr().out
    assert "1 of 1 right first" in out
    assert "0 of 1 absent things called nothing here" in out
    assert f"--store {tmp_path / 's.chiasm'}" in out
    verdicts = [line.split()[-2] for line in out.splitlines()[1:3]]
    assert verdicts == ["ok", "wrong"]


@skimage
def test_the_pictures_are_found_without_importing_their_packages():
    found = demo.pictures()
    assert len(found) == 20
    assert set(demo.PRESENT.values()) <= {path.name for path in found}


@pytest.mark.parametrize("package", ["skimage", "sklearn"])
def test_without_pictures_the_extra_is_named(monkeypatch, package: str, tmp_path: Path, capsys):
    real = demo.find_spec
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(MissingExtra, match=r"chiasm\[demo\]"):
        demo.pictures()
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'chiasm[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_speech_without_espeak(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    assert demo.lay_out(tmp_path / "media", []) is False
    assert (tmp_path / "media" / demo.PAGE[0]).read_text() == demo.PAGE_TEXT


@pytest.mark.speech
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_the_spoken_sentence_is_understood(tmp_path: Path):
    pytest.importorskip("pocketsphinx")
    from chiasm.encode import read

    assert demo.lay_out(tmp_path, []) is True
    (item,) = read(tmp_path / demo.SPEECH[0], transcribe=True)
    assert {"doctor", "medicine", "morning"} <= set(item.text.split())


@skimage
def test_with_a_random_model_the_whole_way(tmp_path: Path, tiny_clip: Path, monkeypatch, capsys):
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--space", str(tiny_clip), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [q["query"] for q in told["queries"]] == [*demo.PRESENT, demo.PAGE[1], *demo.ABSENT]
    assert told["right_first"]["of"] == told["absent_called_nothing_here"]["of"] == 10
    assert all(len(q["hits"]) == 4 for q in told["queries"])
    page = Path(told["page"]).read_text()
    assert page.count("<section") == 21
    assert "data:image/jpeg;base64," in page
    assert main(["demo", "--out", str(out), "--space", str(tiny_clip)]) == 0
    again = capsys.readouterr()
    assert "0 added, 0 updated, 21 unchanged" in again.out
    assert "espeak-ng is not installed" in again.err


@skimage
@pytest.mark.slow
def test_the_promise_of_the_demo(tmp_path: Path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    assert main(["demo", "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["right_first"]["count"] >= 8
    assert told["present_called_present"]["count"] >= 8
    assert told["absent_called_nothing_here"]["count"] >= 9
    assert told["text_and_speech_right_first"]["count"] == told["text_and_speech_right_first"]["of"]

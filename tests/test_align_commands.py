"""``chiasm align`` and ``chiasm evaluate retrieval`` end to end: exit status, tables, JSON, the page, hostile captions."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chiasm.cli import main
from chiasm.cli.align import columns_of, options_of
from chiasm.errors import BadInput

pytest.importorskip("accelerate")

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> & "quotes" \x1b[31m'


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    status = main([str(arg) for arg in argv])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Twelve colors, six pictures each; one caption is hostile, one picture broken, one missing."""
    folder = tmp_path_factory.mktemp("pairs")
    rng, lines = np.random.default_rng(0), []
    for c in range(12):
        color = rng.integers(0, 256, 3)
        for i in range(6):
            noisy = (color + rng.integers(-15, 15, (20, 20, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"c{c}_{i}.png")
            caption = HOSTILE if c == 0 else f"color number {chr(97 + c) * 3}"
            lines.append(
                {
                    "picture": f"c{c}_{i}.png",
                    "words": caption,
                    "split": "test" if i == 0 else "val" if i == 1 else "train",
                }
            )
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    lines += [
        {"picture": "broken.png", "words": "broken", "split": "train"},
        {"picture": "gone.png", "words": "gone", "split": "train"},
    ]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def space(pairs: Path, tiny_clip: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "space"
    columns = "picture,words"
    status = main(
        [
            "align",
            str(pairs),
            "--space",
            str(tiny_clip),
            "--out",
            str(out),
            "--columns",
            columns,
            "--epochs",
            "2",
            "--json",
        ]
    )
    assert status == 0
    return out


def test_align_for_programs(pairs: Path, tiny_clip: Path, tmp_path: Path, capsys) -> None:
    arguments = [
        "align",
        pairs,
        "--space",
        tiny_clip,
        "--out",
        tmp_path / "s",
        "--columns",
        "picture,words",
        "--epochs",
        2,
    ]
    status, out, _ = run(capsys, *arguments, "--option", "temperature=0.1", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["facts"]["pairs"] == {"train": 48, "val": 12, "test": 12}
    assert found["facts"]["options"] == {"temperature": 0.1}
    assert sorted(Path(s["where"].rpartition(":")[0] or s["where"]).name for s in found["skipped"]) == [
        "broken.png",
        "pairs.jsonl",
    ]
    assert set(found["after"]["directions"]) == {"text to image", "image to text"}
    assert (tmp_path / "s" / "report.html").is_file()


def test_align_for_people(pairs: Path, tiny_clip: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "s"
    status, said, err = run(
        capsys, "align", pairs, "--space", tiny_clip, "--out", out, "--columns", "picture,words", "--epochs", 1
    )
    assert status == 0
    assert re.search(r"text to image\s+R@10\s+[\d.]+\s+[\d.]+\s+[+-][\d.]+ \[", said)
    assert "48 train, 12 val, 12 test pairs" in said
    assert "Mismatched pairs: about" in said
    assert "2 lines or items gave no pair" in err
    assert "\x1b[" not in said + err


def test_evaluate_gives_the_figures_of_the_report(space: Path, pairs: Path, capsys) -> None:
    status, out, _ = run(capsys, "evaluate", "retrieval", space, pairs, "--columns", "picture,words", "--json")
    found, report = json.loads(out), json.loads((space / "report.json").read_text())
    assert status == 0
    assert (found["split"], found["pairs"]) == ("test", 12)
    for way, figures in report["after"]["directions"].items():
        for name in ("R@1", "R@5", "R@10", "map"):
            assert found["directions"][way][name]["mean"] == pytest.approx(figures[name]["mean"])
    status, out, _ = run(
        capsys, "evaluate", "retrieval", space, pairs, "--columns", "picture,words", "--split", "train"
    )
    assert status == 0
    assert re.search(r"image to text\s+median rank\s+\d+  of 12", out)


def test_evaluate_measures_a_file_without_splits_whole(tiny_clip: Path, pairs: Path, tmp_path: Path, capsys) -> None:
    lines = [f"{pairs.parent / f'c{c}_0.png'},caption {c}" for c in range(5)]
    (tmp_path / "few.csv").write_text("\n".join(["image,caption", *lines]))
    status, out, _ = run(capsys, "evaluate", "retrieval", tiny_clip, tmp_path / "few.csv", "--json")
    found = json.loads(out)
    assert (status, found["split"], found["pairs"]) == (0, "all", 5)
    assert found["notes"] == ["The pairs name no val or test split: all of them were measured."]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--objective", "info-nse"], "Did you mean info-nce"),
        (["--option", "temperatur=1"], "Did you mean temperature"),
        (["--option", "temperature"], "Write key=value"),
        (["--columns", "picture"], "not two columns"),
        (["--columns", "pictur,words"], "Did you mean picture"),
        (["--space", "pockett"], "Did you mean pocket"),
        (["--images", "/nowhere"], "not one pair is left"),
    ],
)
def test_wrong_calls_end_in_one_line(pairs: Path, tiny_clip: Path, tmp_path: Path, capsys, more, match) -> None:
    base = ["align", pairs, "--out", tmp_path / "s", "--columns", "picture,words", "--space", tiny_clip]
    status, _, err = run(capsys, *base, *more)
    assert status == 2
    assert match in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_options_are_read_as_json() -> None:
    found = options_of(["a=1", "b=0.5", "c=true", "d=both", "e=[1, 2]", "learn-temperature=null"])
    assert found == {"a": 1, "b": 0.5, "c": True, "d": "both", "e": [1, 2], "learn_temperature": None}
    assert columns_of("a,") == ("a", None)
    with pytest.raises(BadInput):
        options_of(["=3"])


class Page(HTMLParser):
    """Tags, their attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_whole_and_harmless(space: Path) -> None:
    text = (space / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert "script" not in page.tags
    assert not page.handlers
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert page.tags.count("svg") >= 2
    assert page.tags.count("img") == 24
    assert 'http-equiv="Content-Security-Policy"' in text
    assert "<script>alert(1)</script>" in page.words  # as words, where the caption is shown
    for words in (
        "Recall on the test pairs",
        "unaligned",
        "aligned",
        "Pairs that fit least",
        "2 lines or items gave no pair",
    ):
        assert words in page.words

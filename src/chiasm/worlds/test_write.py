"""What is written can be read back by other programs, and is the same every time."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from chiasm.errors import BadInput, UnknownName
from chiasm.worlds import make_graph, make_pairs, make_scenes
from chiasm.worlds.motion import clip
from chiasm.worlds.write import write_graph, write_mp4, write_pairs, write_scenes


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scenes_on_disk_are_the_scenes_in_memory(tmp_path):
    world, seen = make_scenes(12, seed=1), []
    counts = write_scenes(world, tmp_path / "a", clips=2, progress=seen.append)
    write_scenes(world, tmp_path / "b", clips=2)
    assert {k: v for k, v in digest(tmp_path / "a").items() if not k.endswith(".mp4")} == {
        k: v for k, v in digest(tmp_path / "b").items() if not k.endswith(".mp4")
    }
    assert seen == list(range(1, 13))
    root = tmp_path / "a"
    drawing = world.draw()
    for i, row in enumerate(lines(root / "scenes.jsonl")):
        assert np.array_equal(np.asarray(Image.open(root / row["image"])), drawing.pictures[i])
        assert np.array_equal(np.asarray(Image.open(root / "masks" / f"{i:06d}.png")), drawing.labels[i])
        assert row["objects"] == json.loads(json.dumps(world[i].to_json()))["objects"]
    assert len(lines(root / "captions.jsonl")) == counts["captions"] == 12 * 5 * 4
    assert len(lines(root / "negatives.jsonl")) == counts["negatives"]
    assert len(lines(root / "questions.jsonl")) == counts["questions"]
    for i, row in enumerate(lines(root / "clips.jsonl")):
        shown = np.flatnonzero(clip(world, i).highlight)
        assert row["highlight"] == [shown[0], shown[-1] + 1]
        assert (root / row["clip"]).stat().st_size > 500
    made = json.loads((root / "world.json").read_text())
    again = make_scenes(made["n"], seed=made["seed"], **made["settings"])
    assert np.array_equal(again.pictures(), drawing.pictures)


def test_an_mp4_shows_the_frames(tmp_path):
    av = pytest.importorskip("av")
    made = clip(make_scenes(1, seed=2), 0)
    write_mp4(tmp_path / "c.mp4", made.frames, made.fps)
    with av.open(str(tmp_path / "c.mp4")) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    assert frames.shape == made.frames.shape
    assert np.abs(frames.astype(int) - made.frames).mean() < 12  # lossy, but the same picture


def test_pairs_and_graph_on_disk(tmp_path):
    from safetensors.numpy import load_file

    world = make_pairs("noisy", seed=3, n=50, bank=20)
    write_pairs(world, tmp_path / "pairs")
    for name, values in load_file(str(tmp_path / "pairs" / "world.safetensors")).items():
        assert np.array_equal(values, world.arrays()[name])
    facts = json.loads((tmp_path / "pairs" / "world.json").read_text())
    assert facts["fault"] == "noise"
    assert facts["noisy_pairs"] == world.noisy.sum()
    graph = make_graph(30, pictures=4, leaves=3, seed=1)
    write_graph(graph, tmp_path / "graph")
    rows = [row.split("\t") for row in (tmp_path / "graph" / "triples.tsv").read_text().splitlines()]
    assert len(rows) == len(graph.triples)
    assert sum(row[3] == "test" for row in rows) == graph.split.sum()
    assert len(list((tmp_path / "graph" / "images").iterdir())) == 4


def test_nothing_is_overwritten_and_bad_languages_write_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        write_scenes(make_scenes(1), tmp_path)
    with pytest.raises(UnknownName, match="language"):
        write_scenes(make_scenes(1), tmp_path / "new", speech=("xx",))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["scenes", "pairs", "graph"])
def test_the_command(kind, tmp_path):
    from chiasm.cli import build

    out = tmp_path / "out"
    done = CliRunner().invoke(build(), ["world", kind, "--out", str(out), "--n", "20", "--seed", "3", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["seed"] == 3
    assert facts["out"] == str(out)
    assert (out / "README.md").exists()
    assert {"scenes": 20, "pairs": 20}.get(kind, 20) in facts.values() or kind == "graph"

"""`align`: starts at the unaligned space, learns what can be learned, saves what plain sentence-transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from chiasm.encode import load
from chiasm.errors import BadInput, TrainingDiverged, UnknownName
from chiasm.learn import align_run
from chiasm.learn.align import align
from chiasm.learn.heads import head_for, whole_model
from chiasm.learn.retrieval import measure_space, retrieval

pytest.importorskip("accelerate")

COLORS = {
    "red": (210, 30, 30),
    "green": (30, 170, 40),
    "blue": (30, 50, 210),
    "dark": (25, 25, 25),
    "white": (235, 235, 235),
    "yellow": (220, 210, 40),
}


def paint(folder: Path, each: int = 8, seed: int = 0) -> Path:
    """Pictures of plain colors with noise; the caption names the color, so equal sentences belong to many pictures."""
    rng = np.random.default_rng(seed)
    lines = []
    for name, color in COLORS.items():
        for i in range(each):
            noisy = np.array(color) + rng.integers(-20, 20, (24, 24, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{name}{i}.png")
            split = "test" if i < each // 4 else "val" if i < each // 2 else "train"
            lines.append({"image": f"{name}{i}.png", "caption": f"a {name} picture", "split": split, "label": name})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def aligned(colors: Path, tmp_path_factory):
    """The pocket space, aligned on colors."""
    return align(colors, out=tmp_path_factory.mktemp("out") / "space", device="cpu")


def test_recall_rises_on_pictures_never_seen(aligned) -> None:
    report = aligned.report
    assert report.facts["pairs"] == {"train": 24, "val": 12, "test": 12}
    way = "image to text"
    assert report.after[way].interval("R@1").mean == 1.0
    assert report.after[way].interval("R@1").mean > report.before[way].interval("R@1").mean + 0.3
    assert report.best is not None
    assert report.start is not None


def test_plain_sentence_transformers_loads_it(aligned, colors: Path) -> None:
    plain = SentenceTransformer(str(aligned.path), device="cpu")  # without trust_remote_code
    picture = Image.open(colors.parent / "blue0.png").convert("RGB")
    texts = [f"a {name} picture" for name in COLORS]
    scores = plain.similarity(plain.encode([picture]), plain.encode(texts))[0]
    assert list(COLORS)[int(scores.argmax())] == "blue"
    space = load(str(aligned.path))
    np.testing.assert_allclose(space.encode(texts).vectors, plain.encode(texts), atol=1e-6)
    np.testing.assert_allclose(space.encode([picture]).vectors, plain.encode([picture]), atol=1e-6)
    types = json.loads((aligned.path / "router_config.json").read_text())["types"]
    assert all(name.startswith("sentence_transformers.") for name in types.values())


def test_the_saved_space_gives_the_reported_figures(aligned, colors: Path) -> None:
    found = measure_space(str(aligned.path), colors, split="test")
    for one in found.report.directions:
        for name in ("R@1", "R@5", "R@10"):
            assert one.interval(name).mean == pytest.approx(
                aligned.report.after[one.name].interval(name).mean, abs=0.01
            )


def test_the_report_is_whole_and_json(aligned) -> None:
    found = json.loads((aligned.path / "report.json").read_text())
    assert set(found["gain"]) == {"text to image", "image to text"}
    assert found["history"][0]["step"] == 0
    assert [s["where"].rpartition("/")[2].split(":")[0] for s in found["suspects"][:1]] == ["pairs.jsonl"]
    assert not list(aligned.path.parent.glob("*.training"))


def test_heads_start_as_the_space(tiny_clip: Path) -> None:
    """The identity: untrained heads change nothing."""
    space = load(str(tiny_clip))
    model = whole_model(space, {route: head_for(space, route)[0] for route in ("text", "image")})
    picture = Image.new("RGB", (30, 40), "red")
    np.testing.assert_allclose(model.encode(["a cat"]), space.encode(["a cat"]).vectors, atol=1e-6)
    np.testing.assert_allclose(model.encode([picture]), space.encode([picture]).vectors, atol=1e-6)


def test_the_stock_network_is_the_pocket_network() -> None:
    from chiasm.encode.pocket.stock import stock_network

    pocket = load("pocket").model[0].sub_modules["image"][0]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    transformer, pooling = (module.eval() for module in stock_network())
    with torch.inference_mode():
        theirs = pooling(transformer(transformer.preprocess([picture])))["sentence_embedding"]
        ours = pocket(pocket.preprocess([picture]))["image_features"]
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-3)


def test_a_model_without_a_router(colors: Path, tiny_clip: Path, tmp_path: Path) -> None:
    made = align(colors, str(tiny_clip), out=tmp_path / "space", epochs=3, device="cpu")
    plain = SentenceTransformer(str(tmp_path / "space"), device="cpu")
    space = load(str(tmp_path / "space"))
    texts = ["a red picture", "a blue picture"]
    np.testing.assert_allclose(plain.encode(texts), made.space.encode(texts).vectors, atol=1e-6)
    np.testing.assert_allclose(plain.encode(texts), space.encode(texts).vectors, atol=1e-6)
    picture = Image.new("RGB", (30, 40), "red")
    np.testing.assert_allclose(plain.encode([picture]), space.encode([picture]).vectors, atol=1e-6)


def test_fine_tuning_trains_the_encoders_of_a_copy(colors: Path, tiny_clip: Path, tmp_path: Path) -> None:
    space = load(str(tiny_clip))
    before = space.fingerprint.digest
    made = align(colors, space, unfreeze=True, epochs=1, batch_size=8, rate=1e-3, out=tmp_path / "space", device="cpu")
    assert load(str(tiny_clip)).fingerprint.digest == before
    old = dict(space.model.named_parameters())
    changed = [n for n, p in made.model.named_parameters() if n in old and not torch.equal(p, old[n])]
    assert any("vision_model" in n for n in changed)
    assert any("text_model" in n for n in changed)
    assert SentenceTransformer(str(tmp_path / "space"), device="cpu").encode(["a cat"]).shape == (1, 24)


def test_the_same_seed_gives_the_same_space(colors: Path, tiny_clip: Path) -> None:
    one, two = (align(colors, str(tiny_clip), epochs=2, seed=3, device="cpu") for _ in range(2))
    np.testing.assert_array_equal(
        one.space.encode(["a red picture"]).vectors, two.space.encode(["a red picture"]).vectors
    )


def test_shuffled_captions_teach_nothing(tmp_path: Path, tiny_clip: Path) -> None:
    """The negative control: without a relation between the sides there is no gain on unseen pictures."""
    path = paint(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    captions = np.random.default_rng(0).permutation([r["caption"] for r in rows])
    path.write_text("\n".join(json.dumps({**r, "caption": c}) for r, c in zip(rows, captions)))
    made = align(path, str(tiny_clip), device="cpu")
    gain = made.report.gains()["image to text"]["R@1"]
    assert gain.low <= 0


def test_an_interrupted_run_goes_on(colors: Path, tiny_clip: Path, tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "space"
    whole = align(colors, str(tiny_clip), epochs=6, patience=None, out=tmp_path / "whole", device="cpu")
    real = align_run.train

    def stopped(*args, **kwargs):
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_save(self, args, state, control, **more):
                if state.global_step >= 3:
                    raise KeyboardInterrupt

        return real(*args, **{**kwargs, "callbacks": [*kwargs["callbacks"], Stop()]})

    monkeypatch.setattr(align_run, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        align(colors, str(tiny_clip), epochs=6, patience=None, out=target, device="cpu")
    monkeypatch.setattr(align_run, "train", real)
    assert not target.exists()
    with pytest.raises(BadInput, match="other settings"):
        align(colors, str(tiny_clip), epochs=6, patience=None, out=target, resume=True, rate=0.1, device="cpu")
    made = align(colors, str(tiny_clip), epochs=6, patience=None, out=target, resume=True, device="cpu")
    assert made.report.history[-1]["step"] == whole.report.history[-1]["step"]
    np.testing.assert_allclose(
        made.space.encode(["a red picture"]).vectors, whole.space.encode(["a red picture"]).vectors, atol=1e-5
    )


# ---- bad input


def few(folder: Path, lines: list[tuple[str, str, str]]) -> Path:
    path = folder / "few.csv"
    path.write_text("\n".join(["image,caption,split", *(",".join(line) for line in lines)]), encoding="utf-8")
    return path


def test_pairs_that_teach_nothing_end_in_one_error(tmp_path: Path, tiny_clip: Path) -> None:
    paint(tmp_path, 4)

    def refused(lines: list[tuple[str, str, str]], match: str) -> None:
        with pytest.raises(BadInput, match=match):
            align(few(tmp_path, lines), str(tiny_clip), device="cpu")

    refused([("red0.png", "one", "train")], "1 pairs to train on")
    refused([("red0.png", c, "train") for c in "abc"] + [("blue0.png", "d", "test")], "same image")
    refused([(f"red{i}.png", "same", "train") for i in range(3)] + [("blue0.png", "d", "test")], "same caption")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    refused(
        [("broken.png", "a", "train"), ("red0.png", "b", "train"), ("red1.png", "c", "test")], r"1 pairs .*1 skipped"
    )


def test_two_pictures_are_enough_to_run(tmp_path: Path, tiny_clip: Path) -> None:
    paint(tmp_path, 2)
    made = align([(tmp_path / "red0.png", "a red picture"), (tmp_path / "blue0.png", "a blue picture")] * 2 + [
        (tmp_path / "green0.png", "a green picture"), (tmp_path / "dark0.png", "a dark picture"),
    ], str(tiny_clip), epochs=1, device="cpu")  # fmt: skip
    assert made.report.facts["pairs"] == {"train": 2, "val": 1, "test": 1}


def test_names_that_do_not_exist(colors: Path, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean info-nce"):
        align(colors, str(tiny_clip), "info-nc")
    with pytest.raises(UnknownName, match="Did you mean temperature"):
        align(colors, str(tiny_clip), options={"temprature": 0.1})
    with pytest.raises(BadInput, match="nothing to resume"):
        align(colors, str(tiny_clip), resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="was not made by align"):
        align(colors, str(tiny_clip), out=tmp_path / "mine")


class Tokens(torch.nn.Module):
    def forward(self, a, b, *, a_tokens, a_mask):
        return {"loss": (a_tokens * a_mask).sum()}


class NotANumber(torch.nn.Module):
    def forward(self, a, b, *, groups=None):
        return {"loss": a.sum() * float("nan")}


def test_an_objective_over_tokens_says_so_before_the_training(colors: Path, tiny_clip: Path) -> None:
    with pytest.raises(BadInput, match="Tokens needs a_tokens, a_mask"):
        align(colors, str(tiny_clip), Tokens(), device="cpu")


def test_a_loss_that_is_no_number_names_step_and_lines(colors: Path, tiny_clip: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"step 0; pairs .*pairs\.jsonl:\d+"):
        align(colors, str(tiny_clip), NotANumber(), device="cpu")


def test_retrieval_counts_equal_sentences_as_right() -> None:
    a = np.eye(4, dtype=np.float32)
    b = np.array([[1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    pairs = np.array([[0, 0], [1, 0], [2, 1], [3, 1]])
    found = retrieval(a, b, pairs)
    assert found["text to image"].interval("R@1").mean == 1.0  # pictures 0 and 1 tie, and both are right
    assert found["text to image"].ranking["hit@5"] == 1.0
    assert (
        found["image to text"].ranking["hit@1"] == 0.75
    )  # picture 3 is at right angles to both: a tie counts against it

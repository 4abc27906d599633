"""``chiasm doctor`` and ``chiasm correct`` end to end, the page, and the same top-10 wherever a correction is folded."""

import json
import re
from html.parser import HTMLParser

import faiss
import numpy as np
import pytest

from chiasm.cli import main
from chiasm.cli.correct import find
from chiasm.correct import fold_gallery, fold_queries
from chiasm.correct.dbnorm import CSLS, DualBankNorm, InvertedSoftmax, NearestNeighborNormalization
from chiasm.doctor import charts, examine, page
from chiasm.embeddings import Embeddings
from chiasm.errors import BadInput, UnknownName
from chiasm.measure.intervals import Interval
from chiasm.search import Store
from chiasm.worlds.pairs import make_pairs

WORLD = make_pairs("cone", n=400, bank=800, seed=11)


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "world.chiasm"
    Store(path).add(Embeddings(WORLD.image, [f"i{n}" for n in range(400)], ["image"] * 400))
    np.save(tmp_path / "bank.npy", WORLD.bank_text)
    np.save(tmp_path / "items.npy", WORLD.bank_image)
    return path


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "world.npz"
    text, image = (np.concatenate(x) for x in ((WORLD.text, WORLD.bank_text), (WORLD.image, WORLD.bank_image)))
    np.savez(path, text=text, image=image)
    return path


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    return status, *capsys.readouterr()


# ---- chiasm correct


def top(store: Store, queries: np.ndarray) -> list[list[str]]:
    return [[hit.id for hit in store.search(q, k=10).hits] for q in queries]


@pytest.mark.parametrize(
    ("name", "correction"),
    [
        ("csls", CSLS()),
        ("IS", InvertedSoftmax()),
        ("nnn", NearestNeighborNormalization()),
        ("DualBankNorm", DualBankNorm()),
    ],
)
def test_store_dense_and_faiss_give_the_same_top_10(store, tmp_path, capsys, name, correction):
    status, out, _ = run(
        capsys, "correct", "--store", store, "--apply", name, "--queries", tmp_path / "bank.npy", "--json"
    )
    assert status == 0
    assert json.loads(out)["correction"] == type(correction).__name__
    queries = WORLD.text[:40]
    correction.fit(WORLD.image, queries=WORLD.bank_text)
    dense = np.argsort(-correction.scores(queries), axis=1, kind="stable")[:, :10]
    index = faiss.IndexFlatIP(WORLD.image.shape[1] + 1)
    index.add(fold_gallery(WORLD.image, correction.bias_))
    _, rows = index.search(fold_queries(queries), 10)
    np.testing.assert_array_equal(rows, dense)
    with Store(store, create=False) as opened:
        assert top(opened, queries) == [[f"i{n}" for n in row] for row in dense]


def test_undo_restores_plain_scores(store, tmp_path, capsys):
    with Store(store, create=False) as opened:
        plain = top(opened, WORLD.text[:20])
    run(capsys, "correct", "-s", store, "--apply", "is", "--queries", tmp_path / "bank.npy")
    with Store(store, create=False) as opened:
        assert top(opened, WORLD.text[:20]) != plain
        assert opened.stats()["correction"] == "InvertedSoftmax"
    status, out, _ = run(capsys, "correct", "-s", store, "--undo")
    assert status == 0
    assert "InvertedSoftmax undone" in out
    with Store(store, create=False) as opened:
        assert top(opened, WORLD.text[:20]) == plain
        assert opened.stats()["correction"] is None
    assert "there was no correction" in run(capsys, "correct", "-s", store, "--undo")[1]


def test_an_item_bank_is_used(store, tmp_path, capsys):
    banks = ("--queries", tmp_path / "bank.npy", "--items", tmp_path / "items.npy")
    status, out, _ = run(capsys, "correct", "-s", store, "--apply", "dbnorm", *banks, "--json")
    assert status == 0
    assert json.loads(out)["correction"] == "DualBankNorm"
    expected = DualBankNorm().fit(WORLD.image, queries=WORLD.bank_text, items=WORLD.bank_image)
    with Store(store, create=False) as opened:
        snapshot = opened.snapshot(dense=True)
        assert snapshot is not None
        np.testing.assert_allclose(snapshot.bias, expected.bias_, atol=1e-5)
    status, _, err = run(capsys, "correct", "-s", store, "--apply", "csls", *banks)
    assert status == 2
    assert "no item bank" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --apply NAME or --undo"),
        (("--apply", "is", "--undo"), "either --apply NAME or --undo"),
        (("--apply", "cslss"), "Did you mean csls"),
        (("--apply", "invgc"), "not one number an item"),
        (("--apply", "dis"), "not one number an item"),
        (("--apply", "is"), "encodes no words"),
        (("--undo", "--null-bank"), "--undo takes no bank"),
        (("--apply", "is", "--queries", "gone.npy"), "does not exist"),
        (("--apply", "is", "--queries", "gone.npy", "--null-bank"), "two banks"),
    ],
)
def test_wrong_calls_of_correct_are_one_line(store, capsys, arguments, message):
    status, out, err = run(capsys, "correct", "-s", store, *arguments)
    assert status == 2
    assert not out
    assert message in err
    assert err.count("\n") == 1


def test_banks_of_other_dimension_and_with_nan_are_refused(store, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.ones((5, 9), np.float32))
    np.save(tmp_path / "nan.npy", np.full((5, 64), np.nan, np.float32))
    np.save(tmp_path / "none.npy", np.ones((0, 64), np.float32))
    for name, message in (("wide", "9 dimensions"), ("nan", "NaN"), ("none", "0 vectors")):
        status, _, err = run(capsys, "correct", "-s", store, "--apply", "is", "--queries", tmp_path / f"{name}.npy")
        assert (status, message in err) == (2, True), err


def test_names_are_classes_slugs_or_short():
    assert isinstance(find("dbnorm"), DualBankNorm)
    assert isinstance(find(" NNN "), NearestNeighborNormalization)
    assert isinstance(find("InvertedSoftmax"), InvertedSoftmax)
    with pytest.raises(UnknownName):
        find("magic")
    with pytest.raises(BadInput, match="serve"):
        find("InverseGraphConvolution")


# ---- chiasm doctor


def test_doctor_prints_a_verdict_and_json(pairs, capsys):
    status, out, _ = run(capsys, "doctor", pairs)
    assert status == 0
    assert "hubness" in out
    assert "Treated by: dbnorm" in out
    status, out, _ = run(capsys, "doctor", pairs, "--json")
    report = json.loads(out)
    assert {s["name"] for s in report["symptoms"]} == {"hubness", "cone"}
    assert report["verdict"]["cure"] is not None
    assert report["verdict"]["gain"]["low"] > 0
    assert len(report["trials"]) == 7


def test_doctor_of_a_store_reports_symptoms_and_asks_for_pairs(store, tmp_path, capsys):
    status, out, _ = run(capsys, "doctor", store, "--queries", tmp_path / "bank.npy")
    assert status == 0
    assert "hubness" in out
    assert "no gain can be measured" in out
    (tmp_path / "pairs.csv").write_text("query,item\n" + "".join(f"{n},i{n}\n" for n in range(400)))
    np.save(tmp_path / "texts.npy", WORLD.text)
    options = ("--queries", tmp_path / "texts.npy", "--pairs", tmp_path / "pairs.csv", "--json")
    status, out, _ = run(capsys, "doctor", store, *options)
    assert status == 0
    assert json.loads(out)["verdict"]["judged"]


def test_doctor_encodes_words_by_the_stores_space(tiny_clip, tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    store = Store(tmp_path / "c.chiasm", str(tiny_clip))
    store.add([Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(60)])
    ids = store.snapshot().column("id").to_pylist()
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"query": f"w{i}", "item": x}) + "\n" for i, x in enumerate(ids))
    )
    status, out, _ = run(capsys, "doctor", store.path, "--pairs", tmp_path / "pairs.jsonl", "--json")
    assert status == 0
    assert json.loads(out)["facts"]["pairs"] == 60
    status, out, _ = run(capsys, "doctor", store.path, "--json")
    assert status == 0
    assert json.loads(out)["facts"]["names"][0] == "everyday phrases"
    status, out, _ = run(capsys, "correct", "-s", store.path, "--apply", "csls", "--json")
    assert status == 0
    assert json.loads(out)["bank"] == "everyday phrases"


@pytest.mark.parametrize(
    "make", [lambda p: p / "gone.npy", lambda p: p, lambda p: (p / "x.txt", (p / "x.txt").touch())[0]]
)
def test_wrong_sources_are_one_line(tmp_path, capsys, make):
    status, out, err = run(capsys, "doctor", make(tmp_path))
    assert status == 2
    assert not out
    assert err.count("\n") == 1


# ---- the page


class Tags(HTMLParser):
    """Checks that tags are balanced, and gathers addresses."""

    empty = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(pairs, tmp_path, capsys):
    assert run(capsys, "doctor", pairs, "--html", tmp_path / "r.html")[0] == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.addresses == []
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert text.count("<svg") == 5  # cures, two hub histograms, cosines, the gap
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().replace("dominant", "")
    status, _, err = run(capsys, "doctor", pairs, "--html", tmp_path / "no" / "r.html")
    assert status == 2
    assert "cannot be written" in err


def test_names_are_escaped_and_a_report_without_pairs_has_a_page():
    report = examine(WORLD.image[:60], names=("<q>", "<script>alert(1)</script>"))
    text = page.render(report, title="<b>&")
    assert "<script" not in text
    assert "&lt;b&gt;&amp;" in text
    Tags().feed(text)


def test_charts_take_the_smallest_input():
    same = np.zeros(5)
    assert "<svg" in charts.hub_histogram(np.zeros(3, int), 10, "x")
    assert "<svg" in charts.densities({"a": same}, "x")
    assert "<svg" in charts.scatter({"a": np.zeros((1, 2))}, (0.0, 0.0), "x")
    assert "<svg" in charts.forest([("a", Interval(0.0, 0.0, 0.0), False)], "x")
    assert "nan" not in charts.hub_histogram(np.zeros(3, int), 10, "x")

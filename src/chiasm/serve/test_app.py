"""The endpoints over a real store, whose space knows eight colors and is therefore cheap and predictable."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from chiasm.embeddings import Embeddings, unit
from chiasm.items import Item
from chiasm.search import Store
from chiasm.serve.app import create_app
from chiasm.space import Fingerprint

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "orange": (250, 140, 20),
    "violet": (140, 40, 200),
}
_NOISE = 24
DIM = len(COLORS) + _NOISE


class ColorSpace:
    """Pictures by the share of each color, words by the color they name; every other word is a random direction."""

    name = "colors"
    modalities = ("text", "image")
    dim = DIM
    fingerprint = Fingerprint("colors", "1", "00", "00", DIM)
    speech_as_text = False

    def prepare(self, item: Item) -> Any:
        if item.modality == "image":
            return np.asarray(item.content.convert("RGB").resize((12, 12)), np.float32).reshape(-1, 3)
        return item.content.lower()

    def embed(self, prepared: Sequence[Any], modality: str, *, role: str = "document") -> np.ndarray:
        return unit(np.stack([self._picture(p) if modality == "image" else self._words(p) for p in prepared]))

    def encode(self, items: Any, *, role: Any = "document", **_: Any) -> Embeddings:
        things = [Item.of(item) for item in items]
        rows = [self.embed([self.prepare(item)], item.modality)[0] for item in things]
        return Embeddings(
            np.stack(rows), [i.id for i in things], [i.modality for i in things], space=self.fingerprint.digest
        )

    def _picture(self, pixels: np.ndarray) -> np.ndarray:
        nearest = ((pixels[:, None] - np.array(list(COLORS.values()))) ** 2).sum(2).argmin(1)
        shares = np.bincount(nearest, minlength=len(COLORS)) / len(pixels)
        return np.concatenate([shares, 0.15 * _direction(pixels.astype(np.uint8).tobytes())])

    def _words(self, text: str) -> np.ndarray:
        vector = np.zeros(DIM)
        for word in text.replace(".", " ").replace(",", " ").split():
            if word in COLORS:
                vector[list(COLORS).index(word)] += 1
            else:
                vector[len(COLORS) :] += 0.3 * _direction(word.encode())
        return vector if vector.any() else np.ones(DIM)


def _direction(key: bytes) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    vector = np.random.default_rng(seed).normal(size=_NOISE)
    return vector / np.linalg.norm(vector)


STRANGE_NAME = "red <b onclick=alert(1)>&'bold' 名前 ü.png"
HOSTILE_TEXT = "# Yellow <script>alert('x')</script>\n\nyellow lemons <img src=x onerror=alert(1)> and yellow butter\n"


def make_store(folder: Path) -> Store:
    """A store over a folder of colored pictures, one of them with a hostile name, and a hostile page of text."""
    source = folder / "files"
    source.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for color, rgb in COLORS.items():
        if color != "violet":  # the color that is not there
            picture(rgb, rng).save(source / f"{color}.png")
    picture(COLORS["red"], rng).save(source / STRANGE_NAME)
    (source / "page.md").write_text(HOSTILE_TEXT)
    store = Store(folder / "store.chiasm", ColorSpace())  # pyright: ignore[reportArgumentType]
    store.add(source)
    return store


def picture(rgb: tuple[int, int, int], rng: np.random.Generator, size: int = 64) -> Image.Image:
    noise = rng.normal(0, 8, (size, size, 3))
    return Image.fromarray(np.clip(np.array(rgb) + noise, 0, 255).astype(np.uint8))


def png(rgb: tuple[int, int, int] = COLORS["blue"], size: int = 32) -> bytes:
    out = io.BytesIO()
    picture(rgb, np.random.default_rng(1), size).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class Client:
    """Calls an application without a network, each call in an event loop of its own."""

    def __init__(self, app: Any, **headers: str) -> None:
        self.app, self.headers = app, headers

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765") as client:
                headers = self.headers | options.pop("headers", {})
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(call())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self("POST", path, **options)


def names(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [hit["uri"].rsplit("/", 1)[-1] for hit in reply.json()["hits"]]


def refused(reply: httpx.Response, status: int, param: str | None = None) -> str:
    """Checks the shape of an error and returns its message."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert "Traceback" not in reply.text
    if param is not None:
        assert error["param"] == param, error
    return error["message"]


# ---- search


def test_words_find_their_color(client: Client) -> None:
    for color in ("blue", "green", "yellow", "white"):
        reply = client.get("/search", params={"q": f"something {color}", "modality": "image"})
        assert names(reply)[0] == f"{color}.png"
        hits = reply.json()["hits"]
        assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)
        assert 0 <= hits[0]["relevance"] <= 1
        assert {"id", "uri", "part", "modality", "text", "meta", "added_at"} <= set(hits[0])
        assert "vector" not in hits[0]


def test_what_is_there_is_found_and_what_is_not_is_said_to_be_missing(client: Client) -> None:
    there = client.get("/search", params={"q": "blue"}).json()
    absent = client.get("/search", params={"q": "violin"}).json()
    assert not there["nothing_here"]
    assert absent["nothing_here"]
    assert absent["hits"], "the nearest ones are there to be shown anyway"
    assert there["p_value"] < absent["p_value"]


def test_get_and_post_give_the_same_hits(client: Client) -> None:
    asked = {"q": "orange", "k": 3, "modality": ["image"]}
    by_get, by_post = client.get("/search", params=asked), client.post("/search", json=asked)
    assert names(by_get) == names(by_post)
    assert len(names(by_get)) == 3


def test_a_picture_finds_its_like_as_json_and_as_body(client: Client) -> None:
    as_url = client.post("/search", json={"image": data_url(png()), "k": 2})
    bare = client.post("/search", json={"image": base64.encodebytes(png()).decode(), "k": 2})
    as_body = client.post("/search?k=2", content=png(), headers={"Content-Type": "image/png"})
    assert names(as_url)[0] == "blue.png"
    assert names(as_url) == names(bare) == names(as_body)


def test_a_vector_is_a_query(client: Client, store: Store) -> None:
    vector = store.space.encode(["green"]).vectors[0].tolist()
    assert names(client.post("/search", json={"vector": vector, "k": 1})) == ["green.png"]
    refused(client.post("/search", json={"vector": [1.0, 2.0]}), 400)
    refused(client.post("/search", content=json.dumps({"vector": [float("nan")] * DIM})), 400)


def test_filters(client: Client, store: Store) -> None:
    assert set(names(client.get("/search?q=red&modality=text"))) == {"page.md"}
    both = client.get("/search?q=red&modality=text&modality=image&k=50")
    assert len(names(both)) == len(store)
    assert names(client.get("/search", params={"q": "red", "path": "*/blue.png"})) == ["blue.png"]
    assert names(client.get("/search?q=red&since=2999-01-01")) == []
    assert len(names(client.get("/search?q=red&until=2999-01-01T00:00:00Z&k=50"))) == len(store)


def test_hybrid_finds_a_word_that_the_space_does_not_know(client: Client) -> None:
    assert names(client.get("/search", params={"q": "butter", "hybrid": True, "k": 1})) == ["page.md"]


def test_similar_leaves_the_item_out(client: Client) -> None:
    red = client.get("/search", params={"q": "red", "path": "*/red.png"}).json()["hits"][0]["id"]
    reply = client.get("/similar", params={"id": red, "modality": "image"})
    assert names(reply)[0] == STRANGE_NAME
    assert red not in [hit["id"] for hit in reply.json()["hits"]]


def test_similar_takes_no_path(client: Client, store: Store) -> None:
    inside = client.get("/search?q=blue&k=1").json()["hits"][0]["uri"]
    for path in (inside, __file__, "/etc/passwd", "../../etc/passwd", "~/x"):
        refused(client.get("/similar", params={"id": path}), 404)


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("", 422, "q"),
        ("q=", 400, "q"),
        ("q=%20%0A", 400, "q"),
        ("q=red&k=0", 422, "k"),
        ("q=red&k=-1", 422, "k"),
        ("q=red&k=1000000000", 400, "k"),
        ("q=red&k=1e9", 422, "k"),
        ("q=red&k=nan", 422, "k"),
        ("q=red&modality=smell", 422, "modality[0]"),
        ("q=red&rate=0", 422, "rate"),
        ("q=red&rate=nan", 422, "rate"),
        ("q=red&since=yesterday", 422, "since"),
        ("q=red&where=1%3D1", 422, "where"),
        ("q=" + "x" * 2001, 400, "q"),
        ("q=red&path=" + "x" * 2001, 400, "path"),
    ],
)
def test_bad_search_options(client: Client, query: str, status: int, param: str) -> None:
    refused(client.get(f"/search?{query}"), status, param)


@pytest.mark.parametrize("words", ["' OR 1=1 --", "名前 🎻", "\x00red", "a\u202eb", "%", "\\", '"', "* ( ] AND NOT"])
def test_odd_words_are_only_words(client: Client, words: str) -> None:
    for hybrid in (False, True):
        assert names(client.get("/search", params={"q": words, "hybrid": hybrid}))


@pytest.mark.parametrize("path", ["' OR '1'='1", "[", "**", "*" * 50 + "x", "\x00", "名前", "(a+)+$", "/etc/passwd"])
def test_odd_path_filters_are_only_filters(client: Client, path: str) -> None:
    reply = client.get("/search", params={"q": "red", "path": path})
    assert reply.status_code in (200, 400)
    if path != "**":
        assert reply.status_code == 400 or names(reply) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"q": "red", "image": data_url(png())},
        {"q": None},
        {"q": ["red"]},
        {"q": "red", "kk": 3},
        {"k": 3},
        [],
        "red",
        None,
    ],
)
def test_bad_search_bodies(client: Client, body: Any) -> None:
    refused(client.post("/search", json=body), 422)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"q": "\\ud800"}'])
def test_broken_json(client: Client, body: bytes) -> None:
    for path in ("/search", "/v1/embeddings"):
        reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code in (400, 422)
        refused(reply, reply.status_code)


# ---- items


def item_ids(client: Client) -> dict[str, str]:
    hits = client.get("/search?q=red&k=50").json()["hits"]
    return {hit["uri"].rsplit("/", 1)[-1]: hit["id"] for hit in hits}


def test_a_row_without_its_vector(client: Client) -> None:
    row = client.get(f"/items/{item_ids(client)['blue.png']}").json()
    assert row["uri"].endswith("/blue.png")
    assert row["meta"]["width"] == 64
    assert not {"vector", "tokens", "bias"} & set(row)


def test_thumbnails_and_their_cache(client: Client) -> None:
    ids = item_ids(client)
    reply = client.get(f"/items/{ids['blue.png']}/thumbnail?size=32")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "image/jpeg"
    assert "max-age" in reply.headers["cache-control"]
    shown = Image.open(io.BytesIO(reply.content)).convert("RGB")
    assert max(shown.size) == 32
    assert np.abs(np.asarray(shown).mean((0, 1)) - COLORS["blue"]).max() < 12
    tag = reply.headers["etag"]
    again = client.get(f"/items/{ids['blue.png']}/thumbnail?size=32", headers={"If-None-Match": f'"x", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    others = [(ids["blue.png"], 33), (ids["red.png"], 32)]
    assert tag not in [client.get(f"/items/{id}/thumbnail?size={size}").headers["etag"] for id, size in others]
    assert client.get(f"/items/{ids[STRANGE_NAME]}/thumbnail").status_code == 200


def test_what_has_no_thumbnail(client: Client) -> None:
    ids = item_ids(client)
    refused(client.get(f"/items/{ids['page.md']}/thumbnail"), 404)
    refused(client.get(f"/items/{ids['blue.png']}/thumbnail?size=0"), 422, "size")
    refused(client.get(f"/items/{ids['blue.png']}/thumbnail?size=100000"), 400, "size")


@pytest.mark.parametrize(
    "id",
    [
        "nobody",
        "..%2F..%2Fetc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        "..%5C..%5Cwindows",
        "%00",
        "%F0%9F%8E%BB",
        "' OR 1=1",
        "x" * 5000,
    ],
)
def test_ids_are_keys_and_never_paths(client: Client, id: str) -> None:
    for path in (f"/items/{id}", f"/items/{id}/thumbnail", f"/static/{id}"):
        reply = client.get(path)
        assert reply.status_code == 404, path
        refused(reply, 404)
        assert "root:" not in reply.text


def test_a_file_that_vanished_has_no_thumbnail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIASM_CACHE", str(tmp_path / "cache"))
    with make_store(tmp_path) as store:
        client = Client(create_app(store))
        id = item_ids(client)["blue.png"]
        (tmp_path / "files" / "blue.png").unlink()
        refused(client.get(f"/items/{id}/thumbnail"), 404)
        assert client.get(f"/items/{id}").status_code == 200

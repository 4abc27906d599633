"""Pictures and sounds in requests, and the embeddings endpoint; hostile ones among them."""

from __future__ import annotations

import asyncio
import base64
import io
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from chiasm.search import Store
from chiasm.serve.app import create_app
from chiasm.serve.test_app import COLORS, Client, data_url, png, refused

# ---- uploads


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in half a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 20_000
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes(side + 1) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/cat.png",
        "https://example.org/cat.png",
        "HTTPS://example.org/cat.png",
        " https://example.org/cat.png",
        "//example.org/cat.png",
        "ftp://example.org/cat.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png,abc",
        "data:image/png;base64,",
        "data:image/png;base64,a",
        "not base64!",
        "",
        data_url(b"GIF89a, but not really"),
        data_url(b"just words"),
        data_url(b"%PDF-1.4\n"),
        data_url(png()[:200]),
    ],
)
def test_bad_pictures(client: Client, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    message = refused(client.post("/v1/embeddings", json={"model": "colors", "input": [part]}), 400, "input[0]")
    assert "/tmp" not in message
    refused(client.post("/search", json={"image": url}), 400, "image")


def test_addresses_are_refused_by_name(client: Client) -> None:
    reply = client.post("/search", json={"image": "https://example.org/cat.png"})
    assert "fetches no address" in refused(reply, 400, "image")


def test_a_bomb_is_not_unpacked(client: Client) -> None:
    assert "20000 x 20000" in refused(client.post("/search", json={"image": data_url(bomb())}), 400, "image")
    refused(client.post("/search", content=bomb(), headers={"Content-Type": "image/png"}), 400, "image")


def test_a_page_is_not_a_picture(client: Client) -> None:
    reply = client.post("/search", content=b"<html>" * 9, headers={"Content-Type": "image/png"})
    refused(reply, 400, "image")


def test_a_sound_needs_a_space_that_hears(client: Client) -> None:
    import wave

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.zeros(16000, "<i2").tobytes())
    pytest.importorskip("av")
    refused(client.post("/search", content=out.getvalue(), headers={"Content-Type": "audio/wav"}), 422)


# ---- embeddings


def vectors(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["object"] == "list"
    assert [row["index"] for row in body["data"]] == list(range(len(body["data"])))
    return np.array([row["embedding"] for row in body["data"]], np.float32)


def test_embeddings_of_text_and_pictures_are_those_of_the_space(client: Client, store: Store) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(png())}}
    inputs = ["blue", image, {"type": "text", "text": "red"}, "blue"]
    got = vectors(client.post("/v1/embeddings", json={"model": "colors", "input": inputs}))
    expected = store.space.encode(["blue", Image.open(io.BytesIO(png())), "red"]).vectors[[0, 1, 2, 0]]
    np.testing.assert_array_equal(got, expected)
    one = client.post("/v1/embeddings", json={"model": "colors", "input": "blue"})
    np.testing.assert_array_equal(vectors(one), expected[:1])
    assert one.json()["usage"] == {"prompt_tokens": 1, "total_tokens": 1}


def test_base64_embeddings_are_the_same_numbers(client: Client) -> None:
    body = {"model": "colors", "input": ["blue", "a red house"]}
    plain = vectors(client.post("/v1/embeddings", json=body))
    packed = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"]
    unpacked = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in packed]
    np.testing.assert_array_equal(plain, unpacked)


def test_a_batch_of_many_keeps_its_order(client: Client, store: Store) -> None:
    texts = [f"{color} {i}" for i in range(12) for color in COLORS]
    got = vectors(client.post("/v1/embeddings", json={"model": "colors", "input": texts}))
    np.testing.assert_array_equal(got, np.concatenate([store.space.encode([text]).vectors for text in texts]))


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": [""]}, 400, "input[0]"),
        ({"input": ["red", "  "]}, 400, "input[1]"),
        ({"input": ["x"] * 257}, 400, "input"),
        ({"input": ["x" * 32_001]}, 400, "input[0]"),
        ({"input": [1, 2, 3]}, 422, "input"),
        ({"input": [[1, 2], [3]]}, 422, "input"),
        ({"input": {"type": "text"}}, 422, "input"),
        ({"input": ["red", {"type": "video_url"}]}, 422, "input[1]"),
        ({"input": None}, 422, "input"),
        ({"model": "text-embedding-3-small"}, 404, "model"),
        ({"model": None}, 422, "model"),
        ({"dimensions": 7}, 400, "dimensions"),
        ({"encoding_format": "hex"}, 422, "encoding_format"),
    ],
)
def test_bad_embedding_requests(client: Client, change: dict[str, Any], status: int, param: str) -> None:
    body = {"model": "colors", "input": "red"} | change
    refused(client.post("/v1/embeddings", json=body), status, param)


def test_the_official_client_is_served(store: Store) -> None:
    openai = pytest.importorskip("openai")
    app = create_app(store, token="sk-test")

    async def use() -> tuple[Any, Any]:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        client = openai.AsyncOpenAI(api_key="sk-test", base_url="http://127.0.0.1/v1", http_client=http)
        with pytest.raises(openai.NotFoundError, match="not the model"):
            await client.embeddings.create(model="other", input="red")
        wrong = client.with_options(api_key="sk-wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            await wrong.embeddings.create(model="colors", input="red")
        models = [model.id async for model in client.models.list()]
        return models, await client.embeddings.create(model="colors", input=["red", "blue"])

    models, reply = asyncio.run(use())
    assert models == ["colors"]
    np.testing.assert_array_equal([row.embedding for row in reply.data], store.space.encode(["red", "blue"]).vectors)
    assert reply.usage.prompt_tokens == 2

"""The server as a whole: its figures, pages, errors, time limit, and a real connection."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from chiasm.errors import SpaceMismatch
from chiasm.items import Item
from chiasm.search import Store
from chiasm.serve.app import create_app
from chiasm.serve.limits import Limits
from chiasm.serve.test_app import Client, ColorSpace, names, refused


def test_health_stats_models_and_metrics(store: Store) -> None:
    client = Client(create_app(store))
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/stats").json()["items"] == len(store)
    assert client.get("/v1/models").json()["data"][0]["id"] == "colors"
    client.get("/search?q=violin")
    client.get("/search?q=blue")
    client.get("/items/nobody")
    client.post("/v1/embeddings", json={"model": "colors", "input": ["a", "b"]})
    text = client.get("/metrics").text
    assert f"chiasm_items {float(len(store))}" in text
    assert "chiasm_nothing_here_total 1.0" in text
    assert 'chiasm_searches_total{kind="text"} 2.0' in text
    assert 'chiasm_embedded_inputs_total{modality="text"} 2.0' in text
    assert 'chiasm_requests_total{method="GET",route="/search",status="200"} 2.0' in text
    assert 'route="/items/{id:path}",status="404"' in text
    assert 'chiasm_request_seconds_count{route="/search"} 2.0' in text
    assert "nobody" not in text, "raw paths would make unbounded labels"


def test_the_description_covers_every_endpoint_and_the_pages_need_no_other_host(client: Client) -> None:
    api = client.get("/openapi.json").json()
    paths = {"/search", "/similar", "/items/{id}", "/items/{id}/thumbnail", "/v1/embeddings", "/healthz", "/metrics"}
    assert paths <= set(api["paths"])
    assert "image/*" in api["paths"]["/search"]["post"]["requestBody"]["content"]
    for page in ("/", "/docs"):
        reply = client.get(page)
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/html")
        assert "https://" not in reply.text
        assert " style=" not in reply.text
        assert "<script>" not in reply.text
    for name in ("gallery.js", "api.js", "hits.js", "detail.js", "docs.js", "base.css", "gallery.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200


def test_errors_of_the_store_have_their_own_status(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(create_app(store))

    def mixed(*_: Any, **__: Any) -> None:
        raise SpaceMismatch("the store was built with another space", fix="Re-index")

    monkeypatch.setattr(store, "search", mixed)
    assert "Re-index" in refused(client.get("/search?q=red"), 409)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret of /home/somebody")

    monkeypatch.setattr(store, "search", broken)
    reply = client.get("/search?q=red")
    assert "secret" not in refused(reply, 500)
    assert reply.headers["content-security-policy"]


def test_facts_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    with Store(tmp_path / "odd.chiasm", ColorSpace()) as store:  # pyright: ignore[reportArgumentType]
        store.add([Item.of("red", id="a/b ü", meta={"share": float("nan"), "deep": [float("inf"), 1.0]})])
        client = Client(create_app(store))
        assert client.get("/search?q=red").json()["hits"][0]["meta"] == {"share": None, "deep": [None, 1.0]}
        row = client.get("/items/a%2Fb%20%C3%BC").json()
        assert (row["id"], row["text"], row["meta"]["share"]) == ("a/b ü", "red", None)


def test_a_search_that_nobody_waits_for_any_more_is_not_begun(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    search = store.search

    def slow(query: str, *args: Any, **options: Any) -> Any:
        begun.append(query)
        if query == "red":
            time.sleep(0.6)
        return search(query, *args, **options)

    monkeypatch.setattr(store, "search", slow)
    app = create_app(store, limits=Limits(seconds=0.25))

    async def crowd() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = asyncio.create_task(client.get("/search?q=red"))
            await asyncio.sleep(0.1)
            rest = [client.get(f"/search?q={word}") for word in ("green", "blue")]
            late = [reply.status_code for reply in await asyncio.gather(first, *rest, client.get("/healthz"))]
            await asyncio.sleep(0.5)
            return [*late, (await client.get("/search?q=white")).status_code]

    assert asyncio.run(crowd()) == [504, 504, 504, 200, 200]
    assert begun == ["red", "white"]


def test_an_empty_store_answers(tmp_path: Path) -> None:
    with Store(tmp_path / "empty.chiasm", ColorSpace()) as store:  # pyright: ignore[reportArgumentType]
        client = Client(create_app(store, limits=Limits(k=5)))
        reply = client.get("/search?q=red&k=5").json()
        assert reply["hits"] == []
        assert reply["nothing_here"]
        assert client.get("/stats").json()["items"] == 0
        assert client.get("/metrics").status_code == 200
        refused(client.get("/search?q=red&k=6"), 400, "k")


def test_importing_the_room_is_light() -> None:
    code = "import sys, chiasm.serve; print(sorted({'fastapi', 'starlette', 'torch', 'lancedb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_run_serves_over_a_real_connection(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import uvicorn

    from chiasm.serve import run, server

    started: list[uvicorn.Server] = []

    class Watched(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            started.append(self)

    monkeypatch.setattr(uvicorn, "Server", Watched)
    # The space of these tests cannot be loaded by its name.
    monkeypatch.setattr(server, "Store", lambda path, **_: Store(path, ColorSpace()))  # pyright: ignore
    options = {"port": 0, "token": "secret", "limits": Limits(body_bytes=1000)}
    thread = threading.Thread(target=run, args=(store.path,), kwargs=options, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        printed = ""
        while "http://" not in printed and time.monotonic() < deadline:
            time.sleep(0.05)
            printed += capsys.readouterr().out
        address = next(word for word in printed.split() if word.startswith("http://127.0.0.1:"))
        with httpx.Client(base_url=address, headers={"Authorization": "Bearer secret"}) as client:
            reply = client.get("/search?q=blue&k=1")
            assert names(reply) == ["blue.png"]
            assert "server" not in reply.headers
            pieces = (b"x" * 400 for _ in range(5))
            assert client.post("/search", content=pieces).status_code == 413
            assert client.get("/stats", headers={"Authorization": "Bearer no"}).status_code == 401
        # Without a client that tidies paths up: what begins like an open path does not lead past the token.
        for path in ("/static/../stats", "/static/%2e%2e/stats", "//stats", "/docs/../stats", "/static/../../app.py"):
            raw = http.client.HTTPConnection(address.removeprefix("http://"))
            raw.request("GET", path)
            assert raw.getresponse().status in (401, 404), path
            raw.close()
    finally:
        while not started and thread.is_alive():
            time.sleep(0.05)
        for one in started:
            one.should_exit = True
        thread.join(15)
    assert not thread.is_alive()

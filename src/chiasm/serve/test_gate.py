"""Who may come in, how much they may bring and how long they may stay; over an application that only echoes."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from chiasm.errors import BadInput
from chiasm.serve.gate import POLICY, Gate, check_address, is_loopback
from chiasm.serve.limits import Limits
from chiasm.serve.metrics import Metrics
from chiasm.serve.server import bind
from chiasm.serve.test_app import Client

TOKEN = "a-token-that-is-long"


def make_app(limits: Limits = Limits(), **options: Any) -> Starlette:
    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body())})

    async def sleep(_: Request) -> JSONResponse:
        await asyncio.sleep(5)
        return JSONResponse({})

    async def page(_: Request) -> JSONResponse:
        return JSONResponse({})

    async def fail(_: Request) -> JSONResponse:
        raise RuntimeError("a secret")

    names = {"/": page, "/healthz": page, "/static/x": page, "/fail": fail, "/slow": sleep}
    routes = [Route("/echo", echo, methods=["GET", "POST"]), *(Route(path, end) for path, end in names.items())]
    gate = Middleware(Gate, limits=limits, metrics=Metrics(), **options)
    return Starlette(routes=routes, middleware=[gate])


def code(reply: httpx.Response) -> str:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


# ---- addresses


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_address(host, None)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "8.8.8.8", "example.org", "localhost.evil.org", "127.0.0.1.nip.io"]
)
def test_public_addresses_need_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(BadInput, match="token"):
        check_address(host, None)
    check_address(host, TOKEN)


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "tökén"])
def test_tokens_that_cannot_stand_in_a_header(token: str) -> None:
    with pytest.raises(BadInput, match="token"):
        check_address("127.0.0.1", token)


@given(st.text())
def test_any_text_is_a_host_or_not(host: str) -> None:
    assert is_loopback(host) in (True, False)


def test_the_store_is_not_even_opened_for_a_public_address(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from chiasm.serve import run

    monkeypatch.delenv("CHIASM_TOKEN", raising=False)
    with pytest.raises(BadInput, match="can be reached by others"):
        run(tmp_path / "nowhere", host="0.0.0.0")


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BadInput, match="Choose another"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(BadInput, match="Choose another"):
        bind("127.0.0.1", 70000)


# ---- hosts, origins, tokens


@pytest.mark.parametrize(
    "host", ["evil.org", "evil.org:8765", "127.0.0.1.evil.org", "", "[", "localhost@evil.org:80", "a\\b"]
)
def test_other_host_names_are_refused_on_loopback(host: str) -> None:
    reply = Client(make_app()).get("/", headers={"Host": host})
    assert reply.status_code == 421
    assert code(reply) == "wrong_host"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8765", "localhost:1", "[::1]:8765", "Localhost"])
def test_loopback_names_are_answered(host: str) -> None:
    assert Client(make_app()).get("/echo", headers={"Host": host}).status_code == 200


def test_further_names_and_public_servers_answer() -> None:
    assert (
        Client(make_app(names=["Photos.example.org"])).get("/", headers={"Host": "photos.example.org"}).status_code
        == 200
    )
    public = Client(make_app(host="0.0.0.0", token=TOKEN), Authorization=f"Bearer {TOKEN}")
    assert public.get("/echo", headers={"Host": "any.example.org"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.org"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_pages_of_other_origins_are_refused(headers: dict[str, str]) -> None:
    reply = Client(make_app()).post("/echo", headers=headers)
    assert reply.status_code == 403
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_our_own_page_and_links_to_it_are_answered(headers: dict[str, str]) -> None:
    assert Client(make_app()).get("/echo", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN]
)
def test_a_wrong_token(given: str | None) -> None:
    client = Client(make_app(token=TOKEN))
    reply = client.get("/echo", headers={} if given is None else {"Authorization": given})
    assert reply.status_code == 401
    assert code(reply) == "invalid_api_key"
    assert reply.json()["error"]["type"] == "authentication_error"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in reply.text


def test_the_right_token_and_the_open_paths() -> None:
    client = Client(make_app(token=TOKEN))
    assert client.get("/echo", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    for path in ("/", "/healthz", "/static/x"):
        assert client.get(path).status_code == 200
    for path in ("/static/../echo", "/static/%2e%2e/echo", "/ECHO"):
        assert client.get(path).status_code in (401, 404)


# ---- limits


def test_bodies_are_limited_with_and_without_a_length() -> None:
    client = Client(make_app(Limits(body_bytes=1000)))

    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 100

    assert client.post("/echo", content=b"x" * 1000).json() == {"bytes": 1000}
    assert client.post("/echo", content=pieces(10)).json() == {"bytes": 1000}
    too_long = client.post("/echo", content=b"x" * 1001)
    assert too_long.status_code == 413
    assert code(too_long) == "body_too_large"
    assert client.post("/echo", content=pieces(11)).status_code == 413
    lying = client.post("/echo", content=b"", headers={"Content-Length": "-5"})
    assert lying.status_code == 400


def test_a_slow_request_is_given_up() -> None:
    started = time.perf_counter()
    reply = Client(make_app(Limits(seconds=0.1))).get("/slow")
    assert reply.status_code == 504
    assert code(reply) == "timeout"
    assert time.perf_counter() - started < 3


def test_requests_at_once_are_limited_and_the_page_is_not() -> None:
    app = make_app(Limits(concurrent=2, seconds=0.5))

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            slow = [asyncio.create_task(client.get("/slow")) for _ in range(2)]
            await asyncio.sleep(0.1)
            during = [await client.get("/echo"), await client.get("/healthz")]
            await asyncio.gather(*slow)
            return [*during, await client.get("/echo")]

    busy, health, after = asyncio.run(crowd())
    assert busy.status_code == 503
    assert code(busy) == "busy"
    assert int(busy.headers["retry-after"]) >= 1
    assert health.status_code == 200
    assert after.status_code == 200


def test_an_error_leaves_no_trace_but_a_number(caplog: pytest.LogCaptureFixture) -> None:
    reply = Client(make_app()).get("/fail")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    number = reply.json()["error"]["message"].split()[-1]
    assert number in caplog.text
    assert "a secret" in caplog.text


def test_every_answer_carries_the_policy() -> None:
    client = Client(make_app(Limits(body_bytes=1)))
    replies = [client.get("/"), client.get("/nowhere"), client.get("/fail"), client.post("/echo", content=b"xx")]
    for reply in replies:
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


@pytest.mark.parametrize("name", Limits.__slots__)
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        Limits(**{name: 0})


def test_web_sockets_are_turned_away() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(make_app()({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert json.dumps(sent)

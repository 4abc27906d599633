"""The gate before every request: who may come in, how much it may bring, how long it may stay.

It is plain ASGI, so that it sees each request before anything is read and each answer before it leaves:

- a server on loopback answers only to loopback names (a page elsewhere could otherwise rebind its own name to
  127.0.0.1 and read the store), and no server answers a page of another origin;
- with a token, everything but the gallery's own files and ``/healthz`` needs ``Authorization: Bearer TOKEN``;
- bodies, requests at once and seconds are limited by `Limits`;
- every answer carries the strict content security policy, and an unexpected error leaves no trace in it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chiasm.errors import BadInput
from chiasm.serve.limits import Limits
from chiasm.serve.metrics import Metrics
from chiasm.serve.replies import error_reply

log = logging.getLogger("chiasm.serve")

# The page loads only its own files and shows only pictures of this server or that the user dropped on it (blob:).
# Trusted types make the browser itself refuse to turn a string into HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# These hold nothing of the store; a browser must be able to load them before its user can type the token.
_OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/favicon.ico")
_OPEN_FOLDER = "/static/"


def is_loopback(host: str) -> bool:
    """True if ``host`` (a name or an address) is this machine as seen from itself.

    A name other than ``localhost`` is not looked up: what it resolves to can change after the check.
    """
    name = host.strip("[]").rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def check_address(host: str, token: str | None) -> None:
    """Refuses a public address without a token, and a token that cannot stand in a header.

    Raises:
        BadInput: see above.
    """
    if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
        raise BadInput(
            "must be printable ASCII without spaces and not empty",
            where="token",
            fix="Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    if token is None and not is_loopback(host):
        raise BadInput(
            f"{host or '(all addresses)'} can be reached by others, and no token is set",
            where="host",
            fix="Bind to 127.0.0.1, or set a token that clients must send as 'Authorization: Bearer TOKEN'",
        )


class Gate:
    """ASGI middleware; see the module's text.

    Args:
        app: the application behind the gate.
        limits: what a request may cost.
        metrics: counts every answer.
        token: clients must send it if it is set.
        host: the address that the server binds to.
        names: further names under which the server is reached, for example behind a reverse proxy.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        token: str | None = None,
        host: str = "127.0.0.1",
        names: Collection[str] = (),
    ) -> None:
        check_address(host, token)
        self._app, self._limits, self._metrics, self._token = app, limits, metrics, token
        self._only_loopback = is_loopback(host)
        self._names = frozenset(name.lower() for name in names)
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1000})
            return
        started = time.perf_counter()
        status = 0

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refuse(scope)
        if refusal is not None:
            await refusal(scope, receive, sender)
        else:
            self._at_work += 1
            self._metrics.at_work(self._at_work)
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await self._app(scope, self._limited(receive), sender)
            except TimeoutError:
                if not status:
                    message = f"no answer within {self._limits.seconds:g} s; ask for less, or try again"
                    await error_reply(504, message, code="timeout")(scope, receive, sender)
            except Exception:
                # The client gets a number by which the operator finds the trace, and nothing else.
                number = uuid.uuid4().hex[:12]
                log.exception("request %s failed: %s %s", number, scope["method"], _route(scope))
                if not status:
                    message = f"internal error; the server's log has it under {number}"
                    await error_reply(500, message, code="internal_error")(scope, receive, sender)
            finally:
                self._at_work -= 1
                self._metrics.at_work(self._at_work)
        self._metrics.request(_route(scope), _method(scope), status, time.perf_counter() - started)

    def _refuse(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._known_host(headers.get("host", "")):
            message = "this server answers only to localhost; behind a proxy, pass on a loopback Host header"
            return error_reply(421, message, code="wrong_host")
        if _other_origin(headers):
            return error_reply(403, "pages of another origin may not use this server", code="cross_origin")
        free = path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
        if not free and not self._known_client(headers.get("authorization", "")):
            message = "a token is needed; send it as 'Authorization: Bearer TOKEN'"
            return error_reply(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return error_reply(400, "Content-Length is not a number", code="bad_input")
        if int(length) > self._limits.body_bytes:
            return self._too_large()
        if not free and self._at_work >= self._limits.concurrent:
            message = f"{self._at_work} requests are at work already; try again in a moment"
            return error_reply(503, message, code="busy")
        return None

    def _known_host(self, host: str) -> bool:
        if not self._only_loopback:
            return True  # a public server has a token, which a rebound page does not know
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self._names

    def _known_client(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token.encode())
        return same and scheme.lower() == "bearer"

    def _too_large(self) -> Response:
        message = f"the body is larger than {self._limits.body_bytes} bytes"
        return error_reply(413, message, code="body_too_large", headers={"Connection": "close"})

    def _limited(self, receive: Receive) -> Receive:
        """Counts a body that comes without a length, or longer than it said."""
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limits.body_bytes:
                raise HTTPException(413, f"the body is larger than {self._limits.body_bytes} bytes")
            return message

        return limited


def _other_origin(headers: Headers) -> bool:
    """True if a browser says that a page of another origin sends this request (following a link is fine)."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _route(scope: Scope) -> str:
    """The template of the route that answered; raw paths would make unbounded labels."""
    return getattr(scope.get("route"), "path", "other")


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"

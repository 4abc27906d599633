"""`create_app`: the HTTP API and the gallery page over one store."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException

import chiasm
from chiasm.errors import BadInput, ChiasmError
from chiasm.serve.desk import Desk
from chiasm.serve.gate import Gate, check_address
from chiasm.serve.limits import Limits
from chiasm.serve.metrics import Metrics
from chiasm.serve.replies import ErrorReply, error_reply, json_reply, main_problem, reply_to
from chiasm.serve.requests import (
    EmbeddingsBody,
    EmbeddingsReply,
    Filters,
    Health,
    SearchBody,
    SearchOptions,
    SearchQuery,
    SearchReply,
    SimilarQuery,
)

if TYPE_CHECKING:
    from chiasm.search import Store

log = logging.getLogger("chiasm.serve")

STATIC = Path(__file__).parent / "static"
_DESCRIPTION = "Search mixed media by words, pictures and sounds. Errors have the shape of the OpenAI API."
_FIELD = re.compile(r"[a-z_]+(\[\d+\])?")
_UPLOAD = {"schema": {"type": "string", "format": "binary"}}


def create_app(
    store: Store,
    *,
    token: str | None = None,
    limits: Limits = Limits(),
    host: str = "127.0.0.1",
    names: Collection[str] = (),
) -> FastAPI:
    """The application (ASGI) that serves ``store``; any ASGI server can run it.

    Args:
        store: an open `chiasm.Store`; read only is enough.
        token: clients must send it as ``Authorization: Bearer TOKEN``; needed on a public address.
        limits: what a request may cost.
        host: the address that the server will bind to; on loopback, only loopback names are answered.
        names: further names under which the server is reached, for example behind a reverse proxy.

    Raises:
        BadInput: a public ``host`` without a token, or a token that cannot stand in a header.
    """
    check_address(host, token)
    metrics = Metrics()
    desk = Desk(store, limits, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm_up(desk))
        yield
        warming.cancel()
        desk.close()

    app = FastAPI(
        title="Chiasm",
        version=chiasm.__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's own pages load scripts from a CDN; /docs is a page of ours
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, limits=limits, metrics=metrics, token=token, host=host, names=names)
    _add_error_handlers(app)
    app.include_router(_search_routes(desk))
    app.include_router(_item_routes(desk))
    app.include_router(_embedding_routes(desk))
    app.include_router(_server_routes(desk))
    _add_pages(app)
    return app


async def _warm_up(desk: Desk) -> None:
    try:
        await desk.in_network_thread(desk.warm_up)
    except ChiasmError as error:
        # Thumbnails and "similar" work without the networks; a search will give this error to its client.
        log.warning("the store's space cannot be loaded: %s", error)


def _router(tag: str) -> APIRouter:
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}}
    # The gate checks the token; this only shows it in the documentation.
    return APIRouter(tags=[tag], responses=errors, dependencies=[Security(HTTPBearer(auto_error=False))])


def _search_routes(desk: Desk) -> APIRouter:
    routes = _router("search")
    limits = desk.limits

    def check(options: Filters) -> None:
        if options.k > limits.k:
            raise BadInput(f"is {options.k}, at most {limits.k} is possible", where="k")
        for name in ("q", "path", "id"):
            value = getattr(options, name, None)
            if value is not None and len(value) > limits.query_chars:
                raise BadInput(f"is longer than {limits.query_chars} characters", where=name)
        words = getattr(options, "q", None)
        if words is not None and not words.strip():
            raise BadInput("is empty", where="q", fix="Say what to look for")

    @routes.get("/search", response_model=SearchReply)
    async def search(options: Annotated[SearchQuery, Query()]) -> Response:
        """Finds what fits some words best."""
        check(options)
        return json_reply(await desk.in_network_thread(desk.search, options.q, "text", options))

    body = {"application/json": {"schema": SearchBody.model_json_schema()}, "image/*": _UPLOAD, "audio/*": _UPLOAD}

    @routes.post(
        "/search", response_model=SearchReply, openapi_extra={"requestBody": {"required": True, "content": body}}
    )
    async def search_by(request: Request, options: Annotated[SearchOptions, Query()]) -> Response:
        """Finds what fits words, a picture, a sound or a vector best.

        Send JSON; or the bytes of a picture or sound with its own content type, and the options in the address.
        """
        kind = request.headers.get("content-type", "").partition("/")[0].strip().lower()
        data = await request.body()
        if kind in ("image", "audio"):
            check(options)
            return json_reply(await desk.in_network_thread(desk.search_upload, data, kind, options))
        asked = SearchBody.model_validate_json(data)
        check(asked)
        if asked.q is not None:
            return json_reply(await desk.in_network_thread(desk.search, asked.q, "text", asked))
        if asked.vector is not None:
            return json_reply(await desk.in_network_thread(desk.search, asked.vector, "vector", asked))
        kind, upload = ("image", asked.image) if asked.image is not None else ("audio", asked.audio)
        return json_reply(await desk.in_network_thread(desk.search_upload, upload, kind, asked))

    @routes.get("/similar", response_model=SearchReply)
    async def similar(options: Annotated[SimilarQuery, Query()]) -> Response:
        """Finds what is most like an item of the store."""
        check(options)
        return json_reply(await desk.in_network_thread(desk.similar, options.id, options))

    return routes


def _item_routes(desk: Desk) -> APIRouter:
    routes = _router("items")
    limits = desk.limits

    # An id is only ever a key of the store, never a path, so it may hold slashes.
    @routes.get("/items/{id:path}/thumbnail", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def thumbnail(request: Request, id: str, size: Annotated[int, Query(ge=16)] = 256) -> Response:
        """A small picture of an item: of a picture, a clip's frame, a page, or a sound's wave."""
        if size > limits.thumbnail_pixels:
            raise BadInput(f"is {size}, at most {limits.thumbnail_pixels} is possible", where="size")
        known = request.headers.get("if-none-match", "")
        data, tag = await desk.in_file_thread(desk.thumbnail, id, size, known)
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if not data:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/png" if data.startswith(b"\x89PNG") else "image/jpeg", headers=headers)

    @routes.get("/items/{id:path}")
    async def item(id: str) -> Response:
        """What the store knows of an item."""
        return json_reply(await desk.in_file_thread(desk.row, id))

    @routes.get("/stats")
    async def stats() -> dict[str, Any]:
        """What the store holds."""
        return await desk.in_file_thread(desk.store.stats)

    return routes


def _embedding_routes(desk: Desk) -> APIRouter:
    routes = _router("embeddings")

    @routes.post("/v1/embeddings", response_model=EmbeddingsReply)
    async def embeddings(body: EmbeddingsBody) -> Response:
        """Vectors of texts, pictures and sounds, in the shape of the OpenAI API."""
        return json_reply(await desk.embeddings(body))

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that this server has."""
        name = await desk.in_network_thread(lambda: desk.space.name)
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "chiasm"}]}

    return routes


def _server_routes(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["server"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """Whether the server answers; says nothing about the store and needs no token."""
        return Health(status="ok", version=chiasm.__version__)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        items = await desk.in_file_thread(len, desk.store)
        return Response(desk.metrics.render(items), media_type=Metrics.content_type)

    return routes


def _add_pages(app: FastAPI) -> None:
    def page(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def show() -> FileResponse:
            return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    page("/", "index.html")
    page("/docs", "docs.html")
    page("/favicon.ico", "icon.svg")
    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ChiasmError)
    async def chiasm_error(_: Request, error: ChiasmError) -> Response:
        where = error.where or ""
        return reply_to(error, param=where if _FIELD.fullmatch(where) else None)

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, error: RequestValidationError) -> Response:
        message, field = main_problem(error.errors())
        return error_reply(422, message, code="bad_input", param=field)

    @app.exception_handler(ValidationError)
    async def bad_body(_: Request, error: ValidationError) -> Response:
        message, field = main_problem(error.errors(include_input=False, include_context=False))
        return error_reply(422, message, code="bad_input", param=field)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status_code, "bad_input")
        return error_reply(error.status_code, str(error.detail), code=code, headers=error.headers)

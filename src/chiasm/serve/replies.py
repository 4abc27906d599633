"""Answers in the shape of the OpenAI API: what an error looks like, and which status each error of Chiasm gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from chiasm.errors import (
    BadInput,
    BadItem,
    ChiasmError,
    DataNotFound,
    MissingExtra,
    SpaceMismatch,
    StoreError,
    StoreLocked,
    UnknownName,
    UnsupportedModality,
)

# The first class that fits decides, so a subclass stands before its base.
_STATUS: tuple[tuple[type[ChiasmError], int, str], ...] = (
    (UnknownName, 404, "not_found"),
    (BadInput, 400, "bad_input"),
    (BadItem, 422, "bad_item"),
    (UnsupportedModality, 422, "unsupported_modality"),
    (SpaceMismatch, 409, "space_mismatch"),
    (StoreLocked, 503, "store_locked"),
    (StoreError, 500, "store_error"),
    (MissingExtra, 501, "missing_extra"),
    (DataNotFound, 404, "not_found"),
    (ChiasmError, 400, "bad_input"),
)


class ErrorDetail(BaseModel):
    message: str = Field(description="what was wrong, where, and what to do")
    type: str = Field(description="`invalid_request_error`, `authentication_error` or `server_error`")
    param: str | None = Field(default=None, description="the field of the request that it concerns")
    code: str | None = Field(default=None, description="a short machine-readable name")


class ErrorReply(BaseModel):
    """Every answer with a status of 400 or more has this shape."""

    error: ErrorDetail


def json_reply(content: Any) -> JSONResponse:
    """An answer as JSON; NaN and infinity, which JSON does not know but an item's ``meta`` may hold, become null."""
    try:
        return JSONResponse(content)
    except ValueError:
        return JSONResponse(_finite(content))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error_reply(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as JSON; 503 tells the client when to come back."""
    kind = "authentication_error" if status == 401 else "server_error" if status >= 500 else "invalid_request_error"
    body = ErrorReply(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    extra: dict[str, str] = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse(body.model_dump(), status, headers={**extra, **(headers or {})})


def reply_to(error: ChiasmError, *, param: str | None = None) -> JSONResponse:
    """The answer to an error that Chiasm raised on purpose."""
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    return error_reply(status, str(error), code=code, param=param)


def main_problem(errors: Any) -> tuple[str, str | None]:
    """Message and field of a problem that pydantic found; the client's own input is never repeated.

    Of a union pydantic reports a problem per member; the deepest one comes from the member that was meant.
    """
    problem = max(errors, key=lambda one: len(one["loc"]), default={"msg": "the request cannot be read", "loc": ()})
    place = [part for part in problem["loc"] if part not in ("body", "query", "path", "header")]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem.get("type") == "json_invalid" or not place:
        return message, None
    # Behind the field come the names of the union's members, which mean nothing to a client; an index does.
    index = next((f"[{part}]" for part in place[1:] if isinstance(part, int)), "")
    field = f"{place[0]}{index}"
    return f"{field}: {message}", field

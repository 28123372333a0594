"""Every refusal in one envelope: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import cast
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.errors import DeadlockDetected
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from control_plane.errors import (
    Conflict,
    GaveUp,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    ServiceError,
    Stalled,
    StorageFull,
    TooLarge,
    Unauthenticated,
)

logger = logging.getLogger(__name__)

STATUS: dict[type[ServiceError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    PermissionDenied: HTTPStatus.FORBIDDEN,
    QuotaExceeded: HTTPStatus.FORBIDDEN,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.BAD_REQUEST,  # the openai client retries 409
    Stalled: HTTPStatus.REQUEST_TIMEOUT,
    GaveUp: HTTPStatus.REQUEST_TIMEOUT,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    StorageFull: HTTPStatus.INSUFFICIENT_STORAGE,
}

INFERENCE = ("/v1/chat/", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""What OpenAI's clients also ask for."""


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    error: ErrorBody


def envelope(status: int, message: str, *, code: str | None, param: str | None = None) -> JSONResponse:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    body = ErrorEnvelope(error=ErrorBody(message=message, type=kind, param=param, code=code))
    extra = {
        401: {"WWW-Authenticate": "Bearer"},
        408: {"Connection": "close"},  # the rest of the request would be read as the next one
        507: {"x-should-retry": "false"},  # the openai client's
    }
    return JSONResponse(body.model_dump(), status, headers=extra.get(status))


def install(app: FastAPI) -> None:
    """Errors of the service, of FastAPI's validation and of routing all leave in the envelope."""
    for kind in STATUS:
        app.add_exception_handler(kind, _service_error)
    for away in (OperationalError, PoolTimeout):
        app.add_exception_handler(away, _database_away)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def one_line(method: str, path: str) -> str:
    """A request in the log: a path that was sent with an encoded line break begins no line of its own."""
    return f"{method} {quote(path)}"


def _service_error(request: Request, failure: Exception) -> JSONResponse:
    error = cast(ServiceError, failure)
    if isinstance(error, GaveUp):  # nobody hears the answer
        logger.info("%s: the client hung up before its turn", one_line(request.method, request.scope["path"]))
    return envelope(STATUS[type(error)], error.message, code=error.code, param=error.param)


def _database_away(request: Request, failure: Exception) -> JSONResponse:
    asked = one_line(request.method, request.scope["path"])
    if isinstance(failure, OperationalError) and isinstance(failure.orig, DeadlockDetected):
        logger.warning("%s: gave way in a deadlock", asked, exc_info=failure)
        message = "Another request changed the same things just then, so this one was taken back whole. Send it again."
        answer = envelope(503, message, code="gave_way")
        answer.headers["Retry-After"] = "1"
        return answer
    logger.warning("%s: PostgreSQL doesn't answer", asked, exc_info=failure)
    message = "PostgreSQL can't be reached; the server's log says why. Try again in a moment."
    return envelope(503, message, code="database_unreachable")


def _validation_error(_: Request, failure: Exception) -> JSONResponse:
    first = cast(RequestValidationError, failure).errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    given = f" (given: {first['input']!r})" if isinstance(first.get("input"), str | int | float) else ""
    return envelope(400, f"`{param}`: {first['msg']}{given}.", code="invalid_request", param=param)


def _http_error(request: Request, failure: Exception) -> JSONResponse:
    error = cast(HTTPException, failure)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        message = f"There is no route {where}; GET /openapi.json lists those that there are."
        if request.url.path.startswith(INFERENCE):
            message = f"There is no route {where}: this service trains models, and a server such as vLLM runs them. "
            message += "`dpo download MODEL` fetches one."
        return envelope(404, message, code="unknown_url")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        response = envelope(405, f"{where} is not possible; this URL takes {allowed}.", code="method_not_allowed")
        response.headers["Allow"] = allowed
        return response
    return envelope(error.status_code, str(error.detail), code="invalid_request")

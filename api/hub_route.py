"""How a route of the Hub's protocol refuses: the client's exceptions come from headers, because HEAD has no body."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from api.errors import STATUS
from control_plane.errors import InvalidRequest, ServiceError, Unauthenticated
from control_plane.hub import REVISION_NOT_FOUND

REPO_NOT_FOUND = "RepoNotFound"
ERROR_CODES = {
    "model_not_found": REPO_NOT_FOUND,
    Unauthenticated.code: REPO_NOT_FOUND,
    REVISION_NOT_FOUND: "RevisionNotFound",
    "model_file_not_found": "EntryNotFound",
}
"""Ours and the Hub's."""
HEADER_CHARACTERS = 1000


class HubRoute(APIRoute):
    """A route whose refusals are the Hub's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                first = error.errors()[0]
                return refusal(InvalidRequest(f"`{first['loc'][-1]}`: {first['msg']}."))
            except ServiceError as error:
                return refusal(error)

        return answer


def refusal(error: ServiceError, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
    """The Hub's answer to what `error` says, with `headers` besides."""
    headers = {**headers, "X-Error-Message": _one_line(error.message)}
    if error.code in ERROR_CODES:
        headers["X-Error-Code"] = ERROR_CODES[error.code]
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.message}, STATUS[type(error)], headers=headers)


def _one_line(message: str) -> str:
    """The message as a header may hold it; it may name what a client sent."""
    shown = message.replace("…", "...")[:HEADER_CHARACTERS]
    return "".join(letter if " " <= letter <= "~" else "?" for letter in shown)

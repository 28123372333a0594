"""A request's JSON body, read up to a limit and refused where PostgreSQL could not hold it."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request

from api.auth import Authenticated
from api.forms import never_idle
from api.services import ServicesOf
from control_plane.errors import InvalidRequest, TooLarge


async def body_of(request: Request, services: ServicesOf, _: Authenticated) -> bytes:
    """The body's bytes; nothing is read of a caller without a key. Raises TooLarge above the setting max_json_bytes,
    and Stalled where it stops coming."""
    limit = services.settings.max_json_bytes
    body = bytearray()
    async for chunk in never_idle(request.stream(), services.settings.idle_seconds):
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"The JSON body is larger than {limit:,} bytes; data belongs into files (POST /v1/files).")
    return bytes(body)


BodyOf = Annotated[bytes, Depends(body_of)]


def parsed(body: BodyOf) -> object:
    """Raises InvalidRequest for what is no JSON."""
    try:
        value: object = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        _refuse_unstorable(value)
    except RecursionError:
        raise InvalidRequest("The JSON body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    return value


def parsed_if_any(body: BodyOf) -> object:
    """As `parsed`; without a body an empty object."""
    return parsed(body) if body else {}


JsonBody = Annotated[object, Depends(parsed)]
OptionalJsonBody = Annotated[object, Depends(parsed_if_any)]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse_unstorable(value: Any) -> None:
    """A NUL or half a surrogate pair is valid JSON, and no text."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a string contains a NUL character")
        value.encode("utf-8")
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_unstorable(name)
            _refuse_unstorable(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)

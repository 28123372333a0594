"""Answers that a worker gives: asked for, waited for, and said to be on their way where they take longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import anyio
from fastapi import Query, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.services import Services
from control_plane import checks
from control_plane.audit import Actor
from control_plane.checks import ANSWERED, State
from control_plane.errors import NotFound
from control_plane.tables import Check

POLL_SECONDS = 0.2
LONGEST_WAIT = 30.0

Wait = Annotated[
    float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for an answer that is not there yet.")
]
PENDING: dict[int | str, dict[str, Any]] = {
    202: {"description": "Not answered yet: `state` says where it is. Ask again after `Retry-After` seconds."}
}


class CheckFailure(BaseModel):
    """Why there is no answer."""

    code: str
    message: str
    param: str | None


class Answer(BaseModel):
    state: State
    error: CheckFailure | None


async def answered(
    services: Services,
    ask: Callable[[Session], Check],
    seconds: float,
    response: Response,
    actor: Actor | None = None,
) -> Check:
    """The check that `ask` makes or finds, waited for up to `seconds`; 202 and Retry-After where that was not enough.

    Raises NotFound where it was removed meanwhile, with its file or model.
    """
    check = await run_in_threadpool(_asked, services, ask, actor)
    until = anyio.current_time() + seconds
    while check.state not in ANSWERED and anyio.current_time() < until:
        await anyio.sleep(POLL_SECONDS)
        check = await run_in_threadpool(_read, services, check.id)
    if check.state not in ANSWERED:
        response.status_code = 202
        response.headers["Retry-After"] = "1"
    return check


def failure_of(check: Check) -> CheckFailure | None:
    return CheckFailure.model_validate(check.error) if check.error else None


def _asked(services: Services, ask: Callable[[Session], Check], actor: Actor | None) -> Check:
    with services.database.transaction(actor=actor) as session:
        check = ask(session)
    if check.state == State.waiting:
        services.hints.send()
    return check


def _read(services: Services, check_id: str) -> Check:
    with services.database.transaction() as session:
        check = checks.read(session, check_id)
    if check is None:
        raise NotFound("The file or model was deleted before the answer was there.")
    return check

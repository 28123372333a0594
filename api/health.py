"""/healthz: the process lives. /readyz: it can serve. Neither needs a key, neither tells more than that."""

from __future__ import annotations

from typing import Literal

import redis
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from api.errors import envelope
from api.services import Services, ServicesOf
from control_plane.hints import redis_py_url
from migrations.run import at_head

REDIS_SECONDS = 1.0

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ok"] = "ok"
    database: Literal["ok"] = "ok"
    redis: Literal["ok", "unreachable"]
    """Redis only shortens waits: without it work starts some seconds later."""


@router.get("/healthz", summary="Whether the process lives")
def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="Whether the service can serve", response_model=Readiness)
def readyz(services: ServicesOf) -> Readiness | JSONResponse:
    with services.database.engine.connect() as connection:
        migrated = at_head(connection)
    if not migrated:
        message = "The database's schema is not this version's; run `dpo migrate`."
        return envelope(503, message, code="database_not_migrated")
    return Readiness(redis="ok" if _redis_answers(services) else "unreachable")


def _redis_answers(services: Services) -> bool:
    url = redis_py_url(services.settings.redis_url.get_secret_value())
    client = redis.Redis.from_url(url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()

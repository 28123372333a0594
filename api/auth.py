"""Who calls: the API key in `Authorization: Bearer`, and the project that it opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.services import ServicesOf
from control_plane import keys
from control_plane.errors import Unauthenticated


@dataclass(frozen=True)
class Caller:
    project_id: str
    key_id: str


_bearer = HTTPBearer(auto_error=False, description="An API key, `sk-dpo-…`; `dpo keys create NAME` makes one.")


def caller_of(
    services: ServicesOf, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    """Raises Unauthenticated without a key, or with a wrong one."""
    if credentials is None:
        raise Unauthenticated(
            "No API key was sent. Send it as `Authorization: Bearer sk-dpo-…` (api_key=… in the openai client); "
            "`dpo keys create NAME` on the server makes one."
        )
    with services.database.transaction() as session:
        key = keys.authenticate(session, credentials.credentials)
        return Caller(project_id=key.project_id, key_id=key.id)


CallerOf = Annotated[Caller, Depends(caller_of)]

"""Who calls, and what they may do: the API key in `Authorization: Bearer`, its project and its scopes.

Every route takes its caller by one of the types at the end, which says what the key must be allowed to do, and takes it
before the body, so that nothing is read of a caller who may not send it. A route that doesn't say so keeps the
application from starting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.services import Services, ServicesOf
from control_plane import keys
from control_plane.audit import Actor
from control_plane.errors import PermissionDenied, RateLimited, Unauthenticated
from control_plane.scopes import Scope
from control_plane.tables import ApiKey

PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""Routes without a key: they tell nothing of anybody's data."""

SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True)
class Caller:
    project_id: str
    key_id: str
    key_name: str
    scopes: frozenset[str]
    request_id: str

    @property
    def actor(self) -> Actor:
        """For the audit log: `database.transaction(actor=caller.actor)` around every change."""
        return Actor(self.key_id, self.request_id)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.admin in self.scopes


_bearer = HTTPBearer(auto_error=False, description="An API key, `sk-dpo-…`; `dpo keys create NAME` makes one.")


def authenticated(
    request: Request,
    services: ServicesOf,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """Raises Unauthenticated without a key or with a wrong one, RateLimited for one that asks too often."""
    if credentials is None:
        raise Unauthenticated(
            "No API key was sent. Send it as `Authorization: Bearer sk-dpo-…` (api_key=… in the openai client); "
            "`dpo keys create NAME` on the server makes one."
        )
    with services.database.transaction() as session:
        key = keys.authenticate(session, credentials.credentials)
    _limit_rate(request, services, key)
    name = f"{key.hint}… ({key.name})"
    return Caller(key.project_id, key.id, name, frozenset(key.scopes), request.state.request_id)


def _limit_rate(request: Request, services: Services, key: ApiKey) -> None:
    per_minute = key.requests_per_minute or services.settings.requests_per_minute
    verdict = services.rate_limits.take(key.id, per_minute) if per_minute else None
    if verdict is None:
        return
    request.state.headers.update(verdict.headers)  # the edge puts them on every answer
    if not verdict.allowed:
        raise RateLimited(
            f"The API key {key.hint}… ({key.name}) may ask {per_minute:,} times a minute and asked more often. Wait "
            "for as many seconds as `Retry-After` says; the openai client does so by itself."
        )


Authenticated = Annotated[Caller, Depends(authenticated)]
"""For what other dependencies need of a caller; it says nothing about what a route does."""


@dataclass(frozen=True)
class Needs:
    """The dependency that lets a caller pass whose key has `scope`; with None, any key of the project."""

    scope: Scope | None

    async def __call__(self, caller: Authenticated) -> Caller:
        """Raises PermissionDenied."""
        if self.scope is not None and not caller.may(self.scope):
            has = ", ".join(sorted(caller.scopes)) or "none"
            raise PermissionDenied(
                f"The API key {caller.key_name} may not do this: it takes the scope {self.scope}, and the key's scopes "
                f"are {has}. `dpo keys create NAME --scope {self.scope}` on the server makes one that may.",
                code="missing_scope",
            )
        return caller


CallerOf = Annotated[Caller, Depends(Needs(None))]
"""Any key: for reading the project's own files and jobs."""

FilesWriter = Annotated[Caller, Depends(Needs(Scope.files_write))]
JobsWriter = Annotated[Caller, Depends(Needs(Scope.jobs_write))]
ModelsReader = Annotated[Caller, Depends(Needs(Scope.models_read))]
Admin = Annotated[Caller, Depends(Needs(Scope.admin))]


def require_scopes(app: FastAPI) -> None:
    """Raises RuntimeError for a route that anybody could call, and for a change that any key could make."""
    for route in iter_route_contexts(app.routes):
        declared = needs_of(route)
        methods = route.methods or {"*"}
        named = any(needs.scope is not None for needs in declared)
        if route.path not in PUBLIC and not (named or (declared and methods <= SAFE)):
            raise RuntimeError(
                f"{', '.join(sorted(methods))} {route.path} must say what its caller's key must be allowed to do: "
                "give it a parameter of a type at the end of api/auth.py, for a change another one than CallerOf"
            )


def needs_of(route: RouteContext) -> list[Needs]:
    """What a route says about its caller's key."""
    dependant = getattr(route, "dependant", None)
    return list(_needs_below(dependant)) if isinstance(dependant, Dependant) else []


def _needs_below(dependant: Dependant) -> Iterator[Needs]:
    if isinstance(dependant.call, Needs):
        yield dependant.call
    for below in dependant.dependencies:
        yield from _needs_below(below)

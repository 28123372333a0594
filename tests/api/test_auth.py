"""What a key may do: every route says it, and a key without the scope is refused."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from openai import OpenAI, PermissionDeniedError

from api import auth, main
from api.auth import CallerOf, FilesWriter
from control_plane import keys, projects
from control_plane.database import Database
from control_plane.scopes import Scope
from control_plane.settings import Settings
from tests.api.conftest import Api
from tests.api.test_errors import error_of


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    app = main.create_app(settings)
    yield app
    app.state.services.hints.close()
    app.state.services.database.dispose()


def path_of(route: RouteContext) -> str:
    """The route's path with an id in the place of each parameter."""
    assert route.path is not None
    return route.path.replace(":path}", "}").format_map(_Anything())


class _Anything(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "anything"


def calls(app: FastAPI) -> list[tuple[RouteContext, str]]:
    routes = [route for route in iter_route_contexts(app.routes) if route.path not in auth.PUBLIC]
    return [(route, method) for route in routes for method in sorted(route.methods or set())]


def key_with(database: Database, *scopes: Scope) -> str:
    with database.transaction() as session:
        return keys.create(session, projects.ensure(session, "default").id, "test", scopes=scopes)[1]


def test_every_route_declares_a_scope_and_enforces_it(app: FastAPI, api: Api, database: Database) -> None:
    """A key with all scopes but the route's is refused with 403; one with that scope alone, or with admin, is not."""
    found = calls(app)
    assert len(found) > 20
    secrets = {scope: key_with(database, scope) for scope in Scope}
    without = {scope: key_with(database, *({*Scope} - {scope, Scope.admin})) for scope in Scope}
    nothing = key_with(database)
    with httpx2.Client(base_url=api.url, timeout=30) as http:

        def ask(route: RouteContext, method: str, secret: str) -> httpx2.Response:
            return http.request(method, path_of(route), headers={"Authorization": f"Bearer {secret}"})

        for route, method in found:
            (needs,) = set(auth.needs_of(route))
            if needs.scope is None:
                assert method in auth.SAFE, route.path
                assert ask(route, method, nothing).status_code != 403, route.path
                continue
            refused = ask(route, method, without[needs.scope])
            assert refused.status_code == 403, (method, route.path)
            if method != "HEAD" and not (route.path or "").startswith("/hf"):  # whose clients read another form
                error = error_of(refused, 403)
                assert (error["type"], error["code"]) == ("permission_error", "missing_scope")
                assert f"--scope {needs.scope}" in (error["message"] or "")
            for scope in (needs.scope, Scope.admin):
                assert ask(route, method, secrets[scope]).status_code != 403, (method, route.path)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_route_without_a_scope_keeps_the_application_from_starting(app: FastAPI, method: str) -> None:
    @app.api_route("/v1/forgotten", methods=[method])
    def forgotten() -> None: ...

    with pytest.raises(RuntimeError, match=f"{method} /v1/forgotten must say what its caller's key"):
        auth.require_scopes(app)


def test_a_change_is_not_for_any_key(app: FastAPI) -> None:
    @app.get("/v1/seen")
    def seen(caller: CallerOf) -> None: ...

    @app.post("/v1/named")
    def named(caller: FilesWriter) -> None: ...

    auth.require_scopes(app)

    @app.post("/v1/changed")
    def changed(caller: CallerOf) -> None: ...

    with pytest.raises(RuntimeError, match="POST /v1/changed must say"):
        auth.require_scopes(app)


def test_a_key_that_only_reads(api: Api, database: Database, client: OpenAI) -> None:
    """Any key reads its project's files and jobs; it changes nothing, and sees no model."""
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    reader = client.copy(api_key=key_with(database))
    assert [listed.id for listed in reader.files.list()] == [file.id]
    assert reader.files.content(file.id).read() == b"{}\n"
    assert list(reader.fine_tuning.jobs.list()) == []
    for refused in (lambda: reader.files.delete(file.id), reader.models.list):
        with pytest.raises(PermissionDeniedError, match="it takes the scope"):
            refused()

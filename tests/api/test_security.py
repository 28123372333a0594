"""Attacks on the HTTP edge that no other test makes; docs/security.md has them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from openai import OpenAI

from api import auth, main
from control_plane import deliveries, keys, projects, webhooks
from control_plane.database import Database
from control_plane.scopes import Scope
from control_plane.settings import Settings
from control_plane.tables import Model
from tests.api.conftest import Api

SHELL = "$(touch owned) `touch owned`; touch owned | touch owned && touch owned\n' \" \\ %s {{7*7}} ${7*7} <b>"
ROW = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    app = main.create_app(settings)
    yield app
    app.state.services.hints.close()
    app.state.services.rate_limits.close()
    app.state.services.database.dispose()


@pytest.fixture
def base(database: Database, tiny_model: Path) -> str:
    with database.transaction() as session:
        session.add(Model(id="base/tiny", kind="base", form="full", path=str(tiny_model), facts={}))
    return "base/tiny"


def job_body(file_id: str, base: str, **fields: Any) -> dict[str, Any]:
    return {"model": base, "training_file": file_id, "method": {"type": "dpo"}} | fields


@pytest.fixture
def theirs(client: OpenAI, http: httpx2.Client, base: str, database: Database, settings: Settings) -> dict[str, str]:
    """One of everything in the project `default`, by the name of the path parameter that takes its id."""
    file_id = client.files.create(file=("a.jsonl", ROW), purpose="fine-tune").id
    job = http.post("/v1/fine_tuning/jobs", json=job_body(file_id, base)).json()
    sweep = http.post("/v1/fine_tuning/sweeps", json=job_body(file_id, base, training={"beta": [0.1, 0.2]})).json()
    upload = client.uploads.create(bytes=len(ROW), filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    with database.transaction() as session:
        project_id = projects.named(session, "default").id
        facts = {"kind": "checkpoint", "form": "full", "facts": {}, "job_id": job["id"], "step": 1}
        session.add(Model(id="default/m", project_id=project_id, storage_prefix="checkpoints/x/1/step-1", **facts))
        endpoint = webhooks.create(session, project_id, {"url": "https://hooks.example/x"}, settings)
        delivery = deliveries.test(session, project_id, endpoint.id, "fine_tuning.job.succeeded")
    return {
        "file_id": file_id,
        "job_id": job["id"],
        "sweep_id": sweep["id"],
        "upload_id": upload.id,
        "model_id": "default/m",
        "project": "default",
        "namespace": "default",
        "name": "m",
        "revision": "main",
        "path": "config.json",
        "permission_id": "cp_x",
        "folder": "folder",
        "endpoint_id": endpoint.id,
        "delivery_id": delivery.id,
        "anything": "default/m",
    }


BODIES: dict[str, dict[str, Any]] = {
    "/v1/uploads/{upload_id}/parts": {"files": {"data": ("a", ROW)}},
    "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part-1"]}},
    "/v1/webhook_endpoints/{endpoint_id}/test": {"json": {"event_type": "fine_tuning.job.succeeded"}},
    "/hf/api/models/{project}/{name}/paths-info/{revision}": {"json": {"paths": ["config.json"]}},
    "/v1/fine_tuning/checkpoints/{model_id}/permissions": {"json": {"project_ids": ["proj-x"]}},
}
QUERIES = {"/v1/files/{file_id}/preview": {"model": "base/tiny"}}


def test_ids_of_another_project_are_not_there_on_any_route(
    app: FastAPI, api: Api, database: Database, theirs: dict[str, str]
) -> None:
    """404, as for what does not exist: to a key of another project that may do everything there."""
    with database.transaction() as session:
        other = projects.ensure(session, "other")
        secret = keys.create(session, other.id, "k", scopes=[Scope.admin])[1]
        mine = keys.create(session, projects.named(session, "default").id, "k", scopes=[Scope.admin])[1]
    seen = []
    with httpx2.Client(base_url=api.url, timeout=30) as http:

        def ask(method: str, template: str, path: str, key: str) -> httpx2.Response:
            headers, params = {"Authorization": f"Bearer {key}"}, QUERIES.get(template)
            return http.request(
                method,
                path,
                headers=headers,
                params=params,
                **BODIES.get(template, {"json": {}} if method == "POST" else {}),
            )

        for route in iter_route_contexts(app.routes):
            template = (route.path or "").replace(":path}", "}")
            if "{" not in template or route.path in auth.PUBLIC:
                continue
            path = template.format_map(theirs)  # a KeyError: add an id of the new kind above
            for method in sorted(route.methods or set()):
                answer = ask(method, template, path, secret)
                assert answer.status_code == 404, (method, template, answer.text)
                seen.append(template)
        # and to its own project it is there
        assert ask("GET", "", f"/v1/files/{theirs['file_id']}", mine).status_code == 200
        assert ask("GET", "", f"/v1/fine_tuning/jobs/{theirs['job_id']}", mine).status_code == 200
        assert ask("GET", "", "/v1/models/default/m", mine).status_code == 200
        endpoint = f"/v1/webhook_endpoints/{theirs['endpoint_id']}"
        assert ask("GET", "", endpoint, mine).json()["url"] == "https://hooks.example/x", "nobody changed it"
        (delivery,) = ask("GET", "", f"{endpoint}/deliveries", mine).json()["data"]
        assert (delivery["id"], delivery["attempts"]) == (theirs["delivery_id"], 0)
        assert ask("GET", "", f"/v1/uploads/{theirs['upload_id']}", mine).status_code in (404, 405), (
            "OpenAI has no such"
        )
    assert len(seen) > 15


def test_another_project_s_ids_in_a_body_are_not_there_either(
    api: Api, make_key: Callable[[str], str], theirs: dict[str, str]
) -> None:
    """In the words for an id that nobody has: nothing tells that it exists."""
    headers = {"Authorization": f"Bearer {make_key('other')}"}
    with httpx2.Client(base_url=api.url, headers=headers, timeout=30) as http:

        def refusal(**fields: Any) -> str:
            answer = http.post("/v1/fine_tuning/jobs", json=job_body("file-none", "base/tiny", **fields))
            assert answer.status_code == 400
            return str(answer.json()["error"]["message"])

        assert refusal(training_file=theirs["file_id"]) == refusal().replace("file-none", theirs["file_id"])
        assert refusal(model="default/m").startswith("There is no model 'default/m' here.")
        assert http.get("/v1/files").json()["data"] == []
        assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["base/tiny"]


def test_shell_characters_are_text_in_every_field(  # noqa: PLR0917 - fixtures
    client: OpenAI, http: httpx2.Client, base: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown back as they came, or refused; nothing runs, and no path is made of them."""
    monkeypatch.chdir(tmp_path)
    uploaded = client.files.create(file=(SHELL.replace("\\", ""), ROW), purpose="fine-tune")
    assert "touch owned" in uploaded.filename
    metadata = {"note": SHELL}
    job = http.post("/v1/fine_tuning/jobs", json=job_body(uploaded.id, base, metadata=metadata))
    assert job.status_code == 200, job.text
    assert job.json()["metadata"] == metadata
    for field in ("model", "training_file", "validation_file", "suffix", "priority", "seed"):
        answer = http.post("/v1/fine_tuning/jobs", json=job_body(uploaded.id, base, **{field: SHELL}))
        assert answer.status_code == 400, (field, answer.text)
    assert http.get("/v1/fine_tuning/jobs", params={"after": SHELL}).status_code in (200, 400)
    assert (
        http.get("/v1/fine_tuning/jobs", params={"metadata[note]": SHELL}).json()["data"][0]["id"] == job.json()["id"]
    )
    storage = Path(settings.storage_url.removeprefix("file://"))
    names = [path.name for folder in (tmp_path, storage) for path in folder.rglob("*")]
    assert not [name for name in names if "owned" in name or "touch" in name]
    assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "..%2F..%2Fetc%2Fpasswd",
        "..%252F..%252Fetc%252Fpasswd",
        "%2e%2e%2f%2e%2e%2fetc/passwd",
        "/etc/passwd",
    ],
)
def test_no_path_leads_out_through_an_id(http: httpx2.Client, path: str) -> None:
    """Plain, encoded, and encoded twice: an id is looked up in PostgreSQL, never joined to a path."""
    for route in (
        "/v1/files/{}",
        "/v1/files/{}/content",
        "/v1/models/{}",
        "/v1/models/{}/archive",
        "/v1/models/{}/manifest",
    ):
        answer = http.get(route.format(path))
        assert answer.status_code in (400, 404), (route, answer.status_code)
        assert "root:" not in answer.text


def test_there_are_no_sessions_to_fix(http: httpx2.Client, client: OpenAI, api: Api, secret: str) -> None:
    """No answer sets a cookie, and a cookie opens nothing: who calls is said by the key of each request alone."""
    client.files.create(file=("a.jsonl", ROW), purpose="fine-tune")
    for path in ("/v1/files", "/v1/models", "/readyz", "/v1/nothing"):
        assert "set-cookie" not in http.get(path).headers
    answer = httpx2.get(f"{api.url}/v1/files", headers={"Cookie": f"session={secret}; Authorization={secret}"})
    assert answer.status_code == 401
    assert httpx2.get(f"{api.url}/v1/files", params={"api_key": secret}).status_code == 401

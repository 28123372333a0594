"""The API fuzzed by its OpenAPI document: no failure, and no answer that breaks it (schemathesis)."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from control_plane import keys, models, projects
from control_plane.database import Database
from control_plane.model_files import ModelFile, set_files
from control_plane.scopes import Scope
from control_plane.settings import Settings
from control_plane.storage import open_storage
from control_plane.tables import Model
from tests.api.conftest import Api

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{api.url}/openapi.json").json()
    return found


@pytest.fixture
def known(api: Api, settings: Settings, database: Database, tiny_model: Path) -> dict[str, str]:
    """A key that may do everything, and ids that are there, by the name of their parameter."""
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        _, secret = keys.create(session, project.id, "fuzz", scopes=[Scope.admin], requests_per_minute=1_000_000)
        models.register_base(session, tiny_model, "tiny")
        prefix = "checkpoints/x/1/step-1"
        facts = {"kind": "checkpoint", "form": "full", "facts": {}, "step": 1, "storage_prefix": prefix}
        made = Model(id="default/m", project_id=project.id, **facts)
        content = b"{}"
        file = ModelFile(path="config.json", size=len(content), sha256=hashlib.sha256(content).hexdigest())
        set_files(made, [file])
        session.add(made)
    with open_storage(settings.storage_url).writer(f"{prefix}/model/config.json") as sink:
        sink.write(content)
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx2.Client(base_url=api.url, headers=headers) as http:
        row = b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", row)}}
        file_id = http.post("/v1/files", **form).json()["id"]
        body = {"model": "base/tiny", "training_file": file_id, "method": {"type": "dpo"}}
        job_id = http.post("/v1/fine_tuning/jobs", json=body).json()["id"]
        swept = {**body, "training": {"beta": [0.1, 0.2]}}
        sweep_id = http.post("/v1/fine_tuning/sweeps", json=swept).json()["id"]
        upload = {"bytes": 9, "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        upload_id = http.post("/v1/uploads", json=upload).json()["id"]
    return {
        "secret": secret,
        "file_id": file_id,
        "job_id": job_id,
        "sweep_id": sweep_id,
        "upload_id": upload_id,
        "model_id": "base/tiny",
        "project": "default",
        "namespace": "default",
        "name": "m",
        "revision": "main",
        "path": "config.json",
    }


@pytest.mark.parametrize("with_key", [True, False])
def test_a_few_cases_of_every_route(api: Api, document: dict[str, Any], known: dict[str, str], with_key: bool) -> None:
    made = fuzz(api, document, known, with_key=with_key, cases=1)
    assert made.total() >= len(made) > 40


@pytest.mark.long
@pytest.mark.parametrize("with_key", [True, False])
def test_many_cases_of_every_route(api: Api, document: dict[str, Any], known: dict[str, str], with_key: bool) -> None:
    made = fuzz(api, document, known, with_key=with_key, cases=20 if with_key else 10)
    assert made.total() >= (1400 if with_key else 700), made


def fuzz(api: Api, document: dict[str, Any], known: dict[str, str], *, with_key: bool, cases: int) -> Counter[str]:
    """Sends cases that fit the document and others that don't; half of them to ids that exist. Counts them by route."""
    schema = schemathesis.openapi.from_dict(document)
    made: Counter[str] = Counter()
    broken: list[str] = []
    headers = {"Authorization": f"Bearer {known['secret']}"} if with_key else {}
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                broken += _send(api.url, operation.as_strategy(generation_mode=mode), known, headers, made, cases)
            except hypothesis.errors.Unsatisfiable:  # nothing that is wrong can be sent to a route without input
                continue
    assert not broken, "\n\n".join(broken)
    return made


def _send(  # noqa: PLR0917 - a table's columns
    url: str, strategy: Any, known: dict[str, str], headers: dict[str, str], made: Counter[str], cases: int
) -> list[str]:
    @hypothesis.settings(
        max_examples=cases,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, real=st.booleans())
    def send(case: Case, real: bool) -> None:
        if real and isinstance(case.path_parameters, dict):
            case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
        if isinstance(case.query, dict):
            for name in ("wait", "stream"):  # nobody answers here, and a stream has no end
                case.query.pop(name, None)
            if case.path.endswith(("/preview", "/jobs")):
                case.query["wait"] = 0
        given_headers = {name: str(value) for name, value in (case.headers or {}).items()}
        given_headers.pop("Authorization", None)
        case.headers = {**given_headers, **headers}
        made[f"{case.method} {case.path}"] += 1
        try:
            case.call_and_validate(base_url=url, checks=CHECKS, timeout=60)
        except FailureGroup as failure:  # all of them are reported, not the first alone
            broken.extend(f"{case.method} {case.path}: {part}" for part in failure.exceptions)

    broken: list[str] = []
    send()
    return broken

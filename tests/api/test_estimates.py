"""What a job would take: the same numbers as the job itself gets, the same refusals, and no job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from control_plane import leases, models, results
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.tables import Job
from dpo_core.spec import TrainingSpec
from tests.api.conftest import answered
from tests.control_plane.model_folders import make_folder
from tests.makers import write_preference_file
from tests.service import poll_until
from tests.worker.stubs import supervisor
from worker.launch import Programs

JOBS = "/v1/fine_tuning/jobs"
DRY = f"{JOBS}?dry_run=true&wait=5"


@pytest.fixture
def request_body(client: OpenAI, database: Database, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    with database.transaction() as session:
        models.register_base(session, tiny_model, "tiny")
    file = client.files.create(file=write_preference_file(tmp_path / "pairs.jsonl", 200), purpose="fine-tune")
    return {"model": "base/tiny", "training_file": file.id, "method": {"type": "dpo"}}


@pytest.fixture
def working(settings: Settings) -> Iterator[None]:
    """A worker that checks and validates for real, and has no slot to train in."""
    quick = {"heartbeat_seconds": 0.2, "poll_seconds": 0.2, "cpu_slots": 0}
    with supervisor(settings.model_copy(update=quick), Programs()):
        yield


def test_the_estimate_is_what_the_job_gets(
    http: httpx2.Client, request_body: dict[str, Any], working: None, database: Database
) -> None:
    answer = answered(lambda: http.post(DRY, json=request_body))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["object"], said["state"], said["error"]) == ("fine_tuning.job.estimate", "done", None)
    estimate = said["estimate"]
    assert http.get(JOBS).json()["data"] == [], "no job was made"
    assert estimate["time"]["seconds"] is None
    assert estimate["time"]["reason"].startswith("unknown: no job of this project has trained all weights of base/tiny")
    job_id = http.post(JOBS, json=request_body).json()["id"]
    poll_until(lambda: http.get(f"{JOBS}/{job_id}").json()["status"] == "queued", "the job is validated")
    resolved = http.get(f"{JOBS}/{job_id}").json()["run"]["resolved"]
    for name in ("training", "values", "report", "memory", "disk", "total_steps"):
        assert estimate[name] == resolved[name], name
    (stage,) = estimate["memory"]["stages"]
    assert (stage["zero_stage"], stage["fits"], stage["chosen"]) == (0, True, True)
    assert estimate["values"]["zero_stage"]["reason"].startswith("0: nothing sharded")
    assert estimate["trained_tokens"] == resolved["trained_tokens_estimate"]


def test_time_is_that_of_an_earlier_job(
    http: httpx2.Client, request_body: dict[str, Any], working: None, database: Database
) -> None:
    first = answered(lambda: http.post(DRY, json=request_body)).json()["estimate"]
    job_id = _trained(database, http.post(JOBS, json=request_body).json()["id"], tokens_per_second=100.0)
    time = answered(lambda: http.post(DRY, json=request_body)).json()["estimate"]["time"]
    assert time["seconds"] == pytest.approx(first["trained_tokens"] / 100.0)
    assert time["job"] == job_id
    assert time["reason"] == f"100 tokens a second in the median of 3 steps of {job_id}"


def _trained(database: Database, job_id: str, tokens_per_second: float) -> str:
    """Has the job trained by the worker that is there, as far as the database can tell."""
    poll_until(lambda: _state(database, job_id) == "queued", "the job is validated")
    with database.transaction() as session:
        (worker_id,) = session.connection().exec_driver_sql("SELECT id FROM workers").one()
        claim = leases.claim(session, worker_id=worker_id, free=1, total=1, lease_seconds=600)
        assert claim is not None
        line = {"split": "train", "values": {"tokens_per_second": tokens_per_second}}
        results.record(session, claim, metrics=[line | {"step": step} for step in range(4)])
    return job_id


def _state(database: Database, job_id: str) -> str:
    with database.transaction() as session:
        return session.get_one(Job, job_id).state


def refused_alike(http: httpx2.Client, body: dict[str, Any]) -> str:
    """The message with which an estimate is refused, and then the job in validation."""
    answer = answered(lambda: http.post(DRY, json=body))
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    job_id = http.post(JOBS, json=body).json()["id"]
    poll_until(lambda: http.get(f"{JOBS}/{job_id}").json()["status"] == "failed", "the job fails")
    failed = http.get(f"{JOBS}/{job_id}").json()["error"]
    for name in ("code", "message", "param"):
        assert error[name] == failed[name]
    return str(error["message"])


def test_what_can_not_be_is_refused_in_the_jobs_words(
    http: httpx2.Client, request_body: dict[str, Any], working: None
) -> None:
    assert "Give at most" in refused_alike(http, request_body | {"training": {"batch_size": 1000}})


def test_what_does_not_fit_is_refused_with_what_would(
    http: httpx2.Client, request_body: dict[str, Any], working: None, database: Database, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "huge", hidden_size=8192)
    with database.transaction() as session:
        request_body["model"] = models.register_base(session, folder).id
    header = json.dumps({"w": {"dtype": "F32", "shape": [1_000_000, 1_000_000], "data_offsets": [0, 0]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    message = refused_alike(http, request_body)
    assert message.startswith("The run needs about") and "What would fit" in message


def test_without_a_worker_it_says_to_come_again(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    answer = http.post(f"{JOBS}?dry_run=true&wait=0", json=request_body)
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
    assert (answer.json()["state"], answer.json()["estimate"]) == ("waiting", None)
    assert http.get(JOBS).json()["data"] == []


def test_a_request_that_can_not_be_is_refused_at_once(
    http: httpx2.Client, request_body: dict[str, Any], make_key: Callable[[str], str]
) -> None:
    answer = http.post(DRY, json=request_body | {"training": {"beta": 0}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "training.beta")
    theirs = http.post(DRY, json=request_body, headers={"Authorization": f"Bearer {make_key('other')}"})
    assert (theirs.status_code, theirs.json()["error"]["param"]) == (400, "training_file")


def test_every_auto_is_resolved(http: httpx2.Client, request_body: dict[str, Any], working: None) -> None:
    training = answered(lambda: http.post(DRY, json=request_body)).json()["estimate"]["training"]
    assert "auto" not in TrainingSpec.model_validate(training).model_dump().values()

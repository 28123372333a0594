from __future__ import annotations

import csv
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import redis
from openai import OpenAI
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import leases, models, results
from control_plane.database import Database
from control_plane.hints import redis_py_url
from control_plane.job_requests import read_request
from control_plane.leases import Claim
from control_plane.repetition import Repeatable, find_earlier
from control_plane.settings import Settings
from control_plane.storage import log_key, open_storage
from control_plane.tables import ApiKey, Job
from dpo_core.run_directory import Failure
from dpo_core.spec import TrainingSpec
from tests.api.conftest import Api
from tests.api.test_errors import error_of
from tests.control_plane.model_folders import make_folder
from tests.service import poll_until

JOBS = "/v1/fine_tuning/jobs"
ROWS = b'{"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}\n' * 100


@pytest.fixture
def request_body(client: OpenAI, database: Database, tmp_path: Path) -> dict[str, Any]:
    """A create request that is in order."""
    with database.transaction() as session:
        models.register_base(session, make_folder(tmp_path / "tiny"))
    file = client.files.create(file=("pairs.jsonl", ROWS), purpose="fine-tune")
    return {"model": "base/tiny", "training_file": file.id, "method": {"type": "dpo"}}


def claim_next(database: Database) -> Claim:
    """What a worker does; the claim is all that is needed to report as one."""
    with database.transaction() as session:
        claim = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=60)
    assert claim is not None
    return claim


def resolved() -> dict[str, Any]:
    return TrainingSpec(batch_size=16, epochs=2, beta=0.1, learning_rate=1e-6).model_dump(mode="json")


def create(http: httpx2.Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = http.post(JOBS, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": "base/tni"}, "model", '"base/tiny"'),
        ({"training_file": "file-none"}, "training_file", "upload it first"),
        ({"validation_file": "file-none"}, "validation_file", "upload it first"),
        ({"trainig_file": "x"}, "trainig_file", '"training_file"'),
        ({"training": {"learning_rat": 1e-5}}, "training.learning_rat", '"learning_rate"'),
        ({"training": {"beta": 0}}, "training.beta", "greater than 0"),
        ({"training": {"learning_rate": 2.5}}, "training.learning_rate", "less than or equal to 1"),
        ({"resources": {"gpus": 0}}, "resources.gpus", "greater than or equal to 1"),
        ({"method": {"type": "reinforcement"}}, "method.type", "'dpo'"),
        ({"training": {"loss": "sigmod"}}, "training.loss", "Did you mean `sigmoid`?"),
        ({"training": {"loss": "ipo", "reference": "none"}}, "training.reference", "`ipo` needs a reference"),
        ({"training": {"loss": "robust", "label_smoothing": 0.5}}, "training.label_smoothing", "less than 0.5"),
        ({"training": {"loss": "exo_pair"}}, "training.label_smoothing", "above 0"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}, "training": {"beta": 0.2}},
            "training.beta",
            "0.1",
        ),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations.0.wandb.project", "missing"),
    ],
)
def test_bad_requests(
    http: httpx2.Client, request_body: dict[str, Any], change: dict[str, Any], param: str, words: str
) -> None:
    answer = http.post(JOBS, json={**request_body, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert http.get(JOBS).json()["data"] == []


def test_missing_fields(http: httpx2.Client) -> None:
    error = http.post(JOBS, json={"training_file": "file-x"}).json()["error"]
    assert (error["param"], error["code"]) == ("model", "missing_field")


def test_a_new_job(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    body = {**request_body, "metadata": {"team": "a"}, "seed": 7, "priority": "high", "training": {"beta": 0.3}}
    job = create(http, body)
    assert (job["status"], job["run"]["state"], job["run"]["attempt"]) == ("validating_files", "validating", 0)
    assert job["run"]["progress"] == {"step": 0, "total_steps": None}
    assert job["run"]["priority"] == "high"
    assert job["hyperparameters"] == {"batch_size": "auto", "n_epochs": "auto", "learning_rate_multiplier": 1.0}
    assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": {**job["hyperparameters"], "beta": 0.3}}}
    assert (job["seed"], job["metadata"], job["result_files"], job["integrations"]) == (7, {"team": "a"}, [], [])
    nothing_yet = ("error", "fine_tuned_model", "finished_at", "trained_tokens", "estimated_finish", "validation_file")
    assert [job[name] for name in nothing_yet] == [None] * 6
    assert http.get(f"{JOBS}/{job['id']}").json() == job


@pytest.fixture
def hints(settings: Settings) -> Iterator[redis.Redis]:
    """The broker, in which no hint lies yet."""
    with redis.Redis.from_url(redis_py_url(settings.redis_url.get_secret_value())) as broker:
        broker.delete("celery")
        yield broker
        broker.delete("celery")


def test_a_client_that_left_has_its_job_and_the_workers_their_hint(
    hints: redis.Redis, api: Api, secret: str, database: Database, request_body: dict[str, Any]
) -> None:
    """The hint goes out after the answer, and needs nobody to hear that."""
    body = json.dumps(request_body).encode()
    poll_until(lambda: hints.llen("celery") == 1, "the file's hint was sent")
    hints.delete("celery")
    with socket.create_connection((api.host, api.port)) as connection:
        connection.sendall(
            f"POST {JOBS} HTTP/1.1\r\nHost: {api.host}\r\nAuthorization: Bearer {secret}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        poll_until(lambda: _jobs(database) == 1, "the job is there")
    poll_until(lambda: hints.llen("celery") == 1, "the hint was sent")


def _jobs(database: Database) -> int:
    with database.transaction() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def test_a_request_that_comes_twice(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    first = create(http, request_body)
    assert create(http, request_body, **{"x-stainless-retry-count": "1"})["id"] == first["id"]
    assert create(http, request_body)["id"] != first["id"]
    keyed = create(http, request_body, **{"Idempotency-Key": "k"})
    assert create(http, request_body, **{"Idempotency-Key": "k"})["id"] == keyed["id"]
    answer = http.post(JOBS, json={**request_body, "seed": 1}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_reused")
    assert len(http.get(JOBS).json()["data"]) == 3


def test_a_try_whose_client_hung_up_before_its_turn_makes_nothing(
    http: httpx2.Client, database: Database, request_body: dict[str, Any]
) -> None:
    """The openai client hangs up, then tries again; whichever try has its turn first, one job is made."""

    def take_turn(session: Session) -> None:
        key = session.scalars(select(ApiKey)).one()
        described = read_request(request_body).model_dump(mode="json", exclude_unset=True)
        find_earlier(session, key.project_id, described, Repeatable(api_key_id=key.id))

    with database.transaction() as session:
        take_turn(session)
        for retries in ("0", "1"):
            with pytest.raises(httpx2.ReadTimeout):
                http.post(JOBS, json=request_body, headers={"x-stainless-retry-count": retries}, timeout=1)
    with database.transaction() as session:
        take_turn(session)  # after those that waited
        assert session.scalar(select(func.count()).select_from(Job)) == 0
    create(http, request_body, **{"x-stainless-retry-count": "2"})
    assert _jobs(database) == 1


def test_an_order_whose_answer_was_lost(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    """The client's retry gets the job; the same order given twice on purpose is refused."""
    cancel = f"{JOBS}/{create(http, request_body)['id']}/cancel"
    assert http.post(cancel).json()["status"] == "cancelled"
    for header in ({"x-stainless-retry-count": "1"}, {"Idempotency-Key": "k"}):
        again = http.post(cancel, headers=header)
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    for header in ({}, {"x-stainless-retry-count": "0"}):
        assert http.post(cancel, headers=header).json()["error"]["code"] == "illegal_move"
    pause = http.post(cancel.replace("/cancel", "/pause"), headers={"x-stainless-retry-count": "1"})
    assert (pause.status_code, pause.json()["error"]["code"]) == (400, "illegal_move")


def test_lists(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    made = [create(http, {**request_body, "metadata": {"n": str(n), "all": "yes"}})["id"] for n in range(3)]
    page = http.get(JOBS, params={"limit": 2}).json()
    assert [job["id"] for job in page["data"]] == [made[2], made[1]]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, made[2], made[1])
    last = http.get(JOBS, params={"limit": 2, "after": made[1]}).json()
    assert ([job["id"] for job in last["data"]], last["has_more"]) == ([made[0]], False)
    found = http.get(JOBS, params={"metadata[n]": "1", "metadata[all]": "yes"}).json()["data"]
    assert [job["id"] for job in found] == [made[1]]
    assert http.get(JOBS, params={"metadata[n]": "9"}).json()["data"] == []
    assert http.get(JOBS, params={"after": "ftjob-none"}).json()["error"]["param"] == "after"


def test_jobs_without_metadata(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    create(http, {**request_body, "metadata": {"a": ""}})
    bare = [
        create(http, {**request_body, "seed": seed, **more})["id"] for seed, more in ((1, {}), (2, {"metadata": None}))
    ]
    found = http.get(JOBS, params={"metadata": "null"}).json()["data"]
    assert [job["id"] for job in found] == bare[::-1]
    assert len(http.get(JOBS, params={"metadata[a]": ""}).json()["data"]) == 1
    for wrong in ({"metadata": "a"}, {"metadata": "null", "metadata[a]": ""}):
        assert http.get(JOBS, params=wrong).json()["error"]["param"] == "metadata"


def test_integrations_are_echoed_and_an_event_says_that_nothing_is_sent(
    http: httpx2.Client, request_body: dict[str, Any]
) -> None:
    wandb = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}
    job = create(http, {**request_body, "integrations": [wandb]})
    assert job["integrations"] == [wandb]
    newest = http.get(f"{JOBS}/{job['id']}/events").json()["data"][0]
    assert (newest["level"], newest["data"]["code"]) == ("warn", "integration_not_used")
    assert f"{JOBS}/{job['id']}/metrics" in newest["message"]


def test_a_model_that_is_named_without_a_project_is_a_base_model(
    http: httpx2.Client, request_body: dict[str, Any]
) -> None:
    training = {"reference": "tiny"}
    job = create(http, {**request_body, "model": "tiny", "training": training})
    assert (job["model"], job["run"]["training"]["reference"]) == ("base/tiny", "base/tiny")
    assert http.get("/v1/models/tiny").json()["id"] == "base/tiny"


def test_more_gpus_than_any_worker_has(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    job = create(http, {**request_body, "resources": {"gpus": 64}})
    newest = http.get(f"{JOBS}/{job['id']}/events").json()["data"][0]
    assert (newest["level"], newest["data"]["code"]) == ("warn", "no_worker_large_enough")
    assert "64 GPUs" in newest["message"]


def test_cancel_is_final(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    job = create(http, request_body)
    cancelled = http.post(f"{JOBS}/{job['id']}/cancel").json()
    assert (cancelled["status"], cancelled["finished_at"] is not None) == ("cancelled", True)
    answer = http.post(f"{JOBS}/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "illegal_move")


def test_pause_and_resume(http: httpx2.Client, request_body: dict[str, Any], database: Database) -> None:
    url = f"{JOBS}/{create(http, request_body)['id']}"
    refused = http.post(f"{url}/pause")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "illegal_move")
    with database.transaction() as session:
        results.finish_validation(session, claim_next(database), {"training": resolved()})
    assert (http.post(f"{url}/pause").json()["status"], http.get(url).json()["run"]["state"]) == ("queued", "paused")
    resumed = http.post(f"{url}/resume").json()
    assert (resumed["status"], resumed["run"]["state"]) == ("queued", "queued")
    assert resumed["run"]["lease_left"] is None
    claim_next(database)
    assert 30 < http.get(url).json()["run"]["lease_left"] <= 60
    pausing = http.post(f"{url}/pause").json()
    assert (pausing["status"], pausing["run"]["state"]) == ("running", "pausing")
    refused = http.post(f"{url}/resume")
    assert (refused.status_code, "still makes its checkpoint" in refused.json()["error"]["message"]) == (400, True)


def test_a_failed_job_says_why(http: httpx2.Client, request_body: dict[str, Any], database: Database) -> None:
    job = create(http, request_body)
    failure = Failure(kind="user", code="bad_row", message="Line 3 has no `chosen`.", param="training_file", line=3)
    with database.transaction() as session:
        claim = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=60)
        assert claim is not None
        results.fail(session, claim, failure, max_attempts=5)
    job = http.get(f"{JOBS}/{job['id']}").json()
    assert job["status"] == "failed"
    assert job["error"] == {
        "kind": "user",
        "code": "bad_row",
        "message": failure.message,
        "param": "training_file",
        "line": 3,
    }
    assert http.get(f"{JOBS}/{job['id']}/events").json()["data"][0]["level"] == "error"


def test_metrics(http: httpx2.Client, request_body: dict[str, Any], database: Database) -> None:
    url = f"{JOBS}/{create(http, request_body)['id']}/metrics"
    assert http.get(url).json() == {"object": "list", "data": [], "has_more": False}
    claim = claim_next(database)
    lines = [
        {"split": "train", "step": 1, "values": {"loss": 0.5, "lr": 1e-6}},
        {"split": "train", "step": 2, "values": {"loss": 0.25, "lr": 2e-6}},
        {"split": "validation", "step": 2, "values": {"loss": 0.75}},
    ]
    with database.transaction() as session:
        results.record(session, claim, metrics=lines)
    data = http.get(url).json()["data"]
    assert [{name: line[name] for name in ("split", "step", "values")} for line in data] == lines
    assert len(http.get(url, params={"after_step": 1}).json()["data"]) == 2
    assert [line["step"] for line in http.get(url, params={"split": "validation"}).json()["data"]] == [2]
    answer = http.get(url, params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert rows[0] == {"split": "train", "step": "1", "loss": "0.5", "lr": "1e-06"}
    assert rows[2] == {"split": "validation", "step": "2", "loss": "0.75", "lr": ""}
    for name in ("format", "split"):
        assert error_of(http.get(url, params={name: "other"}), 400)["param"] == name


def test_another_projects_job_is_not_there(
    client: OpenAI, http: httpx2.Client, request_body: dict[str, Any], make_key: Callable[[str], str]
) -> None:
    job = create(http, request_body)
    headers = {"Authorization": f"Bearer {make_key('other')}"}
    for tail in ("", "/events", "/checkpoints", "/metrics"):
        answer = http.get(f"{JOBS}/{job['id']}{tail}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    for order in ("cancel", "pause", "resume"):
        assert http.post(f"{JOBS}/{job['id']}/{order}", headers=headers).status_code == 404
    assert http.post(JOBS, json=request_body, headers=headers).json()["error"]["param"] == "training_file"
    assert http.get(JOBS, headers=headers).json()["data"] == []
    with pytest.raises(openai.BadRequestError, match="in use by the unfinished job"):
        client.files.delete(request_body["training_file"])


def test_the_log_of_a_job_is_that_of_its_attempts(
    http: httpx2.Client, request_body: dict[str, Any], database: Database, settings: Settings
) -> None:
    job_id = create(http, request_body)["id"]
    assert http.get(f"{JOBS}/{job_id}/log").text == ""
    storage = open_storage(settings.storage_url)
    checking = claim_next(database)
    with storage.writer(log_key(job_id, checking.fence)) as sink:
        sink.write("1,000 rows read \u2713\n".encode() + b"\xff\n")
    with database.transaction() as session:
        results.finish_validation(session, checking, {"training": resolved(), "values": {}})
    claim_next(database)
    answer = http.get(f"{JOBS}/{job_id}/log")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    first, second = answer.text.split("=== attempt 2: ")
    assert first.startswith("=== attempt 1: w checks the data from ")
    assert first.endswith("UTC: succeeded ===\n1,000 rows read \u2713\n\ufffd\n\n")
    assert second.startswith("w trains from ") and "until now ===\n(its worker brings its log" in second
    assert http.get(f"{JOBS}/{job_id}/log", params={"attempt": 1}).text == first
    refused = http.get(f"{JOBS}/{job_id}/log", params={"attempt": 3})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("attempt", "no_such_attempt")
    assert "has attempts 1 to 2; there is none with the number 3" in error["message"]
    assert http.get(f"{JOBS}/ftjob-none/log").status_code == 404

"""GET /v1/fine_tuning/queue: the caller's own jobs with reasons, and what the workers have free."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from api.main import create_app
from control_plane import leases, models, results, workers
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.workers import Condition, Facts
from dpo_core.run_directory import Failure
from tests.api.test_jobs import ROWS, create
from tests.control_plane.model_folders import make_folder

QUEUE = "/v1/fine_tuning/queue"
GPUS = ("GPU-a", "GPU-b")


@pytest.fixture
def body(client: OpenAI, database: Database, tmp_path: Path) -> dict[str, Any]:
    with database.transaction() as session:
        models.register_base(session, make_folder(tmp_path / "tiny"))
        workers.register(session, Facts("worker-1", "host", 7, "cuda", 2))
    file = client.files.create(file=("pairs.jsonl", ROWS), purpose="fine-tune")
    return {"model": "base/tiny", "training_file": file.id, "method": {"type": "dpo"}}


def queue(http: httpx2.Client, **parameters: Any) -> dict[str, Any]:
    answer = http.get(QUEUE, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_job_says_why_it_waits_and_until_when(http: httpx2.Client, database: Database, body: dict[str, Any]) -> None:
    job = create(http, {**body, "priority": "high", "preemptible": True, "resources": {"gpus": 2}})
    assert (job["run"]["priority"], job["run"]["preemptible"]) == ("high", True)
    (waiting,) = queue(http)["data"]
    assert {name: waiting[name] for name in ("id", "state", "priority", "preemptible", "gpus", "reason", "until")} == {
        "id": job["id"],
        "state": "validating",
        "priority": "high",
        "preemptible": True,
        "gpus": 2,
        "reason": "readers_busy",
        "until": None,
    }
    with database.transaction() as session:
        claim = leases.claim(session, worker_id="worker-1", free=2, total=2, lease_seconds=60)
        assert claim is not None
        died = Failure(kind="infrastructure", code="trainer_died", message="It died.")
        results.fail(session, claim, died, max_attempts=5, retry_seconds=60)
    (waiting,) = queue(http)["data"]
    assert waiting["reason"] == "resting" and time.time() < waiting["until"] <= time.time() + 60
    (worker,) = queue(http)["workers"]
    assert time.time() - 60 < worker.pop("last_seen") <= time.time()
    assert worker == {
        "id": "worker-1",
        "object": "worker",
        "device": "cuda",
        "slots": 2,
        "usable": 2,
        "free": 2,
        "silent": False,
        "draining": False,
        "out": [],
    }


def test_a_gpu_that_is_out_says_why(http: httpx2.Client, database: Database, body: dict[str, Any]) -> None:
    with database.transaction() as session:
        out = {"GPU-b": "busy (pid 4711, 3.2 GiB)"}
        workers.beat(session, "worker-1", Condition(usable=1, gpus=GPUS, out=out))
    (worker,) = queue(http)["workers"]
    assert (worker["usable"], worker["free"]) == (1, 1)
    assert worker["out"] == [{"gpu": "GPU-b", "reason": "busy (pid 4711, 3.2 GiB)"}]


def test_it_comes_in_pages(http: httpx2.Client, body: dict[str, Any]) -> None:
    made = [create(http, {**body, "seed": seed})["id"] for seed in range(3)]
    first = queue(http, limit=2)
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (made[:2], True)
    rest = queue(http, limit=2, after=first["last_id"])
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (made[2:], False)
    refused = http.get(QUEUE, params={"after": "ftjob-none"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


def test_another_project_sees_nothing_of_it(
    http: httpx2.Client, api: Any, make_key: Callable[[str], str], body: dict[str, Any]
) -> None:
    create(http, body)
    headers = {"Authorization": f"Bearer {make_key('other')}"}
    assert httpx2.get(f"{api.url}{QUEUE}", headers=headers).json()["data"] == []


def test_the_document_names_the_reasons(settings: Settings) -> None:
    document = create_app(settings).openapi()
    assert "resting" in document["components"]["schemas"]["Reason"]["enum"]

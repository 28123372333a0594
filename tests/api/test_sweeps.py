from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from api.sweep_shapes import status
from control_plane import models
from control_plane.database import Database
from control_plane.job_states import State
from tests.api.test_jobs import ROWS
from tests.control_plane.model_folders import make_folder
from tests.control_plane.sweeps import run_all

SWEEPS = "/v1/fine_tuning/sweeps"


@pytest.fixture
def request_body(client: OpenAI, database: Database, tmp_path: Path) -> dict[str, Any]:
    """A create request that is in order: two jobs."""
    with database.transaction() as session:
        models.register_base(session, make_folder(tmp_path / "tiny"))
    file = client.files.create(file=("pairs.jsonl", ROWS), purpose="fine-tune")
    return {
        "model": "base/tiny",
        "training_file": file.id,
        "method": {"type": "dpo"},
        "training": {"beta": [0.1, 0.5]},
    }


def post(http: httpx2.Client, path: str, body: object = None, **headers: str) -> dict[str, Any]:
    answer = http.post(path, json=body, headers=headers) if body is not None else http.post(path, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_sweep_from_its_request_to_a_promoted_model(
    http: httpx2.Client, client: OpenAI, database: Database, request_body: dict[str, Any]
) -> None:
    made = post(http, SWEEPS, request_body)
    assert (made["status"], made["jobs"], made["best"]) == ("queued", {"validating": 2}, None)
    assert made["axes"] == [{"field": "beta", "values": [0.1, 0.5]}]
    jobs = http.get(f"{SWEEPS}/{made['id']}/jobs").json()["data"]
    assert [row["job"] for row in made["results"]] == [job["id"] for job in jobs]
    assert [(job["run"]["sweep_id"], job["run"]["waits_for"]) for job in jobs] == [
        (made["id"], None),
        (made["id"], jobs[0]["id"]),
    ]
    assert client.fine_tuning.jobs.retrieve(jobs[1]["id"]).status == "validating_files"
    run_all(database, [0.7, 0.8])
    table = http.get(f"{SWEEPS}/{made['id']}").json()
    assert (table["status"], table["jobs"], table["best"]) == ("succeeded", {"succeeded": 2}, jobs[1]["id"])
    assert table["compared_by"] == "rewards/accuracies"
    row = table["results"][1]
    assert (row["values"], row["best"], row["within_best"], row["evaluated_step"]) == ({"beta": 0.5}, True, True, 5)
    assert row["metrics"]["rewards/accuracies/low"] == pytest.approx(0.75)
    promoted = post(http, f"{SWEEPS}/{made['id']}/promote")
    assert (promoted["id"], promoted["details"]["job"]) == (made["name"], jobs[1]["id"])
    assert client.models.retrieve(made["name"]).id == made["name"]
    other = post(http, f"{SWEEPS}/{made['id']}/promote", {"job": jobs[0]["id"]})
    assert (other["id"], other["details"]["job"]) == (made["name"], jobs[0]["id"])


def test_the_list_counts_jobs_and_cancel_ends_them(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    first, second = (post(http, SWEEPS, request_body)["id"] for _ in range(2))
    cancelled = post(http, f"{SWEEPS}/{first}/cancel")
    assert (cancelled["status"], cancelled["jobs"]) == ("cancelled", {"cancelled": 2})
    listed = http.get(SWEEPS, params={"limit": 1}).json()
    assert [(sweep["id"], sweep["status"]) for sweep in listed["data"]] == [(second, "queued")]
    assert listed["has_more"]
    listed = http.get(SWEEPS, params={"after": second}).json()
    assert [(sweep["id"], sweep["jobs"]) for sweep in listed["data"]] == [(first, {"cancelled": 2})]


def test_a_request_that_comes_twice(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    keyed = [post(http, SWEEPS, request_body, **{"Idempotency-Key": "k"})["id"] for _ in range(2)]
    assert keyed[0] == keyed[1]
    again = [post(http, SWEEPS, request_body, **{"x-stainless-retry-count": count})["id"] for count in ("0", "1")]
    assert again[0] == again[1] != keyed[0]


def test_what_is_wrong_is_said(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    answer = http.post(SWEEPS, json={**request_body, "training": {"beta": [0.1, 0]}})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "training.beta")
    assert error["message"].startswith("With beta 0: ")
    assert http.get(SWEEPS).json()["data"] == []
    made = post(http, SWEEPS, request_body)["id"]
    answer = http.post(f"{SWEEPS}/{made}/promote", json={"jobs": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_field")
    for no_object in ("null", "[]"):
        answer = http.post(f"{SWEEPS}/{made}/promote", content=no_object)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The body must be a JSON object.")
    assert http.post(f"{SWEEPS}/{made}/promote").json()["error"]["code"] == "sweep_not_finished"
    for path in (f"{SWEEPS}/ftsweep-none", f"{SWEEPS}/ftsweep-none/jobs"):
        assert http.get(path).status_code == 404


def test_lists_are_no_values_of_a_job(http: httpx2.Client, request_body: dict[str, Any]) -> None:
    answer = http.post("/v1/fine_tuning/jobs", json=request_body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "training.beta")


def test_the_schema_takes_a_list_for_every_value(http: httpx2.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    one, many = schemas["TrainingFields"]["properties"], schemas["SweepTrainingFields"]["properties"]
    assert many["beta"]["anyOf"] == [one["beta"], {"type": "array", "items": one["beta"], "minItems": 1}]
    assert many.keys() == one.keys()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({State.validating: 1, State.queued: 2}, "queued"),
        ({State.queued: 2, State.running: 1}, "running"),
        ({State.queued: 2, State.succeeded: 1}, "running"),
        ({State.paused: 1}, "running"),
        ({State.succeeded: 1, State.failed: 1, State.cancelled: 1}, "succeeded"),
        ({State.failed: 1, State.cancelled: 2}, "failed"),
        ({State.cancelled: 2}, "cancelled"),
    ],
)
def test_a_sweep_is_where_its_jobs_are(states: dict[State, int], expected: str) -> None:
    assert status(Counter(states)) == expected

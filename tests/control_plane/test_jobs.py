"""Creating, reading and cancelling jobs."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane import files, jobs, workers
from control_plane.database import Database
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import FINAL, State
from control_plane.tables import Attempt, Job
from tests.control_plane.rows import (
    MODEL,
    PROJECT,
    add_file,
    add_model,
    add_project,
    create,
    event_codes,
    job_in,
    read_job,
    set_clock_ahead,
    started,
)


def test_a_new_job_holds_what_was_asked_for(stocked: Database) -> None:
    asked: dict[str, Any] = {
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
        "training": {"lora": {"rank": 4}},
        "resources": {"gpus": 2},
        "priority": "high",
        "suffix": "my run",
        "seed": 5,
        "metadata": {"team": "a"},
    }
    with stocked.transaction() as session:
        workers.register(session, workers.Facts("w1", "host", 1, "cpu", 2))
        job = create(session, **asked)
    assert (job.state, job.method, job.model_id, job.training_file_id) == ("validating", "dpo", MODEL, "file-1")
    assert (job.priority, job.gpus, job.seed, job.suffix, job.user_metadata) == (1, 2, 5, "my run", {"team": "a"})
    assert job.training["beta"] == 0.2
    assert job.training["lora"]["rank"] == 4
    assert job.training["learning_rate"] == "auto"
    assert job.request == {"model": MODEL, "training_file": "file-1", **asked}
    assert job.result_name == f"default/tiny-my-run-{job.id[-8:]}"
    assert job.created_at is not None
    assert event_codes(stocked, job.id) == ["job_created", "validating_files"]


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"model": "base/tinny"}, "model", "model_not_found", 'Did you mean "base/tiny"?'),
    ({"model": "tniy"}, "model", "model_not_found", 'Did you mean "tiny"?'),
    ({"model": "gpt-4o"}, "model", "model_not_found", "`dpo models list` (over HTTP: GET /v1/models) shows"),
    ({"model": "other/secret"}, "model", "model_not_found", "There is no model"),
    ({"training": {"reference": "base/x"}}, "training.reference", "model_not_found", "There is no model 'base/x'"),
    ({"training_file": "file-9"}, "training_file", "file_not_found", "upload it first"),
    ({"training_file": "file-other"}, "training_file", "file_not_found", "in this project"),
    ({"validation_file": "file-9"}, "validation_file", "file_not_found", "There is no file 'file-9'"),
    ({"training_file": "file-batch"}, "training_file", "wrong_file_purpose", "purpose 'batch'"),
    ({"training_file": "file-bad"}, "training_file", "invalid_training_file", "It is cut off."),
]


def test_refused(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        add_file(session, "file-other", project_id="proj-2")
        add_file(session, "file-batch", purpose="batch")
        add_file(session, "file-bad", status="error", status_details="It is cut off.")
        add_model(session, "other/secret", project_id="proj-2")
    for changes, param, code, said in REFUSED:
        with pytest.raises(InvalidRequest) as refusal, stocked.transaction() as session:
            create(session, **changes)
        assert (refusal.value.param, refusal.value.code) == (param, code)
        assert said in refusal.value.message
    with stocked.transaction() as session:
        assert jobs.list_jobs(session, PROJECT).items == []


def test_more_gpus_than_any_worker_has_waits_and_says_so(stocked: Database) -> None:
    def said() -> str:
        with stocked.transaction() as session:
            job = create(session, resources={"gpus": 4})
            event = jobs.list_events(session, PROJECT, job.id).items[0]
        assert (job.state, event.code, event.level) == ("validating", "no_worker_large_enough", "warn")
        return event.message

    assert said().endswith("there is none. The job waits until one comes. None was ever that large.")
    with stocked.transaction() as session:
        workers.register(session, workers.Facts("w1", "host", 1, "cuda", 2))
    assert "the largest has 2." in said()
    assert said().endswith("None was ever that large: the largest had 2.")
    with stocked.transaction() as session:
        workers.register(session, workers.Facts("w2", "host", 1, "cuda", 8))
        workers.forget(session, "w2")
    assert said().endswith(
        "No registered worker has 4 GPUs (or CPU slots); the largest has 2. The job waits until one comes."
    )


def test_a_worker_that_fell_silent_is_not_alive(stocked: Database) -> None:
    with stocked.transaction() as session:
        workers.register(session, workers.Facts("w1", "host", 1, "cuda", 2))
        workers.register(session, workers.Facts("w1", "host", 1, "cuda", 4))
        assert workers.largest(session) == workers.Largest(alive=4, ever=4)
        set_clock_ahead(session, 61)
        assert workers.largest(session) == workers.Largest(alive=0, ever=4)
        workers.beat(session, "w1")
        assert workers.largest(session) == workers.Largest(alive=4, ever=4)


def test_cancel_from_every_state(stocked: Database) -> None:
    for state in State:
        with stocked.transaction() as session:
            job_id = job_in(session, state).id
        if state in FINAL:
            with pytest.raises(Conflict, match=rf"is over \({state}\)"), stocked.transaction() as session:
                jobs.cancel(session, PROJECT, job_id)
            continue
        with stocked.transaction() as session:
            assert jobs.cancel(session, PROJECT, job_id).state == "cancelled"
        job = read_job(stocked, job_id)
        assert (job.fence, job.lease_until) == (1, None)
        assert job.finished_at is not None
        assert event_codes(stocked, job_id)[-1] == "job_cancelled"


def test_cancelling_a_running_job_closes_its_attempt(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)
        attempt = session.get_one(Attempt, (claim.job_id, claim.fence))
    job = read_job(stocked, claim.job_id)
    assert (job.fence, job.lease_until, job.worker_id) == (claim.fence + 1, None, None)
    assert (attempt.outcome, attempt.ended_at is not None) == ("cancelled", True)


def test_another_projects_job_is_not_there(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        job_id = create(session).id
    with stocked.transaction() as session:
        for read in (jobs.get, jobs.cancel, jobs.list_events, jobs.list_checkpoints, jobs.list_metrics):
            with pytest.raises(NotFound):
                read(session, "proj-2", job_id)
        assert jobs.list_jobs(session, "proj-2").items == []
    assert read_job(stocked, job_id).state == "validating"


def test_lists_come_in_pages_newest_first(stocked: Database) -> None:
    with stocked.transaction() as session:
        made = sorted(create(session, metadata={"n": str(n % 2), "all": "x"}).id for n in range(5))[::-1]
        first = jobs.list_jobs(session, PROJECT, limit=2)
        assert ([job.id for job in first.items], first.has_more) == (made[:2], True)
        rest = jobs.list_jobs(session, PROJECT, after=made[1], limit=3)
        assert ([job.id for job in rest.items], rest.has_more) == (made[2:], False)
        even = jobs.list_jobs(session, PROJECT, metadata={"n": "0", "all": "x"})
        assert {job.user_metadata["n"] for job in even.items if job.user_metadata} == {"0"}
        assert len(even.items) == 3
        for wrong in ({"after": "ftjob-x"}, {"limit": 0}, {"limit": 101}):
            with pytest.raises(InvalidRequest) as refusal:
                jobs.list_jobs(session, PROJECT, **wrong)  # type: ignore[arg-type]
            assert refusal.value.param == next(iter(wrong))


def test_events_are_paged_by_their_order(stocked: Database) -> None:
    with stocked.transaction() as session:
        job = create(session)
        newest = jobs.list_events(session, PROJECT, job.id, limit=1)
        older = jobs.list_events(session, PROJECT, job.id, after=newest.items[0].id)
    assert newest.has_more and not older.has_more
    assert [event.code for event in older.items] == ["validating_files", "job_created"]


def test_a_job_over_several_files_keeps_their_weights_and_the_files(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_file(session, "file-2")
        job_id = create(session, training_files={"file-2": 2.5, "file-1": 1}).id
    with stocked.transaction() as session:
        job = session.get_one(Job, job_id)
        given = [{"id": "file-2", "weight": 2.5}, {"id": "file-1", "weight": 1.0}]
        assert (job.training_file_id, job.training_files) == ("file-1", given), "in the user's order"
    with stocked.transaction() as session, pytest.raises(Conflict, match="in use by the unfinished job"):
        files.delete(session, PROJECT, "file-2")
    with stocked.transaction() as session, pytest.raises(InvalidRequest, match="no file 'file-9'") as caught:
        create(session, training_files={"file-1": 1, "file-9": 1})
    assert caught.value.param == "training_files"

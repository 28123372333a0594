from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from control_plane import files, jobs, leases, projects, quotas, sweeps
from control_plane.database import Database, dpo_now
from control_plane.errors import QuotaExceeded
from control_plane.job_requests import read_request
from control_plane.job_states import State
from control_plane.quotas import Limits
from control_plane.sweep_requests import read_sweep
from control_plane.tables import Job, Project
from tests.control_plane.rows import MODEL, PROJECT, add_file, add_model, add_project, body, job_in


def add(session: Session, file_id: str, size: int, limits: Limits) -> None:
    files.add(
        session,
        PROJECT,
        filename="a",
        purpose="fine-tune",
        bytes=size,
        sha256="0",
        storage_key=f"files/{file_id}",
        file_id=file_id,
        limits=limits,
    )


def test_bytes_are_counted_once_and_refused_with_the_numbers(stocked: Database) -> None:
    with stocked.transaction() as session:
        names = {"project_id": PROJECT, "kind": "checkpoint", "path": None, "storage_prefix": "checkpoints/j/1/step-4"}
        for name in ("default/m", "default/m-step-4"):
            add_model(session, name, bytes=500, **names)
        assert quotas.usage(session, PROJECT).bytes == 501  # two names of the same bytes, and a file of 1
        add(session, "file-2", 99, Limits(bytes=600))
        with pytest.raises(QuotaExceeded, match=r"may store 600 bytes and stores 600; this would add 1\..*DELETE"):
            add(session, "file-3", 1, Limits(bytes=600))
        projects.set_limits(session, session.get_one(Project, PROJECT), Limits(bytes=601))  # its own, above the setting
        add(session, "file-3", 1, Limits(bytes=600))


def test_waiting_jobs(stocked: Database) -> None:
    limits = Limits(waiting_jobs=2)
    with stocked.transaction() as session:
        job_in(session, State.paused)
        job_in(session, State.running)  # it doesn't wait
        jobs.create(session, PROJECT, read_request(body()), limits=limits)
        with pytest.raises(QuotaExceeded, match=r"may have 2 jobs waiting and has 2; this would add 1\..*cancel"):
            jobs.create(session, PROJECT, read_request(body()), limits=limits)
        sweep = read_sweep(body(training={"beta": [0.1, 0.2]}))
        with pytest.raises(QuotaExceeded, match="this would add 2"):
            sweeps.create(session, PROJECT, sweep, limits=limits)


def test_a_repeated_create_is_no_second_place(stocked: Database) -> None:
    repeatable = jobs.Repeatable("same", "key-1")
    with stocked.transaction() as session:
        first = jobs.create(
            session, PROJECT, read_request(body()), repeatable=repeatable, limits=Limits(waiting_jobs=1)
        )
        again = jobs.create(
            session, PROJECT, read_request(body()), repeatable=repeatable, limits=Limits(waiting_jobs=1)
        )
        assert first.id == again.id


def test_more_gpus_than_a_project_may_ever_have(stocked: Database) -> None:
    with stocked.transaction() as session, pytest.raises(QuotaExceeded, match="4 GPUs at once, and this asks for 8"):
        jobs.create(session, PROJECT, read_request(body(resources={"gpus": 8})), limits=Limits(gpus=4))


def claim(database: Database, default: int | None = None) -> str | None:
    with database.transaction() as session:
        taken = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=30, project_gpus=default)
        return taken.job_id if taken else None


def test_gpus_at_once(stocked: Database) -> None:
    """A project at its limit waits; others, which hold less, and its own smaller jobs go past it."""
    with stocked.transaction() as session:
        projects.set_limits(session, session.get_one(Project, PROJECT), Limits(gpus=3))
        add_project(session, "proj-2", "other")
        add_file(session, "file-2", project_id="proj-2")
        two, another, one = (job_in(session, State.queued, resources={"gpus": gpus}).id for gpus in (2, 2, 1))
        request = read_request(body(training_file="file-2", model=MODEL))
        theirs = jobs.create(session, "proj-2", request)
        theirs.state = State.queued.value
        last = theirs.id
    assert [claim(stocked) for _ in range(4)] == [two, last, one, None]
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, two)
    assert claim(stocked) == another


def test_the_setting_is_for_projects_without_a_limit_of_their_own(stocked: Database) -> None:
    with stocked.transaction() as session:
        first, second = (job_in(session, State.queued).id for _ in range(2))
    assert claim(stocked, default=1) == first
    assert claim(stocked, default=1) is None
    assert claim(stocked, default=2) == second


def test_a_job_that_its_project_holds_back_starves_nobody(stocked: Database) -> None:
    """Free slots are kept for a large job that waits for slots, not for one that waits for its own project."""
    with stocked.transaction() as session:
        projects.set_limits(session, session.get_one(Project, PROJECT), Limits(gpus=4))
        old = job_in(session, State.queued, resources={"gpus": 4})
        old.created_at = old.created_at.replace(year=2020)
        running = job_in(session, State.running, resources={"gpus": 2})
        running.lease_until = dpo_now() + timedelta(seconds=30)
        small_id = job_in(session, State.queued, resources={"gpus": 1}).id
        assert session.get_one(Job, running.id).gpus == 2
    with stocked.transaction() as session:
        taken = leases.claim(session, worker_id="w", free=2, total=4, lease_seconds=30)
        assert taken is not None
        assert taken.job_id == small_id


def test_two_claims_at_once_don_t_pass_the_limit(stocked: Database) -> None:
    with stocked.transaction() as session:
        jobs_made = [job_in(session, State.queued).id for _ in range(2)]
    with stocked.transaction() as one:
        job = one.get_one(Job, jobs_made[0], with_for_update=True)
        assert quotas.take_gpus(one, job.project_id, job.gpus, 1)
        with stocked.transaction() as two:
            two.connection().exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            other = two.get_one(Job, jobs_made[1], with_for_update=True)
            with pytest.raises(Exception, match="lock timeout"):  # it waits for the first claim's end, and counts then
                quotas.take_gpus(two, other.project_id, other.gpus, 1)
            two.rollback()

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control_plane import files, jobs
from control_plane.database import Database
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import State
from control_plane.tables import File
from tests.control_plane.rows import FILE, PROJECT, add_file, add_project, job_in, noted


def test_purposes(stocked: Database) -> None:
    with stocked.transaction() as session:
        facts = {"filename": "a", "bytes": 1, "sha256": "0", "storage_key": "files/f", "file_id": "f"}
        assert files.add(session, PROJECT, purpose="fine-tune", **facts).status == "processed"
        with pytest.raises(InvalidRequest, match="purpose is 'fine-tune'"):
            files.add(session, PROJECT, purpose="assistants", **facts)


@pytest.mark.parametrize("role", ["training_file", "validation_file"])
def test_a_file_stays_while_an_unfinished_job_uses_it(stocked: Database, role: str) -> None:
    with stocked.transaction() as session:
        add_file(session, "file-2")
        job = job_in(session, State.queued, **{role: "file-2"})
        with pytest.raises(Conflict, match=job.id):
            files.delete(session, PROJECT, "file-2")
        jobs.cancel(session, PROJECT, job.id)
        files.delete(session, PROJECT, "file-2")
        assert noted(session) == ["files/file-2", f"private/{job.id}"]  # with its states to resume from, and its logs
        with pytest.raises(NotFound):
            files.get(session, PROJECT, "file-2")


def test_another_projects_file(stocked: Database) -> None:
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        for call in (files.get, files.hold, files.delete):
            with pytest.raises(NotFound):
                call(session, "proj-2", FILE)
        assert files.list_files(session, "proj-2").items == []


def test_a_held_file_can_not_be_deleted_meanwhile(stocked: Database) -> None:
    """The deleter waits for the creating transaction, and then sees its job."""
    with stocked.transaction() as deleter:
        deleter.connection().exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
        with stocked.transaction() as creator:
            files.hold(creator, PROJECT, FILE)
            with pytest.raises(Exception, match="lock timeout"):
                files.delete(deleter, PROJECT, FILE)
        deleter.rollback()


@pytest.mark.parametrize("role", ["training_file", "validation_file", "training_files"])
def test_an_expired_file_goes_when_no_unfinished_job_uses_it(stocked: Database, role: str) -> None:
    with stocked.transaction() as session:
        for number in (2, 3, 4):
            add_file(session, f"file-{number}", expires_at=datetime.now(UTC) + timedelta(days=1))
        used = {"training_file": "file-2", "training_files": {"file-2": 1, FILE: 1}} if role == "training_files" else {}
        job = job_in(session, State.running, **(used or {role: "file-2"}))
        for number, days in ((2, -1), (3, -1), (4, 1)):
            session.get_one(File, f"file-{number}").expires_at = datetime.now(UTC) + timedelta(days=days)
        session.flush()
        assert files.remove_expired(session) == 1
        assert noted(session) == ["files/file-3"]
        with pytest.raises(NotFound):
            files.hold(session, PROJECT, "file-2")
        assert session.get(File, "file-2") is not None, "the job's worker still reads it"
        job.state = State.succeeded.value
        session.flush()
        assert files.remove_expired(session) == 1
        assert noted(session) == ["files/file-2", "files/file-3", f"private/{job.id}"]
        assert files.remove_expired(session) == 0
        assert files.get(session, PROJECT, "file-4").id == "file-4"


def test_the_sweep_leaves_a_file_that_a_job_is_being_made_of(stocked: Database) -> None:
    with stocked.transaction() as session:
        session.get_one(File, FILE).expires_at = datetime.now(UTC) - timedelta(days=1)
    with stocked.transaction() as creator:  # held just before its time was over
        creator.connection().exec_driver_sql("SELECT 1 FROM files FOR KEY SHARE")
        with stocked.transaction() as sweeper:
            sweeper.connection().exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            assert files.remove_expired(sweeper) == 0

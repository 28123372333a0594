from __future__ import annotations

import pytest

from control_plane import files, jobs
from control_plane.database import Database
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import State
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
        assert noted(session) == ["files/file-2"]
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

"""The result file and the commit that attaches it: without an answer, and too late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from control_plane import jobs
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.storage import file_key, open_storage
from control_plane.tables import Job
from dpo_core.run_directory import RunDirectory
from tests.control_plane.rows import PROJECT, add_all, started
from worker.result_file import ResultFile


def test_it_stays_when_the_answer_to_its_commit_was_lost(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.transaction() as session:
        add_all(session)
    claim = started(database)
    storage = open_storage(tmp_path.as_uri())
    whole = database.transaction

    @contextmanager
    def unanswered() -> Iterator[Session]:
        with whole() as session:
            yield session
            attached = session.get_one(Job, claim.job_id).result_file_id is not None
        if attached:
            raise OperationalError("COMMIT", None, ConnectionError("the server closed the connection"))

    monkeypatch.setattr(database, "transaction", unanswered)
    with pytest.raises(OperationalError):
        ResultFile(database, storage, claim, RunDirectory(tmp_path / "run")).store()
    with whole() as session:
        file_id = session.get_one(Job, claim.job_id).result_file_id
    assert file_id is not None
    assert storage.exists(file_key(file_id))


def test_one_that_comes_too_late_leaves_no_bytes(database: Database, tmp_path: Path) -> None:
    with database.transaction() as session:
        add_all(session)
    claim = started(database)
    storage = open_storage(tmp_path.as_uri())
    with database.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)
    with pytest.raises(StaleFence):
        ResultFile(database, storage, claim, RunDirectory(tmp_path / "run")).store()
    assert list(storage.keys("files")) == []

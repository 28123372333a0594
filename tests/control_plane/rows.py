"""Rows that tests start from: a project, its file, a base model, and jobs in any state."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from control_plane import jobs, leases
from control_plane.database import Database
from control_plane.job_requests import read_request
from control_plane.job_states import State
from control_plane.leases import Claim
from control_plane.tables import File, Job, Model, Project, Removal

PROJECT = "proj-1"
FILE = "file-1"
MODEL = "base/tiny"


def add_project(session: Session, project_id: str = PROJECT, name: str = "default") -> None:
    session.add(Project(id=project_id, name=name))
    session.flush()


def add_file(session: Session, file_id: str = FILE, *, project_id: str = PROJECT, **changes: Any) -> None:
    row = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "status": "processed"} | changes
    session.add(File(id=file_id, project_id=project_id, storage_key=f"files/{file_id}", **row))
    session.flush()


def add_model(session: Session, model_id: str = MODEL, **changes: Any) -> None:
    row = {"kind": "base", "form": "full", "path": "/models/tiny", "facts": {"layers": 2}} | changes
    session.add(Model(id=model_id, **row))
    session.flush()


def add_all(session: Session) -> None:
    add_project(session)
    add_file(session)
    add_model(session)


def body(**changes: Any) -> dict[str, Any]:
    """A create request that is in order."""
    return {"model": MODEL, "training_file": FILE, "method": {"type": "dpo"}} | changes


def create(session: Session, **changes: Any) -> Job:
    return jobs.create(session, PROJECT, read_request(body(**changes)))


def job_in(session: Session, state: State, **changes: Any) -> Job:
    """A job put straight into `state`, without the moves that lead there."""
    job = create(session, **changes)
    job.state = state.value
    session.flush()
    return job


def claim_one(database: Database, *, worker_id: str = "w1", free: int = 8, total: int = 8) -> Claim:
    with database.transaction() as session:
        claim = leases.claim(session, worker_id=worker_id, free=free, total=total, lease_seconds=30)
    assert claim is not None
    return claim


def started(database: Database, **changes: Any) -> Claim:
    """A claim on a new job that trains."""
    with database.transaction() as session:
        job_in(session, State.queued, **changes)
    return claim_one(database)


def read_job(database: Database, job_id: str) -> Job:
    with database.transaction() as session:
        return session.get_one(Job, job_id)


def event_codes(database: Database, job_id: str) -> list[str]:
    """Codes of the job's events, oldest first."""
    with database.transaction() as session:
        page = jobs.list_events(session, PROJECT, job_id, limit=100)
        return [event.code for event in reversed(page.items)]


def noted(session: Session) -> list[str]:
    """What is to be removed from storage."""
    return list(session.scalars(select(Removal.prefix).order_by(Removal.prefix)))


def set_clock_ahead(session: Session, seconds: float) -> None:
    """Replaces PostgreSQL's clock of this database by one that is `seconds` ahead."""
    session.execute(
        text(
            "CREATE OR REPLACE FUNCTION dpo_now() RETURNS timestamptz LANGUAGE sql VOLATILE "
            f"AS 'SELECT clock_timestamp() + interval ''{float(seconds)} seconds'''"
        )
    )

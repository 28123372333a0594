"""The end of a project: all of its rows, and all of its bytes."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from control_plane import audit, jobs, projects, removals
from control_plane.job_states import FINAL
from control_plane.storage import job_prefixes, project_prefixes, upload_prefix
from control_plane.tables import AuditEntry, Base, File, Job, Project, Upload


def delete_project(session: Session, name: str) -> Project:
    """Cancels the project's jobs and removes every row that belongs to it; only its audit log stays.

    Notes the removal of all its bytes, which the next worker, or whoever has the storage, carries out after the commit.
    Raises NotFound.
    """
    project = projects.named(session, name)
    _cancel_jobs(session, project.id)  # in the order of what workers report: a job, then its project
    session.get_one(Project, project.id, with_for_update=True)
    _cancel_jobs(session, project.id)  # those that were made meanwhile; from here on nobody makes any
    for prefix in (*_stored_of(session, project.id), *project_prefixes(project.id)):
        removals.note(session, prefix)
    audit.record(session, project.id, "project.deleted", project.id)
    session.flush()
    for table in reversed(Base.metadata.sorted_tables):
        if "project_id" in table.columns and table is not AuditEntry.__table__:
            session.execute(delete(table).where(table.c.project_id == project.id))
    session.execute(delete(Project).where(Project.id == project.id))
    return project


def _cancel_jobs(session: Session, project_id: str) -> None:
    unfinished = select(Job.id).where(Job.project_id == project_id, Job.state.not_in(FINAL)).order_by(Job.id)
    for job_id in session.scalars(unfinished).all():
        jobs.cancel(session, project_id, job_id)
    session.flush()


def _stored_of(session: Session, project_id: str) -> Iterator[str]:
    """Where bytes lie of its files and its jobs."""
    yield from session.scalars(select(File.storage_key).where(File.project_id == project_id))
    for upload_id in session.scalars(select(Upload.id).where(Upload.project_id == project_id)):
        yield upload_prefix(upload_id)
    for job_id in session.scalars(select(Job.id).where(Job.project_id == project_id)):
        yield from job_prefixes(job_id)

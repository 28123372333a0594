"""Uploaded files: rows beside bytes in storage. A file exists once its upload is complete, never before."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from control_plane import checks, removals, token_cache
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import FINAL
from control_plane.pages import Page, paginate
from control_plane.tables import File, Job

PURPOSES = ("fine-tune",)
MAX_LIMIT = 10_000
"""Files a page; OpenAI's own bound and default."""


def require_purpose(purpose: str) -> None:
    """Raises InvalidRequest for a purpose that nothing here would use."""
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"purpose {purpose!r} is not supported: this service trains models, so a file's purpose is 'fine-tune'.",
            param="purpose",
        )


def add(
    session: Session,
    project_id: str,
    *,
    filename: str,
    purpose: str,
    bytes: int,
    sha256: str,
    storage_key: str,
    file_id: str,
) -> File:
    """Records a file whose bytes are in storage already."""
    require_purpose(purpose)
    file = File(
        id=file_id,
        project_id=project_id,
        filename=filename,
        purpose=purpose,
        bytes=bytes,
        sha256=sha256,
        storage_key=storage_key,
        status="processed",
    )
    session.add(file)
    session.flush()
    return file


def get(session: Session, project_id: str, file_id: str) -> File:
    """The project's file. Raises NotFound."""
    return _one(session, _owned(project_id, file_id), file_id)


def hold(session: Session, project_id: str, file_id: str) -> File:
    """As `get`; nobody can delete the file before this transaction ends."""
    return _one(session, _owned(project_id, file_id).with_for_update(read=True, key_share=True), file_id)


def list_files(
    session: Session,
    project_id: str,
    *,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = MAX_LIMIT,
    order: Literal["asc", "desc"] = "desc",
) -> Page[File]:
    """A page of the project's files by age. Raises InvalidRequest for a limit or an `after` that can't be."""
    query = select(File).where(File.project_id == project_id)
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    return paginate(
        session,
        query,
        item_id=File.id,
        order=(File.created_at, File.id),
        after=after,
        limit=limit,
        newest_first=order == "desc",
        max_limit=MAX_LIMIT,
    )


def delete(session: Session, project_id: str, file_id: str) -> None:
    """Removes the row with what is known of it, and notes the removal of its bytes, which the caller carries out
    after the commit.

    Raises NotFound, and Conflict while an unfinished job uses the file.
    """
    file = _one(session, _owned(project_id, file_id).with_for_update(), file_id)
    job_id = session.scalar(
        select(Job.id)
        .where(
            Job.project_id == project_id,
            Job.state.not_in(FINAL),
            or_(
                Job.training_file_id == file_id,
                Job.training_files.contains([{"id": file_id}]),
                Job.validation_file_id == file_id,
            ),
        )
        .limit(1)
    )
    if job_id is not None:
        raise Conflict(
            f"The file {file_id!r} is in use by the unfinished job {job_id!r}; cancel that job, or wait for its end.",
            code="file_in_use",
        )
    checks.forget(session, file_id)
    token_cache.forget_file(session, project_id, file_id)
    session.delete(file)
    removals.note(session, file.storage_key)


def _owned(project_id: str, file_id: str) -> Select[File]:
    return select(File).where(File.project_id == project_id, File.id == file_id)


def _one(session: Session, query: Select[File], file_id: str) -> File:
    file = session.scalars(query).one_or_none()
    if file is None:
        raise NotFound(
            f"There is no file {file_id!r} in this project. A file appears once its upload is complete; "
            "GET /v1/files lists them.",
            param="file_id",
        )
    return file

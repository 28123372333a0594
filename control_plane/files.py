"""Uploaded files: rows beside bytes in storage. A file exists once its upload is complete, never before."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Select, func, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from control_plane import audit, checks, quotas, reference_cache, removals, token_cache
from control_plane.database import dpo_now
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import FINAL, State
from control_plane.pages import Page, paginate
from control_plane.questions import about_file
from control_plane.quotas import Limits
from control_plane.repetition import Repeatable, find_earlier, remember
from control_plane.storage import file_key
from control_plane.tables import File, Job, Json
from dpo_core.spec import StrictModel

PURPOSES = ("fine-tune",)
MAX_LIMIT = 10_000
"""Files a page; OpenAI's own bound and default."""

SWEPT_AT_ONCE = 100
"""Expired files that one transaction removes."""

UNFINISHED = frozenset(State) - FINAL


class ExpiresAfter(StrictModel):
    """When a file goes by itself, as OpenAI has it."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]
    """An hour to 30 days after it was made."""


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
    expires_after: ExpiresAfter | None = None,
    limits: Limits = quotas.NONE,
) -> File:
    """Records a file whose bytes are in storage already. Raises QuotaExceeded where they are too many."""
    require_purpose(purpose)
    quotas.require_bytes(session, project_id, bytes, limits)
    now = session.scalars(select(dpo_now())).one()
    file = File(
        created_at=now,
        expires_at=None if expires_after is None else now + timedelta(seconds=expires_after.seconds),
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
    audit.record(session, project_id, "file.created", file_id)
    session.flush()
    return file


@dataclass(frozen=True)
class NewFile:
    """What an upload says of a file, and what was counted of it."""

    filename: str
    purpose: str
    bytes: int
    sha256: str
    expires_after: ExpiresAfter | None = None


def create(
    session: Session, project_id: str, file_id: str, new: NewFile, *, repeatable: Repeatable, limits: Limits
) -> File:
    """The file `file_id`, whose bytes are in storage already and which is then checked; or the one that this same
    request made before, and then those bytes are nobody's. Raises QuotaExceeded as `add`."""
    body: Json = {"file": asdict(new) | {"expires_after": new.expires_after and new.expires_after.model_dump()}}
    earlier = find_earlier(session, project_id, body, repeatable)
    if earlier is not None:
        return session.get_one(File, earlier)
    key = file_key(file_id)
    file = add(session, project_id, **vars(new), storage_key=key, file_id=file_id, limits=limits)
    checks.ask(session, project_id, about_file(file))
    remember(session, project_id, body, repeatable, file)
    return file


def get(session: Session, project_id: str, file_id: str) -> File:
    """The project's file. Raises NotFound."""
    return _one(session, _owned(project_id, file_id), file_id)


def find(session: Session, project_id: str, file_id: str) -> File | None:
    """As `get`; None where there is none."""
    return session.scalars(_owned(project_id, file_id)).one_or_none()


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
    query = select(File).where(File.project_id == project_id, _not_expired())
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
    """Removes the row with all that was made of it but models and their measurements, and notes the removal of the
    bytes, which the caller carries out after the commit.

    Raises NotFound, and Conflict while an unfinished job uses the file.
    """
    file = _one(session, _owned(project_id, file_id).with_for_update(), file_id)
    job_id = _user_of(session, file)
    if job_id is not None:
        raise Conflict(
            f"The file {file_id!r} is in use by the unfinished job {job_id!r}; cancel that job, or wait for its end.",
            code="file_in_use",
        )
    _remove(session, file)
    audit.record(session, project_id, "file.deleted", file_id)


def remove_expired(session: Session) -> int:
    """As `delete`, for files whose time is over; one that an unfinished job uses waits for that job's end.

    Returns how many went; those that somebody else has locked are left to the next time.
    """
    used = select(Job.id).where(Job.state.in_(UNFINISHED), _uses(File.id)).exists()
    query = select(File).where(File.expires_at <= dpo_now(), ~used).order_by(File.expires_at).limit(SWEPT_AT_ONCE)
    removed = 0
    for file in session.scalars(query.with_for_update(skip_locked=True)):
        if _user_of(session, file) is None:  # asked again under the lock: a job may have come between
            _remove(session, file)
            audit.record(session, file.project_id, "file.expired", file.id)
            removed += 1
    return removed


def _remove(session: Session, file: File) -> None:
    checks.forget(session, file.id)
    token_cache.forget_file(session, file.project_id, file.id)
    for job in session.scalars(select(Job).where(Job.project_id == file.project_id, _uses(literal(file.id)))):
        reference_cache.forget_job(session, job)
        removals.note_private(session, job)
    session.delete(file)
    removals.note(session, file.storage_key)


def _user_of(session: Session, file: File) -> str | None:
    """An unfinished job that uses the file."""
    unfinished = select(Job.id).where(Job.state.in_(UNFINISHED), _uses(literal(file.id)))
    return session.scalar(unfinished.limit(1))


def _uses(file_id: ColumnElement[str] | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    listed = func.jsonb_build_array(func.jsonb_build_object("id", file_id))
    return or_(Job.training_file_id == file_id, Job.training_files.contains(listed), Job.validation_file_id == file_id)


def _not_expired() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > dpo_now())


def _owned(project_id: str, file_id: str) -> Select[File]:
    return select(File).where(File.project_id == project_id, File.id == file_id, _not_expired())


def _one(session: Session, query: Select[File], file_id: str) -> File:
    file = session.scalars(query).one_or_none()
    if file is None:
        raise NotFound(
            f"There is no file {file_id!r} in this project. A file appears once its upload is complete; "
            "GET /v1/files lists them.",
            param="file_id",
        )
    return file

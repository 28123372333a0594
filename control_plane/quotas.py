"""What a project may have at most: bytes, waiting jobs, GPUs at once. The settings' unless the project has its own."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import CTE, BigInteger, ColumnElement, and_, cast, func, select
from sqlalchemy.orm import Session

from control_plane.errors import QuotaExceeded
from control_plane.job_states import State
from control_plane.settings import Settings
from control_plane.tables import Check, File, Job, Model, Project, UploadPart

ON_GPUS = (State.running, State.pausing)
WAITING = (State.validating, State.queued, State.paused)
UNANSWERED = ("waiting", "running")
"""States of a check."""
Number = int | ColumnElement[int]
"""One that is known, or SQL for it."""


@dataclass(frozen=True)
class Limits:
    """None is no limit."""

    bytes: int | None = None
    waiting_jobs: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class Usage:
    bytes: int
    """Uploaded files, parts of uploads, weights of checkpoints and those that are being merged. Caches and states to
    resume from have other bounds."""
    waiting_jobs: int
    gpus: int


NONE = Limits()


def default_limits(settings: Settings) -> Limits:
    return Limits(settings.project_bytes, settings.project_waiting_jobs, settings.project_gpus)


def usage(session: Session, project_id: str) -> Usage:
    count = select(func.count()).where(Job.project_id == project_id, Job.state.in_(WAITING))
    return Usage(_bytes(session, project_id), session.scalar(count) or 0, gpus_held(session, project_id))


@dataclass(frozen=True)
class Room:
    """What a project may still store."""

    project: str
    limit: int
    used: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)

    def refusal(self, more: int | None = None) -> QuotaExceeded:
        """Of `more` bytes; None where all that is known of them is that they are too many."""
        adds = f"this would add {more:,}" if more is not None else f"this is more than the {self.left:,} that are left"
        return QuotaExceeded(
            f"The project {self.project!r} may store {self.limit:,} bytes and stores {self.used:,}; {adds}. "
            "Its uploaded files and the weights of its checkpoints count: delete some (DELETE /v1/files/{id}, "
            "DELETE /v1/models/{id}), or ask the operator to raise the limit.",
            code="quota_bytes",
        )


def room(session: Session, project_id: str, defaults: Limits) -> Room | None:
    """As it is now; None where there is no limit. Only `require_bytes` keeps others from taking it."""
    return _room(session, session.get_one(Project, project_id), defaults)


def require_bytes(session: Session, project_id: str, more: int, defaults: Limits) -> None:
    """Raises QuotaExceeded where `more` bytes would be too many. Until the transaction ends nobody else adds any."""
    found = _room(session, _locked(session, project_id), defaults)
    if found is not None and more > found.left:
        raise found.refusal(more)


def require_places(session: Session, project_id: str, more: int, gpus: int, defaults: Limits) -> None:
    """Raises QuotaExceeded where `more` jobs may not wait, or none may ever have `gpus` GPUs. Locks as above."""
    if (defaults.gpus, defaults.waiting_jobs) == (None, None):
        project = session.get_one(Project, project_id)
        if (project.max_gpus, project.max_waiting_jobs) == (None, None):
            return  # nothing to count, so that creations need not wait for one another
    project = _locked(session, project_id)
    most_gpus = gpu_limit(project, defaults.gpus)
    if most_gpus is not None and gpus > most_gpus:
        raise QuotaExceeded(
            f"The project {project.name!r} may use {most_gpus} GPUs at once, and this asks for {gpus}. Ask for fewer "
            "(`resources.gpus`), or ask the operator to raise the limit.",
            param="resources.gpus",
            code="quota_gpus",
        )
    limit = defaults.waiting_jobs if project.max_waiting_jobs is None else project.max_waiting_jobs
    if limit is None:
        return
    waiting = usage(session, project_id).waiting_jobs
    if waiting + more > limit:
        raise QuotaExceeded(
            f"The project {project.name!r} may have {limit} jobs waiting and has {waiting}; this would add {more}. "
            "Jobs that are validated, queued or paused count: cancel some, wait until one starts, or ask the operator "
            "to raise the limit.",
            code="quota_waiting_jobs",
        )


def gpu_rooms(default: Number | None) -> CTE:
    """SQL: `project_id` and `room`, the GPUs that each project with a limit may still have beside those it uses now."""
    limit = func.coalesce(Project.max_gpus, default)
    used = (
        select(Job.project_id, func.sum(Job.gpus).label("gpus")).where(_on_gpus()).group_by(Job.project_id).subquery()
    )
    rooms = select(Project.id.label("project_id"), (limit - func.coalesce(used.c.gpus, 0)).label("room"))
    return rooms.outerjoin(used, used.c.project_id == Project.id).where(limit.is_not(None)).cte("rooms")


def take_gpus(session: Session, project_id: str, gpus: int, default: int | None) -> bool:
    """Whether a job, whose row is locked, may start: as in `gpu_rooms`, when no other claim of its project is at it."""
    limit = gpu_limit(_locked(session, project_id), default)
    return limit is None or gpus_held(session, project_id) + gpus <= limit


def gpu_limit(project: Project, default: int | None) -> int | None:
    """GPUs that the project may use at once."""
    return default if project.max_gpus is None else project.max_gpus


def gpus_held(session: Session, project_id: str) -> int:
    """GPUs that the project's jobs have now."""
    held = select(func.sum(Job.gpus)).where(Job.project_id == project_id, _on_gpus())
    return int(session.scalar(held) or 0)


def _room(session: Session, project: Project, defaults: Limits) -> Room | None:
    limit = defaults.bytes if project.max_bytes is None else project.max_bytes
    return None if limit is None else Room(project.name, limit, _bytes(session, project.id))


def _on_gpus() -> ColumnElement[bool]:
    """SQL: the job uses its GPUs. Who has them has a lease, by which an index finds those few."""
    return and_(Job.lease_until.is_not(None), Job.state.in_(ON_GPUS))


def _locked(session: Session, project_id: str) -> Project:
    return session.get_one(Project, project_id, with_for_update={"key_share": True}, populate_existing=True)


def _bytes(session: Session, project_id: str) -> int:
    files = select(func.coalesce(func.sum(File.bytes), 0)).where(File.project_id == project_id)
    parts = select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(UploadPart.project_id == project_id)
    # Several names may stand for the same bytes.
    mine = (Model.project_id == project_id) & Model.deleted_at.is_(None)
    prefixes = select(Model.storage_prefix, func.max(Model.bytes).label("bytes")).where(mine)
    weights = select(func.coalesce(func.sum(prefixes.group_by(Model.storage_prefix).subquery().c.bytes), 0))
    being_merged = (Check.project_id == project_id) & (Check.kind == "merge") & Check.state.in_(UNANSWERED)
    ordered = select(func.coalesce(func.sum(cast(Check.question["bytes"].astext, BigInteger)), 0)).where(being_merged)
    return sum(int(session.scalar(kind) or 0) for kind in (files, parts, weights, ordered))

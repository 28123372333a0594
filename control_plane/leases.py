"""Who works on which job: claims, by the rules of control_plane/fences.py, and the rescue of jobs that were lost.

Whoever reports on a job later (control_plane/results.py) names the fence of its claim.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    Interval,
    Select,
    Text,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session

from control_plane import attempts, fences, line, quotas
from control_plane.database import dpo_now
from control_plane.ids import new_id
from control_plane.job_states import State
from control_plane.line import Kind
from control_plane.tables import Attempt, Event, Job

RECONCILER_LOCK = 0x64706F02
"""Advisory lock: one reconciler at a time, in any worker."""
# As `events.add` writes it.
STARTED = {"level": "info", "type": "message", "code": "job_started", "message": "Fine-tuning job started."}


@dataclass(frozen=True)
class Claim:
    """One attempt's right to work on a job, for as long as the lease is renewed."""

    job_id: str
    project_id: str
    fence: int
    kind: Kind
    gpus: int
    """GPUs (or CPU slots) that the work needs; 0 for validation."""
    lease_seconds: float


def claim(
    session: Session,
    *,
    worker_id: str,
    free: int,
    total: int,
    lease_seconds: float,
    kinds: Collection[Kind] = ("validate", "train"),
    project_gpus: int | None = None,
    max_attempts: int | None = None,
) -> Claim | None:
    """Takes the first work in the line (control_plane/line.py) that fits, or None. `free` and `total`: the worker's
    slots; `kinds`: what it has room for; `project_gpus`: what a project may use at once that has no limit of its own;
    `max_attempts`: as for `reconcile`, so that no worker has two jobs with one attempt left.

    One compare-and-set: rows that another worker is claiming are skipped, never waited for.
    """
    found = line.next_job(
        session,
        worker_id=worker_id,
        free=free,
        total=total,
        kinds=kinds,
        project_gpus=project_gpus,
        max_attempts=max_attempts,
    )
    if found is None:
        return None
    counts = found.needs and found.project_gpus is not None  # else claims need not wait for one another
    if counts and not quotas.take_gpus(session, found.project_id, found.needs, project_gpus):
        return None
    given = {"job_id": found.job_id, "by": worker_id, "lease": timedelta(seconds=lease_seconds)}
    fence = session.scalars(_taking(), given | {"event_id": new_id("ftevent")}).one()
    kind: Kind = "train" if found.needs else "validate"
    return Claim(found.job_id, found.project_id, fence, kind, found.needs, lease_seconds)


def renew(session: Session, claim: Claim) -> bool:
    """Another `lease_seconds` from now by PostgreSQL's clock; True when the job is to make a checkpoint and stop: it is
    to be paused, or yields to another one (control_plane/preemption.py).

    StaleFence when the job is no longer this claim's: that is how the order to cancel arrives.
    """
    fences.renew(session, Job, claim.job_id, claim.fence, claim.lease_seconds)
    return bool(session.scalar(_is_to_stop(), {"job_id": claim.job_id}))


@cache
def _is_to_stop() -> Select[bool]:
    """SQL, put together once: every heartbeat asks."""
    ordered = or_(Job.state == State.pausing, Job.yields_to.is_not(None))
    return select(ordered).where(Job.id == bindparam("job_id"))


def held(session: Session, claim: Claim) -> Job:
    """The job, locked, for a report on it. StaleFence when it is no longer this claim's."""
    return fences.held(session, Job, claim.job_id, claim.fence)


def reconcile(session: Session, *, max_attempts: int, retry_seconds: float = 0.0) -> list[str]:
    """Frees all work whose lease ran out, and returns the ids of jobs that wait again.

    A job that lost `max_attempts` attempts in a row without a new checkpoint fails instead; before that it waits
    ever longer, `retry_seconds` at first. Does nothing while another reconciler is at it.
    """
    if not session.scalar(select(func.pg_try_advisory_xact_lock(RECONCILER_LOCK))):
        return []
    waiting = []
    for job in fences.lapsed(session, Job):
        if _end_lost(session, job, fences.SILENT, max_attempts, retry_seconds):
            waiting.append(job.id)
    return waiting


def end_dead(session: Session, job_id: str, fence: int, *, max_attempts: int, retry_seconds: float = 0.0) -> bool:
    """Ends an attempt before its lease runs out, as `reconcile` would then; whether it had one.

    The caller knows that its worker died, or gave it up, and that no process of it runs any more.
    """
    job = fences.unreported(session, Job, job_id, fence)
    if job is not None:
        _end_lost(session, job, fences.DEAD, max_attempts, retry_seconds)
    return job is not None


def _end_lost(session: Session, job: Job, how: str, max_attempts: int, retry_seconds: float) -> bool:
    """True when the job waits for another attempt."""
    lost = fences.lost(job, how)
    return attempts.end_for_another(
        session, job, lost, outcome="lost", max_attempts=max_attempts, retry_seconds=retry_seconds
    )


def waiting(session: Session) -> bool:
    """Whether a worker could claim any job, room permitting. Not how many: every worker asks every few seconds."""
    return bool(session.scalar(_any_ready()))


@cache
def _any_ready() -> Select[bool]:
    """SQL, put together once."""
    return select(exists().where(line.ready()))


@cache
def _taking() -> Select[int]:
    """SQL, put together once: the job is the worker's under a new fence, and an attempt begins. If it is to be trained,
    it runs, and an event says so.

    That is `fences.take` and `job_states.move` in one statement: a claim waits for each, in a line of many.
    """
    trains = Job.state == State.queued
    taken = (
        update(Job)
        .where(Job.id == bindparam("job_id"), Job.needs.is_not(None))
        .values(
            fence=Job.fence + 1,
            worker_id=bindparam("by"),
            lease_until=dpo_now() + bindparam("lease", type_=Interval),
            not_before=None,
            state=case((trains, State.running), else_=Job.state),
            started_at=case((trains, func.coalesce(Job.started_at, dpo_now())), else_=Job.started_at),
        )
        .returning(Job.id, Job.fence, Job.project_id, Job.worker_id, Job.state)
        .cte("taken")
    )
    runs = taken.c.state == State.running
    attempt = select(
        taken.c.id.label("job_id"),
        taken.c.fence,
        taken.c.project_id,
        taken.c.worker_id,
        case((runs, "train"), else_="validate").label("kind"),
    )
    earlier = select(func.count()).where(Attempt.job_id == taken.c.id, Attempt.kind == "train").scalar_subquery()
    told = select(
        bindparam("event_id", type_=Text).label("id"),
        taken.c.project_id,
        taken.c.id.label("job_id"),
        *(literal(value).label(name) for name, value in STARTED.items()),
        func.jsonb_build_object("attempt", earlier + 1).label("data"),
    ).where(runs)
    inserts = (_inserted(Attempt, attempt), _inserted(Event, told))
    return select(taken.c.fence).add_cte(*inserts)


def _inserted(table: type[Attempt] | type[Event], rows: Select[Any]) -> CTE:
    return insert(table).from_select(list(rows.selected_columns.keys()), rows).cte(table.__tablename__ + "_written")

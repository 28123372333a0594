"""Who works on which job: claims, by the rules of control_plane/fences.py, and the rescue of jobs that were lost.

Whoever reports on a job later (control_plane/results.py) names the fence of its claim.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, Select, func, or_, select, true, tuple_
from sqlalchemy.orm import Session

from control_plane import attempts, fences, quotas
from control_plane.database import dpo_now
from control_plane.job_states import State, move
from control_plane.tables import Attempt, Job
from dpo_core.run_directory import Failure

Kind = Literal["validate", "train"]

PATIENCE = timedelta(minutes=2)
"""A job that waited longer than this keeps room free for itself: see `_not_behind_a_starving_job`."""

RECONCILER_LOCK = 0x64706F02
"""Advisory lock: one reconciler at a time, in any worker."""

ORDER = (-Job.priority, Job.created_at, Job.id)
"""The line in which jobs wait: priority, then age."""


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
) -> Claim | None:
    """Takes the next work that fits, or None. `free` and `total`: the worker's slots; `kinds`: what it has room for;
    `project_gpus`: what a project may use at once that has no limit of its own.

    One compare-and-set: rows that another worker is claiming are skipped, never waited for.
    """
    offers: list[ColumnElement[bool]] = []
    if "validate" in kinds:
        offers.append(_to_validate())
    if "train" in kinds:
        ready = _to_train() & quotas.gpus_left(project_gpus)
        offers.append(ready & (Job.gpus <= free) & _not_behind_a_starving_job(session, ready, free, total))
    if not offers:
        return None
    query = select(Job).where(or_(*offers)).order_by(*ORDER).limit(1)
    query = query.with_for_update(of=Job, skip_locked=True)
    job = session.scalars(query).one_or_none()
    if job is None or (job.state == State.queued and not quotas.take_gpus(session, job, project_gpus)):
        return None
    return _take(session, job, worker_id, lease_seconds)


def renew(session: Session, claim: Claim) -> bool:
    """Another `lease_seconds` from now by PostgreSQL's clock; True when the job is to be paused.

    StaleFence when the job is no longer this claim's: that is how the order to cancel arrives.
    """
    fences.renew(session, Job, claim.job_id, claim.fence, claim.lease_seconds)
    return session.scalar(select(Job.state).where(Job.id == claim.job_id)) == State.pausing


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
        lost = Failure(
            kind="infrastructure",
            code="worker_lost",
            message=f"Worker {job.worker_id} was not heard of any more.",
        )
        if attempts.end_for_another(
            session, job, lost, outcome="lost", max_attempts=max_attempts, retry_seconds=retry_seconds
        ):
            waiting.append(job.id)
    return waiting


def waiting(session: Session) -> int:
    """How many jobs a worker could claim, room permitting."""
    return session.scalar(select(func.count()).where(or_(_to_validate(), _to_train()))) or 0


def _to_validate() -> ColumnElement[bool]:
    return (Job.state == State.validating) & Job.lease_until.is_(None) & Job.waits_for.is_(None) & _rested()


def _to_train() -> ColumnElement[bool]:
    return (Job.state == State.queued) & Job.waits_for.is_(None) & _rested()


def _rested() -> ColumnElement[bool]:
    """Whether it need not wait after a lost attempt any more."""
    return or_(Job.not_before.is_(None), Job.not_before <= dpo_now())


def _not_behind_a_starving_job(
    session: Session, ready: ColumnElement[bool], free: int, total: int
) -> ColumnElement[bool]:
    """Large jobs don't starve: behind one that fits this worker's total and waited long, nothing is claimed.

    So the slots that come free stay free until it fits.
    """
    starving: Select[*tuple[int, object, str]] = (
        select(*ORDER)
        .where(ready, Job.gpus > free, Job.gpus <= total, Job.created_at < dpo_now() - PATIENCE)
        .order_by(*ORDER)
        .limit(1)
    )
    first = session.execute(starving).one_or_none()
    return tuple_(*ORDER) < tuple_(*first) if first is not None else true()


def _take(session: Session, job: Job, worker_id: str, lease_seconds: float) -> Claim:
    kind: Kind = "validate" if job.state == State.validating else "train"
    fences.take(session, job, worker_id, lease_seconds)
    job.not_before = None
    session.add(Attempt(job_id=job.id, fence=job.fence, project_id=job.project_id, worker_id=worker_id, kind=kind))
    session.flush()
    if kind == "train":
        session.refresh(job, ["training_attempts"])
        move(
            session,
            job,
            State.running,
            code="job_started",
            message="Fine-tuning job started.",
            data={"attempt": job.training_attempts},
        )
    return Claim(job.id, job.project_id, job.fence, kind, job.gpus if kind == "train" else 0, lease_seconds)

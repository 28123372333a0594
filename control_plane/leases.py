"""Who works on what: claims with a lease and a fence, and the rescue of work whose lease ran out.

A claim raises the job's fence and sets its lease by PostgreSQL's clock. Whoever reports later names
the fence (control_plane/results.py); a fence that is not the job's any more changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, Select, func, or_, select, true, tuple_, update
from sqlalchemy.orm import Session

from control_plane import attempts
from control_plane.database import dpo_now
from control_plane.errors import StaleFence
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
) -> Claim | None:
    """Takes the next work that fits, or None. `free` and `total`: the worker's slots; `kinds`: what it has room for.

    One compare-and-set: rows that another worker is claiming are skipped, never waited for.
    """
    offers: list[ColumnElement[bool]] = []
    if "validate" in kinds:
        offers.append(_to_validate())
    if "train" in kinds:
        offers.append(_to_train() & (Job.gpus <= free) & _not_behind_a_starving_job(session, free, total))
    if not offers:
        return None
    query = select(Job).where(or_(*offers)).order_by(*ORDER).limit(1).with_for_update(skip_locked=True)
    job = session.scalars(query).one_or_none()
    if job is None:
        return None
    return _take(session, job, worker_id, lease_seconds)


def renew(session: Session, claim: Claim) -> None:
    """Another `lease_seconds` from now by PostgreSQL's clock. StaleFence when the job is no longer this claim's."""
    renewed = session.execute(
        update(Job)
        .where(Job.id == claim.job_id, Job.fence == claim.fence, Job.lease_until.is_not(None))
        .values(lease_until=dpo_now() + timedelta(seconds=claim.lease_seconds))
        .returning(Job.id)
    )
    if renewed.one_or_none() is None:
        raise StaleFence(f"Job {claim.job_id} is not attempt {claim.fence}'s any more: stop its processes.")


def held(session: Session, claim: Claim) -> Job:
    """The job, locked, for a report on it. StaleFence when it is no longer this claim's."""
    query = select(Job).where(Job.id == claim.job_id).with_for_update().execution_options(populate_existing=True)
    job = session.scalars(query).one()
    if job.fence != claim.fence or job.lease_until is None:
        raise StaleFence(f"Job {job.id} is not attempt {claim.fence}'s any more; nothing of it is stored.")
    return job


def reconcile(session: Session, *, max_attempts: int) -> list[str]:
    """Frees all work whose lease ran out, and returns the ids of jobs that wait again.

    A job that lost `max_attempts` attempts in a row without a new checkpoint fails instead. Does
    nothing while another reconciler is at it.
    """
    if not session.scalar(select(func.pg_try_advisory_xact_lock(RECONCILER_LOCK))):
        return []
    lapsed = select(Job).where(Job.lease_until < dpo_now()).order_by(Job.id).with_for_update(skip_locked=True)
    waiting = []
    for job in session.scalars(lapsed).all():
        lost = Failure(
            kind="infrastructure",
            code="worker_lost",
            message=f"Worker {job.worker_id} was not heard of any more.",
        )
        if attempts.end_for_another(session, job, lost, outcome="lost", max_attempts=max_attempts):
            waiting.append(job.id)
    return waiting


def waiting(session: Session) -> int:
    """How many jobs a worker could claim, room permitting."""
    return session.scalar(select(func.count()).where(or_(_to_validate(), _to_train()))) or 0


def _to_validate() -> ColumnElement[bool]:
    return (Job.state == State.validating) & Job.lease_until.is_(None)


def _to_train() -> ColumnElement[bool]:
    return Job.state == State.queued


def _not_behind_a_starving_job(session: Session, free: int, total: int) -> ColumnElement[bool]:
    """Large jobs don't starve: behind one that fits this worker's total and waited long, nothing is claimed.

    So the slots that come free stay free until it fits.
    """
    starving: Select[*tuple[int, object, str]] = (
        select(*ORDER)
        .where(_to_train(), Job.gpus > free, Job.gpus <= total, Job.created_at < dpo_now() - PATIENCE)
        .order_by(*ORDER)
        .limit(1)
    )
    first = session.execute(starving).one_or_none()
    return tuple_(*ORDER) < tuple_(*first) if first is not None else true()


def _take(session: Session, job: Job, worker_id: str, lease_seconds: float) -> Claim:
    kind: Kind = "validate" if job.state == State.validating else "train"
    job.fence += 1
    job.worker_id = worker_id
    job.lease_until = session.scalar(select(dpo_now() + timedelta(seconds=lease_seconds)))
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

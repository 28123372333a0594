"""A job of high priority takes the room of jobs that are marked preemptible. docs/decisions/0041-preemption.md.

A worker that has no room for it, where no other one has either, tells as few of its preemptible jobs as needed to
yield. They hear of it with their next heartbeat, as of a pause: they make a checkpoint, stop, and wait in the line
again. What comes free is kept for the job meanwhile (control_plane/line.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from sqlalchemy import ColumnElement, Select, Subquery, Text, and_, bindparam, exists, select
from sqlalchemy.orm import Session

from control_plane import events, line, workers
from control_plane.job_requests import PRIORITIES
from control_plane.job_states import State
from control_plane.tables import Attempt, Job

HIGH = PRIORITIES["high"]
"""Only jobs of this priority, or a higher one, preempt."""


def make_room(
    session: Session,
    *,
    worker_id: str,
    free: int,
    total: int,
    project_gpus: int | None,
    max_attempts: int | None = None,
) -> list[str]:
    """Tells jobs of this worker to yield to the first one of high priority that waits for want of room; returns which.

    None where that can wait for another worker, where it would not be enough, and while others yield already.
    """
    mine = _preemptible(session, worker_id)
    if not mine:
        return []
    heads = line.first_ones(project_gpus, free + 1, total)
    takes = line.may_join(heads.c, worker_id, line.last_chance(max_attempts))
    urgent = _urgent(session, select(heads).where(takes).subquery())
    if urgent is None or workers.room(session, other_than=worker_id) >= urgent.gpus:
        return []
    chosen = _fewest(mine, urgent.gpus - free)
    if not chosen:
        return []
    for job in chosen:
        job.yields_to = urgent.id
        whom = f"job {urgent.id}" if urgent.project_id == job.project_id else "another project's job"
        message = f"The job makes a checkpoint and yields to {whom}, which has a higher priority."
        events.add(session, job, code="job_preempted", message=message)
    noun = "A preemptible job makes" if len(chosen) == 1 else f"{len(chosen)} preemptible jobs make"
    events.add(session, urgent, code="room_is_made", message=f"{noun} a checkpoint and then room for this job.")
    session.flush()
    return [job.id for job in chosen]


def _preemptible(session: Session, worker_id: str) -> Sequence[Job]:
    """This worker's jobs that may be told to yield, locked, the last begun first; none while some do so already."""
    given = {"worker": worker_id}
    if not session.scalar(_any_preemptible(), given) or session.scalar(_any_yields(), given):
        return []
    begun = select(Attempt.started_at).where(Attempt.job_id == Job.id, Attempt.fence == Job.fence).scalar_subquery()
    lowest_first = select(Job).where(_may_yield()).order_by(Job.priority, begun.desc(), Job.id)
    return session.scalars(lowest_first.with_for_update(skip_locked=True), given).all()


@cache
def _any_preemptible() -> Select[bool]:
    """SQL, put together once: a worker with jobs and room asks at every look, mostly in vain."""
    return select(exists().where(_may_yield()))


@cache
def _any_yields() -> Select[bool]:
    return select(exists().where(_runs_here(), Job.yields_to.is_not(None)))


def _may_yield() -> ColumnElement[bool]:
    return and_(_runs_here(), Job.preemptible, Job.priority < HIGH)


def _runs_here() -> ColumnElement[bool]:
    here = Job.worker_id == bindparam("worker", type_=Text)
    return and_(Job.lease_until.is_not(None), here, Job.state == State.running)


def _urgent(session: Session, heads: Subquery) -> Job | None:
    """The first job of high priority of those that this worker would take and lacks the room for, and to which nobody
    yields; locked. Another worker that looks for room for it at the same time leaves it to us.
    """
    waits = select(heads.c.id).where(heads.c.priority >= HIGH)
    oldest = session.scalar(waits.order_by(-heads.c.priority, heads.c.created_at, heads.c.id).limit(1))
    if oldest is None or session.scalar(select(exists().where(Job.lease_until.is_not(None), Job.yields_to == oldest))):
        return None
    query = select(Job).where(Job.id == oldest, Job.needs.is_not(None)).with_for_update(skip_locked=True)
    return session.scalars(query).one_or_none()


def _fewest(jobs: Sequence[Job], slots: int) -> list[Job]:
    """The first of `jobs` whose slots are enough, without those that are not needed for it; none if all are not."""
    chosen: list[Job] = []
    for job in jobs:
        if sum(one.gpus for one in chosen) >= slots:
            break
        chosen.append(job)
    spare = sum(job.gpus for job in chosen) - slots
    if spare < 0:
        return []
    for job in list(chosen):
        if job.gpus <= spare:
            chosen.remove(job)
            spare -= job.gpus
    return chosen

"""Jobs that a full disk stopped: they wait, for as long as it takes, until a worker has the room to go on."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Select, and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from control_plane import attempts, events
from control_plane.database import dpo_now
from control_plane.job_states import State, move
from control_plane.tables import Attempt, Checkpoint, Event, Job, Json
from dpo_core.footprint import in_bytes
from dpo_core.prepare_report import Disk
from dpo_core.run_directory import Failure, Manifest

ROOM_AGAIN = "room_again"
RETRY_AFTER, LONGEST = timedelta(seconds=15), timedelta(hours=4)
"""How long a job waits for more room than its estimate: at first, and at most. See `release`."""


def still_to_write(session: Session, job: Job) -> int:
    """Bytes that the job will have written at its peak beyond those that it has written; 0 before its data was read.

    At least one checkpoint: it may have to make room for itself, but it begins with a newer one.
    """
    if job.resolved is None or "disk" not in job.resolved:
        return 0
    disk = Disk.model_validate(job.resolved["disk"])
    written = 0
    for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)):
        files = Manifest.model_validate(checkpoint.manifest).files
        written += sum(file.bytes for file in files if checkpoint.state_kept or file.path.startswith("model/"))
    return max(disk.peak - written, disk.model + disk.state)


def wait(session: Session, job: Job, failure: Failure, needed: int) -> None:
    """Ends the attempt, which counts for nothing; the job goes on once a worker has `needed` bytes of room.

    The caller holds the job's row lock.
    """
    attempts.end(session, job, "stopped", failure)
    what = failure.message.rstrip(".")
    if job.state == State.pausing:
        message = f"{what}. {attempts.paused(session, job)}"
        move(session, job, State.paused, code=failure.code, message=message, level="warn")
        return
    job.needs_bytes = needed
    message = f"{what}. The job waits until a worker has {in_bytes(needed)} of room, and then goes on by itself."
    data: Json = {"needs_bytes": needed} | ({"log": failure.log} if failure.log else {})
    if job.state == State.validating:
        events.add(session, job, code=failure.code, message=message, level="warn", data=data)
    else:
        move(session, job, State.queued, code=failure.code, message=message, level="warn", data=data)


def release(session: Session, free: int) -> list[str]:
    """Lets those go on that a worker with `free` bytes has room for; returns their ids.

    That is who waits for no more than that. What a run needs that a full disk ended is a guess, though, and too high
    where room was made before its worker could look: after a while its job's own estimate is enough.
    """
    found = session.execute(_waiting(), {"free": free}).all()
    released = [
        job for job, waited in found if (job.needs_bytes or 0) <= free or _may_retry(session, job, waited, free)
    ]
    for job in released:
        message = f"There is room again: {in_bytes(free)}."
        events.add(session, job, code=ROOM_AGAIN, message=message, data={"needs_bytes": job.needs_bytes})
        job.needs_bytes = None
    session.flush()
    return [job.id for job in released]


@cache
def _waiting() -> Select[Job, timedelta]:
    """SQL, put together once: every worker asks in every round."""
    last = and_(Attempt.job_id == Job.id, Attempt.fence == Job.fence)
    since: Any = dpo_now() - Attempt.ended_at
    waiting = select(Job, since).join(Attempt, last)
    waiting = waiting.where(Job.needs_bytes.is_not(None), Job.state.in_((State.queued, State.validating)))
    waiting = waiting.where(or_(Job.needs_bytes <= bindparam("free", type_=BigInteger), since > RETRY_AFTER))
    return waiting.order_by(Job.id).with_for_update(skip_locked=True, of=Job)


def _may_retry(session: Session, job: Job, waited: timedelta, free: int) -> bool:
    """Whether it waited for long enough by now that its estimate decides; four times as long after each try."""
    tries = select(func.count()).where(Event.job_id == job.id, Event.code == ROOM_AGAIN)
    wait = min(LONGEST, RETRY_AFTER * attempts.GROWTH ** min(session.scalar(tries) or 0, 10))
    return waited > wait and still_to_write(session, job) <= free

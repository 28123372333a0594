"""Jobs that a full disk stopped: they wait, for as long as it takes, until a worker has the room to go on."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import attempts, events
from control_plane.job_states import State, move
from control_plane.tables import Checkpoint, Job, Json
from dpo_core.footprint import in_bytes
from dpo_core.prepare_report import Disk
from dpo_core.run_directory import Failure, Manifest


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
    """Lets those go on that wait for no more than `free` bytes, which a worker has; returns their ids."""
    waiting = select(Job).where(Job.needs_bytes <= free, Job.state.in_((State.queued, State.validating)))
    jobs = session.scalars(waiting.order_by(Job.id).with_for_update(skip_locked=True)).all()
    for job in jobs:
        message = f"There is room again: {in_bytes(free)}."
        events.add(session, job, code="room_again", message=message, data={"needs_bytes": job.needs_bytes})
        job.needs_bytes = None
    session.flush()
    return [job.id for job in jobs]

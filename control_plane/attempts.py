"""How an attempt at a job ends, and whether another one follows."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from control_plane import events, fences
from control_plane.database import dpo_now
from control_plane.job_states import State, move
from control_plane.tables import Attempt, Checkpoint, Job, Json
from dpo_core.run_directory import Failure

Outcome = Literal["succeeded", "stopped", "failed", "cancelled", "lost"]


def end(session: Session, job: Job, outcome: Outcome, failure: Failure | None = None) -> Attempt:
    """Closes the running attempt and takes the lease away. The caller holds the job's row lock."""
    attempt = session.get_one(Attempt, (job.id, job.fence))
    attempt.ended_at = session.scalar(dpo_now().select())
    attempt.outcome = outcome
    attempt.error = failure.model_dump() if failure else None
    fences.release(job)
    session.flush()
    return attempt


def end_for_another(
    session: Session, job: Job, failure: Failure, *, outcome: Literal["lost", "failed"], max_attempts: int
) -> bool:
    """Ends the attempt through nobody's fault; True when the job waits for another one.

    Attempts that published a new checkpoint don't count towards `max_attempts`.
    """
    attempt = end(session, job, outcome, failure)
    job.fruitless_attempts = 0 if attempt.made_progress else job.fruitless_attempts + 1
    if job.fruitless_attempts >= max_attempts:
        count = "1 attempt" if job.fruitless_attempts == 1 else f"{job.fruitless_attempts} attempts in a row"
        message = f"{count} ended without a new checkpoint; the last: {failure.message}"
        give_up(session, job, failure.model_copy(update={"message": message}))
        return False
    what = failure.message.rstrip(".")
    data: Json = {"log": failure.log} if failure.log else {}
    if job.state == State.pausing:
        message = f"{what}. {paused(session, job)}"
        move(session, job, State.paused, code=failure.code, message=message, level="warn", data=data)
        return False
    if job.state == State.validating:
        message = f"{what}; the files are checked again."
        events.add(session, job, code=failure.code, message=message, level="warn", data=data)
    else:
        message = f"{what}; the job {what_follows(session, job)}."
        move(session, job, State.queued, code=failure.code, message=message, level="warn", data=data)
    return True


def resumable(job: Job) -> Select[Checkpoint]:
    """The job's checkpoints that can be gone on from, newest first."""
    kept = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.state_kept)
    return kept.order_by(Checkpoint.step.desc())


def what_follows(session: Session, job: Job) -> str:
    """What the job does in its next attempt, such as `goes on from step 100`."""
    checkpoint = session.scalars(resumable(job).limit(1)).one_or_none()
    return (
        f"goes on from step {checkpoint.step}"
        if checkpoint is not None
        else "begins again, as it has no checkpoint yet"
    )


def paused(session: Session, job: Job) -> str:
    """The words for a job that is paused now."""
    return f"The job is paused. Resumed, it {what_follows(session, job)}."


def give_up(session: Session, job: Job, failure: Failure) -> None:
    """The job fails, and its `error` says why."""
    job.error = failure.model_dump()
    move(session, job, State.failed, code=failure.code, message=failure.message, level="error", data=job.error)

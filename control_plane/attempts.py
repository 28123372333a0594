"""How an attempt at a job ends, and whether another one follows, and when."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from typing import Literal

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from control_plane import events, fences, removals
from control_plane.database import dpo_now
from control_plane.job_states import State, move
from control_plane.tables import Attempt, Checkpoint, Job, Json
from dpo_core.run_directory import CHECKPOINT_UNREADABLE, Failure

Outcome = Literal["succeeded", "stopped", "failed", "cancelled", "lost"]

LONGEST_WAIT = 300.0
"""Seconds between two attempts, at most."""
GROWTH = 4
"""How much longer each wait is than the one before."""
NOT_BEGUN = "not_begun"
"""The code of an attempt, and of its event, that its worker could not even begin."""
UNBEGUN, UNBEGUN_TRIES = timedelta(hours=12), 20
"""For how long, and for how many tries at least, a job waits for a worker that can begin it."""


def end(session: Session, job: Job, outcome: Outcome, failure: Failure | None = None) -> Attempt:
    """Closes the running attempt and takes the lease away. The caller holds the job's row lock."""
    attempt = session.get_one(Attempt, (job.id, job.fence))
    attempt.ended_at = session.scalar(dpo_now().select())
    attempt.outcome = outcome
    attempt.error = failure.model_dump() if failure else None
    fences.release(job)
    job.yields_to = None
    session.flush()
    return attempt


def end_for_another(
    session: Session,
    job: Job,
    failure: Failure,
    *,
    outcome: Literal["lost", "failed"],
    max_attempts: int,
    retry_seconds: float = 0.0,
) -> bool:
    """Ends the attempt through nobody's fault; True when the job waits for another one.

    Attempts that published a new checkpoint don't count towards `max_attempts`, and the next one may follow at once.
    After others it may not before a while: `retry_seconds` at first, then ever longer.
    """
    attempt = end(session, job, outcome, failure)
    job.fruitless_attempts = 0 if attempt.made_progress else job.fruitless_attempts + 1
    if job.fruitless_attempts >= max_attempts:
        give_up(session, job, failure.model_copy(update={"message": _in_vain(session, job, failure)}))
        return False
    return _wait_again(session, job, failure, _back_off(retry_seconds, job.fruitless_attempts))


def end_unbegun(session: Session, job: Job, failure: Failure, *, retry_seconds: float) -> None:
    """Ends an attempt whose worker could not even begin it, such as where its storage is away.

    That tells of the worker and not of the job, so it doesn't count towards its attempts. The job waits ever longer,
    and fails when nobody could begin it for UNBEGUN: what it needs may be gone for good. Where that is the state to
    resume from, and there is one before it, the job goes on from there instead.
    """
    unreadable = failure.code == CHECKPOINT_UNREADABLE
    failure = failure.model_copy(update={"code": NOT_BEGUN})
    attempt = end(session, job, "failed", failure)
    mine, begun = Attempt.job_id == job.id, func.coalesce(Attempt.error["code"].astext, "") != NOT_BEGUN
    last_begun = session.scalar(select(func.max(Attempt.fence)).where(mine, begun)) or 0
    tries = select(func.count(), func.min(Attempt.started_at)).where(mine, Attempt.fence > last_begun)
    count, since = session.execute(tries).one()
    if count >= UNBEGUN_TRIES and attempt.ended_at is not None and attempt.ended_at - since > UNBEGUN:
        states = session.scalars(resumable(job).limit(2)).all() if unreadable else []
        if len(states) > 1:
            removals.note_state(session, states[0])
            attempt.error = failure.model_dump() | {"code": CHECKPOINT_UNREADABLE}  # the other one has its own UNBEGUN
            _wait_again(session, job, failure, 0.0)
            return
        message = (
            f"No worker could begin it in {count} tries since {since:%Y-%m-%d %H:%M} UTC; the last: {failure.message}"
        )
        give_up(session, job, failure.model_copy(update={"message": message}))
        return
    _wait_again(session, job, failure, _back_off(retry_seconds, count))


def _wait_again(session: Session, job: Job, failure: Failure, seconds: float) -> bool:
    """The job, whose attempt was ended, waits for another one, `seconds` at least; False where it is paused instead."""
    what = failure.message.rstrip(".")
    data: Json = {"kind": failure.kind} | ({"log": failure.log} if failure.log else {})
    if job.state == State.pausing:
        message = f"{what}. {paused(session, job)}"
        move(session, job, State.paused, code=failure.code, message=message, level="warn", data=data)
        return False
    job.not_before = session.scalar(select(dpo_now() + timedelta(seconds=seconds))) if seconds else None
    when = f", in {max(1, round(seconds))} s at the earliest" if seconds else ""
    if job.not_before is not None:
        data["not_before"] = int(job.not_before.timestamp())
    if job.state == State.validating:
        message = f"{what}; the files are checked again{when}."
        events.add(session, job, code=failure.code, message=message, level="warn", data=data)
    else:
        message = f"{what}; the job {what_follows(session, job)}{when}."
        move(session, job, State.queued, code=failure.code, message=message, level="warn", data=data)
    return True


def _back_off(retry_seconds: float, times: int) -> float:
    """Seconds to wait after so many attempts in vain: `retry_seconds` at first, then ever longer."""
    if not times:
        return 0.0
    wait: float = min(LONGEST_WAIT, retry_seconds * GROWTH ** min(times - 1, 10))
    return wait * random.uniform(0.5, 1.0)  # noqa: S311 - so that jobs that fell together don't rise together


def _in_vain(session: Session, job: Job, last: Failure) -> str:
    """What became of the attempts since the last new checkpoint."""
    count = job.fruitless_attempts
    if count == 1:
        return f"1 attempt ended without a new checkpoint; the last: {last.message}"
    ended = select(Attempt.error["code"].astext).where(
        Attempt.job_id == job.id,
        Attempt.outcome.in_(("lost", "failed")),
        Attempt.error["code"].astext.not_in((NOT_BEGUN, CHECKPOINT_UNREADABLE)),
    )
    codes = Counter(session.scalars(ended.order_by(Attempt.fence.desc()).limit(count)))
    how = ", ".join(f"{times} times {code}" if times > 1 else f"once {code}" for code, times in codes.items())
    message = f"{count} attempts in a row ended without a new checkpoint ({how}); the last: {last.message}"
    if set(codes) == {"worker_lost"}:
        message += " It may be the job that ends its workers: see what killed them (their memory, their logs)."
    return message


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

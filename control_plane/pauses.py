"""The owner's orders to pause a job and to let it go on.

An order that may be `repeated`, because the answer to the first one was lost, changes nothing where it was carried out.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from control_plane import attempts, audit, jobs
from control_plane.errors import Conflict
from control_plane.job_states import State, move
from control_plane.tables import Job

CANT_PAUSE = {
    State.validating: "its data is still being checked; pause it once it is queued or running",
    State.pausing: "it makes its checkpoint already, and is paused then",
    State.paused: "it is paused already; resume lets it go on",
    State.succeeded: "it is over",
    State.failed: "it is over",
    State.cancelled: "it is over",
}
CANT_RESUME = {
    State.validating: "it was not paused",
    State.queued: "it was not paused, and waits for a worker",
    State.running: "it was not paused, and runs",
    State.pausing: "it still makes its checkpoint; resume it once its `run.state` is paused",
    State.succeeded: "it is over; a new job can start from its model",
    State.failed: "it is over; a new job can start from one of its checkpoints",
    State.cancelled: "it is over; a new job can start from one of its checkpoints",
}


def pause(session: Session, project_id: str, job_id: str, *, repeated: bool = False) -> Job:
    """A queued job is paused at once; one that runs makes a checkpoint first. Conflict for any other.

    Its worker hears of the order at its next heartbeat, stops the processes and gives the GPUs back.
    """
    job = jobs.lock(session, project_id, job_id)
    state = State(job.state)
    if repeated and state in (State.pausing, State.paused):
        return job
    if state in CANT_PAUSE:
        raise Conflict(f"Job {job_id} is {state} and can't be paused: {CANT_PAUSE[state]}.", code="illegal_move")
    if state is State.running:
        message = "The job makes a checkpoint, then it is paused."
        move(session, job, State.pausing, code="job_pausing", message=message)
    else:
        move(session, job, State.paused, code="job_paused", message=attempts.paused(session, job))
    audit.record(session, project_id, "job.paused", job_id)
    session.refresh(job, ["waits_for"])
    return job


def resume(session: Session, project_id: str, job_id: str, *, repeated: bool = False) -> Job:
    """A paused job waits for a worker again. Conflict for any other. Send a hint after the commit."""
    job = jobs.lock(session, project_id, job_id)
    state = State(job.state)
    if repeated and state in (State.queued, State.running):
        return job
    if state in CANT_RESUME:
        raise Conflict(f"Job {job_id} is {state} and can't be resumed: {CANT_RESUME[state]}.", code="illegal_move")
    job.not_before = None
    message = f"The job was resumed: it {attempts.what_follows(session, job)}."
    move(session, job, State.queued, code="job_resumed", message=message)
    audit.record(session, project_id, "job.resumed", job_id)
    session.refresh(job, ["waits_for"])
    return job

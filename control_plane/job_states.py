"""The states of a job, the table of legal moves, and the function that moves. docs/job_states.md draws it."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import deliveries, events, removals
from control_plane.database import dpo_now
from control_plane.errors import Conflict
from control_plane.events import Level
from control_plane.tables import Checkpoint, Job, Json


class State(StrEnum):
    validating = "validating"
    queued = "queued"
    running = "running"
    pausing = "pausing"
    paused = "paused"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"


FINAL = frozenset({State.succeeded, State.failed, State.cancelled})

LEGAL_MOVES: dict[State, dict[State, str]] = {
    State.validating: {
        State.queued: "the job's data was read and measured, and its choices were resolved",
        State.failed: "the data or the spec is impossible, or too many workers were lost while reading it",
        State.cancelled: "the user's order",
    },
    State.queued: {
        State.running: "a worker claimed it",
        State.paused: "the user's order, before a worker had it",
        State.cancelled: "the user's order",
    },
    State.running: {
        State.queued: "the worker was lost, or drained, or the job was preempted; a later claim goes on",
        State.pausing: "the user's order: checkpoint, then stop",
        State.succeeded: "the last checkpoint is published",
        State.failed: "bad data or spec, too little memory, diverged, or too many attempts without progress",
        State.cancelled: "the user's order",
    },
    State.pausing: {
        State.paused: "the trainer stopped after its checkpoint, or its worker was lost",
        State.succeeded: "the last step was done before the order arrived",
        State.failed: "as from running",
        State.cancelled: "the user's order",
    },
    State.paused: {
        State.queued: "the user's order to go on",
        State.cancelled: "the user's order",
    },
    State.succeeded: {},
    State.failed: {},
    State.cancelled: {},
}
"""From, to, and why. What is not here is refused."""


def move(
    session: Session, job: Job, to: State, *, code: str, message: str, level: Level = "info", data: Json | None = None
) -> None:
    """Changes `job.state` and writes the event, in the caller's transaction; nothing else changes a state but a claim,
    which does both in a statement of its own (leases.py).

    A final state takes the states to resume from with it: they are several times the size of the models. The project's
    webhooks are told of it. The caller holds the job's row lock. Conflict when the move is not in LEGAL_MOVES.
    """
    origin = State(job.state)
    if to not in LEGAL_MOVES[origin]:
        raise Conflict(f"Job {job.id} is {origin}; it can't become {to}. {_ways_out(origin)}", code="illegal_move")
    job.state = to.value
    if to in FINAL:
        job.finished_at = session.scalar(dpo_now().select())
        for checkpoint in session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.state_kept)):
            removals.note_state(session, checkpoint)
    events.add(session, job, code=code, message=message, level=level, data=data)
    if to in FINAL:
        deliveries.announce(session, job)


def _ways_out(origin: State) -> str:
    moves = LEGAL_MOVES[origin]
    return f"From here it can become {', '.join(moves)}." if moves else "That is final."

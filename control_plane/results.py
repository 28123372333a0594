"""What a worker reports about a job it holds.

Every function takes the job's row lock and compares the claim's fence; StaleFence means that the job
is no longer this claim's (cancelled, lost, ended) and that nothing was changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from sqlalchemy import BigInteger, Table, Text, bindparam, column, func, select
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.orm import Session

from control_plane import attempts, events, leases, progress, removals, retention, room
from control_plane.database import dpo_now
from control_plane.errors import Conflict
from control_plane.job_states import State, move
from control_plane.leases import Claim
from control_plane.storable import storable
from control_plane.tables import Attempt, Checkpoint, File, Job, Json, Metric, Model
from dpo_core.prepare_report import MemoryReport
from dpo_core.run_directory import (
    CHECKPOINT_CORRUPT,
    CHECKPOINT_UNREADABLE,
    DISK_FULL,
    HOST_OUT_OF_MEMORY,
    OUT_OF_MEMORY,
    READER_KILLED,
    Event,
    Failure,
)
from dpo_core.spec import TrainingSpec
from dpo_core.takes_less import IN_GENERAL, takes_less


@dataclass(frozen=True)
class WorkOrder:
    """Everything a worker needs to launch an attempt. The rows are detached: plain data."""

    job: Job
    training_files: list[File]
    """By id, where there are several."""
    validation_file: File | None
    start: Model
    start_base: Model | None
    """The full model under `start`, when that is an adapter."""
    reference: Model | None
    """Only when `training.reference` names a model."""
    reference_base: Model | None
    checkpoint: Checkpoint | None
    """The last published one whose state to resume from is kept, to go on from."""
    still_to_write: int
    """Bytes: see control_plane/room.py."""


def work_order(session: Session, claim: Claim) -> WorkOrder:
    job = leases.held(session, claim)
    start = session.get_one(Model, job.model_id)
    named = job.training["reference"]
    reference = None if named in ("start", "none") else session.get_one(Model, named)
    return WorkOrder(
        job=job,
        training_files=[
            session.get_one(File, file["id"]) for file in job.training_files or [{"id": job.training_file_id}]
        ],
        validation_file=session.get_one(File, job.validation_file_id) if job.validation_file_id else None,
        start=start,
        start_base=_base(session, start),
        reference=reference,
        reference_base=_base(session, reference) if reference else None,
        checkpoint=session.scalars(attempts.resumable(job).limit(1)).one_or_none(),
        still_to_write=room.still_to_write(session, job) if claim.kind == "train" else 0,
    )


def record(
    session: Session,
    claim: Claim,
    *,
    metrics: Iterable[dict[str, Any]] = (),
    events: Iterable[tuple[dict[str, Any], int]] = (),
    step: int | None = None,
    total_steps: int | None = None,
) -> None:
    """Stores records of `metrics.jsonl` and `events.jsonl`, and how far the run is.

    Metrics may come again: a resumed attempt measures the steps behind its checkpoint once more, and
    the newer values replace the older ones. Events come with the place behind them in their file, and one that comes
    again is passed over: the answer to an earlier call may have been lost after its commit.
    """
    job = leases.held(session, claim)
    _store_metrics(session, job, metrics)
    if events := list(events):
        attempt = session.get_one(Attempt, (job.id, job.fence))
        for line, place in events:
            if place > attempt.events_relayed:
                _store_event(session, job, Event.model_validate(storable(line)))
                attempt.events_relayed = place
    if step is not None:
        progress.report(session, job, step, total_steps)


def finish_validation(session: Session, claim: Claim, prepared: Json) -> None:
    """The data is fit to train on; `prepared` holds the choices that were made."""
    job = leases.held(session, claim)
    attempts.end(session, job, "succeeded")
    job.resolved = storable(prepared)
    job.reference_group = prepared.get("reference_group")
    job.fruitless_attempts = 0
    move(session, job, State.queued, code="files_validated", message="Files validated, moving job to queued state.")


def succeed(session: Session, claim: Claim) -> None:
    """The run is done. Conflict when its final checkpoint was not published before."""
    job = leases.held(session, claim)
    final = session.get(Model, job.result_name)
    if final is None or final.step is None:
        raise Conflict(
            f"Job {job.id} can't succeed: its final checkpoint was not published.", code="no_final_checkpoint"
        )
    # The trainer's last word may not have been relayed.
    progress.report(session, job, final.step, final.step)
    attempts.end(session, job, "succeeded")
    move(session, job, State.succeeded, code="job_succeeded", message="The job has successfully completed.")
    retention.retire(session, job)  # now nothing is resumed from any of them


def hand_back(session: Session, claim: Claim) -> None:
    """The worker drains, or the job was told to stop: the next attempt goes on from the last checkpoint. Does not count
    as a fruitless attempt."""
    job = leases.held(session, claim)
    preempted = job.yields_to is not None
    attempts.end(session, job, "stopped")
    if job.state == State.validating:
        events.add(session, job, code="handed_back", message="The worker stops; another one checks the files.")
        return
    if job.state == State.pausing:
        move(session, job, State.paused, code="job_paused", message=attempts.paused(session, job))
        return
    why = "The job has made room" if preempted else "The worker stops"
    message = f"{why}; the job {attempts.what_follows(session, job)}."
    move(session, job, State.queued, code="handed_back", message=message)


def fail(
    session: Session,
    claim: Claim,
    failure: Failure,
    *,
    max_attempts: int,
    retry_seconds: float = 0.0,
    needs_bytes: int = 0,
    begun: bool = True,
) -> None:
    """The attempt failed. Through infrastructure: as a lost one, another follows. Otherwise the job fails.

    One whose worker never came to start a process, through trouble of its own, is not `begun`; nor, in effect, is one
    that could not read the state to resume from.

    Where the state to resume from was damaged, the next attempt goes on from the checkpoint before. Where the host's
    memory was used up, another follows, too: what else used it may be gone. Out of memory comes with what would fit.
    Where a disk was full the job waits until a worker has `needs_bytes` of room.
    """
    job = leases.held(session, claim)
    failure = Failure.model_validate(storable(failure.model_dump()))
    if failure.code == CHECKPOINT_CORRUPT:
        for checkpoint in session.scalars(attempts.resumable(job).limit(1)):
            removals.note_state(session, checkpoint)
    if failure.code == DISK_FULL:
        room.wait(session, job, failure, needs_bytes)
        return
    if failure.code in (OUT_OF_MEMORY, HOST_OUT_OF_MEMORY) and (advice := _takes_less(job)):
        failure = failure.model_copy(
            update={"message": f"{failure.message.removesuffix(IN_GENERAL).rstrip()} {advice}"}
        )
    if failure.code == CHECKPOINT_UNREADABLE or (failure.kind == "infrastructure" and not begun):
        attempts.end_unbegun(session, job, failure, retry_seconds=retry_seconds)
        return
    if failure.kind == "infrastructure" or failure.code in (HOST_OUT_OF_MEMORY, READER_KILLED):
        attempts.end_for_another(
            session, job, failure, outcome="failed", max_attempts=max_attempts, retry_seconds=retry_seconds
        )
        return
    attempts.end(session, job, "failed", failure)
    attempts.give_up(session, job, failure)


def _takes_less(job: Job) -> str | None:
    """By the plan that was made of the job when its data was read; a sentence, or None."""
    if job.resolved is None or "memory" not in job.resolved:
        return None
    memory = MemoryReport.model_validate(job.resolved["memory"])
    return takes_less(memory, TrainingSpec.model_validate(job.resolved["training"]))


def _base(session: Session, model: Model) -> Model | None:
    return session.get_one(Model, model.base_id) if model.base_id else None


def _store_event(session: Session, job: Job, event: Event) -> None:
    events.add(session, job, code=event.code, message=event.message, level=event.level, data=event.data)


def _store_metrics(session: Session, job: Job, metrics: Iterable[dict[str, Any]]) -> None:
    newest = {(line["split"], line["step"]): line["values"] for line in metrics}
    if not newest:
        return
    lines = [{"split": split, "step": step, "values": values} for (split, step), values in newest.items()]
    owner = {"of_job": job.id, "of_project": job.project_id, "by_fence": job.fence}
    session.execute(_newer_metrics(), {**owner, "lines": lines})


@cache
def _newer_metrics() -> Insert:
    """One statement for any number of lines, put together once: one with a row's values each would be compiled at each
    report."""
    given = func.jsonb_to_recordset(bindparam("lines", type_=JSONB))
    line = given.table_valued(column("split", Text), column("step", BigInteger), column("values", JSONB))
    rows = select(
        bindparam("of_job", type_=Text),
        bindparam("of_project", type_=Text),
        bindparam("by_fence", type_=BigInteger),
        *line.render_derived(name="line", with_types=True).c,
    )
    columns = ["job_id", "project_id", "fence", "split", "step", "values"]
    statement = insert(cast(Table, Metric.__table__)).from_select(columns, rows)
    newer = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[Metric.job_id, Metric.split, Metric.step],
        set_={"fence": newer.fence, "values": newer["values"], "created_at": dpo_now()},
    )

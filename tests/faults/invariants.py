"""What holds after every fault, read off the audit that the database keeps and off what lies on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from control_plane.job_states import FINAL
from control_plane.storage import file_key
from control_plane.tables import Attempt, Checkpoint, Event, File, Job, Metric, Model, Removal
from tests.faults.deployment import Deployment
from tests.service import poll_until, run_processes
from tests.stub_trainer import chain

SETTLE_SECONDS = 90.0
ENDS = {"job_succeeded": "succeeded", "job_cancelled": "cancelled"}


@dataclass
class Record:
    """All that the database says of one job."""

    job: Job
    attempts: list[Attempt] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    """Of its training metrics."""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    result: Model | None = None


def broken(deployment: Deployment, job_id: str, *, succeeds: bool = True, times: bool = True) -> list[str]:
    """What doesn't hold of a job that is over. `times`: whether the database's clock went on as clocks do."""
    record = deployment.ask(lambda session: _read(session, job_id))
    found = [*one_owner(record, times=times), *right_end(record, succeeds=succeeds)]
    if succeeds and record.job.state == "succeeded":
        found += [*measured_once(record, deployment.size.steps), *published_once(record)]
        found += _same_weights(deployment, record)
    return [f"{job_id}: {what}" for what in found]


def _read(session: Session, job_id: str) -> Record:
    job = session.get_one(Job, job_id)
    attempts = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence)
    events = select(Event).where(Event.job_id == job_id).order_by(Event.sequence)
    steps = select(Metric.step).where(Metric.job_id == job_id, Metric.split == "train").order_by(Metric.step)
    checkpoints = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
    return Record(
        job,
        list(session.scalars(attempts)),
        list(session.scalars(events)),
        list(session.scalars(steps)),
        list(session.scalars(checkpoints)),
        session.get(Model, job.result_name),
    )


def one_owner(record: Record, *, times: bool) -> Iterator[str]:
    """Each attempt ended before the next one began, and nothing runs on."""
    for attempt in record.attempts:
        if attempt.outcome is None or attempt.ended_at is None:
            yield f"attempt {attempt.fence} is over and has no end"
    for before, after in pairwise(record.attempts):
        if times and before.ended_at is not None and after.started_at < before.ended_at:
            yield f"attempt {after.fence} began before attempt {before.fence} ended"
    if record.job.lease_until is not None:
        yield "it is over and leased"
    started = sum(event.code == "job_started" for event in record.events)
    trained = sum(attempt.kind == "train" for attempt in record.attempts)
    if started != trained:
        yield f"{started} events tell of a start, for {trained} attempts to train"


def right_end(record: Record, *, succeeds: bool) -> Iterator[str]:
    wanted = "succeeded" if succeeds else "failed"
    if record.job.state != wanted:
        yield f"it is {record.job.state} instead of {wanted}: {record.job.error}"
    ends = [event.code for event in record.events if event.code in ENDS or event.level == "error"]
    if len(ends) != 1:
        yield f"its events tell of {len(ends)} ends: {ends}"


def measured_once(record: Record, steps: int) -> Iterator[str]:
    if record.steps != list(range(steps)):
        yield f"it measured steps {record.steps} of {steps}"


def published_once(record: Record) -> Iterator[str]:
    final = [event for event in record.events if event.code == "checkpoint_created" and event.data.get("final")]
    if len(final) != 1:
        yield f"its result was published {len(final)} times"
    told = [event.data["step"] for event in record.events if event.code == "checkpoint_created"]
    missing = {checkpoint.step for checkpoint in record.checkpoints} - set(told)
    if missing:
        yield f"no event tells of checkpoints {sorted(missing)}"
    if record.result is None or record.result.storage_prefix != record.checkpoints[-1].storage_prefix:
        yield "its result is not its last checkpoint"


def _same_weights(deployment: Deployment, record: Record) -> Iterator[str]:
    """As of a job under which nothing died, bit by bit."""
    assert record.result is not None
    if deployment.trainer == "stub":
        key = f"{record.result.storage_prefix}/model/model.safetensors"
        with deployment.storage.open(key) as file:
            if file.read().decode() != chain(deployment.size.steps, record.job.id):
                yield "other weights than those of an undisturbed job"
        return
    result = deployment.result(record.job.id)
    assert deployment.undisturbed is not None
    for name, value in result._asdict().items():
        if value != getattr(deployment.undisturbed, name):
            yield f"other {name} than those of an undisturbed job"


# -- of all jobs together -----------------------------------------------------------------------------------------


def unsettled(deployment: Deployment) -> list[str]:
    """What is left where nothing should be, once every job is over: processes, run directories, half-made objects,
    bytes that no row knows. The service has some time to clear away by itself."""
    found: list[str] = []

    def settled() -> bool:
        deployment.look_after_workers()
        found[:] = [*_waiting(deployment), *_left(deployment)]
        return not found

    try:
        poll_until(settled, "everything is cleared away", seconds=SETTLE_SECONDS, every=0.5)
    except AssertionError:
        return found
    return list(two_at_once(deployment.account))


def _waiting(deployment: Deployment) -> Iterator[str]:
    for job in deployment.ask(lambda session: session.scalars(select(Job).where(Job.state.not_in(FINAL))).all()):
        yield f"{job.id} is {job.state}"


def _left(deployment: Deployment) -> Iterator[str]:
    runs = deployment.service.runs
    yield from (f"the run directory {path} is left" for path in runs.glob("*/*"))
    if not any(runs.glob("*/*")):
        yield from (f"process {process.pid} is left: {process.name()}" for process in run_processes(runs))
    folder = deployment.storage.folder
    deployment.storage.remove_abandoned(seconds=1.0)  # as its workers do with what is a minute old
    yield from (f"{path} is left half-made" for path in (folder / ".unfinished").iterdir())
    known = deployment.ask(_known)
    # os.walk takes it that a folder is deleted under it.
    walks = (os.walk(folder / top) for top in ("checkpoints", "files", "private"))
    files = sorted(Path(place, name) for walk in walks for place, _, names in walk for name in names)
    for path in files:
        key = path.relative_to(folder).as_posix()
        if path.name != "log.txt" and not any(f"{key}/".startswith(f"{prefix}/") for prefix in known):
            yield f"no row knows of {key}"


def _known(session: Session) -> list[str]:
    """Prefixes and keys that rows and notes of removals tell of. What jobs share has its own tests."""
    states = select(Checkpoint).where(Checkpoint.state_kept)
    kept = [
        f"private/{checkpoint.job_id}/{checkpoint.fence}/step-{checkpoint.step}"
        for checkpoint in session.scalars(states)
    ]
    models = session.scalars(select(Model.storage_prefix).where(or_(Model.storage_prefix.is_not(None))))
    noted = session.scalars(select(Removal.prefix))
    files = map(file_key, session.scalars(select(File.id)))
    return [*(prefix for prefix in models if prefix), *kept, *noted, *files, "private/reference", "private/tokens"]


def two_at_once(account: Path) -> Iterator[str]:
    """The stub's ranks write down every step themselves: no two attempts of a job may have stepped at once."""
    if not account.exists():
        return
    lines = [line.split() for line in account.read_text().splitlines()]
    steps = sorted((job, int(fence), float(at), int(step)) for job, fence, step, at in lines)
    for job, of_job in groupby(steps, key=lambda line: line[0]):
        last = 0.0
        for fence, of_attempt in groupby(of_job, key=lambda line: line[1]):
            attempt = list(of_attempt)
            if attempt[0][2] < last:
                yield f"{job}: attempt {fence} trained before the one before it had stopped"
            if [step for *_, step in attempt] != list(range(attempt[0][3], attempt[0][3] + len(attempt))):
                yield f"{job}: attempt {fence} left a step out, or did one twice"
            last = attempt[-1][2]

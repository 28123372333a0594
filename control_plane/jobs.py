"""Jobs as their owners see them: create, read, cancel, and what they left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, or_, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from control_plane import attempts, audit, events, file_reports, files, models, quotas, workers
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.ids import new_id
from control_plane.job_requests import PRIORITIES, JobRequest, training_spec
from control_plane.job_states import FINAL, State, move
from control_plane.pages import Page, paginate
from control_plane.quotas import Limits
from control_plane.repetition import Repeatable, find_earlier, remember
from control_plane.result_names import result_name
from control_plane.tables import Checkpoint, Event, File, Job, Metric, Model, Project
from control_plane.workers import Largest
from dpo_core.spec import TrainingSpec


@dataclass(frozen=True)
class Inputs:
    """What a job is made of."""

    spec: TrainingSpec
    start: Model
    reference: Model | None
    """Only when `training.reference` names a model."""

    training_files: list[File]
    validation_file: File | None


@dataclass(frozen=True)
class SweepPlace:
    """Which job of a sweep one is."""

    sweep_id: str
    number: int
    """0 for the first."""


def create(
    session: Session,
    project_id: str,
    request: JobRequest,
    *,
    repeatable: Repeatable | None = None,
    limits: Limits = quotas.NONE,
) -> Job:
    """A new job, or the one that this same request made before. Send a hint after the commit.

    Checks all that can be known without reading the data. InvalidRequest says what is wrong, in which
    field, and what to do; QuotaExceeded what the project has too many of.
    """
    repeatable = repeatable or Repeatable()
    body = request.model_dump(mode="json", exclude_unset=True)
    earlier = find_earlier(session, project_id, body, repeatable)
    if earlier is not None:
        return session.get_one(Job, earlier)
    project = session.get_one(Project, project_id)  # held, so that the session has it wherever it is asked for
    quotas.require_places(session, project.id, 1, request.resources.gpus, limits)
    job = add(session, project.id, request)
    audit.record(session, project_id, "job.created", job.id)
    remember(session, project_id, body, repeatable, job)
    return job


def add(session: Session, project_id: str, request: JobRequest, place: SweepPlace | None = None) -> Job:
    """As `create`, without a look at earlier ones; in a sweep where there is a `place`."""
    inputs = inputs_of(session, project_id, request)
    job = _row(session.get_one(Project, project_id), request, inputs.spec, inputs.start)
    if place is not None:
        job.sweep_id, job.sweep_place = place.sweep_id, place.number
    largest = workers.largest(session)  # asked first, so that all events are one statement
    session.add(job)
    session.flush()
    # Nothing else is to be read back: the insertion returned what PostgreSQL chose.
    set_committed_value(job, "training_attempts", 0)
    if place is None:
        set_committed_value(job, "waits_for", None)
    else:
        session.refresh(job, ["waits_for"])
    events.add(session, job, code="job_created", message=f"Created fine-tuning job: {job.id}")
    message = f"Validating training file: {job.training_file_id}"
    events.add(session, job, code="validating_files", message=message)
    _warn_if_too_large(session, job, largest)
    _warn_of_integrations(session, job, request)
    return job


def inputs_of(session: Session, project_id: str, request: JobRequest) -> Inputs:
    """What the request names, held until the transaction ends. InvalidRequest where a job can't be made of it."""
    spec = training_spec(request)
    start = _model(session, project_id, request.model, "model")
    reference = None
    if spec.reference not in ("start", "none"):
        reference = _model(session, project_id, spec.reference, "training.reference")
        spec = spec.model_copy(update={"reference": reference.id})
    named, param = [request.training_file], "training_file"
    if request.training_files is not None:
        named, param = list(request.training_files), "training_files"
    training_files = [_file(session, project_id, file_id, spec, param) for file_id in named]
    validation_file = None
    if request.validation_file is not None:
        validation_file = _file(session, project_id, request.validation_file, spec, "validation_file")
    return Inputs(spec, start, reference, training_files, validation_file)


def get(session: Session, project_id: str, job_id: str) -> Job:
    """The project's job. NotFound."""
    job = session.scalars(select(Job).where(Job.project_id == project_id, Job.id == job_id)).one_or_none()
    return _found(job, job_id)


def keeps_logs(session: Session, job_id: str) -> bool:
    """Whether the job is there, in any project, with all its files: its logs go with any of them."""
    job = session.get(Job, job_id)
    if job is None:
        return False
    named = {job.training_file_id, job.validation_file_id, *(file["id"] for file in job.training_files or ())} - {None}
    return len(session.scalars(select(File.id).where(File.id.in_(named))).all()) == len(named)


def lock(session: Session, project_id: str, job_id: str) -> Job:
    """As `get`; nobody else moves the job before this transaction ends."""
    mine = select(Job).where(Job.project_id == project_id, Job.id == job_id)
    query = mine.with_for_update().execution_options(populate_existing=True)
    return _found(session.scalars(query).one_or_none(), job_id)


def list_jobs(
    session: Session,
    project_id: str,
    *,
    after: str | None = None,
    limit: int = 20,
    metadata: Mapping[str, str] | None = None,
    without_metadata: bool = False,
) -> Page[Job]:
    """The project's jobs, newest first; with `metadata`, those that carry all of its pairs, or those without any."""
    query = select(Job).where(Job.project_id == project_id)
    if without_metadata:
        query = query.where(or_(Job.user_metadata.is_(None), Job.user_metadata == JSON.NULL))
    if metadata:
        query = query.where(Job.user_metadata.contains(dict(metadata)))
    return paginate(session, query, item_id=Job.id, order=(Job.id,), after=after, limit=limit)


def cancel(session: Session, project_id: str, job_id: str, *, repeated: bool = False) -> Job:
    """Final at once: the fence rises, so whatever its worker still reports changes nothing. Conflict when it is over,
    but for a cancelled one where the order may be `repeated`.

    The worker learns it at its next heartbeat and stops the processes.
    """
    job = lock(session, project_id, job_id)
    if repeated and job.state == State.cancelled:
        return job
    if State(job.state) in FINAL:
        raise Conflict(f"Job {job_id} is over ({job.state}); there is nothing to cancel.", code="illegal_move")
    if job.lease_until is not None:
        attempts.end(session, job, "cancelled")
    job.fence += 1
    move(session, job, State.cancelled, code="job_cancelled", message="The job was cancelled.")
    audit.record(session, project_id, "job.cancelled", job_id)
    session.refresh(job, ["waits_for"])
    return job


def list_events(
    session: Session, project_id: str, job_id: str, *, after: str | None = None, limit: int = 20
) -> Page[Event]:
    """What happened to the job, newest first."""
    job = get(session, project_id, job_id)
    query = select(Event).where(Event.job_id == job.id)
    return paginate(session, query, item_id=Event.id, order=(Event.sequence,), after=after, limit=limit)


def list_checkpoints(
    session: Session, project_id: str, job_id: str, *, after: str | None = None, limit: int = 10
) -> Page[Checkpoint]:
    """The job's published checkpoints, latest step first."""
    job = get(session, project_id, job_id)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    return paginate(session, query, item_id=Checkpoint.id, order=(Checkpoint.step,), after=after, limit=limit)


def list_metrics(
    session: Session, project_id: str, job_id: str, *, split: str | None = None, after_step: int | None = None
) -> Sequence[Metric]:
    """The job's measurements by step; with `after_step`, only later ones."""
    job = get(session, project_id, job_id)
    query = select(Metric).where(Metric.job_id == job.id).order_by(Metric.step, Metric.split)
    if split is not None:
        query = query.where(Metric.split == split)
    if after_step is not None:
        query = query.where(Metric.step > after_step)
    return session.scalars(query).all()


def _found(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise NotFound(f"There is no job {job_id!r} in this project.", param="fine_tuning_job_id")
    return job


def _model(session: Session, project_id: str, model_id: str, param: str) -> Model:
    try:
        return models.hold(session, project_id, model_id)
    except NotFound as unknown:
        raise InvalidRequest(str(unknown), param=param, code="model_not_found") from None


def _file(session: Session, project_id: str, file_id: str, spec: TrainingSpec, param: str) -> File:
    try:
        file = files.hold(session, project_id, file_id)
    except NotFound:
        raise InvalidRequest(
            f"There is no file {file_id!r} in this project; upload it first.", param=param, code="file_not_found"
        ) from None
    if file.purpose != "fine-tune":
        raise InvalidRequest(
            f'The file {file_id!r} has the purpose {file.purpose!r}; upload it again with "fine-tune".',
            param=param,
            code="wrong_file_purpose",
        )
    if file.status != "processed":
        raise InvalidRequest(
            f"The file {file_id!r} can't be used. {file.status_details}", param=param, code=f"invalid_{param}"
        )
    file_reports.refuse_unusable(session, file, spec, param)
    return file


def _row(project: Project, request: JobRequest, spec: TrainingSpec, start: Model) -> Job:
    job_id = new_id("ftjob")
    return Job(
        id=job_id,
        project_id=project.id,
        state=State.validating.value,
        priority=PRIORITIES[request.priority],
        preemptible=request.preemptible,
        method=spec.method,
        model_id=start.id,
        training_file_id=request.training_file,
        training_files=request.weighed_files,
        validation_file_id=request.validation_file,
        gpus=request.resources.gpus,
        seed=spec.seed,
        suffix=request.suffix,
        user_metadata=request.metadata,
        request=request.model_dump(mode="json", exclude_unset=True),
        training=spec.model_dump(mode="json"),
        result_name=result_name(project.name, start.id, request.suffix, job_id),
    )


def _warn_of_integrations(session: Session, job: Job, request: JobRequest) -> None:
    if not request.integrations:
        return
    message = (
        "Nothing is sent to Weights & Biases: this service sends a job's numbers nowhere. Read them at "
        f"/v1/fine_tuning/jobs/{job.id}/metrics while it runs, and in its result file when it has succeeded."
    )
    events.add(session, job, code="integration_not_used", message=message, level="warn")


def _warn_if_too_large(session: Session, job: Job, largest: Largest) -> None:
    if job.gpus <= largest.alive:
        return
    now = f"the largest has {largest.alive}" if largest.alive else "there is none"
    message = f"No registered worker has {job.gpus} GPUs (or CPU slots); {now}. The job waits until one comes."
    if job.gpus > largest.ever:
        message += f" None was ever that large{f': the largest had {largest.ever}' if largest.ever else ''}."
    events.add(
        session,
        job,
        code="no_worker_large_enough",
        message=message,
        level="warn",
        data={"gpus": job.gpus, "largest_alive": largest.alive, "largest_ever": largest.ever},
    )

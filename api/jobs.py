"""/v1/fine_tuning/jobs: create, list, read, cancel, pause, resume; events, checkpoints, metrics and log."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel

from api import event_stream
from api.answers import LONGEST_WAIT, PENDING, Wait
from api.auth import Caller, CallerOf, JobsWriter
from api.estimates import EstimateObject, estimate
from api.job_shapes import (
    JobCheckpoint,
    JobEvent,
    JobObject,
    Measurement,
    job_checkpoint,
    job_event,
    job_object,
    measurement,
)
from api.json_body import JsonBody
from api.lists import After, Limit, ListOf, list_of
from api.repeats import RepeatsOf
from api.services import Services, ServicesOf
from control_plane import events, job_logs, jobs, pauses
from control_plane.errors import InvalidRequest
from control_plane.job_requests import JobRequest, read_request
from control_plane.repetition import Repeatable
from control_plane.tables import Metric

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

JOB_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}

EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "A stream's `Last-Event-ID` is the job's last event: there is no more to come."},
}


TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
CSV_TOO: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


class MetricsList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Measurement]
    has_more: bool = False


@router.post("", summary="Create a job, or say what it would take", openapi_extra=JOB_BODY, responses=PENDING)
async def create_job(
    caller: JobsWriter,
    body: JsonBody,
    services: ServicesOf,
    response: Response,
    *,
    repeats: RepeatsOf,
    background: BackgroundTasks,
    dry_run: bool = False,
    wait: Wait = LONGEST_WAIT,
) -> JobObject | EstimateObject:
    """A request that is sent again (same Idempotency-Key, or the openai client's own retry) makes no second job.

    `dry_run` makes no job and answers with its numbers; `wait` is for that.
    """
    request = read_request(body)
    if dry_run:
        return await estimate(services, caller.project_id, request, wait, response)
    background.add_task(services.hints.send)  # after the answer, which need not wait for Redis
    return await run_in_threadpool(_create, services, caller, request, repeats.by(caller))


@router.get("", summary="List jobs, newest first")
def list_jobs(
    request: Request,
    services: ServicesOf,
    caller: CallerOf,
    *,
    after: After = None,
    limit: Limit = 20,
    metadata: str | None = None,
) -> ListOf[JobObject]:
    """`metadata[name]=value` lists the jobs that carry it, and all others given; `metadata=null` those without any."""
    pairs = {
        name.removeprefix("metadata[").removesuffix("]"): value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    if metadata is not None and (pairs or metadata != "null"):
        raise InvalidRequest(
            "`metadata` is either `metadata=null`, for jobs without any, or one or more `metadata[name]=value`.",
            param="metadata",
        )
    with services.database.transaction() as session:
        page = jobs.list_jobs(
            session,
            caller.project_id,
            after=after,
            limit=limit,
            metadata=pairs,
            without_metadata=metadata is not None,
        )
        return list_of([job_object(job) for job in page.items], page.has_more)


@router.get("/{job_id}", summary="Read a job")
def retrieve_job(job_id: str, services: ServicesOf, caller: CallerOf) -> JobObject:
    with services.database.transaction() as session:
        return job_object(jobs.get(session, caller.project_id, job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job; final at once")
def cancel_job(job_id: str, services: ServicesOf, caller: JobsWriter, repeats: RepeatsOf) -> JobObject:
    """Sent again by a client that heard no answer, it answers with the job as it is; so do pause and resume."""
    with services.database.transaction(actor=caller.actor) as session:
        return job_object(jobs.cancel(session, caller.project_id, job_id, repeated=repeats.possible))


@router.post("/{job_id}/pause", summary="Pause a job: one that runs makes a checkpoint and gives its GPUs back")
def pause_job(job_id: str, services: ServicesOf, caller: JobsWriter, repeats: RepeatsOf) -> JobObject:
    with services.database.transaction(actor=caller.actor) as session:
        return job_object(pauses.pause(session, caller.project_id, job_id, repeated=repeats.possible))


@router.post("/{job_id}/resume", summary="Let a paused job go on from its last checkpoint")
def resume_job(
    job_id: str, services: ServicesOf, caller: JobsWriter, repeats: RepeatsOf, background: BackgroundTasks
) -> JobObject:
    background.add_task(services.hints.send)
    with services.database.transaction(actor=caller.actor) as session:
        return job_object(pauses.resume(session, caller.project_id, job_id, repeated=repeats.possible))


@router.get(
    "/{job_id}/events",
    summary="What happened to a job, newest first; or as a stream, oldest first",
    response_model=ListOf[JobEvent],
    responses=EVENT_STREAM,
)
def list_events(
    job_id: str,
    services: ServicesOf,
    caller: CallerOf,
    *,
    after: After = None,
    limit: Limit = 20,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> ListOf[JobEvent] | Response:
    """`stream=true`: server-sent events until the job's last one; a `Last-Event-ID` goes on behind that event."""
    if stream:
        return _event_stream(services, caller, job_id, last_event_id)
    with services.database.transaction() as session:
        page = jobs.list_events(session, caller.project_id, job_id, after=after, limit=limit)
        return list_of([job_event(event) for event in page.items], page.has_more)


@router.get("/{job_id}/checkpoints", summary="A job's checkpoints, latest step first")
def list_checkpoints(
    job_id: str, services: ServicesOf, caller: CallerOf, after: After = None, limit: Limit = 10
) -> ListOf[JobCheckpoint]:
    with services.database.transaction() as session:
        page = jobs.list_checkpoints(session, caller.project_id, job_id, after=after, limit=limit)
        return list_of([job_checkpoint(checkpoint) for checkpoint in page.items], page.has_more)


@router.get("/{job_id}/metrics", summary="A job's measurements, by step", response_model=MetricsList, responses=CSV_TOO)
def list_metrics(
    job_id: str,
    services: ServicesOf,
    caller: CallerOf,
    *,
    split: Literal["train", "validation"] | None = None,
    after_step: int | None = None,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> MetricsList | StreamingResponse:
    """`split`: only train, or only validation; `after_step`: only later ones; `format=csv`: one row a measurement."""
    with services.database.transaction() as session:
        found = jobs.list_metrics(session, caller.project_id, job_id, split=split, after_step=after_step)
    if form == "csv":
        return StreamingResponse(_csv(found), media_type="text/csv")
    return MetricsList(data=[measurement(metric) for metric in found])


@router.get(
    "/{job_id}/log",
    summary="What a job's processes printed, attempt by attempt, as text",
    response_class=PlainTextResponse,
    responses=TEXT,
)
def read_log(
    job_id: str, services: ServicesOf, caller: CallerOf, attempt: Annotated[int | None, Query(ge=1)] = None
) -> StreamingResponse:
    """`attempt`: only that one, by its number. While an attempt runs its log is up to half a minute old; a very long
    one lacks its middle."""
    with services.database.transaction() as session:
        logs = job_logs.of_job(session, caller.project_id, job_id, attempt)
    return StreamingResponse(job_logs.text(services.storage, logs), media_type="text/plain; charset=utf-8")


def _event_stream(services: Services, caller: Caller, job_id: str, last_event_id: str | None) -> Response:
    place = 0
    with services.database.transaction() as session:
        job = jobs.get(session, caller.project_id, job_id)
        if last_event_id is not None:
            place = events.place(session, job, last_event_id)
            news = events.after(session, {job.id: place})[job.id]
            if news.over and not news.events:
                return Response(status_code=HTTPStatus.NO_CONTENT)
    return StreamingResponse(
        event_stream.stream(services.feed, job.id, place), media_type="text/event-stream", headers=event_stream.HEADERS
    )


def _create(services: Services, caller: Caller, request: JobRequest, repeatable: Repeatable) -> JobObject:
    with services.database.transaction(actor=caller.actor) as session:
        limits = services.limits
        return job_object(jobs.create(session, caller.project_id, request, repeatable=repeatable, limits=limits))


def _csv(metrics: Sequence[Metric]) -> Iterator[str]:
    """A header, then one row a measurement; a metric that a split doesn't have is left empty."""
    names = sorted({name for metric in metrics for name in metric.values})
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    rows = ([metric.split, metric.step, *(metric.values.get(name, "") for name in names)] for metric in metrics)
    for row in (["split", "step", *names], *rows):
        writer.writerow(row)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def request_schema() -> dict[str, Any]:
    """The create request's JSON schema and those it refers to, for the OpenAPI document."""
    schema = JobRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), "JobRequest": schema}

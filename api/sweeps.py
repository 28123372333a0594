"""/v1/fine_tuning/sweeps: many jobs of one request, their table of results, and the one that is promoted."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from fastapi import APIRouter, BackgroundTasks
from sqlalchemy.orm import Session

from api import jobs as job_routes
from api.auth import CallerOf, JobsWriter
from api.job_shapes import JobObject, job_object
from api.json_body import JsonBody, OptionalJsonBody
from api.lists import After, Limit, ListOf, list_of
from api.models import ModelObject, model_object
from api.repeats import RepeatsOf
from api.services import ServicesOf
from api.sweep_shapes import Promotion, SweepObject, SweepTable, sweep_object, sweep_table
from control_plane import removals, sweeps
from control_plane.sweep_requests import read_sweep
from control_plane.sweep_results import results
from control_plane.tables import Sweep
from control_plane.validation import json_object, validated

router = APIRouter(prefix="/v1/fine_tuning/sweeps", tags=["sweeps"])

SWEEP_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SweepRequest"}}},
    }
}


@router.post("", summary="Create a sweep and all of its jobs", openapi_extra=SWEEP_BODY)
def create_sweep(
    caller: JobsWriter,
    body: JsonBody,
    services: ServicesOf,
    repeats: RepeatsOf,
    background: BackgroundTasks,
) -> SweepTable:
    """A job's request in which fields of `training` are lists: a job for every combination. Sent again, as for jobs."""
    with services.database.transaction(actor=caller.actor) as session:
        request = read_sweep(body)
        limits = services.limits
        sweep = sweeps.create(session, caller.project_id, request, repeatable=repeats.by(caller), limits=limits)
        shape = _table(session, sweep)
    background.add_task(services.hints.send)
    return shape


@router.get("", summary="List sweeps, newest first")
def list_sweeps(services: ServicesOf, caller: CallerOf, after: After = None, limit: Limit = 20) -> ListOf[SweepObject]:
    with services.database.transaction() as session:
        page = sweeps.list_sweeps(session, caller.project_id, after=after, limit=limit)
        states = sweeps.states(session, page.items)
        return list_of([sweep_object(sweep, states[sweep.id]) for sweep in page.items], page.has_more)


@router.get("/{sweep_id}", summary="Read a sweep and its results")
def retrieve_sweep(sweep_id: str, services: ServicesOf, caller: CallerOf) -> SweepTable:
    with services.database.transaction() as session:
        return _table(session, sweeps.get(session, caller.project_id, sweep_id))


@router.get("/{sweep_id}/jobs", summary="List a sweep's jobs, in the order of its grid")
def list_jobs(
    sweep_id: str, services: ServicesOf, caller: CallerOf, after: After = None, limit: Limit = 20
) -> ListOf[JobObject]:
    with services.database.transaction() as session:
        page = sweeps.list_jobs(session, caller.project_id, sweep_id, after=after, limit=limit)
        return list_of([job_object(job) for job in page.items], page.has_more)


@router.post("/{sweep_id}/cancel", summary="Cancel all of a sweep's unfinished jobs; final at once")
def cancel_sweep(sweep_id: str, services: ServicesOf, caller: JobsWriter, repeats: RepeatsOf) -> SweepTable:
    with services.database.transaction(actor=caller.actor) as session:
        return _table(session, sweeps.cancel(session, caller.project_id, sweep_id, repeated=repeats.possible))


@router.post("/{sweep_id}/promote", summary="Give a job's model the sweep's name")
def promote_job(sweep_id: str, services: ServicesOf, caller: JobsWriter, body: OptionalJsonBody) -> ModelObject:
    """`job`: which; by default the best, once all jobs are over."""
    asked = validated(Promotion, json_object(body))
    with services.database.transaction(actor=caller.actor) as session:
        shape = model_object(sweeps.promote(session, caller.project_id, sweep_id, asked.job))
    removals.carry_out(services.database, services.storage)
    return shape


def _table(session: Session, sweep: Sweep) -> SweepTable:
    jobs = sweeps.jobs_of(session, sweep)
    return sweep_table(sweep, jobs, results(session, sweep, jobs))


def request_schema() -> dict[str, Any]:
    """The schemas of both create requests: a sweep's takes a list wherever a job's `training` takes a value."""
    schemas = job_routes.request_schema()
    training = deepcopy(schemas["TrainingFields"])
    training["properties"] = {
        name: field if name == "method" else {"anyOf": [field, {"type": "array", "items": field, "minItems": 1}]}
        for name, field in training["properties"].items()
    }
    request = deepcopy(schemas["JobRequest"])
    request["properties"]["training"] = {"$ref": "#/components/schemas/SweepTrainingFields"}
    request["required"] = [*request["required"], "training"]
    return {**schemas, "SweepTrainingFields": training, "SweepRequest": request}

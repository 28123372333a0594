"""What `POST /v1/fine_tuning/jobs?dry_run=true` answers: the job's numbers, and no job."""

from __future__ import annotations

from typing import Literal

from fastapi import Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from api.answers import Answer, answered, failure_of
from api.services import Services
from control_plane import checks, estimates
from control_plane.checks import State
from control_plane.errors import InvalidRequest
from control_plane.job_requests import JobRequest
from control_plane.tables import Check
from dpo_core import prepare_events
from dpo_core.prepare_report import Disk, MemoryReport, Prepared, Report, Value
from dpo_core.spec import TrainingSpec


class TimeEstimate(BaseModel):
    """How long the optimizer's steps would take; reference pass, evaluations and checkpoints not counted."""

    seconds: float | None
    """None where nothing like it was trained here before."""

    job: str | None
    """The earlier job that the speed was measured on."""

    reason: str


class Estimate(BaseModel):
    training: TrainingSpec
    """The spec without "auto"."""

    values: dict[str, Value]
    """The same with the reason for each value."""

    report: Report
    total_steps: int
    trained_tokens: int
    """Tokens of all sequences that the steps would read."""

    memory: MemoryReport
    disk: Disk
    time: TimeEstimate
    warnings: list[str]
    """What the job's events would warn of: rows that are left out, values that are unusual."""


class EstimateObject(Answer):
    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    estimate: Estimate | None
    """None until `state` is done."""


async def estimate(
    services: Services, project_id: str, request: JobRequest, wait: float, response: Response
) -> EstimateObject:
    """Raises InvalidRequest where the job itself would be refused, in the same words."""
    check = await answered(services, lambda session: estimates.ask(session, project_id, request), wait, response)
    if check.error is not None and checks.is_the_askers(check.error):
        raise InvalidRequest(check.error["message"], param=check.error["param"], code=check.error["code"])
    found = await run_in_threadpool(_estimate, services, request.model, check) if check.result else None
    return EstimateObject(state=State(check.state), error=failure_of(check), estimate=found)


def _estimate(services: Services, model_id: str, check: Check) -> Estimate:
    prepared = Prepared.model_validate(check.result)
    with services.database.transaction() as session:
        time = estimates.time_of(session, check.project_id, model_id, prepared)
    return Estimate(
        training=prepared.training,
        values=prepared.values,
        report=prepared.report,
        total_steps=prepared.total_steps,
        trained_tokens=prepared.trained_tokens_estimate,
        memory=prepared.memory,
        disk=prepared.disk,
        time=TimeEstimate(seconds=time.seconds, job=time.job, reason=time.reason),
        warnings=prepare_events.warnings(prepared),
    )

"""What a job would be and take, without making it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from control_plane import checks, jobs, models, throughput, workers
from control_plane.job_requests import JobRequest
from control_plane.questions import Question
from control_plane.tables import Check
from dpo_core.prepare_report import Prepared


@dataclass(frozen=True)
class Time:
    """How long the optimizer's steps would take; reference pass, evaluations and checkpoints not counted."""

    seconds: float | None
    job: str | None
    """The earlier job that the speed was measured on."""

    reason: str


def ask(session: Session, project_id: str, request: JobRequest) -> Check:
    """The check that answers, for a request that a job could be made from. Raises what `jobs.create` raises."""
    inputs = jobs.inputs_of(session, project_id, request)
    body = {
        "training": inputs.spec.model_dump(mode="json"),
        "model": inputs.start.id,
        "reference": inputs.reference.id if inputs.reference else None,
        "training_file": request.training_file,
        "training_files": request.weighed_files,
        "validation_file": inputs.validation_file.id if inputs.validation_file else None,
        "gpus": request.resources.gpus,
        # The memory is that of the worker that answers: with other workers it is another question.
        "workers": workers.kinds(session),
    }
    files = tuple(file for file in (*inputs.training_files, inputs.validation_file) if file)
    named = [model for model in (inputs.start, inputs.reference) if model]
    with_bases = tuple(found for model in named for found in models.with_base(session, model))
    return checks.ask(session, project_id, Question("estimate", body, files, with_bases))


def time_of(session: Session, project_id: str, model_id: str, prepared: Prepared) -> Time:
    """From the speed of an earlier job, if there was one like this."""
    device, gpus, training = prepared.memory.device, prepared.memory.ranks, prepared.training
    known = throughput.measured(session, project_id, model_id=model_id, training=training, device=device, gpus=gpus)
    if known is None:
        what = "an adapter" if training.lora else "all weights"
        where = f"{gpus} {device} rank{'s' if gpus > 1 else ''}"
        reason = (
            f"unknown: no job of this project has trained {what} of {model_id} by `{training.method}` on {where} yet"
        )
        return Time(None, None, reason)
    seconds = prepared.trained_tokens_estimate / known.tokens_per_second
    reason = f"{known.tokens_per_second:,.0f} tokens a second in the median of {known.steps:,} steps of {known.job_id}"
    return Time(seconds, known.job_id, reason)

"""Jobs, events and checkpoints as OpenAI's clients read them; what is ours stands under `run`."""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.lists import Item
from control_plane.job_requests import priority_name
from control_plane.job_states import FINAL, State
from control_plane.progress import estimated_finish
from control_plane.result_names import best_name
from control_plane.tables import Checkpoint, Event, Job, Metric
from dpo_core.run_directory import FailureKind

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]

STATUS: dict[State, Status] = {
    State.validating: "validating_files",
    State.queued: "queued",
    State.running: "running",
    State.pausing: "running",
    State.paused: "queued",
    State.succeeded: "succeeded",
    State.failed: "failed",
    State.cancelled: "cancelled",
}

CHECKPOINT_METRICS = {
    "train_loss": "train/loss",
    "train_mean_token_accuracy": "train/token_accuracy",
    "valid_loss": "validation/loss",
    "full_valid_loss": "validation/loss",  # our evaluations always read the whole validation set
    "valid_mean_token_accuracy": "validation/token_accuracy",
    "full_valid_mean_token_accuracy": "validation/token_accuracy",
}
"""OpenAI's names, and ours for the same."""


class JobFailure(BaseModel):
    code: str
    kind: FailureKind
    """Ours: whose matter it is. user: the data or the spec; resource: too little memory or disk; infrastructure:
    workers or processes that were lost too often; divergence: numbers that were no longer finite."""
    message: str
    param: str | None
    line: int | None = None


class Hyperparameters(BaseModel):
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]
    n_epochs: int | Literal["auto"]


class Progress(BaseModel):
    step: int
    total_steps: int | None


class BestCheckpoint(BaseModel):
    model: str
    step: int
    metric: str
    """A metric on the validation data."""

    value: float


class Run(BaseModel):
    """Ours: where the job really is, and every choice that was made for it."""

    state: State
    progress: Progress
    eta: int | None
    """Unix second at which training will be done at its present speed."""
    lease_left: int | None
    """Seconds for which its worker still has it. One that is well renews that every few seconds; at 0 it counts as
    gone, and the next worker to look takes the job from it. None while no worker has it."""
    attempt: int
    """How often its training was begun; 0 before the first time, 1 for a job that trained in one go."""
    best: BestCheckpoint | None
    """The best checkpoint so far by validation; None without validation data."""
    sweep_id: str | None
    waits_for: str | None
    """The job of the same sweep that reads the files, or measures the reference, before this one."""
    priority: str
    preemptible: bool
    """Whether it makes room for a job of high priority."""
    gpus: int
    training: dict[str, Any]
    """The training spec as asked for."""
    resolved: dict[str, Any] | None
    """The spec without "auto", the reason for every value, and what was found in the data."""


class JobObject(Item):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobFailure | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: Hyperparameters
    model: str
    organization_id: str
    result_files: list[str] = Field(default_factory=list)
    seed: int
    status: Status
    trained_tokens: int | None
    training_file: str
    training_files: dict[str, float] | None
    """Ours: all of them with their weights, where there are several."""

    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Any] = Field(default_factory=list)
    metadata: dict[str, str] | None
    method: dict[str, Any]
    run: Run


class JobEvent(Item):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class CheckpointMetrics(BaseModel):
    """OpenAI's names where they fit, and every metric that was known, such as `train/rewards/margins`."""

    model_config = ConfigDict(extra="allow")

    step: int


class JobCheckpoint(Item):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int


class Measurement(BaseModel):
    split: str
    step: int
    """Optimizer updates behind the weights that were measured."""
    created_at: int
    values: dict[str, float]


def job_object(job: Job) -> JobObject:
    state = State(job.state)
    resolved = (job.resolved or {}).get("training", job.training)
    shown = {
        "batch_size": resolved["batch_size"],
        "learning_rate_multiplier": resolved["learning_rate_multiplier"],
        "n_epochs": resolved["epochs"],
    }
    settings = {**shown, "beta": resolved["beta"]} if job.method == "dpo" else shown
    left = _left(job.lease_until)
    finish = None if left == 0 else _seconds(estimated_finish(job))
    return JobObject(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        error=JobFailure.model_validate(job.error) if job.error else None,
        fine_tuned_model=job.result_name if state is State.succeeded else None,
        finished_at=_seconds(job.finished_at),
        hyperparameters=Hyperparameters.model_validate(shown),
        model=job.model_id,
        organization_id=job.project_id,
        seed=job.seed,
        status=STATUS[state],
        trained_tokens=job.trained_tokens if state in FINAL else None,
        training_file=job.training_file_id,
        training_files={file["id"]: file["weight"] for file in job.training_files} if job.training_files else None,
        validation_file=job.validation_file_id,
        estimated_finish=finish,
        result_files=[job.result_file_id] if job.result_file_id else [],
        integrations=job.request.get("integrations") or [],
        metadata=job.user_metadata,
        method={"type": job.method, job.method: {"hyperparameters": settings}},
        run=_run(job, state, finish, left),
    )


def _run(job: Job, state: State, finish: int | None, left: int | None) -> Run:
    total_steps = job.progress.get("total_steps") or (job.resolved or {}).get("total_steps")
    return Run(
        state=state,
        progress=Progress(step=job.progress.get("step", 0), total_steps=total_steps),
        eta=finish,
        lease_left=left,
        attempt=job.training_attempts,
        best=BestCheckpoint.model_validate({"model": best_name(job.result_name), **job.best}) if job.best else None,
        sweep_id=job.sweep_id,
        waits_for=job.waits_for,
        priority=priority_name(job.priority),
        preemptible=job.preemptible,
        gpus=job.gpus,
        training=job.training,
        resolved=job.resolved,
    )


def job_event(event: Event) -> JobEvent:
    return JobEvent.model_validate(
        {
            "id": event.id,
            "created_at": int(event.created_at.timestamp()),
            "level": event.level,
            "message": event.message,
            "type": event.type,
            "data": {"code": event.code, **event.data},
        }
    )


def job_checkpoint(checkpoint: Checkpoint) -> JobCheckpoint:
    known: dict[str, float] = checkpoint.manifest["metrics"]
    named = {openai: known[ours] for openai, ours in CHECKPOINT_METRICS.items() if ours in known}
    return JobCheckpoint(
        id=checkpoint.id,
        created_at=int(checkpoint.created_at.timestamp()),
        fine_tuned_model_checkpoint=checkpoint.model_id,
        fine_tuning_job_id=checkpoint.job_id,
        metrics=CheckpointMetrics.model_validate({"step": checkpoint.step, **named, **known}),
        step_number=checkpoint.step,
    )


def measurement(metric: Metric) -> Measurement:
    return Measurement(
        split=metric.split, step=metric.step, created_at=int(metric.created_at.timestamp()), values=metric.values
    )


def _left(lease_until: datetime | None) -> int | None:
    """By this host's clock, as it is only told; leases themselves are compared with PostgreSQL's."""
    return None if lease_until is None else max(0, ceil((lease_until - datetime.now(UTC)).total_seconds()))


def _seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment is not None else None

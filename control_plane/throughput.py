"""How fast this installation has trained before: what an estimate of time is made from."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Float, Select, func, select
from sqlalchemy.orm import Session

from control_plane.tables import Attempt, Job, Metric, Worker
from dpo_core.spec import Device, TrainingSpec

LOOKED_AT = 50
"""The newest jobs that may be alike."""

STEPS = 2
"""At least so many steps must have been measured, without the first, which is slower."""


@dataclass(frozen=True)
class Throughput:
    """Of one job: tokens of all sequences per second of its steps, in the median."""

    job_id: str
    tokens_per_second: float
    steps: int


def measured(
    session: Session, project_id: str, *, model_id: str, training: TrainingSpec, device: Device, gpus: int
) -> Throughput | None:
    """Of the project's newest job with the same model, method, LoRA, kind of device and number of them."""
    alike = (
        select(Job)
        .where(Job.project_id == project_id, Job.model_id == model_id, Job.method == training.method, Job.gpus == gpus)
        .where(Job.id.in_(_trained_on(device)))
        .order_by(Job.id.desc())
        .limit(LOOKED_AT)
    )
    lora = training.lora.model_dump(mode="json") if training.lora else None
    for job in session.scalars(alike):
        if job.training["lora"] == lora and (found := _of(session, job)):
            return found
    return None


def _trained_on(device: Device) -> Select[str]:
    attempts = select(Attempt.job_id).join(Worker, Worker.id == Attempt.worker_id)
    return attempts.where(Attempt.kind == "train", Worker.device == device)


def _of(session: Session, job: Job) -> Throughput | None:
    speed = Metric.values["tokens_per_second"].astext.cast(Float)
    median = func.percentile_cont(0.5).within_group(speed)
    later = (Metric.job_id == job.id) & (Metric.split == "train") & (Metric.step > 0)
    speed_found, steps = session.execute(select(median, func.count(speed)).where(later)).one()
    return Throughput(job.id, speed_found, steps) if steps >= STEPS else None

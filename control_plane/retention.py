"""Which checkpoints of a job are kept: its newest, its best, what it may go on from, and what something else needs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import events, models
from control_plane.tables import Checkpoint, Job, Metric
from dpo_core.best import Judge
from dpo_core.spec import TrainingSpec


def retire(session: Session, job: Job) -> None:
    """Deletes the others, with an event for each; their bytes are noted for removal.

    The caller holds the job's row lock, and has published a newer checkpoint.
    """
    training = TrainingSpec.model_validate(job.training)
    query = select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc())
    checkpoints = session.scalars(query).all()
    kept = {checkpoint.step for checkpoint in checkpoints[: training.keep_last]}
    kept |= set(_best(session, job, training, checkpoints))
    # An attempt that goes on from an older state publishes with the best that it knew: its files must be there.
    standing = [it.manifest["best"] for it in checkpoints if it.state_kept]
    kept |= {best["step"] for best in standing if best is not None}
    for checkpoint in reversed(checkpoints):
        if checkpoint.step in kept or checkpoint.state_kept:
            continue
        step, model_id = checkpoint.step, checkpoint.model_id
        if models.retire(session, model_id):
            message = (
                f"The checkpoint at step {step} was deleted ({model_id}): the job keeps its newest and its best "
                f"(`training.keep_last` {training.keep_last}, `training.keep_best` {training.keep_best})."
            )
            events.add(session, job, code="checkpoint_deleted", message=message, data={"step": step, "model": model_id})


def _best(session: Session, job: Job, training: TrainingSpec, checkpoints: Sequence[Checkpoint]) -> list[int]:
    """Steps of the best by what was measured of them, the run's own best first."""
    judge = Judge.of(training)
    steps = [checkpoint.step for checkpoint in checkpoints]
    value = Metric.values[judge.metric].as_float()
    measured = select(Metric.step, value).where(Metric.job_id == job.id, Metric.split == "validation")
    values = {step: it for step, it in session.execute(measured.where(Metric.step.in_(steps))) if it is not None}
    sign = -1 if judge.direction == "higher" else 1
    ranked = sorted(values, key=lambda step: (sign * values[step], step))
    own = [job.best["step"]] if job.best is not None else []
    return list(dict.fromkeys([*own, *ranked]))[: training.keep_best]

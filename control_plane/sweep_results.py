"""What a sweep found: each job's validation metrics, which job is best, and which may be as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.job_states import State
from control_plane.result_names import best_name
from control_plane.tables import Job, Metric, Sweep
from dpo_core.judged_metrics import BETTER, COMPARED

OUT_OF_THE_RUNNING = frozenset({State.failed, State.cancelled})


@dataclass(frozen=True)
class Result:
    """One job's row."""

    job_id: str
    values: dict[str, Any]
    """On the axes, as asked for."""
    state: State
    step: int
    """How far the job is."""
    total_steps: int | None
    evaluated_step: int | None
    """Of the measurement: the best checkpoint's by validation so far, else the newest; None before the first update."""
    metrics: dict[str, float]
    """Measured there, with their 95 % intervals; empty without."""
    model: str | None
    """What promoting the job would take."""
    best: bool
    within_best: bool
    """Whether its value lies within the best job's interval: another draw of pairs may well rank them otherwise."""
    error: str | None


def results(session: Session, sweep: Sweep, jobs: Sequence[Job]) -> list[Result]:
    """A row for every one of the sweep's `jobs`, in their order."""
    measured = {job.id: _measurement(job, found) for job, found in _measurements(session, jobs)}
    metric = COMPARED[jobs[0].method]
    best = _best(jobs, measured, metric)
    rows = []
    for job in jobs:
        found = measured[job.id]
        rows.append(
            Result(
                job_id=job.id,
                values={axis["field"]: job.request["training"][axis["field"]] for axis in sweep.axes},
                state=State(job.state),
                step=job.progress.get("step", 0),
                total_steps=job.progress.get("total_steps") or (job.resolved or {}).get("total_steps"),
                evaluated_step=found.step if found else None,
                metrics=found.values if found else {},
                model=candidates(job)[0] if job.state == State.succeeded else None,
                best=found is not None and found is best,
                within_best=found is not None and best is not None and _within(found, best, metric),
                error=job.error["message"] if job.error else None,
            )
        )
    return rows


def candidates(job: Job) -> list[str]:
    """The models that a job puts forward: its best by validation where it has one, then its last, the same or later."""
    return [best_name(job.result_name), job.result_name] if job.best else [job.result_name]


def best_of(rows: Sequence[Result]) -> Result | None:
    return next((row for row in rows if row.best), None)


def _measurements(session: Session, jobs: Sequence[Job]) -> list[tuple[Job, list[Metric]]]:
    """Each job's on validation data, behind its first update, by step."""
    query = select(Metric).where(Metric.job_id.in_([job.id for job in jobs]), Metric.split == "validation")
    found: dict[str, list[Metric]] = {job.id: [] for job in jobs}
    for metric in session.scalars(query.where(Metric.step > 0).order_by(Metric.step)):
        found[metric.job_id].append(metric)
    return [(job, found[job.id]) for job in jobs]


def _measurement(job: Job, found: list[Metric]) -> Metric | None:
    at_best = [metric for metric in found if job.best and metric.step == job.best["step"]]
    return next(iter(at_best or found[-1:]), None)


def _best(jobs: Sequence[Job], measured: dict[str, Metric | None], metric: str) -> Metric | None:
    """The first of the best among jobs that can still be promoted."""
    running = [measured[job.id] for job in jobs if State(job.state) not in OUT_OF_THE_RUNNING]
    standing = [found for found in running if found is not None]
    sign = 1 if BETTER[jobs[0].method][metric] == "higher" else -1
    return max(standing, default=None, key=lambda found: sign * found.values[metric])


def _within(found: Metric, best: Metric, metric: str) -> bool:
    """A measurement of a time before there were intervals has that of one point."""
    value, known = found.values[metric], best.values
    low, high = known.get(f"{metric}/low", known[metric]), known.get(f"{metric}/high", known[metric])
    return bool(low <= value <= high)

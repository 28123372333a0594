"""What a sweep found: each job's validation metrics, which job is best, and which may be as good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from control_plane.job_states import State
from control_plane.result_names import best_name
from control_plane.tables import Job, Json, Metric, Model, Sweep
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
    pairs: int | None
    """On so many of the held-out pairs or examples; None before the job is validated."""
    comparable: bool
    """Whether on the same ones as the others; where fewer fit into a shorter `max_length`, it can't be the best."""
    model: str | None
    """What promoting the job would take; None before it succeeded, and where its models are deleted."""
    best: bool
    within_best: bool
    """Whether its value lies within the best job's interval: another draw of pairs may well rank them otherwise."""
    error: str | None


def results(session: Session, sweep: Sweep, jobs: Sequence[Job]) -> list[Result]:
    """A row for every one of the sweep's `jobs`, in their order."""
    measured = _measurements(session, jobs)
    there = _there(session, [name for job in jobs for name in candidates(job)])
    method = jobs[0].method
    metric = COMPARED[method]
    together = _comparable(jobs, measured)
    best = _best(together, measured, method)
    rows = []
    for job in jobs:
        found = measured.get(job.id)
        promotable = candidates(job) if job.state == State.succeeded else []
        rows.append(
            Result(
                job_id=job.id,
                values={axis["field"]: job.request["training"][axis["field"]] for axis in sweep.axes},
                state=State(job.state),
                step=job.progress.get("step", 0),
                total_steps=job.progress.get("total_steps") or (job.resolved or {}).get("total_steps"),
                evaluated_step=found.step if found else None,
                metrics=found.values if found else {},
                pairs=_report(job).get("validation_items"),
                comparable=found is None or job in together,
                model=next((name for name in promotable if name in there), None),
                best=found is not None and found is best,
                within_best=found is not None and best is not None and job in together and _within(found, best, metric),
                error=job.error["message"] if job.error else None,
            )
        )
    return rows


def candidates(job: Job) -> list[str]:
    """The models that a job puts forward: its best by validation where it has one, then its last, the same or later."""
    return [best_name(job.result_name), job.result_name] if job.best else [job.result_name]


def best_of(rows: Sequence[Result]) -> Result | None:
    return next((row for row in rows if row.best), None)


def _measurements(session: Session, jobs: Sequence[Job]) -> dict[str, Metric]:
    """By job, the one that stands for it on validation data: its best checkpoint's, else the newest behind an update.

    PostgreSQL picks it: a long job has thousands.
    """
    at_best = Metric.step == Job.best["step"].as_integer()
    query = (
        select(Metric)
        .join(Job, Job.id == Metric.job_id)
        .where(Job.id.in_([job.id for job in jobs]), Metric.split == "validation", Metric.step > 0)
        .ext(distinct_on(Metric.job_id))
        .order_by(Metric.job_id, at_best.desc(), Metric.step.desc())
    )
    return {metric.job_id: metric for metric in session.scalars(query)}


def _there(session: Session, names: Sequence[str]) -> set[str]:
    """Those of the models that are not deleted."""
    return set(session.scalars(select(Model.id).where(Model.id.in_(names), Model.deleted_at.is_(None))))


def _comparable(jobs: Sequence[Job], measured: dict[str, Metric]) -> list[Job]:
    """Those that were measured on the same rows: of several groups the largest, of equal ones the first.

    What a `max_length` leaves out, a shorter one leaves out, too: where as many are left, they are the same.
    """
    found = [job for job in jobs if job.id in measured]
    running = [job for job in found if State(job.state) not in OUT_OF_THE_RUNNING]
    groups = Counter(map(_measured_on, running)).most_common(1)  # of equal counts, the one that came first
    return [job for job in found if groups and _measured_on(job) == groups[0][0]]


def _measured_on(job: Job) -> tuple[int | None, int | None]:
    """Tells whether two jobs of a sweep hold out the same rows: how many, and of how many where a part is split off."""
    report = _report(job)
    return report.get("validation_items"), report.get("pairs") if job.validation_file_id is None else None


def _report(job: Job) -> Json:
    report: Json = (job.resolved or {}).get("report", {})
    return report


def _best(jobs: Sequence[Job], measured: dict[str, Metric], method: str) -> Metric | None:
    """The first of the best among jobs that can still be promoted."""
    running = [measured.get(job.id) for job in jobs if State(job.state) not in OUT_OF_THE_RUNNING]
    standing = [found for found in running if found is not None]
    metric = COMPARED[method]
    sign = 1 if BETTER[method][metric] == "higher" else -1
    return max(standing, default=None, key=lambda found: sign * found.values[metric])


def _within(found: Metric, best: Metric, metric: str) -> bool:
    """A measurement of a time before there were intervals has that of one point. The best is within its own."""
    if found is best:
        return True
    value, known = found.values[metric], best.values
    low, high = known.get(f"{metric}/low", known[metric]), known.get(f"{metric}/high", known[metric])
    return bool(low <= value <= high)

"""Sweeps as JSON: all of it ours, in the manner of OpenAI's jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from api.lists import Item
from control_plane.job_states import FINAL, State
from control_plane.sweep_results import Result, best_of
from control_plane.tables import Job, Sweep
from dpo_core.judged_metrics import COMPARED

SweepStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Axis(BaseModel):
    field: str
    """Of `training`."""
    values: list[Any]


class SweepObject(Item):
    object: Literal["fine_tuning.sweep"] = "fine_tuning.sweep"
    created_at: int
    status: SweepStatus
    """succeeded: all jobs are over, and one at least succeeded."""
    name: str
    """The model that promoting one of its jobs makes."""
    axes: list[Axis]
    jobs: dict[State, int]
    """How many are in which state."""


class SweepRow(BaseModel):
    job: str
    values: dict[str, Any]
    """On the axes, by field."""
    state: State
    step: int
    total_steps: int | None
    evaluated_step: int | None
    """Of the measurement in `metrics`: the best checkpoint's so far, else the newest."""
    metrics: dict[str, float]
    """On validation data; `…/low` and `…/high` are the ends of 95 % intervals."""
    pairs: int | None
    """Held-out pairs or examples that were measured."""
    comparable: bool
    """False where they are others than those of most jobs, as fewer fit into a shorter `max_length`."""
    model: str | None
    best: bool
    within_best: bool
    """Whether the value of `compared_by` lies within the best job's interval."""
    error: str | None


class SweepTable(SweepObject):
    """A sweep with what its jobs have found so far."""

    model: str
    training_file: str
    validation_file: str | None
    compared_by: str
    """The validation metric by which jobs are compared."""
    best: str | None
    """The job that is ahead."""
    results: list[SweepRow]


class Promotion(BaseModel):
    """The body that promotes a job."""

    model_config = {"extra": "forbid"}

    job: str | None = None
    """By default the best."""


def sweep_object(sweep: Sweep, states: Counter[State]) -> SweepObject:
    return SweepObject.model_validate(_shared(sweep, states))


def sweep_table(sweep: Sweep, jobs: Sequence[Job], rows: Sequence[Result]) -> SweepTable:
    first = jobs[0]
    best = best_of(rows)
    return SweepTable.model_validate(
        {
            **_shared(sweep, Counter(row.state for row in rows)),
            "model": first.model_id,
            "training_file": first.training_file_id,
            "validation_file": first.validation_file_id,
            "compared_by": COMPARED[first.method],
            "best": best.job_id if best else None,
            "results": [_row(row) for row in rows],
        }
    )


def _shared(sweep: Sweep, states: Counter[State]) -> Mapping[str, Any]:
    return {
        "id": sweep.id,
        "created_at": int(sweep.created_at.timestamp()),
        "status": status(states),
        "name": sweep.result_name,
        "axes": sweep.axes,
        "jobs": dict(states),
    }


def status(states: Counter[State]) -> SweepStatus:
    """Of a sweep with so many jobs in each state."""
    if states.keys() - FINAL:
        begun = states.keys() - {State.validating, State.queued}
        return "running" if begun else "queued"
    if State.succeeded in states:
        return "succeeded"
    return "failed" if State.failed in states else "cancelled"


def _row(row: Result) -> SweepRow:
    return SweepRow(
        job=row.job_id,
        values=row.values,
        state=row.state,
        step=row.step,
        total_steps=row.total_steps,
        evaluated_step=row.evaluated_step,
        metrics=row.metrics,
        pairs=row.pairs,
        comparable=row.comparable,
        model=row.model,
        best=row.best,
        within_best=row.within_best,
        error=row.error,
    )

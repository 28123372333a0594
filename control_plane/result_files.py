"""A finished job's result file: every step's measurements as CSV, kept as a file with the purpose `fine-tune-results`.

docs/metrics.md defines the columns. The first ones have the names and the order of OpenAI's `step_metrics.csv`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import groupby

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import leases, removals
from control_plane.leases import Claim
from control_plane.storage import file_key
from control_plane.tables import File, Job, Metric

FILENAME = "step_metrics.csv"
PURPOSE = "fine-tune-results"

OPENAIS: dict[str, dict[str, str | None]] = {
    "dpo": {
        "train_loss": "train/loss",
        "train_accuracy": "train/rewards/accuracies",
        "valid_loss": "validation/loss",
        "valid_mean_token_accuracy": None,
    },
    "supervised": {
        "train_loss": "train/loss",
        "train_accuracy": "train/token_accuracy",
        "valid_loss": "validation/loss",
        "valid_mean_token_accuracy": "validation/token_accuracy",
    },
}
"""OpenAI's columns, and which of ours each of them repeats."""

ROWS_AT_ONCE = 1000


def lines(session: Session, job: Job) -> Iterator[str]:
    """The CSV: a header, then one row a step, with the measurements of both splits; what was not measured is empty."""
    names = _names(session, job)
    openais = OPENAIS[job.method]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *openais, *names])
    query = select(Metric.step, Metric.split, Metric.values).where(Metric.job_id == job.id)
    found = session.execute(query.order_by(Metric.step, Metric.split), execution_options={"yield_per": ROWS_AT_ONCE})
    for step, group in groupby(found, key=lambda row: row[0]):
        values = {f"{split}/{name}": value for _, split, part in group for name, value in part.items()}
        shown = [values.get(ours, "") if ours else "" for ours in openais.values()]
        writer.writerow([step, *shown, *(values.get(name, "") for name in names)])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def attach(session: Session, claim: Claim, *, file_id: str, bytes: int, sha256: str) -> None:
    """Makes the stored CSV the job's result file, in the place of one that an earlier attempt left. StaleFence."""
    job = leases.held(session, claim)
    former = session.get(File, job.result_file_id) if job.result_file_id else None
    file = File(
        id=file_id,
        project_id=job.project_id,
        filename=FILENAME,
        purpose=PURPOSE,
        bytes=bytes,
        sha256=sha256,
        storage_key=file_key(file_id),
        status="processed",
    )
    session.add(file)
    session.flush()
    job.result_file_id = file.id
    session.flush()
    if former is not None:
        removals.note(session, former.storage_key)
        session.delete(former)


def _names(session: Session, job: Job) -> list[str]:
    """Ours of both splits, sorted: `train/loss` and so on."""
    keys = select(Metric.split, func.jsonb_object_keys(Metric.values)).where(Metric.job_id == job.id).distinct()
    return sorted(f"{split}/{name}" for split, name in session.execute(keys))

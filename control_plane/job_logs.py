"""The logs of a job's attempts: what their processes printed, as their workers brought it into storage."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import jobs
from control_plane.errors import InvalidRequest
from control_plane.storage import Storage, log_key
from control_plane.tables import Attempt

CHUNK_BYTES = 2**16
DOES = {"validate": "checks the data", "train": "trains"}


@dataclass(frozen=True)
class AttemptLog:
    """`number` counts a job's attempts from 1, those that check its data among them."""

    number: int
    heading: str
    key: str
    over: bool


def of_job(session: Session, project_id: str, job_id: str, number: int | None = None) -> list[AttemptLog]:
    """The logs of all attempts, oldest first, or of one. NotFound; InvalidRequest for an attempt that there is not."""
    job = jobs.get(session, project_id, job_id)
    rows = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.fence)).all()
    if number is None:
        return [_log(row, place) for place, row in enumerate(rows, start=1)]
    if not 1 <= number <= len(rows):
        there = "no attempt yet" if not rows else "1 attempt" if len(rows) == 1 else f"attempts 1 to {len(rows)}"
        message = (
            f"Job {job.id} has {there}; there is none with the number {number}. Leave `attempt` out for all of them."
        )
        raise InvalidRequest(message, param="attempt", code="no_such_attempt")
    return [_log(rows[number - 1], number)]


def text(storage: Storage, logs: list[AttemptLog]) -> Iterator[str]:
    """All of them as one text, each below its heading."""
    for log in logs:
        yield f"=== {log.heading} ===\n"
        if not storage.exists(log.key):
            yield "(nothing)\n" if log.over else "(its worker brings its log twice a minute; look again)\n"
            continue
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with storage.open(log.key) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True) + "\n"


def _log(attempt: Attempt, number: int) -> AttemptLog:
    until = f"until {_moment(attempt.ended_at)}: {attempt.outcome}" if attempt.ended_at else "until now"
    code = f" ({attempt.error['code']})" if attempt.error else ""
    what = f"{attempt.worker_id} {DOES.get(attempt.kind, attempt.kind)}"
    heading = f"attempt {number}: {what} from {_moment(attempt.started_at)} {until}{code}"
    return AttemptLog(number, heading, log_key(attempt.job_id, attempt.fence), attempt.ended_at is not None)


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

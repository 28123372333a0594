"""What happened to a job, in words, in order."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.orm import Session

from control_plane.ids import new_id
from control_plane.tables import Event, Job, Json

Level = Literal["info", "warn", "error"]


def add(
    session: Session, job: Job, *, code: str, message: str, level: Level = "info", data: Json | None = None
) -> None:
    """Writes one event. The caller holds the job's row lock, so a job's events are numbered in their order."""
    event = Event(
        id=new_id("ftevent"),
        project_id=job.project_id,
        job_id=job.id,
        level=level,
        type="message",
        code=code,
        message=message,
        data=data or {},
    )
    session.add(event)
    session.flush()

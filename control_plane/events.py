"""What happened to a job, in words, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ARRAY, BigInteger, Text, and_, cast, func, select
from sqlalchemy.orm import Session

from control_plane.errors import InvalidRequest
from control_plane.ids import new_id
from control_plane.tables import Event, Job, Json

Level = Literal["info", "warn", "error"]

MOST = 1000
"""Events in one answer of `after`."""


@dataclass(frozen=True)
class News:
    """What happened to a job behind some place of its story."""

    events: list[Event]
    """Oldest first."""
    over: bool
    """Whether the job's last event is among these, or before them."""

    def behind(self, sequence: int) -> News:
        """The part of it that is later than `sequence`."""
        return News([event for event in self.events if event.sequence > sequence], self.over)


def add(
    session: Session, job: Job, *, code: str, message: str, level: Level = "info", data: Json | None = None
) -> None:
    """Writes one event, with the session's next statement: several at once are one. The caller holds the job's row
    lock, so a job's events are numbered in their order."""
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


def after(session: Session, places: Mapping[str, int]) -> dict[str, News]:
    """What happened to each of these jobs behind the place (`Event.sequence`) given for it."""
    # First the states: whatever belongs to a final one was committed with it, so that the events hold it.
    goes_on = set(session.scalars(select(Job.id).where(Job.id.in_(places), Job.finished_at.is_(None))))
    ids, sequences = cast(list(places), ARRAY(Text)), cast(list(places.values()), ARRAY(BigInteger))
    known = func.unnest(ids, sequences).table_valued("job_id", "sequence").render_derived()
    later = and_(Event.job_id == known.c.job_id, Event.sequence > known.c.sequence)
    found: dict[str, list[Event]] = {job_id: [] for job_id in places}
    for event in session.scalars(select(Event).join(known, later).order_by(Event.sequence).limit(MOST)):
        found[event.job_id].append(event)
    whole = sum(map(len, found.values())) < MOST
    return {job_id: News(events, over=whole and job_id not in goes_on) for job_id, events in found.items()}


def place(session: Session, job: Job, event_id: str) -> int:
    """The `sequence` of one of the job's events. InvalidRequest for an event that is none of its."""
    query = select(Event.sequence).where(Event.id == event_id, Event.job_id == job.id)
    sequence = session.scalars(query).one_or_none()
    if sequence is None:
        raise InvalidRequest(
            f"Last-Event-ID is {event_id!r}, which is no event of job {job.id}; leave it out to begin with the first.",
            param="Last-Event-ID",
        )
    return sequence

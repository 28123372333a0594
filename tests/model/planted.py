"""Bugs planted on purpose, each in a function of the service: the model must find every one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from api import jobs as routes
from api.auth import Caller
from api.job_shapes import JobObject, job_object
from api.services import Services
from control_plane import events, fences, jobs, publication
from control_plane.errors import StaleFence
from control_plane.job_requests import JobRequest
from control_plane.repetition import Repeatable
from control_plane.tables import Job, Leased


@dataclass(frozen=True)
class Bug:
    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    symptom: str
    """A part of the promise that it breaks."""


def _no_fence_check(patch: pytest.MonkeyPatch) -> None:
    def held(session: Session, table: type[Leased], row_id: str, fence: int) -> Leased:
        row = session.get(table, row_id, with_for_update=True, populate_existing=True)
        if row is None:
            raise StaleFence(row_id)
        return row

    patch.setattr(fences, "held", held)


def _wrong_clock(patch: pytest.MonkeyPatch) -> None:
    def lapsed(session: Session, table: type[Leased]) -> Sequence[Leased]:
        over = table.lease_until < func.clock_timestamp()
        return session.scalars(select(table).where(over).order_by(table.id).with_for_update(skip_locked=True)).all()

    patch.setattr(fences, "lapsed", lapsed)


def _any_attempt_of_a_dead_worker(patch: pytest.MonkeyPatch) -> None:
    def unreported(session: Session, table: type[Leased], row_id: str, fence: int) -> Leased | None:
        leased = select(table).where(table.id == row_id, table.lease_until.is_not(None))
        return session.scalars(leased.with_for_update(skip_locked=True)).one_or_none()

    patch.setattr(fences, "unreported", unreported)


def _commit_before_event(patch: pytest.MonkeyPatch) -> None:
    add = events.add

    def add_later(session: Session, job: Job, **told: Any) -> None:
        engine = session.get_bind()

        @event.listens_for(session, "after_commit", once=True)
        def _(_session: Session) -> None:
            with Session(engine) as another, another.begin():
                add(another, job, **told)

    patch.setattr(events, "add", add_later)


def _hint_before_commit(patch: pytest.MonkeyPatch) -> None:
    def create(services: Services, caller: Caller, request: JobRequest, repeatable: Repeatable) -> JobObject:
        with services.database.transaction(actor=caller.actor) as session:
            job = jobs.create(session, caller.project_id, request, repeatable=repeatable, limits=services.limits)
            services.hints.send()
            return job_object(job)

    patch.setattr(routes, "_create", create)


def _double_publication(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publication, "_published", lambda *_: None)


BUGS = (
    Bug("fence check removed", _no_fence_check, "wrote|crashed"),
    Bug("lease compared with the wrong clock", _wrong_clock, "was ended at"),
    Bug("a dead worker's job ended whoever has it now", _any_attempt_of_a_dead_worker, "attempt .* was ended"),
    Bug("commit before event", _commit_before_event, "no event tells"),
    Bug("hint before commit", _hint_before_commit, "a hint was sent before the commit"),
    Bug("double publication", _double_publication, "published twice"),
)

"""Which workers there are, and the largest job that they have room for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane.database import dpo_now
from control_plane.tables import Worker

ALIVE = timedelta(minutes=1)
"""A worker that was silent for longer counts as gone."""


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself."""

    id: str
    hostname: str
    pid: int
    device: str
    slots: int


@dataclass(frozen=True)
class Largest:
    """Slots of the largest worker; 0 where there is none."""

    alive: int
    ever: int


def register(session: Session, facts: Facts) -> None:
    """Makes the worker known, or known again."""
    row = {"id": facts.id, "hostname": facts.hostname, "pid": facts.pid, "device": facts.device, "slots": facts.slots}
    seen = {"last_seen": dpo_now(), "left_at": None}
    session.execute(insert(Worker).values(row).on_conflict_do_update(index_elements=[Worker.id], set_={**row, **seen}))


def beat(session: Session, worker_id: str) -> None:
    session.execute(update(Worker).where(Worker.id == worker_id).values(last_seen=dpo_now(), left_at=None))


def forget(session: Session, worker_id: str) -> None:
    """The worker said goodbye."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(left_at=dpo_now()))


def kinds(session: Session) -> list[list[str | int]]:
    """Device and slots of the living workers, each kind once."""
    found = session.execute(
        select(Worker.device, Worker.slots).where(_alive()).distinct().order_by(Worker.device, Worker.slots)
    )
    return [[device, slots] for device, slots in found]


def largest(session: Session) -> Largest:
    alive = _alive()
    row = session.execute(
        select(func.coalesce(func.max(Worker.slots).filter(alive), 0), func.coalesce(func.max(Worker.slots), 0))
    ).one()
    return Largest(alive=row[0], ever=row[1])


def _alive() -> ColumnElement[bool]:
    return Worker.left_at.is_(None) & (Worker.last_seen > dpo_now() - ALIVE)

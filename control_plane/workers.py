"""Which workers there are, the largest job that fits one of them, and the largest that one has room for now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache

from sqlalchemy import ColumnElement, Update, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane.database import dpo_now
from control_plane.job_states import State
from control_plane.tables import Job, Worker

ALIVE = timedelta(minutes=1)
"""A worker that was silent for longer counts as gone."""

HEARD = timedelta(seconds=15)
"""A worker beats every five seconds. One that was silent for longer than this may be gone: the queue counts on it no
more, and its GPUs are no longer its own, as two workers on one host may both see them."""


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself."""

    id: str
    hostname: str
    pid: int
    device: str
    slots: int


@dataclass(frozen=True)
class Condition:
    """What a worker says of itself again and again."""

    usable: int
    """Slots that may be used, whether something runs on them or not."""
    gpus: tuple[str, ...] = ()
    """Ids of all its GPUs."""
    out: Mapping[str, str] = field(default_factory=dict)
    """Those of them that must not be used, and why."""
    draining: bool = False
    """It takes no more work: it stops, or its disk is full, or its storage is away."""


@dataclass(frozen=True)
class Largest:
    """Slots of the largest worker; 0 where there is none."""

    alive: int
    """That can be used now."""
    ever: int


def register(session: Session, facts: Facts) -> None:
    """Makes the worker known, or known again."""
    row = {"id": facts.id, "hostname": facts.hostname, "pid": facts.pid, "device": facts.device, "slots": facts.slots}
    seen = {"last_seen": dpo_now(), "left_at": None, "usable": None, "draining": False}
    session.execute(insert(Worker).values(row).on_conflict_do_update(index_elements=[Worker.id], set_={**row, **seen}))


def beat(session: Session, worker_id: str, condition: Condition | None = None) -> dict[str, str]:
    """The worker is there, in this condition. Returns those of its GPUs that an older worker has, and which one: it
    must leave them to that. Whoever was seen later than now is seen now: PostgreSQL's clock has been set back."""
    said: dict[str, object] = {}
    if condition is not None:
        said = {
            "usable": condition.usable,
            "gpus": list(condition.gpus),
            "out": dict(condition.out),
            "draining": condition.draining,
        }
    session.execute(_is_there(frozenset(said)), {"worker_id": worker_id, **said})
    session.execute(_back_to_now())
    if condition is None or not condition.gpus:
        return {}
    older = select(Worker.id, Worker.gpus).where(
        Worker.id < worker_id, Worker.left_at.is_(None), Worker.last_seen > dpo_now() - HEARD
    )
    ours = set(condition.gpus)
    return {
        gpu: owner for owner, gpus in session.execute(older.order_by(Worker.id.desc())) for gpu in gpus if gpu in ours
    }


@cache
def _is_there(said: frozenset[str]) -> Update:
    """SQL, put together once: every worker says so every few seconds. `said`: columns that are set to parameters."""
    here = update(Worker).where(Worker.id == bindparam("worker_id"))
    here = here.values(last_seen=dpo_now(), left_at=None, **{name: bindparam(name) for name in said})
    return here.execution_options(synchronize_session=False)


@cache
def _back_to_now() -> Update:
    """SQL. Seen later than now, while PostgreSQL's clock was ahead: who dies then would be there for as long as that
    was."""
    later = select(Worker.id).where(Worker.last_seen > dpo_now()).with_for_update(skip_locked=True)
    back = update(Worker).where(Worker.id.in_(later)).values(last_seen=dpo_now())
    return back.execution_options(synchronize_session=False)


def present(session: Session) -> Sequence[Worker]:
    """The living workers, the oldest first."""
    return session.scalars(select(Worker).where(_alive()).order_by(Worker.id)).all()


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
    alive = _alive() & ~Worker.draining
    row = session.execute(
        select(func.coalesce(func.max(_usable()).filter(alive), 0), func.coalesce(func.max(Worker.slots), 0))
    ).one()
    return Largest(alive=row[0], ever=row[1])


def room(session: Session, *, other_than: str | None = None) -> int:
    """The most slots that are free on one living worker, by the jobs that PostgreSQL knows it to have."""
    taken = (
        select(func.coalesce(func.sum(Job.gpus), 0))
        .where(Job.lease_until.is_not(None), Job.worker_id == Worker.id, Job.state != State.validating)
        .scalar_subquery()
    )
    query = select(func.max(_usable() - taken)).where(_alive(), ~Worker.draining)
    if other_than is not None:
        query = query.where(Worker.id != other_than)
    return session.scalar(query) or 0


def _usable() -> ColumnElement[int]:
    return func.coalesce(Worker.usable, Worker.slots)


def _alive() -> ColumnElement[bool]:
    return Worker.left_at.is_(None) & (Worker.last_seen > dpo_now() - ALIVE)

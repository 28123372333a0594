"""A lease and its fence, on a row of any table: how work is taken, kept, reported on, and found when it is lost.

A claim raises the row's fence and sets its lease by PostgreSQL's clock. Whoever reports later names the fence;
one that is not the row's any more changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Interval, Select, Update, bindparam, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from control_plane.database import dpo_now
from control_plane.errors import StaleFence
from control_plane.settings import LONGEST_LEASE
from control_plane.tables import Leased
from dpo_core.run_directory import Failure

L = TypeVar("L", bound=Leased)

SILENT, DEAD = "was not heard of any more", "died, or gave it up"
"""How a worker was lost."""


def take(row: Leased, worker_id: str, lease_seconds: float) -> None:
    """Makes the row, which the caller has locked, the worker's for `lease_seconds` from when the session writes it."""
    row.fence += 1
    row.worker_id = worker_id
    row.lease_until = dpo_now() + timedelta(seconds=lease_seconds)


def renew(session: Session, table: type[Leased], row_id: str, fence: int, lease_seconds: float) -> None:
    """Another `lease_seconds` from now. StaleFence when the row is no longer this claim's.

    An object of the row that the session holds keeps its old `lease_until`.
    """
    given = {"row_id": row_id, "its_fence": fence, "lease": timedelta(seconds=lease_seconds)}
    renewed = session.execute(_renewal(table), given)  # type: ignore[arg-type]  # classes are hashable
    if renewed.one_or_none() is None:
        raise StaleFence(f"{row_id} is not attempt {fence}'s any more: stop its processes.")


def held(session: Session, table: type[L], row_id: str, fence: int) -> L:
    """The row, locked, for a report on it. StaleFence when it is no longer this claim's, or gone."""
    row: L | None = session.scalars(_locked(table), {"row_id": row_id}).one_or_none()  # type: ignore[arg-type]  # classes are hashable
    if row is None or row.fence != fence or row.lease_until is None:
        raise StaleFence(f"{row_id} is not attempt {fence}'s any more; nothing of it is stored.")
    return row


def lapsed(session: Session, table: type[L]) -> Sequence[L]:
    """The rows whose lease ran out, locked; those that somebody else is looking after are left to them.

    A lease that ends later than any may was written while PostgreSQL's clock was ahead, which has come back since. It
    is shortened to the longest one: by its own clock whoever holds it has no longer than that, and renews it meanwhile.
    """
    shorten, find = _lapsed(table)  # type: ignore[arg-type]  # classes are hashable
    session.execute(shorten)
    found: Sequence[L] = session.scalars(find).all()
    return found


def unreported(session: Session, table: type[L], row_id: str, fence: int) -> L | None:
    """The row, locked, if attempt `fence` has its lease. None, too, while somebody else has it locked: a transaction of
    a worker that died may be on its way still, and a lease that is left alone runs out.
    """
    row: L | None = session.scalars(_unreported(table), {"row_id": row_id, "its_fence": fence}).one_or_none()  # type: ignore[arg-type]  # as above
    return row


def lost(row: Leased, how: str) -> Failure:
    """Why an attempt at the row, which is leased still, ends by nobody's report."""
    return Failure(kind="infrastructure", code="worker_lost", message=f"Worker {row.worker_id} {how}.")


def release(row: Leased) -> None:
    """Nobody works on the row any more. Its fence stays, so that the next claim's is higher."""
    row.lease_until = None
    row.worker_id = None


# -- SQL, put together once, which takes longer than the answer. What differs between calls has to be a parameter ------


@cache
def _renewal(table: type[Leased]) -> ReturningUpdate[str]:
    return (
        update(table)
        .where(table.id == bindparam("row_id"), table.fence == bindparam("its_fence"), table.lease_until.is_not(None))
        .values(lease_until=dpo_now() + bindparam("lease", type_=Interval))
        .returning(table.id)
        .execution_options(synchronize_session=False)  # it could not: the parameters come later
    )


@cache
def _locked(table: type[Leased]) -> Select[Any]:
    query = select(table).where(table.id == bindparam("row_id"))
    return query.with_for_update().execution_options(populate_existing=True)


@cache
def _unreported(table: type[Leased]) -> Select[Any]:
    leased = (table.id == bindparam("row_id"), table.fence == bindparam("its_fence"), table.lease_until.is_not(None))
    return select(table).where(*leased).with_for_update(skip_locked=True)


@cache
def _lapsed(table: type[Leased]) -> tuple[Update, Select[Any]]:
    now = select(dpo_now()).scalar_subquery()  # read once, so that the index is searched by it
    latest = now + timedelta(seconds=LONGEST_LEASE)
    too_late = select(table.id).where(table.lease_until > latest).with_for_update(skip_locked=True)
    shorten = update(table).where(table.id.in_(too_late)).values(lease_until=latest)
    find = select(table).where(table.lease_until < now).order_by(table.id).with_for_update(skip_locked=True)
    return shorten, find

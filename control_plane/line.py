"""The line in which jobs wait for a worker, and who is next. docs/decisions/0040-fair-share.md says why it is so.

1. A job of higher priority goes first.
2. Among equals the project that holds fewer GPUs goes first (where data is to be read: that has fewer readers at it),
   then the one whose last start was longest ago. So a project with a thousand jobs takes turns with one that has one.
3. Within a project the oldest goes first.

Large jobs don't starve in it: see `_barrier`. Jobs of whose attempts the last one is left don't share a worker: see
`last_chance`.

Jobs that wait are looked at by groups of equal priority, project and need, through one index (`ix_jobs_line`). So the
line's length costs nothing, and jobs that don't fit are passed over as one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Session, aliased

from control_plane import quotas
from control_plane.attempts import LONGEST_WAIT
from control_plane.database import ONE, dpo_now
from control_plane.job_states import State
from control_plane.quotas import Number
from control_plane.tables import Attempt, Job, Project

Kind = Literal["validate", "train"]

PATIENCE = timedelta(minutes=2)
"""A job that waited longer than this keeps room free for itself."""
NEVER = 2**31 - 1


@dataclass(frozen=True)
class Next:
    """The job that is to be claimed next, as it was when it was locked."""

    job_id: str
    project_id: str
    needs: int
    """Slots; 0 where its data is to be read."""
    project_gpus: int | None
    """What its project may use at once, as of when the search began; None is no limit."""


def last_chance(max_attempts: int | None) -> int:
    """After how many attempts in vain a job's next one is its last.

    When a worker dies nobody knows which of its jobs it was, and the attempts of all count. So that a job which ends
    its workers doesn't take others along until they fail too, no worker has two jobs with one attempt left. Whichever
    publishes a checkpoint has all of them again.
    """
    return NEVER if max_attempts is None else max(1, max_attempts - 1)


def now() -> ColumnElement[Any]:
    """SQL: PostgreSQL's clock, read once a statement, so that an index can be searched by it."""
    return select(dpo_now()).scalar_subquery()


def ready() -> ColumnElement[bool]:
    """SQL: a worker could take the job now, room permitting."""
    leads = or_(Job.sweep_id.is_(None), Job.waits_for.is_(None))
    # A time further ahead than any wait was written while PostgreSQL's clock was ahead, which has come back since.
    resting = Job.not_before.between(now(), now() + timedelta(seconds=LONGEST_WAIT))
    rested = or_(Job.not_before.is_(None), ~resting)
    return and_(Job.needs.is_not(None), leads, rested, Job.needs_bytes.is_(None))


def next_job(
    session: Session,
    *,
    worker_id: str,
    free: int,
    total: int,
    kinds: Collection[Kind],
    project_gpus: int | None,
    max_attempts: int | None,
) -> Next | None:
    """The first job in the line that the worker has room for, locked; those that others are claiming are skipped.

    `free` and `total`: the worker's slots. `project_gpus`: what a project may use at once without a limit of its own.
    `max_attempts`: how many in vain end a job; None is no end.
    """
    trains = "train" in kinds and free > 0
    if not trains and "validate" not in kinds:
        return None
    least, most = (0 if "validate" in kinds else 1), (total if trains else 0)
    given = {"worker_id": worker_id, "free": free, "least": least, "most": most, "project_gpus": project_gpus}
    given["last"] = last_chance(max_attempts)
    row = session.execute(_next_one(), given).one_or_none()
    return None if row is None else Next(*row)


@cache
def _next_one() -> Select[str, str, int, int | None]:
    """SQL: the columns of `Next`. Put together once: that takes several times as long as PostgreSQL's answer."""
    free, least, most, last = (bindparam(name, type_=BigInteger) for name in ("free", "least", "most", "last"))
    worker_id = bindparam("worker_id", type_=Text)
    project_gpus = bindparam("project_gpus", type_=BigInteger)
    heads = first_ones(project_gpus, least, most)
    barrier = _barrier(heads.select().where(may_join(heads.c, worker_id, last)).subquery(), worker_id, free)
    line = _in_order(heads, barrier).where(heads.c.needs <= free).subquery("line")
    age = tuple_(-Job.priority, Job.created_at, Job.id)
    old_enough = age < tuple_(-line.c.barrier_priority, line.c.barrier_created_at, line.c.barrier_id)
    passes = or_(line.c.needs == 0, line.c.barrier_id.is_(None), old_enough)
    # Group by group, until one has a job that nobody else is claiming: nothing else is locked.
    free_one = (
        _first_of(line, Job.project_id, Job.needs)
        .where(passes, may_join(Job, worker_id, last))
        .with_for_update(skip_locked=True)
        .lateral("free_one")
    )
    its_own = select(Project.max_gpus).where(Project.id == free_one.c.project_id).scalar_subquery()
    columns = (free_one.c.id, free_one.c.project_id, free_one.c.needs, func.coalesce(its_own, project_gpus))
    return select(*columns).select_from(line.join(free_one, true())).limit(ONE)


def may_join(job: Any, worker_id: str | BindParameter[str], last: Number) -> ColumnElement[bool]:
    """SQL: the job, a table or its columns, or else each of the worker's, had fewer than `last` attempts in vain."""
    other = aliased(Job)
    theirs = and_(other.lease_until.is_not(None), other.worker_id == worker_id)
    return or_(job.fruitless_attempts < last, ~exists().where(theirs, other.fruitless_attempts >= last))


def first_ones(project_gpus: Number | None, least: Number = 0, most: Number | None = None) -> CTE:
    """SQL: the oldest job of each group that could be claimed, were there room; its project has GPUs left for it.

    Of groups that need from `least` to `most` slots.
    """
    groups = _groups()
    head = _first_of(groups, Job.created_at, Job.fruitless_attempts).lateral("head")
    rooms = quotas.gpu_rooms(project_gpus)
    may_start = or_(groups.c.needs == 0, rooms.c.room.is_(None), rooms.c.room >= groups.c.needs)
    columns = (groups, head.c.id, head.c.created_at, head.c.fruitless_attempts)
    known = groups.outerjoin(rooms, rooms.c.project_id == groups.c.project_id)
    query = select(*columns).select_from(known.join(head, true()))
    wanted = groups.c.needs >= least if most is None else groups.c.needs.between(least, most)
    return query.where(wanted, may_start).cte("heads")


def _groups() -> CTE:
    """SQL: priority, project and need of jobs that wait, each combination once: a hop through the index for each."""
    key = (Job.priority, Job.project_id, Job.needs)
    waiting = select(*key).where(Job.needs.is_not(None)).order_by(*key).limit(ONE)
    groups = waiting.cte("groups", recursive=True)
    behind = tuple_(*key) > tuple_(groups.c.priority, groups.c.project_id, groups.c.needs)
    following = waiting.where(behind).lateral("following")
    return groups.union_all(select(following).select_from(groups.join(following, true())))


def _first_of(group: FromClause, *columns: Any) -> Select[Any]:
    """SQL: the oldest ready job of the group that a row of `group` names."""
    same = and_(Job.priority == group.c.priority, Job.project_id == group.c.project_id, Job.needs == group.c.needs)
    return select(Job.id, *columns).where(same, ready()).order_by(Job.created_at, Job.id).limit(ONE)


def _barrier(heads: FromClause, worker_id: BindParameter[str], free: BindParameter[int]) -> Subquery:
    """SQL: the job behind which this worker takes nothing to train, so that slots come free for it; at most one row.

    It is the first, by priority and age, of those that don't fit now (all of `heads` would fit the whole worker), and
    have waited long or have jobs of this worker yield to them.
    """
    leaver = aliased(Job)
    yielded_to = exists().where(
        leaver.lease_until.is_not(None), leaver.worker_id == worker_id, leaver.yields_to == heads.c.id
    )
    waited_long = heads.c.created_at < now() - PATIENCE
    return (
        select(heads.c.priority, heads.c.created_at, heads.c.id)
        .where(heads.c.needs > free, or_(waited_long, yielded_to))
        .order_by(-heads.c.priority, heads.c.created_at, heads.c.id)
        .limit(ONE)
        .subquery("barrier")
    )


def _in_order(heads: CTE, barrier: Subquery) -> Select[Any]:
    """SQL: the groups in the order in which they are served, each with the barrier beside it."""
    reads = heads.c.needs == 0
    held = _held()
    share = func.coalesce(case((reads, held.c.readers), else_=held.c.gpus), 0)
    kind = case((reads, "validate"), else_="train")
    last_start = (
        select(func.max(Attempt.started_at))
        .where(Attempt.project_id == heads.c.project_id, Attempt.kind == kind)
        .scalar_subquery()
    )
    columns = (
        barrier.c.priority.label("barrier_priority"),
        barrier.c.created_at.label("barrier_created_at"),
        barrier.c.id.label("barrier_id"),
    )
    return (
        select(heads.c.priority, heads.c.project_id, heads.c.needs, *columns)
        .select_from(heads.outerjoin(held, held.c.project_id == heads.c.project_id).outerjoin(barrier, true()))
        .order_by(heads.c.priority.desc(), share, last_start.nulls_first(), heads.c.created_at, heads.c.id)
    )


def _held() -> CTE:
    """SQL: what each project has of the workers now."""
    gpus = func.sum(Job.gpus).filter(Job.state.in_(quotas.ON_GPUS))
    readers = func.count().filter(Job.state == State.validating)
    query = select(Job.project_id, func.coalesce(gpus, 0).label("gpus"), readers.label("readers"))
    held = query.where(Job.lease_until.is_not(None)).group_by(Job.project_id).cte("held")
    return held.prefix_with("MATERIALIZED")  # or it is added up again for each group

"""What a worker takes next: a job that fits, or else a check; for a job of high priority it makes room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from control_plane import checks, leases, line, preemption, questions
from worker.launch import Kind
from worker.work import Tools

VALIDATIONS_AT_ONCE = 2
"""Validation takes no slot, but a CPU and memory."""
CHECKS_AT_ONCE = 2
"""So do checks; they are counted apart, so that neither waits for the other."""
MERGES_AT_ONCE = 1
"""Each holds a whole model in memory."""


@dataclass(frozen=True, slots=True)
class Taken:
    job: leases.Claim | None = None
    check: checks.Claim | None = None
    """Or an order to merge; only where there is no job."""
    told: tuple[str, ...] = ()
    """This worker's jobs that are to yield: their next heartbeats tell them."""


def take_one(session: Session, tools: Tools, worker_id: str, running: Mapping[Kind, int]) -> Taken:
    """`running`: how many of each kind this worker has."""
    if (job := _job(session, tools, worker_id, running)) is not None:
        return Taken(job)
    told = _make_room(session, tools, worker_id)
    return Taken(check=_check(session, tools, worker_id, running), told=tuple(told))


def _job(session: Session, tools: Tools, worker_id: str, running: Mapping[Kind, int]) -> leases.Claim | None:
    has_room = running.get("validate", 0) < VALIDATIONS_AT_ONCE
    kinds: tuple[line.Kind, ...] = ("validate", "train") if has_room else ("train",)
    return leases.claim(
        session,
        worker_id=worker_id,
        free=tools.slots.free,
        total=tools.slots.total,
        lease_seconds=tools.settings.lease_seconds,
        kinds=kinds,
        project_gpus=tools.settings.project_gpus,
        max_attempts=tools.settings.max_attempts,
    )


def _make_room(session: Session, tools: Tools, worker_id: str) -> list[str]:
    """Where a job of high priority waits in vain, others may have to yield."""
    slots = tools.slots
    if slots.free == slots.total:
        return []
    return preemption.make_room(
        session,
        worker_id=worker_id,
        free=slots.free,
        total=slots.total,
        project_gpus=tools.settings.project_gpus,
        max_attempts=tools.settings.max_attempts,
    )


def _check(session: Session, tools: Tools, worker_id: str, running: Mapping[Kind, int]) -> checks.Claim | None:
    asked = checks.QUESTIONS if running.get("check", 0) < CHECKS_AT_ONCE else ()
    orders: tuple[questions.Kind, ...] = ("merge",) if running.get("merge", 0) < MERGES_AT_ONCE else ()
    if not asked and not orders:
        return None
    lease = tools.settings.lease_seconds
    return checks.claim(session, worker_id=worker_id, lease_seconds=lease, kinds=[*asked, *orders])

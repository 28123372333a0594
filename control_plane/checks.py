"""Questions about data that workers answer without a GPU: what a file holds, what a model would see of it.

A question that was asked before is not answered again: its digest covers everything that the answer depends on.
The answer goes with any of the files and models that it is about, and with the questions that come after it (`KEPT`).
docs/job_states.md draws the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from typing import cast

from sqlalchemy import Select, bindparam, delete, exists, null, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane import fences
from control_plane.database import ONE, dpo_now
from control_plane.ids import new_id
from control_plane.questions import Kind, Question
from control_plane.storable import storable
from control_plane.tables import Check, File, Json, Model
from dpo_core.run_directory import DISK_FULL, HOST_OUT_OF_MEMORY, OUT_OF_MEMORY, READER_KILLED, Failure


class State(StrEnum):
    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"


ANSWERED = frozenset({State.done, State.failed})

REST = timedelta(minutes=5)
"""How long a failure that may pass stands, before who asks begins the question anew: who polls would begin it for ever,
and never see that it failed."""

QUESTIONS: tuple[Kind, ...] = ("file", "file_columns", "model_file", "preview", "estimate")
"""All kinds but the order to merge (merges.py)."""

KEPT: dict[Kind, int] = {"file": 1, "file_columns": 8, "model_file": 16, "preview": 32, "estimate": 32, "merge": 1}
"""How many answers of a kind are kept about one file; with a new question the oldest go, and can be asked for again."""

WORKERS_OWN = (DISK_FULL, READER_KILLED, OUT_OF_MEMORY, HOST_OUT_OF_MEMORY)
"""Codes of the kind `resource` that tell of the worker at that time; others of that kind answer the question."""


@dataclass(frozen=True)
class Claim:
    """A worker's right to answer a check, for as long as the lease is renewed."""

    check_id: str
    project_id: str
    kind: Kind
    fence: int
    lease_seconds: float


@dataclass(frozen=True)
class WorkOrder:
    """What a worker needs to answer a check. The rows are detached: plain data."""

    check: Check
    files: dict[str, File]
    models: dict[str, Model]
    """Those that the question is about, by id; an adapter's base among them."""


def ask(session: Session, project_id: str, question: Question) -> Check:
    """The check of this question, made if it is new. Send a hint after the commit where it is not answered.

    One that failed, `REST` ago, through what may have passed since is begun anew, behind those that wait. The caller
    holds the files and models that it is about.
    """
    row = {
        "id": new_id("check"),
        "project_id": project_id,
        "kind": question.kind,
        "digest": question.digest,
        "about": question.about,
        "question": question.body,
        "state": State.waiting.value,
    }
    made = insert(Check).values(row).on_conflict_do_nothing(index_elements=["project_id", "digest"])
    if session.scalar(made.returning(Check.id)) is not None:
        _forget_oldest(session, project_id, question)
    mine = (Check.project_id == project_id) & (Check.digest == question.digest)
    may_have_passed = or_(Check.error["kind"].astext == "infrastructure", Check.error["code"].astext.in_(WORKERS_OWN))
    again = mine & (Check.state == State.failed) & may_have_passed & (Check.finished_at < dpo_now() - REST)
    anew = {"state": State.waiting.value, "error": null(), "fruitless_attempts": 0}
    session.execute(update(Check).where(again).values(**anew, created_at=dpo_now(), finished_at=None))
    return session.scalars(select(Check).where(mine)).one()


def find(session: Session, project_id: str, question: Question) -> Check | None:
    """The check of this question, if it was ever asked."""
    mine = (Check.project_id == project_id) & (Check.digest == question.digest)
    return session.scalars(select(Check).where(mine)).one_or_none()


def is_the_askers(error: Json) -> bool:
    """Whether a failure answers the question, and would be the same on any worker at any time."""
    return error["kind"] != "infrastructure" and error["code"] not in WORKERS_OWN


def read(session: Session, check_id: str) -> Check | None:
    """The check as it is now; None where it was removed."""
    return session.get(Check, check_id)


def forget(session: Session, about: str) -> None:
    """Removes what is known about a file or model that goes. A worker that is at it finds its fence stale."""
    session.execute(delete(Check).where(Check.about.contains([about])))


def _forget_oldest(session: Session, project_id: str, question: Question) -> None:
    """Makes room for a new answer about the question's first file or model. Who asks at the same time does the rest."""
    older = (
        select(Check.id)
        .where(
            Check.project_id == project_id,
            Check.kind == question.kind,
            Check.about.contains(question.about[:1]),
            Check.state.in_(ANSWERED),
        )
        .order_by(Check.created_at.desc(), Check.id)
        .offset(KEPT[question.kind] - 1)
        .with_for_update(skip_locked=True)
    )
    session.execute(delete(Check).where(Check.id.in_(older)))


# -- the workers' side -------------------------------------------------------------------------------


def claim(session: Session, *, worker_id: str, lease_seconds: float, kinds: Sequence[Kind] = QUESTIONS) -> Claim | None:
    """Takes the one of `kinds` that has waited longest, or None; what another worker is claiming is skipped."""
    check = session.scalars(_waiting_longest(), {"kinds": list(kinds)}).one_or_none()
    if check is None:
        return None
    check.state = State.running.value
    fences.take(check, worker_id, lease_seconds)
    return Claim(check.id, check.project_id, cast(Kind, check.kind), check.fence, lease_seconds)


def renew(session: Session, claim: Claim) -> None:
    """Another `lease_seconds`. StaleFence when the check is gone, or no longer this claim's; so below, too."""
    fences.renew(session, Check, claim.check_id, claim.fence, claim.lease_seconds)


def work_order(session: Session, claim: Claim) -> WorkOrder:
    check = _held(session, claim)
    files = session.scalars(select(File).where(File.id.in_(check.about)))
    models = session.scalars(select(Model).where(Model.id.in_(check.about)))
    return WorkOrder(check, {file.id: file for file in files}, {model.id: model for model in models})


def finish(session: Session, claim: Claim, result: Json) -> None:
    """The question is answered. The check of a file says whether anything can be done with it: its `status`."""
    _lock_file(session, claim)
    check = _held(session, claim)
    answer(session, check, result)
    if check.kind == "file":
        damage = result.get("damage")
        status, details = ("processed", None) if damage is None else ("error", damage["message"])
        (file_id,) = check.about
        marked = update(File).where(File.id == file_id)
        session.execute(marked.values(status=status, status_details=details))


def answer(session: Session, check: Check, result: Json) -> None:
    """Ends the check, which the caller has locked or just made."""
    _end(session, check, State.done)
    check.result = storable(result)


def fail(session: Session, claim: Claim, failure: Failure, *, max_attempts: int) -> None:
    """There is no answer. Through infrastructure: another worker tries; otherwise the failure is the answer."""
    _settle(session, _held(session, claim), failure, max_attempts)


def hand_back(session: Session, claim: Claim) -> None:
    """The worker drains: somebody else answers. Does not count as a fruitless attempt."""
    _end(session, _held(session, claim), State.waiting)


def reconcile(session: Session, *, max_attempts: int) -> list[str]:
    """Frees the checks whose lease ran out, and returns the ids of those that wait again."""
    lapsed = fences.lapsed(session, Check)
    return [check.id for check in lapsed if _settle(session, check, fences.lost(check, fences.SILENT), max_attempts)]


def end_dead(session: Session, check_id: str, fence: int, *, max_attempts: int) -> bool:
    """As `leases.end_dead`, of a check."""
    check = fences.unreported(session, Check, check_id, fence)
    if check is not None:
        _settle(session, check, fences.lost(check, fences.DEAD), max_attempts)
    return check is not None


def waiting(session: Session) -> bool:
    """Whether a worker could claim any check."""
    return bool(session.scalar(_any_waiting()))


@cache
def _waiting_longest() -> Select[Check]:
    """SQL, put together once: every worker asks every few seconds. So below."""
    wanted = Check.kind.in_(bindparam("kinds", expanding=True))
    query = select(Check).where(Check.state == State.waiting, wanted).order_by(Check.created_at, Check.id).limit(ONE)
    return query.with_for_update(skip_locked=True)


@cache
def _any_waiting() -> Select[bool]:
    return select(exists().where(Check.state == State.waiting))


def _lock_file(session: Session, claim: Claim) -> None:
    """The file whose row the answer changes, in the order in which its deletion takes them: the file, then its checks.

    Other answers change no file, and lock none: a job that is being made holds several, in an order of its own.
    """
    ours = select(Check.about).where(Check.id == claim.check_id, Check.kind == "file")
    about = session.scalar(ours) or []
    session.execute(select(File.id).where(File.id.in_(about)).with_for_update())


def _held(session: Session, claim: Claim) -> Check:
    return fences.held(session, Check, claim.check_id, claim.fence)


def _settle(session: Session, check: Check, failure: Failure, max_attempts: int) -> bool:
    """Ends an attempt that brought no answer; True when the check waits for another one."""
    check.fruitless_attempts += 1
    if failure.kind == "infrastructure" and check.fruitless_attempts < max_attempts:
        _end(session, check, State.waiting)
        return True
    _end(session, check, State.failed)
    check.error = storable(failure.model_dump())
    return False


def _end(session: Session, check: Check, state: State) -> None:
    fences.release(check)
    check.state = state.value
    check.finished_at = session.scalar(dpo_now().select()) if state in ANSWERED else None
    session.flush()

"""Pausing and resuming: from every state, and what becomes of an attempt that is told to pause."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from control_plane import jobs, leases, pauses, publication, results
from control_plane.database import Database
from control_plane.errors import Conflict, NotFound
from control_plane.job_states import FINAL, State
from control_plane.tables import AuditEntry, Event, Job
from dpo_core.run_directory import Failure, Manifest
from tests.control_plane.rows import PROJECT, claim_one, event_codes, job_in, read_job, started


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.validating, "still being checked; pause it once it is queued or running"),
        (State.pausing, "makes its checkpoint already"),
        (State.paused, "paused already"),
        (State.succeeded, "it is over"),
        (State.failed, "it is over"),
        (State.cancelled, "it is over"),
    ],
)
def test_what_cant_be_paused_says_why(stocked: Database, state: State, words: str) -> None:
    with stocked.transaction() as session:
        job = job_in(session, state)
        with pytest.raises(Conflict, match=words) as refused:
            pauses.pause(session, PROJECT, job.id)
    assert (refused.value.code, read_job(stocked, job.id).state) == ("illegal_move", state)


@pytest.mark.parametrize("state", [state for state in State if state is not State.paused])
def test_only_a_paused_job_is_resumed(stocked: Database, state: State) -> None:
    with stocked.transaction() as session:
        job = job_in(session, state)
        with pytest.raises(Conflict, match=f"is {state} and can't be resumed: it "):
            pauses.resume(session, PROJECT, job.id)
    assert read_job(stocked, job.id).state == state


@pytest.mark.parametrize(
    ("order", "done"),
    [
        (pauses.pause, {State.pausing, State.paused}),
        (pauses.resume, {State.queued, State.running}),
        (jobs.cancel, {State.cancelled}),
    ],
)
def test_an_order_that_may_be_repeated_changes_nothing_where_it_was_carried_out(
    stocked: Database, order: Callable[..., Job], done: set[State]
) -> None:
    def told(session: Session) -> tuple[int, int]:
        return session.query(Event).count(), session.query(AuditEntry).count()

    for state in done:
        with stocked.transaction() as session:
            job = job_in(session, state)
            before = told(session)
            assert order(session, PROJECT, job.id, repeated=True).state == state
            assert told(session) == before
    for state in FINAL - done:
        with stocked.transaction() as session, pytest.raises(Conflict):
            order(session, PROJECT, job_in(session, state).id, repeated=True)


def test_a_waiting_job_is_paused_at_once_and_nobody_takes_it(stocked: Database) -> None:
    with stocked.transaction() as session:
        job = job_in(session, State.queued)
        assert pauses.pause(session, PROJECT, job.id).state == State.paused
        assert leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=30) is None
        assert pauses.resume(session, PROJECT, job.id).state == State.queued
    assert claim_one(stocked).job_id == job.id
    assert event_codes(stocked, job.id)[-3:] == ["job_paused", "job_resumed", "job_started"]


def test_a_paused_job_is_cancelled(stocked: Database) -> None:
    with stocked.transaction() as session:
        job = job_in(session, State.paused)
        assert jobs.cancel(session, PROJECT, job.id).state == State.cancelled


def test_the_order_comes_with_the_renewal_and_the_job_goes_on_where_it_stopped(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        assert not leases.renew(session, claim)
        pauses.pause(session, PROJECT, claim.job_id)
        assert leases.renew(session, claim)
        publication.publish_checkpoint(session, claim, Manifest(step=7, kind="full", files=[]), "checkpoints/x")
        results.hand_back(session, claim)
    assert read_job(stocked, claim.job_id).state == State.paused
    with stocked.transaction() as session:
        pauses.resume(session, PROJECT, claim.job_id)
        newest = session.query(Event).order_by(Event.sequence.desc()).limit(2).all()
    assert [event.message for event in newest] == [
        "The job was resumed: it goes on from step 7.",
        "The job is paused. Resumed, it goes on from step 7.",
    ]
    with stocked.transaction() as session:
        order = results.work_order(session, claim_one(stocked))
    assert order.checkpoint is not None and order.checkpoint.step == 7


def test_a_worker_that_is_lost_while_it_pauses_leaves_the_job_paused(stocked: Database) -> None:
    claim = started(stocked)
    lost = Failure(kind="infrastructure", code="trainer_died", message="It died.")
    with stocked.transaction() as session:
        pauses.pause(session, PROJECT, claim.job_id)
        results.fail(session, claim, lost, max_attempts=5)
    assert read_job(stocked, claim.job_id).state == State.paused


def test_another_projects_job_is_not_there(stocked: Database) -> None:
    with stocked.transaction() as session:
        job = job_in(session, State.queued)
        for order in (pauses.pause, pauses.resume):
            with pytest.raises(NotFound):
                order(session, "proj-other", job.id)

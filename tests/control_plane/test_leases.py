"""Claims, renewals and the reconciler against a real PostgreSQL, with its clock replaced where time must pass."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Thread

import pytest

from control_plane import jobs, leases, publication, results
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.job_states import State, move
from control_plane.leases import Claim
from control_plane.settings import LONGEST_LEASE
from control_plane.tables import Attempt, Job
from dpo_core.run_directory import Manifest
from tests.control_plane.rows import (
    PROJECT,
    claim_one,
    create,
    event_codes,
    job_in,
    read_job,
    set_clock_ahead,
    started,
)


def claim(
    database: Database, *, free: int, total: int, kinds: tuple[leases.Kind, ...] = ("validate", "train")
) -> str | None:
    with database.transaction() as session:
        taken = leases.claim(session, worker_id="w1", free=free, total=total, lease_seconds=30, kinds=kinds)
    return taken.job_id if taken else None


def queue(database: Database, *, gpus: int = 1, priority: str = "normal") -> str:
    with database.transaction() as session:
        return job_in(session, State.queued, resources={"gpus": gpus}, priority=priority).id


def lapse(database: Database, seconds: float = 31) -> None:
    with database.transaction() as session:
        set_clock_ahead(session, seconds)


def reconcile(database: Database, max_attempts: int = 3) -> list[str]:
    with database.transaction() as session:
        return leases.reconcile(session, max_attempts=max_attempts)


def end_dead(database: Database, job_id: str, fence: int = 1, *, max_attempts: int = 3) -> bool:
    with database.transaction() as session:
        return leases.end_dead(session, job_id, fence, max_attempts=max_attempts)


def attempt_of(database: Database, claim: Claim) -> Attempt:
    with database.transaction() as session:
        return session.get_one(Attempt, (claim.job_id, claim.fence))


def test_a_claim_raises_the_fence_and_starts_the_job(stocked: Database) -> None:
    job_id = queue(stocked, gpus=2)
    taken = claim_one(stocked)
    job = read_job(stocked, job_id)
    assert taken == Claim(job_id, PROJECT, 1, "train", 2, 30)
    assert (job.state, job.fence, job.worker_id) == ("running", 1, "w1")
    assert job.lease_until is not None
    assert attempt_of(stocked, taken).outcome is None
    assert event_codes(stocked, job_id)[-1] == "job_started"


def test_a_job_started_when_it_was_first_claimed_to_be_trained(stocked: Database) -> None:
    with stocked.transaction() as session:
        job_id = create(session).id
    claim_one(stocked)
    assert read_job(stocked, job_id).started_at is None, "its data is only read"
    with stocked.transaction() as session:
        move(session, session.get_one(Job, job_id), State.queued, code="queued", message="Queued.")
        session.get_one(Job, job_id).lease_until = None
    claim_one(stocked)
    first = read_job(stocked, job_id).started_at
    assert first is not None
    lapse(stocked)
    reconcile(stocked)
    claim_one(stocked)
    assert read_job(stocked, job_id).started_at == first
    with stocked.transaction() as session:
        told = jobs.list_events(session, PROJECT, job_id, limit=100).items
    starts = [event.data for event in reversed(told) if event.code == "job_started"]
    assert starts == [{"attempt": 1}, {"attempt": 2}]


def test_validation_needs_no_slot_and_is_claimed_once(stocked: Database) -> None:
    with stocked.transaction() as session:
        job_id = create(session, resources={"gpus": 64}).id
    taken = claim_one(stocked, free=0, total=1)
    assert (taken.job_id, taken.kind, taken.gpus, taken.fence) == (job_id, "validate", 0, 1)
    assert read_job(stocked, job_id).state == "validating"
    assert claim(stocked, free=8, total=8) is None


def test_kinds_limit_what_is_claimed(stocked: Database) -> None:
    with stocked.transaction() as session:
        create(session)
    queued = queue(stocked)
    assert claim(stocked, free=8, total=8, kinds=()) is None
    assert claim(stocked, free=8, total=8, kinds=("train",)) == queued
    assert claim(stocked, free=8, total=8, kinds=("train",)) is None


def test_priority_then_age_and_only_what_fits(stocked: Database) -> None:
    low, first, second = queue(stocked, priority="low"), queue(stocked), queue(stocked)
    large, urgent = queue(stocked, gpus=4, priority="high"), queue(stocked, priority="high")
    order = [claim(stocked, free=2, total=2) for _ in range(5)]
    assert order == [urgent, first, second, low, None]
    assert claim(stocked, free=4, total=4) == large


def test_a_large_job_that_waited_long_keeps_younger_ones_back(stocked: Database) -> None:
    older, large = queue(stocked), queue(stocked, gpus=4)
    younger, urgent = queue(stocked), queue(stocked, priority="high")
    lapse(stocked, 121)
    # A worker that is too small for the large job goes on with the small ones: here just the first of them.
    assert claim(stocked, free=1, total=3) == urgent
    assert claim(stocked, free=3, total=4) == older
    assert claim(stocked, free=3, total=4) is None
    assert claim(stocked, free=4, total=4) == large
    assert claim(stocked, free=3, total=4) == younger


def test_a_large_job_that_waits_for_a_short_time_keeps_nothing_back(stocked: Database) -> None:
    queue(stocked, gpus=4)
    younger = queue(stocked)
    assert claim(stocked, free=3, total=4) == younger


def test_validation_is_not_held_back(stocked: Database) -> None:
    queue(stocked, gpus=4)
    with stocked.transaction() as session:
        checked = create(session).id
    lapse(stocked, 121)
    assert claim(stocked, free=0, total=4) == checked


def test_eight_workers_race_for_fifty_jobs(stocked: Database) -> None:
    with stocked.transaction() as session:
        expected = {job_in(session, State.queued).id for _ in range(50)}
    taken: list[list[str]] = [[] for _ in range(8)]
    together = Barrier(8)

    def work(mine: list[str]) -> None:
        together.wait()
        while job_id := claim(stocked, free=1, total=1):
            mine.append(job_id)

    threads = [Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job_id for mine in taken for job_id in mine) == sorted(expected)


def test_renewing_moves_the_lease_by_the_servers_clock(stocked: Database) -> None:
    taken = started(stocked)
    before = read_job(stocked, taken.job_id).lease_until
    lapse(stocked, 20)
    with stocked.transaction() as session:
        leases.renew(session, taken)
    after = read_job(stocked, taken.job_id).lease_until
    assert before is not None and after is not None
    assert 20 <= (after - before).total_seconds() < 30
    lapse(stocked, 45)
    assert reconcile(stocked) == []


def test_each_renewal_is_as_long_as_its_claim_says(stocked: Database) -> None:
    taken = started(stocked)
    ends = []
    for seconds in (100.0, 700.0):
        with stocked.transaction() as session:
            leases.renew(session, replace(taken, lease_seconds=seconds))
        ends.append(read_job(stocked, taken.job_id).lease_until)
    first, second = ends
    assert first is not None and second is not None
    assert 600 <= (second - first).total_seconds() < 630


def test_renewing_what_was_cancelled_lost_or_ended_is_stale(stocked: Database) -> None:
    cancelled, ended, lost = started(stocked), started(stocked), started(stocked)
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, cancelled.job_id)
        results.hand_back(session, ended)
    lapse(stocked)
    assert reconcile(stocked) == [lost.job_id]
    for stale in (cancelled, ended, lost):
        with pytest.raises(StaleFence), stocked.transaction() as session:
            leases.renew(session, stale)


def test_lapsed_training_is_queued_again_under_a_higher_fence(stocked: Database) -> None:
    taken = started(stocked)
    assert reconcile(stocked) == []
    lapse(stocked)
    assert reconcile(stocked) == [taken.job_id]
    job = read_job(stocked, taken.job_id)
    assert (job.state, job.lease_until, job.worker_id, job.fruitless_attempts) == ("queued", None, None, 1)
    assert attempt_of(stocked, taken).outcome == "lost"
    assert event_codes(stocked, job.id)[-1] == "worker_lost"
    assert claim_one(stocked).fence == 2


def test_an_attempt_whose_worker_is_known_to_be_dead_ends_before_its_lease_does(stocked: Database) -> None:
    taken = started(stocked)
    assert end_dead(stocked, taken.job_id)
    job = read_job(stocked, taken.job_id)
    assert (job.state, job.lease_until, job.worker_id, job.fruitless_attempts) == ("queued", None, None, 1)
    attempt = attempt_of(stocked, taken)
    assert attempt.outcome == "lost" and attempt.error is not None
    assert attempt.error["message"] == "Worker w1 died, or gave it up."
    assert event_codes(stocked, job.id)[-1] == "worker_lost"
    assert not end_dead(stocked, taken.job_id), "it was ended already"
    assert claim_one(stocked).fence == 2
    assert end_dead(stocked, taken.job_id, 2, max_attempts=2)
    assert read_job(stocked, taken.job_id).state == "failed", "such attempts count as any that was lost"


def test_nobody_ends_another_attempt_than_the_dead_workers(stocked: Database) -> None:
    taken = started(stocked)
    assert not end_dead(stocked, taken.job_id, 2)
    assert not end_dead(stocked, "ftjob-unknown")
    with stocked.transaction() as session:
        leases.renew(session, taken)
        assert not end_dead(stocked, taken.job_id), "it is left to its lease, and not waited for"
    assert read_job(stocked, taken.job_id).state == "running"


def test_a_lease_of_a_time_when_the_clock_was_ahead_keeps_no_job_for_so_long(stocked: Database) -> None:
    lapse(stocked, 3600)
    alive, dead = started(stocked), started(stocked)
    lapse(stocked, 0)
    assert reconcile(stocked) == [], "they may be at work"
    with stocked.transaction() as session:
        leases.renew(session, alive)
    until_alive, until_dead = (read_job(stocked, taken.job_id).lease_until for taken in (alive, dead))
    assert until_alive is not None and until_dead is not None
    assert 0 < (until_dead - until_alive).total_seconds() <= LONGEST_LEASE - 30
    lapse(stocked, LONGEST_LEASE + 1)
    assert reconcile(stocked) == sorted([alive.job_id, dead.job_id])


def test_lapsed_validation_is_free_again(stocked: Database) -> None:
    with stocked.transaction() as session:
        create(session)
    taken = claim_one(stocked)
    lapse(stocked)
    assert reconcile(stocked) == [taken.job_id]
    assert read_job(stocked, taken.job_id).state == "validating"
    again = claim_one(stocked)
    assert (again.job_id, again.kind, again.fence) == (taken.job_id, "validate", 2)


def test_too_many_fruitless_attempts_fail_and_fruitful_ones_do_not_count(stocked: Database) -> None:
    taken = started(stocked)
    for attempt, fruitful, outcome in [
        (1, False, "queued"),
        (2, True, "queued"),
        (3, False, "queued"),
        (4, True, "queued"),
        (5, False, "queued"),
        (6, False, "failed"),
    ]:
        if fruitful:
            with stocked.transaction() as session:
                publication.publish_checkpoint(
                    session, taken, Manifest(step=attempt, kind="full", files=[]), f"p{attempt}"
                )
        lapse(stocked, 31 * attempt)
        assert reconcile(stocked, max_attempts=2) == ([taken.job_id] if outcome == "queued" else [])
        assert read_job(stocked, taken.job_id).state == outcome
        if outcome == "queued":
            taken = claim_one(stocked)
    job = read_job(stocked, taken.job_id)
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert job.error["message"].startswith(
        "2 attempts in a row ended without a new checkpoint (2 times worker_lost); the last: Worker w1"
    )
    assert "It may be the job that ends its workers" in job.error["message"]
    assert job.finished_at is not None


def test_a_checkpoint_published_once_more_is_no_progress(stocked: Database) -> None:
    taken = started(stocked)
    for attempt, state in [(1, "queued"), (2, "failed")]:
        with stocked.transaction() as session:
            publication.publish_checkpoint(session, taken, Manifest(step=1, kind="full", files=[]), f"p{attempt}")
        lapse(stocked, 31 * attempt)
        reconcile(stocked, max_attempts=1)
        assert read_job(stocked, taken.job_id).state == state
        if state == "queued":
            taken = claim_one(stocked)


def test_one_reconciler_at_a_time(stocked: Database) -> None:
    taken = started(stocked)
    lapse(stocked)
    with stocked.transaction() as first:
        assert leases.reconcile(first, max_attempts=3) == [taken.job_id]
        assert reconcile(stocked) == []
    assert read_job(stocked, taken.job_id).fruitless_attempts == 1


def test_waiting_is_what_could_be_claimed(stocked: Database) -> None:
    with stocked.transaction() as session:
        job_in(session, State.running)
        job_in(session, State.paused)
        assert not leases.waiting(session)
        create(session)
        assert leases.waiting(session)
    claim_one(stocked)
    with stocked.transaction() as session:
        assert not leases.waiting(session)

"""How long a job waits after an attempt that infrastructure ended, and what ends the wait."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from control_plane import leases, pauses, publication, results
from control_plane.attempts import GROWTH, LONGEST_WAIT, UNBEGUN_TRIES
from control_plane.database import Database, dpo_now
from control_plane.job_states import State
from control_plane.leases import Claim
from control_plane.tables import Event, Job
from dpo_core.run_directory import CHECKPOINT_UNREADABLE, Failure, Manifest
from tests.control_plane.rows import PROJECT, claim_one, create, read_job, set_clock_ahead, started

RETRY_SECONDS = 8.0
DIED = Failure(kind="infrastructure", code="trainer_died", message="The training processes ended.")


def fail(database: Database, claim: Claim, *, max_attempts: int = 20) -> Job:
    with database.transaction() as session:
        results.fail(session, claim, DIED, max_attempts=max_attempts, retry_seconds=RETRY_SECONDS)
    return read_job(database, claim.job_id)


def now(database: Database) -> datetime:
    with database.transaction() as session:
        return session.execute(dpo_now().select()).scalar_one()


def free(database: Database) -> bool:
    """Whether a worker would be given the job."""
    with database.transaction() as session:
        taken = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=30)
        session.rollback()
    return taken is not None


def set_ahead(database: Database, seconds: float) -> None:
    with database.transaction() as session:
        set_clock_ahead(session, seconds)


def waits(database: Database, job: Job) -> float:
    assert job.not_before is not None
    return (job.not_before - now(database)).total_seconds()


def test_each_fruitless_attempt_makes_the_wait_longer_up_to_a_bound(stocked: Database) -> None:
    claim = started(stocked)
    ahead = 0.0
    for attempt in range(6):
        longest = min(LONGEST_WAIT, RETRY_SECONDS * GROWTH**attempt)
        job = fail(stocked, claim)
        assert longest / 2 - 5 < waits(stocked, job) <= longest, attempt
        assert not free(stocked)
        ahead += longest
        set_ahead(stocked, ahead)
        claim = claim_one(stocked)
        assert read_job(stocked, job.id).not_before is None


def test_the_event_says_for_how_long_and_until_when(stocked: Database) -> None:
    job = fail(stocked, started(stocked))
    assert job.not_before is not None
    with stocked.transaction() as session:
        event = session.query(Event).filter_by(code="trainer_died").one()
    assert event.message.startswith(
        "The training processes ended; the job begins again, as it has no checkpoint yet, in "
    )
    assert event.message.endswith(" s at the earliest.")
    assert event.data == {"kind": "infrastructure", "not_before": int(job.not_before.timestamp())}


def test_no_wait_after_an_attempt_with_a_new_checkpoint(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, claim, Manifest(step=4, kind="full", files=[]), "p")
    assert fail(stocked, claim).not_before is None
    assert free(stocked)


def test_no_wait_after_a_drain(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        results.hand_back(session, claim)
    assert free(stocked)


def test_a_job_whose_data_is_read_waits_too(stocked: Database) -> None:
    with stocked.transaction() as session:
        create(session)
    job = fail(stocked, claim_one(stocked))
    assert (job.state, free(stocked)) == (State.validating, False)
    set_ahead(stocked, RETRY_SECONDS)
    assert free(stocked)


def test_who_resumes_a_job_by_hand_doesnt_wait(stocked: Database) -> None:
    job = fail(stocked, started(stocked))
    with stocked.transaction() as session:
        pauses.pause(session, PROJECT, job.id)
        pauses.resume(session, PROJECT, job.id)
    assert free(stocked)


def test_a_job_that_was_to_be_paused_is_paused_and_waits_for_nothing(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        pauses.pause(session, PROJECT, claim.job_id)
    job = fail(stocked, claim)
    assert (job.state, job.not_before) == (State.paused, None)


def test_a_poison_job_fails_and_says_what_became_of_its_attempts(stocked: Database) -> None:
    claim, ahead = started(stocked), 0.0
    for _ in range(2):
        ahead += 1000
        set_ahead(stocked, ahead)
        with stocked.transaction() as session:
            leases.reconcile(session, max_attempts=3, retry_seconds=RETRY_SECONDS)
        set_ahead(stocked, ahead := ahead + 1000)
        claim = claim_one(stocked)
    job = fail(stocked, claim, max_attempts=3)
    assert (job.state, job.error and job.error["kind"]) == ("failed", "infrastructure")
    assert job.error is not None and job.error["message"] == (
        "3 attempts in a row ended without a new checkpoint (once trainer_died, 2 times worker_lost); "
        "the last: The training processes ended."
    )


def test_without_a_setting_the_next_attempt_may_follow_at_once(stocked: Database) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, DIED, max_attempts=5, retry_seconds=0)
    assert free(stocked)


def not_begun(database: Database, claim: Claim) -> Job:
    away = Failure(kind="infrastructure", code="worker_error", message="FileNotFoundError while fetching.")
    with database.transaction() as session:
        results.fail(session, claim, away, max_attempts=2, retry_seconds=RETRY_SECONDS, begun=False)
    return read_job(database, claim.job_id)


def test_what_a_worker_could_not_begin_does_not_count_and_waits_ever_longer(stocked: Database) -> None:
    claim, waits = started(stocked), []
    for _ in range(4):
        job = not_begun(stocked, claim)
        assert (job.state, job.fruitless_attempts) == (State.queued, 0)
        assert job.not_before is not None
        waits.append((job.not_before - now(stocked)).total_seconds())
        set_ahead(stocked, sum(waits) + 1)
        claim = claim_one(stocked)
    assert 8 * GROWTH**2 / 2 - 1 < waits[2] < waits[3] <= LONGEST_WAIT, waits
    with stocked.transaction() as session:
        told = [
            it for it in session.scalars(select(Event).where(Event.job_id == claim.job_id)) if it.code == "not_begun"
        ]
    assert len(told) == 4
    assert told[0].message.startswith("FileNotFoundError while fetching; the job begins again")


def test_what_nobody_could_begin_for_half_a_day_fails(stocked: Database) -> None:
    claim, passed = started(stocked), 0.0
    for _ in range(UNBEGUN_TRIES - 1):
        assert not_begun(stocked, claim).state == State.queued
        passed += 3600
        set_ahead(stocked, passed)
        claim = claim_one(stocked)
    assert fail(stocked, claim).state == State.queued, "this one was begun: the patience begins anew"
    for _ in range(UNBEGUN_TRIES):
        passed += 3600
        set_ahead(stocked, passed)
        job = not_begun(stocked, claim_one(stocked))
    assert job.state == State.failed and job.error is not None
    assert job.error["code"] == "not_begun"
    assert f"No worker could begin it in {UNBEGUN_TRIES} tries since " in job.error["message"]


def test_a_state_that_nobody_could_read_for_half_a_day_is_gone_round(stocked: Database) -> None:
    claim, passed, steps = started(stocked), 0.0, []
    with stocked.transaction() as session:
        for step in (1, 2):
            manifest = Manifest(step=step, kind="full", files=[])
            publication.publish_checkpoint(session, claim, manifest, f"p{step}")
    unreadable = Failure(kind="infrastructure", code=CHECKPOINT_UNREADABLE, message="It can't be read: EIO.")
    for _ in range(2 * UNBEGUN_TRIES):
        with stocked.transaction() as session:
            results.fail(session, claim, unreadable, max_attempts=2, retry_seconds=RETRY_SECONDS)
        if read_job(stocked, claim.job_id).state == State.failed:
            break
        passed += 3600
        set_ahead(stocked, passed)
        claim = claim_one(stocked)
        with stocked.transaction() as session:
            checkpoint = results.work_order(session, claim).checkpoint
            steps.append(checkpoint.step if checkpoint else 0)
    assert steps == [2] * (UNBEGUN_TRIES - 1) + [1] * UNBEGUN_TRIES
    assert read_job(stocked, claim.job_id).state == State.failed, "neither can be read"


def test_tries_that_did_not_count_are_not_named_where_others_are_counted(stocked: Database) -> None:
    claim, passed = started(stocked), 0.0
    for number in range(5):
        job = fail(stocked, claim, max_attempts=3) if number % 2 == 0 else not_begun(stocked, claim)
        if job.state == State.queued:
            passed += 3600
            set_ahead(stocked, passed)
            claim = claim_one(stocked)
    assert job.state == State.failed and job.error is not None
    assert "3 attempts in a row ended without a new checkpoint (3 times trainer_died)" in job.error["message"]

"""When a job that a full disk stopped is let go on."""

from __future__ import annotations

from control_plane import results, room
from control_plane.database import Database
from control_plane.tables import Job
from dpo_core.run_directory import DISK_FULL, Failure
from tests.control_plane.rows import claim_one, event_codes, read_job, set_clock_ahead, started

GIGABYTE = 10**9
FULL = Failure(kind="resource", code=DISK_FULL, message="The disk is full.")


def stopped(database: Database, needs_bytes: int, *, estimate: int) -> str:
    """A job that waits for `needs_bytes`, and of which `estimate` is known that it will write so much."""
    claim = started(database)
    with database.transaction() as session:
        disk = {"checkpoints": 1, "model": estimate, "state": 0, "kept": estimate, "peak": estimate}
        session.get_one(Job, claim.job_id).resolved = {"disk": disk}
        results.fail(session, claim, FULL, max_attempts=5, needs_bytes=needs_bytes)
    return claim.job_id


def release(database: Database, free: int) -> list[str]:
    with database.transaction() as session:
        return room.release(session, free)


def let_time_pass(database: Database, times: int) -> None:
    """So many times as long, in all, as the first wait."""
    with database.transaction() as session:
        set_clock_ahead(session, times * room.RETRY_AFTER.total_seconds())


def test_a_job_goes_on_once_there_is_as_much_room_as_it_waits_for(stocked: Database) -> None:
    job_id = stopped(stocked, 3 * GIGABYTE, estimate=GIGABYTE)
    assert release(stocked, 2 * GIGABYTE) == []
    assert release(stocked, 3 * GIGABYTE) == [job_id]
    assert read_job(stocked, job_id).needs_bytes is None and "room_again" in event_codes(stocked, job_id)
    assert claim_one(stocked).job_id == job_id


def test_room_that_was_made_before_anybody_measured_is_not_asked_for_twice(stocked: Database) -> None:
    """It waits for more than was free then, which was plenty: its estimate decides after a while."""
    job_id = stopped(stocked, 21 * GIGABYTE, estimate=GIGABYTE)
    assert release(stocked, 20 * GIGABYTE) == []
    let_time_pass(stocked, 2)
    assert release(stocked, GIGABYTE // 2) == [], "the estimate doesn't fit"
    assert release(stocked, 20 * GIGABYTE) == [job_id]


def test_a_job_whose_estimate_is_too_low_is_tried_ever_less_often(stocked: Database) -> None:
    job_id = stopped(stocked, 21 * GIGABYTE, estimate=GIGABYTE)
    let_time_pass(stocked, 2)
    assert release(stocked, 20 * GIGABYTE) == [job_id]
    claim = claim_one(stocked)
    with stocked.transaction() as session:
        results.fail(session, claim, FULL, max_attempts=5, needs_bytes=21 * GIGABYTE)
    let_time_pass(stocked, 5)
    assert release(stocked, 20 * GIGABYTE) == [], "three times as long is not enough this time"
    let_time_pass(stocked, 8)
    assert release(stocked, 20 * GIGABYTE) == [job_id]

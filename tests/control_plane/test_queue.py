"""Why a job waits and until when: one reason after another, as each of them would hold it up."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from sqlalchemy import update

from control_plane import leases, pauses, preemption, queue, results, workers
from control_plane.database import Database, dpo_now
from control_plane.job_states import State
from control_plane.leases import Claim
from control_plane.queue import Queue, Reason, Waiting
from control_plane.tables import Job, Project
from control_plane.workers import Condition, Facts
from dpo_core.footprint import in_bytes
from dpo_core.run_directory import DISK_FULL, Failure
from tests.control_plane.rows import PROJECT, add_file, add_project, create, job_in, set_clock_ahead
from tests.control_plane.sweeps import make_sweep

DIED = Failure(kind="infrastructure", code="trainer_died", message="It died.")


@pytest.fixture
def manned(stocked: Database) -> Database:
    """One worker, w1, with four slots."""
    with stocked.transaction() as session:
        workers.register(session, Facts("w1", "host", 1, "cpu", 4))
    return stocked


def read(database: Database, *, project_gpus: int | None = None, **page: int | str | None) -> Queue:
    with database.transaction() as session:
        return queue.read(session, PROJECT, project_gpus=project_gpus, **page)  # type: ignore[arg-type]


def why(
    database: Database, job_id: str, *, project_gpus: int | None = None, max_attempts: int | None = None
) -> Waiting:
    waiting = read(database, project_gpus=project_gpus, max_attempts=max_attempts).waiting
    (found,) = (it for it in waiting if it.job.id == job_id)
    return found


def add(database: Database, *, gpus: int = 1, state: State = State.queued, **changes: object) -> str:
    with database.transaction() as session:
        return job_in(session, state, resources={"gpus": gpus}, **changes).id


def run(database: Database, *, gpus: int = 1, worker_id: str = "w1", **changes: object) -> Claim:
    add(database, gpus=gpus, **changes)
    with database.transaction() as session:
        claim = leases.claim(session, worker_id=worker_id, free=8, total=8, lease_seconds=600, kinds=("train",))
    assert claim is not None
    return claim


def beat(database: Database, **condition: object) -> None:
    with database.transaction() as session:
        workers.beat(session, "w1", Condition(**condition))  # type: ignore[arg-type]


def halfway(database: Database, claim: Claim) -> None:
    """Ten of a hundred steps were done in the last ten seconds."""
    with database.transaction() as session:
        results.record(session, claim, step=10, total_steps=100)
        set_clock_ahead(session, 10)
        results.record(session, claim, step=20, total_steps=100)


def test_a_paused_job(manned: Database) -> None:
    job_id = add(manned, state=State.paused)
    assert (why(manned, job_id).reason, why(manned, job_id).until) == (Reason.paused, None)


def test_a_job_whose_data_is_read_or_will_be(manned: Database) -> None:
    with manned.transaction() as session:
        first, second = create(session).id, create(session).id
        leases.claim(session, worker_id="w1", free=4, total=4, lease_seconds=30)
    assert [why(manned, job_id).reason for job_id in (first, second)] == [Reason.being_read, Reason.readers_busy]


def test_a_job_that_rests_after_lost_attempts_says_until_when(manned: Database) -> None:
    claim = run(manned)
    with manned.transaction() as session:
        results.fail(session, claim, DIED, max_attempts=5, retry_seconds=60)
    found = why(manned, claim.job_id)
    assert found.reason is Reason.resting and found.message.startswith("Its last attempt brought it no further")
    assert found.until is not None and found.until == found.job.not_before


def test_a_job_that_a_worker_could_not_begin(manned: Database) -> None:
    claim = run(manned)
    with manned.transaction() as session:
        results.fail(session, claim, DIED, max_attempts=9, retry_seconds=60.0, begun=False)
    found = why(manned, claim.job_id)
    assert found.reason is Reason.resting and found.until is not None
    assert found.message.startswith("A worker could not begin it, through trouble of its own")


def test_a_job_that_a_full_disk_stopped_waits_for_room(manned: Database) -> None:
    claim = run(manned)
    with manned.transaction() as session:
        full = Failure(kind="resource", code=DISK_FULL, message="The disk is full.")
        results.fail(session, claim, full, max_attempts=5, needs_bytes=3 * 10**9)
    found = why(manned, claim.job_id)
    assert found.reason is Reason.disk_full
    assert found.message == f"A disk was full; it goes on by itself once a worker has {in_bytes(3 * 10**9)} of room."


def test_a_job_that_waits_for_another_one_of_its_sweep(manned: Database) -> None:
    _, (leader, follower, _) = make_sweep(manned)
    found = why(manned, follower)
    assert (found.reason, found.message) == (Reason.sweep, f"Job {leader} of its sweep reads the files for both.")


def test_no_worker(stocked: Database) -> None:
    assert why(stocked, add(stocked)).reason is Reason.no_worker


def test_a_worker_that_stops_takes_nothing(manned: Database) -> None:
    job_id = add(manned)
    beat(manned, usable=4, draining=True)
    assert why(manned, job_id).reason is Reason.no_worker
    (place,) = read(manned).places
    assert (place.worker.draining, place.free) == (True, 0)


def test_nothing_is_expected_of_a_worker_that_was_silent(manned: Database) -> None:
    job_id = add(manned)
    with manned.transaction() as session:
        set_clock_ahead(session, 26)
    found = why(manned, job_id)
    assert found.reason is Reason.no_worker
    assert re.fullmatch(r"There is no worker that takes work\. One was not heard of for 2\d s\.", found.message)
    (place,) = read(manned).places
    assert place.silent_for is not None and (place.usable, place.free) == (4, 0)
    beat(manned, usable=4)
    assert why(manned, job_id).reason is Reason.next


def test_a_job_that_only_a_silent_worker_is_large_enough_for(manned: Database) -> None:
    job_id = add(manned, gpus=4)
    with manned.transaction() as session:
        set_clock_ahead(session, 26)
        workers.register(session, Facts("w2", "host", 2, "cpu", 1))
    found = why(manned, job_id)
    assert found.reason is Reason.no_worker
    assert found.message.startswith("It needs 4 slots, and no worker that is there has so many. One was not heard of")


def test_no_worker_is_large_enough_for_gpus_are_out(manned: Database) -> None:
    job_id = add(manned, gpus=4)
    beat(manned, usable=3, gpus=("GPU-a", "GPU-b", "GPU-c", "GPU-d"), out={"GPU-b": "busy (pid 7, 3.2 GiB)"})
    found = why(manned, job_id)
    assert (found.reason, found.message) == (
        Reason.too_large,
        "It needs 4 slots (GPUs, or CPU processes), and no worker has more than 3. 1 GPUs are out, see the workers.",
    )
    (place,) = read(manned).places
    assert (place.usable, place.worker.out) == (3, {"GPU-b": "busy (pid 7, 3.2 GiB)"})


def test_the_project_s_limit_and_when_there_will_be_room_under_it(manned: Database) -> None:
    claim = run(manned, gpus=2)
    job_id = add(manned)
    halfway(manned, claim)
    found = why(manned, job_id, project_gpus=2)
    assert (found.reason, found.message) == (
        Reason.project_limit,
        "Its project may use 2 GPUs at once and uses 2; this job needs 1.",
    )
    assert found.until is not None
    with manned.transaction() as session:
        session.get_one(Project, PROJECT).max_gpus = 3
    assert why(manned, job_id, project_gpus=2).reason is Reason.next


def test_no_free_slot_and_when_there_will_be_one(manned: Database) -> None:
    job_id = add(manned, gpus=3)
    with manned.transaction() as session:
        session.execute(update(Job).values(created_at=dpo_now() + timedelta(hours=1)))
    claim = run(manned, gpus=2)
    assert why(manned, job_id).until is None, "nobody knows how long the other one takes"
    halfway(manned, claim)
    found = why(manned, job_id)
    assert (found.reason, found.message) == (
        Reason.no_slots_free,
        "It needs 3 free slots on one worker, and 2 are free.",
    )
    assert found.until is not None
    with manned.transaction() as session:
        seconds = (found.until - session.scalars(dpo_now().select()).one()).total_seconds()
    assert 60 < seconds <= 81, "80 steps at a step a second"
    with manned.transaction() as session:
        set_clock_ahead(session, 200)
    beat(manned, usable=4)
    later = why(manned, job_id).until
    with manned.transaction() as session:
        now = session.scalars(dpo_now().select()).one()
    assert later is not None and (now - later).total_seconds() < 60, "a run that is late ends soon, not in the past"


def test_room_is_made(manned: Database) -> None:
    run(manned, gpus=4, preemptible=True)
    job_id = add(manned, priority="high")
    with manned.transaction() as session:
        preemption.make_room(session, worker_id="w1", free=0, total=4, project_gpus=None)
    assert why(manned, job_id).reason is Reason.room_is_made


def test_behind_a_large_job(manned: Database) -> None:
    large = add(manned, gpus=4)
    run(manned, gpus=1, priority="high")
    small = add(manned)
    assert why(manned, small).reason is Reason.next
    with manned.transaction() as session:
        set_clock_ahead(session, 121)
        workers.beat(session, "w1")
    found = why(manned, small)
    assert (found.reason, found.message) == (
        Reason.behind_a_large_job,
        f"Job {large} needs 4 slots and goes first; those that are free are kept for it.",
    )
    with manned.transaction() as session:
        workers.register(session, Facts("w2", "host", 1, "cpu", 2))
    assert why(manned, small).reason is Reason.next, "the other worker is too small for that"


@pytest.mark.parametrize("state", [State.queued, State.validating])
def test_no_worker_takes_two_jobs_with_one_attempt_left(manned: Database, state: State) -> None:
    first, second = run(manned).job_id, add(manned, state=state)
    with manned.transaction() as session:
        session.execute(update(Job).where(Job.id.in_((first, second))).values(fruitless_attempts=4))
    found = why(manned, second, max_attempts=5)
    assert found.reason is Reason.kept_apart and found.message.startswith("Its last 4 attempts brought it no further")
    with manned.transaction() as session:
        workers.register(session, Facts("w2", "host", 2, "cpu", 4))
    reason = Reason.next if state == State.queued else Reason.readers_busy
    assert why(manned, second, max_attempts=5).reason is reason, "there is room on another worker"


def test_another_project_s_jobs_are_neither_listed_nor_named(manned: Database) -> None:
    with manned.transaction() as session:
        add_project(session, "proj-2", "other")
        add_file(session, "file-2", project_id="proj-2")
    large = add(manned, gpus=4)
    with manned.transaction() as session:
        session.get_one(Job, large).project_id = "proj-2"
    run(manned, gpus=1, priority="high")
    small = add(manned)
    with manned.transaction() as session:
        set_clock_ahead(session, 121)
        workers.beat(session, "w1")
    assert [it.job.id for it in read(manned).waiting] == [small]
    assert why(manned, small).message.startswith("A job of another project needs 4 slots")


def test_the_next_job_comes_first_and_pages_go_on(manned: Database) -> None:
    low, first, second = add(manned, priority="low"), add(manned), add(manned)
    urgent = add(manned, priority="high")
    one = [it.job.id for it in read(manned, limit=3).waiting]
    rest = read(manned, limit=3, after=one[-1])
    assert (one, [it.job.id for it in rest.waiting], rest.has_more) == ([urgent, first, second], [low], False)


def test_a_resumed_job_is_next(manned: Database) -> None:
    job_id = add(manned)
    with manned.transaction() as session:
        pauses.pause(session, PROJECT, job_id)
    assert why(manned, job_id).reason is Reason.paused
    with manned.transaction() as session:
        pauses.resume(session, PROJECT, job_id)
    assert why(manned, job_id).reason is Reason.next

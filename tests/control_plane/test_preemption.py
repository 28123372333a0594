"""Who yields to a job of high priority, how it hears of it, and who gets what comes free."""

from __future__ import annotations

import pytest

from control_plane import jobs, leases, pauses, preemption, publication, results, workers
from control_plane.database import Database
from control_plane.job_states import State
from control_plane.leases import Claim
from control_plane.tables import Event, Job
from dpo_core.run_directory import Failure, Manifest
from tests.control_plane.rows import PROJECT, add_project, claim_one, event_codes, job_in, read_job

ME = "w1"


def run(database: Database, *, gpus: int = 1, preemptible: bool = True, priority: str = "normal") -> Claim:
    """A claim of this worker on a new job that trains."""
    queue(database, gpus=gpus, preemptible=preemptible, priority=priority)
    return claim_one(database, worker_id=ME)


def queue(database: Database, *, gpus: int = 1, priority: str = "high", preemptible: bool = False) -> str:
    with database.transaction() as session:
        changes = {"resources": {"gpus": gpus}, "priority": priority, "preemptible": preemptible}
        return job_in(session, State.queued, **changes).id


def make_room(database: Database, *, free: int = 0, total: int = 8, max_attempts: int | None = None) -> list[str]:
    with database.transaction() as session:
        return preemption.make_room(
            session, worker_id=ME, free=free, total=total, project_gpus=None, max_attempts=max_attempts
        )


def told(database: Database, claim: Claim) -> bool:
    with database.transaction() as session:
        return leases.renew(session, claim)


def hand_back(database: Database, claim: Claim) -> None:
    with database.transaction() as session:
        results.hand_back(session, claim)


def take(database: Database, *, free: int, total: int = 8) -> str | None:
    with database.transaction() as session:
        claim = leases.claim(session, worker_id=ME, free=free, total=total, lease_seconds=30)
    return claim.job_id if claim else None


def test_nobody_yields_to_a_job_that_this_worker_would_not_take(stocked: Database) -> None:
    """Both have one attempt left, and no worker has two of those."""
    kept, _ = run(stocked, preemptible=False), run(stocked)
    urgent = queue(stocked)
    with stocked.transaction() as session:
        for job_id in (kept.job_id, urgent):
            session.get_one(Job, job_id).fruitless_attempts = 4
    assert make_room(stocked, total=2, max_attempts=5) == []
    assert make_room(stocked, total=2, max_attempts=6) != []


def test_a_preemptible_job_yields_and_goes_on_later_from_its_checkpoint(stocked: Database) -> None:
    low, kept = run(stocked), run(stocked, preemptible=False)
    urgent = queue(stocked)
    assert make_room(stocked, total=2) == [low.job_id]
    assert (told(stocked, low), told(stocked, kept)) == (True, False)
    assert make_room(stocked, total=2) == [], "it is under way"
    with stocked.transaction() as session:
        publication.publish_checkpoint(session, low, Manifest(step=7, kind="full", files=[]), "p")
        results.hand_back(session, low)
    job = read_job(stocked, low.job_id)
    assert (job.state, job.yields_to, job.not_before, job.fruitless_attempts) == ("queued", None, None, 0)
    assert take(stocked, free=1) == urgent, "the one it yielded to goes first"
    again = claim_one(stocked, worker_id=ME)
    with stocked.transaction() as session:
        order = results.work_order(session, again)
    assert (again.job_id, order.checkpoint and order.checkpoint.step) == (low.job_id, 7)
    assert event_codes(stocked, low.job_id)[-4:] == [
        "job_preempted",
        "checkpoint_created",
        "handed_back",
        "job_started",
    ]
    assert event_codes(stocked, urgent)[-2:] == ["room_is_made", "job_started"]
    with stocked.transaction() as session:
        event = session.query(Event).filter_by(code="handed_back").one()
    assert event.message == "The job has made room; the job goes on from step 7."


@pytest.mark.parametrize("priority", ["low", "normal"])
def test_only_a_job_of_high_priority_preempts(stocked: Database, priority: str) -> None:
    run(stocked, priority="low")
    queue(stocked, priority=priority)
    assert make_room(stocked, total=1) == []


def test_a_job_of_high_priority_yields_to_none(stocked: Database) -> None:
    run(stocked, priority="high")
    queue(stocked)
    assert make_room(stocked, total=1) == []


def test_nobody_yields_in_vain(stocked: Database) -> None:
    run(stocked, gpus=2)
    run(stocked, gpus=2, preemptible=False)
    queue(stocked, gpus=4)
    assert make_room(stocked, total=4) == [], "two slots would come free, and it needs four"
    queue(stocked, gpus=9)
    assert make_room(stocked, total=4) == [], "it never fits here"


def test_as_few_as_needed_yield_the_lowest_and_last_begun_first(stocked: Database) -> None:
    normal = run(stocked, gpus=4)
    first, second = run(stocked, gpus=1, priority="low"), run(stocked, gpus=2, priority="low")
    queue(stocked, gpus=3)
    assert make_room(stocked, free=1, total=8) == [second.job_id]
    hand_back(stocked, second)
    assert [told(stocked, claim) for claim in (normal, first)] == [False, False]


def test_who_is_not_needed_after_all_is_left_alone(stocked: Database) -> None:
    small = run(stocked, gpus=1, priority="low")
    large = run(stocked, gpus=4)
    queue(stocked, gpus=4)
    assert make_room(stocked, total=5) == [large.job_id]
    assert not told(stocked, small)


def test_what_comes_free_is_kept_for_it(stocked: Database) -> None:
    one, two = run(stocked), run(stocked)
    urgent = queue(stocked, gpus=2)
    younger = queue(stocked, priority="normal")
    assert len(make_room(stocked, total=2)) == 2
    hand_back(stocked, one)
    assert take(stocked, free=1, total=2) is None, "neither the one that yielded nor a third may take it"
    hand_back(stocked, two)
    assert take(stocked, free=2, total=2) == urgent
    assert take(stocked, free=2, total=2) == one.job_id
    assert take(stocked, free=2, total=2) == two.job_id
    assert take(stocked, free=2, total=2) == younger


def test_another_worker_with_room_takes_it_instead(stocked: Database) -> None:
    run(stocked)
    queue(stocked, gpus=2)
    with stocked.transaction() as session:
        workers.register(session, workers.Facts("w2", "host", 1, "cpu", 2))
    assert make_room(stocked, total=2) == []
    with stocked.transaction() as session:
        leases.claim(session, worker_id="w2", free=2, total=2, lease_seconds=30)
    queue(stocked, gpus=1)
    assert len(make_room(stocked, total=2)) == 1, "now that worker is full"


def test_two_workers_make_room_for_two_jobs(stocked: Database) -> None:
    mine = run(stocked)
    queue(stocked, priority="normal", preemptible=True)
    theirs = claim_one(stocked, worker_id="w2")
    queue(stocked)
    assert make_room(stocked, total=1) == [mine.job_id]
    with stocked.transaction() as session:
        assert preemption.make_room(session, worker_id="w2", free=0, total=1, project_gpus=None) == []
    assert not told(stocked, theirs)


def test_a_yielding_job_may_be_paused_cancelled_or_lost(stocked: Database) -> None:
    paused, cancelled, lost = (run(stocked) for _ in range(3))
    queue(stocked, gpus=3)
    assert len(make_room(stocked, total=3)) == 3
    with stocked.transaction() as session:
        pauses.pause(session, PROJECT, paused.job_id)
        results.hand_back(session, paused)
        jobs.cancel(session, PROJECT, cancelled.job_id)
        died = Failure(kind="infrastructure", code="trainer_died", message="It died.")
        results.fail(session, lost, died, max_attempts=5)
    found = [read_job(stocked, claim.job_id) for claim in (paused, cancelled, lost)]
    assert [(job.state, job.yields_to) for job in found] == [("paused", None), ("cancelled", None), ("queued", None)]


def test_another_project_s_job_is_not_named(stocked: Database) -> None:
    low, urgent = run(stocked), queue(stocked)
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        session.get_one(Job, urgent).project_id = "proj-2"
    make_room(stocked, total=1)
    with stocked.transaction() as session:
        event = session.query(Event).filter_by(job_id=low.job_id, code="job_preempted").one()
    assert urgent not in event.message and "another project's job" in event.message
